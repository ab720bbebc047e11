/* SPDX-License-Identifier: Apache-2.0 */
/*
 * draft_config: --speculative-config, a JSON object as vLLM takes it: how the tokens that follow are
 * guessed.
 *
 *   {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 5}
 *   {"method": "draft_model", "model": "small.gguf", "num_speculative_tokens": 4}
 */
#pragma once

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

typedef struct drafter_kind drafter_kind_t; /* drafter.h */

typedef struct draft_config {
    const drafter_kind_t *kind; /* NULL: nothing is guessed, and the rest is 0 */
    uint32_t n_tokens;          /* guessed at a time, at most */
    uint32_t min_lookup;        /* ngram: tokens that must be equal */
    uint32_t max_lookup;        /* tokens that are looked for */
    char *model;                /* of kinds with one: its path */
    uint32_t max_context;       /* of that model; 0: what it allows */
} draft_config_t;

/*
 * Empty text: nothing is guessed. WEFT_ERR_INVALID, WEFT_ERR_UNSUPPORTED: diag says which field, and
 * there is nothing to give back.
 */
weft_status_t draft_config_parse(const char *text, weft_diag_t *diag, draft_config_t *config_out);
void draft_config_fini(draft_config_t *config); /* one of zeros is fine */
