/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_cuda: the launchers of the CUDA kernels, k_cuda_<op> for each op of ops.def; kernels/kernels.h
 * says what the ops do. Each is in kernels/cuda/<op>.cu.
 *
 * A launcher enqueues on at->stream and returns cudaError_t as an int: the launch's own failure,
 * 0 for none. It allocates nothing and reads no device memory, so a graph can capture it; grids
 * depend on host values only.
 *
 * Threads  any; a stream and its scratch belong to one at a time
 */
#pragma once

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct k_cuda_launch {
    struct CUstream_st *stream; /* a cudaStream_t */
    /* Device memory for the ops of this stream, which use it one after the other; 256-byte aligned,
     * undefined when an op begins. */
    void *scratch;
    size_t scratch_bytes;
    uint32_t multiprocessors;
} k_cuda_launch_t;

#define OP(name) int k_cuda_##name(const k_cuda_launch_t *at, const k_##name##_args_t *args);
#include "kernels/ops.def"
#undef OP

/* k_ops.weight_bytes */
size_t k_cuda_weight_bytes(k_dtype_t dtype, k_weight_form_t form, uint32_t rows, uint32_t columns);
/*
 * Packs n_rows rows of file bytes at src (device, 256-byte aligned) as rows first_row … of the weight
 * in source order into weight->data. Runs of rows begin and end at multiples of 128 of their part,
 * but for the part's end; they may come in any order and on several streams.
 */
int k_cuda_weight_pack(const k_cuda_launch_t *at, const k_weight_t *weight, uint32_t first_row,
                       uint32_t n_rows, const void *src);

/* Scratch of k_cuda_sample and k_cuda_logprobs. */
size_t k_cuda_sample_scratch_bytes(uint32_t rows, uint32_t vocab);

#ifdef __cplusplus
}
#endif
