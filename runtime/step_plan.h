/* SPDX-License-Identifier: Apache-2.0 */
/*
 * step_plan: what every rank does in one step. It has a version and no pointers but those to its own
 * arrays of fixed-size structs; step_plan_wire.h says how other ranks get it.
 *
 * A slot is a running sequence's place in every rank's mirrored state: its block table, its token
 * history, its sampling parameters. Plans carry changes only. Order within a plan: binds, then
 * block appends, then rows.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define STEP_PLAN_VERSION 2

#define STEP_MAX_DRAFTS 16 /* of one row */

/* Row flags */
#define STEP_ROW_SAMPLE          UINT32_C(1)  /* sample a token after the row's last token */
#define STEP_ROW_FROM_SLOT       UINT32_C(2)  /* the one input token is the slot's newest token */
#define STEP_ROW_PROMPT_LOGPROBS UINT32_C(4)  /* report log-probabilities of the row's tokens */
#define STEP_ROW_MASKED          UINT32_C(8)  /* sample under the slot's mask */
#define STEP_ROW_TOLD            UINT32_C(16) /* the plan has the row's tokens: see below */
#define STEP_ROW_EMBED           UINT32_C(32) /* report the hidden state of the row's last token */
#define STEP_ROW_ALL             UINT32_C(63) /* of these */

/* Sampling parameters of a slot; meanings as k_sample_row_t. */
typedef struct step_sampling {
    float temperature;
    float top_p;
    float min_p;
    int32_t top_k;
    float repetition_penalty;
    float frequency_penalty;
    float presence_penalty;
    uint32_t n_top;
    uint32_t n_prompt_top; /* prompt log-probabilities besides the target's own */
    uint32_t wants_logprob;
    uint64_t seed;
} step_sampling_t;

/* Whether the slot's history of tokens weighs on its logits. */
static inline bool step_has_penalties(const step_sampling_t *sampling)
{
    return sampling->repetition_penalty != 1.0f || sampling->frequency_penalty != 0.0f ||
           sampling->presence_penalty != 0.0f;
}

/* A sequence moves into a slot; what the slot held is forgotten. */
typedef struct step_bind {
    uint32_t slot;
    uint32_t prompt_tokens; /* penalties tell prompt from output by it */
    uint32_t first_token;   /* offset into tokens: the whole known history (prompt, then outputs) */
    uint32_t n_tokens;
    uint32_t first_bias; /* offset into biases */
    uint32_t n_bias;
    uint32_t adapter;  /* as k_seq_t has it */
    uint32_t reserved; /* 0 */
    step_sampling_t sampling;
} step_bind_t;

typedef struct step_block {
    uint32_t slot;
    uint32_t index; /* in the slot's block table */
    uint32_t block;
} step_block_t;

/*
 * n_tokens of the slot's history from `start` on run through the model.
 *
 * A row that samples may bring drafts, tokens guessed to follow its last one: they run through the
 * model behind it, and a token is sampled after each as if the draft had been. Up to the first draft
 * that is not what was sampled before it those tokens are the answer; how many are is seen by
 * whoever reads them, and said by the slot's next row, which starts at the last of them.
 */
typedef struct step_row {
    uint32_t slot;
    uint32_t flags;
    uint32_t start; /* position; tokens before it are in the cache */
    uint32_t n_tokens;
    uint32_t n_drafts;     /* with SAMPLE and FROM_SLOT alone */
    uint32_t reserved;     /* 0 */
    uint64_t output_index; /* counter of the sampling noise; that of a draft's sample is one more */
} step_row_t;

typedef struct step_bias {
    int32_t token;
    float value;
} step_bias_t;

/*
 * tokens: the histories of the binds, then, in the rows' order, those of each row that is TOLD and the
 * rows' drafts. With FROM_SLOT it is the one that another stage sampled; without, the row's tokens
 * take the place of what the history has from its start on, and end it.
 *
 * The arrays lie in one buffer made at start, capacities from the scheduler's limits. The order on
 * the wire is another: step_plan_wire.h.
 */
typedef struct step_plan {
    uint32_t version;
    uint32_t n_binds;
    uint32_t n_blocks;
    uint32_t n_rows;
    uint32_t n_tokens; /* in tokens[] */
    uint32_t n_biases;
    uint64_t step; /* counts up from 1 */
    step_bind_t *binds;
    step_block_t *blocks;
    step_row_t *rows;
    int32_t *tokens;
    step_bias_t *biases;
} step_plan_t;

typedef struct step_limits {
    uint32_t max_slots;
    uint32_t max_tokens;      /* rows of the model in one step */
    uint32_t max_context;     /* tokens of one sequence */
    uint32_t max_blocks;      /* appended in one step */
    uint32_t max_bind_tokens; /* in tokens[] of one step */
    uint32_t max_biases;      /* in one step, and of one slot */
    uint32_t max_outputs;    /* rows of logits made at a time; a step that wants more takes turns */
    uint32_t max_embeddings; /* rows of one step with STEP_ROW_EMBED; 0: no model for embeddings */
    uint32_t max_drafts;     /* of one row, STEP_MAX_DRAFTS at most */
} step_limits_t;

/* Tokens sampled in one step, at most. */
static inline uint32_t step_limits_samples(const step_limits_t *limits)
{
    return limits->max_slots * (1 + limits->max_drafts);
}

/* Allocates the arrays for the limits. */
weft_status_t step_plan_create(const step_limits_t *limits, step_plan_t **plan_out);
void step_plan_destroy(step_plan_t *plan); /* NULL is fine */
void step_plan_clear(step_plan_t *plan, uint64_t step);

/* Tokens that rows bring, told and drafts: so many are the last of tokens[]. */
uint32_t step_plan_row_tokens(const step_plan_t *plan);

/*
 * Whether every count, offset and position is within the limits, so that a rank may follow the
 * plan without looking again. WEFT_ERR_INVALID: diag says which one is not.
 */
weft_status_t step_plan_check(const step_plan_t *plan, const step_limits_t *limits,
                              weft_diag_t *diag);
