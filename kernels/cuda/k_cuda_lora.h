/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_cuda_lora: what the kernels of adapters share. Rows, or slots of experts, go in tiles, and a tile
 * by its adapters: each is read once for all of the tile's rows that have it, in whatever order they
 * lie. What a tile holds, and how wide it is, changes nobody's sums. For .cu files.
 *
 * The products are those of tensor cores, of bf16: f32 numbers are split in three, which is exact.
 *
 * Sequences and tables are written by copies and by nobody else, so that blocks look theirs up while
 * the kernel in front still runs; where slots lie is what a kernel wrote.
 */
#pragma once

#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_rows.h"

enum {
    LORA_FEW = 1,         /* groups of 8 rows in a tile of few rows, */
    LORA_MANY = 8,        /* and where there are more */
    LORA_PARTS = 3,       /* of an f32 number */
    LORA_MAX_BLOCKS = 16, /* that share out a tile's adapters */
};

/* The rows of a kernel and the adapters they have. */
typedef struct lora_rows {
    const k_lora_t *table;   /* [places], of experts [n_experts][places] */
    uint32_t table_step = 0; /* entries to the table of the next head */
    uint32_t n_heads = 1;
    const k_seq_t *seqs;
    uint32_t n_seqs;
    uint32_t rows; /* or slots */
    /* NULL: rows are those of the sequences; else as k_lora_experts_args_t's. */
    const uint32_t *offsets = nullptr;
    const uint32_t *row_of_slot = nullptr;
    uint32_t n_experts = 0;
    uint32_t places = 0;
    bool has_rows = false;
} lora_rows_t;

inline lora_rows_t lora_rows_of(const k_lora_rows_t *of)
{
    return {
        .table = of->table,
        .table_step = of->table_step,
        .n_heads = of->n_heads,
        .seqs = of->seqs,
        .n_seqs = of->n_seqs,
        .rows = of->rows,
    };
}

/* low is k_lora_low_floats() of rows: the sums of each K_LORA_PART of in, [part][head][row][max_rank]. */
typedef struct lora_shrink {
    const __nv_bfloat16 *x;
    size_t x_stride;
    uint32_t x_step = 0; /* to the next head's */
    uint32_t in;
    float *low;
    uint32_t max_rank;
} lora_shrink_t;

typedef struct lora_expand {
    const float *low;
    uint32_t parts; /* of each sum, as they lie in low */
    uint32_t max_rank;
    void *y;
    k_dtype_t y_dtype;
    size_t y_stride;
    uint32_t y_step = 0;
    uint32_t out;
} lora_expand_t;

extern "C" {
int k_cuda_lora_shrink_rows(const k_cuda_launch_t *at, const lora_rows_t *rows,
                            const lora_shrink_t *shrink);
int k_cuda_lora_expand_rows(const k_cuda_launch_t *at, const lora_rows_t *rows,
                            const lora_expand_t *expand);
/* The sums of expand's parts, to sums [head][row][max_rank]. */
int k_cuda_lora_sum_rows(const k_cuda_launch_t *at, const lora_rows_t *rows,
                         const lora_expand_t *expand, float *sums);
}

/* ---- who has which --------------------------------------------------------------------------- */

/* A tile's rows, and its adapters in the order of their first rows. */
template <int ROWS> struct lora_tile {
    uint32_t entry[ROWS]; /* of the table, counted from 1; 0: none, or it adds nothing here */
    uint32_t x_row[ROWS];
    uint32_t firsts[ROWS / SIMT_WARP + 1]; /* bits of the rows of a warp */
    uint32_t entries[ROWS];                /* of the n adapters */
    uint64_t mine[ROWS];                   /* bits of the rows that have it */
    uint32_t n;
};

/* The last of n whose beginning is at or before `at`; begin(0) is. */
template <class Begin> SIMT_DEVICE uint32_t lora_last_before(uint32_t n, uint32_t at, Begin begin)
{
    uint32_t first = 0;
    for (; n > 1;) {
        const uint32_t half = n / 2;
        first += begin(first + half) <= at ? half : 0;
        n -= half;
    }
    return first;
}

/* k_lora_of_row and k_lora_of_slot: the entry's number. */
SIMT_DEVICE uint32_t lora_entry_of(const lora_rows_t &rows, uint32_t head, uint32_t i)
{
    uint32_t before = rows.table_step * head;
    uint32_t row = i;
    if (rows.offsets != nullptr) {
        const uint32_t *offsets = rows.offsets;
        if (i < offsets[0] || i >= offsets[rows.n_experts]) {
            return 0; /* of an expert that is elsewhere */
        }
        before = rows.places *
                 lora_last_before(rows.n_experts, i, [=](uint32_t e) { return offsets[e]; });
        row = rows.row_of_slot[i];
    }
    const k_seq_t *seqs = rows.seqs;
    const uint32_t seq =
        lora_last_before(rows.n_seqs, row, [=](uint32_t s) { return seqs[s].row; });
    const uint32_t adapter = seqs[seq].adapter;
    return adapter > 0 && rows.table[before + adapter - 1].rank > 0 ? before + adapter : 0;
}

/* Bits of the tile's rows that have the adapter of row i. */
template <int ROWS> SIMT_DEVICE uint64_t lora_rows_like(const lora_tile<ROWS> &tile, uint32_t i)
{
    uint64_t like = 0;
    SIMT_UNROLL
    for (uint32_t j = 0; j < ROWS; j++) {
        like |= tile.entry[j] == tile.entry[i] ? UINT64_C(1) << j : 0;
    }
    return like;
}

/* The tile that begins at row `first`; whole blocks of more threads than it has rows call. */
template <int ROWS>
SIMT_DEVICE void lora_look_up(const lora_rows_t &rows, uint32_t head, uint32_t first,
                              lora_tile<ROWS> &tile)
{
    const uint32_t i = threadIdx.x;
    const uint32_t row = first + i;
    if (i < ROWS) {
        const bool is_there = row < rows.rows;
        tile.entry[i] = is_there ? lora_entry_of(rows, head, row) : 0;
        tile.x_row[i] = is_there && rows.has_rows ? rows.row_of_slot[row] : row;
    }
    simt_sync_block();
    const uint64_t like = i < ROWS && tile.entry[i] > 0 ? lora_rows_like(tile, i) : 0;
    const bool is_first = like != 0 && (like & ((UINT64_C(1) << i) - 1)) == 0;
    const uint32_t firsts = simt_ballot(is_first);
    if (simt_lane() == 0 && i < ROWS) {
        tile.firsts[simt_warp()] = firsts;
    }
    simt_sync_block();
    if (i >= ROWS) {
        return;
    }
    uint32_t before = (uint32_t)simt_popcount(firsts & ((1u << simt_lane()) - 1));
    uint32_t n = 0;
    SIMT_UNROLL
    for (int warp = 0; warp * SIMT_WARP < ROWS; warp++) {
        const uint32_t of_warp = (uint32_t)simt_popcount(tile.firsts[warp]);
        before += warp < simt_warp() ? of_warp : 0;
        n += of_warp;
    }
    if (is_first) {
        tile.entries[before] = tile.entry[i];
        tile.mine[before] = like;
    }
    if (i == 0) {
        tile.n = n;
    }
}

/*
 * Behind lora_look_up() and before simt_wait_previous(): makes the tile known to all threads and, while the
 * kernel in front still runs, brings of the block's first adapter columns [first, first + n) of `most` ranks
 * from `from` on towards L2.
 */
template <int ROWS>
SIMT_DEVICE void lora_bring(const lora_rows_t &rows, const lora_tile<ROWS> &tile,
                            const float *k_lora_t::*matrix, uint32_t columns, uint32_t first,
                            uint32_t n, uint32_t from, uint32_t most)
{
    constexpr uint32_t LINE = 128 / sizeof(float);
    const uint32_t i = blockIdx.z / rows.n_heads;
    simt_sync_block();
    if (rows.offsets != nullptr || i >= tile.n || first >= columns) {
        return;
    }
    const k_lora_t lora = rows.table[tile.entries[i] - 1];
    const uint32_t lines = ((n < columns - first ? n : columns - first) + LINE - 1) / LINE;
    const uint32_t left = from < lora.rank ? lora.rank - from : 0;
    for (uint32_t e = threadIdx.x; e < (left < most ? left : most) * lines; e += blockDim.x) {
        simt_prefetch_l2(lora.*matrix + (size_t)(from + e / lines) * columns + first +
                         e % lines * LINE);
    }
}

/* ---- numbers --------------------------------------------------------------------------------- */

/* A pair of f32 as pairs of bf16, the largest first, that add up to it. */
SIMT_DEVICE void lora_split(float lo, float hi, uint32_t (&part)[LORA_PARTS])
{
    SIMT_UNROLL
    for (int p = 0; p < LORA_PARTS; p++) {
        part[p] = simt_pack_bf16(lo, hi);
        const float2 taken = simt_unpack_bf16(part[p]);
        lo -= taken.x;
        hi -= taken.y;
    }
}

/*
 * sums[i] += the parts of which the first is at first[i], NULL: none, in their order; of AHEAD parts all
 * are on their way at once.
 */
template <int AHEAD, int N>
SIMT_DEVICE void lora_sum_parts(const float *const (&first)[N], uint32_t parts, size_t step,
                                float (&sums)[N])
{
    for (uint32_t part = 0; part < parts; part += AHEAD) {
        float v[AHEAD][N] = {};
        SIMT_UNROLL
        for (uint32_t p = 0; p < AHEAD; p++) {
            SIMT_UNROLL
            for (int i = 0; i < N; i++) {
                if (first[i] != nullptr && part + p < parts) {
                    v[p][i] = first[i][(part + p) * step];
                }
            }
        }
        SIMT_UNROLL
        for (uint32_t p = 0; p < AHEAD; p++) {
            SIMT_UNROLL
            for (int i = 0; i < N; i++) {
                sums[i] += v[p][i]; /* zeros beyond the last, which change no sum that began at 0 */
            }
        }
    }
}

/* Floats from one part to the next. */
SIMT_DEVICE size_t lora_part_step(const lora_rows_t &rows, uint32_t max_rank)
{
    return (size_t)rows.n_heads * rows.rows * max_rank;
}

/* ---- host ------------------------------------------------------------------------------------ */

inline uint32_t lora_tile_rows(const lora_rows_t *rows)
{
    return rows->rows <= 8 * LORA_FEW ? 8 * LORA_FEW : 8 * LORA_MANY;
}

/* Blocks that share out a tile's adapters: about as many as a tile may have. */
inline uint32_t lora_blocks_of_tile(const lora_rows_t *rows)
{
    const uint32_t tile = lora_tile_rows(rows);
    const uint64_t kinds =
        (uint64_t)rows->n_seqs * (rows->offsets == nullptr ? 1 : rows->n_experts);
    const uint64_t in_tile = rows->offsets == nullptr ? kinds : 1 + kinds * tile / rows->rows;
    const uint32_t most = tile < LORA_MAX_BLOCKS ? tile : (uint32_t)LORA_MAX_BLOCKS;
    return in_tile < most ? (uint32_t)in_tile : most;
}
