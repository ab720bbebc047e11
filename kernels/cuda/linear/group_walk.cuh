/* SPDX-License-Identifier: Apache-2.0 */
/*
 * group_walk: the tiles of rows that matrices have (cuda_groups.h), counted by each block for itself.
 *
 * Tiles are numbered matrix by matrix. A block calls walk_begin() once, then moves forward.
 */
#pragma once

#include "kernels/cuda/linear/cuda_groups_priv.h"
#include "kernels/cuda/linear/linear_store.h"
#include "kernels/cuda/simt/simt.h"

typedef struct group_walk {
    const uint32_t *offsets;
    const uint32_t *row_of;
    const uint16_t *x;
    uint16_t *y;
    const float *bias;
    size_t x_stride;
    size_t x_step;
    size_t y_step;
    uint32_t n;
    uint32_t rows; /* of each matrix, without offsets */
    uint32_t tile_rows;
    linear_store_t store; /* y, bias and rows are those of a tile */
} group_walk_t;

/* The shared memory of walk_begin: tiles before each matrix, and of all. */
#define GROUP_WALK_SHARED(name) SIMT_SHARED(uint32_t, name, [GROUPS_MAX + 1])
#define GROUP_WALK_BYTES        ((GROUPS_MAX + 32) * 4)

/* One tile. */
typedef struct group_tile {
    uint32_t index;
    uint32_t group;
    uint32_t first; /* row: of y with offsets, else of the matrix's */
    uint32_t rows;
} group_tile_t;

SIMT_DEVICE uint32_t walk_rows(const group_walk_t &w, uint32_t group)
{
    return w.offsets == nullptr ? w.rows : w.offsets[group + 1] - w.offsets[group];
}

/* All threads of the block call; returns the number of tiles. */
SIMT_DEVICE uint32_t walk_begin(const group_walk_t &w, uint32_t (&before)[GROUPS_MAX + 1])
{
    if (simt_warp() == 0) { /* a lane counts neighbours, so that one scan is enough */
        const uint32_t each = (w.n + SIMT_WARP - 1) / SIMT_WARP;
        const uint32_t first = (uint32_t)simt_lane() * each;
        uint32_t mine = 0;
        for (uint32_t g = first; g < first + each && g < w.n; g++) {
            mine += (walk_rows(w, g) + w.tile_rows - 1) / w.tile_rows;
        }
        uint32_t upto = mine;
        for (int delta = 1; delta < SIMT_WARP; delta *= 2) {
            const uint32_t left = simt_shfl_up(upto, delta);
            upto += simt_lane() >= delta ? left : 0;
        }
        uint32_t next = upto - mine;
        for (uint32_t g = first; g < first + each && g < w.n; g++) {
            before[g] = next;
            next += (walk_rows(w, g) + w.tile_rows - 1) / w.tile_rows;
        }
        if (simt_lane() == SIMT_WARP - 1) {
            before[w.n] = upto;
        }
    }
    simt_sync_block();
    return before[w.n];
}

/* The matrix of a tile that there is. */
SIMT_DEVICE uint32_t walk_group_of(const group_walk_t &w, const uint32_t (&before)[GROUPS_MAX + 1],
                                   uint32_t tile)
{
    uint32_t low = 0;
    uint32_t high = w.n; /* before[low] <= tile < before[high] */
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (before[middle] <= tile) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

SIMT_DEVICE group_tile_t walk_tile(const group_walk_t &w, const uint32_t (&before)[GROUPS_MAX + 1],
                                   uint32_t index)
{
    group_tile_t tile;
    tile.index = index;
    tile.group = walk_group_of(w, before, index);
    const uint32_t skipped = (index - before[tile.group]) * w.tile_rows;
    const uint32_t left = walk_rows(w, tile.group) - skipped;
    tile.first = skipped + (w.offsets == nullptr ? 0 : w.offsets[tile.group]);
    tile.rows = left < w.tile_rows ? left : w.tile_rows;
    return tile;
}

/* Row i of the tile in x. */
SIMT_DEVICE const uint16_t *walk_x(const group_walk_t &w, const group_tile_t &tile, uint32_t i)
{
    const uint32_t row = w.row_of == nullptr ? tile.first + i : w.row_of[tile.first + i];
    return w.x + tile.group * w.x_step + row * w.x_stride;
}

/* Where the tile's sums go. */
SIMT_DEVICE linear_store_t walk_store(const group_walk_t &w, const group_tile_t &tile)
{
    linear_store_t store = w.store;
    store.y = w.y + tile.group * w.y_step + tile.first * store.y_stride;
    store.bias = w.bias == nullptr ? nullptr : w.bias + (size_t)tile.group * store.w_rows;
    store.rows = tile.rows;
    return store;
}

inline group_walk_t group_walk_of(const k_cuda_groups_t *args, uint32_t tile_rows)
{
    group_walk_t w = {};
    w.offsets = args->offsets;
    w.row_of = args->row_of;
    w.x = static_cast<const uint16_t *>(args->x);
    w.y = static_cast<uint16_t *>(args->y);
    w.bias = args->bias;
    w.x_stride = args->x_stride;
    w.x_step = args->x_step;
    w.y_step = args->y_step;
    w.n = args->n;
    w.rows = args->rows;
    w.tile_rows = tile_rows;
    w.store.y_stride = args->y_stride;
    w.store.w_rows = args->w.rows;
    w.store.out = K_CUDA_OUT_BF16;
    w.store.pairs = args->y_stride % 2 == 0 && args->y_step % 2 == 0 && (uintptr_t)args->y % 4 == 0;
    return w;
}
