/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What top_k and top_p keep, without sorting everything: tokens are counted in ranges of scaled; only
 * those of the range in which the cut lies are brought in order.
 */
#include "kernels/k_sampling_priv.h"

enum { BUCKETS = 2048, DIGITS = 256 };

typedef struct histogram {
    uint32_t count[BUCKETS];
    uint64_t weight[BUCKETS];
} histogram_t;

/* When there is enough: so many tokens, or so much weight. */
typedef struct goal {
    bool by_weight;
    uint32_t count;
    double weight;
} goal_t;

/* Tokens and their weight. */
typedef struct mass {
    uint32_t count;
    uint64_t weight;
} mass_t;

static bool is_reached(const goal_t *goal, mass_t kept)
{
    return goal->by_weight ? !((double)kept.weight < goal->weight) : kept.count >= goal->count;
}

/* The weight that top_p asks for. NaN: none. */
static goal_t goal_of_top_p(float top_p, uint64_t total)
{
    return (goal_t){.by_weight = true, .weight = (double)top_p * (double)total};
}

/* Non-decreasing in -scaled: 128 buckets for each doubling of 1 - scaled; the last is open. */
static uint32_t bucket_of(float scaled)
{
    const uint32_t bucket = (k_below_of(1.0f - scaled) - k_below_of(1.0f)) >> 16;
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

/* Returns the mass of all. */
static mass_t count(const float *scaled, uint32_t n, bool by_weight, histogram_t *histogram)
{
    mass_t all = {0};
    memset(histogram, 0, sizeof(*histogram));
    for (uint32_t t = 0; t < n; t++) {
        if (scaled[t] > -INFINITY) {
            const uint32_t bucket = bucket_of(scaled[t]);
            const uint64_t weight = by_weight ? k_weight_of(scaled[t]) : 0;
            histogram->count[bucket]++;
            histogram->weight[bucket] += weight;
            all.count++;
            all.weight += weight;
        }
    }
    return all;
}

/* The bucket in which the goal is reached, the last one if it is not; before: what lies before. */
static uint32_t find_bucket(const histogram_t *histogram, const goal_t *goal, mass_t *before_out)
{
    mass_t before = {0};
    for (uint32_t b = 0;; b++) {
        const mass_t upto = {before.count + histogram->count[b],
                             before.weight + histogram->weight[b]};
        if (b == BUCKETS - 1 || (upto.count > 0 && is_reached(goal, upto))) {
            *before_out = before;
            return b;
        }
        before = upto;
    }
}

/* Tokens of the buckets before `last` go to kept, those of `last` to edge; returns how many these are. */
static uint32_t split(const float *scaled, uint32_t first, uint32_t n, uint32_t last,
                      k_choice_t *kept, k_choice_t *edge)
{
    uint32_t n_edge = 0;
    for (uint32_t t = 0; t < n; t++) {
        if (scaled[t] > -INFINITY) {
            const uint32_t bucket = bucket_of(scaled[t]);
            const k_choice_t choice = {k_below_of(scaled[t]), (int32_t)(first + t)};
            if (bucket < last) {
                *kept++ = choice;
            } else if (bucket == last) {
                edge[n_edge++] = choice;
            }
        }
    }
    return n_edge;
}

/*
 * Orders by `below`, equal ones as they are: by id. Digit by digit from the lowest, between the two
 * arrays; returns the one where the result is.
 */
static k_choice_t *sort(k_choice_t *choices, k_choice_t *other, uint32_t n)
{
    for (uint32_t shift = 0; shift < 32; shift += 8) {
        uint32_t ends[DIGITS] = {0};
        for (uint32_t i = 0; i < n; i++) {
            ends[choices[i].below >> shift & (DIGITS - 1)]++;
        }
        if (n == 0 || ends[choices[0].below >> shift & (DIGITS - 1)] == n) {
            continue; /* alike in this digit */
        }
        for (uint32_t d = 0, at = 0; d < DIGITS; d++) {
            const uint32_t these = ends[d];
            ends[d] = at;
            at += these;
        }
        for (uint32_t i = 0; i < n; i++) {
            other[ends[choices[i].below >> shift & (DIGITS - 1)]++] = choices[i];
        }
        k_choice_t *swap = choices;
        choices = other;
        other = swap;
    }
    return choices;
}

/* How many of the choices, in order, reach the goal with what lies before; at least one in all. */
static uint32_t take(const k_choice_t *choices, uint32_t n, const goal_t *goal, mass_t kept)
{
    uint32_t taken = 0;
    while (taken < n && (kept.count == 0 || !is_reached(goal, kept))) {
        kept.count++;
        kept.weight += goal->by_weight ? k_weight_of(k_scaled_of(choices[taken].below)) : 0;
        taken++;
    }
    return taken;
}

static uint32_t keep(const float *scaled, uint32_t first, uint32_t n, const goal_t *goal,
                     const histogram_t *histogram, const k_sampling_scratch_t *scratch)
{
    mass_t before;
    const uint32_t last = find_bucket(histogram, goal, &before);
    const uint32_t n_edge = split(scaled, first, n, last, scratch->kept, scratch->spare);
    k_choice_t *rest = scratch->kept + before.count;
    const k_choice_t *edge = sort(scratch->spare, rest, n_edge);
    const uint32_t taken = take(edge, n_edge, goal, before);
    if (edge != rest) {
        memcpy(rest, edge, taken * sizeof(*rest));
    }
    return before.count + taken;
}

static uint32_t keep_count(const float *scaled, uint32_t first, uint32_t n, uint32_t most,
                           const k_sampling_scratch_t *scratch)
{
    const goal_t goal = {.count = most};
    histogram_t histogram;
    count(scaled, n, false, &histogram);
    return keep(scaled, first, n, &goal, &histogram, scratch);
}

/* top_p of what top_k left in scratch->kept */
static uint32_t narrow(float top_p, uint32_t n, const k_sampling_scratch_t *scratch)
{
    const k_choice_t *ordered = sort(scratch->kept, scratch->spare, n);
    uint64_t total = 0;
    for (uint32_t i = 0; i < n; i++) {
        total += k_weight_of(k_scaled_of(ordered[i].below));
    }
    const goal_t goal = goal_of_top_p(top_p, total);
    const uint32_t kept = take(ordered, n, &goal, (mass_t){0});
    if (ordered != scratch->kept) {
        memcpy(scratch->kept, ordered, kept * sizeof(*ordered));
    }
    return kept;
}

uint32_t k_sampling_select(const k_sample_row_t *params, const float *scaled, uint32_t n,
                           const k_sampling_scratch_t *scratch)
{
    if (params->top_k > 0) {
        const uint32_t kept = keep_count(scaled, 0, n, (uint32_t)params->top_k, scratch);
        return params->top_p < 1.0f ? narrow(params->top_p, kept, scratch) : kept;
    }
    histogram_t histogram;
    const mass_t all = count(scaled, n, true, &histogram);
    const goal_t goal = goal_of_top_p(params->top_p, all.weight);
    return keep(scaled, 0, n, &goal, &histogram, scratch);
}

uint32_t k_sampling_best(const float *scaled, uint32_t first, uint32_t n, uint32_t most,
                         const k_sampling_scratch_t *scratch, const k_choice_t **best_out)
{
    const uint32_t kept = keep_count(scaled, first, n, most, scratch);
    *best_out = sort(scratch->kept, scratch->spare, kept);
    return kept;
}

uint64_t k_sampling_total(const float *scaled, uint32_t n)
{
    uint64_t total = 0;
    for (uint32_t t = 0; t < n; t++) {
        total += scaled[t] > -INFINITY ? k_weight_of(scaled[t]) : 0;
    }
    return total;
}
