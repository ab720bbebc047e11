/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sched_rig: a scheduler over a store, with the fake executor in a model's place. Its sequences know
 * what they should answer. Everything asserts.
 */
#pragma once

#include <semaphore.h>

#include "runtime/sched/sched.h"
#include "tests/support/check.h"
#include "tests/support/fake_executor.h"
#include "tests/support/fake_mover.h"
#include "tests/support/random.h"

enum { SCHED_RIG_VOCAB = 97, SCHED_RIG_MAX_SEQS = 48, SCHED_RIG_MAX_CONTEXT = 160 };

/* One sequence and what it should answer. */
typedef struct sched_rig_seq {
    sched_seq_t seq;
    int32_t tokens[SCHED_RIG_MAX_CONTEXT + 1];
    kv_hash_t hashes[SCHED_RIG_MAX_CONTEXT];
    int32_t expected[SCHED_RIG_MAX_CONTEXT + 1];
    uint32_t n_expected; /* prompt included */
    engine_finish_t expected_finish;
    int32_t stop_id;
    k_bias_t bias[3];
    uint32_t n_prompt_entries;
    uint32_t finishes;
    uint32_t retirements;
    sched_mask_t mask_end; /* READY: it has masks for ever */
    bool is_aborted;
    kv_block_id_t pulled[SCHED_RIG_MAX_CONTEXT];
    bool has_lease; /* is_kept, and told of from its first step on */
    bool has_pull_failed;
    int32_t drafts[STEP_MAX_DRAFTS]; /* it speculates: seq.drafts */
    uint32_t holds;
    uint32_t held_tokens;
} sched_rig_seq_t;

typedef struct sched_rig {
    weft_device_t *device;
    kv_store_t *store;
    kv_pool_t *pool; /* the store's */
    kv_hasher_t *hasher;
    sched_t *sched;
    step_plan_t *plan;
    fake_executor_t *fake;
    fake_mover_t *mover;
    step_limits_t limits;
    test_random_t random;
    bool is_mask_late;     /* sometimes */
    sched_rig_seq_t *seqs; /* [SCHED_RIG_MAX_SEQS] */
    uint32_t n_seqs;
    uint32_t settles; /* asked for by the scheduler */
    bool is_caching;
    sem_t tiers_moved; /* posted by tiers that have something for the store */
} sched_rig_t;

typedef struct sched_rig_shape {
    uint32_t block_tokens;
    uint32_t n_blocks;
    uint32_t slots;
    uint32_t step_tokens;
    bool is_cached;
    uint32_t host_blocks; /* of a tier below, 0: none */
    uint32_t stages;      /* of the model; 0 or 1: one */
    uint32_t max_drafts;
    const kv_tier_ops_t *const *tiers; /* NULL: the store's own */
} sched_rig_shape_t;

void sched_rig_init(sched_rig_t *rig, const sched_rig_shape_t *shape);
/* Its prompt comes from a peer, which is gone after fails_at tokens of it. Before submit. */
void sched_rig_pull(sched_rig_t *rig, sched_rig_seq_t *t, uint32_t fails_at);
/* Asserts that no block is held. */
void sched_rig_fini(sched_rig_t *rig);
/* A sequence with the given prompt, not yet submitted. */
sched_rig_seq_t *sched_rig_add(sched_rig_t *rig, const int32_t *prompt, uint32_t n_prompt,
                               uint32_t max_tokens);
void sched_rig_submit(sched_rig_t *rig, sched_rig_seq_t *t);
/* Plans and launches; waits for tiers when that is all there is to do. Rows of the plan. */
uint32_t sched_rig_launch(sched_rig_t *rig);
void sched_rig_commit(sched_rig_t *rig);
uint32_t sched_rig_step(sched_rig_t *rig);
void sched_rig_run(sched_rig_t *rig);
void sched_rig_assert_answered(const sched_rig_seq_t *t);
/* Tokens that depend on base and place. */
void sched_rig_fill_prompt(int32_t *prompt, uint32_t n, int32_t base);
/* Computes what it should answer; submit does, too. */
void sched_rig_expect(sched_rig_seq_t *t);
