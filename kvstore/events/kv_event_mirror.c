/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_event_mirror.h"

#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "kvstore/events/kv_event_mirror_priv.h"

weft_status_t kv_event_mirror_create(const kv_event_mirror_config_t *config,
                                     kv_event_mirror_t **mirror_out)
{
    kv_event_mirror_t *mirror = weft_zalloc(sizeof(*mirror), "kv_event_mirror");
    if (mirror == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    mirror->config = *config;
    if (mirror_nodes_init(mirror) < 0 || kv_event_blobs_create(&mirror->blobs) < 0) {
        kv_event_mirror_destroy(mirror);
        return WEFT_ERR_NO_MEMORY;
    }
    *mirror_out = mirror;
    return WEFT_OK;
}

void kv_event_mirror_destroy(kv_event_mirror_t *mirror)
{
    if (mirror == NULL) {
        return;
    }
    mirror_nodes_fini(mirror);
    kv_event_blobs_destroy(mirror->blobs);
    weft_buffer_free(&mirror->scratch);
    weft_free(mirror);
}

/* ---- media ----------------------------------------------------------------------------------- */

uint32_t mirror_find_medium(const kv_event_mirror_t *mirror, kv_event_text_t text)
{
    for (uint32_t i = 0; i < mirror->n_media; i++) {
        const medium_t *medium = &mirror->media[i];
        const kv_event_text_t name = kv_event_text(medium->is_nil ? NULL : medium->name);
        if (kv_event_text_equal(name, text)) {
            return i;
        }
    }
    return KV_EVENT_MIRROR_MEDIA;
}

static weft_status_t find_or_add_medium(kv_event_mirror_t *mirror, kv_event_text_t text,
                                        uint32_t *index_out)
{
    *index_out = mirror_find_medium(mirror, text);
    if (*index_out < KV_EVENT_MIRROR_MEDIA) {
        return WEFT_OK;
    }
    if (mirror->n_media == KV_EVENT_MIRROR_MEDIA || text.length >= sizeof(mirror->media[0].name)) {
        return WEFT_ERR_UNSUPPORTED;
    }
    medium_t *medium = &mirror->media[mirror->n_media];
    *medium = (medium_t){.is_nil = text.data == NULL};
    if (text.length > 0) {
        memcpy(medium->name, text.data, text.length);
    }
    *index_out = mirror->n_media++;
    return WEFT_OK;
}

/* ---- one block ------------------------------------------------------------------------------- */

static void report(const kv_event_mirror_t *mirror, kv_event_hole_t hole,
                   const kv_event_hash_t *hash)
{
    if (mirror->config.on_hole != NULL) {
        mirror->config.on_hole(mirror->config.user, hole, hash);
    }
}

/* An absent parent is kept only for its children. */
static void unlink_parent(kv_event_mirror_t *mirror, node_t *node)
{
    const uint32_t id = node->parent;
    node->parent = NODE_NONE;
    if (id == NODE_NONE) {
        return;
    }
    node_t *parent = mirror_node(mirror, id);
    if (--parent->children == 0 && parent->media == 0) {
        mirror_free_node(mirror, id);
    }
}

static void drop_block(kv_event_mirror_t *mirror, uint32_t id)
{
    node_t *node = mirror_node(mirror, id);
    kv_event_blobs_release(mirror->blobs, node->traits);
    kv_event_blobs_release(mirror->blobs, node->extra);
    node->traits = KV_EVENT_BLOB_NONE;
    node->extra = KV_EVENT_BLOB_NONE;
    node->has_tokens = false;
    unlink_parent(mirror, node);
    if (node->children == 0) {
        mirror_free_node(mirror, id);
    }
    mirror->blocks--;
}

/* An event's blocks have all but these in common. */
typedef struct common {
    uint32_t medium;
    uint32_t group;
    uint32_t traits;
    uint32_t parent; /* of the next block */
    bool has_tokens;
} common_t;

/* tokens NULL: not kept. */
static void fill_block(kv_event_mirror_t *mirror, uint32_t id, const common_t *common,
                       uint32_t extra, const uint32_t *tokens)
{
    node_t *node = mirror_node(mirror, id);
    node->traits = common->traits;
    node->extra = extra;
    kv_event_blobs_retain(mirror->blobs, node->traits);
    kv_event_blobs_retain(mirror->blobs, node->extra);
    if (common->parent != NODE_NONE && common->parent != id) {
        node->parent = common->parent;
        mirror_node(mirror, common->parent)->children++;
    }
    node->has_tokens = tokens != NULL;
    if (tokens != NULL) {
        memcpy(mirror_tokens(mirror, id), tokens, mirror->config.block_tokens * sizeof(*tokens));
    }
    mirror->blocks++;
}

static weft_status_t store_block(kv_event_mirror_t *mirror, const kv_event_t *event, uint32_t i,
                                 common_t *common, uint32_t extra)
{
    const kv_event_hash_t *hash = &event->block_hashes.items[i];
    const uint32_t id = mirror_find_or_add(mirror, hash, common->group);
    if (id == NODE_NONE) {
        return WEFT_ERR_NO_MEMORY;
    }
    node_t *node = mirror_node(mirror, id);
    const uint8_t bit = (uint8_t)(1u << common->medium);
    if (node->media == 0) {
        const uint32_t *tokens =
            common->has_tokens ? event->token_ids.items + (size_t)i * mirror->config.block_tokens
                               : NULL;
        if (event->token_ids.count == 0) {
            report(mirror, KV_EVENT_HOLE_UNKNOWN, hash);
        }
        fill_block(mirror, id, common, extra, tokens);
    }
    mirror->media[common->medium].present += (node->media & bit) == 0;
    node->media |= bit;
    common->parent = id;
    return WEFT_OK;
}

/* ---- events ---------------------------------------------------------------------------------- */

/* What the event says of all its blocks, as a batch of one event with nothing else in it. */
static uint32_t acquire_traits(kv_event_mirror_t *mirror, const kv_event_t *event)
{
    static const char one_nil[] = "\x91\xc0";
    const kv_event_hash_t zero = kv_event_hash_number(0);
    kv_event_t bare = *event;
    bare.block_hashes = (kv_event_hashes_t){&zero, 1};
    bare.parent_block_hash = (kv_event_hash_t){0};
    bare.token_ids = (kv_event_tokens_t){NULL, 0};
    bare.medium = (kv_event_text_t){NULL, 0};
    bare.lookahead_token_ids = (kv_event_items_t){NULL, 0};
    if (bare.extra_keys.data != NULL) {
        bare.extra_keys = (kv_event_items_t){one_nil, 2};
    }
    const kv_event_encoding_t *encoding = kv_event_encoding_at(0);
    weft_buffer_clear(&mirror->scratch);
    kv_event_batch_begin(&mirror->scratch, 0, 1);
    kv_event_encode(&mirror->scratch, encoding, KV_EVENT_SHORTEST, &bare);
    kv_event_batch_end(&mirror->scratch, (kv_event_int_t){0});
    return mirror->scratch.is_failed ? KV_EVENT_BLOB_NONE
                                     : kv_event_blobs_acquire(mirror->blobs, mirror->scratch.data,
                                                              (uint32_t)mirror->scratch.length);
}

/* The parent's node, made when it is not there: to know what its children hang on. */
static weft_status_t find_parent(kv_event_mirror_t *mirror, const kv_event_t *event,
                                 common_t *common)
{
    common->parent = NODE_NONE;
    if (event->parent_block_hash.n_bytes == 0) {
        return WEFT_OK;
    }
    common->parent = mirror_find_or_add(mirror, &event->parent_block_hash, common->group);
    if (common->parent == NODE_NONE) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (mirror_node(mirror, common->parent)->media == 0) {
        report(mirror, KV_EVENT_HOLE_PARENT, &event->block_hashes.items[0]);
    }
    return WEFT_OK;
}

static weft_status_t store_blocks(kv_event_mirror_t *mirror, const kv_event_t *event,
                                  common_t *common)
{
    kv_msgpack_t extras = kv_msgpack_of(event->extra_keys.data, event->extra_keys.length);
    kv_msgpack_span_t last = {NULL, 0};
    uint32_t extra = KV_EVENT_BLOB_NONE;
    weft_status_t status = WEFT_OK;
    if (event->extra_keys.data != NULL) {
        kv_msgpack_array(&extras);
    }
    for (uint32_t i = 0; i < event->block_hashes.count && status >= 0; i++) {
        kv_msgpack_span_t entry = {NULL, 0};
        if (event->extra_keys.data != NULL && !kv_msgpack_take_nil(&extras)) {
            entry = kv_msgpack_item(&extras);
        }
        if (!kv_event_text_equal(entry, last)) {
            kv_event_blobs_release(mirror->blobs, extra);
            extra = entry.data == NULL
                        ? KV_EVENT_BLOB_NONE
                        : kv_event_blobs_acquire(mirror->blobs, entry.data, entry.length);
            if (entry.data != NULL && extra == KV_EVENT_BLOB_NONE) {
                return WEFT_ERR_NO_MEMORY;
            }
            last = entry;
        }
        status = store_block(mirror, event, i, common, extra);
    }
    kv_event_blobs_release(mirror->blobs, extra);
    return status;
}

static uint32_t group_of(const kv_event_t *event)
{
    return event->group_idx.is_set ? (uint32_t)event->group_idx.value : 0;
}

/* A parent that nothing came to hang on is not kept. */
static void drop_unused_parent(kv_event_mirror_t *mirror, uint32_t id)
{
    if (id != NODE_NONE) {
        const node_t *node = mirror_node(mirror, id);
        if (node->is_used && node->media == 0 && node->children == 0) {
            mirror_free_node(mirror, id);
        }
    }
}

static weft_status_t apply_stored(kv_event_mirror_t *mirror, const kv_event_t *event)
{
    common_t common = {.group = group_of(event)};
    const uint32_t n = event->block_hashes.count;
    const uint32_t block_tokens = mirror->config.block_tokens;
    if (n == 0) {
        return WEFT_OK;
    }
    weft_status_t status = find_or_add_medium(mirror, event->medium, &common.medium);
    if (status < 0) {
        return status;
    }
    common.has_tokens = block_tokens > 0 && event->block_size == block_tokens &&
                        event->token_ids.count == (uint64_t)n * block_tokens;
    common.traits = acquire_traits(mirror, event);
    if (common.traits == KV_EVENT_BLOB_NONE) {
        return WEFT_ERR_NO_MEMORY;
    }
    status = find_parent(mirror, event, &common);
    const uint32_t parent = common.parent;
    if (status >= 0) {
        status = store_blocks(mirror, event, &common);
    }
    drop_unused_parent(mirror, parent);
    kv_event_blobs_release(mirror->blobs, common.traits);
    return status;
}

static void apply_removed(kv_event_mirror_t *mirror, const kv_event_t *event)
{
    const uint32_t medium = mirror_find_medium(mirror, event->medium);
    const uint8_t bit = medium < KV_EVENT_MIRROR_MEDIA ? (uint8_t)(1u << medium) : 0;
    for (uint32_t i = 0; i < event->block_hashes.count; i++) {
        const kv_event_hash_t *hash = &event->block_hashes.items[i];
        const uint32_t id = mirror_find(mirror, hash, group_of(event));
        node_t *node = id == NODE_NONE ? NULL : mirror_node(mirror, id);
        if (node == NULL || (node->media & bit) == 0) {
            report(mirror, KV_EVENT_HOLE_ABSENT, hash);
            continue;
        }
        mirror->media[medium].present--;
        node->media &= (uint8_t)~bit;
        if (node->media == 0) {
            drop_block(mirror, id);
        }
    }
}

static void clear(kv_event_mirror_t *mirror)
{
    for (uint32_t i = 0; i < mirror->n_nodes; i++) {
        const node_t *node = mirror_node(mirror, i);
        if (node->is_used) {
            kv_event_blobs_release(mirror->blobs, node->traits);
            kv_event_blobs_release(mirror->blobs, node->extra);
        }
    }
    for (uint32_t i = 0; i < mirror->n_media; i++) {
        mirror->media[i].present = 0;
    }
    mirror_nodes_clear(mirror);
}

void kv_event_mirror_restart(kv_event_mirror_t *mirror)
{
    clear(mirror);
    mirror->has_sequence = false;
}

weft_status_t kv_event_mirror_apply(kv_event_mirror_t *mirror, const kv_event_t *event)
{
    switch (event->kind) {
    case KV_EVENT_STORED:
        return apply_stored(mirror, event);
    case KV_EVENT_REMOVED:
        apply_removed(mirror, event);
        break;
    case KV_EVENT_CLEARED:
        clear(mirror);
        break;
    }
    return WEFT_OK;
}

weft_status_t kv_event_mirror_apply_batch(kv_event_mirror_t *mirror, uint64_t sequence,
                                          const kv_event_batch_t *batch)
{
    const bool begins_anew = batch->n_events > 0 && batch->events[0].kind == KV_EVENT_CLEARED;
    weft_status_t status = WEFT_OK;
    if (mirror->has_sequence && sequence != mirror->next_sequence && !begins_anew) {
        report(mirror, KV_EVENT_HOLE_GAP, NULL);
    }
    mirror->has_sequence = true;
    mirror->next_sequence = sequence + 1;
    for (uint32_t i = 0; i < batch->n_events && status >= 0; i++) {
        status = kv_event_mirror_apply(mirror, &batch->events[i]);
    }
    return status;
}

/* ---- questions ------------------------------------------------------------------------------- */

bool kv_event_mirror_has(const kv_event_mirror_t *mirror, kv_event_text_t medium, int64_t group,
                         const kv_event_hash_t *hash)
{
    const uint32_t index = mirror_find_medium(mirror, medium);
    const uint32_t id = mirror_find(mirror, hash, (uint32_t)group);
    return index < KV_EVENT_MIRROR_MEDIA && id != NODE_NONE &&
           (mirror_node(mirror, id)->media >> index & 1) != 0;
}

uint64_t kv_event_mirror_blocks(const kv_event_mirror_t *mirror)
{
    return mirror->blocks;
}

uint64_t kv_event_mirror_present(const kv_event_mirror_t *mirror, kv_event_text_t medium)
{
    const uint32_t index = mirror_find_medium(mirror, medium);
    return index < KV_EVENT_MIRROR_MEDIA ? mirror->media[index].present : 0;
}
