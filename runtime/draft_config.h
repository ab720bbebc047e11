/* SPDX-License-Identifier: Apache-2.0 */
/*
 * draft_config: --speculative-config, a JSON object as vLLM takes it: how the tokens that follow are
 * guessed.
 *
 *   {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 5}
 */
#pragma once

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

typedef struct draft_config {
    uint32_t n_tokens;   /* guessed at a time, at most; 0: nothing is */
    uint32_t min_lookup; /* tokens that must be equal */
    uint32_t max_lookup; /* tokens that are looked for */
} draft_config_t;

/* Empty text: nothing is guessed. WEFT_ERR_INVALID, WEFT_ERR_UNSUPPORTED: diag says which field. */
weft_status_t draft_config_parse(const char *text, weft_diag_t *diag, draft_config_t *config_out);
