/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_rows.h"

enum { THREADS = 256 };

template <int N> static SIMT_KERNEL(THREADS, 4) softcap(k_softcap_args_t args)
{
    simt_launch_next();
    simt_wait_previous();
    const uint32_t at = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (at >= args.dim) {
        return;
    }
    float *x = args.x + blockIdx.x * args.x_stride + at;
    float v[N];
    k_rows_load(x, v);
    SIMT_UNROLL
    for (int i = 0; i < N; i++) {
        v[i] = args.cap * tanhf(v[i] / args.cap);
    }
    k_rows_store(x, v);
}

template <int N> static int launch(const k_cuda_launch_t *at, const k_softcap_args_t *args)
{
    return simt_launch(softcap<N>,
                       {.grid = {args->rows, k_rows_ceil_div(args->dim, THREADS * N)},
                        .block = {THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args);
}

int k_cuda_softcap(const k_cuda_launch_t *at, const k_softcap_args_t *args)
{
    if (args->rows == 0 || args->dim == 0) {
        return cudaSuccess;
    }
    const bool is_wide =
        args->dim % 4 == 0 && k_rows_are_wide(args->x, args->x_stride, sizeof(float));
    return is_wide ? launch<4>(at, args) : launch<1>(at, args);
}
