/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_side_channel: where workers meet before blocks move: answers handshakes of others (a ZMQ ROUTER),
 * and asks others for theirs. Bytes: kv_handshake.h.
 *
 * Whatever a stranger sends, it goes on: what is not a request, or asks for a rank that is not here,
 * gets no answer and is counted. An asker waits KV_SIDE_CHANNEL_TIMEOUT_NS, and is told at once
 * when nobody listens there.
 *
 * Threads  one of its own, which owns the sockets; every call from any thread. Ranks that share it each
 *          have a client, whose wake is called from that thread
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kvstore/transfer/kv_handshake.h"

#define KV_SIDE_CHANNEL_TIMEOUT_NS (UINT64_C(5) * 1000000000)
#define KV_SIDE_CHANNEL_MAX_ASKS   64 /* at a time; more wait */

typedef struct kv_side_channel kv_side_channel_t;
typedef struct kv_side_client kv_side_client_t;

/* host: a name or an address of this machine, NULL: it asks, and cannot be asked; port 0: the system's
 * choice. */
weft_status_t kv_side_channel_create(const char *host, uint16_t port, weft_diag_t *diag,
                                     kv_side_channel_t **channel_out);
void kv_side_channel_destroy(kv_side_channel_t *channel); /* clients before; NULL is fine */
uint16_t kv_side_channel_port(const kv_side_channel_t *channel);

typedef struct kv_side_channel_stats {
    uint64_t answered;
    uint64_t refused; /* garbage, unknown ranks */
} kv_side_channel_stats_t;

kv_side_channel_stats_t kv_side_channel_stats(const kv_side_channel_t *channel);

typedef struct kv_side_client_config {
    void (*wake)(void *user); /* an answer came, or the time of wake_at; may be NULL */
    void *user;
} kv_side_client_config_t;

weft_status_t kv_side_client_open(kv_side_channel_t *channel, const kv_side_client_config_t *config,
                                  kv_side_client_t **client_out);
/* No wake runs or comes when it returns. Open asks and what it serves go with it. NULL is fine. */
void kv_side_client_close(kv_side_client_t *client);

/* From now on who asks for this rank gets payload [bytes], which is copied. Once a client. */
weft_status_t kv_side_client_serve(kv_side_client_t *client, kv_meta_request_t rank,
                                   const void *payload, size_t bytes);

/* wake is called at this time (weft_clock_ns()); the last call counts. UINT64_MAX: not. */
void kv_side_client_wake_at(kv_side_client_t *client, uint64_t time_ns);

typedef struct kv_side_answer {
    struct kv_side_answer *next; /* the client's */
    uint64_t tag;
    weft_status_t
        status;       /* WEFT_OK, WEFT_ERR_PEER_GONE, WEFT_ERR_TIMEOUT, WEFT_ERR_MALFORMED, ... */
    char reason[128]; /* of an error */
    char *payload;    /* [bytes], of WEFT_OK, not yet looked at */
    size_t bytes;
    bool has_clock;
    double clock_offset; /* seconds that its monotonic clock is ahead of ours */
    double round_trip;
} kv_side_answer_t;

/*
 * Asks host:port for a rank's payload; one answer comes, with this tag. WEFT_ERR_INVALID: no name of a
 * host.
 */
weft_status_t kv_side_client_ask(kv_side_client_t *client, const char *host, uint16_t port,
                                 kv_meta_request_t rank, uint64_t tag);

kv_side_answer_t *kv_side_client_next(kv_side_client_t *client); /* the caller's; NULL: none */
void kv_side_answer_free(kv_side_answer_t *answer);              /* NULL is fine */
