/* SPDX-License-Identifier: Apache-2.0 */
/* sampling_rows: random logits and random ways to sample from them. */
#pragma once

#include <float.h>

#include "tests/kernels/kernels_support.h"

enum { SAMPLING_MAX_HISTORY = 300, SAMPLING_MAX_BIAS = 12 };

/* Logits of a few characters: smooth, with many ties, mostly impossible, with NaN and infinities. */
static inline void random_logits(test_random_t *random, float *logits, uint32_t vocab)
{
    static const float spreads[] = {0, 1, 6, 30};
    const float spread = spreads[test_random_below(random, 4)];
    const uint32_t character = test_random_below(random, 6);
    for (uint32_t t = 0; t < vocab; t++) {
        /* A sum of three is close to a bell. */
        logits[t] = spread * (random_float(random) + random_float(random) + random_float(random));
        logits[t] = character == 1 ? roundf(logits[t]) : logits[t];
        if (character == 2 && test_random_below(random, 3) != 0) {
            logits[t] = -INFINITY;
        }
        if (character == 3 && test_random_below(random, 200) == 0) {
            static const float odd[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -0.0f};
            logits[t] = odd[test_random_below(random, 5)];
        }
    }
}

static inline float one_of(test_random_t *random, const float *values, uint32_t n)
{
    return values[test_random_below(random, n)];
}

#define ONE_OF(random, ...)                                                                        \
    one_of(random, (const float[]){__VA_ARGS__},                                                   \
           sizeof((const float[]){__VA_ARGS__}) / sizeof(float))

/* History, bias and mask of a row; what params point to here is host memory. */
typedef struct row_inputs {
    int32_t history[SAMPLING_MAX_HISTORY];
    k_bias_t bias[SAMPLING_MAX_BIAS];
    uint32_t *mask;
} row_inputs_t;

static inline void random_inputs(test_random_t *random, uint32_t vocab, k_sample_row_t *params,
                                 row_inputs_t *inputs)
{
    /* Few different tokens, so that they repeat. */
    const uint32_t kinds = test_random_between(random, 1, vocab < 50 ? vocab : 50);
    if (test_random_below(random, 3) == 0) {
        params->history = inputs->history;
        params->history_tokens = test_random_between(random, 1, SAMPLING_MAX_HISTORY);
        params->prompt_tokens = test_random_below(random, params->history_tokens + 1);
        params->repetition_penalty = ONE_OF(random, 1, 1.3f, 0.7f);
        params->frequency_penalty = ONE_OF(random, 0, 0.37f, -0.2f);
        params->presence_penalty = ONE_OF(random, 0, 0.9f);
        for (uint32_t i = 0; i < params->history_tokens; i++) {
            const uint32_t kind = test_random_below(random, kinds);
            inputs->history[i] = (int32_t)((uint64_t)kind * 7919 % vocab);
        }
    }
    if (test_random_below(random, 3) == 0) {
        params->bias = inputs->bias;
        params->n_bias = test_random_between(random, 1, SAMPLING_MAX_BIAS);
        for (uint32_t i = 0; i < params->n_bias; i++) {
            const uint32_t kind = test_random_below(random, kinds);
            inputs->bias[i].token = (int32_t)((uint64_t)kind * 7919 % vocab);
            inputs->bias[i].value = ONE_OF(random, -100, -1, 0.3f, 5, 100);
        }
    }
    const uint32_t words = (vocab + 31) / 32;
    inputs->mask = test_malloc(words * sizeof(uint32_t));
    const uint32_t density = test_random_below(random, 3);
    for (uint32_t i = 0; i < words; i++) {
        const uint32_t bits = (uint32_t)test_random_u64(random);
        inputs->mask[i] = density == 0 ? bits : bits & (uint32_t)test_random_u64(random);
        inputs->mask[i] = density == 2 ? 0 : inputs->mask[i];
    }
    if (test_random_below(random, 3) == 0) {
        params->mask = inputs->mask;
    }
}

static inline k_sample_row_t random_params(test_random_t *random, uint32_t vocab,
                                           row_inputs_t *inputs)
{
    k_sample_row_t params = {
        .temperature = ONE_OF(random, 0, 0.2f, 1, 1, 1.7f),
        .top_p = ONE_OF(random, 1, 1, 0.5f, 0.9f, 0.99f, 0, 0.001f),
        .min_p = ONE_OF(random, 0, 0, 0.01f, 0.3f),
        .top_k = (int32_t)ONE_OF(random, 0, 0, 1, 5, 50, 1000, 100000),
        .repetition_penalty = 1,
        .n_top = (uint32_t)ONE_OF(random, 0, 0, 3, K_MAX_LOGPROBS),
        .wants_logprob = test_random_below(random, 3) == 0,
        .seed = test_random_u64(random),
        .output_index = test_random_u64(random) >> test_random_below(random, 64),
    };
    random_inputs(random, vocab, &params, inputs);
    return params;
}
