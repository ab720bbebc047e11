/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prefill_peers: prefill workers by their URLs, and the side channels that they named.
 *
 * Threads  the loop
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PREFILL_PEERS_MAX 64

typedef struct prefill_peer {
    char url[256];
    char host[256];
    uint16_t port;
    uint32_t tp_size; /* its ranks */
    uint32_t pp_size;
} prefill_peer_t;

/* Zeroed memory knows nobody; the one not learnt for longest makes room. */
typedef struct prefill_peers {
    prefill_peer_t peers[PREFILL_PEERS_MAX];
    uint32_t next;
} prefill_peers_t;

const prefill_peer_t *prefill_peers_find(const prefill_peers_t *peers, const char *url);
/* From the body of its GET /kv_transfer; NULL: not what it should be. */
const prefill_peer_t *prefill_peers_learn(prefill_peers_t *peers, const char *url, const char *body,
                                          size_t length);
void prefill_peers_forget(prefill_peers_t *peers, const char *url);
