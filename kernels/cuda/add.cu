/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_rows.h"

enum { THREADS = 256 };

template <int N> static SIMT_KERNEL(THREADS, 8) add(k_add_args_t args)
{
    simt_launch_next();
    simt_wait_previous();
    const size_t row = blockIdx.x;
    const uint32_t at = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (at >= args.dim) {
        return;
    }
    float x[N];
    float y[N];
    k_rows_load(static_cast<const __nv_bfloat16 *>(args.x) + row * args.x_stride + at, x);
    k_rows_load(args.y + row * args.y_stride + at, y);
    SIMT_UNROLL
    for (int i = 0; i < N; i++) {
        y[i] = fmaf(x[i], args.scale, y[i]);
    }
    k_rows_store(args.y + row * args.y_stride + at, y);
}

template <int N> static int launch(const k_cuda_launch_t *at, const k_add_args_t *args)
{
    return simt_launch(add<N>,
                       {.grid = {args->rows, k_rows_ceil_div(args->dim, THREADS * N)},
                        .block = {THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args);
}

int k_cuda_add(const k_cuda_launch_t *at, const k_add_args_t *args)
{
    if (args->rows == 0 || args->dim == 0) {
        return cudaSuccess;
    }
    const bool is_wide = args->dim % 8 == 0 &&
                         k_rows_are_wide(args->x, args->x_stride, sizeof(__nv_bfloat16)) &&
                         k_rows_are_wide(args->y, args->y_stride, sizeof(float));
    return is_wide ? launch<8>(at, args) : launch<1>(at, args);
}
