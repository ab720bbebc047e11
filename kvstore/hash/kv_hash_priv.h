/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_hash_priv: what is hashed, as bytes. A serializer writes a whole pre-image behind `out` and
 * returns its end; it may scribble up to 8 bytes beyond. kv_hash.c, which takes its pairs of serializer
 * and digest from kv_hash_algos.def, then digests it at once: bounds on tokens and texts are what
 * makes one buffer enough.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kvstore/hash/kv_hash.h"

#define KV_HASH_TOKEN_BYTES 5 /* of one token at most, in either serialization */

/* Room for the largest pre-image. Below 64 KiB: there pickle would begin a second frame. */
#define KV_HASH_PREIMAGE_BYTES (KV_HASH_MAX_TOKENS * KV_HASH_TOKEN_BYTES + KV_EXTRA_MAX_BYTES + 256)

/* (parent, tokens, extra) */
typedef struct kv_hash_input {
    const uint8_t *parent; /* [parent_bytes] */
    uint32_t parent_bytes;
    const int32_t *tokens; /* [n_tokens] */
    uint32_t n_tokens;
    const char *lora_name; /* NULL: none, so for each; a name comes with its path */
    const char *lora_path;
    const char *salt;
} kv_hash_input_t;

uint8_t *kv_hash_cbor_text(uint8_t *out, const char *text);
uint8_t *kv_hash_cbor_block(uint8_t *out, const kv_hash_input_t *input);

uint8_t *kv_hash_pickle_text(uint8_t *out, const char *text);
uint8_t *kv_hash_pickle_block(uint8_t *out, const kv_hash_input_t *input);

void kv_hash_sha256(const uint8_t *data, size_t bytes, kv_hash_t *hash_out);
void kv_hash_xxh3_128(const uint8_t *data, size_t bytes, kv_hash_t *hash_out);
