/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_pool: fixed-size KV blocks and how many users each one has.
 *
 * A block is free (nobody refers to it; perhaps still cached: kv_index knows its hash) or held.
 * Free blocks wait in LRU order: alloc takes the one unused for longest, so a cached block lives
 * until its space is needed. Of one release, the tail of the chain becomes older than its head, so
 * that eviction never leaves a hole at a chain's front. A pinned block is never free.
 *
 * Owns     the slab (device memory) and every reference count
 * Threads  engine thread only
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/device.h"
#include "base/status.h"
#include "kvstore/kv_layout.h"

typedef struct kv_pool kv_pool_t;
typedef uint32_t kv_block_id_t;

#define KV_BLOCK_NONE UINT32_MAX

typedef struct kv_pool_config {
    weft_device_t *device; /* borrowed, outlives the pool */
    kv_layout_t layout;    /* group 0 is served by this pool */
    uint32_t n_blocks;
    uint32_t memory_flags; /* WEFT_MEM_* of the slab, besides WEFT_MEM_EXPORTABLE */
    /* Nobody else reads the slab: it need not be exportable, and a host's has large pages then. */
    bool is_private;
    /* Told before a free block that may be cached is given to a new user. May be NULL. */
    void (*on_reuse)(void *user, kv_block_id_t block);
    /* Told once behind those of an alloc: from then on the blocks' bytes may change. May be NULL. */
    void (*after_reuse)(void *user);
    void *user;
} kv_pool_config_t;

weft_status_t kv_pool_create(const kv_pool_config_t *config, kv_pool_t **pool_out);
void kv_pool_destroy(kv_pool_t *pool); /* NULL is fine */

/*
 * Takes n blocks, one reference each; all or nothing.
 * ids_out [n], written only on success.
 * WEFT_ERR_NO_BLOCKS: fewer than n are free.
 */
weft_status_t kv_pool_alloc(kv_pool_t *pool, uint32_t n, kv_block_id_t *ids_out);

/* One more reference to each; free (cached) blocks leave the free list. */
void kv_pool_acquire(kv_pool_t *pool, const kv_block_id_t *ids, uint32_t n);

/* One reference less to each; ids in chain order. At zero a block is free again, content kept. */
void kv_pool_release(kv_pool_t *pool, const kv_block_id_t *ids, uint32_t n);

/* A pinned block that nobody refers to keeps its content and is not given away. */
void kv_pool_pin(kv_pool_t *pool, kv_block_id_t id);   /* pinned ones are fine */
void kv_pool_unpin(kv_pool_t *pool, kv_block_id_t id); /* at zero references: free, the newest */
bool kv_pool_is_pinned(const kv_pool_t *pool, kv_block_id_t id);

/* The free block that is next older than id, the newest for KV_BLOCK_NONE; KV_BLOCK_NONE: the end. */
kv_block_id_t kv_pool_older(const kv_pool_t *pool, kv_block_id_t id);

uint32_t kv_pool_refs(const kv_pool_t *pool, kv_block_id_t id);
uint32_t kv_pool_free_blocks(const kv_pool_t *pool);
uint32_t kv_pool_held_blocks(const kv_pool_t *pool); /* somebody refers to them */
uint32_t kv_pool_total_blocks(const kv_pool_t *pool);
const kv_layout_t *kv_pool_layout(const kv_pool_t *pool);
const weft_mem_t *kv_pool_memory(const kv_pool_t *pool);
weft_device_t *kv_pool_device(const kv_pool_t *pool);
void *kv_pool_block(const kv_pool_t *pool, kv_block_id_t id); /* where its extent begins */
