/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_event_blobs: byte strings kept once each and counted, known by a small number.
 *
 * Threads  one at a time
 */
#pragma once

#include <stdint.h>

#include "base/status.h"
#include "kvstore/events/kv_msgpack.h"

#define KV_EVENT_BLOB_NONE UINT32_MAX

typedef struct kv_event_blobs kv_event_blobs_t;

weft_status_t kv_event_blobs_create(kv_event_blobs_t **blobs_out);
void kv_event_blobs_destroy(kv_event_blobs_t *blobs); /* NULL is fine */

/* The number of these bytes, with one reference more. KV_EVENT_BLOB_NONE: no memory. */
uint32_t kv_event_blobs_acquire(kv_event_blobs_t *blobs, const void *data, uint32_t length);
void kv_event_blobs_retain(kv_event_blobs_t *blobs, uint32_t id);  /* one more; NONE is fine */
void kv_event_blobs_release(kv_event_blobs_t *blobs, uint32_t id); /* NONE is fine */
kv_msgpack_span_t kv_event_blobs_get(const kv_event_blobs_t *blobs, uint32_t id);
