/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_reuse: how often contents have been seen, kept far longer than the contents themselves.
 *
 * A small table of hash tags, each with a count that ends at 3. Most prompts' tails are
 * seen once and never again; writing them to a disk would push out what will be. Einziger, Friedman
 * & Manes 2017 (TinyLFU) put such a filter before a cache.
 *
 * Threads  one. A count that is not the content's own with probability under 2^-26 a look (a tag has
 *          30 bits, a set 8 of them); forgets the tags of a set that were noted longest ago
 */
#pragma once

#include <stdint.h>

#include "base/status.h"
#include "kvstore/hash/kv_hash.h"

typedef struct kv_reuse kv_reuse_t;

/* Remembers about `contents` of them, in 4 to 8 bytes each. */
weft_status_t kv_reuse_create(uint64_t contents, kv_reuse_t **reuse_out);
void kv_reuse_destroy(kv_reuse_t *reuse); /* NULL is fine */

uint32_t kv_reuse_count(const kv_reuse_t *reuse, const kv_hash_t *hash); /* 0: not known */

/* It has been seen at least so often (1 to 3). */
void kv_reuse_note(kv_reuse_t *reuse, const kv_hash_t *hash, uint32_t count);
