/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_offer_server: answers peers that want blocks of a kv_offer, and lets them read those over the fabric.
 *
 *   peer                          server
 *   Hello, its facts           →
 *                              ←  Welcome: the fabric's metadata, where blocks and epochs lie
 *                                 or Refuse: what differs
 *   Lookup, a chain's hashes   →
 *                              ←  Found: where the leading ones are, with their epochs
 *   (reads block and epoch, one-sided)
 *
 * It remembers nothing of peers. Whatever a stranger sends it goes on: what is not a message gets no
 * answer and is counted. Who reaches the port can read the blocks: listen where all are trusted.
 *
 * Threads  one of its own, and the fabric's; the engine is never waited for, nor made to wait for
 *          more than the offer's lock
 */
#pragma once

#include "kvstore/remote/kv_offer.h"

typedef struct kv_offer_server kv_offer_server_t;

typedef struct kv_offer_server_config {
    kv_offer_t *offer;              /* outlives the server; no shelf is added any more */
    const char *listen;             /* "host:port": kv_remote_endpoint */
    uint32_t port_offset;           /* added to a port that is not 0 */
    const char *backends;           /* of the fabric; NULL, "": all */
    const char *params;             /* of those; NULL, "": none */
    const kv_remote_facts_t *facts; /* copied */
} kv_offer_server_config_t;

weft_status_t kv_offer_server_create(const kv_offer_server_config_t *config, weft_diag_t *diag,
                                     kv_offer_server_t **server_out);
/* Nobody reads when it returns. NULL is fine. */
void kv_offer_server_destroy(kv_offer_server_t *server);
uint16_t kv_offer_server_port(const kv_offer_server_t *server);

typedef struct kv_offer_server_stats {
    uint64_t welcomed; /* hellos, so below */
    uint64_t refused;  /* of workers that are too different */
    uint64_t lookups;
    uint64_t found_blocks; /* by them */
    uint64_t garbage;      /* what was not a message, or not one for a server */
} kv_offer_server_stats_t;

kv_offer_server_stats_t kv_offer_server_stats(const kv_offer_server_t *server); /* any thread */
