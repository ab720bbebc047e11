/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_hash: the name of a full block: a digest of all tokens up to its end.
 *
 * hash_i = SHA-256(canonical CBOR of (hash_{i-1}, tokens_i, extra_i)), vLLM's `sha256_cbor`: equal
 * to vLLM 0.32's bytes. extra_0 carries the cache salt as ("cache_salt", salt), else null.
 * hash_{-1} = SHA-256(CBOR of the seed text): PYTHONHASHSEED, or "vllm-none-hash" when unset.
 * Only full blocks have a hash.
 */
#pragma once

#include <stdint.h>

#include "base/status.h"

#define KV_HASH_BYTES 32

typedef struct kv_hash {
    uint8_t bytes[KV_HASH_BYTES];
} kv_hash_t;

/* The parent of first blocks. seed NULL: unset. */
void kv_hash_none(const char *seed, kv_hash_t *hash_out);

/* tokens [n]; salt NULL or UTF-8 text, given for the first block of a chain only. */
void kv_hash_block(const kv_hash_t *parent, const int32_t *tokens, uint32_t n, const char *salt,
                   kv_hash_t *hash_out);
