/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/disk/kv_disk_found.h"

#include <string.h>

#include "base/alloc.h"

/* Of one block, as kv_name_t has it; the hash is in slots. */
typedef struct found_block {
    uint32_t slot;
    bool is_first;
    bool is_visited;
    kv_hash_t parent;
    kv_extra_t *extra;
} found_block_t;

struct kv_disk_found {
    uint32_t n;
    uint32_t n_max;
    uint32_t block_tokens;
    weft_status_t status; /* of the visit */
    kv_disk_slots_t *slots;
    found_block_t *blocks;   /* [n_max] */
    int32_t *tokens;         /* [n_max * block_tokens] */
    uint32_t *block_of_slot; /* of those that hold one */
    uint32_t *stack;         /* [n_max] */
};

static uint32_t at_least_one(uint32_t n)
{
    return n == 0 ? 1 : n;
}

static weft_status_t allocate(kv_disk_found_t *found, uint32_t n_slots)
{
    const size_t n = at_least_one(found->n_max);
    found->blocks = weft_calloc(n, sizeof(*found->blocks), "kv_disk_found.blocks");
    found->tokens = weft_calloc(n, found->block_tokens * sizeof(int32_t), "kv_disk_found.tokens");
    found->stack = weft_calloc(n, sizeof(uint32_t), "kv_disk_found.stack");
    found->block_of_slot = weft_calloc(n_slots, sizeof(uint32_t), "kv_disk_found.block_of_slot");
    return found->blocks == NULL || found->tokens == NULL || found->stack == NULL ||
                   found->block_of_slot == NULL
               ? WEFT_ERR_NO_MEMORY
               : WEFT_OK;
}

/* A hash that is there twice is found by its first slot; the second stays free. */
static void add(void *user, const kv_disk_record_t *record)
{
    kv_disk_found_t *found = user;
    if (found->status < 0 || found->n == found->n_max ||
        kv_disk_slots_find(found->slots, &record->hash) != KV_DISK_SLOT_NONE) {
        return;
    }
    found_block_t *block = &found->blocks[found->n];
    *block = (found_block_t){
        .slot = record->slot, .is_first = record->is_first, .parent = record->parent};
    found->status =
        kv_extra_create(record->salt, record->lora_name, record->lora_path, &block->extra);
    if (found->status < 0) {
        return;
    }
    kv_disk_tokens_decode(record->tokens, found->block_tokens,
                          found->tokens + (size_t)found->n * found->block_tokens);
    kv_disk_slots_write(found->slots, record->slot, &record->hash, record->generation);
    kv_disk_slots_finish(found->slots, record->slot);
    kv_disk_slots_unpin(found->slots, record->slot);
    found->block_of_slot[record->slot] = found->n;
    found->n++;
}

weft_status_t kv_disk_found_create(kv_journal_t *journal, uint32_t n_live, uint32_t block_tokens,
                                   kv_disk_slots_t *slots, kv_disk_found_t **found_out)
{
    kv_disk_found_t *found = weft_zalloc(sizeof(*found), "kv_disk_found.found");
    if (found == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    found->n_max = n_live;
    found->block_tokens = block_tokens;
    found->slots = slots;
    weft_status_t status = allocate(found, kv_disk_slots_count(slots));
    if (status == WEFT_OK) {
        status = kv_journal_visit(journal, add, found);
    }
    status = status == WEFT_OK ? found->status : status;
    if (status < 0) {
        kv_disk_found_destroy(found);
        return status;
    }
    *found_out = found;
    return WEFT_OK;
}

void kv_disk_found_destroy(kv_disk_found_t *found)
{
    if (found == NULL) {
        return;
    }
    for (uint32_t i = 0; i < found->n; i++) {
        kv_extra_release(found->blocks[i].extra);
    }
    weft_free(found->block_of_slot);
    weft_free(found->stack);
    weft_free(found->tokens);
    weft_free(found->blocks);
    weft_free(found);
}

/* Onto the stack: block and its ancestors that were not visited yet. A journal that lies about
 * parents in a circle ends at one that was. Returns how many. */
static uint32_t climb(kv_disk_found_t *found, const kv_disk_slots_t *slots, uint32_t block)
{
    uint32_t n = 0;
    while (!found->blocks[block].is_visited) {
        found->blocks[block].is_visited = true;
        found->stack[n++] = block;
        const uint32_t slot = found->blocks[block].is_first
                                  ? KV_DISK_SLOT_NONE
                                  : kv_disk_slots_find(slots, &found->blocks[block].parent);
        if (slot == KV_DISK_SLOT_NONE) {
            break;
        }
        block = found->block_of_slot[slot];
    }
    return n;
}

void kv_disk_found_announce(kv_disk_found_t *found, const kv_disk_slots_t *slots,
                            void (*fn)(void *user, const kv_name_t *name), void *user)
{
    for (uint32_t i = 0; i < found->n; i++) {
        for (uint32_t n = climb(found, slots, i); n > 0; n--) {
            const uint32_t at = found->stack[n - 1];
            const found_block_t *block = &found->blocks[at];
            const kv_name_t name = {
                .hash = *kv_disk_slots_hash(slots, block->slot),
                .parent = block->parent,
                .is_first = block->is_first,
                .tokens = found->tokens + (size_t)at * found->block_tokens,
                .extra = block->extra,
            };
            fn(user, &name);
        }
    }
}
