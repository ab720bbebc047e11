/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_cuda_noise: argmax(scaled + Gumbel noise) over a block's candidates. For sample.cu and
 * slice_candidates.cu.
 *
 * The noise of a token is that of k_sampling.h to the last bit or so of a double: every backend draws
 * the same tokens. Only candidates that may win are worth the exact formula; the others are told
 * by an f32 estimate that is off by less than a thousandth.
 */
#pragma once

#include "kernels/cuda/k_cuda_tiles.h"

typedef struct noise_source {
    uint64_t seed;
    uint64_t output_index;
} noise_source_t;

typedef struct winner {
    double value; /* -inf: nobody */
    uint32_t token;
} winner_t;

/* The first word of Philox4x32-10 (k_philox.h) of counter (output_index, token, 0). */
SIMT_DEVICE uint32_t noise_word(const noise_source_t &source, uint32_t token)
{
    uint32_t c0 = (uint32_t)source.output_index;
    uint32_t c1 = (uint32_t)(source.output_index >> 32);
    uint32_t c2 = token;
    uint32_t c3 = 0;
    uint32_t k0 = (uint32_t)source.seed;
    uint32_t k1 = (uint32_t)(source.seed >> 32);
    SIMT_UNROLL
    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = (uint64_t)c0 * 0xD2511F53u;
        const uint64_t product1 = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}

/* -log(-log(u)), u = (word + ½) / 2^32. */
SIMT_DEVICE double noise_exact(uint32_t word)
{
    return -log(-log((word + 0.5) * 0x1p-32));
}

/* The same within 0.0005. Near u = 1 the logarithm is a series in 1 - u. */
SIMT_DEVICE float noise_estimate(uint32_t word)
{
    const float ln_2 = 0.693147181f;
    const float rest = ((float)~word + 0.5f) * 0x1p-32f;
    const float u = ((float)word + 0.5f) * 0x1p-32f;
    const float minus_log = rest < 0.0625f
                                ? rest * (1 + rest * (0.5f + rest * (0.333333333f + rest * 0.25f)))
                                : -ln_2 * simt_log2(u);
    return -ln_2 * simt_log2(minus_log);
}

/* What an estimate must reach to be worth the exact formula, when the best estimate is `best`. */
SIMT_DEVICE float worth_computing(float best)
{
    return best - 0.002f - fabsf(best) * 1e-6f;
}

/* The better of two; ties to the lower id. */
SIMT_DEVICE winner_t better(winner_t a, winner_t b)
{
    return b.value > a.value || (b.value == a.value && b.token < a.token) ? b : a;
}

SIMT_DEVICE winner_t nobody(void)
{
    return {-(double)INFINITY, 0xffffffffu};
}

SIMT_DEVICE winner_t compute_exactly(const noise_source_t &source, float scaled, uint32_t token)
{
    return {(double)scaled + noise_exact(noise_word(source, token)), token};
}

SIMT_DEVICE winner_t warp_winner(winner_t v)
{
    for (int bits = SIMT_WARP / 2; bits > 0; bits /= 2) {
        v = better(v, {simt_shfl_xor(v.value, bits), simt_shfl_xor(v.token, bits)});
    }
    return v;
}

/* The winner of the block, in every thread. partial [TILE_WARPS] shared, not in use. */
SIMT_DEVICE winner_t block_winner(winner_t v, winner_t *partial)
{
    v = warp_winner(v);
    if (simt_lane() == 0) {
        partial[simt_warp()] = v;
    }
    simt_sync_block();
    return warp_winner(simt_lane() < TILE_WARPS ? partial[simt_lane()] : nobody());
}

/* The largest of the block, in every thread. partial [TILE_WARPS] shared, not in use. */
SIMT_DEVICE float block_max(float v, float *partial)
{
    v = simt_warp_max(v);
    if (simt_lane() == 0) {
        partial[simt_warp()] = v;
    }
    simt_sync_block();
    return simt_warp_max(simt_lane() < TILE_WARPS ? partial[simt_lane()] : -INFINITY);
}

/* Shared memory of draw_held. */
typedef struct draw_space {
    float partial_max[TILE_WARPS];
    winner_t partial[TILE_WARPS];
} draw_space_t;

/* The winner of the tile's tokens with scaled > -inf, in every thread; ids from `first` on. */
SIMT_DEVICE winner_t draw_held(const noise_source_t &source, uint32_t first, uint32_t tile,
                               const float (&scaled)[TILE_HELD], draw_space_t *space)
{
    float estimates[TILE_HELD];
    float best = -INFINITY;
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        estimates[i] = scaled[i] + noise_estimate(noise_word(source, first + tile_token(tile, i)));
        best = fmaxf(best, estimates[i]);
    }
    const float worth = worth_computing(block_max(best, space->partial_max));
    winner_t winner = nobody();
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        if (scaled[i] > -INFINITY && estimates[i] >= worth) {
            winner =
                better(winner, compute_exactly(source, scaled[i], first + tile_token(tile, i)));
        }
    }
    return block_winner(winner, space->partial);
}
