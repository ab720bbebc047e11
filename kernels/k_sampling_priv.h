/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_sampling_priv: the steps from logits to a token, over a whole vocabulary or a slice of it. A step
 * says the same of a token wherever the vocabulary is cut.
 *
 *   k_sampling.c                  filters, noise, a whole row
 *   k_sampling_select.c           what top_k and top_p keep
 *   k_sampling_report.c           log-probabilities
 *   ref/slice_*.c, ref/merge_*.c  the same of a row that is cut
 */
#pragma once

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/k_sampling.h"

/* A token at its place: `below` orders scaled = (z - max) / temperature ≤ 0, the largest first. */
typedef struct k_choice {
    uint32_t below; /* the bits of -scaled */
    int32_t token;
} k_choice_t;

/* A row's scratch memory; counts and spare are the same memory. */
typedef struct k_sampling_scratch {
    float *z;
    k_choice_t *kept;
    k_choice_t *spare;
    uint32_t *counts;
} k_sampling_scratch_t;

typedef struct k_winner {
    double value; /* scaled + noise */
    int32_t token;
} k_winner_t;

k_sampling_scratch_t k_sampling_split(void *memory, uint32_t tokens);

static inline float k_clean_logit(float logit)
{
    if (logit != logit) {
        return -INFINITY;
    }
    return logit > FLT_MAX ? FLT_MAX : logit;
}

static inline bool k_mask_allows(const uint32_t *mask, uint32_t token)
{
    return mask == NULL || (mask[token / 32] >> token % 32 & 1) != 0;
}

static inline uint32_t k_below_of(float scaled)
{
    uint32_t bits;
    memcpy(&bits, &scaled, sizeof(bits));
    return bits & 0x7fffffffU;
}

static inline float k_scaled_of(uint32_t below)
{
    float scaled;
    memcpy(&scaled, &below, sizeof(scaled));
    return -scaled;
}

/* What sums are made of: 2^44 is 1, so that they are exact and take their terms in any order. */
#define K_WEIGHT_ONE 0x1p44

static inline uint64_t k_weight_of(float scaled)
{
    return (uint64_t)(expf(scaled) * (float)K_WEIGHT_ONE);
}

/* ---- k_sampling.c: tokens [first, first + n), z and logits [n] ------------------------------ */

/* z = logits under mask, bias and penalties; counts [n] */
void k_sampling_filter(const float *logits, uint32_t first, uint32_t n,
                       const k_sample_row_t *params, uint32_t *counts, float *z);

/* The first of the largest, cleaned; of logits, or of z. */
k_top_t k_sampling_max(const float *z, uint32_t first, uint32_t n);

/* z = (z - max) / temperature; -inf below min_p and where nothing can be */
void k_sampling_scale(const k_sample_row_t *params, float max, uint32_t n, float *z);

static inline bool k_has_penalties(const k_sample_row_t *params)
{
    return params->history != NULL &&
           (params->repetition_penalty != 1.0f || params->frequency_penalty != 0.0f ||
            params->presence_penalty != 0.0f);
}

/* Whether the largest logit, as it is, decides. */
static inline bool k_sampling_is_plain(const k_sample_row_t *params)
{
    return !(params->temperature > 0) && params->mask == NULL && params->n_bias == 0 &&
           !k_has_penalties(params);
}

static inline bool k_sampling_selects(const k_sample_row_t *params)
{
    return params->top_k > 0 || params->top_p < 1.0f;
}

/* The token wins if its scaled + noise is larger than the winner's, or as large at a lower id. */
void k_sampling_compete(const k_sample_row_t *params, float scaled, int32_t token,
                        k_winner_t *winner);

/* ---- k_sampling_select.c: scaled [n] -------------------------------------------------------- */

/* Leaves what top_k and top_p keep in scratch->kept, in no order; returns how many. */
uint32_t k_sampling_select(const k_sample_row_t *params, const float *scaled, uint32_t n,
                           const k_sampling_scratch_t *scratch);

/* The `most` best tokens from `first` on, or all that are possible, best first, ties by lower id. */
uint32_t k_sampling_best(const float *scaled, uint32_t first, uint32_t n, uint32_t most,
                         const k_sampling_scratch_t *scratch, const k_choice_t **best_out);

/* Weight of all tokens. */
uint64_t k_sampling_total(const float *scaled, uint32_t n);

/* ---- k_sampling_report.c --------------------------------------------------------------------- */

/* Puts one, of a higher id than those there, in its place among the n_top best. */
void k_sampling_insert_top(k_tally_t *tally, uint32_t n_top, k_top_t one);

/* The share of tokens from `first` on; tally_out has room for n_top. */
void k_sampling_tally(const float *logits, uint32_t first, uint32_t n, float max, k_top_t target,
                      uint32_t n_top, k_tally_t *tally_out);

/* The report, from what all slices say together. */
void k_sampling_fill_report(const k_tally_t *all, float max, k_top_t target, k_sampled_t *out);
