/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_names: which content the blocks of one pool hold: found by hash, and whole enough to be
 * announced or moved elsewhere.
 *
 * Threads  engine thread only
 * Memory   all made at create; a block has at most one name, a hash at most one block
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kvstore/hash/kv_extra.h"
#include "kvstore/hash/kv_hash.h"
#include "kvstore/kv_pool.h"

/* What a block is called, and what it takes to announce it. Borrowed for a call. */
typedef struct kv_name {
    kv_hash_t hash;
    kv_hash_t parent;
    bool is_first;         /* of its chain: parent means nothing */
    const int32_t *tokens; /* [block_tokens] */
    kv_extra_t *extra;     /* or NULL; who keeps it takes a reference */
} kv_name_t;

typedef struct kv_names kv_names_t;

weft_status_t kv_names_create(uint32_t n_blocks, uint32_t block_tokens, kv_names_t **names_out);
void kv_names_destroy(kv_names_t *names); /* NULL is fine */

/*
 * Names block. If another block already has this hash that one keeps it and is returned: the
 * caller's block stays unnamed. Otherwise returns block.
 */
kv_block_id_t kv_names_put(kv_names_t *names, const kv_name_t *name, kv_block_id_t block);

kv_block_id_t kv_names_find(const kv_names_t *names, const kv_hash_t *hash); /* or KV_BLOCK_NONE */

/* How many leading hashes are present; their blocks in blocks_out [n]. */
uint32_t kv_names_match(const kv_names_t *names, const kv_hash_t *hashes, uint32_t n,
                        kv_block_id_t *blocks_out);

/* False: unnamed. What name_out points to is valid until the block is renamed or removed. */
bool kv_names_get(const kv_names_t *names, kv_block_id_t block, kv_name_t *name_out);

void kv_names_remove(kv_names_t *names, kv_block_id_t block); /* unnamed blocks are fine */
void kv_names_clear(kv_names_t *names);
uint32_t kv_names_count(const kv_names_t *names);
