/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_index: which block holds the content with a given hash.
 *
 * Threads  engine thread only
 * Memory   all made at create; a block has at most one hash and is found by it until removed
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kvstore/hash/kv_hash.h"
#include "kvstore/kv_pool.h"

typedef struct kv_index kv_index_t;

weft_status_t kv_index_create(uint32_t n_blocks, kv_index_t **index_out);
/* For tests: where hashes go follows from key (odd) instead of from a random number. */
weft_status_t kv_index_create_keyed(uint32_t n_blocks, uint64_t key, kv_index_t **index_out);
void kv_index_destroy(kv_index_t *index); /* NULL is fine */

/*
 * Names block. If another block already has this hash the index keeps that one and says so: the
 * caller's block stays private. Returns the block the hash now leads to.
 */
kv_block_id_t kv_index_insert(kv_index_t *index, const kv_hash_t *hash, kv_block_id_t block);

/* KV_BLOCK_NONE when unknown. */
kv_block_id_t kv_index_find(const kv_index_t *index, const kv_hash_t *hash);

/* How many leading hashes are present; their blocks in blocks_out [n]. */
uint32_t kv_index_match(const kv_index_t *index, const kv_hash_t *hashes, uint32_t n,
                        kv_block_id_t *blocks_out);

/* The hash that leads to block; NULL: unnamed. Valid until the block is removed. */
const kv_hash_t *kv_index_hash(const kv_index_t *index, kv_block_id_t block);

void kv_index_remove(kv_index_t *index, kv_block_id_t block); /* unnamed blocks are fine */
void kv_index_clear(kv_index_t *index);
uint32_t kv_index_count(const kv_index_t *index);
