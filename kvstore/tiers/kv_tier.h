/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_tier: a place below the device's memory that keeps blocks, as a table of functions.
 *
 * Blocks go down when the tier above gives them up (put) and are read back (get) into device
 * memory; a block read stays. A tier may forget any block at any time and says so. Nothing here
 * waits: a tier that cannot keep up refuses a put and finishes a get later, on threads of its own.
 * What a tier gives back is what it was given, byte for byte, or an error.
 *
 * Threads  every function is for one thread, the engine's; wake is called from any
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/device.h"
#include "base/diag.h"
#include "base/status.h"
#include "kvstore/hash/kv_extra.h"
#include "kvstore/hash/kv_hash.h"
#include "kvstore/kv_names.h"

typedef enum kv_tier_id {
#define TIER(name, medium) KV_TIER_##name,
#include "kvstore/tiers/kv_tiers.def"
#undef TIER
    KV_TIER_COUNT
} kv_tier_id_t;

const char *kv_tier_name(kv_tier_id_t id);
const char *kv_tier_medium(kv_tier_id_t id);

typedef struct kv_tier kv_tier_t;

typedef struct kv_tier_config {
    weft_device_t *device; /* whose memory get writes to and put reads from; borrowed */
    uint32_t block_tokens;
    size_t block_bytes;
    size_t budget_bytes;        /* that the tier may take */
    const char *path;           /* disk: a folder, made when missing */
    const struct kv_io_ops *io; /* disk: how to read and write; NULL: the best that works here */
    const weft_mem_t *memory;   /* remote: of the device; every dst of get is a whole block of it */
    const struct kv_remote_config *remote; /* remote: whom to ask, and how; read by open */
    struct kv_offer
        *offer; /* host: what peers may read, which its blocks become part of; or NULL */
    const uint8_t *fingerprint; /* [32] of model, layout, KV dtype and hash algorithm with its root:
                                   blocks of another one are not this one's */
    /* Called from within put, finish_puts, get, poll and clear, never from another thread. */
    void (*on_stored)(void *user, const kv_name_t *name);
    void (*on_removed)(void *user, const kv_hash_t *hash);
    /* Before a block is forgotten for space: content is readable until this returns. */
    void (*on_evict)(void *user, const kv_name_t *name, const void *content);
    void *user;
    void (*wake)(void *user); /* any thread: poll has something */
    void *wake_user;
} kv_tier_config_t;

/* The end of a get. */
typedef struct kv_tier_done {
    void *tag;            /* as given to get */
    weft_status_t status; /* WEFT_OK: all bytes are at dst; else dst holds anything */
    uint64_t read_ns;     /* that the tier worked on it: waiting behind others is left out */
} kv_tier_done_t;

typedef struct kv_tier_stats {
    uint64_t blocks; /* present */
    uint64_t capacity_blocks;
    uint64_t puts; /* since start, so below */
    uint64_t puts_refused;
    uint64_t gets;
    uint64_t gets_failed; /* what was damaged included */
    uint64_t evictions;
    uint64_t damaged; /* blocks whose bytes were not those that were put; dropped */
    uint64_t read_bytes;
    uint64_t written_bytes;
    uint64_t read_ns;   /* sum over gets, from get to poll's report */
    uint64_t in_flight; /* gets not yet reported, puts not yet landed */
    uint64_t peers;     /* that can be read from now */
    uint64_t lookups;   /* that ask started, so below; 0 in tiers without */
    uint64_t lookups_late;
    uint64_t lookups_declined; /* computing was as good */
    uint64_t stale;            /* gets of blocks that their owner had used otherwise by then */
} kv_tier_stats_t;

typedef struct kv_tier_ops {
    kv_tier_id_t id;

    /* A tier that cannot be had (no space, no right) is an error with diag; the store goes on
     * without. Blocks found there are announced by the first poll, parents first. */
    weft_status_t (*open)(const kv_tier_config_t *config, weft_diag_t *diag, kv_tier_t **tier_out);
    /* Finishes what is in flight; what would be lost goes to on_evict, newest first. NULL is fine. */
    void (*close)(kv_tier_t *tier);

    /*
     * Of a tier that has to ask elsewhere what it has: so of these blocks of a chain [n]. compute_ns:
     * what computing one takes, 0 if that is not known; what is not worth reading is then not there.
     * WEFT_PENDING: call again when poll has something, which it has in some time; WEFT_OK: has and
     * get know. NULL: they always do.
     */
    weft_status_t (*ask)(kv_tier_t *tier, const kv_hash_t *hashes, uint32_t n, double compute_ns);
    bool (*has)(const kv_tier_t *tier, const kv_hash_t *hash); /* and get would find it */
    void (*touch)(kv_tier_t *tier, const kv_hash_t *hash);     /* now the last to be evicted */
    /*
     * content [block_bytes]: of the device, or of the host tier's memory; read before finish_puts
     * returns, where there is one, else before this does. OK also when it is there already (which
     * counts as use for the order of eviction). on_stored follows once get would find it.
     * WEFT_ERR_QUEUE_FULL, WEFT_ERR_IO: not taken; WEFT_ERR_UNSUPPORTED: nor ever will be.
     */
    weft_status_t (*put)(kv_tier_t *tier, const kv_name_t *name, const void *content);
    /* Waits until all that was put has been read. What could not be is forgotten. NULL: nothing waits. */
    void (*finish_puts)(kv_tier_t *tier);
    /* dst [block_bytes]: device memory, not touched by anybody until poll reports tag.
     * WEFT_PENDING; WEFT_ERR_NOT_FOUND; WEFT_ERR_QUEUE_FULL: later. */
    weft_status_t (*get)(kv_tier_t *tier, const kv_hash_t *hash, void *dst, void *tag);
    /* How many ends were written to done [max]; also moves writes on. */
    uint32_t (*poll)(kv_tier_t *tier, kv_tier_done_t *done, uint32_t max);
    /* content [block_bytes], readable after finish_puts until the next put; NULL: not here. Tiers that
     * keep blocks elsewhere than in this process's memory have no such function. */
    const void *(*peek)(const kv_tier_t *tier, const kv_hash_t *hash);
    /* Forgets all, silently; gets in flight still end. */
    void (*clear)(kv_tier_t *tier);
    kv_tier_stats_t (*stats)(const kv_tier_t *tier);
} kv_tier_ops_t;

/* The base of every tier's struct. */
struct kv_tier {
    const kv_tier_ops_t *ops;
};

extern const kv_tier_ops_t kv_tier_host;
extern const kv_tier_ops_t kv_tier_disk;
extern const kv_tier_ops_t kv_tier_remote;
