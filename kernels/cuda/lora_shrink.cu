/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lora_shrink: a block has K_LORA_PART columns of x and 16 rows of a, a warp an eighth of these columns,
 * the rows of a as the left matrix of mma.sync and up to 64 rows of x as right ones. A warp's sum begins
 * at zero, the warps' are added in order: a sum depends on in alone.
 */
#include "kernels/cuda/k_cuda_lora.h"

enum {
    WARPS = 8,
    THREADS = WARPS * SIMT_WARP,
    COLUMNS = K_LORA_PART / WARPS, /* of a warp */
    STEP = 32,                     /* of these at a time, two products deep: 8 a lane */
    RANKS = 16,
};

/* A lane's columns [at, at + 8) of a row, zeros beyond the end. */
template <bool IS_WIDE>
SIMT_DEVICE void load_a(const float *row, uint32_t at, uint32_t end, float (&v)[8])
{
    if constexpr (IS_WIDE) {
        if (at < end) {
            k_rows_load(row + at, v);
        }
    } else {
        SIMT_UNROLL
        for (uint32_t e = 0; e < 8; e++) {
            v[e] = at + e < end ? row[at + e] : 0.0f;
        }
    }
}

template <bool IS_WIDE>
SIMT_DEVICE void load_x(const __nv_bfloat16 *row, uint32_t at, uint32_t end, uint32_t (&v)[4])
{
    if constexpr (IS_WIDE) {
        if (at < end) {
            const uint4 raw = simt_load_16(row + at);
            v[0] = raw.x;
            v[1] = raw.y;
            v[2] = raw.z;
            v[3] = raw.w;
        }
    } else {
        SIMT_UNROLL
        for (uint32_t e = 0; e < 4; e++) {
            const uint32_t column = at + 2 * e;
            v[e] = simt_pack_bf16(column < end ? __bfloat162float(row[column]) : 0.0f,
                                  column + 1 < end ? __bfloat162float(row[column + 1]) : 0.0f);
        }
    }
}

/* Two products of 16 columns: a lane's eight columns are those of both, four each. */
template <int TILES>
SIMT_DEVICE void multiply(const float (&a)[2][8], const uint32_t (&x)[TILES][4], uint64_t mine,
                          float (&sums)[TILES][4])
{
    SIMT_UNROLL
    for (int half = 0; half < 2; half++) {
        uint32_t left[LORA_PARTS][4];
        SIMT_UNROLL
        for (int e = 0; e < 4; e++) { /* rows g and g + 8, then the next two columns */
            const int column = 4 * half + e / 2 * 2;
            uint32_t part[LORA_PARTS];
            lora_split(a[e % 2][column], a[e % 2][column + 1], part);
            SIMT_UNROLL
            for (int p = 0; p < LORA_PARTS; p++) {
                left[p][e] = part[p];
            }
        }
        SIMT_UNROLL
        for (int n = 0; n < TILES; n++) {
            const uint32_t right[2] = {x[n][2 * half], x[n][2 * half + 1]};
            if ((mine >> 8 * n & 0xff) == 0) {
                continue;
            }
            SIMT_UNROLL
            for (int p = 0; p < LORA_PARTS; p++) {
                simt_mma_bf16(sums[n], left[p], right);
            }
        }
    }
}

/* The 8 columns from `at` on of 16 ranks of a and of the tile's `mine` rows of x, zeros where there are none. */
template <int TILES, bool IS_WIDE>
SIMT_DEVICE void load_columns(const lora_shrink_t &shrink, const k_lora_t &lora,
                              uint32_t first_rank, uint32_t at, const __nv_bfloat16 *x,
                              uint64_t mine, const uint32_t *x_row, float (&a)[2][8],
                              uint32_t (&right)[TILES][4])
{
    const uint32_t g = (uint32_t)simt_lane() / 4;
    SIMT_UNROLL
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t rank = first_rank + g + 8 * i;
        if (rank < lora.rank) {
            load_a<IS_WIDE>(lora.a + (size_t)rank * shrink.in, at, shrink.in, a[i]);
        }
    }
    SIMT_UNROLL
    for (uint32_t n = 0; n < TILES; n++) {
        const uint32_t row = 8 * n + g;
        if ((mine >> row & 1) != 0) {
            load_x<IS_WIDE>(x + x_row[row] * shrink.x_stride, at, shrink.in, right[n]);
        }
    }
}

/*
 * The warp's sums, of its columns, of 16 ranks from first_rank on with the tile's `mine` rows. Of few rows
 * all columns are on their way at once, of many there are loads enough in one step.
 */
template <int TILES, bool IS_WIDE>
SIMT_DEVICE void sum_columns(const lora_shrink_t &shrink, const k_lora_t &lora, uint32_t first_rank,
                             uint32_t begin, const __nv_bfloat16 *x, uint64_t mine,
                             const uint32_t *x_row, float (&sums)[TILES][4])
{
    constexpr uint32_t AHEAD = TILES == LORA_FEW ? COLUMNS : STEP;
    const uint32_t t = (uint32_t)simt_lane() % 4;
    for (uint32_t k = begin; k < begin + COLUMNS && k < shrink.in; k += AHEAD) {
        float a[AHEAD / STEP][2][8] = {};
        uint32_t right[AHEAD / STEP][TILES][4] = {};
        SIMT_UNROLL
        for (uint32_t s = 0; s < AHEAD / STEP; s++) {
            load_columns<TILES, IS_WIDE>(shrink, lora, first_rank, k + s * STEP + 8 * t, x, mine,
                                         x_row, a[s], right[s]);
        }
        SIMT_UNROLL
        for (uint32_t s = 0; s < AHEAD / STEP; s++) {
            multiply<TILES>(a[s], right[s], mine, sums);
        }
    }
}

/* sums[warp][rank][row] of all warps, added up, to low [row][max_rank] of the part and head. */
template <int ROWS>
SIMT_DEVICE void add_up(const float (&sums)[WARPS][RANKS][ROWS + 8], uint64_t mine, uint32_t ranks,
                        uint32_t max_rank, float *low)
{
    for (uint32_t e = threadIdx.x; e < (uint32_t)ROWS * RANKS; e += THREADS) {
        const uint32_t rank = e % RANKS;
        const uint32_t row = e / RANKS;
        if (rank >= ranks || (mine >> row & 1) == 0) {
            continue;
        }
        float sum = 0;
        SIMT_UNROLL
        for (int warp = 0; warp < WARPS; warp++) {
            sum += sums[warp][rank][row];
        }
        low[(size_t)row * max_rank + rank] = sum;
    }
}

template <int TILES, bool IS_WIDE>
static SIMT_KERNEL(THREADS, 2) lora_shrink(lora_rows_t rows, lora_shrink_t shrink, uint32_t parts)
{
    constexpr int ROWS = 8 * TILES;
    SIMT_SHARED(lora_tile<ROWS>, tile, [1]);
    SIMT_SHARED(float, all, [WARPS][RANKS][ROWS + 8]); /* 8 more: stores meet no bank twice */
    const uint32_t first = blockIdx.x * ROWS;
    const uint32_t part = blockIdx.y % parts;
    const uint32_t first_rank = blockIdx.y / parts * RANKS;
    const uint32_t head = blockIdx.z % rows.n_heads;
    simt_launch_next();
    if (rows.offsets != nullptr) {
        simt_wait_previous();
    }
    lora_look_up(rows, head, first, tile[0]);
    lora_bring(rows, tile[0], &k_lora_t::a, shrink.in, part * K_LORA_PART, K_LORA_PART, first_rank,
               RANKS);
    simt_wait_previous();
    for (uint32_t i = blockIdx.z / rows.n_heads; i < tile[0].n; i += gridDim.z / rows.n_heads) {
        const k_lora_t lora = rows.table[tile[0].entries[i] - 1];
        const uint64_t mine = tile[0].mine[i];
        if (first_rank >= lora.rank) {
            continue;
        }
        float sums[TILES][4] = {};
        sum_columns<TILES, IS_WIDE>(
            shrink, lora, first_rank, part * K_LORA_PART + (uint32_t)simt_warp() * COLUMNS,
            shrink.x + (size_t)head * shrink.x_step, mine, tile[0].x_row, sums);
        SIMT_UNROLL
        for (int n = 0; n < TILES; n++) {
            SIMT_UNROLL
            for (int e = 0; e < 4; e++) {
                const int rank = simt_lane() / 4 + e / 2 * 8;
                all[simt_warp()][rank][8 * n + simt_lane() % 4 * 2 + e % 2] = sums[n][e];
            }
        }
        simt_sync_block();
        const size_t at = ((size_t)part * rows.n_heads + head) * rows.rows + first;
        add_up<ROWS>(all, mine, lora.rank - first_rank, shrink.max_rank,
                     shrink.low + at * shrink.max_rank + first_rank);
        simt_sync_block();
    }
}

template <int TILES, bool IS_WIDE>
static int launch(const k_cuda_launch_t *at, const lora_rows_t *rows, const lora_shrink_t *shrink)
{
    const uint32_t parts = k_lora_parts(shrink->in);
    return simt_launch((lora_shrink<TILES, IS_WIDE>),
                       {.grid = {k_rows_ceil_div(rows->rows, 8 * TILES),
                                 k_rows_ceil_div(shrink->max_rank, RANKS) * parts,
                                 rows->n_heads * lora_blocks_of_tile(rows)},
                        .block = {THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *rows, *shrink, parts);
}

template <int TILES>
static int launch_sized(const k_cuda_launch_t *at, const lora_rows_t *rows,
                        const lora_shrink_t *shrink)
{
    const bool is_wide = shrink->in % 8 == 0 && shrink->x_step % 8 == 0 &&
                         k_rows_are_wide(shrink->x, shrink->x_stride, sizeof(__nv_bfloat16));
    return is_wide ? launch<TILES, true>(at, rows, shrink) : launch<TILES, false>(at, rows, shrink);
}

int k_cuda_lora_shrink_rows(const k_cuda_launch_t *at, const lora_rows_t *rows,
                            const lora_shrink_t *shrink)
{
    if (rows->rows == 0 || shrink->in == 0 || shrink->max_rank == 0) {
        return cudaSuccess;
    }
    return lora_tile_rows(rows) == 8 * LORA_FEW ? launch_sized<LORA_FEW>(at, rows, shrink)
                                                : launch_sized<LORA_MANY>(at, rows, shrink);
}

int k_cuda_lora_shrink(const k_cuda_launch_t *at, const k_lora_shrink_args_t *args)
{
    const lora_rows_t rows = lora_rows_of(&args->of);
    const lora_shrink_t shrink = {
        .x = (const __nv_bfloat16 *)args->x,
        .x_stride = args->x_stride,
        .x_step = args->x_step,
        .in = args->in,
        .low = args->low,
        .max_rank = args->max_rank,
    };
    return k_cuda_lora_shrink_rows(at, &rows, &shrink);
}
