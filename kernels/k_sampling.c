/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling.h"

#include <string.h>

#include "base/compiler.h"
#include "kernels/k_philox.h"
#include "kernels/k_sampling_priv.h"

enum { LANES = 16 };

/* No noise is larger: -log(-log(1 - 2^-33)) = 22.88. */
#define MAX_NOISE 23.0
#define LN_2_UP   0.6931472 /* ln 2, rounded up */

static size_t padded(uint32_t tokens)
{
    return ((size_t)tokens + 15) / 16 * 16;
}

size_t k_sampling_scratch_bytes(uint32_t tokens)
{
    return padded(tokens) * (sizeof(float) + 2 * sizeof(k_choice_t)) + WEFT_CACHE_LINE;
}

k_sampling_scratch_t k_sampling_split(void *memory, uint32_t tokens)
{
    const size_t n = padded(tokens);
    k_sampling_scratch_t scratch;
    scratch.z = memory;
    scratch.kept = (k_choice_t *)(scratch.z + n);
    scratch.spare = scratch.kept + n;
    scratch.counts = &scratch.spare->below;
    return scratch;
}

/* ---- logits to z --------------------------------------------------------------------------- */

static void load_logits(const float *logits, uint32_t first, uint32_t n, const uint32_t *mask,
                        float *z)
{
    for (uint32_t t = 0; t < n; t++) {
        z[t] = k_clean_logit(logits[t]);
    }
    for (uint32_t t = 0; mask != NULL && t < n; t++) {
        z[t] = k_mask_allows(mask, first + t) ? z[t] : -INFINITY;
    }
}

static void add_bias(const k_sample_row_t *params, uint32_t first, uint32_t n, float *z)
{
    for (uint32_t i = 0; i < params->n_bias; i++) {
        const uint32_t at = (uint32_t)params->bias[i].token - first;
        if (at < n) {
            z[at] = k_clean_logit(z[at] + params->bias[i].value);
        }
    }
}

/* count: (outputs of the token) << 1 | 1. */
static void penalize(const k_sample_row_t *params, uint32_t count, float *z)
{
    float value = *z;
    value = value > 0 ? value / params->repetition_penalty : value * params->repetition_penalty;
    if (count >> 1 > 0) {
        value -= params->frequency_penalty * (float)(count >> 1);
        value -= params->presence_penalty;
    }
    *z = k_clean_logit(value);
}

static void add_penalties(const k_sample_row_t *params, uint32_t first, uint32_t n,
                          uint32_t *counts, float *z)
{
    if (!k_has_penalties(params)) {
        return;
    }
    memset(counts, 0, n * sizeof(*counts));
    for (uint32_t i = 0; i < params->history_tokens; i++) {
        const uint32_t at = (uint32_t)params->history[i] - first;
        if (at < n) {
            counts[at] = (counts[at] + (i < params->prompt_tokens ? 0 : 2)) | 1;
        }
    }
    for (uint32_t i = 0; i < params->history_tokens; i++) {
        const uint32_t at = (uint32_t)params->history[i] - first;
        if (at < n && counts[at] != 0) { /* once a token */
            penalize(params, counts[at], &z[at]);
            counts[at] = 0;
        }
    }
}

void k_sampling_filter(const float *logits, uint32_t first, uint32_t n,
                       const k_sample_row_t *params, uint32_t *counts, float *z)
{
    load_logits(logits, first, n, params->mask, z);
    add_bias(params, first, n, z);
    add_penalties(params, first, n, counts, z);
}

/* In lanes, so that a compiler may keep them in a vector. No NaN is larger than anything. */
static float max_of(const float *z, uint32_t n)
{
    float lanes[LANES];
    float max = -INFINITY;
    uint32_t t = 0;
    for (uint32_t i = 0; i < LANES; i++) {
        lanes[i] = -INFINITY;
    }
    for (; t + LANES <= n; t += LANES) {
        for (uint32_t i = 0; i < LANES; i++) {
            lanes[i] = z[t + i] > lanes[i] ? z[t + i] : lanes[i];
        }
    }
    for (; t < n; t++) {
        max = z[t] > max ? z[t] : max;
    }
    for (uint32_t i = 0; i < LANES; i++) {
        max = lanes[i] > max ? lanes[i] : max;
    }
    return k_clean_logit(max);
}

/* Whether one of LANES is `value`, cleaned: without a branch for each. */
static bool has_value(const float *z, float value)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < LANES; i++) {
        n += k_clean_logit(z[i]) == value;
    }
    return n > 0;
}

k_top_t k_sampling_max(const float *z, uint32_t first, uint32_t n)
{
    const float max = max_of(z, n);
    uint32_t best = 0;
    while (best + LANES <= n && !has_value(z + best, max)) {
        best += LANES;
    }
    while (best < n && k_clean_logit(z[best]) != max) {
        best++;
    }
    return (k_top_t){max, (int32_t)(first + best)};
}

void k_sampling_scale(const k_sample_row_t *params, float max, uint32_t n, float *z)
{
    const float floor = params->min_p > 0 ? logf(fminf(params->min_p, 1.0f)) : -INFINITY;
    for (uint32_t t = 0; t < n; t++) {
        const float scaled = (z[t] - max) / params->temperature;
        z[t] = scaled >= floor ? scaled : -INFINITY;
    }
}

static int32_t pick_impossible(const float *logits, uint32_t vocab, const uint32_t *mask)
{
    for (uint32_t t = 0; mask != NULL && t < vocab; t++) {
        if (k_mask_allows(mask, t)) {
            return (int32_t)t;
        }
    }
    return k_sampling_max(logits, 0, vocab).token;
}

/* ---- noise --------------------------------------------------------------------------------- */

static uint32_t noise_word(const k_sample_row_t *params, uint32_t token)
{
    const uint32_t counter[4] = {(uint32_t)params->output_index,
                                 (uint32_t)(params->output_index >> 32), token, 0};
    const uint32_t key[2] = {(uint32_t)params->seed, (uint32_t)(params->seed >> 32)};
    uint32_t words[4];
    k_philox4x32_10(counter, key, words);
    return words[0];
}

/*
 * At least -log(-log u): that is at most -log(1 - u), and 1 - u = (~word + ½) / 2^32 is at least
 * 2^-(its leading zeros + 1).
 */
static double noise_bound(uint32_t word)
{
    return LN_2_UP * (weft_leading_zeros(~word) + 1);
}

/* Tokens that cannot come over the winner cost no logarithm, most of them no noise. */
void k_sampling_compete(const k_sample_row_t *params, float scaled, int32_t token,
                        k_winner_t *winner)
{
    if (!(scaled + MAX_NOISE >= winner->value)) {
        return;
    }
    const uint32_t word = noise_word(params, (uint32_t)token);
    if (scaled + noise_bound(word) < winner->value) {
        return;
    }
    const double u = (word + 0.5) * 0x1p-32;
    const double value = scaled - log(-log(u));
    if (value > winner->value || (value == winner->value && token < winner->token)) {
        *winner = (k_winner_t){value, token};
    }
}

/* ---- a whole row ---------------------------------------------------------------------------- */

int32_t k_sampling_pick(const float *logits, uint32_t vocab, const k_sample_row_t *params,
                        void *memory)
{
    if (k_sampling_is_plain(params)) {
        return k_sampling_max(logits, 0, vocab).token;
    }
    const k_sampling_scratch_t scratch = k_sampling_split(memory, vocab);
    float *z = scratch.z;
    k_sampling_filter(logits, 0, vocab, params, scratch.counts, z);

    const k_top_t best = k_sampling_max(z, 0, vocab);
    if (best.logit == -INFINITY) {
        return pick_impossible(logits, vocab, params->mask);
    }
    if (!(params->temperature > 0)) {
        return best.token;
    }
    k_sampling_scale(params, best.logit, vocab, z);
    k_winner_t winner = {-INFINITY, best.token};
    if (k_sampling_selects(params)) {
        const uint32_t n = k_sampling_select(params, z, vocab, &scratch);
        for (uint32_t i = 0; i < n; i++) {
            k_sampling_compete(params, k_scaled_of(scratch.kept[i].below), scratch.kept[i].token,
                               &winner);
        }
    } else {
        k_sampling_compete(params, 0, best.token, &winner); /* the rest is passed over sooner */
        for (uint32_t t = 0; t < vocab; t++) {
            k_sampling_compete(params, z[t], (int32_t)t, &winner);
        }
    }
    return winner.token;
}
