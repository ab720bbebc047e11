/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/cuda_ranks_vectors.cuh"
#include "kernels/cuda/k_cuda_norm.h"

enum {
    CHANNEL_BYTES = 8 << 10, /* that are worth a block of their own */
    NORM_ROWS = 128,         /* that are worth a kernel for sum and norm: four for each channel */
    SUM_THREADS = 256,       /* of what others have gathered */
    SUM_BLOCKS = 256,
};

/* ---- kernels --------------------------------------------------------------------------------- */

/* Everyone gives all of it to everyone. */
template <class T>
static SIMT_KERNEL(RANKS_THREADS, 1)
    all_reduce_at_once(const SIMT_GRID_CONSTANT cuda_ranks_t g, const T *in, T *out, size_t n)
{
    each_piece(g, n, LANES<T>, g.place_bytes / sizeof(T),
               [&](uint32_t &step, size_t first, size_t count) {
                   give_to_all(g, ++step, in + first, count * sizeof(T));
                   if (!meet(g, step)) {
                       return false;
                   }
                   sum_places(g, step, out + first, count);
                   return true;
               });
}

/* The sums of all ranks but this one, which are at their places. */
template <class T>
SIMT_DEVICE void take_sums(const cuda_ranks_t &g, uint32_t step, T *out, size_t share, size_t count)
{
    for (uint32_t rank = 0; rank < g.size; rank++) {
        const size_t at = least(count, rank * share);
        if (rank != g.rank) {
            copy(reinterpret_cast<char *>(out + at), place_of(g, g.rank, step, rank),
                 least(share, count - at) * sizeof(T));
        }
    }
}

/* Each rank adds its part of a piece and gives the sum to all. */
template <class T>
static SIMT_KERNEL(RANKS_THREADS, 1)
    all_reduce_in_parts(const SIMT_GRID_CONSTANT cuda_ranks_t g, const T *in, T *out, size_t n)
{
    each_piece(g, n, LANES<T>, g.place_bytes / sizeof(T) * g.size,
               [&](uint32_t &step, size_t first, size_t count) {
                   const size_t share = round_up((count + g.size - 1) / g.size, LANES<T>);
                   const size_t own = least(count, g.rank * share);
                   step++;
                   for (uint32_t rank = 0; rank < g.size; rank++) {
                       const size_t at = least(count, rank * share);
                       copy(place_of(g, rank, step, g.rank),
                            reinterpret_cast<const char *>(in + first + at),
                            least(share, count - at) * sizeof(T));
                   }
                   if (!meet(g, step)) {
                       return false;
                   }
                   sum_and_give(g, step, out + first + own, least(share, count - own));
                   if (!meet(g, ++step)) {
                       return false;
                   }
                   take_sums(g, step, out + first, share, count);
                   return true;
               });
}

/*
 * Rows are dealt out to channels. A thread reads and writes what it does in rms_norm: chunk c at
 * (c · threads + t) · 4.
 */
SIMT_DEVICE void norm_row(const cuda_ranks_t &g, uint32_t step, const cuda_ranks_norm_t &norm,
                          uint32_t row, float *partial)
{
    float held[K_NORM_CHUNKS][4] = {};
    float sum = 0;
    SIMT_UNROLL
    for (int c = 0; c < K_NORM_CHUNKS; c++) {
        const uint32_t at = (c * blockDim.x + threadIdx.x) * 4;
        if (at < norm.dim) {
            const uint4 v = sum_vector<float>(g, step, at / 4);
            unpack<float>(v, held[c]);
            simt_store_16(norm.x + row * norm.x_stride + at, v);
            sum = k_norm_add_squares(sum, held[c]);
        }
    }
    const float scale = k_norm_scale(k_rows_block_sum(sum, partial), norm.dim, norm.eps);
    SIMT_UNROLL
    for (int c = 0; c < K_NORM_CHUNKS; c++) {
        const uint32_t at = (c * blockDim.x + threadIdx.x) * 4;
        float w[4];
        if (at < norm.dim) {
            k_rows_load(norm.w + at, w);
            k_norm_store(static_cast<__nv_bfloat16 *>(norm.y) + row * norm.y_stride + at, held[c],
                         scale, w);
        }
    }
}

static SIMT_KERNEL(K_NORM_MAX_THREADS, 1)
    all_reduce_norm(const SIMT_GRID_CONSTANT cuda_ranks_t g,
                    const SIMT_GRID_CONSTANT cuda_ranks_norm_t norm)
{
    SIMT_SHARED(float, partial, [32]);
    if (!begin(g)) {
        return;
    }
    uint32_t step = load_step(g);
    for (uint32_t row = blockIdx.x; row < norm.rows; row += gridDim.x) {
        give_to_all(g, ++step, norm.x + row * norm.x_stride, norm.dim * sizeof(float));
        if (!meet(g, step)) {
            return;
        }
        norm_row(g, step, norm, row, partial);
    }
    store_step(g, step);
}

template <class T>
static SIMT_KERNEL(RANKS_THREADS, 1)
    reduce_scatter(const SIMT_GRID_CONSTANT cuda_ranks_t g, const T *in, T *out, size_t n)
{
    each_piece(
        g, n, LANES<T>, g.place_bytes / sizeof(T), [&](uint32_t &step, size_t first, size_t count) {
            step++;
            for (uint32_t rank = 0; rank < g.size; rank++) {
                copy(place_of(g, rank, step, g.rank),
                     reinterpret_cast<const char *>(in + rank * n + first), count * sizeof(T));
            }
            if (!meet(g, step)) {
                return false;
            }
            sum_places(g, step, out + first, count);
            return true;
        });
}

static SIMT_KERNEL(RANKS_THREADS, 1)
    all_gather(const SIMT_GRID_CONSTANT cuda_ranks_t g, const char *in, char *out, size_t bytes)
{
    each_piece(g, bytes, 16, g.place_bytes, [&](uint32_t &step, size_t first, size_t count) {
        give_to_all(g, ++step, in + first, count);
        if (!meet(g, step)) {
            return false;
        }
        for (uint32_t rank = 0; rank < g.size; rank++) {
            copy(out + rank * bytes + first, place_of(g, g.rank, step, rank), count);
        }
        return true;
    });
}

static SIMT_KERNEL(RANKS_THREADS, 1)
    broadcast(const SIMT_GRID_CONSTANT cuda_ranks_t g, char *buffer, size_t bytes, uint32_t root)
{
    each_piece(g, bytes, 16, g.place_bytes, [&](uint32_t &step, size_t first, size_t count) {
        step++;
        if (g.rank == root) {
            give_to_all(g, step, buffer + first, count);
        }
        if (!meet(g, step)) {
            return false;
        }
        if (g.rank != root) {
            copy(buffer + first, place_of(g, g.rank, step, root), count);
        }
        return true;
    });
}

static SIMT_KERNEL(RANKS_THREADS, 1) barrier(const SIMT_GRID_CONSTANT cuda_ranks_t g)
{
    if (!begin(g)) {
        return;
    }
    const uint32_t step = load_step(g) + 1;
    if (meet(g, step)) {
        store_step(g, step);
    }
}

template <class T>
static SIMT_KERNEL(SUM_THREADS, 4)
    sum_parts(const char *parts, uint32_t n_parts, size_t stride, T *out, size_t n)
{
    const size_t threads = (size_t)gridDim.x * SUM_THREADS;
    for (size_t i = (size_t)blockIdx.x * SUM_THREADS + threadIdx.x; i * LANES<T> < n;
         i += threads) {
        const uint4 v = add_vectors<T>(
            [=](uint32_t part) { return load_vector<T>(parts + part * stride, i, n); }, n_parts);
        store_vector(out, i, n, v);
    }
}

/* ---- launchers -------------------------------------------------------------------------------- */

static simt_grid_t grid_for(size_t bytes, void *stream)
{
    return grid_of(bytes, CHANNEL_BYTES, CUDA_RANKS_CHANNELS, stream);
}

/* All at once moves size - 1 times the data, in parts 2 (size - 1) / size times, with twice the waits. */
static bool goes_at_once(const cuda_ranks_t *ranks, size_t bytes)
{
    return ranks->size <= 2 || bytes <= ((size_t)1 << 20) / ranks->size;
}

template <class T>
static cudaError_t launch_all_reduce(const cuda_ranks_t *ranks, const void *in, void *out, size_t n,
                                     void *stream)
{
    const size_t bytes = n * sizeof(T);
    if (goes_at_once(ranks, bytes)) {
        return simt_launch(all_reduce_at_once<T>, grid_for(bytes, stream), *ranks,
                           static_cast<const T *>(in), static_cast<T *>(out), n);
    }
    return simt_launch(all_reduce_in_parts<T>, grid_for(bytes, stream), *ranks,
                       static_cast<const T *>(in), static_cast<T *>(out), n);
}

size_t cuda_ranks_region_bytes(uint32_t size, size_t place_bytes, size_t pair_bytes)
{
    return CUDA_RANKS_HEAD_BYTES + (size_t)2 * CUDA_RANKS_CHANNELS * size * place_bytes +
           (size_t)(size - 1) * CUDA_RANKS_PAIR_CHANNELS * 2 * pair_bytes;
}

int cuda_ranks_all_reduce(const cuda_ranks_t *ranks, const void *in, void *out, size_t n,
                          cuda_ranks_dtype_t dtype, void *stream)
{
    return launch_of_type(dtype, [=](auto element) {
        return launch_all_reduce<decltype(element)>(ranks, in, out, n, stream);
    });
}

bool cuda_ranks_can_norm(const cuda_ranks_t *ranks, const cuda_ranks_norm_t *norm)
{
    const size_t bytes = (size_t)norm->dim * sizeof(float);
    const uint32_t chunks = k_rows_ceil_div(norm->dim, 4);
    return norm->rows <= NORM_ROWS && goes_at_once(ranks, norm->rows * bytes) &&
           bytes <= ranks->place_bytes && norm->dim % 4 == 0 && norm->x_stride % 4 == 0 &&
           norm->y_stride % 8 == 0 && chunks > SIMT_WARP &&
           chunks <= K_NORM_CHUNKS * K_NORM_MAX_THREADS;
}

int cuda_ranks_all_reduce_norm(const cuda_ranks_t *ranks, const cuda_ranks_norm_t *norm,
                               void *stream)
{
    simt_grid_t grid = grid_of(norm->rows, 1, CUDA_RANKS_CHANNELS, stream);
    grid.block = dim3(k_norm_threads(norm->dim, 4, K_NORM_CHUNKS));
    return simt_launch(all_reduce_norm, grid, *ranks, *norm);
}

int cuda_ranks_reduce_scatter(const cuda_ranks_t *ranks, const void *in, void *out, size_t n,
                              cuda_ranks_dtype_t dtype, void *stream)
{
    return launch_of_type(dtype, [=](auto element) {
        typedef decltype(element) T;
        return simt_launch(reduce_scatter<T>, grid_for(n * sizeof(T), stream), *ranks,
                           static_cast<const T *>(in), static_cast<T *>(out), n);
    });
}

int cuda_ranks_all_gather(const cuda_ranks_t *ranks, const void *in, void *out, size_t bytes,
                          void *stream)
{
    return simt_launch(all_gather, grid_for(bytes, stream), *ranks, static_cast<const char *>(in),
                       static_cast<char *>(out), bytes);
}

int cuda_ranks_broadcast(const cuda_ranks_t *ranks, void *buffer, size_t bytes, uint32_t root,
                         void *stream)
{
    return simt_launch(broadcast, grid_for(bytes, stream), *ranks, static_cast<char *>(buffer),
                       bytes, root);
}

int cuda_ranks_barrier(const cuda_ranks_t *ranks, void *stream)
{
    return simt_launch(barrier, grid_for(0, stream), *ranks);
}

int cuda_ranks_sum(const void *parts, uint32_t n_parts, size_t stride, void *out, size_t n,
                   cuda_ranks_dtype_t dtype, void *stream)
{
    return launch_of_type(dtype, [=](auto element) {
        typedef decltype(element) T;
        simt_grid_t grid = grid_of(n * sizeof(T), SUM_THREADS * 16, SUM_BLOCKS, stream);
        grid.block = dim3(SUM_THREADS);
        return simt_launch(sum_parts<T>, grid, static_cast<const char *>(parts), n_parts, stride,
                           static_cast<T *>(out), n);
    });
}
