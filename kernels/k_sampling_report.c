/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling_priv.h"

void k_sampling_insert_top(k_tally_t *tally, uint32_t n_top, k_top_t one)
{
    uint32_t at = tally->n_top;
    while (at > 0 && tally->top[at - 1].logit < one.logit) {
        at--;
    }
    if (at == n_top) {
        return;
    }
    const uint32_t last = tally->n_top < n_top ? tally->n_top++ : n_top - 1;
    for (uint32_t i = last; i > at; i--) {
        tally->top[i] = tally->top[i - 1];
    }
    tally->top[at] = one;
}

void k_sampling_tally(const float *logits, uint32_t first, uint32_t n, float max, k_top_t target,
                      uint32_t n_top, k_tally_t *tally_out)
{
    uint64_t weight = 0;
    uint32_t larger = 0;
    tally_out->n_top = 0;
    for (uint32_t t = 0; t < n; t++) {
        const k_top_t one = {k_clean_logit(logits[t]), (int32_t)(first + t)};
        weight += one.logit > -INFINITY ? k_weight_of(one.logit - max) : 0;
        larger +=
            one.logit > target.logit || (one.logit == target.logit && one.token < target.token);
        if (n_top > 0 &&
            (tally_out->n_top < n_top || one.logit > tally_out->top[n_top - 1].logit)) {
            k_sampling_insert_top(tally_out, n_top, one);
        }
    }
    tally_out->weight = weight;
    tally_out->larger = larger;
}

void k_sampling_fill_report(const k_tally_t *all, float max, k_top_t target, k_sampled_t *out)
{
    /* A row of nothing but -inf: every log-probability is -inf. */
    const double log_sum =
        max == -INFINITY ? INFINITY : log((double)all->weight / K_WEIGHT_ONE) + (double)max;
    out->chosen =
        (k_logprob_t){target.token, all->larger + 1, (float)((double)target.logit - log_sum)};
    out->n_top = all->n_top;
    for (uint32_t i = 0; i < all->n_top; i++) {
        const k_top_t one = all->top[i];
        out->top[i] = (k_logprob_t){one.token, i + 1, (float)((double)one.logit - log_sum)};
    }
}

void k_sampling_report(const float *logits, uint32_t vocab, int32_t target, uint32_t n_top,
                       k_sampled_t *out)
{
    union {
        k_tally_t tally;
        char room[sizeof(k_tally_t) + K_MAX_LOGPROBS * sizeof(k_top_t)];
    } all;
    const float max = k_sampling_max(logits, 0, vocab).logit;
    const k_top_t token = {k_clean_logit(logits[target]), target};
    n_top = n_top < K_MAX_LOGPROBS ? n_top : K_MAX_LOGPROBS;
    k_sampling_tally(logits, 0, vocab, max, token, n_top, &all.tally);
    k_sampling_fill_report(&all.tally, max, token, out);
}
