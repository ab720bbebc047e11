/* SPDX-License-Identifier: Apache-2.0 */
/* k_cuda_tops: the few best tokens of tiles, rows and slices. For logprobs.cu and *_logprobs.cu. */
#pragma once

#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_tiles.h"

enum {
    LISTS_A_LANE = 4,
    MAX_LISTS = LISTS_A_LANE * SIMT_WARP,
};

/* The warp's n best of what its lanes hold go to top, in order; a slot without one gets 0. */
SIMT_DEVICE void warp_top(standing_t (&held)[TILE_HELD], uint32_t n, standing_t *top)
{
    for (uint32_t rank = 0; rank < n; rank++) {
        standing_t mine = 0;
        SIMT_UNROLL
        for (int i = 0; i < TILE_HELD; i++) {
            mine = held[i] > mine ? held[i] : mine;
        }
        const standing_t best = warp_best(mine);
        SIMT_UNROLL
        for (int i = 0; i < TILE_HELD; i++) {
            held[i] = held[i] == best ? 0 : held[i];
        }
        if (simt_lane() == 0) {
            top[rank] = best;
        }
    }
}

/*
 * Merges at most MAX_LISTS sorted lists of n entries each; the warp calls. take(list, i) is an entry,
 * 0 where there is none; give(rank, standing) is called by all lanes.
 */
template <class T, class F>
SIMT_DEVICE void warp_merge(uint32_t n_lists, uint32_t n, T take, F give)
{
    standing_t heads[LISTS_A_LANE];
    uint32_t next[LISTS_A_LANE];
    SIMT_UNROLL
    for (int i = 0; i < LISTS_A_LANE; i++) {
        const uint32_t list = (uint32_t)(i * SIMT_WARP + simt_lane());
        heads[i] = list < n_lists && n > 0 ? take(list, 0) : 0;
        next[i] = 1;
    }
    for (uint32_t rank = 0; rank < n; rank++) {
        standing_t mine = 0;
        SIMT_UNROLL
        for (int i = 0; i < LISTS_A_LANE; i++) {
            mine = heads[i] > mine ? heads[i] : mine;
        }
        const standing_t best = warp_best(mine);
        SIMT_UNROLL
        for (int i = 0; i < LISTS_A_LANE; i++) {
            if (heads[i] == best && best != 0) {
                const uint32_t list = (uint32_t)(i * SIMT_WARP + simt_lane());
                heads[i] = next[i] < n ? take(list, next[i]) : 0;
                next[i]++;
            }
        }
        give(rank, best);
    }
}

/* Shared memory of tile_top. */
typedef struct tops_space {
    standing_t of_warp[TILE_WARPS][K_MAX_LOGPROBS];
} tops_space_t;

/* The n best of the tile go to top, a slot without one gets 0. */
SIMT_DEVICE void tile_top(standing_t (&held)[TILE_HELD], uint32_t n, tops_space_t *space,
                          standing_t *top)
{
    warp_top(held, n, space->of_warp[simt_warp()]);
    simt_sync_block();
    if (simt_warp() == 0) {
        warp_merge(
            TILE_WARPS, n, [=](uint32_t warp, uint32_t i) { return space->of_warp[warp][i]; },
            [=](uint32_t rank, standing_t standing) {
                if (simt_lane() == 0) {
                    top[rank] = standing;
                }
            });
    }
}
