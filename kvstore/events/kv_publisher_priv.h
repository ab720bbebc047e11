/* SPDX-License-Identifier: Apache-2.0 */
/* kv_publisher: what its two threads share, and what each has of its own. */
#pragma once

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "base/buffer.h"
#include "kvstore/events/kv_event_codec.h"
#include "kvstore/events/kv_events_config.h"
#include "kvstore/events/kv_gate.h"
#include "kvstore/events/kv_publisher.h"
#include "kvstore/events/kv_record_ring.h"
#include "kvstore/events/kv_replay_log.h"

typedef enum record_kind {
    RECORD_STORED,  /* hash, parent, tokens */
    RECORD_REMOVED, /* hash */
    RECORD_CLEARED,
    RECORD_FLUSH, /* the time, a double */
} record_kind_t;

/* What the engine says, in the ring. Hashes are in the form that is published, of hash_bytes. */
typedef struct record {
    uint8_t kind;
    uint8_t tier;
    bool is_first;
    kv_extra_t *extra; /* a reference, given to the publisher; or NULL */
    uint8_t data[];
} record_t;

/* The publisher thread's batch in the making. */
typedef struct kv_publisher_batch {
    weft_buffer_t events; /* encoded ones */
    uint32_t n_events;
    uint32_t n_blocks;
    /* Blocks of one chain that are not encoded yet: */
    weft_buffer_t hashes; /* kv_event_hash_t */
    weft_buffer_t tokens; /* uint32_t */
    weft_buffer_t extras; /* scratch */
    kv_event_hash_t parent;
    kv_event_hash_t last;
    uint8_t tier;
    kv_extra_t *extra; /* a reference */
    uint32_t n_chained;
} kv_publisher_batch_t;

/* Written by the publisher's thread, or the engine's; read by any. */
typedef struct kv_publisher_counts {
    atomic_uint_fast64_t batches;
    atomic_uint_fast64_t events;
    atomic_uint_fast64_t blocks;
    atomic_uint_fast64_t bytes;
    atomic_uint_fast64_t replays;
    atomic_uint_fast64_t stalls;
    atomic_uint_fast64_t wakes;
} kv_publisher_counts_t;

struct kv_publisher {
    kv_events_config_t config; /* endpoints are the real ones once started */
    const kv_event_encoding_t *encoding;
    uint32_t block_tokens;
    uint32_t digest_bytes;
    uint32_t hash_bytes; /* 8: numbers */
    bool has_int_hashes;
    uint32_t rank;

    /* engine's thread */
    bool has_records; /* since the last flush */
    size_t publish_above;

    kv_record_ring_t *ring;
    kv_gate_t wake; /* the publisher waits: for records, requests, the end */
    kv_gate_t room; /* the engine waits: for room in the ring */
    atomic_bool is_stopping;
    kv_publisher_counts_t counts;

    pthread_t thread;
    bool has_thread;
    sem_t started; /* posted by the thread once start_status and start_diag are written */
    weft_status_t start_status;
    weft_diag_t start_diag;

    /* publisher's thread */
    void *context; /* libzmq's, so below */
    void *events_socket;
    void *replay_socket;  /* or NULL */
    kv_replay_log_t *log; /* with replay_socket */
    uint64_t next_sequence;
    kv_publisher_batch_t batch;
};

/* ---- kv_publisher_batch.c ---- */

/* extra's reference is taken over. Failures show when the batch is taken. */
void kv_publisher_batch_stored(kv_publisher_t *publisher, const record_t *record);
void kv_publisher_batch_removed(kv_publisher_t *publisher, const record_t *record);
void kv_publisher_batch_cleared(kv_publisher_t *publisher);

/* The payload of all since the last take. */
weft_status_t kv_publisher_batch_take(kv_publisher_t *publisher, double ts, zmq_msg_t *payload_out);
void kv_publisher_batch_fini(kv_publisher_batch_t *batch);

/* ---- kv_publisher_sockets.c ---- */

weft_status_t kv_publisher_open(kv_publisher_t *publisher, weft_diag_t *diag);
void kv_publisher_close(kv_publisher_t *publisher);
/* One message of topic, sequence, payload; payload stays the caller's. */
void kv_publisher_send(kv_publisher_t *publisher, uint64_t sequence, zmq_msg_t *payload);
bool kv_publisher_answer(kv_publisher_t *publisher); /* one request, if there is one */

/* ---- kv_publisher_thread.c ---- */

void *kv_publisher_run(void *publisher);
