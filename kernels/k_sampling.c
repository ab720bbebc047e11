/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/compiler.h"
#include "kernels/k_philox.h"

/* Buckets of z = (logit - max) / temperature for partial selection: 8 to a unit, the last is open. */
enum { BUCKETS = 256, BUCKETS_PER_UNIT = 8 };

/* No noise is larger: -log(-log(1 - 2^-33)) = 22.88. */
#define MAX_NOISE 23.0

typedef struct candidate {
    float z;
    int32_t token;
} candidate_t;

typedef struct scratch {
    float *z;              /* [vocab] */
    uint32_t *counts;      /* [vocab] */
    candidate_t *selected; /* [vocab] */
} scratch_t;

static size_t padded(uint32_t vocab)
{
    return ((size_t)vocab + 15) / 16 * 16;
}

size_t k_sampling_scratch_bytes(uint32_t vocab)
{
    return padded(vocab) * (sizeof(float) + sizeof(uint32_t) + sizeof(candidate_t)) +
           WEFT_CACHE_LINE;
}

static scratch_t scratch_split(void *memory, uint32_t vocab)
{
    const size_t n = padded(vocab);
    scratch_t scratch;
    scratch.z = memory;
    scratch.counts = (uint32_t *)(scratch.z + n);
    scratch.selected = (candidate_t *)(scratch.counts + n);
    return scratch;
}

static float clean(float logit)
{
    if (logit != logit) {
        return -INFINITY;
    }
    return logit > FLT_MAX ? FLT_MAX : logit;
}

static bool is_allowed(const uint32_t *mask, uint32_t token)
{
    return mask == NULL || (mask[token / 32] >> token % 32 & 1) != 0;
}

static bool is_before(candidate_t a, candidate_t b)
{
    return a.z > b.z || (a.z == b.z && a.token < b.token);
}

/* ---- logits to z --------------------------------------------------------------------------- */

static void load_logits(const float *logits, uint32_t vocab, const uint32_t *mask, float *z)
{
    for (uint32_t t = 0; t < vocab; t++) {
        z[t] = clean(logits[t]);
    }
    for (uint32_t t = 0; mask != NULL && t < vocab; t++) {
        z[t] = is_allowed(mask, t) ? z[t] : -INFINITY;
    }
}

static void add_bias(const k_sample_row_t *params, uint32_t vocab, float *z)
{
    for (uint32_t i = 0; i < params->n_bias; i++) {
        const uint32_t token = (uint32_t)params->bias[i].token;
        if (token < vocab) {
            z[token] = clean(z[token] + params->bias[i].value);
        }
    }
}

/* count: (outputs of the token) << 1 | 1. */
static void penalize(const k_sample_row_t *params, uint32_t token, uint32_t count, float *z)
{
    float value = z[token];
    value = value > 0 ? value / params->repetition_penalty : value * params->repetition_penalty;
    if (count >> 1 > 0) {
        value -= params->frequency_penalty * (float)(count >> 1);
        value -= params->presence_penalty;
    }
    z[token] = clean(value);
}

static void add_penalties(const k_sample_row_t *params, uint32_t vocab, uint32_t *counts, float *z)
{
    if (params->history == NULL ||
        (params->repetition_penalty == 1.0f && params->frequency_penalty == 0.0f &&
         params->presence_penalty == 0.0f)) {
        return;
    }
    memset(counts, 0, vocab * sizeof(*counts));
    for (uint32_t i = 0; i < params->history_tokens; i++) {
        const uint32_t token = (uint32_t)params->history[i];
        if (token < vocab) {
            counts[token] = (counts[token] + (i < params->prompt_tokens ? 0 : 2)) | 1;
        }
    }
    for (uint32_t i = 0; i < params->history_tokens; i++) {
        const uint32_t token = (uint32_t)params->history[i];
        if (token < vocab && counts[token] != 0) { /* once a token */
            penalize(params, token, counts[token], z);
            counts[token] = 0;
        }
    }
}

static uint32_t argmax(const float *z, uint32_t vocab)
{
    uint32_t best = 0;
    for (uint32_t t = 1; t < vocab; t++) {
        best = z[t] > z[best] ? t : best;
    }
    return best;
}

static int32_t pick_impossible(const float *logits, uint32_t vocab, const uint32_t *mask, float *z)
{
    for (uint32_t t = 0; mask != NULL && t < vocab; t++) {
        if (is_allowed(mask, t)) {
            return (int32_t)t;
        }
    }
    load_logits(logits, vocab, NULL, z);
    return (int32_t)argmax(z, vocab);
}

/* ---- partial selection --------------------------------------------------------------------- */

static void sift_down(candidate_t *heap, uint32_t n, uint32_t at)
{
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= n) {
            return;
        }
        if (child + 1 < n && is_before(heap[child + 1], heap[child])) {
            child++;
        }
        if (!is_before(heap[child], heap[at])) {
            return;
        }
        const candidate_t swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
        at = child;
    }
}

static uint32_t bucket_of(float z)
{
    const float bucket = -z * BUCKETS_PER_UNIT;
    return bucket < BUCKETS - 1 ? (uint32_t)bucket : BUCKETS - 1;
}

/*
 * Gathers a set of the most likely tokens that surely holds what top_k, or else top_p, keeps.
 * Returns how many; total_out is the weight of all tokens.
 */
static uint32_t gather(const k_sample_row_t *params, uint32_t vocab, const scratch_t *scratch,
                       double *total_out)
{
    uint32_t count[BUCKETS] = {0};
    double weight[BUCKETS] = {0};
    double total = 0;
    for (uint32_t t = 0; t < vocab; t++) {
        if (scratch->z[t] > -INFINITY) {
            const uint32_t bucket = bucket_of(scratch->z[t]);
            count[bucket]++;
            weight[bucket] += params->top_k > 0 ? 0 : (double)expf(scratch->z[t]);
        }
    }
    for (uint32_t b = 0; b < BUCKETS; b++) {
        total += weight[b];
    }
    uint32_t last = 0;
    uint32_t kept = count[0];
    double kept_weight = weight[0];
    while (last < BUCKETS - 1 && (params->top_k > 0 ? kept < (uint32_t)params->top_k
                                                    : kept_weight < params->top_p * total)) {
        last++;
        kept += count[last];
        kept_weight += weight[last];
    }
    uint32_t n = 0;
    for (uint32_t t = 0; t < vocab; t++) {
        if (scratch->z[t] > -INFINITY && bucket_of(scratch->z[t]) <= last) {
            scratch->selected[n++] = (candidate_t){scratch->z[t], (int32_t)t};
        }
    }
    *total_out = total;
    return n;
}

/* Moves the n best of heap [size] to its end, best last; n ≤ size. */
static void pop(candidate_t *heap, uint32_t size, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t last = size - 1 - i;
        const candidate_t best = heap[0];
        heap[0] = heap[last];
        heap[last] = best;
        sift_down(heap, last, 0);
    }
}

/* Leaves what top_k and top_p keep in selected[0, returned). */
static uint32_t select_top(const k_sample_row_t *params, uint32_t vocab, const scratch_t *scratch)
{
    double total;
    const uint32_t size = gather(params, vocab, scratch, &total);
    candidate_t *heap = scratch->selected;
    for (uint32_t at = size / 2; at-- > 0;) {
        sift_down(heap, size, at);
    }
    uint32_t kept = 0;
    if (params->top_k > 0) {
        kept = (uint32_t)params->top_k < size ? (uint32_t)params->top_k : size;
        pop(heap, size, kept);
        total = 0;
        for (uint32_t i = 0; i < kept; i++) {
            total += (double)expf(heap[size - 1 - i].z);
        }
    }
    if (params->top_p < 1.0f) {
        const uint32_t limit = params->top_k > 0 ? kept : size;
        double sum = 0;
        uint32_t n = 0;
        do {
            if (params->top_k <= 0) {
                pop(heap, size - n, 1);
            }
            sum += (double)expf(heap[size - 1 - n].z);
            n++;
        } while (n < limit && sum < params->top_p * total);
        kept = n;
    }
    memmove(heap, heap + (size - kept), kept * sizeof(*heap));
    return kept;
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

typedef struct winner {
    double value;
    int32_t token;
} winner_t;

/* Tokens that even the largest noise cannot lift over the winner cost no logarithm. */
static void compete(const k_sample_row_t *params, candidate_t candidate, winner_t *winner)
{
    if (candidate.z + MAX_NOISE < winner->value) {
        return;
    }
    const double u = (noise_word(params, (uint32_t)candidate.token) + 0.5) * 0x1p-32;
    const double value = candidate.z - log(-log(u));
    if (value > winner->value || (value == winner->value && candidate.token < winner->token)) {
        *winner = (winner_t){value, candidate.token};
    }
}

int32_t k_sampling_pick(const float *logits, uint32_t vocab, const k_sample_row_t *params,
                        void *memory)
{
    const scratch_t scratch = scratch_split(memory, vocab);
    float *z = scratch.z;
    load_logits(logits, vocab, params->mask, z);
    add_bias(params, vocab, z);
    add_penalties(params, vocab, scratch.counts, z);

    const uint32_t best = argmax(z, vocab);
    const float max = z[best];
    if (max == -INFINITY) {
        return pick_impossible(logits, vocab, params->mask, z);
    }
    if (!(params->temperature > 0)) {
        return (int32_t)best;
    }
    const float floor = params->min_p > 0 ? logf(fminf(params->min_p, 1.0f)) : -INFINITY;
    for (uint32_t t = 0; t < vocab; t++) {
        const float scaled = (z[t] - max) / params->temperature;
        z[t] = scaled < floor ? -INFINITY : scaled;
    }
    winner_t winner = {-INFINITY, (int32_t)best};
    compete(params, (candidate_t){0, (int32_t)best}, &winner);
    if (params->top_k > 0 || params->top_p < 1.0f) {
        const uint32_t n = select_top(params, vocab, &scratch);
        for (uint32_t i = 0; i < n; i++) {
            compete(params, scratch.selected[i], &winner);
        }
    } else {
        for (uint32_t t = 0; t < vocab; t++) {
            compete(params, (candidate_t){z[t], (int32_t)t}, &winner);
        }
    }
    return winner.token;
}

/* ---- log-probabilities --------------------------------------------------------------------- */

static void insert_top(k_sampled_t *out, uint32_t n_top, float *values, uint32_t token, float value)
{
    uint32_t at = out->n_top;
    while (at > 0 && values[at - 1] < value) {
        at--;
    }
    if (at == n_top) {
        return;
    }
    const uint32_t last = out->n_top < n_top ? out->n_top++ : n_top - 1;
    for (uint32_t i = last; i > at; i--) {
        out->top[i] = out->top[i - 1];
        values[i] = values[i - 1];
    }
    out->top[at].token = (int32_t)token;
    values[at] = value;
}

void k_sampling_report(const float *logits, uint32_t vocab, int32_t target, uint32_t n_top,
                       k_sampled_t *out)
{
    float values[K_MAX_LOGPROBS];
    const float chosen = clean(logits[target]);
    float max = -INFINITY;
    uint32_t rank = 1;

    n_top = n_top < K_MAX_LOGPROBS ? n_top : K_MAX_LOGPROBS;
    n_top = n_top < vocab ? n_top : vocab;
    out->n_top = 0;
    for (uint32_t t = 0; t < vocab; t++) {
        const float value = clean(logits[t]);
        max = value > max ? value : max;
        rank += value > chosen || (value == chosen && (int32_t)t < target);
        if (n_top > 0 && (out->n_top < n_top || value > values[n_top - 1])) {
            insert_top(out, n_top, values, t, value);
        }
    }
    double sum = 0;
    for (uint32_t t = 0; t < vocab; t++) {
        sum += (double)expf(clean(logits[t]) - max);
    }
    /* A row of nothing but -inf: every log-probability is -inf. */
    const double log_sum = max == -INFINITY ? INFINITY : log(sum) + (double)max;
    out->chosen = (k_logprob_t){target, rank, (float)((double)chosen - log_sum)};
    for (uint32_t i = 0; i < out->n_top; i++) {
        out->top[i].rank = i + 1;
        out->top[i].logprob = (float)((double)values[i] - log_sum);
    }
}
