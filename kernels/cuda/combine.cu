/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_rows.h"

enum { THREADS = 128 };

template <int N> static SIMT_KERNEL(THREADS, 8) combine(k_combine_args_t args)
{
    simt_launch_next();
    simt_wait_previous();
    const size_t row = blockIdx.x;
    const uint32_t at = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (at >= args.dim) {
        return;
    }
    float sum[N] = {};
    for (uint32_t j = 0; j < args.used; j++) {
        const size_t slot = args.slot_of[row * args.used + j];
        const float weight = args.weights[row * args.used + j];
        if (args.offsets != nullptr &&
            (slot < args.offsets[0] || slot >= args.offsets[args.n_experts])) {
            continue; /* of an expert that is elsewhere */
        }
        float x[N];
        k_rows_load((const __nv_bfloat16 *)args.x + slot * args.x_stride + at, x);
        SIMT_UNROLL
        for (int i = 0; i < N; i++) {
            sum[i] = fmaf(weight, x[i], sum[i]);
        }
    }
    float y[N] = {};
    if (!args.replaces) {
        k_rows_load(args.y + row * args.y_stride + at, y);
    }
    SIMT_UNROLL
    for (int i = 0; i < N; i++) {
        y[i] += sum[i];
    }
    k_rows_store(args.y + row * args.y_stride + at, y);
}

template <int N> static int launch(const k_cuda_launch_t *at, const k_combine_args_t *args)
{
    return simt_launch(combine<N>,
                       {.grid = {args->rows, k_rows_ceil_div(args->dim, THREADS * N)},
                        .block = {THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args);
}

int k_cuda_combine(const k_cuda_launch_t *at, const k_combine_args_t *args)
{
    if (args->rows == 0 || args->dim == 0) {
        return cudaSuccess;
    }
    const bool is_wide = args->dim % 8 == 0 &&
                         k_rows_are_wide(args->x, args->x_stride, sizeof(__nv_bfloat16)) &&
                         k_rows_are_wide(args->y, args->y_stride, sizeof(float));
    return is_wide ? launch<8>(at, args) : launch<1>(at, args);
}
