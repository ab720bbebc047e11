/* SPDX-License-Identifier: Apache-2.0 */
/* kv_side_channel_priv: the channel's state, for its own files. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "kvstore/events/kv_gate.h"
#include "kvstore/transfer/kv_side_channel.h"

#define KV_SIDE_CHANNEL_MAX_ENDPOINT 320

typedef enum kv_ask_state { KV_ASK_NEW, KV_ASK_SENT, KV_ASK_ENDED } kv_ask_state_t;

typedef struct kv_side_ask {
    struct kv_side_ask *next;
    kv_side_client_t *client; /* NULL: closed meanwhile. Guarded by lock */
    char endpoint[KV_SIDE_CHANNEL_MAX_ENDPOINT];
    kv_meta_request_t rank;
    uint64_t tag;
    /* The thread's alone. */
    kv_ask_state_t state;
    void *socket;
    void *monitor;
    bool is_v6;       /* IPv4 addresses are none, or refused */
    bool has_address; /* one that was tried */
    uint64_t sent_ns;
} kv_side_ask_t;

struct kv_side_client {
    kv_side_channel_t *channel;
    kv_side_client_t *next; /* guarded by lock, so for all below */
    kv_side_client_config_t config;
    bool is_serving;
    kv_meta_request_t rank;
    char *payload;
    size_t bytes;
    uint64_t wake_ns;
    kv_side_answer_t *answers; /* the oldest first */
    kv_side_answer_t **answers_end;
};

struct kv_side_channel {
    void *context;
    void *router;
    uint16_t port;
    pthread_t thread;
    bool has_thread;
    kv_gate_t gate;
    pthread_mutex_t lock;
    /* Held by the thread while it calls wake; taken by who closes a client. */
    pthread_mutex_t wake_lock;
    kv_side_client_t *clients;
    kv_side_ask_t *new_asks; /* the newest first */
    bool is_stopping;
    kv_side_ask_t *asks; /* sent; their links change under the lock, by the thread alone */
    uint32_t n_asks;
    uint64_t n_monitors; /* ever: names. The thread's alone */
    /* Relaxed: counts for people. */
    _Atomic uint64_t answered;
    _Atomic uint64_t refused;
};

/* kv_side_server.c */
weft_status_t kv_side_server_open(kv_side_channel_t *channel, const char *host, uint16_t port,
                                  weft_diag_t *diag);
bool kv_side_server_answer(kv_side_channel_t *channel); /* one request; false: there was none */

/* kv_side_asks.c: on the channel's thread. */
void kv_side_ask_begin(kv_side_channel_t *channel, kv_side_ask_t *ask);
void kv_side_ask_look(kv_side_channel_t *channel, kv_side_ask_t *ask, uint64_t now_ns);
void kv_side_ask_destroy(kv_side_ask_t *ask);
/* WEFT_ERR_INVALID: host is no name that a socket would take. */
weft_status_t kv_side_endpoint(const char *host, uint16_t port,
                               char endpoint_out[KV_SIDE_CHANNEL_MAX_ENDPOINT]);

/* kv_side_channel.c: takes answer, whose client may be gone. */
void kv_side_channel_deliver(kv_side_channel_t *channel, kv_side_ask_t *ask,
                             kv_side_answer_t *answer);
