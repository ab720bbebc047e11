/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lora_shrink: the threads of a block share the columns of x and add up through warps; the order of a sum
 * depends on in and the alignment alone.
 */
#include "kernels/cuda/k_cuda_lora.h"

enum {
    THREADS = 256,
    WARPS = THREADS / SIMT_WARP,
    RANKS = 4, /* rows of a at a time, so that x is read less often; one where rows are few */
};

/* Sums of the tile's `mine` rows with R rows of a from `first_rank` on. */
template <int N, int R>
SIMT_DEVICE void multiply(const k_lora_shrink_args_t &args, const k_lora_t &lora, uint32_t first,
                          uint32_t first_rank, uint32_t mine, float (&sums)[LORA_ROWS * R])
{
    const __nv_bfloat16 *x = (const __nv_bfloat16 *)args.x + first * args.x_stride;
    for (uint32_t at = threadIdx.x * N; at < args.in; at += THREADS * N) {
        float a[R][N] = {};
        SIMT_UNROLL
        for (uint32_t r = 0; r < R; r++) {
            if (first_rank + r < lora.rank) {
                k_rows_load(lora.a + (size_t)(first_rank + r) * args.in + at, a[r]);
            }
        }
        SIMT_UNROLL
        for (uint32_t i = 0; i < LORA_ROWS; i++) {
            if ((mine >> i & 1) == 0) {
                continue;
            }
            float row[N];
            k_rows_load(x + i * args.x_stride + at, row);
            SIMT_UNROLL
            for (uint32_t e = 0; e < R * N; e++) {
                sums[i * R + e / N] = fmaf(row[e % N], a[e / N][e % N], sums[i * R + e / N]);
            }
        }
    }
}

template <int N, int R> static SIMT_KERNEL(THREADS, 2) lora_shrink(k_lora_shrink_args_t args)
{
    SIMT_SHARED(uint32_t, adapters, [LORA_ROWS]);
    SIMT_SHARED(float, partial, [WARPS][LORA_ROWS * R]);
    const uint32_t first = blockIdx.x * LORA_ROWS;
    const uint32_t first_rank = blockIdx.y * R;
    simt_launch_next();
    lora_look_up(args.table, args.seqs, args.n_seqs, first, args.rows, adapters);
    simt_wait_previous();
    for (uint32_t i = blockIdx.z; i < LORA_ROWS; i += gridDim.z) {
        const uint32_t mine = lora_rows_like(adapters, i);
        if (mine == 0 || first_rank >= args.table[adapters[i] - 1].rank) {
            continue;
        }
        const k_lora_t lora = args.table[adapters[i] - 1];
        float sums[LORA_ROWS * R] = {};
        multiply<N, R>(args, lora, first, first_rank, mine, sums);
        simt_warp_sum_n(sums);
        SIMT_UNROLL
        for (uint32_t e = 0; e < LORA_ROWS * R; e++) {
            if (simt_lane() == 0) {
                partial[simt_warp()][e] = sums[e];
            }
        }
        simt_sync_block();
        const uint32_t row = threadIdx.x / R;
        const uint32_t r = first_rank + threadIdx.x % R;
        if (threadIdx.x < LORA_ROWS * R && (mine >> row & 1) != 0 && r < lora.rank) {
            float sum = 0;
            SIMT_UNROLL
            for (uint32_t warp = 0; warp < WARPS; warp++) {
                sum += partial[warp][threadIdx.x];
            }
            args.low[(size_t)(first + row) * args.max_rank + r] = sum;
        }
        simt_sync_block();
    }
}

template <int N, int R>
static int launch(const k_cuda_launch_t *at, const k_lora_shrink_args_t *args)
{
    return simt_launch(
        (lora_shrink<N, R>),
        {.grid = {k_rows_ceil_div(args->rows, LORA_ROWS), k_rows_ceil_div(args->max_rank, R),
                  lora_blocks_of_tile(args->rows)},
         .block = {THREADS},
         .stream = at->stream,
         .overlaps_previous = true},
        *args);
}

template <int N>
static int launch_sized(const k_cuda_launch_t *at, const k_lora_shrink_args_t *args)
{
    return args->rows <= LORA_FEW_ROWS ? launch<N, 1>(at, args) : launch<N, RANKS>(at, args);
}

int k_cuda_lora_shrink(const k_cuda_launch_t *at, const k_lora_shrink_args_t *args)
{
    if (args->rows == 0 || args->in == 0 || args->max_rank == 0) {
        return cudaSuccess;
    }
    const bool is_wide =
        args->in % 8 == 0 && k_rows_are_wide(args->x, args->x_stride, sizeof(__nv_bfloat16));
    return is_wide ? launch_sized<8>(at, args) : launch_sized<1>(at, args);
}
