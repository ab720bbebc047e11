/* SPDX-License-Identifier: Apache-2.0 */
/* remote_pair: two stores, one of which takes blocks from the other. Everything asserts. */
#pragma once

#include "base/clock.h"
#include "tests/support/store_rig.h"

enum { REMOTE_PAIR_BASE = 1000, REMOTE_PAIR_BLOCKS = 6 }; /* of the chain that is shared */

#define REMOTE_PAIR_PATIENCE_NS (60 * WEFT_NS_PER_SECOND)

typedef struct remote_pair {
    store_rig_t owner;
    store_rig_t reader;
    kv_remote_config_t owner_remote;
    kv_remote_config_t reader_remote;
    char listen[64]; /* a port that stays the owner's while it is not there */
    char peers[64];
    char backends[8];
} remote_pair_t;

/* By a backend of the fabric; the owner with a host tier of so many blocks (0: none). */
void remote_pair_open(remote_pair_t *pair, const char *backend, size_t host_blocks);
/* The same without one, when the owner has computed the chain and the reader has met it. */
void remote_pair_open_shared(remote_pair_t *pair, const char *backend, store_rig_chain_t *chain);
void remote_pair_close(remote_pair_t *pair);

/* The halves of open: pair is zeros but for backends. */
void remote_pair_open_owner(remote_pair_t *pair, size_t host_blocks);
void remote_pair_open_reader(remote_pair_t *pair, unsigned port, const char *shape,
                             uint64_t wait_ns);
/* A store of one of them anew; remote NULL: it takes no part. */
void remote_pair_reopen(store_rig_t *rig, const kv_remote_config_t *remote, size_t host_blocks);

/* The owner computes the chain; it is the same for both, since hashes follow from tokens. */
void remote_pair_share(remote_pair_t *pair, store_rig_chain_t *chain);
void remote_pair_meet(store_rig_t *reader); /* waits for its peer */
/* As the scheduler does, until peers have answered or their time is over. */
void remote_pair_ask(store_rig_t *reader, const store_rig_chain_t *chain, uint32_t first);
/* Blocks that came from the peer, of those it is known to have; fetch asks first, for all. */
uint32_t remote_pair_read(store_rig_t *reader, store_rig_chain_t *chain, uint32_t first);
uint32_t remote_pair_fetch(store_rig_t *reader, store_rig_chain_t *chain);
kv_tier_stats_t remote_pair_tier(const store_rig_t *reader);
