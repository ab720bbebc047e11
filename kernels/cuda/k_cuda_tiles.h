/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_cuda_tiles: rows of logits in tiles of TILE tokens, which the blocks of a row share out, so that
 * one row keeps many multiprocessors busy. For sample.cu and logprobs.cu.
 *
 * What tiles hand on to the next kernel are maxima, integers, or sums that are added in the order of
 * the tiles: results do not depend on who comes first.
 */
#pragma once

#include <float.h>
#include <math.h>

#include "kernels/cuda/simt/simt.h"

enum {
    TILE_THREADS = 512,
    TILE_WARPS = TILE_THREADS / SIMT_WARP,
    TILE_HELD = 8, /* tokens that a thread holds: two times four neighbours */
    TILE = TILE_THREADS * TILE_HELD,
};

inline uint32_t tiles_of(uint32_t vocab)
{
    return (vocab + TILE - 1) / TILE;
}

/*
 * Blocks for each of `rows` rows: about four a multiprocessor in all, so that few rows use all of them
 * and many rows do not pay for blocks that have little to do. A block takes every so many-th tile.
 */
inline uint32_t tile_blocks(uint32_t rows, uint32_t tiles, uint32_t multiprocessors)
{
    const uint32_t blocks = (4 * multiprocessors + rows - 1) / rows;
    const uint32_t tiles_a_block = (tiles + blocks - 1) / blocks;
    return (tiles + tiles_a_block - 1) / tiles_a_block;
}

/* The token that this thread holds as number i. */
SIMT_DEVICE uint32_t tile_token(uint32_t tile, int i)
{
    return tile * TILE + (uint32_t)(i / 4) * (TILE_THREADS * 4) + threadIdx.x * 4 + i % 4;
}

/* As k_sampling.h: NaN counts as -inf, +inf as the largest float; -0 becomes 0. */
SIMT_DEVICE float clean(float logit)
{
    if (logit != logit) {
        return -INFINITY;
    }
    return fminf(logit, FLT_MAX) + 0.0f;
}

/* The thread's tokens of a row, cleaned; -inf past the vocabulary. */
SIMT_DEVICE void tile_load(const float *row, uint32_t vocab, uint32_t tile, float (&v)[TILE_HELD])
{
    const bool is_wide = ((uintptr_t)row & 15) == 0;
    SIMT_UNROLL
    for (int at = 0; at < TILE_HELD; at += 4) {
        const uint32_t token = tile_token(tile, at);
        if (is_wide && token + 4 <= vocab) {
            const uint4 raw = simt_load_16(row + token);
            v[at] = clean(simt_bits_float(raw.x));
            v[at + 1] = clean(simt_bits_float(raw.y));
            v[at + 2] = clean(simt_bits_float(raw.z));
            v[at + 3] = clean(simt_bits_float(raw.w));
        } else {
            SIMT_UNROLL
            for (int i = 0; i < 4; i++) {
                v[at + i] = token + i < vocab ? clean(row[token + i]) : -INFINITY;
            }
        }
    }
}

/* ---- standing: (value, token) as one integer, the better the larger; ties to the lower id ---- */

typedef uint64_t standing_t; /* 0 is worse than any */

SIMT_DEVICE standing_t standing_of(float cleaned, uint32_t token)
{
    const uint32_t bits = simt_float_bits(cleaned);
    const uint32_t order = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
    return (uint64_t)order << 32 | ~token;
}

SIMT_DEVICE uint32_t standing_token(standing_t standing)
{
    return ~(uint32_t)standing;
}

SIMT_DEVICE float standing_value(standing_t standing)
{
    const uint32_t order = (uint32_t)(standing >> 32);
    return simt_bits_float(order >> 31 != 0 ? order & 0x7fffffffu : ~order);
}

SIMT_DEVICE standing_t warp_best(standing_t v)
{
    for (int bits = SIMT_WARP / 2; bits > 0; bits /= 2) {
        const standing_t other = simt_shfl_xor(v, bits);
        v = other > v ? other : v;
    }
    return v;
}

/* The best over the tiles of a row, in every lane. */
SIMT_DEVICE standing_t best_of_tiles(const standing_t *tiles, uint32_t n)
{
    standing_t best = 0;
    for (uint32_t i = (uint32_t)simt_lane(); i < n; i += SIMT_WARP) {
        best = tiles[i] > best ? tiles[i] : best;
    }
    return warp_best(best);
}

/* The best of the block, in every thread. partial [TILE_WARPS] shared, not in use. */
SIMT_DEVICE standing_t block_best(standing_t v, standing_t *partial)
{
    v = warp_best(v);
    if (simt_lane() == 0) {
        partial[simt_warp()] = v;
    }
    simt_sync_block();
    return best_of_tiles(partial, TILE_WARPS);
}

/* ---- sums of the block ---------------------------------------------------------------------- */

template <class T> SIMT_DEVICE T warp_total(T v)
{
    for (int bits = SIMT_WARP / 2; bits > 0; bits /= 2) {
        v += simt_shfl_xor(v, bits);
    }
    return v;
}

/* The sum of the block in every thread, always added in the same order. partial [TILE_WARPS] shared,
 * not in use. */
template <class T> SIMT_DEVICE T block_total(T v, T *partial)
{
    v = warp_total(v);
    if (simt_lane() == 0) {
        partial[simt_warp()] = v;
    }
    simt_sync_block();
    return warp_total(simt_lane() < TILE_WARPS ? partial[simt_lane()] : T(0));
}
