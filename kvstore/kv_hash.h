/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_hash: the name of a full block: a digest of all tokens up to its end.
 *
 * hash_i = SHA-256(canonical CBOR of (hash_{i-1}, tokens_i, extra_i)), vLLM's `sha256_cbor`: equal
 * to vLLM 0.32's bytes. extra_0 carries the cache salt as ("cache_salt", salt), else null.
 * hash_{-1} = SHA-256(CBOR of the seed text): PYTHONHASHSEED, or "vllm-none-hash" when unset.
 * Only full blocks have a hash.
 *
 * Threads  a hasher belongs to one thread at a time; hashing allocates nothing
 */
#pragma once

#include <stdint.h>

#include "base/status.h"

#define KV_HASH_BYTES 32

typedef struct kv_hash {
    uint8_t bytes[KV_HASH_BYTES];
} kv_hash_t;

typedef struct kv_hasher kv_hasher_t;

/* seed NULL: unset. */
weft_status_t kv_hasher_create(const char *seed, kv_hasher_t **hasher_out);
void kv_hasher_destroy(kv_hasher_t *hasher); /* NULL is fine */

/*
 * tokens [n]. parent NULL: the first block of a chain; only there salt counts (NULL or UTF-8 text).
 * hash_out may be parent.
 */
void kv_hasher_block(kv_hasher_t *hasher, const kv_hash_t *parent, const int32_t *tokens,
                     uint32_t n, const char *salt, kv_hash_t *hash_out);

/* The parent that first blocks get. */
const kv_hash_t *kv_hasher_root(const kv_hasher_t *hasher);
