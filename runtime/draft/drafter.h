/* SPDX-License-Identifier: Apache-2.0 */
/*
 * drafter: guesses the tokens that follow those of running sequences. A way to guess is a file
 * drafter_<method>.c and a row of drafters.def; which one, and how, says --speculative-config.
 *
 * What is guessed costs time alone: the model that answers computes it and keeps what it would have
 * sampled anyway. So a guess may be wrong, short, or missing.
 *
 * Threads  the engine's
 */
#pragma once

#include "runtime/draft/draft_config.h"
#include "runtime/draft/draft_model.h"
#include "runtime/sched/sched.h"

typedef struct drafter drafter_t;

typedef struct drafter_config {
    const draft_config_t *how; /* borrowed until destroy, so for each */
    uint32_t vocab;            /* token ids of the model that answers are below */
    /* For kinds with a model: */
    const model_source_t *source;
    const draft_model_plan_t *plan;
    k_stream_t *stream;
} drafter_config_t;

struct drafter_kind {
    const char *method;
    bool has_model; /* needs `model` of the option, and what is opened for it */

    weft_status_t (*create)(const drafter_config_t *config, weft_diag_t *diag,
                            drafter_t **drafter_out);
    void (*destroy)(drafter_t *drafter);
    /* As sched_events_t has it: n_drafts of each row with `most` is set, 0 where there is no guess. */
    void (*guess)(drafter_t *drafter, const sched_draft_t *rows, uint32_t n);
};

/* The first member of a kind's own struct. */
struct drafter {
    const drafter_kind_t *kind;
};

extern const char drafter_methods[]; /* all that there are, a blank before each */

/* NULL: no method of that name. */
const drafter_kind_t *drafter_find(const char *method);

weft_status_t drafter_create(const drafter_config_t *config, weft_diag_t *diag,
                             drafter_t **drafter_out);
void drafter_destroy(drafter_t *drafter); /* NULL is fine */
void drafter_guess(drafter_t *drafter, const sched_draft_t *rows, uint32_t n);
