/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_lease_table: blocks that peers may read, and until when.
 *
 *            progress           hold                 read by all, expired, dropped
 *   open ──────────────► open ─────────► held ──────────────────────────────────────► gone
 *        retract: as new        (drop: gone)
 *
 * An open lease borrows the blocks of a request that runs; a held one has references of its own. A
 * held lease ends when as many readers as there are have said that they are done, or at its expiry,
 * which heartbeats move: to max(old, now + two thirds of its length).
 *
 * Epochs     each lease has a word in memory that peers read; its value changes *before* the blocks of
 *            the lease can be anybody else's, so whoever finds the same value before and after reading
 *            has read what he wanted. Values are never used twice, not by a process that took another's
 *            place either (random start)
 *
 * Threads    the engine's alone; peers read the words
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "kvstore/kv_pool.h"
#include "kvstore/transfer/kv_transfer_params.h"

typedef struct kv_lease_table kv_lease_table_t;
typedef struct kv_lease kv_lease_t;

typedef enum kv_lease_state { KV_LEASE_OPEN, KV_LEASE_HELD } kv_lease_state_t;

struct kv_lease {
    kv_lease_table_t *table;
    kv_lease_state_t state;
    kv_lease_ref_t ref;
    char *transfer_id; /* NULL: none, so the next */
    char *request_id;
    kv_block_id_t *blocks; /* [n_blocks] from the request's start */
    uint32_t n_blocks;
    uint32_t capacity;
    uint32_t tokens; /* filled */
    uint32_t readers_done;
    uint32_t readers; /* as they say; 0: nobody has said it */
    uint64_t expires_ns;
    void *user; /* the owner's, so for the next; both 0 when it begins */
    uint64_t id;
    kv_lease_t *next; /* of the leases, or of the free ones */
    kv_lease_t *prev;
    kv_lease_t *next_of_transfer_id; /* in the same bucket */
    kv_lease_t *next_of_request_id;
};

typedef struct kv_lease_table_config {
    kv_pool_t *pool;   /* borrowed */
    uint64_t *words;   /* [n_slots] aligned, borrowed; peers read them */
    uint32_t n_slots;  /* leases at a time */
    uint64_t lease_ns; /* how long a held lease is good */
    /* A lease is about to go; its blocks are still what they were. May be NULL. */
    void (*on_gone)(void *user, kv_lease_t *lease);
    void *user;
} kv_lease_table_config_t;

typedef struct kv_lease_stats {
    uint64_t held; /* ever */
    uint64_t open_now;
    uint64_t held_now;
    uint64_t blocks_now; /* of held ones */
    uint64_t released;
    uint64_t expired;
    uint64_t late; /* readers that were done with what is not, or no longer, leased */
    uint64_t heartbeats;
} kv_lease_stats_t;

weft_status_t kv_lease_table_create(const kv_lease_table_config_t *config,
                                    kv_lease_table_t **table_out);
void kv_lease_table_destroy(kv_lease_table_t *table); /* everything goes; NULL is fine */

/* WEFT_ERR_QUEUE_FULL: no slot is free. WEFT_ERR_EXISTS: the id. */
weft_status_t kv_lease_table_open(kv_lease_table_t *table, const char *transfer_id,
                                  kv_lease_t **lease_out);

/* The first n blocks are these, n_tokens filled. Less than before: WEFT_ERR_INVALID (retract). */
weft_status_t kv_lease_table_fill(kv_lease_t *lease, const kv_block_id_t *blocks, uint32_t n,
                                  uint32_t n_tokens);
void kv_lease_table_retract(kv_lease_t *lease);
void kv_lease_table_drop(kv_lease_t *lease); /* lease is dead; NULL is fine */

/*
 * lease is held from now on; NULL: a new one. *lease_io NULL afterwards: all its readers are done
 * already, nothing is held. An error drops it.
 */
weft_status_t kv_lease_table_hold(kv_lease_table_t *table, const char *request_id,
                                  const kv_block_id_t *blocks, uint32_t n, uint32_t n_tokens,
                                  uint64_t now_ns, kv_lease_t **lease_io);

/* By request id or transfer id; NULL: none. */
kv_lease_t *kv_lease_table_find(const kv_lease_table_t *table, const char *id, size_t length);

/* A reader, of so many, is done. False: no such lease, which is counted. */
bool kv_lease_table_read(kv_lease_table_t *table, const char *id, size_t length, uint32_t readers);
void kv_lease_table_heartbeat(kv_lease_table_t *table, const char *id, size_t length,
                              uint64_t now_ns);

kv_lease_t *kv_lease_table_first(const kv_lease_table_t *table); /* the others by next */
void *kv_lease_table_user(const kv_lease_table_t *table);        /* as it was configured */

/* Leases that are over go; how many did. */
uint32_t kv_lease_table_expire(kv_lease_table_t *table, uint64_t now_ns);
/* None expires before; UINT64_MAX: there is none. */
uint64_t kv_lease_table_next_expiry(const kv_lease_table_t *table);

kv_lease_stats_t kv_lease_table_stats(const kv_lease_table_t *table);

/* For tests: adds one to users[block] for each reference that a lease holds. */
void kv_lease_table_count(const kv_lease_table_t *table, uint32_t *users);
