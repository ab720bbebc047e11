/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_index.h"

#include <assert.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/compiler.h"

#define LARGE_PAGE_BYTES ((size_t)2 << 20)
#define AHEAD            8 /* hashes whose memory is on its way while one is compared */

/*
 * Linear probing over slots that carry a tag of the hash, so that a probe touches the digest (by
 * block, elsewhere in memory) only when it is all but certain to be the one. A removal shifts the
 * followers back: there are no tombstones, and a full life of inserts and removals stays as fast as
 * the first. At most 3/4 of the slots are taken.
 *
 * A tag is the upper half of the digest's first 8 bytes times a random odd key; its upper bits say
 * where the search begins (multiply-shift, Dietzfelbinger et al. 1997). Who chooses tokens can look
 * for digests that are alike in some bits, but not make them meet here without knowing the key.
 */
typedef struct slot {
    uint32_t tag;
    kv_block_id_t block; /* KV_BLOCK_NONE: empty */
} slot_t;

struct kv_index {
    uint32_t n_blocks;
    uint32_t count;
    uint32_t mask;  /* slots - 1 */
    uint32_t shift; /* from a tag to its home slot */
    uint64_t key;
    kv_hash_t *hashes; /* [n_blocks], of named blocks */
    slot_t *slots;     /* [mask + 1] */
};

/* Slots and digests are read at random: with small pages most of a lookup goes to page tables. */
static void *take_large_pages(size_t count, size_t size, const char *name)
{
    void *memory = weft_calloc(count, size, name);
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t)memory + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)memory + count * size) / page * page;
    if (memory != NULL && end - begin >= LARGE_PAGE_BYTES) {
        (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE); /* advice, no more */
    }
    return memory;
}

static uint32_t tag_of(const kv_index_t *index, const kv_hash_t *hash)
{
    uint64_t word;
    memcpy(&word, hash->bytes, sizeof(word));
    return (uint32_t)((word * index->key) >> 32);
}

static uint32_t home_of(const kv_index_t *index, uint32_t tag)
{
    return tag >> index->shift;
}

weft_status_t kv_index_create(uint32_t n_blocks, kv_index_t **index_out)
{
    uint64_t key;
    if (getrandom(&key, sizeof(key), 0) != (ssize_t)sizeof(key)) {
        return WEFT_ERR_IO;
    }
    return kv_index_create_keyed(n_blocks, key | 1, index_out);
}

weft_status_t kv_index_create_keyed(uint32_t n_blocks, uint64_t key, kv_index_t **index_out)
{
    if (n_blocks == 0 || n_blocks > UINT32_C(1) << 30) {
        return WEFT_ERR_INVALID;
    }
    uint32_t n_slots = 4;
    uint32_t shift = 30;
    while (n_slots / 4 * 3 < n_blocks) {
        n_slots *= 2;
        shift--;
    }
    kv_index_t *index = weft_zalloc(sizeof(*index), "kv_index.index");
    if (index == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    index->n_blocks = n_blocks;
    index->mask = n_slots - 1;
    index->shift = shift;
    index->key = key;
    index->hashes = take_large_pages(n_blocks, sizeof(kv_hash_t), "kv_index.hashes");
    index->slots = take_large_pages(n_slots, sizeof(slot_t), "kv_index.slots");
    if (index->hashes == NULL || index->slots == NULL) {
        kv_index_destroy(index);
        return WEFT_ERR_NO_MEMORY;
    }
    kv_index_clear(index);
    *index_out = index;
    return WEFT_OK;
}

void kv_index_destroy(kv_index_t *index)
{
    if (index == NULL) {
        return;
    }
    weft_free(index->slots);
    weft_free(index->hashes);
    weft_free(index);
}

/* The slot that holds hash, or the empty one where it would go. */
static uint32_t slot_for_hash(const kv_index_t *index, const kv_hash_t *hash)
{
    const uint32_t tag = tag_of(index, hash);
    uint32_t i = home_of(index, tag);
    for (; index->slots[i].block != KV_BLOCK_NONE; i = (i + 1) & index->mask) {
        const slot_t *slot = &index->slots[i];
        if (slot->tag == tag && memcmp(&index->hashes[slot->block], hash, sizeof(*hash)) == 0) {
            break;
        }
    }
    return i;
}

/* The slot that leads to block, or an empty one when the block has no name. */
static uint32_t slot_for_block(const kv_index_t *index, kv_block_id_t block)
{
    uint32_t i = home_of(index, tag_of(index, &index->hashes[block]));
    while (index->slots[i].block != KV_BLOCK_NONE && index->slots[i].block != block) {
        i = (i + 1) & index->mask;
    }
    return i;
}

kv_block_id_t kv_index_insert(kv_index_t *index, const kv_hash_t *hash, kv_block_id_t block)
{
    assert(block < index->n_blocks);
    slot_t *slot = &index->slots[slot_for_hash(index, hash)];
    if (slot->block != KV_BLOCK_NONE) {
        return slot->block;
    }
    assert(index->slots[slot_for_block(index, block)].block == KV_BLOCK_NONE);
    index->hashes[block] = *hash;
    *slot = (slot_t){.tag = tag_of(index, hash), .block = block};
    index->count++;
    return block;
}

kv_block_id_t kv_index_find(const kv_index_t *index, const kv_hash_t *hash)
{
    return index->slots[slot_for_hash(index, hash)].block;
}

static void prefetch_slot(const kv_index_t *index, const kv_hash_t *hash)
{
    weft_prefetch(&index->slots[home_of(index, tag_of(index, hash))]);
}

/* Of the block that hash may well lead to. */
static void prefetch_digest(const kv_index_t *index, const kv_hash_t *hash)
{
    const uint32_t tag = tag_of(index, hash);
    uint32_t i = home_of(index, tag);
    while (index->slots[i].block != KV_BLOCK_NONE && index->slots[i].tag != tag) {
        i = (i + 1) & index->mask;
    }
    if (index->slots[i].block != KV_BLOCK_NONE) {
        weft_prefetch(&index->hashes[index->slots[i].block]);
    }
}

/* A hit reads a slot and then a digest; both are on their way while earlier hashes are compared. */
uint32_t kv_index_match(const kv_index_t *index, const kv_hash_t *hashes, uint32_t n,
                        kv_block_id_t *blocks_out)
{
    for (uint32_t i = 0; i < n && i < 2 * AHEAD; i++) {
        prefetch_slot(index, &hashes[i]);
    }
    for (uint32_t i = 0; i < n && i < AHEAD; i++) {
        prefetch_digest(index, &hashes[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (n - i > 2 * AHEAD) {
            prefetch_slot(index, &hashes[i + 2 * AHEAD]);
        }
        if (n - i > AHEAD) {
            prefetch_digest(index, &hashes[i + AHEAD]);
        }
        const kv_block_id_t block = kv_index_find(index, &hashes[i]);
        if (block == KV_BLOCK_NONE) {
            return i;
        }
        blocks_out[i] = block;
    }
    return n;
}

const kv_hash_t *kv_index_hash(const kv_index_t *index, kv_block_id_t block)
{
    assert(block < index->n_blocks);
    const bool is_named = index->slots[slot_for_block(index, block)].block != KV_BLOCK_NONE;
    return is_named ? &index->hashes[block] : NULL;
}

void kv_index_remove(kv_index_t *index, kv_block_id_t block)
{
    assert(block < index->n_blocks);
    slot_t *const slots = index->slots;
    const uint32_t mask = index->mask;
    uint32_t hole = slot_for_block(index, block);
    if (slots[hole].block == KV_BLOCK_NONE) {
        return;
    }
    /* A follower moves into the hole unless its home lies between hole and itself. */
    for (uint32_t i = (hole + 1) & mask; slots[i].block != KV_BLOCK_NONE; i = (i + 1) & mask) {
        const uint32_t distance_home = (i - home_of(index, slots[i].tag)) & mask;
        const uint32_t distance_hole = (i - hole) & mask;
        if (distance_home >= distance_hole) {
            slots[hole] = slots[i];
            hole = i;
        }
    }
    slots[hole].block = KV_BLOCK_NONE;
    index->count--;
}

void kv_index_clear(kv_index_t *index)
{
    for (uint32_t i = 0; i <= index->mask; i++) {
        index->slots[i].block = KV_BLOCK_NONE;
    }
    index->count = 0;
}

uint32_t kv_index_count(const kv_index_t *index)
{
    return index->count;
}
