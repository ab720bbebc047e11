/* SPDX-License-Identifier: Apache-2.0 */
/*
 * step_pace: how many tokens of prompts go into a step beside decodes, so that those who read answers
 * do not wait much longer for a token than without.
 *
 * Learns, from steps that have ended, what a step of decodes alone takes (D) and what a token of a
 * prompt adds (T); a step may take `target` times D, which leaves (target - 1) · D / T tokens, and
 * STEP_PACE_LEAST at least. After STEP_PACE_MIXED steps with both in a row one has decodes alone, so
 * that D is that of the sequences that run now; and at once where they have become half as many again,
 * or fewer by a third, since D was measured.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define STEP_PACE_LEAST 16 /* tokens: fewer cost as much */
#define STEP_PACE_MIXED 64

typedef struct step_pace {
    double target; /* above 1; 0: prompts take what there is */
    double decode_ns;
    double token_ns;
    uint32_t n_mixed; /* in a row */
    uint32_t decodes; /* of the last step that decode_ns was learnt from */
    bool is_stale;    /* steps now have far more decodes, or far fewer */
} step_pace_t;

/* A step that took ns had so many decodes, and tokens of prompts. */
void step_pace_note(step_pace_t *pace, uint32_t decodes, uint32_t prompt_tokens, uint64_t ns);

/* Tokens of prompts that a step with decodes may have; UINT32_MAX: as many as there are. */
uint32_t step_pace_tokens(const step_pace_t *pace);
