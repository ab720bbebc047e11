/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_record_ring: records of any length from one thread to another, in order, without allocation
 * or lock.
 *
 * A record is reserved, filled in place and, with all before it, published. The reader looks at the
 * oldest in place and pops it; the space is the writer's again once released. Both ends only move
 * counters that the other reads, so that waiting for each other is the caller's (kv_gate.h).
 *
 * Threads  one writes (reserve, publish), one reads (front, pop, release)
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct kv_record_ring kv_record_ring_t;

/* bytes is rounded up to a power of two. */
weft_status_t kv_record_ring_create(size_t bytes, kv_record_ring_t **ring_out);
void kv_record_ring_destroy(kv_record_ring_t *ring); /* NULL is fine */

/*
 * Room for size bytes, aligned to 8, for the writer to fill before it reserves again. NULL: the
 * ring is full. At most half the ring is never refused for ever.
 */
void *kv_record_ring_reserve(kv_record_ring_t *ring, size_t size);
void kv_record_ring_publish(kv_record_ring_t *ring);
size_t kv_record_ring_unpublished(const kv_record_ring_t *ring); /* bytes */
size_t kv_record_ring_capacity(const kv_record_ring_t *ring);

const void *kv_record_ring_front(kv_record_ring_t *ring); /* NULL: empty */
void kv_record_ring_pop(kv_record_ring_t *ring);          /* the one that front gave */
void kv_record_ring_release(kv_record_ring_t *ring);      /* the space of all popped ones */
bool kv_record_ring_is_empty(kv_record_ring_t *ring);     /* to the reader; so below */
bool kv_record_ring_is_half_free(kv_record_ring_t *ring);
