/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_disk_found: the names of the blocks that an opened disk tier found, until they are announced.
 *
 * Threads  engine thread only
 */
#pragma once

#include "base/status.h"
#include "kvstore/disk/kv_disk_slots.h"
#include "kvstore/disk/kv_journal.h"

typedef struct kv_disk_found kv_disk_found_t;

/* Puts what is live in journal (n_live blocks) into slots, all FREE, oldest first. */
weft_status_t kv_disk_found_create(kv_journal_t *journal, uint32_t n_live, uint32_t block_tokens,
                                   kv_disk_slots_t *slots, kv_disk_found_t **found_out);
void kv_disk_found_destroy(kv_disk_found_t *found); /* NULL is fine */

/* Calls fn with each name, parents before children. Once; slots are as create left them. */
void kv_disk_found_announce(kv_disk_found_t *found, const kv_disk_slots_t *slots,
                            void (*fn)(void *user, const kv_name_t *name), void *user);
