/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_cuda_select: what top_k and top_p keep of a row, without sorting it. For sample.cu, and in
 * part for *_masses.cu.
 *
 * Tokens are ordered by `scaled` = (z - max) / temperature ≤ 0, ties by id. First all tiles count
 * them, and their weights exp(scaled), in BUCKETS ranges of scaled; from the totals every block
 * derives the few buckets in which the cut lies. Then one block finds the cut among the tokens of these
 * buckets digit by digit. Weights are integers (2^44 is 1): sums are exact, whatever their order.
 */
#pragma once

#include "kernels/cuda/k_cuda_tiles.h"

enum {
    BUCKETS = 2048,
    BUCKETS_HELD = BUCKETS / TILE_THREADS, /* neighbours that a thread holds */
    DIGIT_BITS = 11,                       /* 2^11 = BUCKETS: the same memory counts digits */
    PLACE_BITS = 63,
};

/* Non-decreasing in -scaled: 128 buckets for each doubling of 1 - scaled; the last is open. */
SIMT_DEVICE uint32_t bucket_of(float scaled)
{
    const uint32_t bucket = (simt_float_bits(1.0f - scaled) - simt_float_bits(1.0f)) >> 16;
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

SIMT_DEVICE uint64_t weight_of(float scaled)
{
    return (uint64_t)(expf(scaled) * 0x1p44f);
}

/* The order of the tokens as an integer, the most likely first. */
typedef uint64_t place_t;

SIMT_DEVICE place_t place_of(float scaled, uint32_t token)
{
    return (uint64_t)(simt_float_bits(scaled) & 0x7fffffffu) << 32 | token;
}

/* ---- histograms ------------------------------------------------------------------------------ */

/* In shared memory. 64-bit additions there are loops: weights are added in halves, with carry. */
typedef struct histogram {
    uint32_t count[BUCKETS];
    uint32_t low[BUCKETS];
    uint32_t high[BUCKETS];
} histogram_t;

SIMT_DEVICE void histogram_clear(histogram_t *histogram)
{
    for (uint32_t b = threadIdx.x; b < BUCKETS; b += TILE_THREADS) {
        histogram->count[b] = 0;
        histogram->low[b] = 0;
        histogram->high[b] = 0;
    }
}

/* n tokens that weigh so much together. */
SIMT_DEVICE void histogram_add(histogram_t *histogram, uint32_t bucket, uint32_t n, uint64_t weight)
{
    simt_atomic_add(&histogram->count[bucket], n);
    const uint32_t low = (uint32_t)weight;
    if (low != 0) {
        const uint32_t before = simt_atomic_add(&histogram->low[bucket], low);
        const uint32_t high = (uint32_t)(weight >> 32) + (before + low < before ? 1u : 0u);
        if (high != 0) {
            simt_atomic_add(&histogram->high[bucket], high);
        }
    } else if (weight != 0) {
        simt_atomic_add(&histogram->high[bucket], (uint32_t)(weight >> 32));
    }
}

SIMT_DEVICE uint64_t histogram_weight(const histogram_t *histogram, uint32_t bucket)
{
    return (uint64_t)histogram->high[bucket] << 32 | histogram->low[bucket];
}

/* ---- sums over buckets ------------------------------------------------------------------------ */

/* Tokens and their weight. */
typedef struct mass {
    uint64_t weight;
    uint32_t count;
} mass_t;

SIMT_DEVICE mass_t operator+(mass_t a, mass_t b)
{
    return {a.weight + b.weight, a.count + b.count};
}

SIMT_DEVICE mass_t operator-(mass_t a, mass_t b)
{
    return {a.weight - b.weight, a.count - b.count};
}

/* A thread's BUCKETS_HELD buckets from threadIdx.x * BUCKETS_HELD on, and all that is before them. */
typedef struct held_buckets {
    mass_t before;
    mass_t in[BUCKETS_HELD];
    mass_t total; /* of all buckets */
} held_buckets_t;

SIMT_DEVICE uint32_t held_bucket(int i)
{
    return threadIdx.x * BUCKETS_HELD + i;
}

/* Sums over the threads before this one, from in[]. partial [TILE_WARPS] shared, not in use. */
SIMT_DEVICE void held_scan(held_buckets_t *held, mass_t *partial)
{
    mass_t mine = {0, 0};
    SIMT_UNROLL
    for (int i = 0; i < BUCKETS_HELD; i++) {
        mine = mine + held->in[i];
    }
    mass_t upto = mine;
    for (int delta = 1; delta < SIMT_WARP; delta *= 2) {
        const mass_t left = {simt_shfl_up(upto.weight, delta), simt_shfl_up(upto.count, delta)};
        if (simt_lane() >= delta) {
            upto = upto + left;
        }
    }
    if (simt_lane() == SIMT_WARP - 1) {
        partial[simt_warp()] = upto;
    }
    simt_sync_block();
    held->before = upto - mine;
    held->total = {0, 0};
    for (int warp = 0; warp < TILE_WARPS; warp++) {
        if (warp < simt_warp()) {
            held->before = held->before + partial[warp];
        }
        held->total = held->total + partial[warp];
    }
}

/* ---- the buckets where the cut lies ----------------------------------------------------------- */

typedef struct crossing {
    uint32_t bucket;
    mass_t before; /* all buckets before it */
    mass_t in;
} crossing_t;

/*
 * Tokens of buckets before `first` are kept for sure; those of [first, last], where top_p may cut, and
 * of `kth`, where top_k does, are listed; no others are kept.
 */
typedef struct range {
    uint32_t first;
    uint32_t last;
    uint32_t kth;      /* BUCKETS: top_k is off */
    mass_t before;     /* of the tokens before the list */
    mass_t before_kth; /* of those before kth that are not listed */
    uint64_t total;    /* weight of all tokens */
} range_t;

/*
 * The first bucket at whose end reached(mass) holds, or the last bucket; in every thread.
 * found: shared, not in use.
 */
template <class F>
SIMT_DEVICE crossing_t find_crossing(const held_buckets_t &held, crossing_t *found, F reached)
{
    mass_t upto = held.before;
    bool was_reached = threadIdx.x > 0 && reached(upto);
    SIMT_UNROLL
    for (int i = 0; i < BUCKETS_HELD; i++) {
        const mass_t before = upto;
        upto = upto + held.in[i];
        const bool is_reached = reached(upto) || held_bucket(i) == BUCKETS - 1;
        if (is_reached && !was_reached) {
            *found = {held_bucket(i), before, held.in[i]};
        }
        was_reached = is_reached;
    }
    simt_sync_block();
    return *found;
}

/* found [3] shared, not in use. */
SIMT_DEVICE range_t find_range(const held_buckets_t &held, int32_t top_k, float top_p,
                               crossing_t *found)
{
    if (top_k <= 0) {
        const double goal = (double)top_p * (double)held.total.weight;
        const crossing_t cut = find_crossing(
            held, &found[0], [=](mass_t upto) { return (double)upto.weight >= goal; });
        return {cut.bucket, cut.bucket, BUCKETS, cut.before, {}, held.total.weight};
    }
    const crossing_t kth =
        find_crossing(held, &found[0], [=](mass_t upto) { return upto.count >= (uint32_t)top_k; });
    if (!(top_p < 1.0f)) {
        return {kth.bucket, kth.bucket, kth.bucket, kth.before, kth.before, held.total.weight};
    }
    /* top_p is a part of what top_k keeps: at least all before kth's bucket, at most it as well. */
    const double least = (double)top_p * (double)kth.before.weight;
    const double most = (double)top_p * (double)(kth.before.weight + kth.in.weight);
    const crossing_t first =
        find_crossing(held, &found[1], [=](mass_t upto) { return (double)upto.weight >= least; });
    const crossing_t last =
        find_crossing(held, &found[2], [=](mass_t upto) { return (double)upto.weight >= most; });
    const mass_t end = last.bucket < kth.bucket ? last.before + last.in : kth.before;
    return {
        first.bucket,     last.bucket, kth.bucket, first.before, kth.before - (end - first.before),
        held.total.weight};
}

/* ---- the cut among few tokens ------------------------------------------------------------------ */

/* The tokens where the cut lies. */
typedef struct listed {
    const uint32_t *tokens;
    uint32_t n;
    const float *z;
    float max;
    float temperature;
} listed_t;

SIMT_DEVICE float listed_scaled(const listed_t &listed, uint32_t token)
{
    return (listed.z[token] - listed.max) / listed.temperature;
}

SIMT_DEVICE void count_digits(const listed_t &listed, place_t prefix, int shift, int bits,
                              place_t limit, histogram_t *histogram)
{
    for (uint32_t i = threadIdx.x; i < listed.n; i += TILE_THREADS) {
        const uint32_t token = listed.tokens[i];
        const float scaled = listed_scaled(listed, token);
        const place_t place = place_of(scaled, token);
        if (place <= limit && place >> (shift + bits) == prefix) {
            const uint32_t digit = (uint32_t)(place >> shift) & ((1u << bits) - 1);
            histogram_add(histogram, digit, 1, weight_of(scaled));
        }
    }
}

/* Shared memory of find_cut. */
typedef struct cut_space {
    histogram_t histogram;
    mass_t partial[TILE_WARPS];
    crossing_t found;
} cut_space_t;

/*
 * The place of the first listed token with which reached(mass of all tokens up to it) holds, if not
 * beyond limit, else limit. before: the mass of the tokens up to there that are not listed.
 */
template <class F>
SIMT_DEVICE place_t find_cut(const listed_t &listed, mass_t before, place_t limit,
                             cut_space_t *space, F reached)
{
    place_t prefix = 0;
    for (int end = PLACE_BITS; end > 0; end -= DIGIT_BITS) {
        const int shift = end > DIGIT_BITS ? end - DIGIT_BITS : 0;
        simt_sync_block();
        histogram_clear(&space->histogram);
        simt_sync_block();
        count_digits(listed, prefix, shift, end - shift, limit, &space->histogram);
        simt_sync_block();

        held_buckets_t held;
        SIMT_UNROLL
        for (int i = 0; i < BUCKETS_HELD; i++) {
            const uint32_t b = held_bucket(i);
            held.in[i] = {histogram_weight(&space->histogram, b), space->histogram.count[b]};
        }
        held_scan(&held, space->partial);
        if (!reached(before + held.total)) {
            return limit;
        }
        const crossing_t crossing =
            find_crossing(held, &space->found, [=](mass_t upto) { return reached(before + upto); });
        before = before + crossing.before;
        prefix = prefix << (end - shift) | crossing.bucket;
        if (crossing.in.count == 1) {
            const place_t last = ((prefix + 1) << shift) - 1; /* with these first digits */
            return last < limit ? last : limit;
        }
    }
    return prefix;
}
