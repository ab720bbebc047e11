/* SPDX-License-Identifier: Apache-2.0 */
/* k_cuda_gated: y = f(gate, up), element by element. For .cu files. */
#pragma once

#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_rows.h"

enum { GATED_THREADS = 256 };

/* f: a struct with SIMT_FN float operator()(float gate, float up) const. */
template <class F, int N> static SIMT_KERNEL(GATED_THREADS, 4) gated(k_silu_mul_args_t args, F f)
{
    simt_launch_next();
    simt_wait_previous();
    const size_t row = blockIdx.x;
    const uint32_t at = (blockIdx.y * GATED_THREADS + threadIdx.x) * N;
    if (at >= args.dim) {
        return;
    }
    float gate[N];
    float up[N];
    k_rows_load((const __nv_bfloat16 *)args.gate + row * args.gate_stride + at, gate);
    k_rows_load((const __nv_bfloat16 *)args.up + row * args.up_stride + at, up);
    SIMT_UNROLL
    for (int i = 0; i < N; i++) {
        gate[i] = f(gate[i], up[i]);
    }
    k_rows_store((__nv_bfloat16 *)args.y + row * args.y_stride + at, gate);
}

template <class F, int N>
static int gated_launch_wide(const k_cuda_launch_t *at, const k_silu_mul_args_t *args, F f)
{
    return simt_launch((gated<F, N>),
                       {.grid = {args->rows, k_rows_ceil_div(args->dim, GATED_THREADS * N)},
                        .block = {GATED_THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args, f);
}

template <class F>
static int gated_launch(const k_cuda_launch_t *at, const k_silu_mul_args_t *args, F f)
{
    if (args->rows == 0 || args->dim == 0) {
        return cudaSuccess;
    }
    const size_t bytes = sizeof(__nv_bfloat16);
    const bool is_wide = args->dim % 8 == 0 &&
                         k_rows_are_wide(args->gate, args->gate_stride, bytes) &&
                         k_rows_are_wide(args->up, args->up_stride, bytes) &&
                         k_rows_are_wide(args->y, args->y_stride, bytes);
    return is_wide ? gated_launch_wide<F, 8>(at, args, f) : gated_launch_wide<F, 1>(at, args, f);
}
