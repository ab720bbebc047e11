/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_trial: one operation of a group after another, each held against coll_model byte for byte, in the
 * memory of whatever device the ranks have. All ranks make the same calls.
 */
#pragma once

#include "tests/support/coll_model.h"
#include "tests/support/coll_rig.h"

#define COLL_TRIAL_BYTES ((size_t)3 << 20) /* of an input or output, with what guards it */

typedef struct coll_trial {
    coll_rig_rank_t *self;
    coll_t *coll;
    weft_mem_t in; /* [COLL_TRIAL_BYTES] each, of the device */
    weft_mem_t out;
    char *host; /* [COLL_TRIAL_BYTES] each: what is put there or was found, and what ought to be */
    char *expected;
    uint64_t round; /* the next operation's number, of which its input is made */
} coll_trial_t;

typedef struct coll_variant {
    coll_dtype_t dtype;
    size_t shift; /* elements off alignment */
    bool is_in_place;
    uint32_t root;
} coll_variant_t;

/* A group of all ranks by backend. */
void coll_trial_open(coll_trial_t *trial, coll_rig_rank_t *self, const char *backend);
void coll_trial_close(coll_trial_t *trial); /* its operations must have gone well */

void coll_trial_all_reduce(coll_trial_t *trial, size_t n, coll_variant_t variant);
void coll_trial_reduce_scatter(coll_trial_t *trial, size_t n, coll_variant_t variant);
void coll_trial_all_gather(coll_trial_t *trial, size_t bytes, coll_variant_t variant);
void coll_trial_broadcast(coll_trial_t *trial, size_t bytes, coll_variant_t variant);
/* Both ways at once: each rank sends as many as go ahead to every other, then receives. */
void coll_trial_pairs(coll_trial_t *trial, size_t bytes);

/* ---- for other operations ---------------------------------------------------------------------- */

/* To and from the device, in the queue's order. */
void coll_trial_copy(const coll_trial_t *trial, void *to, const void *from, size_t bytes);
/* Until this rank's queue has ended. */
void coll_trial_await(const coll_trial_t *trial);
/* Where an output begins: guarded on both sides, `shift` bytes off alignment. */
char *coll_trial_output(const coll_trial_t *trial, size_t bytes, size_t shift);
/* It is as expected, and nothing was written beside it. */
void coll_trial_check(const coll_trial_t *trial, const char *out, size_t bytes);
