/* SPDX-License-Identifier: Apache-2.0 */
/* The same where every rank has a slice of the vocabulary. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/ops/op_sampling.h"

/* ---- sampling from slices -------------------------------------------------------------------- */

/*
 * sample and logprobs where a vocabulary is cut over ranks: each has the logits of tokens
 * [first_token, first_token + tokens). An op on the slice writes a record a row; the caller gathers
 * those of all ranks, in rank order; the op that merges them comes to the same on every rank:
 *
 *   slice_max, merge_max                decide greedy rows
 *   slice_masses, merge_masses          find how far top_k and top_p keep tokens, in a few rounds
 *   slice_candidates, merge_candidates  the others; without such a cut a row may stay open and is
 *                                       asked again, for more
 *   slice_logprobs, merge_logprobs      for rows that want log-probabilities
 *
 * Lists of candidates take one exchange where few tokens are likely, but the host has to see which
 * rows are open; cuts take always the same exchanges and no look of the host.
 *
 * Results are those of sample and logprobs on the whole rows: sums are of integers (2^44 is 1), and
 * what is computed of a token only its own rank computes.
 */

/* A slice's largest. A token that is not there is -1. */
typedef struct k_slice_max {
    float max_logit; /* as the model gave it, as every `logit` here; NaN is -inf, +inf FLT_MAX */
    int32_t max_token;
    float target_logit; /* -inf on other ranks than the target's */
    float z;            /* after mask, bias and penalties */
    int32_t token;
    float logit;
    int32_t allowed; /* the lowest token that the mask allows */
    float allowed_logit;
} k_slice_max_t;

/* What is known of a row, the same on all ranks. */
typedef struct k_slice_row {
    int32_t token; /* sampled, or the target; -1: open */
    float logit;
    float max_logit;
    float max_z; /* of token `best`, before temperature */
    int32_t best;
    uint32_t n_top; /* log-probabilities wanted besides the token's own */
    bool wants_logprob;
} k_slice_row_t;

/*
 * logits, z [rows, tokens], stride elements a row: z takes the logits after mask, bias and
 * penalties, of rows where more than the largest logit counts. params NULL: log-probabilities of
 * targets are wanted, z is not written.
 */
typedef struct k_slice_max_args {
    const float *logits;
    const k_sample_row_t *params; /* [rows] */
    const int32_t *targets;       /* [rows] */
    float *z;
    k_slice_max_t *out; /* [rows] */
    uint32_t rows;
    uint32_t first_token;
    uint32_t tokens;
    size_t stride;
} k_slice_max_args_t;

typedef struct k_merge_max_args {
    const k_slice_max_t *maxima;  /* [ranks, rows] */
    const k_sample_row_t *params; /* [rows]; NULL: of targets */
    const int32_t *targets;       /* [rows] */
    const uint32_t *n_top;        /* [rows], of targets */
    k_slice_row_t *state;         /* [rows] */
    k_sampled_t *out;             /* [rows]: tokens that are decided */
    uint32_t rows;
    uint32_t ranks;
} k_merge_max_args_t;

/*
 * How far the tokens of a row are kept, best first: those before `below`, the bits of -scaled, which
 * are found K_CUT_BITS at a time, and of those that have just these the first of all ranks.
 */
#define K_CUT_ROUNDS 3
#define K_CUT_BITS   11
#define K_CUT_VALUES (1 << K_CUT_BITS) /* of a digit */
#define K_CUT_WHOLE  UINT32_MAX        /* as below: all tokens are kept */

typedef struct k_slice_cut {
    uint32_t below;  /* of round r the highest digits alone */
    uint32_t count;  /* tokens of all ranks before them */
    uint64_t weight; /* of those */
    uint64_t kept;   /* weight of all that are kept; by top_k alone */
    uint32_t equal;  /* tokens of this slice that have just these */
    uint32_t ties;   /* of which so many are kept, the lowest ids */
} k_slice_cut_t;

/* top_p is of what top_k keeps. */
typedef struct k_slice_cuts {
    k_slice_cut_t top_k;
    k_slice_cut_t top_p;
} k_slice_cuts_t;

/* A slice's tokens by the next digit. */
typedef struct k_masses {
    uint64_t weight[K_CUT_VALUES];
    uint32_t count[K_CUT_VALUES];
} k_masses_t;

/* The lowest bit of round r's digit. */
static inline int k_cut_shift(uint32_t round)
{
    return round + 1 < K_CUT_ROUNDS ? 31 - K_CUT_BITS * ((int)round + 1) : 0;
}

static inline int k_cut_bits(uint32_t round)
{
    return round + 1 < K_CUT_ROUNDS ? K_CUT_BITS : 31 - K_CUT_BITS * (K_CUT_ROUNDS - 1);
}

/* Whether a row's cut by top_p (else by top_k) is looked for. */
static inline bool k_cut_is_wanted(const k_sample_row_t *params, const k_slice_row_t *state,
                                   bool by_top_p)
{
    return state->token < 0 && (by_top_p ? params->top_p < 1.0f : params->top_k > 0);
}

/* Of open rows that ask for it; what is written of others says nothing. z as slice_max left it. */
typedef struct k_slice_masses_args {
    const float *z;
    const k_sample_row_t *params;
    const k_slice_row_t *state;
    const k_slice_cuts_t *cuts; /* [rows] */
    k_masses_t *out;            /* [rows] */
    bool by_top_p;              /* after all rounds by top_k, where a row asks for both */
    uint32_t round;
    uint32_t rows;
    uint32_t tokens;
    size_t stride;
} k_slice_masses_args_t;

typedef struct k_merge_masses_args {
    const k_masses_t *masses; /* [ranks, rows] */
    const k_sample_row_t *params;
    const k_slice_row_t *state;
    k_slice_cuts_t *cuts;
    bool by_top_p;
    uint32_t round;
    uint32_t rows;
    uint32_t ranks;
    uint32_t rank; /* whose slice it is */
} k_merge_masses_args_t;

/* A token that may be sampled. */
typedef struct k_candidate {
    double value; /* scaled + noise; -inf: less than that of `best` */
    float scaled; /* (z - max) / temperature */
    float weight; /* exp(scaled) */
    float logit;
    int32_t token;
} k_candidate_t;

/* Without top_k and top_p the one of the largest value; else the best ones, most likely first. */
typedef struct k_candidates {
    uint64_t weight;   /* of all tokens of the slice; with top_p and no top_k */
    uint32_t possible; /* tokens there would be */
    uint32_t n;
    k_candidate_t best[]; /* [most] */
} k_candidates_t;

static inline size_t k_candidates_bytes(uint32_t most)
{
    return sizeof(k_candidates_t) + most * sizeof(k_candidate_t);
}

/*
 * Of open rows. z is scaled in place; a row that is asked again has it so already. With cuts, which all
 * rows have that ask for top_k or top_p, there is one candidate, the best of what they keep.
 */
typedef struct k_slice_candidates_args {
    const float *logits;
    float *z; /* as slice_max left it */
    const k_sample_row_t *params;
    const k_slice_row_t *state;
    const k_slice_cuts_t *cuts; /* [rows]; NULL: lists of candidates */
    void *out;                  /* [rows] k_candidates_t of `most` */
    uint32_t most;
    bool is_again;
    uint32_t rows;
    uint32_t first_token;
    uint32_t tokens;
    size_t stride;
} k_slice_candidates_args_t;

typedef struct k_merge_candidates_args {
    const void *candidates; /* [ranks, rows] k_candidates_t of `most` */
    const k_sample_row_t *params;
    k_slice_row_t *state; /* rows whose candidates do not say enough stay open */
    k_sampled_t *out;
    bool is_cut; /* they were made with cuts: the best one is sampled */
    uint32_t most;
    uint32_t rows;
    uint32_t ranks;
} k_merge_candidates_args_t;

typedef struct k_top {
    float logit;
    int32_t token;
} k_top_t;

/* A slice's share of what log-probabilities are made of. */
typedef struct k_tally {
    uint64_t weight; /* of exp(logit - max_logit) */
    uint32_t larger; /* tokens before the row's own: larger logits, equal ones of lower ids */
    uint32_t n_top;
    k_top_t top[]; /* [max_top], most likely first, ties by lower id */
} k_tally_t;

static inline size_t k_tally_bytes(uint32_t max_top)
{
    return sizeof(k_tally_t) + max_top * sizeof(k_top_t);
}

/* Of rows that want log-probabilities; no row's n_top is more than max_top. */
typedef struct k_slice_logprobs_args {
    const float *logits;
    const k_slice_row_t *state;
    void *out; /* [rows] k_tally_t of max_top */
    uint32_t max_top;
    uint32_t rows;
    uint32_t first_token;
    uint32_t tokens;
    size_t stride;
} k_slice_logprobs_args_t;

typedef struct k_merge_logprobs_args {
    const void *tallies; /* [ranks, rows] k_tally_t of max_top */
    const k_slice_row_t *state;
    k_sampled_t *out;
    uint32_t max_top;
    uint32_t rows;
    uint32_t ranks;
} k_merge_logprobs_args_t;
