/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_journal: which slot of a disk tier holds which block: an append-only file, in kv_disk_format.
 *
 * A slot about to be overwritten is said to be (begin) before its bytes change, and said to hold its
 * block (stored) after they did. Whatever instant the process dies in, the records found at the next
 * open are a beginning of those that were written, and every slot is what the last of them says or
 * fails its own checksums. For the same reason nothing is synced record by record: after a power
 * cut, records or bytes may be missing or from different instants, and a slot that is not what the
 * journal says, of this very write (generation), is not served. When the file has grown past a
 * multiple of what is live, a new one with only that takes its place, by rename, after a sync.
 *
 * Threads  one at a time
 * Memory   8 bytes a slot and some buffers, all made at open
 */
#pragma once

#include "base/diag.h"
#include "base/status.h"
#include "kvstore/disk/kv_disk_format.h"

typedef struct kv_journal kv_journal_t;

typedef struct kv_journal_config {
    int dir_fd;       /* of the folder, which this process has locked; borrowed */
    const char *path; /* its name, for diag */
    kv_disk_identity_t identity;
    uint32_t n_slots; /* may be another number than last time: slots from there on are forgotten */
} kv_journal_config_t;

/* What an open found. */
typedef struct kv_journal_found {
    uint32_t live;         /* slots that hold a block */
    uint32_t torn;         /* that were being written when the process died */
    uint32_t beyond;       /* that held a block and are n_slots or more now */
    uint64_t unread_bytes; /* behind the last whole record: a torn tail, or damage */
    uint64_t next_generation;
} kv_journal_found_t;

/*
 * Replays the file, cuts what is torn, and begins a new one with what is live. WEFT_ERR_EXISTS: the
 * folder is of another model, layout or version, or its journal is damaged from the start; nothing
 * was changed, diag says what to do. WEFT_ERR_IO: not readable, or not writable.
 */
weft_status_t kv_journal_open(const kv_journal_config_t *config, weft_diag_t *diag,
                              kv_journal_found_t *found_out, kv_journal_t **journal_out);
void kv_journal_close(kv_journal_t *journal); /* flushes; NULL is fine */

/* Generation of what slot holds; 0: nothing. */
uint64_t kv_journal_generation(const kv_journal_t *journal, uint32_t slot);

typedef void (*kv_journal_fn)(void *user, const kv_disk_record_t *stored);
/* What is live, in the order it was stored. */
weft_status_t kv_journal_visit(kv_journal_t *journal, kv_journal_fn fn, void *user);

/* These gather in memory; an error shows in flush. */
void kv_journal_begin(kv_journal_t *journal, uint32_t slot);
/* Nothing happens when a clear since has covered generation. */
void kv_journal_stored(kv_journal_t *journal, uint32_t slot, uint64_t generation,
                       const kv_name_t *name);
void kv_journal_removed(kv_journal_t *journal, uint32_t slot);
/* Everything of a lower generation is forgotten, what is still being stored included. */
void kv_journal_clear(kv_journal_t *journal, uint64_t below_generation);

/* Writes what has gathered. WEFT_ERR_IO, from then on always: see kv_journal_errno. */
weft_status_t kv_journal_flush(kv_journal_t *journal);
/* Makes the file small again when it has grown; for when there is time. Errors as flush. */
weft_status_t kv_journal_tidy(kv_journal_t *journal);
int kv_journal_errno(const kv_journal_t *journal); /* 0: no error yet */
uint64_t kv_journal_bytes(const kv_journal_t *journal);

/* How many bytes the file, and the new one beside it, can take for each slot, salts left out. */
size_t kv_journal_bytes_per_slot(uint32_t block_tokens);
