/* SPDX-License-Identifier: Apache-2.0 */
/* KV events: from the call that tells of a block to a subscriber that has read of it. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cli/bench/bench_folder.h"
#include "cli/bench/bench_kv_parts.h"
#include "kvstore/events/kv_publisher.h"

#define BATCHES     4000
#define BATCH       32 /* blocks of a step that are told of */
#define POLL_MS     10
#define STUCK_POLLS 3000 /* 30 s */
#define PAUSE_NS    (20 * WEFT_NS_PER_MS)

typedef struct rig {
    bench_kv_bench_t *bench;
    kv_publisher_t *publisher;
    int32_t *tokens;   /* [block_tokens] */
    kv_hash_t *hashes; /* [BATCHES * BATCH] */
    char folder[BENCH_FOLDER_BYTES];
    char endpoint[BENCH_FOLDER_BYTES + 32];
    void *context;
    void *socket;
    pthread_t reader;
    bool has_reader;
    atomic_bool is_stopping;
    uint64_t n_published;
    /* Released by the reader after a message, the number last; acquired by the publishing thread. */
    atomic_uint_fast64_t n_received;
    atomic_uint_fast64_t last_sequence;
} rig_t;

/* ---- the subscriber -------------------------------------------------------------------------- */

/* [topic] [sequence, 8 bytes, big-endian] [payload]; false: not that, or nothing came. */
static bool receive(void *socket, uint64_t *sequence_out)
{
    uint8_t frame[8];
    uint64_t sequence = 0;
    int is_whole = zmq_recv(socket, frame, 0, 0) == 0; /* the empty topic */
    is_whole = is_whole && zmq_recv(socket, frame, sizeof(frame), 0) == sizeof(frame);
    for (size_t i = 0; is_whole && i < sizeof(frame); i++) {
        sequence = sequence << 8 | frame[i];
    }
    *sequence_out = sequence;
    return is_whole && zmq_recv(socket, frame, sizeof(frame), 0) > 0;
}

static void *read_events(void *user)
{
    rig_t *rig = user;
    uint64_t sequence;
    while (!atomic_load(&rig->is_stopping)) {
        if (receive(rig->socket, &sequence)) {
            atomic_fetch_add(&rig->n_received, 1);
            atomic_store(&rig->last_sequence, sequence);
        }
    }
    return NULL;
}

static weft_status_t open_subscriber(rig_t *rig, weft_diag_t *diag)
{
    const int wait_ms = POLL_MS;
    const int no_bound = 0;
    rig->context = zmq_ctx_new();
    rig->socket = rig->context == NULL ? NULL : zmq_socket(rig->context, ZMQ_SUB);
    if (rig->socket == NULL || zmq_setsockopt(rig->socket, ZMQ_SUBSCRIBE, "", 0) < 0 ||
        zmq_setsockopt(rig->socket, ZMQ_RCVHWM, &no_bound, sizeof(no_bound)) < 0 ||
        zmq_setsockopt(rig->socket, ZMQ_RCVTIMEO, &wait_ms, sizeof(wait_ms)) < 0 ||
        zmq_connect(rig->socket, rig->endpoint) < 0) {
        return weft_diag(diag, WEFT_ERR_IO, "%s: %s", rig->endpoint, zmq_strerror(errno));
    }
    if (pthread_create(&rig->reader, NULL, read_events, rig) != 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    rig->has_reader = true;
    return WEFT_OK;
}

/* ---- the publisher --------------------------------------------------------------------------- */

static weft_status_t open_publisher(rig_t *rig, weft_diag_t *diag)
{
    char events_config[2 * BENCH_FOLDER_BYTES];
    snprintf(rig->endpoint, sizeof(rig->endpoint), "ipc://%s/events", rig->folder);
    snprintf(events_config, sizeof(events_config),
             "{\"enable_kv_cache_events\": true, \"publisher\": \"zmq\", \"endpoint\": \"%s\"}",
             rig->endpoint);
    const kv_publisher_config_t config = {
        .events_config = events_config,
        .encoding = "map",
        .block_tokens = rig->bench->block_tokens,
        .algo = KV_HASH_ALGO_sha256_cbor,
        .has_int_hashes = true,
    };
    const weft_status_t status = kv_publisher_create(&config, diag, &rig->publisher);
    return status >= 0 && rig->publisher == NULL
               ? weft_diag(diag, WEFT_ERR_UNSUPPORTED, "no publisher came of %s", events_config)
               : status;
}

/* A step's blocks, one chain; batch number i of the measurement. */
static void publish(rig_t *rig, uint32_t i)
{
    const kv_hash_t *hashes = &rig->hashes[(size_t)i * BATCH];
    for (uint32_t b = 0; b < BATCH; b++) {
        kv_name_t name = {.hash = hashes[b], .is_first = b == 0, .tokens = rig->tokens};
        if (b > 0) {
            name.parent = hashes[b - 1];
        }
        kv_publisher_stored(rig->publisher, KV_TIER_device, &name);
    }
    kv_publisher_flush(rig->publisher);
    rig->n_published++;
}

/* A subscriber hears nothing of what was sent before the publisher knew of it. */
static weft_status_t wait_for_subscriber(rig_t *rig)
{
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    for (uint32_t tries = 0; atomic_load(&rig->n_received) == 0; tries++) {
        if (tries == STUCK_POLLS) {
            return WEFT_ERR_TIMEOUT;
        }
        publish(rig, 0);
        nanosleep(&pause, NULL);
    }
    return WEFT_OK;
}

/* Until the subscriber has read all that was published. */
static weft_status_t wait_for_last(const rig_t *rig)
{
    const uint64_t deadline = weft_clock_ns() + 30 * WEFT_NS_PER_SECOND;
    while (atomic_load(&rig->last_sequence) + 1 < rig->n_published) {
        if (weft_clock_ns() > deadline) {
            return WEFT_ERR_TIMEOUT;
        }
        sched_yield();
    }
    return WEFT_OK;
}

/* ---- measuring ------------------------------------------------------------------------------- */

static weft_status_t measure(rig_t *rig)
{
    bench_kv_bench_t *bench = rig->bench;
    const uint64_t n_blocks = (uint64_t)BATCHES * BATCH;
    weft_status_t status = wait_for_subscriber(rig);
    if (status >= 0) {
        status = wait_for_last(rig);
    }
    if (status < 0) {
        return status;
    }
    const uint64_t n_before = atomic_load(&rig->n_received);
    const uint64_t start = weft_clock_ns();
    for (uint32_t i = 0; i < BATCHES; i++) {
        publish(rig, i);
    }
    const uint64_t told = weft_clock_ns();
    status = wait_for_last(rig);
    const uint64_t end = weft_clock_ns();
    if (status >= 0 && atomic_load(&rig->n_received) - n_before != BATCHES) {
        status = WEFT_ERR_INTERNAL; /* some were lost on the way */
    }
    if (status >= 0) {
        status = bench_kv_note_rate(bench, "events told", "blocks/s", n_blocks, told - start);
    }
    return status < 0
               ? status
               : bench_kv_note_rate(bench, "events received", "blocks/s", n_blocks, end - start);
}

static weft_status_t rig_init(rig_t *rig, weft_diag_t *diag)
{
    const uint32_t n = BATCHES * BATCH;
    weft_status_t status = bench_folder_create("/tmp", diag, rig->folder);
    if (status < 0) {
        return status;
    }
    rig->tokens = weft_calloc(rig->bench->block_tokens, sizeof(int32_t), "bench_kv.tokens");
    rig->hashes = weft_calloc(n, sizeof(kv_hash_t), "bench_kv.hashes");
    if (rig->tokens == NULL || rig->hashes == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    bench_kv_hashes(rig->bench, 0, n, rig->hashes);
    status = open_publisher(rig, diag);
    return status < 0 ? status : open_subscriber(rig, diag);
}

static void rig_fini(rig_t *rig)
{
    atomic_store(&rig->is_stopping, true);
    if (rig->has_reader) {
        pthread_join(rig->reader, NULL);
    }
    if (rig->socket != NULL) {
        zmq_close(rig->socket);
    }
    if (rig->context != NULL) {
        zmq_ctx_term(rig->context);
    }
    kv_publisher_destroy(rig->publisher);
    weft_free(rig->hashes);
    weft_free(rig->tokens);
    bench_folder_remove(rig->folder);
}

weft_status_t bench_kv_part_events(bench_kv_bench_t *bench, weft_diag_t *diag)
{
    if (!bench->options->events) {
        return WEFT_OK;
    }
    static rig_t rig;
    memset(&rig, 0, sizeof(rig));
    rig.bench = bench;
    weft_status_t status = rig_init(&rig, diag);
    if (status >= 0) {
        status = measure(&rig);
        if (status < 0) {
            weft_diag(diag, status, "KV events: %s", weft_strerror(status));
        }
    }
    rig_fini(&rig);
    return status;
}
