/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_remote_asks: which blocks peers have, asked for a chain at a time, and known for a moment.
 *
 * All peers that are ready are asked at once. The question is decided when they have answered, when
 * one has everything, or when its time is over: the peer from which the blocks are there soonest is
 * taken, if reading is worth it (kv_remote_cost.h). Then the places of its blocks are known, until
 * they are used up, the peer is lost, or others take their room; they may be wrong by then, which
 * the epochs show.
 *
 * Threads  one, the engine's
 */
#pragma once

#include "kvstore/remote/kv_remote_peers.h"

typedef struct kv_remote_asks kv_remote_asks_t;

typedef struct kv_remote_asks_config {
    kv_remote_peers_t *peers; /* borrowed */
    size_t block_bytes;
    uint64_t wait_ns; /* that answers may take */
} kv_remote_asks_config_t;

typedef struct kv_remote_asks_stats {
    uint64_t lookups;  /* questions, to however many peers */
    uint64_t late;     /* that were decided before all had answered, because their time was over */
    uint64_t declined; /* computing was as good */
} kv_remote_asks_stats_t;

weft_status_t kv_remote_asks_create(const kv_remote_asks_config_t *config,
                                    kv_remote_asks_t **asks_out);
void kv_remote_asks_destroy(kv_remote_asks_t *asks); /* NULL is fine */

/*
 * hashes [n] are the blocks of a chain from the first that is wanted on; block_compute_ns: what it
 * takes to compute one, 0 if that is not known. WEFT_PENDING: being asked; call again with the same.
 * WEFT_OK: what is known now is all there is.
 */
weft_status_t kv_remote_asks_ask(kv_remote_asks_t *asks, const kv_hash_t *hashes, uint32_t n,
                                 double block_compute_ns, uint64_t now_ns);

void kv_remote_asks_found(kv_remote_asks_t *asks, uint32_t peer, const Weft__Remote__Found *found,
                          uint64_t at_ns);
void kv_remote_asks_lost(kv_remote_asks_t *asks, uint32_t peer);
void kv_remote_asks_poll(kv_remote_asks_t *asks, uint64_t now_ns);
uint64_t kv_remote_asks_next_ns(const kv_remote_asks_t *asks); /* for poll; UINT64_MAX: never */

/* Where a block is known to be; false: nowhere. */
bool kv_remote_asks_find(const kv_remote_asks_t *asks, const kv_hash_t *hash, uint32_t *peer_out,
                         kv_offer_place_t *place_out);
void kv_remote_asks_forget(kv_remote_asks_t *asks, const kv_hash_t *hash);
void kv_remote_asks_clear(kv_remote_asks_t *asks);
kv_remote_asks_stats_t kv_remote_asks_stats(const kv_remote_asks_t *asks);
