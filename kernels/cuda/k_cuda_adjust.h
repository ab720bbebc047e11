/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_cuda_adjust: from logits to what is chosen from: mask, bias, penalties, temperature, min_p, of a
 * tile of tokens. For sample.cu and slice_*.cu: tokens are numbered from `first` on, that of a
 * rank's slice of the vocabulary.
 */
#pragma once

#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_tiles.h"

SIMT_DEVICE bool is_greedy(const k_sample_row_t *params)
{
    return !(params->temperature > 0);
}

/* top_k or top_p may drop tokens. */
SIMT_DEVICE bool selects(const k_sample_row_t *params)
{
    return !is_greedy(params) && (params->top_k > 0 || params->top_p < 1.0f);
}

/* k_cut_is_wanted. */
SIMT_DEVICE bool is_cut_wanted(const k_sample_row_t *params, const k_slice_row_t *state,
                               bool by_top_p)
{
    return state->token < 0 && (by_top_p ? params->top_p < 1.0f : params->top_k > 0);
}

/* The bits of -scaled. */
SIMT_DEVICE uint32_t below_of(float scaled)
{
    return simt_float_bits(scaled) & 0x7fffffffu;
}

SIMT_DEVICE bool has_penalties(const k_sample_row_t *params)
{
    return params->history != nullptr &&
           (params->repetition_penalty != 1.0f || params->frequency_penalty != 0.0f ||
            params->presence_penalty != 0.0f);
}

SIMT_DEVICE void apply_mask(const uint32_t *mask, uint32_t first, uint32_t tokens, uint32_t tile,
                            float (&z)[TILE_HELD])
{
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        const uint32_t token = first + tile_token(tile, i);
        const bool is_there = tile_token(tile, i) < tokens;
        z[i] = is_there && (mask[token / 32] >> token % 32 & 1) != 0 ? z[i] : -INFINITY;
    }
}

/* The first entry of a token adds all of them, in order. */
SIMT_DEVICE void add_bias(const k_sample_row_t *params, uint32_t first, uint32_t end, float *z)
{
    for (uint32_t i = threadIdx.x; i < params->n_bias; i += TILE_THREADS) {
        const uint32_t token = (uint32_t)params->bias[i].token;
        bool is_first = token >= first && token < end;
        for (uint32_t k = 0; is_first && k < i; k++) {
            is_first = params->bias[k].token != (int32_t)token;
        }
        for (uint32_t k = i; is_first && k < params->n_bias; k++) {
            if (params->bias[k].token == (int32_t)token) {
                z[token - first] = clean(z[token - first] + params->bias[k].value);
            }
        }
    }
}

/* counts[token - first]: twice its outputs, plus more than none when it is in the prompt. */
SIMT_DEVICE void count_history(const k_sample_row_t *params, uint32_t first, uint32_t end,
                               uint32_t *counts)
{
    for (uint32_t i = threadIdx.x; i < params->history_tokens; i += TILE_THREADS) {
        const uint32_t token = (uint32_t)params->history[i];
        if (token >= first && token < end) {
            if (i < params->prompt_tokens) {
                simt_atomic_or(&counts[token - first], 1u);
            } else {
                simt_atomic_add(&counts[token - first], 2u);
            }
        }
    }
}

/* a · b, rounded before anything is added to it: nvcc fuses plain products, k_sampling.c does not. */
SIMT_DEVICE float product(float a, float b)
{
    return (float)((double)a * (double)b);
}

SIMT_DEVICE float penalize(const k_sample_row_t *params, uint32_t count, float value)
{
    value =
        value > 0 ? value / params->repetition_penalty : product(value, params->repetition_penalty);
    if (count >> 1 > 0) {
        value -= product(params->frequency_penalty, (float)(count >> 1));
        value -= params->presence_penalty;
    }
    return clean(value);
}

/* Bias and penalties, in shared memory. z and counts [TILE], not in use. */
SIMT_DEVICE void adjust_few(const k_sample_row_t *params, uint32_t first, uint32_t end,
                            float *shared_z, uint32_t *counts, float (&z)[TILE_HELD])
{
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        shared_z[tile_token(0, i)] = z[i];
        counts[tile_token(0, i)] = 0;
    }
    simt_sync_block();
    add_bias(params, first, end, shared_z);
    if (has_penalties(params)) {
        count_history(params, first, end, counts);
    }
    simt_sync_block();
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        const uint32_t count = counts[tile_token(0, i)];
        z[i] = shared_z[tile_token(0, i)];
        z[i] = count != 0 ? penalize(params, count, z[i]) : z[i];
    }
}

/* Shared memory of a block that adjusts tiles. */
typedef struct adjust_space {
    float z[TILE];
    uint32_t counts[TILE];
    standing_t partial[TILE_WARPS];
} adjust_space_t;

/* z, the tile's cleaned logits, under mask, bias and penalties. */
SIMT_DEVICE void adjust_held(const k_sample_row_t *params, uint32_t first, uint32_t tokens,
                             uint32_t tile, adjust_space_t *space, float (&z)[TILE_HELD])
{
    if (params->mask != nullptr) {
        apply_mask(params->mask, first, tokens, tile, z);
    }
    if (params->n_bias > 0 || has_penalties(params)) {
        const uint32_t begin = tile * TILE;
        const uint32_t end = begin + TILE < tokens ? begin + TILE : tokens;
        adjust_few(params, first + begin, first + end, space->z, space->counts, z);
    }
}

/* The best of the tile, in every thread. partial [TILE_WARPS] shared, not in use. */
SIMT_DEVICE standing_t tile_best(const float (&z)[TILE_HELD], uint32_t first, uint32_t tile,
                                 standing_t *partial)
{
    standing_t best = 0;
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        const standing_t standing = standing_of(z[i], first + tile_token(tile, i));
        best = standing > best ? standing : best;
    }
    return block_best(best, partial);
}

/* z becomes (z - max) / temperature; -inf where min_p drops it. */
SIMT_DEVICE void scale_held(const k_sample_row_t *params, float max, float (&z)[TILE_HELD])
{
    const float floor = params->min_p > 0 ? logf(fminf(params->min_p, 1.0f)) : -INFINITY;
    SIMT_UNROLL
    for (int i = 0; i < TILE_HELD; i++) {
        const float v = (z[i] - max) / params->temperature;
        z[i] = v < floor ? -INFINITY : v;
    }
}
