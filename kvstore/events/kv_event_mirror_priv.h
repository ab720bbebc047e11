/* SPDX-License-Identifier: Apache-2.0 */
/* kv_event_mirror: its blocks and their table, for the files that apply events and write them. */
#pragma once

#include "kvstore/events/kv_event_blobs.h"
#include "kvstore/events/kv_event_mirror.h"

#define NODE_NONE UINT32_MAX

/* A block that is present, or the absent parent of one (media 0), which has no parent itself. */
typedef struct node {
    kv_event_hash_t hash;
    uint8_t media; /* bits, as in mirror->media */
    bool has_tokens;
    bool is_used;
    uint8_t mark;      /* of kv_event_mirror_write */
    uint32_t group;    /* group_idx, nil as 0 */
    uint32_t parent;   /* NODE_NONE: the first of its chain; next free one while not in use */
    uint32_t children; /* how many have it as parent */
    uint32_t traits;   /* blobs: what else its event said */
    uint32_t extra;    /* blobs: its entry of extra_keys; KV_EVENT_BLOB_NONE: nil */
} node_t;

/* Nodes and their tokens lie in chunks, so that growing copies none of them. */
#define CHUNK_NODES 4096

typedef struct chunk {
    node_t *nodes;    /* [CHUNK_NODES] */
    uint32_t *tokens; /* [CHUNK_NODES * block_tokens], or NULL */
} chunk_t;

/* Linear probing; tag is the low half of the hash's mix. */
typedef struct slot {
    uint32_t tag;
    uint32_t node; /* NODE_NONE: empty */
} slot_t;

typedef struct medium {
    char name[16]; /* terminated */
    bool is_nil;
    uint64_t present;
} medium_t;

struct kv_event_mirror {
    kv_event_mirror_config_t config;
    kv_event_blobs_t *blobs;
    chunk_t *chunks; /* [n_chunks] */
    uint32_t n_chunks;
    uint32_t n_nodes; /* ever used since the last clear */
    uint32_t free;    /* list of unused ones */
    uint32_t used;
    uint64_t blocks; /* of used, those that are present */
    slot_t *slots;   /* [mask + 1] */
    uint32_t mask;
    medium_t media[KV_EVENT_MIRROR_MEDIA];
    uint32_t n_media;
    bool has_sequence;
    uint64_t next_sequence;
    weft_buffer_t scratch;
};

static inline node_t *mirror_node(const kv_event_mirror_t *mirror, uint32_t id)
{
    return &mirror->chunks[id / CHUNK_NODES].nodes[id % CHUNK_NODES];
}

static inline uint32_t *mirror_tokens(const kv_event_mirror_t *mirror, uint32_t id)
{
    return mirror->chunks[id / CHUNK_NODES].tokens +
           (size_t)(id % CHUNK_NODES) * mirror->config.block_tokens;
}

/* The medium called text, or KV_EVENT_MIRROR_MEDIA. */
uint32_t mirror_find_medium(const kv_event_mirror_t *mirror, kv_event_text_t text);

weft_status_t mirror_nodes_init(kv_event_mirror_t *mirror);
void mirror_nodes_fini(kv_event_mirror_t *mirror);
void mirror_nodes_clear(kv_event_mirror_t *mirror);

uint32_t mirror_find(const kv_event_mirror_t *mirror, const kv_event_hash_t *hash, uint32_t group);
/* The one that is there, or a new one with nothing but its name. NODE_NONE: no memory. */
uint32_t mirror_find_or_add(kv_event_mirror_t *mirror, const kv_event_hash_t *hash, uint32_t group);
void mirror_free_node(kv_event_mirror_t *mirror, uint32_t id);
