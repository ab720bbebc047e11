/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_record_ring.h"

#include <stdatomic.h>

#include "base/alloc.h"
#include "base/compiler.h"

#define ALIGNMENT 8

/* In front of each record; size_of_filler: what was left at the end was too short for the next. */
typedef struct header {
    uint32_t bytes; /* with the header, a multiple of ALIGNMENT */
    uint32_t is_filler;
} header_t;

/* Positions only grow; their place in data is position & mask. */
struct kv_record_ring {
    _Alignas(WEFT_CACHE_LINE) size_t written;          /* the writer's: reserved up to here */
    size_t seen_released;                              /* the writer's copy of released */
    _Alignas(WEFT_CACHE_LINE) atomic_size_t published; /* by the writer, read by the reader */
    _Alignas(WEFT_CACHE_LINE) atomic_size_t released;  /* by the reader, read by the writer */
    _Alignas(WEFT_CACHE_LINE) size_t read;             /* the reader's */
    size_t seen_published;                             /* the reader's copy of published */
    _Alignas(WEFT_CACHE_LINE) size_t mask;
    char *data; /* [mask + 1] */
};

weft_status_t kv_record_ring_create(size_t bytes, kv_record_ring_t **ring_out)
{
    size_t capacity = 4096;
    while (capacity < bytes && capacity <= SIZE_MAX / 4) {
        capacity *= 2;
    }
    kv_record_ring_t *ring =
        weft_alloc_aligned(WEFT_CACHE_LINE, sizeof(*ring), "kv_record_ring.ring");
    char *data = weft_alloc_aligned(WEFT_CACHE_LINE, capacity, "kv_record_ring.data");
    if (ring == NULL || data == NULL) {
        weft_free(ring);
        weft_free(data);
        return WEFT_ERR_NO_MEMORY;
    }
    *ring = (kv_record_ring_t){.mask = capacity - 1, .data = data};
    *ring_out = ring;
    return WEFT_OK;
}

void kv_record_ring_destroy(kv_record_ring_t *ring)
{
    if (ring != NULL) {
        weft_free(ring->data);
        weft_free(ring);
    }
}

/* Whether bytes more may be written, looking at the reader's progress only when it must. */
static bool has_room(kv_record_ring_t *ring, size_t bytes)
{
    const size_t capacity = ring->mask + 1;
    if (capacity - (ring->written - ring->seen_released) >= bytes) {
        return true;
    }
    ring->seen_released = atomic_load(&ring->released);
    return capacity - (ring->written - ring->seen_released) >= bytes;
}

void *kv_record_ring_reserve(kv_record_ring_t *ring, size_t size)
{
    const size_t bytes = (sizeof(header_t) + size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t at = ring->written & ring->mask;
    const size_t to_end = ring->mask + 1 - at;
    const size_t filler = to_end < bytes ? to_end : 0;
    if (WEFT_UNLIKELY(!has_room(ring, filler + bytes))) {
        return NULL;
    }
    if (filler > 0) {
        *(header_t *)(void *)(ring->data + at) = (header_t){(uint32_t)filler, 1};
        at = 0;
    }
    header_t *header = (void *)(ring->data + at);
    *header = (header_t){(uint32_t)bytes, 0};
    ring->written += filler + bytes;
    return header + 1;
}

void kv_record_ring_publish(kv_record_ring_t *ring)
{
    atomic_store(&ring->published, ring->written);
}

size_t kv_record_ring_unpublished(const kv_record_ring_t *ring)
{
    return ring->written - atomic_load_explicit(&ring->published, memory_order_relaxed);
}

size_t kv_record_ring_capacity(const kv_record_ring_t *ring)
{
    return ring->mask + 1;
}

bool kv_record_ring_is_empty(kv_record_ring_t *ring)
{
    if (ring->read == ring->seen_published) {
        ring->seen_published = atomic_load(&ring->published);
    }
    return ring->read == ring->seen_published;
}

bool kv_record_ring_is_half_free(kv_record_ring_t *ring)
{
    return atomic_load(&ring->published) - ring->read <= (ring->mask + 1) / 2;
}

static header_t *header_at(const kv_record_ring_t *ring)
{
    return (void *)(ring->data + (ring->read & ring->mask));
}

const void *kv_record_ring_front(kv_record_ring_t *ring)
{
    if (kv_record_ring_is_empty(ring)) {
        return NULL;
    }
    if (header_at(ring)->is_filler) { /* a record follows: they are published together */
        ring->read += header_at(ring)->bytes;
    }
    return header_at(ring) + 1;
}

void kv_record_ring_pop(kv_record_ring_t *ring)
{
    ring->read += header_at(ring)->bytes;
}

void kv_record_ring_release(kv_record_ring_t *ring)
{
    atomic_store(&ring->released, ring->read);
}
