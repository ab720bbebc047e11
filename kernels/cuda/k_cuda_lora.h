/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_cuda_lora: rows in tiles, and a tile by its adapters: each is read once for all of the tile's rows
 * that have it, in whatever order they lie. What a tile holds changes nobody's sums. For .cu files.
 *
 * Sequences and tables are written by copies and by nobody else, so that blocks look theirs up while
 * the kernel in front still runs.
 */
#pragma once

#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_rows.h"

enum {
    LORA_ROWS = 8,
    LORA_FEW_ROWS = 64, /* up to so many, a block for each adapter that a tile may have */
};

/* k_lora_of_row: the adapter's number, 0 for none. */
SIMT_DEVICE uint32_t lora_of_row(const k_lora_t *table, const k_seq_t *seqs, uint32_t n_seqs,
                                 uint32_t row)
{
    uint32_t first = 0; /* the last sequence that begins at or before the row */
    for (uint32_t n = n_seqs; n > 1;) {
        const uint32_t half = n / 2;
        first += seqs[first + half].row <= row ? half : 0;
        n -= half;
    }
    const uint32_t adapter = seqs[first].adapter;
    return adapter > 0 && table[adapter - 1].rank > 0 ? adapter : 0;
}

/* Who has which adapter of the tile that begins at row `first`; whole blocks call. */
SIMT_DEVICE void lora_look_up(const k_lora_t *table, const k_seq_t *seqs, uint32_t n_seqs,
                              uint32_t first, uint32_t rows, uint32_t (&adapters)[LORA_ROWS])
{
    if (threadIdx.x < LORA_ROWS) {
        const uint32_t row = first + threadIdx.x;
        adapters[threadIdx.x] = row < rows ? lora_of_row(table, seqs, n_seqs, row) : 0;
    }
    simt_sync_block();
}

/* Bit j: row j of the tile has the adapter of row i; 0 where i has none, or an earlier row has the same. */
SIMT_DEVICE uint32_t lora_rows_like(const uint32_t (&adapters)[LORA_ROWS], uint32_t i)
{
    uint32_t rows = 0;
    SIMT_UNROLL
    for (uint32_t j = 0; j < LORA_ROWS; j++) {
        rows |= adapters[i] > 0 && adapters[j] == adapters[i] ? 1u << j : 0;
    }
    return (rows & ((1u << i) - 1)) == 0 ? rows : 0;
}

/* Blocks that share out a tile's adapters: steps of decode may have as many as rows. */
inline uint32_t lora_blocks_of_tile(uint32_t rows)
{
    return rows <= LORA_FEW_ROWS ? LORA_ROWS : 1;
}
