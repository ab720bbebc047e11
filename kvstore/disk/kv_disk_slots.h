/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_disk_slots: which slot of a disk tier holds which block, for who must not wait for the disk:
 * states, the order of eviction, and how many reads and writes of a slot are under way.
 *
 *   FREE ─ write ─► WRITING ─ finish ─► STORED ─ forget ─► FREE
 *                      └───── forget ─────────────────────► FORGOTTEN ─ the last unpin ─► FREE
 *
 * Threads  engine thread only
 * Memory   all made at create: some 24 bytes a slot, and a kv_index
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kvstore/hash/kv_hash.h"

#define KV_DISK_SLOT_NONE UINT32_MAX

typedef struct kv_disk_slots kv_disk_slots_t;

weft_status_t kv_disk_slots_create(uint32_t n, kv_disk_slots_t **slots_out);
void kv_disk_slots_destroy(kv_disk_slots_t *slots); /* NULL is fine */

/* The slot that is WRITING or STORED under this name; NONE. */
uint32_t kv_disk_slots_find(const kv_disk_slots_t *slots, const kv_hash_t *hash);
bool kv_disk_slots_is_stored(const kv_disk_slots_t *slots, uint32_t slot);
const kv_hash_t *kv_disk_slots_hash(const kv_disk_slots_t *slots,
                                    uint32_t slot);                             /* NULL: no name */
uint64_t kv_disk_slots_generation(const kv_disk_slots_t *slots, uint32_t slot); /* of a named one */
uint32_t kv_disk_slots_count(const kv_disk_slots_t *slots);
uint32_t kv_disk_slots_stored(const kv_disk_slots_t *slots); /* how many of them */

uint32_t kv_disk_slots_free_one(const kv_disk_slots_t *slots); /* some FREE slot; NONE */
/* The STORED slot used longest ago that nothing is under way for; NONE. */
uint32_t kv_disk_slots_oldest(const kv_disk_slots_t *slots);
uint32_t
kv_disk_slots_any(const kv_disk_slots_t *slots); /* the STORED slot used longest ago; NONE */

/* FREE → WRITING, pinned once. hash is not in use. */
void kv_disk_slots_write(kv_disk_slots_t *slots, uint32_t slot, const kv_hash_t *hash,
                         uint64_t generation);
void kv_disk_slots_finish(kv_disk_slots_t *slots,
                          uint32_t slot); /* WRITING → STORED, the youngest */
void kv_disk_slots_forget(kv_disk_slots_t *slots,
                          uint32_t slot); /* its name, and once unpinned all */
void kv_disk_slots_forget_all(kv_disk_slots_t *slots);
void kv_disk_slots_touch(kv_disk_slots_t *slots, uint32_t slot); /* STORED: now the youngest */

void kv_disk_slots_pin(kv_disk_slots_t *slots, uint32_t slot);
void kv_disk_slots_unpin(kv_disk_slots_t *slots, uint32_t slot);
