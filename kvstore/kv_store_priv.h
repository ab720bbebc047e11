/* SPDX-License-Identifier: Apache-2.0 */
/* kv_store_priv: the store's state, for its own files. */
#pragma once

#include "kvstore/kv_reuse.h"
#include "kvstore/kv_store.h"
#include "kvstore/remote/kv_offer_server.h"

#define KV_STORE_MAX_FETCHES 64

/* What reading a block and computing a token cost lately: means that forget. */
typedef struct kv_store_costs {
    double read_block_ns[KV_TIER_COUNT]; /* 0: not known yet */
    double compute_token_ns;
    uint32_t declined; /* in a row: now and then reading is tried again */
} kv_store_costs_t;

typedef enum kv_read_state {
    KV_READ_QUEUED,
    KV_READ_POSTED,
    KV_READ_DONE,
    KV_READ_FAILED
} kv_read_state_t;

/* A device block that a fetch holds. */
typedef struct kv_read {
    kv_fetch_t *fetch;
    kv_block_id_t next; /* of the chain, or KV_BLOCK_NONE, so for prev */
    kv_block_id_t prev;
    kv_tier_id_t tier;
    kv_read_state_t state;
} kv_read_t;

struct kv_fetch {
    bool is_active;
    bool is_ended;      /* nobody waits for it any more */
    bool is_failed;     /* blocks from to_name on are not to be had */
    kv_block_id_t last; /* of its blocks, or KV_BLOCK_NONE, so for each */
    kv_block_id_t to_post;
    kv_block_id_t to_name;
    uint32_t n_posted; /* and not yet done */
    uint32_t n_blocks;
    uint32_t counts[KV_TIER_COUNT];
};

/* What a tier's callbacks are given. */
typedef struct kv_store_hook {
    kv_store_t *store;
    kv_tier_id_t tier;
} kv_store_hook_t;

struct kv_store {
    kv_store_config_t config;
    uint32_t block_tokens;
    kv_pool_t *pool;
    kv_names_t *names;    /* NULL: not caching */
    kv_names_t *arrivals; /* blocks being read; NULL without tiers */
    kv_tier_t
        *tiers[KV_TIER_COUNT]; /* NULL: not there, and the device's, which is pool and names */
    kv_store_hook_t hooks[KV_TIER_COUNT];
    kv_offer_t *offer; /* NULL: nothing is offered to peers */
    kv_offer_server_t *offer_server;
    uint32_t shelf; /* of the device's blocks in offer */
    bool has_shelf;
    kv_reuse_t *reuse;    /* with tiers */
    kv_block_id_t *ahead; /* [n_blocks], a circle: blocks to write ahead of eviction */
    uint32_t first_ahead;
    uint32_t n_ahead;
    kv_read_t *reads; /* [n_blocks], with tiers */
    kv_fetch_t fetches[KV_STORE_MAX_FETCHES];
    uint32_t n_fetches;
    bool is_taking; /* a fetch its blocks: what went down for them is waited for at the end */
    kv_block_id_t *pinned; /* [max_pinned_blocks] */
    uint32_t n_pinned;
    uint64_t evictions;  /* of named device blocks */
    uint64_t save_until; /* weft_clock_ns(), while the store is being destroyed; else 0 */
    uint64_t n_saved;
    void (*on_saved)(void *user); /* after each put meanwhile, or NULL */
    void *save_user;
    kv_store_costs_t costs;
    kv_store_stats_t stats;
};

/* Block i of the chain, as tiers and events want it. */
kv_name_t kv_chain_name(const kv_chain_t *chain, uint32_t i, uint32_t block_tokens);

/* kv_store_up.c: no block that has not arrived is ever named. */
void kv_store_fail_fetches(kv_store_t *store);

/* A complete block joins the index; false: another one with this content is there already. */
bool kv_store_adopt(kv_store_t *store, const kv_name_t *name, kv_block_id_t block);

/* The device's block can be read by peers from now on; no more, before its bytes change. */
void kv_store_offer_block(kv_store_t *store, const kv_hash_t *hash, kv_block_id_t block);
void kv_store_take_back(kv_store_t *store, kv_block_id_t block);

/* kv_store_down.c: the pool's on_reuse and after_reuse; what tiers are given to call; the end of them. */
void kv_store_evict(void *user, kv_block_id_t block);
void kv_store_finish_evicts(void *user);
void kv_store_on_tier_stored(void *user, const kv_name_t *name);
void kv_store_on_tier_removed(void *user, const kv_hash_t *hash);
void kv_store_on_tier_evict(void *user, const kv_name_t *name, const void *content);
void kv_store_close_tiers(kv_store_t *store);

/*
 * Once the tiers above have had to give up blocks, those that would go to the disk are written while
 * they are still in use: given up many at a time, they would find it busy.
 */
void kv_store_queue_ahead(kv_store_t *store, kv_block_id_t block);
void kv_store_write_ahead(kv_store_t *store); /* as much as the disk takes now */
