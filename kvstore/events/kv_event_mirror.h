/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_event_mirror: what somebody who read a stream of KV events knows: which blocks are present, in
 * which media, with what it takes to announce them again.
 *
 * A block is known by its hash and group. Its parent, tokens and extra keys are those of the event
 * that first stored it; all of them go when no medium has it any more. A block may outlive its
 * parent: it keeps the parent's hash.
 *
 * Threads  one at a time
 * Memory   60 bytes and the tokens for each block, 8 to 16 more in a table that doubles; grows as
 *          blocks come, goes back when all are cleared
 */
#pragma once

#include "kvstore/events/kv_event_codec.h"

#define KV_EVENT_MIRROR_MEDIA 8 /* different ones in a stream; nil is one */

typedef struct kv_event_mirror kv_event_mirror_t;

typedef enum kv_event_hole {
    KV_EVENT_HOLE_PARENT,  /* a block was stored whose parent is not present */
    KV_EVENT_HOLE_ABSENT,  /* a block was removed that was not present in that medium */
    KV_EVENT_HOLE_UNKNOWN, /* a block without tokens was stored that was not present elsewhere */
    KV_EVENT_HOLE_GAP,     /* batches are missing, and what came next does not begin anew */
} kv_event_hole_t;

typedef struct kv_event_mirror_config {
    uint32_t block_tokens; /* of the blocks whose tokens are kept; 0: none are */
    /* What does not follow from what came before. hash is NULL for a gap. May be NULL. */
    void (*on_hole)(void *user, kv_event_hole_t hole, const kv_event_hash_t *hash);
    void *user;
} kv_event_mirror_config_t;

weft_status_t kv_event_mirror_create(const kv_event_mirror_config_t *config,
                                     kv_event_mirror_t **mirror_out);
void kv_event_mirror_destroy(kv_event_mirror_t *mirror); /* NULL is fine */

/*
 * The first batch may have any number, each later one the next. Another number is a gap, unless the
 * batch begins with AllBlocksCleared.
 * WEFT_ERR_NO_MEMORY, WEFT_ERR_UNSUPPORTED (too many media): the rest of the batch was not applied.
 */
weft_status_t kv_event_mirror_apply_batch(kv_event_mirror_t *mirror, uint64_t sequence,
                                          const kv_event_batch_t *batch);
weft_status_t kv_event_mirror_apply(kv_event_mirror_t *mirror, const kv_event_t *event);

/* No block is present, and any number may come next. */
void kv_event_mirror_restart(kv_event_mirror_t *mirror);

bool kv_event_mirror_has(const kv_event_mirror_t *mirror, kv_event_text_t medium, int64_t group,
                         const kv_event_hash_t *hash);
uint64_t kv_event_mirror_blocks(const kv_event_mirror_t *mirror); /* in any medium */
uint64_t kv_event_mirror_present(const kv_event_mirror_t *mirror, kv_event_text_t medium);

/*
 * All that is present as BlockStored events, a parent before its children, blocks of one chain
 * together. What an event points to is valid during the call. A status < 0 of fn ends it.
 */
weft_status_t kv_event_mirror_write(kv_event_mirror_t *mirror,
                                    weft_status_t (*fn)(void *user, const kv_event_t *event),
                                    void *user);
