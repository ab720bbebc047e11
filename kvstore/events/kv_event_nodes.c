/* SPDX-License-Identifier: Apache-2.0 */
/* kv_event_mirror: the blocks, and the table that finds them. */
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "kvstore/events/kv_event_mirror_priv.h"

#define MIN_SLOTS 64
#define MAX_NODES (UINT32_C(1) << 31)

/* Numbers may be anybody's, so all bits count; the finalizer of splitmix64. */
static uint32_t tag_of(const kv_event_hash_t *hash, uint32_t group)
{
    uint64_t z;
    memcpy(&z, hash->bytes, sizeof(z));
    z += group * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(z ^ (z >> 31));
}

static slot_t *make_slots(uint32_t n)
{
    slot_t *slots = weft_alloc(n * sizeof(*slots), "kv_event_mirror.slots");
    if (slots != NULL) {
        memset(slots, 0xff, n * sizeof(*slots));
    }
    return slots;
}

weft_status_t mirror_nodes_init(kv_event_mirror_t *mirror)
{
    mirror->free = NODE_NONE;
    mirror->mask = MIN_SLOTS - 1;
    mirror->slots = make_slots(MIN_SLOTS);
    return mirror->slots == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

static void free_chunks(kv_event_mirror_t *mirror)
{
    for (uint32_t i = 0; i < mirror->n_chunks; i++) {
        weft_free(mirror->chunks[i].nodes);
        weft_free(mirror->chunks[i].tokens);
    }
    weft_free(mirror->chunks);
    mirror->chunks = NULL;
    mirror->n_chunks = 0;
}

void mirror_nodes_fini(kv_event_mirror_t *mirror)
{
    free_chunks(mirror);
    weft_free(mirror->slots);
}

void mirror_nodes_clear(kv_event_mirror_t *mirror)
{
    slot_t *slots = make_slots(MIN_SLOTS);
    free_chunks(mirror);
    mirror->n_nodes = 0;
    mirror->used = 0;
    mirror->blocks = 0;
    mirror->free = NODE_NONE;
    if (slots == NULL) { /* then the large one is kept */
        memset(mirror->slots, 0xff, ((size_t)mirror->mask + 1) * sizeof(*slots));
        return;
    }
    weft_free(mirror->slots);
    mirror->slots = slots;
    mirror->mask = MIN_SLOTS - 1;
}

/* The slot of that block, or the empty one where it would go. */
static uint32_t slot_of(const kv_event_mirror_t *mirror, const kv_event_hash_t *hash,
                        uint32_t group, uint32_t tag)
{
    uint32_t i = tag & mirror->mask;
    for (; mirror->slots[i].node != NODE_NONE; i = (i + 1) & mirror->mask) {
        if (mirror->slots[i].tag == tag) {
            const node_t *node = mirror_node(mirror, mirror->slots[i].node);
            if (node->group == group && memcmp(&node->hash, hash, sizeof(*hash)) == 0) {
                break;
            }
        }
    }
    return i;
}

static weft_status_t grow_slots(kv_event_mirror_t *mirror)
{
    const uint32_t mask = 2 * mirror->mask + 1;
    slot_t *slots = make_slots(mask + 1);
    if (slots == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i <= mirror->mask; i++) {
        if (mirror->slots[i].node != NODE_NONE) {
            uint32_t to = mirror->slots[i].tag & mask;
            while (slots[to].node != NODE_NONE) {
                to = (to + 1) & mask;
            }
            slots[to] = mirror->slots[i];
        }
    }
    weft_free(mirror->slots);
    mirror->slots = slots;
    mirror->mask = mask;
    return WEFT_OK;
}

static weft_status_t add_chunk(kv_event_mirror_t *mirror)
{
    const size_t token_bytes = (size_t)CHUNK_NODES * mirror->config.block_tokens * sizeof(uint32_t);
    chunk_t chunk = {.nodes = weft_alloc(CHUNK_NODES * sizeof(node_t), "kv_event_mirror.nodes")};
    chunk_t *chunks = weft_realloc(mirror->chunks, (mirror->n_chunks + 1) * sizeof(*chunks),
                                   "kv_event_mirror.chunks");
    if (token_bytes > 0) {
        chunk.tokens = weft_alloc(token_bytes, "kv_event_mirror.tokens");
    }
    if (chunks != NULL) {
        mirror->chunks = chunks;
    }
    if (chunks == NULL || chunk.nodes == NULL || (token_bytes > 0 && chunk.tokens == NULL)) {
        weft_free(chunk.nodes);
        weft_free(chunk.tokens);
        return WEFT_ERR_NO_MEMORY;
    }
    chunks[mirror->n_chunks++] = chunk;
    return WEFT_OK;
}

static uint32_t take_node(kv_event_mirror_t *mirror)
{
    const uint32_t id = mirror->free;
    if (id != NODE_NONE) {
        mirror->free = mirror_node(mirror, id)->parent;
        return id;
    }
    if (mirror->n_nodes == mirror->n_chunks * CHUNK_NODES &&
        (mirror->n_nodes >= MAX_NODES || add_chunk(mirror) < 0)) {
        return NODE_NONE;
    }
    return mirror->n_nodes++;
}

uint32_t mirror_find(const kv_event_mirror_t *mirror, const kv_event_hash_t *hash, uint32_t group)
{
    return mirror->slots[slot_of(mirror, hash, group, tag_of(hash, group))].node;
}

uint32_t mirror_find_or_add(kv_event_mirror_t *mirror, const kv_event_hash_t *hash, uint32_t group)
{
    const uint32_t tag = tag_of(hash, group);
    uint32_t i = slot_of(mirror, hash, group, tag);
    if (mirror->slots[i].node != NODE_NONE) {
        return mirror->slots[i].node;
    }
    if (mirror->used >= mirror->mask / 4 * 3) {
        if (grow_slots(mirror) < 0) {
            return NODE_NONE;
        }
        i = slot_of(mirror, hash, group, tag);
    }
    const uint32_t id = take_node(mirror);
    if (id != NODE_NONE) {
        *mirror_node(mirror, id) = (node_t){.hash = *hash,
                                            .is_used = true,
                                            .group = group,
                                            .parent = NODE_NONE,
                                            .traits = KV_EVENT_BLOB_NONE,
                                            .extra = KV_EVENT_BLOB_NONE};
        mirror->slots[i] = (slot_t){tag, id};
        mirror->used++;
    }
    return id;
}

/* Shifts followers back, so that no search ends too early and nothing has to mark the place. */
static void empty_slot(kv_event_mirror_t *mirror, uint32_t hole)
{
    const uint32_t mask = mirror->mask;
    for (uint32_t i = (hole + 1) & mask; mirror->slots[i].node != NODE_NONE; i = (i + 1) & mask) {
        const uint32_t home = mirror->slots[i].tag & mask;
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            mirror->slots[hole] = mirror->slots[i];
            hole = i;
        }
    }
    mirror->slots[hole] = (slot_t){UINT32_MAX, NODE_NONE};
}

void mirror_free_node(kv_event_mirror_t *mirror, uint32_t id)
{
    node_t *node = mirror_node(mirror, id);
    empty_slot(mirror, slot_of(mirror, &node->hash, node->group, tag_of(&node->hash, node->group)));
    node->is_used = false;
    node->parent = mirror->free;
    mirror->free = id;
    mirror->used--;
}
