/* SPDX-License-Identifier: Apache-2.0 */
/* kv_event_mirror: all that is present as events again, parents first. */
#include <string.h>

#include "base/alloc.h"
#include "kvstore/events/kv_event_mirror_priv.h"

#define MAX_RUN 65536 /* blocks of one event */

enum { MARK_NONE, MARK_ON_WAY, MARK_WRITTEN };

typedef struct writer {
    kv_event_mirror_t *mirror;
    weft_status_t (*fn)(void *user, const kv_event_t *event);
    void *user;
    uint32_t *way; /* [length] from a block up to what is not written yet */
    uint32_t length;
    uint32_t capacity;
    weft_buffer_t hashes;
    weft_buffer_t tokens;
    weft_buffer_t extras;
} writer_t;

static bool push(writer_t *writer, uint32_t id)
{
    if (writer->length == writer->capacity) {
        const uint32_t capacity = writer->capacity == 0 ? 1024 : 2 * writer->capacity;
        uint32_t *way = weft_realloc(writer->way, capacity * sizeof(*way), "kv_event_mirror.way");
        if (way == NULL) {
            return false;
        }
        writer->way = way;
        writer->capacity = capacity;
    }
    writer->way[writer->length++] = id;
    return true;
}

/* Strangers' events may make a circle of parents: what is on the way already ends it. */
static weft_status_t climb(writer_t *writer, uint32_t id)
{
    writer->length = 0;
    while (id != NODE_NONE) {
        node_t *node = mirror_node(writer->mirror, id);
        if (node->mark != MARK_NONE || node->media == 0) {
            break;
        }
        if (!push(writer, id)) {
            return WEFT_ERR_NO_MEMORY;
        }
        node->mark = MARK_ON_WAY;
        id = node->parent;
    }
    return WEFT_OK;
}

static bool go_together(const node_t *a, const node_t *b)
{
    return a->media == b->media && a->traits == b->traits && a->group == b->group &&
           a->has_tokens == b->has_tokens;
}

static void add_block(writer_t *writer, uint32_t id)
{
    const kv_event_mirror_t *mirror = writer->mirror;
    node_t *node = mirror_node(mirror, id);
    weft_buffer_append(&writer->hashes, &node->hash, sizeof(node->hash));
    if (node->has_tokens) {
        weft_buffer_append(&writer->tokens, mirror_tokens(mirror, id),
                           mirror->config.block_tokens * sizeof(uint32_t));
    }
    if (node->extra == KV_EVENT_BLOB_NONE) {
        kv_event_put_nil(&writer->extras);
    } else {
        const kv_msgpack_span_t extra = kv_event_blobs_get(mirror->blobs, node->extra);
        weft_buffer_append(&writer->extras, extra.data, extra.length);
    }
    node->mark = MARK_WRITTEN;
}

/* One event for each medium that has these blocks. */
static weft_status_t emit(writer_t *writer, kv_event_t *event, uint8_t media)
{
    const kv_event_mirror_t *mirror = writer->mirror;
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; i < mirror->n_media && status >= 0; i++) {
        if ((media >> i & 1) != 0) {
            event->medium = kv_event_text(mirror->media[i].is_nil ? NULL : mirror->media[i].name);
            status = writer->fn(writer->user, event);
        }
    }
    return status;
}

/* way[from - 1] … way[to]: a run, as way is from the end of a chain to its front. */
static weft_status_t write_run(writer_t *writer, uint32_t from, uint32_t to)
{
    const kv_event_mirror_t *mirror = writer->mirror;
    const node_t *first = mirror_node(mirror, writer->way[from - 1]);
    const kv_msgpack_span_t traits = kv_event_blobs_get(mirror->blobs, first->traits);
    const uint32_t n = from - to;
    kv_event_batch_t batch;
    weft_buffer_clear(&writer->hashes);
    weft_buffer_clear(&writer->tokens);
    weft_buffer_clear(&writer->extras);
    kv_event_put_array(&writer->extras, n);
    for (uint32_t i = from; i-- > to;) {
        add_block(writer, writer->way[i]);
    }
    weft_status_t status = kv_event_batch_decode(traits.data, traits.length, NULL, &batch);
    if (status < 0) {
        return status;
    }
    kv_event_t event = batch.events[0];
    event.block_hashes = (kv_event_hashes_t){(const void *)writer->hashes.data, n};
    event.token_ids = (kv_event_tokens_t){(const void *)writer->tokens.data,
                                          (uint32_t)(writer->tokens.length / sizeof(uint32_t))};
    if (event.extra_keys.data != NULL) {
        event.extra_keys = (kv_event_items_t){writer->extras.data, (uint32_t)writer->extras.length};
    }
    if (first->parent != NODE_NONE) {
        event.parent_block_hash = mirror_node(mirror, first->parent)->hash;
    }
    status = writer->hashes.is_failed || writer->tokens.is_failed || writer->extras.is_failed
                 ? WEFT_ERR_NO_MEMORY
                 : emit(writer, &event, first->media);
    kv_event_batch_fini(&batch);
    return status;
}

static weft_status_t write_way(writer_t *writer)
{
    weft_status_t status = WEFT_OK;
    uint32_t from = writer->length;
    while (from > 0 && status >= 0) {
        const node_t *first = mirror_node(writer->mirror, writer->way[from - 1]);
        uint32_t to = from - 1;
        while (to > 0 && from - to < MAX_RUN &&
               go_together(first, mirror_node(writer->mirror, writer->way[to - 1]))) {
            to--;
        }
        status = write_run(writer, from, to);
        from = to;
    }
    return status;
}

weft_status_t kv_event_mirror_write(kv_event_mirror_t *mirror,
                                    weft_status_t (*fn)(void *user, const kv_event_t *event),
                                    void *user)
{
    writer_t writer = {.mirror = mirror, .fn = fn, .user = user};
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; i < mirror->n_nodes; i++) {
        mirror_node(mirror, i)->mark = MARK_NONE;
    }
    /* Every block is on the way up from a block without children: chains come whole. */
    for (uint32_t i = 0; i < mirror->n_nodes && status >= 0; i++) {
        const node_t *node = mirror_node(mirror, i);
        if (node->is_used && node->media != 0 && node->children == 0) {
            status = climb(&writer, i);
            status = status < 0 ? status : write_way(&writer);
        }
    }
    weft_free(writer.way);
    weft_buffer_free(&writer.hashes);
    weft_buffer_free(&writer.tokens);
    weft_buffer_free(&writer.extras);
    return status;
}
