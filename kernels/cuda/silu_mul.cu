/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_rows.h"

enum { THREADS = 256 };

SIMT_DEVICE float silu(float x)
{
    const float log2_e = 1.44269504f;
    return x * simt_rcp(1.0f + simt_exp2(-x * log2_e));
}

template <int N> static SIMT_KERNEL(THREADS, 4) silu_mul(k_silu_mul_args_t args)
{
    simt_launch_next();
    simt_wait_previous();
    const size_t row = blockIdx.x;
    const uint32_t at = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (at >= args.dim) {
        return;
    }
    float gate[N];
    float up[N];
    k_rows_load((const __nv_bfloat16 *)args.gate + row * args.gate_stride + at, gate);
    k_rows_load((const __nv_bfloat16 *)args.up + row * args.up_stride + at, up);
    SIMT_UNROLL
    for (int i = 0; i < N; i++) {
        gate[i] = silu(gate[i]) * up[i];
    }
    k_rows_store((__nv_bfloat16 *)args.y + row * args.y_stride + at, gate);
}

template <int N> static int launch(const k_cuda_launch_t *at, const k_silu_mul_args_t *args)
{
    return simt_launch(silu_mul<N>,
                       {.grid = {args->rows, k_rows_ceil_div(args->dim, THREADS * N)},
                        .block = {THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args);
}

int k_cuda_silu_mul(const k_cuda_launch_t *at, const k_silu_mul_args_t *args)
{
    if (args->rows == 0 || args->dim == 0) {
        return cudaSuccess;
    }
    const size_t bytes = sizeof(__nv_bfloat16);
    const bool is_wide = args->dim % 8 == 0 &&
                         k_rows_are_wide(args->gate, args->gate_stride, bytes) &&
                         k_rows_are_wide(args->up, args->up_stride, bytes) &&
                         k_rows_are_wide(args->y, args->y_stride, bytes);
    return is_wide ? launch<8>(at, args) : launch<1>(at, args);
}
