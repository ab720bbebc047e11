/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring: a bounded queue of pointers between threads (many producers, one consumer), without locks.
 * Vyukov's bounded queue: each cell's sequence number says whose turn it is.
 */
#pragma once

#include <stddef.h>

#include "base/status.h"

typedef struct weft_ring weft_ring_t;

/* capacity is rounded up to a power of two, at least 2. Items are not NULL. */
weft_status_t weft_ring_create(size_t capacity, weft_ring_t **ring_out);
void weft_ring_destroy(weft_ring_t *ring); /* NULL is fine */

weft_status_t weft_ring_push(weft_ring_t *ring, void *item); /* any thread; WEFT_ERR_QUEUE_FULL */
void *weft_ring_pop(weft_ring_t *ring);                      /* consumer only; NULL: empty */
