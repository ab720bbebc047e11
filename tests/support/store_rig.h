/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_rig: a small store, and chains whose blocks' bytes follow from their hashes, so that whatever
 * comes back from a tier can be checked. Everything asserts.
 */
#pragma once

#include <semaphore.h>

#include "kvstore/kv_store.h"
#include "tests/support/check.h"

enum {
    STORE_RIG_TOKENS = 4,
    STORE_RIG_BLOCKS = 8,
    STORE_RIG_MAX_CHAIN = 16,
    STORE_RIG_BLOCK_BYTES = STORE_RIG_TOKENS * 8
};

/* A store of 8 blocks, and chains whose blocks' bytes follow from their hashes. */
typedef struct store_rig {
    weft_device_t *device;
    kv_store_t *store;
    kv_pool_t *pool;
    kv_hasher_t *hasher;
    kv_store_config_t config;
    sem_t woken;
    char folder[64];
} store_rig_t;

typedef struct store_rig_chain {
    int32_t tokens[STORE_RIG_MAX_CHAIN * STORE_RIG_TOKENS];
    kv_hash_t hashes[STORE_RIG_MAX_CHAIN];
    kv_chain_t chain;
    kv_block_id_t blocks[STORE_RIG_MAX_CHAIN];
} store_rig_chain_t;

/* Opened, with tiers of these sizes (0: none), the disk admitting all; config may be changed for another open. */
void store_rig_init(store_rig_t *rig, size_t host_blocks, size_t disk_bytes);
void store_rig_fini(store_rig_t *rig);
void store_rig_open(store_rig_t *rig);
/* Of n blocks with tokens base, base + 1 … */
void store_rig_chain(store_rig_t *rig, store_rig_chain_t *chain, int32_t base, uint32_t n);
/* Names the chain anew, after its tokens were changed. */
void store_rig_hash(store_rig_t *rig, store_rig_chain_t *chain);
/* As a sequence does: takes blocks, fills them, names them, lets go. */
void store_rig_compute(store_rig_t *rig, store_rig_chain_t *chain);
/* Computes a chain as large as the device. */
void store_rig_push_out(store_rig_t *rig, int32_t base);
/* Leading blocks there; which, in chain->blocks. */
uint32_t store_rig_on_device(store_rig_t *rig, store_rig_chain_t *chain);
/* Exactly n leading blocks are on the device, with the right bytes. */
void store_rig_assert_content(store_rig_t *rig, store_rig_chain_t *chain, uint32_t n);
/* Until a fetch (NULL: none) is done and writes have landed. */
void store_rig_settle(store_rig_t *rig, const kv_fetch_t *fetch);
/* Blocks that came back, and from where. */
uint32_t store_rig_fetch(store_rig_t *rig, store_rig_chain_t *chain, uint32_t first,
                         uint32_t counts[KV_TIER_COUNT]);
