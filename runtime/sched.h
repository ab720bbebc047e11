/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sched: decides, step by step, which tokens of which sequences run, and in which KV blocks.
 *
 * A sequence is one sample of a request. It waits (ordered by priority, then arrival), runs in a
 * slot, and is done. A step takes all decodes first, one token each, then chunks of prefills, the
 * oldest first, up to the token budget; a prefill longer than what is left of the budget leaves
 * half of it to those behind.
 *
 * Blocks     taken as tokens need them; full ones are named in the index, and found by their names
 *            when a sequence is admitted. When none is free the youngest running sequence goes back
 *            to wait and will compute its history again; the oldest is never preempted, so there is
 *            always progress
 * Admission  only when a sequence's whole known history fits beside what the running ones still
 *            need; one that does not fit yet may be overtaken SCHED_MAX_OVERTAKEN times.
 *            One whose next block an earlier sequence is computing waits for that block
 * Tiers      what follows of a waiting sequence in a tier below the device is read while others
 *            compute; it is admitted once that has ended, and finds the blocks by their names. Its
 *            reading gives way to running sequences that need the blocks
 * Pulls      a waiting sequence whose prompt another worker computes takes free blocks for it, which
 *            fill in the background; it is admitted once they have, and computes the prompt's last
 *            token alone. Its pull gives way as readings do; what did not come is computed
 * Leases     blocks of a sequence that another worker will read are told of as they fill, and handed
 *            to on_hold before they are given up
 * Drafts     a sequence that speculates is asked about before each of its tokens: what is guessed to
 *            follow is computed with it, as far as budget and free blocks are left over, and what was
 *            guessed right is the answer's, several tokens of one step. Such a sequence is planned
 *            again only when the step before is committed: until then nobody knows its newest token
 * Pipeline   plan / execute / commit: up to SCHED_MAX_IN_FLIGHT plans may be out; commits come in
 *            plan order. Where the model lies in stages, one on each of several ranks, a plan is to
 *            leave work for those that follow: it has the decodes of a part of the running
 *            sequences, and none whose newest token a plan in flight samples, since only the last
 *            stage would know it. Steps must execute in plan order: a block may be given away while the step
 *            before still writes to it. What writes to blocks otherwise, a fetch or a pull, begins
 *            after settle when a step in flight has rows of a sequence that left its slot
 *
 * Threads    one; nothing here allocates after create, locks or waits
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "kvstore/kv_store.h"
#include "kvstore/transfer/kv_transfer.h"
#include "runtime/engine.h"
#include "runtime/executor.h"
#include "runtime/step_plan.h"

#define SCHED_MAX_IN_FLIGHT 8
#define SCHED_MAX_OVERTAKEN 64

typedef struct sched sched_t;
typedef struct sched_seq sched_seq_t;

typedef enum sched_seq_state {
    SCHED_SEQ_NEW,
    SCHED_SEQ_WAITING,
    SCHED_SEQ_RUNNING,
    SCHED_SEQ_DONE
} sched_seq_state_t;

struct sched_seq {
    /* Set before submit, constant until retired. Arrays are borrowed. */
    int32_t *tokens;   /* [n_prompt + max_tokens]: the prompt; sampled tokens are appended */
    kv_hash_t *hashes; /* [full blocks of that], NULL: no names, no lookups */
    uint32_t n_hashes; /* already known */
    kv_extra_t *extra; /* of the hashes, or NULL */
    uint32_t n_prompt;
    uint32_t max_tokens; /* 0: only the prompt is computed */
    int64_t priority;
    uint64_t arrival_ns;
    step_sampling_t sampling;
    const k_bias_t *bias;
    uint32_t n_bias;
    uint32_t adapter;        /* as k_seq_t has it */
    const int32_t *stop_ids; /* any of them ends the answer; end tokens included, unless ignored */
    uint32_t n_stop_ids;
    bool wants_prompt_logprobs;
    bool wants_embedding;  /* with max_tokens 0: of its last token */
    bool pins_prompt;      /* keeps its full blocks on the device, as far as the quota goes */
    bool has_mask;         /* sampled under a mask: see sched_events_t */
    sched_seq_t *sibling;  /* ring of the samples of one prompt; itself when alone */
    kv_pull_t *pull;       /* of its prompt, the scheduler's from submit on; NULL: none, or over */
    kv_block_id_t *pulled; /* [full or not of n_prompt - 1 tokens], with pull */
    bool needs_pull;       /* if that fails, so does the sequence */
    bool is_kept;          /* its blocks are for on_hold */
    int32_t *drafts; /* [limits.max_drafts] of its next tokens, written by draft; NULL: it does not
                      * speculate. Neither penalties nor has_mask with it */
    kv_lease_t *lease; /* may be set by on_scheduled; told of blocks as they fill. Or NULL */
    void *user;

    /* Read by the owner. */
    uint32_t n_tokens;                          /* prompt and answer so far */
    uint32_t cached_tokens;                     /* found when first scheduled */
    uint32_t cached_blocks_from[KV_TIER_COUNT]; /* of them, those read from tiers for it */
    uint32_t pulled_tokens;                     /* of cached_tokens, those that a peer computed */
    uint32_t preemptions;
    engine_finish_t finish;

    /* The scheduler's own. */
    sched_seq_state_t state;
    sched_seq_t *next;
    sched_seq_t *prev;
    uint64_t order;     /* of submission: the last tie-break */
    uint32_t slot;      /* while running */
    uint32_t n_blocks;  /* of the slot's table */
    uint32_t n_told;    /* of them, those the executor knows */
    uint32_t planned;   /* tokens in the cache once every planned step is done */
    uint32_t computed;  /* tokens in the cache */
    uint32_t n_named;   /* blocks in the index, or known to be there under another id */
    uint32_t pending;   /* sampled by steps in flight */
    uint32_t in_flight; /* rows in flight */
    uint32_t epoch;     /* changes when the sequence leaves its slot */
    uint32_t grant;     /* tokens in the plan being made */
    uint32_t n_drafts;  /* behind them, or behind the row in flight; set by draft */
    uint32_t overtaken;
    uint32_t blocked_at;       /* blocks that were free and unclaimed when it last did not fit */
    kv_fetch_t *fetch;         /* while waiting, of what it reads from tiers, or NULL */
    uint32_t fetch_blocked_at; /* the same, for reading */
    bool has_fetched;          /* since it waits: no second time */
    bool is_awaiting_read;     /* of its next block, for another sequence; or for peers to say */
    uint32_t n_pulled;         /* blocks in pulled; 0: the pull has not begun */
    uint32_t n_pulled_first;   /* of them, those that were here before it */
    uint32_t n_pulled_named;
    bool is_pull_told;    /* that it failed */
    bool is_pull_blocked; /* it did not begin, for lack of blocks */
    bool goes_on;         /* from what was seen before: see kv_store_begin */
    bool is_bound;        /* the executor knows the slot is its */
    bool was_scheduled;
    bool is_prompt_reported;
};

typedef enum sched_mask {
    SCHED_MASK_READY,
    SCHED_MASK_LATER,
    SCHED_MASK_EMPTY, /* no token may follow: ENGINE_FINISH_CONSTRAINT */
    SCHED_MASK_FAILED /* ENGINE_FINISH_ERROR */
} sched_mask_t;

/* A sequence that speculates, as draft sees it before a step. No row of it samples in flight. */
typedef struct sched_draft {
    sched_seq_t *seq;
    const kv_block_id_t *blocks; /* [n_blocks] its table */
    uint32_t n_blocks;
    uint32_t
        most; /* tokens that a guess may have: blocks have room for them; 0: none is wanted now */
} sched_draft_t;

/* Called from within plan, commit, submit and abort. */
typedef struct sched_events {
    void *user;
    void (*on_scheduled)(void *user, sched_seq_t *seq); /* the first time it runs */
    void (*on_token)(void *user, sched_seq_t *seq, const k_sampled_t *sampled);
    /* About prompt tokens first … first + n - 1. */
    void (*on_prompt)(void *user, sched_seq_t *seq, uint32_t first, const k_sampled_t *entries,
                      uint32_t n);
    /* Of a sequence with wants_embedding; hidden: its state as activations, valid during the call. */
    void (*on_embedding)(void *user, sched_seq_t *seq, const void *hidden);
    void (*on_finish)(void *user, sched_seq_t *seq);  /* seq->finish says how; blocks are free */
    void (*on_retired)(void *user, sched_seq_t *seq); /* after on_finish: nothing refers to it */
    /* For sequences with has_mask. EMPTY and FAILED end the sequence. */
    sched_mask_t (*mask_state)(void *user, sched_seq_t *seq);
    void (*write_mask)(void *user, sched_seq_t *seq); /* the row will be sampled under it */
    /*
     * Before a step: sequences that speculate and run, each with the history it has so far, also those
     * whose prompt is being computed. Sets n_drafts of each that has `most`, and so many of its drafts.
     * NULL: none speculates.
     */
    void (*draft)(void *user, const sched_draft_t *rows, uint32_t n);
    /* Its pull failed; it is computed here, or ends with ENGINE_FINISH_ERROR (needs_pull). */
    void (*on_pull_failed)(void *user, sched_seq_t *seq, weft_status_t status, const char *reason);
    /*
     * A sequence that is_kept is about to end by length or stop: n_tokens of it are in blocks [n],
     * which are given up when this returns. seq->lease is the callee's.
     */
    void (*on_hold)(void *user, sched_seq_t *seq, const kv_block_id_t *blocks, uint32_t n,
                    uint32_t n_tokens);
    /*
     * Returns when the device has done with the steps in flight; their results stay to be committed.
     * NULL: steps are done as soon as they are launched.
     */
    void (*settle)(void *user);
} sched_events_t;

/* What moves blocks between workers: kv_transfer.h, where each is explained, or a test. */
typedef struct sched_mover {
    void *user;
    weft_status_t (*pull_start)(kv_pull_t *pull, uint32_t first, const kv_block_id_t *blocks,
                                uint32_t n);
    weft_status_t (*pull_state)(const kv_pull_t *pull);
    const char *(*pull_reason)(const kv_pull_t *pull);
    uint32_t (*pull_tokens)(const kv_pull_t *pull);
    void (*pull_end)(kv_pull_t *pull);
    void (*lease_progress)(kv_lease_t *lease, const kv_block_id_t *blocks, uint32_t n,
                           uint32_t n_tokens);
    void (*lease_retract)(kv_lease_t *lease);
    void (*lease_drop)(kv_lease_t *lease);
    uint32_t (*landing_blocks)(const void *user); /* of ended pulls: free soon */
    void (*count_held)(const void *user, uint32_t *users);
} sched_mover_t;

typedef struct sched_config {
    kv_store_t *store;   /* borrowed, so for each */
    kv_hasher_t *hasher; /* of sequences that have hashes */
    step_limits_t limits;
    uint32_t stages; /* of the model; 0 or 1: one, which knows what it sampled */
    sched_events_t events;
    const sched_mover_t *mover; /* NULL: no sequence has a pull or a lease */
} sched_config_t;

typedef struct sched_stats {
    uint32_t running; /* sequences */
    uint32_t waiting;
    uint64_t steps;
    uint64_t preemptions;
    uint64_t prefix_queries; /* prompt tokens of sequences scheduled for the first time */
    uint64_t prefix_hits;    /* of them, found in the cache */
    uint64_t pull_queries;   /* prompt tokens that a peer was to bring */
    uint64_t pull_hits;      /* of them, those that it did */
    uint64_t prompt_tokens;  /* of sequences scheduled for the first time */
    uint64_t sampled_tokens;
    uint64_t drafts; /* rows that had any */
    uint64_t draft_tokens;
    uint64_t
        accepted[STEP_MAX_DRAFTS]; /* of them, those that were right, by their place in a draft */
    uint32_t last_step_tokens;
    uint32_t last_step_prompt; /* of them, those of prompts */
} sched_stats_t;

/* limits that hold whatever sched plans, from slots, tokens of a step and of a sequence. */
step_limits_t sched_limits(uint32_t max_slots, uint32_t max_tokens, uint32_t max_context,
                           uint32_t block_tokens, uint32_t max_drafts);

/* WEFT_ERR_INVALID: fewer tokens in a step than slots. */
weft_status_t sched_create(const sched_config_t *config, sched_t **sched_out);
void sched_destroy(sched_t *sched); /* NULL is fine; no sequence may be submitted */

/* WEFT_ERR_TOO_LARGE: could never run here, even alone. */
weft_status_t sched_submit(sched_t *sched, sched_seq_t *seq);

/* Blocks are free when it returns. on_finish follows at once unless the sequence is done. */
void sched_abort(sched_t *sched, sched_seq_t *seq, engine_finish_t reason);
void sched_abort_all(sched_t *sched, engine_finish_t reason);

/* What its pull has not brought is computed; without one nothing happens. */
void sched_give_up_pull(sched_t *sched, sched_seq_t *seq);

/*
 * The next step, into plan; the number of its rows. 0: nothing can be computed now (nothing to do,
 * or everything waits for a commit or a mask), and no step was begun.
 */
uint32_t sched_plan(sched_t *sched, step_plan_t *plan);
uint32_t sched_in_flight(const sched_t *sched);

/* Tokens of prompts in a step that has decodes, from the next plan on; at first there is no limit. */
void sched_set_prompt_tokens(sched_t *sched, uint32_t most);

/* Applies the result of the oldest plan in flight. */
void sched_commit(sched_t *sched, const step_result_t *result);

/*
 * No result of a plan in flight will come: the device failed, or a rank was lost. sched_abort_all or
 * sched_preempt_all goes with it.
 */
void sched_forget_flights(sched_t *sched);

sched_stats_t sched_stats(const sched_t *sched);
bool sched_is_empty(const sched_t *sched); /* nothing waits or runs */

void sched_preempt_all(sched_t *sched);
/* What waiting sequences pull, or have pulled, is worth nothing: as if it had failed. */
void sched_fail_pulls(sched_t *sched, weft_status_t status, const char *reason);

/* For tests: preempts the nth running sequence (modulo their number); plans within fewer tokens. */
void sched_preempt_nth(sched_t *sched, uint32_t nth);
void sched_set_budget(sched_t *sched, uint32_t tokens);

/* Aborts the process unless blocks, tables and fetches agree with each other. Slow. */
void sched_check(const sched_t *sched);
