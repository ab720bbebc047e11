/* SPDX-License-Identifier: Apache-2.0 */
/* From logits to tokens and their log-probabilities. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define K_MAX_LOGPROBS 20 /* top log-probabilities a sampled row can report */

typedef struct k_bias {
    int32_t token;
    float value;
} k_bias_t;

/* What one row of logits reports: the log-softmax of the unmodified logits. */
typedef struct k_logprob {
    int32_t token;
    uint32_t rank; /* 1 = most likely */
    float logprob;
} k_logprob_t;

typedef struct k_sampled {
    k_logprob_t chosen;
    k_logprob_t top[K_MAX_LOGPROBS]; /* most likely first, ties by lower id; n_top are valid */
    uint32_t n_top;
} k_sampled_t;

/* Prompt log-probabilities: how likely target[i] was under row i.   logits [rows, vocab] */
typedef struct k_logprobs_args {
    const float *logits;
    const int32_t *targets;
    const uint32_t *n_top; /* [rows] */
    k_sampled_t *out;      /* [rows] */
    uint32_t rows;
    uint32_t vocab;
    size_t logits_stride;
} k_logprobs_args_t;

/*
 * How one row is sampled. In this order, as vLLM does: allowed mask, logit bias, repetition /
 * frequency / presence penalties over history, temperature, min_p, top_k, top_p, then
 * argmax(log p + Gumbel noise) with noise = Philox4x32-10(key = seed, counter = (output_index,
 * token)). temperature 0 is argmax, ties to the lower id. History counts: the first
 * prompt_tokens entries are the prompt (repetition only), the rest output.
 */
typedef struct k_sample_row {
    float temperature;
    float top_p;              /* 1: off */
    float min_p;              /* 0: off */
    int32_t top_k;            /* 0: off */
    float repetition_penalty; /* 1: off */
    float frequency_penalty;  /* 0: off */
    float presence_penalty;   /* 0: off */
    uint32_t n_top;     /* log-probabilities wanted besides the chosen one, ≤ K_MAX_LOGPROBS */
    bool wants_logprob; /* else chosen.logprob and rank may stay 0 */
    uint64_t seed;
    uint64_t output_index;
    const int32_t *history; /* [history_tokens] token ids, or NULL when no penalty is on */
    uint32_t history_tokens;
    uint32_t prompt_tokens;
    const k_bias_t *bias; /* [n_bias] */
    uint32_t n_bias;
    const uint32_t *mask; /* bit t of word t/32: token t allowed; NULL: all */
    int32_t *append_to;   /* where the sampled token is written besides; NULL: nowhere */
} k_sample_row_t;

/* logits [rows, vocab], destroyed; params [rows]; out [rows] */
typedef struct k_sample_args {
    float *logits;
    const k_sample_row_t *params;
    k_sampled_t *out;
    uint32_t rows;
    uint32_t vocab;
    size_t logits_stride;
} k_sample_args_t;
