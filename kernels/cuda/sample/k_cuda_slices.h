/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_cuda_slices: what the ops on a rank's slice of the vocabulary share. Each is a kernel over tiles
 * whose results lie in scratch, and one that puts a row's tiles together. The ops that merge the
 * ranks' records read a few bytes of each.
 */
#pragma once

#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/sample/k_cuda_tops.h"

/* The best of a tile: of the logits as they are, and of what may be sampled. */
typedef struct slice_best {
    standing_t logit;
    standing_t z;
} slice_best_t;

typedef struct slice_tally {
    uint64_t weight;
    uint32_t larger;
    standing_t top[K_MAX_LOGPROBS];
} slice_tally_t;

enum { SLICE_TILE_BYTES = sizeof(slice_tally_t) }; /* the most that an op keeps of a tile */

static_assert(sizeof(slice_best_t) <= SLICE_TILE_BYTES, "of slice_max");

/* What a token's logit is, cleaned; -inf of one that is elsewhere. */
SIMT_DEVICE float slice_logit(const float *logits, uint32_t first_token, uint32_t tokens,
                              int32_t token)
{
    const uint32_t at = (uint32_t)token - first_token;
    return token >= 0 && at < tokens ? clean(logits[at]) : -INFINITY;
}

/* ---- host ---------------------------------------------------------------------------------- */

inline bool slice_fits(const k_cuda_launch_t *at, uint32_t rows, uint32_t tokens)
{
    return tiles_of(tokens) <= MAX_LISTS &&
           k_cuda_slices_scratch_bytes(rows, tokens) <= at->scratch_bytes;
}

/* A grid over the tiles of `rows` rows. */
inline simt_grid_t slice_tile_grid(const k_cuda_launch_t *at, uint32_t rows, uint32_t tokens)
{
    return {.grid = {tile_blocks(rows, tiles_of(tokens), at->multiprocessors), rows},
            .block = {TILE_THREADS},
            .stream = at->stream,
            .overlaps_previous = true};
}

/* A warp a row. */
inline simt_grid_t slice_row_grid(const k_cuda_launch_t *at, uint32_t rows)
{
    return {.grid = {rows}, .block = {SIMT_WARP}, .stream = at->stream, .overlaps_previous = true};
}
