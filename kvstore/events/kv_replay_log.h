/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_replay_log: the last batches a publisher sent, and the state before the oldest of them.
 *
 * Threads  one at a time (the publisher's)
 * Memory   payloads are shared with the sockets that still hold them; of what fell out, a mirror
 */
#pragma once

#include <zmq.h>

#include "kvstore/events/kv_event_mirror.h"

typedef struct kv_replay_log kv_replay_log_t;

typedef struct kv_replay_log_config {
    uint32_t capacity; /* batches kept; 0: none */
    uint32_t block_tokens;
    const kv_event_encoding_t *encoding;
    kv_event_int_t rank;
} kv_replay_log_config_t;

weft_status_t kv_replay_log_create(const kv_replay_log_config_t *config, kv_replay_log_t **log_out);
void kv_replay_log_destroy(kv_replay_log_t *log); /* NULL is fine */

/*
 * Keeps another reference to payload, the batch after the last one; the first has number 0. Batches
 * without a message (payload NULL) are possible: one that could not be made.
 * WEFT_ERR_NO_MEMORY: what fell out is not known entirely any more.
 */
weft_status_t kv_replay_log_push(kv_replay_log_t *log, zmq_msg_t *payload);

uint64_t kv_replay_log_begin(const kv_replay_log_t *log); /* number of the oldest that is kept */
uint64_t kv_replay_log_end(const kv_replay_log_t *log);   /* number of the next */
zmq_msg_t *kv_replay_log_at(kv_replay_log_t *log, uint64_t sequence); /* NULL: without a message */

/*
 * A batch that leaves a reader with what was present before begin: AllBlocksCleared, BlockStored
 * parents first. It carries the time of the newest one that fell out.
 */
weft_status_t kv_replay_log_summary(kv_replay_log_t *log, zmq_msg_t *payload_out);
