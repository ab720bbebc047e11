/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_offer: which blocks of this worker peers may read, and until when.
 *
 * Blocks lie on shelves: the slabs of the device (where its memory is the host's) and of the host
 * tier. Each block has a word that peers read with it, its epoch, which changes *before* the block's
 * bytes do: whoever finds the epoch he was told before and after reading has read what he asked for.
 * Nothing is held for a reader: a block that its owner needs is taken back at once. Epochs are never
 * used twice, not by a process that took another's place either (random start).
 *
 * Threads  shelves, put, take_back, clear: the engine's. find, stats: any. They share a lock, held for
 *          some dozens of blocks at a time
 */
#pragma once

#include "base/device.h"
#include "kvstore/hash/kv_hash.h"
#include "kvstore/kv_pool.h"
#include "kvstore/remote/kv_remote_message.h"

#define KV_OFFER_PROBE_BYTES ((size_t)4 << 20)

typedef struct kv_offer kv_offer_t;

typedef struct kv_offer_shelf {
    const weft_mem_t *memory; /* borrowed */
    size_t block_bytes;       /* block i is at memory + i * block_bytes */
    uint32_t n_blocks;
} kv_offer_shelf_t;

/* A block, as a reader has to know it. */
typedef struct kv_offer_place {
    uint32_t shelf;
    kv_block_id_t block;
    uint64_t epoch;
} kv_offer_place_t;

weft_status_t kv_offer_create(kv_offer_t **offer_out);
void kv_offer_destroy(kv_offer_t *offer); /* NULL is fine */

/* Before it is served. At most KV_REMOTE_MAX_SHELVES. Its number is shelf_out. */
weft_status_t kv_offer_add_shelf(kv_offer_t *offer, const kv_offer_shelf_t *shelf,
                                 uint32_t *shelf_out);

/*
 * All do nothing for a NULL offer. put: the block is complete; of two with one hash the first is
 * found. take_back: before its bytes change; blocks that are not offered are fine.
 */
void kv_offer_put(kv_offer_t *offer, uint32_t shelf, kv_block_id_t block, const kv_hash_t *hash);
void kv_offer_take_back(kv_offer_t *offer, uint32_t shelf, kv_block_id_t block);
void kv_offer_clear(kv_offer_t *offer, uint32_t shelf);

/* How many leading ones of hashes [n] are offered; where, in places_out [n]. */
uint32_t kv_offer_find(kv_offer_t *offer, const kv_hash_t *hashes, uint32_t n,
                       kv_offer_place_t *places_out);
uint64_t kv_offer_blocks(kv_offer_t *offer); /* offered now */

/* What peers have to read: constant once it is served. */
uint32_t kv_offer_shelves(const kv_offer_t *offer);
const kv_offer_shelf_t *kv_offer_shelf(const kv_offer_t *offer, uint32_t shelf);
/* The epochs of a shelf [n_blocks], and zeros to measure by [KV_OFFER_PROBE_BYTES]. */
const weft_mem_t *kv_offer_words(const kv_offer_t *offer, uint32_t shelf);
const weft_mem_t *kv_offer_probe(const kv_offer_t *offer);
