/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_remote_peers: the workers whose blocks may be read, each from meeting it to losing it.
 *
 *             hello            welcome             measured
 *     away ──────────► greeted ─────────► measured ──────────► ready
 *      ▲                  │ refuse            │                   │
 *      │ in a minute      ▼                   │ failed, silent    │
 *      └────────────── refused                │                   │
 *      └────────── after 1 s, doubling to 60 s┴───────────────────┘
 *
 * A peer is met when its worker comes up, before or after us. Its way is measured (kv_remote_cost.h)
 * before a request depends on it.
 *
 * Threads  one, the engine's. Nothing here waits
 */
#pragma once

#include "kvstore/remote/kv_offer.h"
#include "kvstore/remote/kv_remote_cost.h"
#include "kvstore/remote/kv_remote_lines.h"
#include "transport/xfer/xfer.h"

typedef struct kv_remote_peers kv_remote_peers_t;

typedef struct kv_remote_peers_config {
    const char *peers;              /* "host:port,host:port" */
    const kv_remote_facts_t *facts; /* copied */
    size_t block_bytes;
    xfer_agent_t *agent;       /* borrowed */
    const weft_mem_t *scratch; /* [KV_OFFER_PROBE_BYTES], registered: measuring writes to it */
    /* By poll: an answer to a lookup, of a peer that is ready. */
    void (*on_found)(void *user, uint32_t peer, const Weft__Remote__Found *found, uint64_t at_ns);
    /* Its blocks are no more to be read; who reads is to cancel. */
    void (*on_lost)(void *user, uint32_t peer);
    void *user;
    void (*wake)(void *user); /* any thread: poll has something */
    void *wake_user;
} kv_remote_peers_config_t;

weft_status_t kv_remote_peers_create(const kv_remote_peers_config_t *config, weft_diag_t *diag,
                                     kv_remote_peers_t **peers_out);
/* Requests made of its lists end before. NULL is fine. */
void kv_remote_peers_destroy(kv_remote_peers_t *peers);

void kv_remote_peers_poll(kv_remote_peers_t *peers, uint64_t now_ns);
/* wake is called then, or earlier: also for other_ns, of the caller's own. */
void kv_remote_peers_plan_wake(kv_remote_peers_t *peers, uint64_t other_ns);

uint32_t kv_remote_peers_count(const kv_remote_peers_t *peers);
uint32_t kv_remote_peers_ready(const kv_remote_peers_t *peers); /* how many are */
bool kv_remote_peer_is_ready(const kv_remote_peers_t *peers, uint32_t peer);
/* Changes when it is lost: what was known of its blocks is nothing any more. */
uint64_t kv_remote_peer_generation(const kv_remote_peers_t *peers, uint32_t peer);
const kv_remote_rates_t *kv_remote_peer_rates(const kv_remote_peers_t *peers, uint32_t peer);

weft_status_t kv_remote_peer_ask(kv_remote_peers_t *peers, uint32_t peer, uint64_t number,
                                 const kv_hash_t *hashes, uint32_t n);
/* What has been seen of it. */
void kv_remote_peer_answered(kv_remote_peers_t *peers, uint32_t peer, uint64_t ns);
void kv_remote_peer_was_late(kv_remote_peers_t *peers, uint32_t peer, uint64_t now_ns);
void kv_remote_peer_was_read(kv_remote_peers_t *peers, uint32_t peer, uint64_t bytes, uint64_t ns);
/* It costs too much, by what was measured: measured again if that was long ago. */
void kv_remote_peer_was_declined(kv_remote_peers_t *peers, uint32_t peer, uint64_t now_ns);
void kv_remote_peer_fail(kv_remote_peers_t *peers, uint32_t peer, const char *why, uint64_t now_ns);

/* Its shelf as a list whose pieces are blocks, and where their epochs are. False: no such block. */
bool kv_remote_peer_find(const kv_remote_peers_t *peers, uint32_t peer,
                         const kv_offer_place_t *place, const xfer_list_t **list_out,
                         xfer_guard_t *guard_out);
