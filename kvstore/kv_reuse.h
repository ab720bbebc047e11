/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_reuse: which contents have been seen before, kept far longer than the contents themselves.
 *
 * A small table of hash tags: what lies in it was used again, or given up once already. A block
 * that is given up for the first time without ever having been used again is likely never to be
 * (most prompts' tails); writing it to a disk would push out one that will.
 * Einziger, Friedman & Manes 2017 (TinyLFU) call such a filter a doorkeeper.
 *
 * Threads  one. Wrong with probability under 2^-28 a look (a tag is 32 bits, a set 8 of them);
 *          forgets the oldest tags of a set
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kvstore/hash/kv_hash.h"

typedef struct kv_reuse kv_reuse_t;

/* Remembers about `contents` of them, in 4 to 8 bytes each. */
weft_status_t kv_reuse_create(uint64_t contents, kv_reuse_t **reuse_out);
void kv_reuse_destroy(kv_reuse_t *reuse); /* NULL is fine */

bool kv_reuse_has(const kv_reuse_t *reuse, const kv_hash_t *hash);
void kv_reuse_note(kv_reuse_t *reuse, const kv_hash_t *hash);
