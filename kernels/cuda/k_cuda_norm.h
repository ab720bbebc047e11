/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_cuda_norm: the arithmetic of rms_norm where a block has a row, for every kernel that norms one: the
 * same bits in all. Thread t holds chunk c of N elements at (c · threads + t) · N. For .cu files.
 */
#pragma once

#include "kernels/cuda/k_cuda_rows.h"

enum {
    K_NORM_CHUNKS = 2,         /* that a thread holds */
    K_NORM_MAX_THREADS = 1024, /* rows of up to so many times the chunks */
};

/* For a row of dim elements: whole warps. */
inline uint32_t k_norm_threads(uint32_t dim, uint32_t n, uint32_t chunks)
{
    const uint32_t threads = k_rows_ceil_div(k_rows_ceil_div(dim, n), chunks);
    return k_rows_ceil_div(threads, SIMT_WARP) * SIMT_WARP;
}

template <int N> SIMT_DEVICE float k_norm_add_squares(float sum, const float (&x)[N])
{
    SIMT_UNROLL
    for (int i = 0; i < N; i++) {
        sum = fmaf(x[i], x[i], sum);
    }
    return sum;
}

/* sum: of a row's squares */
SIMT_DEVICE float k_norm_scale(float sum, uint32_t dim, float eps)
{
    return 1.0f / sqrtf(sum / (float)dim + eps);
}

template <int N>
SIMT_DEVICE void k_norm_store(__nv_bfloat16 *y, const float (&x)[N], float scale,
                              const float (&w)[N])
{
    float v[N];
    SIMT_UNROLL
    for (int i = 0; i < N; i++) {
        v[i] = x[i] * scale * w[i];
    }
    k_rows_store(y, v);
}
