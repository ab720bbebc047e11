/* SPDX-License-Identifier: Apache-2.0 */
/*
 * constraint: a sample's walk through its grammar, whose masks are made on a thread of their own,
 * so that a slow grammar delays constrained requests, never a step.
 *
 * A constraint is the engine thread's, but the worker's while it is CONSTRAINT_BUSY. The first
 * advance makes the first mask; later ones follow a sampled token.
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "runtime/engine/mailbox.h"
#include "text/text.h"

typedef enum constraint_state {
    CONSTRAINT_NEW,
    CONSTRAINT_BUSY,
    CONSTRAINT_READY, /* mask says what may come next */
    CONSTRAINT_FAILED /* status and diag say why; for good */
} constraint_state_t;

typedef struct constraint {
    mailbox_item_t item;
    text_matcher_t *matcher; /* NULL: unconstrained */
    uint32_t *mask;          /* [words], the owner's memory */
    size_t words;
    int32_t token;        /* to take before the mask is made; -1: none */
    atomic_int state;     /* constraint_state_t; released by the worker, acquired by the engine */
    weft_status_t status; /* WEFT_ERR_INVALID: the grammar cannot go on */
    weft_diag_t *diag;    /* the owner's memory */
    void *user;
} constraint_t;

typedef struct constraint_worker constraint_worker_t;

/* on_done is called on the worker's thread, when it has let go of the constraint. */
weft_status_t constraint_worker_create(void (*on_done)(void *user, constraint_t *constraint),
                                       void *user, constraint_worker_t **worker_out);
void constraint_worker_destroy(constraint_worker_t *worker); /* NULL is fine; finishes its work */

/* Makes the next mask, after token (-1: the first). */
void constraint_advance(constraint_worker_t *worker, constraint_t *constraint, int32_t token);
constraint_state_t constraint_state(const constraint_t *constraint);
void constraint_fini(constraint_t *constraint); /* destroys the matcher; not while BUSY */
