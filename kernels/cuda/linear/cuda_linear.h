/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_linear: matrices as the CUDA kernels keep them, and the products x Wᵀ with them.
 *
 * A packed matrix is cut into blocks of 64 columns (k blocks; the last is filled with zeroes) and
 * units of 16 rows, which is what one tensor-core instruction of a warp multiplies.
 *
 *   BF16      tiles of 64 rows (4 units) × 64 columns, 8 KiB each, [row tile][k block]: row r of a
 *             tile is 128 bytes, its 16-byte chunk c lies at chunk c ^ (r % 8). That is the order in
 *             which wgmma reads shared memory, so that a stage of a kernel is one bulk copy
 *   others    [unit][k block], in the order in which the lanes of a warp want their fragments:
 *             weight_formats.h
 *   GATE_UP   8 rows of the gate, then the same 8 of up: a thread that holds row i of a unit holds
 *             row i + 8 too
 *
 * Decision 7: for one (dtype, rows, columns) each element of y is summed over K in the same order
 * by the same instructions, whatever the number of rows of x. There are two families:
 *
 *   wgmma     BF16 on Hopper, when rows of x are 16-byte aligned: K in steps of 16 from first to
 *             last, in one accumulator
 *   mma       everything else: K blocks in LINEAR_MMA_SPLITS contiguous parts, each summed from
 *             first to last, the parts added in order. Weights of integers are multiplied as
 *             integers, which bf16 holds exactly, and each scale group's sum is scaled in f32; F16 is
 *             split into two and F32 into three bf16 numbers, which is exact too
 *
 * Functions return a cudaError_t as int. All pointers but the arguments themselves are of the device.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/dtypes.h"

#define LINEAR_UNIT_ROWS  16
#define LINEAR_K_BLOCK    64
#define LINEAR_MMA_SPLITS 8

/* ---- weights ------------------------------------------------------------------------------- */

typedef struct k_cuda_weight {
    k_dtype_t dtype;
    bool is_gate_up;
    uint32_t rows;
    uint32_t columns;
    const void *data; /* packed, 128-byte aligned */
} k_cuda_weight_t;

/* Bytes of a packed matrix; SIZE_MAX: no kernel has this dtype. */
size_t k_cuda_weight_bytes(k_dtype_t dtype, bool is_gate_up, uint32_t rows, uint32_t columns);

/*
 * Packs rows [first, first + n) of a source in file order, which lie in device memory at src, into
 * w->data. The ranges of a matrix may come in any order and size; before the first,
 * k_cuda_weight_clear zeroes what no source row fills.
 */
int k_cuda_weight_clear(const k_cuda_weight_t *w, cudaStream_t stream);
int k_cuda_weight_pack_rows(const k_cuda_weight_t *w, const void *src, uint32_t first, uint32_t n,
                            cudaStream_t stream);

/*
 * y[i] = row ids[i] - first_id of the matrix · scale, bit-equal to k_dequantize; zeros where there is
 * none; y [n, columns] f32
 */
int k_cuda_embed(const k_cuda_weight_t *w, const int32_t *ids, uint32_t first_id, float *y,
                 uint32_t n, size_t y_stride, float scale, cudaStream_t stream);

/* ---- products ------------------------------------------------------------------------------ */

typedef enum k_cuda_out {
    K_CUDA_OUT_BF16,   /* y bf16 = x Wᵀ + bias */
    K_CUDA_OUT_F32,    /* y f32 = it */
    K_CUDA_OUT_ADD,    /* y f32 += it */
    K_CUDA_OUT_SWIGLU, /* y bf16 [rows, W.rows / 2] = silu(gate) · up */
} k_cuda_out_t;

/* Which family computes; AUTO outside of tests and benchmarks. */
typedef enum k_cuda_linear_path {
    K_CUDA_LINEAR_AUTO,
    K_CUDA_LINEAR_MMA,
    K_CUDA_LINEAR_WGMMA, /* cudaErrorNotSupported where it cannot */
} k_cuda_linear_path_t;

typedef struct k_cuda_linear {
    k_cuda_weight_t w;
    const float *bias; /* [w.rows] in source order, or NULL */
    const void *x;     /* [rows, w.columns] bf16 */
    void *y;
    k_cuda_out_t out;
    uint32_t rows;
    size_t x_stride; /* elements */
    size_t y_stride;
    k_cuda_linear_path_t path;
} k_cuda_linear_t;

/*
 * Launched to overlap the kernel before it: weights are fetched before that one has ended. w.data
 * must therefore have been written earlier than by the kernel right before.
 */
int k_cuda_linear(const k_cuda_linear_t *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
