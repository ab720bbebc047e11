/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_landing: heads that wait in slots, converted into blocks by the device whose memory both are.
 *
 * Moves are added and begin with their batch's commit, which gives a number: batches end in order.
 *
 * Threads  the engine's
 * Waiting  only add, when thousands of moves are on their way already, and wait
 */
#pragma once

#include "base/device.h"
#include "kvstore/transfer/kv_convert.h"

typedef struct kv_landing kv_landing_t;

/* Enqueues moves [n], which the device reads where they are. What fails, fails the queue. */
typedef void (*kv_landing_convert_fn)(void *user, weft_queue_t *queue, const kv_head_form_t *to,
                                      const kv_head_form_t *from, const kv_head_move_t *moves,
                                      uint32_t n);

/* to: of the blocks. device is borrowed, and outlives it. */
weft_status_t kv_landing_create(weft_device_t *device, kv_landing_convert_fn convert, void *user,
                                const kv_head_form_t *to, kv_landing_t **landing_out);
void kv_landing_destroy(kv_landing_t *landing); /* waits; NULL is fine */

/* All moves of a batch come from one form. */
void kv_landing_add(kv_landing_t *landing, const kv_head_form_t *from, const kv_head_move_t *move);
uint64_t kv_landing_commit(kv_landing_t *landing);
/* WEFT_PENDING, WEFT_OK, or how the device failed, for good. Batch 0 has ended. */
weft_status_t kv_landing_state(kv_landing_t *landing, uint64_t batch);
weft_status_t kv_landing_wait(kv_landing_t *landing, uint64_t batch);
