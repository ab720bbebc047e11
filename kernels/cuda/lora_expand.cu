/* SPDX-License-Identifier: Apache-2.0 */
/* lora_expand: a thread has some columns of y in each row of its tile; ranks add up from the first on. */
#include "kernels/cuda/k_cuda_lora.h"

enum {
    THREADS = 64,
    AHEAD = 8, /* rows of b on their way at a time */
    HELD = 64, /* columns of low in shared memory, a multiple of that */
};

/* Columns [r, r + HELD) of low, zeros beyond the rank. */
SIMT_DEVICE void hold_low(const k_lora_expand_args_t &args, uint32_t rank, uint32_t first,
                          uint32_t r, uint32_t mine, float (&low)[LORA_ROWS][HELD])
{
    for (uint32_t e = threadIdx.x; e < (uint32_t)LORA_ROWS * HELD; e += THREADS) {
        const uint32_t row = e / HELD;
        const uint32_t at = r + e % HELD;
        low[row][e % HELD] = (mine >> row & 1) != 0 && at < rank
                                 ? args.low[(size_t)(first + row) * args.max_rank + at]
                                 : 0.0f;
    }
}

/* sums += low · the N columns of b from `column` on, ranks [r, r + AHEAD). */
template <int N>
SIMT_DEVICE void multiply(const k_lora_t &lora, uint32_t out, uint32_t column, uint32_t r,
                          uint32_t mine, const float (&low)[LORA_ROWS][HELD],
                          float (&sums)[LORA_ROWS][N])
{
    float b[AHEAD][N] = {};
    SIMT_UNROLL
    for (uint32_t e = 0; e < AHEAD; e++) {
        if (r + e < lora.rank) {
            k_rows_load(lora.b + (size_t)(r + e) * out + column, b[e]);
        }
    }
    SIMT_UNROLL
    for (uint32_t i = 0; i < LORA_ROWS; i++) {
        if ((mine >> i & 1) == 0) {
            continue;
        }
        SIMT_UNROLL
        for (uint32_t e = 0; e < AHEAD * N; e++) {
            sums[i][e % N] = fmaf(low[i][r % HELD + e / N], b[e / N][e % N], sums[i][e % N]);
        }
    }
}

template <class T, int N>
SIMT_DEVICE void add(const k_lora_expand_args_t &args, float scale, uint32_t first, uint32_t column,
                     uint32_t mine, const float (&sums)[LORA_ROWS][N])
{
    SIMT_UNROLL
    for (uint32_t i = 0; i < LORA_ROWS; i++) {
        if ((mine >> i & 1) == 0) {
            continue;
        }
        T *to = (T *)args.y + (first + i) * args.y_stride + column;
        float y[N];
        k_rows_load(to, y);
        SIMT_UNROLL
        for (uint32_t e = 0; e < N; e++) {
            y[e] = fmaf(scale, sums[i][e], y[e]);
        }
        k_rows_store(to, y);
    }
}

template <class T, int N> static SIMT_KERNEL(THREADS, 8) lora_expand(k_lora_expand_args_t args)
{
    SIMT_SHARED(uint32_t, adapters, [LORA_ROWS]);
    SIMT_SHARED(float, low, [LORA_ROWS][HELD]);
    const uint32_t first = blockIdx.x * LORA_ROWS;
    const uint32_t column = (blockIdx.y * THREADS + threadIdx.x) * N;
    simt_launch_next();
    lora_look_up(args.table, args.seqs, args.n_seqs, first, args.rows, adapters);
    simt_wait_previous();
    for (uint32_t i = blockIdx.z; i < LORA_ROWS; i += gridDim.z) {
        const uint32_t mine = lora_rows_like(adapters, i);
        if (mine == 0) {
            continue;
        }
        const k_lora_t lora = args.table[adapters[i] - 1];
        float sums[LORA_ROWS][N] = {};
        for (uint32_t r = 0; r < lora.rank; r += AHEAD) {
            if (r % HELD == 0) {
                simt_sync_block();
                hold_low(args, lora.rank, first, r, mine, low);
                simt_sync_block();
            }
            if (column < args.out) {
                multiply<N>(lora, args.out, column, r, mine, low, sums);
            }
        }
        if (column < args.out) {
            add<T, N>(args, lora.scale, first, column, mine, sums);
        }
    }
}

template <class T, int N>
static int launch(const k_cuda_launch_t *at, const k_lora_expand_args_t *args)
{
    return simt_launch(
        (lora_expand<T, N>),
        {.grid = {k_rows_ceil_div(args->rows, LORA_ROWS), k_rows_ceil_div(args->out, THREADS * N),
                  lora_blocks_of_tile(args->rows)},
         .block = {THREADS},
         .stream = at->stream,
         .overlaps_previous = true},
        *args);
}

template <class T>
static int launch_typed(const k_cuda_launch_t *at, const k_lora_expand_args_t *args)
{
    const bool is_wide =
        args->out % 4 == 0 && (uintptr_t)args->y % (4 * sizeof(T)) == 0 && args->y_stride % 4 == 0;
    return is_wide ? launch<T, 4>(at, args) : launch<T, 1>(at, args);
}

int k_cuda_lora_expand(const k_cuda_launch_t *at, const k_lora_expand_args_t *args)
{
    if (args->rows == 0 || args->out == 0 || args->max_rank == 0) {
        return cudaSuccess;
    }
    return args->y_dtype == K_F32 ? launch_typed<float>(at, args)
                                  : launch_typed<__nv_bfloat16>(at, args);
}
