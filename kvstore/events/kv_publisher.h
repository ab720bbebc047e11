/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_publisher: tells the world which blocks this process holds: vLLM's KV events over ZeroMQ.
 *
 * The engine writes what happened into a ring (no allocation, no lock, no system call but a wake
 * when the publisher sleeps); a thread of the publisher's own makes batches of it, encodes, numbers
 * and sends them (PUB) and answers replay requests (ROUTER). Subscribers never slow the engine: what
 * they do not take is dropped, which they see in the numbers. With a replay endpoint it keeps the
 * last buffer_steps batches, and what was present before the oldest of them, so that every
 * subscriber can rebuild the exact state: a replay that asks for batches no longer kept begins with
 * one synthetic batch (AllBlocksCleared, then BlockStored of what was present, parents first) that
 * carries the number of the last dropped one.
 *
 * docs/kv-events.md says what is on the wire.
 *
 * Threads  stored … flush: one thread, the engine's; destroy when that is done. The rest: any
 */
#pragma once

#include <jansson.h>

#include "base/diag.h"
#include "base/status.h"
#include "kvstore/tiers/kv_tier.h"

typedef struct kv_publisher kv_publisher_t;

typedef struct kv_publisher_config {
    const char *events_config; /* --kv-events-config: JSON; NULL, "": no events */
    const char *encoding;      /* --kv-events-encoding: of kv_event_encodings.def; NULL, "": map */
    uint32_t block_tokens;
    kv_hash_algo_t algo;
    uint32_t data_parallel_rank; /* ports are shifted by it */
    bool has_int_hashes;         /* their last 64 bits; else whole digests. Not read from the
                                    environment here: VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0 is
                                    for whoever makes this to see */
} kv_publisher_config_t;

/*
 * *publisher_out is NULL when the configuration does not enable events. WEFT_ERR_INVALID: diag
 * names the field. WEFT_ERR_IN_USE: the endpoint is taken.
 */
weft_status_t kv_publisher_create(const kv_publisher_config_t *config, weft_diag_t *diag,
                                  kv_publisher_t **publisher_out);
void kv_publisher_destroy(kv_publisher_t *publisher); /* drains for up to a second; NULL is fine */

/*
 * NULL publishers are fine: nothing is told. When the ring is full these wait for the publisher, as
 * vLLM's queue does, and the wait is counted. Blocks that are stored one after another, each the
 * parent of the next, become one event.
 */
void kv_publisher_stored(kv_publisher_t *publisher, kv_tier_id_t tier, const kv_name_t *name);
void kv_publisher_removed(kv_publisher_t *publisher, kv_tier_id_t tier, const kv_hash_t *hash);
void kv_publisher_cleared(kv_publisher_t *publisher);
void kv_publisher_flush(kv_publisher_t *publisher); /* the step is over: one batch, if any */

/*
 * The configuration as resolved, real endpoints in it: {"<rank>": {…}}; {} of a NULL publisher. A
 * new reference; NULL: no memory.
 */
json_t *kv_publisher_sources(const kv_publisher_t *publisher);

typedef struct kv_publisher_stats {
    uint64_t batches; /* sent, so below */
    uint64_t events;
    uint64_t blocks;  /* stored and removed */
    uint64_t replays; /* requests answered */
    uint64_t bytes;   /* of payloads */
    uint64_t stalls;  /* times the engine found the ring full and had to wait */
    uint64_t wakes;   /* system calls that the engine made to wake the publisher */
} kv_publisher_stats_t;

kv_publisher_stats_t kv_publisher_stats(const kv_publisher_t *publisher);
