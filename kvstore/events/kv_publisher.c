/* SPDX-License-Identifier: Apache-2.0 */
/* kv_publisher: the engine's side, start and end. */
#define WEFT_LOG_MODULE "kv-events"
#include "kvstore/events/kv_publisher.h"

#include <assert.h>
#include <signal.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/compiler.h"
#include "base/log.h"
#include "kvstore/events/kv_publisher_priv.h"

#define MIN_RING_BYTES ((size_t)1 << 20)
#define MAX_RING_BYTES ((size_t)256 << 20)

/* ---- what the engine says -------------------------------------------------------------------- */

/* vLLM's queue makes the engine wait, too: an event that is not said is worse than a late one. */
static void *wait_for_room(kv_publisher_t *publisher, size_t size)
{
    void *room = NULL;
    if (atomic_fetch_add(&publisher->counts.stalls, 1) == 0) {
        weft_log_warn("the engine waits for the publisher of events ring_bytes=%zu: a larger "
                      "max_queue_size may help",
                      kv_record_ring_capacity(publisher->ring));
    }
    kv_record_ring_publish(publisher->ring);
    while (room == NULL) {
        kv_gate_wake(&publisher->wake);
        kv_gate_announce(&publisher->room);
        room = kv_record_ring_reserve(publisher->ring, size);
        if (room != NULL) {
            kv_gate_leave(&publisher->room);
        } else {
            kv_gate_wait(&publisher->room, -1);
        }
    }
    return room;
}

static record_t *begin_record(kv_publisher_t *publisher, record_kind_t kind, size_t data_bytes)
{
    const size_t size = sizeof(record_t) + data_bytes;
    if (kv_record_ring_unpublished(publisher->ring) > publisher->publish_above) {
        kv_record_ring_publish(publisher->ring); /* a long step: the publisher need not wait */
    }
    record_t *record = kv_record_ring_reserve(publisher->ring, size);
    if (WEFT_UNLIKELY(record == NULL)) {
        record = wait_for_room(publisher, size);
    }
    *record = (record_t){.kind = (uint8_t)kind};
    publisher->has_records = true;
    return record;
}

/* A number is the digest's last 8 bytes. */
static uint8_t *put_hash(const kv_publisher_t *publisher, uint8_t *at, const kv_hash_t *hash)
{
    memcpy(at, hash->bytes + publisher->digest_bytes - publisher->hash_bytes,
           publisher->hash_bytes);
    return at + publisher->hash_bytes;
}

void kv_publisher_stored(kv_publisher_t *publisher, kv_tier_id_t tier, const kv_name_t *name)
{
    if (publisher == NULL) {
        return;
    }
    const size_t token_bytes = publisher->block_tokens * sizeof(*name->tokens);
    record_t *record =
        begin_record(publisher, RECORD_STORED, 2 * (size_t)publisher->hash_bytes + token_bytes);
    record->tier = (uint8_t)tier;
    record->is_first = name->is_first;
    record->extra = kv_extra_acquire(name->extra);
    uint8_t *at = put_hash(publisher, record->data, &name->hash);
    at = put_hash(publisher, at, &name->parent);
    memcpy(at, name->tokens, token_bytes);
}

void kv_publisher_removed(kv_publisher_t *publisher, kv_tier_id_t tier, const kv_hash_t *hash)
{
    if (publisher == NULL) {
        return;
    }
    record_t *record = begin_record(publisher, RECORD_REMOVED, publisher->hash_bytes);
    record->tier = (uint8_t)tier;
    put_hash(publisher, record->data, hash);
}

void kv_publisher_cleared(kv_publisher_t *publisher)
{
    if (publisher != NULL) {
        begin_record(publisher, RECORD_CLEARED, 0);
    }
}

void kv_publisher_flush(kv_publisher_t *publisher)
{
    if (publisher == NULL || !publisher->has_records) {
        return;
    }
    const double ts = (double)weft_wallclock_ns() / (double)WEFT_NS_PER_SECOND;
    record_t *record = begin_record(publisher, RECORD_FLUSH, sizeof(ts));
    memcpy(record->data, &ts, sizeof(ts));
    publisher->has_records = false;
    kv_record_ring_publish(publisher->ring);
    if (kv_gate_wake(&publisher->wake)) {
        atomic_fetch_add_explicit(&publisher->counts.wakes, 1, memory_order_relaxed);
    }
}

/* ---- start and end --------------------------------------------------------------------------- */

/* A queue of n batches of vLLM's holds about as much as n records of some blocks each. */
static size_t ring_bytes_of(const kv_publisher_t *publisher)
{
    const size_t record = sizeof(record_t) + 2 * (size_t)publisher->hash_bytes +
                          publisher->block_tokens * sizeof(int32_t);
    const size_t wanted = publisher->config.max_queue_size * (size_t)256;
    const size_t most = wanted < MAX_RING_BYTES ? wanted : MAX_RING_BYTES;
    const size_t least = 64 * record > MIN_RING_BYTES ? 64 * record : MIN_RING_BYTES;
    return most > least ? most : least;
}

static weft_status_t shift_endpoints(kv_publisher_t *publisher, weft_diag_t *diag)
{
    char **endpoints[] = {&publisher->config.endpoint, &publisher->config.replay_endpoint};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(endpoints); i++) {
        char *shifted = NULL;
        const weft_status_t status =
            *endpoints[i] == NULL ? WEFT_OK
                                  : kv_events_shift(*endpoints[i], publisher->rank, diag, &shifted);
        if (status < 0) {
            return status;
        }
        weft_free(*endpoints[i]);
        *endpoints[i] = shifted;
    }
    return WEFT_OK;
}

static weft_status_t start_thread(kv_publisher_t *publisher, weft_diag_t *diag)
{
    sigset_t every, before;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    const int error = pthread_create(&publisher->thread, NULL, kv_publisher_run, publisher);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "KV events: no thread: %s", strerror(error));
    }
    publisher->has_thread = true;
    pthread_setname_np(publisher->thread, "weft-kv-events");
    while (sem_wait(&publisher->started) != 0) { /* a signal's handler ran */
    }
    if (publisher->start_status < 0 && diag != NULL) {
        *diag = publisher->start_diag;
    }
    return publisher->start_status;
}

static weft_status_t start(kv_publisher_t *publisher, weft_diag_t *diag)
{
    weft_status_t status = shift_endpoints(publisher, diag);
    if (status < 0) {
        return status;
    }
    const size_t bytes = ring_bytes_of(publisher);
    status = kv_record_ring_create(bytes, &publisher->ring);
    if (status < 0) {
        return weft_diag(diag, status, "KV events: no memory for a ring of %zu bytes", bytes);
    }
    publisher->publish_above = kv_record_ring_capacity(publisher->ring) / 8;
    if (kv_gate_open(&publisher->wake) < 0 || kv_gate_open(&publisher->room) < 0) {
        return weft_diag(diag, WEFT_ERR_IO, "KV events: eventfd: too many open files?");
    }
    return start_thread(publisher, diag);
}

static weft_status_t make(const kv_publisher_config_t *config, weft_diag_t *diag,
                          kv_publisher_t *publisher)
{
    const bool has_encoding = config->encoding != NULL && config->encoding[0] != '\0';
    publisher->wake.fd = -1;
    publisher->room.fd = -1;
    publisher->block_tokens = config->block_tokens;
    publisher->digest_bytes = kv_hash_algo_bytes(config->algo);
    publisher->has_int_hashes = config->has_int_hashes;
    publisher->hash_bytes = config->has_int_hashes ? 8 : publisher->digest_bytes;
    publisher->rank = config->data_parallel_rank;
    sem_init(&publisher->started, 0, 0);
    const weft_status_t status = kv_event_encoding_parse(has_encoding ? config->encoding : "map",
                                                         diag, &publisher->encoding);
    if (status < 0) {
        weft_diag_prefix(diag, "--kv-events-encoding");
        return status;
    }
    return kv_events_config_parse(config->events_config, diag, &publisher->config);
}

weft_status_t kv_publisher_create(const kv_publisher_config_t *config, weft_diag_t *diag,
                                  kv_publisher_t **publisher_out)
{
    kv_publisher_t *publisher = weft_zalloc(sizeof(*publisher), "kv_publisher");
    if (publisher == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = make(config, diag, publisher);
    const bool is_on = status >= 0 && kv_events_config_is_on(&publisher->config);
    if (is_on) {
        status = start(publisher, diag);
    }
    if (!is_on || status < 0) {
        kv_publisher_destroy(publisher);
        publisher = NULL;
    }
    if (status >= 0) {
        *publisher_out = publisher;
    }
    return status;
}

/* What a thread that never ran, or ran out of time, has left of references. */
static void drop_records(kv_record_ring_t *ring)
{
    for (const record_t *record; ring != NULL && (record = kv_record_ring_front(ring)) != NULL;) {
        kv_extra_release(record->extra);
        kv_record_ring_pop(ring);
    }
}

void kv_publisher_destroy(kv_publisher_t *publisher)
{
    if (publisher == NULL) {
        return;
    }
    if (publisher->has_thread) {
        kv_publisher_flush(publisher);
        atomic_store(&publisher->is_stopping, true);
        kv_gate_wake(&publisher->wake);
        pthread_join(publisher->thread, NULL);
    }
    drop_records(publisher->ring);
    kv_record_ring_destroy(publisher->ring);
    kv_gate_close(&publisher->wake);
    kv_gate_close(&publisher->room);
    sem_destroy(&publisher->started);
    kv_events_config_fini(&publisher->config);
    weft_free(publisher);
}

/* ---- questions ------------------------------------------------------------------------------- */

json_t *kv_publisher_sources(const kv_publisher_t *publisher)
{
    char rank[16];
    json_t *sources = json_object();
    if (publisher == NULL || sources == NULL) {
        return sources;
    }
    snprintf(rank, sizeof(rank), "%u", publisher->rank);
    if (json_object_set_new(sources, rank, kv_events_config_json(&publisher->config)) != 0) {
        json_decref(sources);
        return NULL;
    }
    return sources;
}

kv_publisher_stats_t kv_publisher_stats(const kv_publisher_t *publisher)
{
    if (publisher == NULL) {
        return (kv_publisher_stats_t){0};
    }
    const kv_publisher_counts_t *counts = &publisher->counts;
    return (kv_publisher_stats_t){
        .batches = atomic_load_explicit(&counts->batches, memory_order_relaxed),
        .events = atomic_load_explicit(&counts->events, memory_order_relaxed),
        .blocks = atomic_load_explicit(&counts->blocks, memory_order_relaxed),
        .bytes = atomic_load_explicit(&counts->bytes, memory_order_relaxed),
        .replays = atomic_load_explicit(&counts->replays, memory_order_relaxed),
        .stalls = atomic_load_explicit(&counts->stalls, memory_order_relaxed),
        .wakes = atomic_load_explicit(&counts->wakes, memory_order_relaxed),
    };
}
