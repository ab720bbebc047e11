/* SPDX-License-Identifier: Apache-2.0 */
/* square_sums: a block a row; the order of a sum depends on dim and the alignment alone. */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_rows.h"

enum { THREADS = 256 };

template <int N> static SIMT_KERNEL(THREADS, 4) square_sums(k_square_sums_args_t args)
{
    SIMT_SHARED(float, partial, [32]);
    simt_launch_next();
    simt_wait_previous();
    const __nv_bfloat16 *row = (const __nv_bfloat16 *)args.x + blockIdx.x * args.x_stride;
    float sum = 0;
    for (uint32_t at = threadIdx.x * N; at < args.dim; at += THREADS * N) {
        float x[N];
        k_rows_load(row + at, x);
        SIMT_UNROLL
        for (int i = 0; i < N; i++) {
            sum = fmaf(x[i], x[i], sum);
        }
    }
    sum = k_rows_block_sum(sum, partial);
    if (threadIdx.x == 0) {
        args.sums[blockIdx.x * args.sums_stride] = sum;
    }
}

template <int N> static int launch(const k_cuda_launch_t *at, const k_square_sums_args_t *args)
{
    return simt_launch(
        square_sums<N>,
        {.grid = {args->rows}, .block = {THREADS}, .stream = at->stream, .overlaps_previous = true},
        *args);
}

int k_cuda_square_sums(const k_cuda_launch_t *at, const k_square_sums_args_t *args)
{
    if (args->rows == 0) {
        return cudaSuccess;
    }
    const bool is_wide =
        args->dim % 8 == 0 && k_rows_are_wide(args->x, args->x_stride, sizeof(__nv_bfloat16));
    return is_wide ? launch<8>(at, args) : launch<1>(at, args);
}
