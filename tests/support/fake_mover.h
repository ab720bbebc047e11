/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_mover: a peer of the scheduler that prefills and reads as kv_transfer does, for the "KV" of
 * fake_executor.h. Its pulls come block by block, fail, stall, and go on writing for a while after
 * they were ended; its leases look at every block they are told of. Everything asserts.
 */
#pragma once

#include "runtime/sched/sched.h"
#include "tests/support/random.h"

enum { FAKE_MOVER_MAX = 64, FAKE_MOVER_MAX_BLOCKS = 192, FAKE_MOVER_NEVER = UINT32_MAX };

typedef struct fake_mover fake_mover_t;

/* Borrows the pool. */
fake_mover_t *fake_mover_create(kv_pool_t *pool, uint64_t seed);
void fake_mover_destroy(fake_mover_t *mover); /* asserts that it holds nothing; NULL is fine */
const sched_mover_t *fake_mover_ops(fake_mover_t *mover);

/* Does a little of what there is to do, at random. */
void fake_mover_poll(fake_mover_t *mover);
/* Whether polls will bring about something: pulls that run or land, blocks kept for readers. */
bool fake_mover_is_busy(const fake_mover_t *mover);

/* tokens [n_prompt] are borrowed; it fails once fails_at of them are there. */
kv_pull_t *fake_mover_pull(fake_mover_t *mover, const int32_t *tokens, uint32_t n_prompt,
                           uint32_t fails_at);
void fake_pull_stall(kv_pull_t *pull, bool is_stalled);   /* polls pass it by */
void fake_pull_bring(kv_pull_t *pull, uint32_t n_blocks); /* so many more, at once */

/* A lease on blocks of tokens, which grow. */
kv_lease_t *fake_mover_open(fake_mover_t *mover, const int32_t *tokens);
/* As kv_transfer_hold: references of its own, and what is in the blocks is looked at to the end. */
void fake_mover_hold(fake_mover_t *mover, kv_lease_t *lease, const int32_t *tokens,
                     const kv_block_id_t *blocks, uint32_t n, uint32_t n_tokens);

typedef struct fake_mover_stats {
    uint32_t pulled; /* whole */
    uint32_t failed;
    uint32_t given_up;  /* ended while they ran */
    uint32_t unstarted; /* ended before that */
    uint32_t told;      /* times that a lease was told of more tokens */
    uint32_t held;
    uint32_t retracted;
    uint32_t dropped;
} fake_mover_stats_t;

fake_mover_stats_t fake_mover_stats(const fake_mover_t *mover);
