/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_rows.h"

enum { THREADS = 256 };

template <int N> static SIMT_KERNEL(THREADS, 8) narrow(k_narrow_args_t args)
{
    simt_launch_next();
    simt_wait_previous();
    const size_t row = blockIdx.x;
    const uint32_t at = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (at >= args.dim) {
        return;
    }
    float v[N];
    k_rows_load(args.x + row * args.x_stride + at, v);
    k_rows_store((__nv_bfloat16 *)args.y + row * args.y_stride + at, v);
}

template <int N> static int launch(const k_cuda_launch_t *at, const k_narrow_args_t *args)
{
    return simt_launch(narrow<N>,
                       {.grid = {args->rows, k_rows_ceil_div(args->dim, THREADS * N)},
                        .block = {THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args);
}

int k_cuda_narrow(const k_cuda_launch_t *at, const k_narrow_args_t *args)
{
    if (args->rows == 0 || args->dim == 0) {
        return cudaSuccess;
    }
    const bool is_wide = args->dim % 8 == 0 &&
                         k_rows_are_wide(args->x, args->x_stride, sizeof(float)) &&
                         k_rows_are_wide(args->y, args->y_stride, sizeof(__nv_bfloat16));
    return is_wide ? launch<8>(at, args) : launch<1>(at, args);
}
