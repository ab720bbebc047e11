/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_cuda: the launchers of the CUDA kernels, k_cuda_<op> for each op of k_cuda_ops.def;
 * kernels/ops/ says what the ops do. Each is in kernels/cuda/<op>.cu. Products and attention
 * have headers of their own: cuda_linear.h, attention.h.
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
#include "kernels/cuda/k_cuda_ops.def"
#undef OP
int k_cuda_logprobs(const k_cuda_launch_t *at, const k_logprobs_args_t *args);
int k_cuda_sample(const k_cuda_launch_t *at, const k_sample_args_t *args);

/* Scratch of these two. */
size_t k_cuda_sample_scratch_bytes(uint32_t rows, uint32_t vocab);

/* Scratch of the slice_* ops. */
size_t k_cuda_slices_scratch_bytes(uint32_t rows, uint32_t tokens);

#ifdef __cplusplus
}
#endif
