/* SPDX-License-Identifier: Apache-2.0 */
/* sched_priv: the scheduler's state, for its own files. */
#pragma once

#include "runtime/sched.h"

#define SCHED_LOOKAHEAD 16 /* waiting sequences looked at for one that fits, or may read ahead */

/* Ordered by (priority, arrival, order); first is served first. */
typedef struct sched_list {
    sched_seq_t *first;
    sched_seq_t *last;
    uint32_t count;
} sched_list_t;

/* A planned row, remembered until its result comes. */
typedef struct sched_row {
    sched_seq_t *seq;
    uint32_t epoch;
    uint32_t flags;
    uint32_t start;
    uint32_t n_tokens;
    uint32_t n_drafts;
} sched_row_t;

typedef struct sched_flight {
    uint64_t step;
    uint32_t n_rows;
    sched_row_t *rows; /* [max_slots] */
} sched_flight_t;

struct sched {
    sched_config_t config;
    kv_pool_t *pool; /* the store's */
    uint32_t block_tokens;
    uint32_t table_blocks; /* of one slot */
    uint32_t budget;
    uint32_t left;        /* of the budget, while a plan is made */
    uint32_t most_prompt; /* tokens of prompts beside decodes */
    uint64_t next_order;
    sched_list_t waiting;
    sched_list_t running;
    uint32_t n_free_slots;
    uint32_t *free_slots;    /* [max_slots] */
    kv_block_id_t *tables;   /* [max_slots][table_blocks] */
    kv_block_id_t *scratch;  /* [table_blocks] */
    sched_draft_t *drafting; /* [max_slots], while a plan is made */
    sched_flight_t flights[SCHED_MAX_IN_FLIGHT];
    uint32_t first_flight;
    uint32_t n_flights;
    uint32_t n_pulls; /* of sequences that wait */
    sched_stats_t stats;
};

static inline bool sched_has_stages(const sched_t *sched)
{
    return sched->config.stages > 1;
}

void sched_list_insert(sched_list_t *list, sched_seq_t *seq);
void sched_list_remove(sched_list_t *list, sched_seq_t *seq);
bool sched_is_before(const sched_seq_t *a, const sched_seq_t *b);

kv_block_id_t *sched_table(const sched_t *sched, const sched_seq_t *seq);

/* Tokens that have to be in the cache for the next sampling (or, with max_tokens 0, at the end). */
uint32_t sched_goal(const sched_seq_t *seq);
bool sched_is_decode(const sched_seq_t *seq); /* one token left, and it follows sampled ones */

/* Whether computed blocks may be used: a prompt's log-probabilities need all of it computed. */
bool sched_looks_up(const sched_seq_t *seq);

/* Leaves its slot; its blocks are free, its history stays. */
void sched_unbind(sched_t *sched, sched_seq_t *seq);
void sched_preempt(sched_t *sched, sched_seq_t *seq);
void sched_finish(sched_t *sched, sched_seq_t *seq, engine_finish_t reason);

/* Makes room for the first `tokens` tokens by free blocks alone; returns how many have room. */
uint32_t sched_grow(sched_t *sched, sched_seq_t *seq, uint32_t tokens);
/* The same; takes from fetches, younger sequences and pins what is missing. */
uint32_t sched_grow_by_force(sched_t *sched, sched_seq_t *seq, uint32_t tokens);
/* Sequences that wait read from tiers what they will need, as far as blocks are unclaimed. */
void sched_fetch_for_waiting(sched_t *sched);
/* Whether seq has to be next: nothing runs, or too many came before it. */
bool sched_is_next(const sched_t *sched, const sched_seq_t *seq);
/* Frees blocks for a waiting sequence that has to be next; false: there is nobody to take from. */
bool sched_yield_to_waiting(sched_t *sched, const sched_seq_t *seq);
bool sched_is_landing(const sched_t *sched); /* blocks of given up readings will be free soon */
bool sched_is_fetching(const sched_seq_t *seq);
void sched_end_fetch(sched_t *sched, sched_seq_t *seq); /* none is fine */
/* The same, once what it read has been found by name; blocks that it could not fill are free. */
void sched_take_fetched(sched_t *sched, sched_seq_t *seq);

/* What waiting sequences pulled gets its names; failures are told; more pulls begin. */
void sched_pull_for_waiting(sched_t *sched);
/* Its pull has not ended, and did not fail. */
bool sched_is_pulling(const sched_t *sched, const sched_seq_t *seq);
/* It has blocks that a pull fills or filled. */
bool sched_holds_pulled(const sched_seq_t *seq);
/* Tokens that are in its pulled blocks, of those that need not be computed. */
uint32_t sched_pulled_tokens(const sched_t *sched, const sched_seq_t *seq);
/* The first n of them go to table; the pull ends, the others are free. */
void sched_take_pulled(sched_t *sched, sched_seq_t *seq, uint32_t n, kv_block_id_t *table);
void sched_end_pull(sched_t *sched, sched_seq_t *seq); /* none is fine */

/* The sequence's blocks are about to be given up, and how. */
void sched_retract_lease(sched_t *sched, sched_seq_t *seq);
void sched_close_lease(sched_t *sched, sched_seq_t *seq, engine_finish_t reason);
void sched_tell_lease(sched_t *sched, sched_seq_t *seq); /* how many tokens are computed */

/* Before other than a step writes to free blocks: a step in flight may still write to them. */
void sched_settle(const sched_t *sched);

kv_chain_t sched_chain(const sched_seq_t *seq, uint32_t n); /* of its first n known hashes */
void sched_hash_block(sched_t *sched, sched_seq_t *seq, uint32_t i); /* of i + 1 known ones */
uint32_t sched_blocks_for(const sched_t *sched, uint32_t tokens);
void sched_name_blocks(sched_t *sched, sched_seq_t *seq);

/* Free blocks that no running sequence needs for the history it has. */
uint32_t sched_unclaimed_blocks(const sched_t *sched);

/* Moves seq from the waiting list into a slot with all blocks that are there already. */
bool sched_admit(sched_t *sched, sched_seq_t *seq);
