/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rms_norm: x is read once, into registers. The order of the sum depends on dim, the type and the
 * alignment alone, never on the number of rows.
 */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_norm.h"

enum {
    LANES_THREADS = 128,
    MANY_CHUNKS = 8, /* that a thread holds of a vector longer than K_NORM_CHUNKS allow */
};

template <class T> SIMT_DEVICE const T *x_vector(const k_rms_norm_args_t &args, uint32_t vector)
{
    return (const T *)args.x + vector / args.groups * args.x_stride +
           (size_t)(vector % args.groups) * args.dim;
}

SIMT_DEVICE __nv_bfloat16 *y_vector(const k_rms_norm_args_t &args, uint32_t vector)
{
    return (__nv_bfloat16 *)args.y + vector / args.groups * args.y_stride +
           (size_t)(vector % args.groups) * args.dim;
}

/* sum: of this vector's squares; of a part of a row, the sums of all parts count */
SIMT_DEVICE float scale_of(const k_rms_norm_args_t &args, uint32_t vector, float sum)
{
    const bool is_part = args.sums != nullptr;
    const float all = is_part ? args.sums[vector * args.sums_stride] : sum;
    return k_norm_scale(all, is_part ? args.sums_dim : args.dim, args.eps);
}

/* `lanes` threads of a warp a vector, N elements each: the heads of q and k. */
template <class T, int N>
static SIMT_KERNEL(LANES_THREADS, 8) norm_by_lanes(k_rms_norm_args_t args, uint32_t lanes)
{
    simt_launch_next();
    const uint32_t vector = (blockIdx.x * LANES_THREADS + threadIdx.x) / lanes;
    const uint32_t at = threadIdx.x % lanes * N;
    const bool is_mine = vector < args.rows * args.groups && at < args.dim;
    float x[N] = {};
    float w[N] = {};
    if (is_mine) {
        k_rows_load(args.w + at, w);
    }
    simt_wait_previous();
    if (is_mine) {
        k_rows_load(x_vector<T>(args, vector) + at, x);
    }
    const float sum = simt_warp_sum(k_norm_add_squares(0, x), (int)lanes);
    if (is_mine) {
        k_norm_store(y_vector(args, vector) + at, x, scale_of(args, vector, sum), w);
    }
}

template <int N, int CHUNKS>
SIMT_DEVICE void load_weights(const k_rms_norm_args_t &args, float (&w)[CHUNKS][N])
{
    SIMT_UNROLL
    for (int c = 0; c < CHUNKS; c++) {
        const uint32_t at = (c * blockDim.x + threadIdx.x) * N;
        if (at < args.dim) {
            k_rows_load(args.w + at, w[c]);
        }
    }
}

/* A block a vector; each thread holds up to CHUNKS chunks of N elements. */
template <class T, int N, int CHUNKS>
static SIMT_KERNEL(CHUNKS == K_NORM_CHUNKS ? 1024 : 512, 1) norm_by_block(k_rms_norm_args_t args)
{
    SIMT_SHARED(float, partial, [32]);
    simt_launch_next();
    const T *x = x_vector<T>(args, blockIdx.x);
    float held[CHUNKS][N] = {};
    float w[CHUNKS][N] = {};
    if constexpr (CHUNKS == K_NORM_CHUNKS) {
        load_weights(args, w); /* while the kernel in front still runs */
    }
    simt_wait_previous();
    float sum = 0;
    SIMT_UNROLL
    for (int c = 0; c < CHUNKS; c++) {
        const uint32_t at = (c * blockDim.x + threadIdx.x) * N;
        if (at < args.dim) {
            k_rows_load(x + at, held[c]);
            sum = k_norm_add_squares(sum, held[c]);
        }
    }
    const float scale = scale_of(args, blockIdx.x, k_rows_block_sum(sum, partial));
    if constexpr (CHUNKS != K_NORM_CHUNKS) {
        load_weights(args, w);
    }
    SIMT_UNROLL
    for (int c = 0; c < CHUNKS; c++) {
        const uint32_t at = (c * blockDim.x + threadIdx.x) * N;
        if (at < args.dim) {
            k_norm_store(y_vector(args, blockIdx.x) + at, held[c], scale, w[c]);
        }
    }
}

template <class T, int N>
static int launch_by_lanes(const k_cuda_launch_t *at, const k_rms_norm_args_t *args)
{
    uint32_t lanes = 1;
    while (lanes * N < args->dim) {
        lanes *= 2;
    }
    const uint32_t vectors_a_block = LANES_THREADS / lanes;
    return simt_launch((norm_by_lanes<T, N>),
                       {.grid = {k_rows_ceil_div(args->rows * args->groups, vectors_a_block)},
                        .block = {LANES_THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args, lanes);
}

template <class T, int N, int CHUNKS>
static int launch_by_block(const k_cuda_launch_t *at, const k_rms_norm_args_t *args)
{
    return simt_launch((norm_by_block<T, N, CHUNKS>),
                       {.grid = {args->rows * args->groups},
                        .block = {k_norm_threads(args->dim, N, CHUNKS)},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args);
}

template <class T, int N>
static int launch_typed(const k_cuda_launch_t *at, const k_rms_norm_args_t *args)
{
    const uint32_t chunks = k_rows_ceil_div(args->dim, N);
    if (chunks <= SIMT_WARP) {
        return launch_by_lanes<T, N>(at, args);
    }
    if (chunks <= K_NORM_CHUNKS * 1024) {
        return launch_by_block<T, N, K_NORM_CHUNKS>(at, args);
    }
    if constexpr (N <= 4) {
        if (chunks <= MANY_CHUNKS * 512) {
            return launch_by_block<T, N, MANY_CHUNKS>(at, args);
        }
    }
    return cudaErrorInvalidValue; /* over 16384 elements, 4096 where rows are not 16-byte aligned */
}

template <class T, int N>
static int launch_aligned(const k_cuda_launch_t *at, const k_rms_norm_args_t *args)
{
    const bool is_wide = args->dim % N == 0 && k_rows_are_wide(args->w, 0, 4) &&
                         k_rows_are_wide(args->x, args->x_stride, sizeof(T)) &&
                         k_rows_are_wide(args->y, args->y_stride, sizeof(__nv_bfloat16));
    return is_wide ? launch_typed<T, N>(at, args) : launch_typed<T, 1>(at, args);
}

int k_cuda_rms_norm(const k_cuda_launch_t *at, const k_rms_norm_args_t *args)
{
    if (args->rows == 0 || args->groups == 0) {
        return cudaSuccess;
    }
    if (args->sums != NULL && args->groups != 1) {
        return cudaErrorInvalidValue;
    }
    switch (args->x_dtype) {
    case K_F32:
        return launch_aligned<float, 4>(at, args);
    case K_BF16:
        return launch_aligned<__nv_bfloat16, 8>(at, args);
    default:
        return cudaErrorInvalidValue;
    }
}
