/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_event_blobs.h"

#include <string.h>
#include <xxhash.h>

#include "base/alloc.h"

typedef struct blob {
    char *data; /* NULL: free */
    uint32_t length;
    uint32_t refs;
    uint32_t next; /* of its bucket, or of the free list */
    uint32_t hash;
} blob_t;

struct kv_event_blobs {
    blob_t *blobs; /* [capacity] */
    uint32_t capacity;
    uint32_t free;
    uint32_t *buckets; /* [capacity], capacity is a power of two */
};

/* Twice as many places, the new ones free, and buckets for all. */
static weft_status_t grow(kv_event_blobs_t *blobs)
{
    const uint32_t old = blobs->capacity;
    const uint32_t capacity = old == 0 ? 16 : 2 * old;
    if (capacity > UINT32_C(1) << 30) {
        return WEFT_ERR_NO_MEMORY;
    }
    uint32_t *buckets = weft_alloc(capacity * sizeof(*buckets), "kv_event_blobs.buckets");
    blob_t *places =
        weft_realloc(blobs->blobs, (size_t)capacity * sizeof(*places), "kv_event_blobs.blobs");
    if (places != NULL) {
        blobs->blobs = places; /* valid either way */
    }
    if (buckets == NULL || places == NULL) {
        weft_free(buckets);
        return WEFT_ERR_NO_MEMORY;
    }
    memset(buckets, 0xff, capacity * sizeof(*buckets)); /* KV_EVENT_BLOB_NONE */
    for (uint32_t i = 0; i < old; i++) {
        uint32_t *bucket = &buckets[places[i].hash & (capacity - 1)];
        places[i].next = *bucket;
        *bucket = i;
    }
    for (uint32_t i = capacity; i-- > old;) {
        places[i] = (blob_t){.next = blobs->free};
        blobs->free = i;
    }
    weft_free(blobs->buckets);
    blobs->buckets = buckets;
    blobs->capacity = capacity;
    return WEFT_OK;
}

weft_status_t kv_event_blobs_create(kv_event_blobs_t **blobs_out)
{
    kv_event_blobs_t *blobs = weft_zalloc(sizeof(*blobs), "kv_event_blobs");
    if (blobs == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    blobs->free = KV_EVENT_BLOB_NONE;
    if (grow(blobs) < 0) {
        kv_event_blobs_destroy(blobs);
        return WEFT_ERR_NO_MEMORY;
    }
    *blobs_out = blobs;
    return WEFT_OK;
}

void kv_event_blobs_destroy(kv_event_blobs_t *blobs)
{
    if (blobs == NULL) {
        return;
    }
    for (uint32_t i = 0; i < blobs->capacity; i++) {
        weft_free(blobs->blobs[i].data);
    }
    weft_free(blobs->blobs);
    weft_free(blobs->buckets);
    weft_free(blobs);
}

static uint32_t add(kv_event_blobs_t *blobs, const void *data, uint32_t length, uint32_t hash)
{
    if (blobs->free == KV_EVENT_BLOB_NONE && grow(blobs) < 0) {
        return KV_EVENT_BLOB_NONE;
    }
    char *copy = weft_strndup(data, length, "kv_event_blobs.data");
    if (copy == NULL) {
        return KV_EVENT_BLOB_NONE;
    }
    const uint32_t id = blobs->free;
    blob_t *blob = &blobs->blobs[id];
    uint32_t *bucket = &blobs->buckets[hash & (blobs->capacity - 1)];
    blobs->free = blob->next;
    *blob = (blob_t){.data = copy, .length = length, .refs = 1, .next = *bucket, .hash = hash};
    *bucket = id;
    return id;
}

uint32_t kv_event_blobs_acquire(kv_event_blobs_t *blobs, const void *data, uint32_t length)
{
    const uint32_t hash = (uint32_t)XXH3_64bits(data, length);
    uint32_t id = blobs->buckets[hash & (blobs->capacity - 1)];
    for (; id != KV_EVENT_BLOB_NONE; id = blobs->blobs[id].next) {
        blob_t *blob = &blobs->blobs[id];
        if (blob->hash == hash && blob->length == length && memcmp(blob->data, data, length) == 0) {
            blob->refs++;
            return id;
        }
    }
    return add(blobs, data, length, hash);
}

void kv_event_blobs_retain(kv_event_blobs_t *blobs, uint32_t id)
{
    if (id != KV_EVENT_BLOB_NONE) {
        blobs->blobs[id].refs++;
    }
}

void kv_event_blobs_release(kv_event_blobs_t *blobs, uint32_t id)
{
    if (id == KV_EVENT_BLOB_NONE || --blobs->blobs[id].refs > 0) {
        return;
    }
    blob_t *blob = &blobs->blobs[id];
    uint32_t *link = &blobs->buckets[blob->hash & (blobs->capacity - 1)];
    while (*link != id) {
        link = &blobs->blobs[*link].next;
    }
    *link = blob->next;
    weft_free(blob->data);
    *blob = (blob_t){.next = blobs->free};
    blobs->free = id;
}

kv_msgpack_span_t kv_event_blobs_get(const kv_event_blobs_t *blobs, uint32_t id)
{
    return (kv_msgpack_span_t){blobs->blobs[id].data, blobs->blobs[id].length};
}
