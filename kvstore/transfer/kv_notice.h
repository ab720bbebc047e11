/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_notice: what workers tell each other in the fabric's notifications.
 *
 *   read       D → P   "<request id>:<readers>": one of so many readers is done (vLLM)
 *   heartbeat  D → P   "HB:<request id>,<request id>": somebody still wants them (vLLM)
 *   watch      D → P   "WEFT_WATCH:" and a map: tell me what is there of a request, or no longer
 *                      (kv_watch.def)
 *   progress   P → D   "WEFT_KV:" and a map: the answer, again whenever there is more
 *                      (kv_progress.def)
 *
 * Threads  none of its own
 */
#pragma once

#include "kvstore/transfer/kv_wire_map.h"

#define KV_NOTICE_VERSION         1
#define KV_NOTICE_PROGRESS_BLOCKS 4096 /* in one notice */

typedef struct kv_watch {
#define FIELD(name, type, rule) kv_wire_##type##_t name;
#include "kvstore/transfer/kv_watch.def"
#undef FIELD
} kv_watch_t;

typedef enum kv_progress_state {
    KV_PROGRESS_UNKNOWN, /* no such request, yet: it is remembered that you asked */
    KV_PROGRESS_OPEN,    /* it runs */
    KV_PROGRESS_HELD,    /* it ended, everything is there */
    KV_PROGRESS_GONE     /* aborted, expired, read by all */
} kv_progress_state_t;

typedef struct kv_progress {
#define FIELD(name, type, rule) kv_wire_##type##_t name;
#include "kvstore/transfer/kv_progress.def"
#undef FIELD
} kv_progress_t;

typedef enum kv_notice_kind {
    KV_NOTICE_READ,
    KV_NOTICE_HEARTBEAT,
    KV_NOTICE_WATCH,
    KV_NOTICE_PROGRESS
} kv_notice_kind_t;

typedef struct kv_notice {
    kv_notice_kind_t kind;
    kv_msgpack_span_t ids; /* READ: the id; HEARTBEAT: those with commas between */
    uint32_t readers;      /* READ: ≥ 1 */
    kv_watch_t watch;
    kv_progress_t progress;
} kv_notice_t;

void kv_notice_encode_read(const char *request_id, uint32_t readers, weft_buffer_t *out);
void kv_notice_encode_watch(const kv_watch_t *watch, weft_buffer_t *out);
void kv_notice_encode_progress(const kv_progress_t *progress, weft_buffer_t *out);
/* One more id; out is empty before the first. */
void kv_notice_add_heartbeat(const char *request_id, weft_buffer_t *out);

/*
 * Points into data; lists are in the arena. WEFT_ERR_MALFORMED: nothing of these; WEFT_ERR_UNSUPPORTED:
 * another version.
 */
weft_status_t kv_notice_decode(const void *data, size_t bytes, weft_arena_t *arena,
                               kv_notice_t *notice_out);

/* The next id of a heartbeat, cut off from ids; false: there is none. */
bool kv_notice_next_id(kv_msgpack_span_t *ids, kv_msgpack_span_t *id_out);
