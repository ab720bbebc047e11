/* SPDX-License-Identifier: Apache-2.0 */
/* kv_publisher: its thread. */
#define WEFT_LOG_MODULE "kv-events"
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "kvstore/events/kv_publisher_priv.h"

#define DRAIN_NS (1 * WEFT_NS_PER_SECOND)

/* Batches between two looks at the replay socket: some milliseconds. */
#define MAX_BATCHES_AT_ONCE 256

/* The number is used up also when there is no memory for the batch: its readers see that it is
 * missing. */
static void publish(kv_publisher_t *publisher, double ts)
{
    zmq_msg_t payload;
    const uint64_t sequence = publisher->next_sequence++;
    weft_status_t status = kv_publisher_batch_take(publisher, ts, &payload);
    const bool is_made = status >= 0;
    if (is_made) {
        atomic_fetch_add_explicit(&publisher->counts.batches, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&publisher->counts.bytes, zmq_msg_size(&payload),
                                  memory_order_relaxed);
        kv_publisher_send(publisher, sequence, &payload);
    }
    if (publisher->log != NULL) {
        const weft_status_t kept = kv_replay_log_push(publisher->log, is_made ? &payload : NULL);
        status = status < 0 ? status : kept;
    }
    if (is_made) {
        zmq_msg_close(&payload);
    }
    if (status < 0) {
        weft_log_error("a batch of events was lost sequence=%llu: %s", (unsigned long long)sequence,
                       weft_strerror(status));
    }
}

/* Whether the record ended a batch. */
static bool take_record(kv_publisher_t *publisher, const record_t *record)
{
    double ts;
    switch ((record_kind_t)record->kind) {
    case RECORD_STORED:
        kv_publisher_batch_stored(publisher, record);
        break;
    case RECORD_REMOVED:
        kv_publisher_batch_removed(publisher, record);
        break;
    case RECORD_CLEARED:
        kv_publisher_batch_cleared(publisher);
        break;
    case RECORD_FLUSH:
        memcpy(&ts, record->data, sizeof(ts));
        publish(publisher, ts);
        return true;
    }
    return false;
}

/* The engine has its space again batch by batch, and within a long one every 64 records. One that
 * waits is woken once half of the ring is free, so that they do not take turns record by record. */
static void release(kv_publisher_t *publisher)
{
    kv_record_ring_release(publisher->ring);
    if (kv_record_ring_is_half_free(publisher->ring)) {
        kv_gate_wake(&publisher->room);
    }
}

/* Whether there was anything. */
static bool drain(kv_publisher_t *publisher)
{
    uint32_t n_batches = 0;
    uint32_t n_records = 0;
    const record_t *record;
    while (n_batches < MAX_BATCHES_AT_ONCE &&
           (record = kv_record_ring_front(publisher->ring)) != NULL) {
        const bool is_batch = take_record(publisher, record);
        kv_record_ring_pop(publisher->ring);
        n_batches += is_batch;
        if (is_batch || ++n_records % 64 == 0) {
            release(publisher);
        }
    }
    release(publisher);
    return n_records + n_batches > 0;
}

static void wait(kv_publisher_t *publisher)
{
    zmq_pollitem_t items[] = {{.fd = publisher->wake.fd, .events = ZMQ_POLLIN},
                              {.socket = publisher->replay_socket, .events = ZMQ_POLLIN}};
    kv_gate_announce(&publisher->wake);
    if (kv_record_ring_is_empty(publisher->ring) && !atomic_load(&publisher->is_stopping)) {
        zmq_poll(items, publisher->replay_socket == NULL ? 1 : 2, -1);
    }
    kv_gate_leave(&publisher->wake);
}

static void serve(kv_publisher_t *publisher)
{
    uint64_t deadline = UINT64_MAX;
    for (;;) {
        const bool is_stopping = atomic_load(&publisher->is_stopping);
        if (is_stopping && deadline == UINT64_MAX) {
            deadline = weft_clock_ns() + DRAIN_NS;
        }
        const bool had_records = drain(publisher);
        /* Requests one at a time, with all that has gathered meanwhile in between: however many
         * replays are asked for, the ring does not fill. */
        const bool had_request = publisher->replay_socket != NULL && kv_publisher_answer(publisher);
        if (is_stopping && (!had_records || weft_clock_ns() > deadline)) {
            return;
        }
        if (!had_records && !had_request) {
            wait(publisher);
        }
    }
}

void *kv_publisher_run(void *user)
{
    kv_publisher_t *publisher = user;
    publisher->start_status = kv_publisher_open(publisher, &publisher->start_diag);
    const bool is_open = publisher->start_status >= 0;
    sem_post(&publisher->started);
    if (is_open) {
        serve(publisher);
    }
    kv_publisher_close(publisher);
    kv_publisher_batch_fini(&publisher->batch);
    return NULL;
}
