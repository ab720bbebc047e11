/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/disk/kv_disk_slots.h"

#include <assert.h>

#include "base/alloc.h"
#include "kvstore/kv_index.h"

typedef enum slot_state { FREE, WRITING, STORED, FORGOTTEN } slot_state_t;

/* STORED slots are one list from oldest to youngest, FREE ones another. */
typedef struct slot {
    uint64_t generation;
    uint32_t older;
    uint32_t newer;
    uint32_t pins;
    slot_state_t state;
} slot_t;

struct kv_disk_slots {
    uint32_t n;
    uint32_t n_stored;
    uint32_t oldest;
    uint32_t youngest;
    uint32_t first_free;
    kv_index_t *index;
    slot_t *slots; /* [n] */
};

static void set_free(kv_disk_slots_t *slots, uint32_t slot)
{
    slot_t *one = &slots->slots[slot];
    one->state = FREE;
    one->older = KV_DISK_SLOT_NONE;
    one->newer = slots->first_free;
    if (slots->first_free != KV_DISK_SLOT_NONE) {
        slots->slots[slots->first_free].older = slot;
    }
    slots->first_free = slot;
}

weft_status_t kv_disk_slots_create(uint32_t n, kv_disk_slots_t **slots_out)
{
    kv_disk_slots_t *slots = weft_zalloc(sizeof(*slots), "kv_disk_slots.slots");
    if (slots == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    slots->n = n;
    slots->slots = weft_calloc(n, sizeof(slot_t), "kv_disk_slots.slot");
    const weft_status_t status =
        slots->slots == NULL ? WEFT_ERR_NO_MEMORY : kv_index_create(n, &slots->index);
    if (status < 0) {
        kv_disk_slots_destroy(slots);
        return status;
    }
    slots->oldest = KV_DISK_SLOT_NONE;
    slots->youngest = KV_DISK_SLOT_NONE;
    slots->first_free = KV_DISK_SLOT_NONE;
    for (uint32_t i = n; i > 0; i--) {
        set_free(slots, i - 1);
    }
    *slots_out = slots;
    return WEFT_OK;
}

void kv_disk_slots_destroy(kv_disk_slots_t *slots)
{
    if (slots != NULL) {
        kv_index_destroy(slots->index);
        weft_free(slots->slots);
        weft_free(slots);
    }
}

/* ---- the list of stored ones ------------------------------------------------------------------ */

static void link_youngest(kv_disk_slots_t *slots, uint32_t slot)
{
    slots->slots[slot].older = slots->youngest;
    slots->slots[slot].newer = KV_DISK_SLOT_NONE;
    if (slots->youngest == KV_DISK_SLOT_NONE) {
        slots->oldest = slot;
    } else {
        slots->slots[slots->youngest].newer = slot;
    }
    slots->youngest = slot;
    slots->n_stored++;
}

static void unlink_slot(kv_disk_slots_t *slots, uint32_t slot)
{
    const slot_t *one = &slots->slots[slot];
    if (one->older == KV_DISK_SLOT_NONE) {
        slots->oldest = one->newer;
    } else {
        slots->slots[one->older].newer = one->newer;
    }
    if (one->newer == KV_DISK_SLOT_NONE) {
        slots->youngest = one->older;
    } else {
        slots->slots[one->newer].older = one->older;
    }
    slots->n_stored--;
}

/* ---- questions -------------------------------------------------------------------------------- */

uint32_t kv_disk_slots_find(const kv_disk_slots_t *slots, const kv_hash_t *hash)
{
    const kv_block_id_t slot = kv_index_find(slots->index, hash);
    return slot == KV_BLOCK_NONE ? KV_DISK_SLOT_NONE : slot;
}

bool kv_disk_slots_is_stored(const kv_disk_slots_t *slots, uint32_t slot)
{
    return slots->slots[slot].state == STORED;
}

const kv_hash_t *kv_disk_slots_hash(const kv_disk_slots_t *slots, uint32_t slot)
{
    return kv_index_hash(slots->index, slot);
}

uint64_t kv_disk_slots_generation(const kv_disk_slots_t *slots, uint32_t slot)
{
    return slots->slots[slot].generation;
}

uint32_t kv_disk_slots_count(const kv_disk_slots_t *slots)
{
    return slots->n;
}

uint32_t kv_disk_slots_stored(const kv_disk_slots_t *slots)
{
    return slots->n_stored;
}

uint32_t kv_disk_slots_free_one(const kv_disk_slots_t *slots)
{
    return slots->first_free;
}

/* Only as many are passed over as are pinned, which staging buffers bound. */
uint32_t kv_disk_slots_oldest(const kv_disk_slots_t *slots)
{
    uint32_t slot = slots->oldest;
    while (slot != KV_DISK_SLOT_NONE && slots->slots[slot].pins > 0) {
        slot = slots->slots[slot].newer;
    }
    return slot;
}

uint32_t kv_disk_slots_any(const kv_disk_slots_t *slots)
{
    return slots->oldest;
}

/* ---- changes ---------------------------------------------------------------------------------- */

static void take_free(kv_disk_slots_t *slots, uint32_t slot)
{
    const slot_t *one = &slots->slots[slot];
    if (one->older == KV_DISK_SLOT_NONE) {
        slots->first_free = one->newer;
    } else {
        slots->slots[one->older].newer = one->newer;
    }
    if (one->newer != KV_DISK_SLOT_NONE) {
        slots->slots[one->newer].older = one->older;
    }
}

void kv_disk_slots_write(kv_disk_slots_t *slots, uint32_t slot, const kv_hash_t *hash,
                         uint64_t generation)
{
    assert(slots->slots[slot].state == FREE && slots->slots[slot].pins == 0);
    take_free(slots, slot);
    const kv_block_id_t led_to = kv_index_insert(slots->index, hash, slot);
    assert(led_to == slot);
    (void)led_to;
    slots->slots[slot] = (slot_t){.generation = generation, .pins = 1, .state = WRITING};
}

void kv_disk_slots_finish(kv_disk_slots_t *slots, uint32_t slot)
{
    assert(slots->slots[slot].state == WRITING);
    slots->slots[slot].state = STORED;
    link_youngest(slots, slot);
}

void kv_disk_slots_forget(kv_disk_slots_t *slots, uint32_t slot)
{
    slot_t *one = &slots->slots[slot];
    assert(one->state == STORED || one->state == WRITING);
    if (one->state == STORED) {
        unlink_slot(slots, slot);
    }
    kv_index_remove(slots->index, slot);
    one->state = FORGOTTEN;
    if (one->pins == 0) {
        set_free(slots, slot);
    }
}

void kv_disk_slots_forget_all(kv_disk_slots_t *slots)
{
    for (uint32_t slot = 0; slot < slots->n; slot++) {
        const slot_state_t state = slots->slots[slot].state;
        if (state == STORED || state == WRITING) {
            kv_disk_slots_forget(slots, slot);
        }
    }
}

void kv_disk_slots_touch(kv_disk_slots_t *slots, uint32_t slot)
{
    assert(slots->slots[slot].state == STORED);
    unlink_slot(slots, slot);
    link_youngest(slots, slot);
}

void kv_disk_slots_pin(kv_disk_slots_t *slots, uint32_t slot)
{
    slots->slots[slot].pins++;
}

void kv_disk_slots_unpin(kv_disk_slots_t *slots, uint32_t slot)
{
    slot_t *one = &slots->slots[slot];
    assert(one->pins > 0);
    one->pins--;
    if (one->pins == 0 && one->state == FORGOTTEN) {
        set_free(slots, slot);
    }
}
