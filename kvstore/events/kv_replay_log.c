/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_replay_log.h"

#include <string.h>

#include "base/alloc.h"
#include "kvstore/events/kv_event_message.h"

typedef struct entry {
    zmq_msg_t payload;
    bool has_payload;
} entry_t;

struct kv_replay_log {
    kv_replay_log_config_t config;
    entry_t *entries; /* [capacity], batch n at n % capacity */
    uint64_t begin;
    uint64_t end;
    kv_event_mirror_t *before; /* of begin */
    double before_ts;
};

weft_status_t kv_replay_log_create(const kv_replay_log_config_t *config, kv_replay_log_t **log_out)
{
    const kv_event_mirror_config_t mirror = {.block_tokens = config->block_tokens};
    kv_replay_log_t *log = weft_zalloc(sizeof(*log), "kv_replay_log.log");
    if (log == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    log->config = *config;
    log->entries =
        weft_calloc((size_t)config->capacity + 1, sizeof(entry_t), "kv_replay_log.entries");
    if (log->entries == NULL || kv_event_mirror_create(&mirror, &log->before) < 0) {
        kv_replay_log_destroy(log);
        return WEFT_ERR_NO_MEMORY;
    }
    *log_out = log;
    return WEFT_OK;
}

/* One place more than batches are kept, so that a capacity of 0 is none of its own. */
static entry_t *entry_at(kv_replay_log_t *log, uint64_t sequence)
{
    return &log->entries[sequence % ((uint64_t)log->config.capacity + 1)];
}

void kv_replay_log_destroy(kv_replay_log_t *log)
{
    if (log == NULL) {
        return;
    }
    for (uint64_t i = log->begin; i < log->end; i++) {
        if (entry_at(log, i)->has_payload) {
            zmq_msg_close(&entry_at(log, i)->payload);
        }
    }
    kv_event_mirror_destroy(log->before);
    weft_free(log->entries);
    weft_free(log);
}

static weft_status_t drop_oldest(kv_replay_log_t *log)
{
    entry_t *entry = entry_at(log, log->begin);
    kv_event_batch_t batch = {0};
    weft_status_t status = WEFT_OK;
    if (entry->has_payload) {
        status = kv_event_batch_decode(zmq_msg_data(&entry->payload), zmq_msg_size(&entry->payload),
                                       NULL, &batch);
    }
    if (status >= 0 && entry->has_payload) {
        log->before_ts = batch.ts;
        status = kv_event_mirror_apply_batch(log->before, log->begin, &batch);
    }
    kv_event_batch_fini(&batch);
    if (entry->has_payload) {
        zmq_msg_close(&entry->payload);
    }
    entry->has_payload = false;
    log->begin++;
    return status;
}

weft_status_t kv_replay_log_push(kv_replay_log_t *log, zmq_msg_t *payload)
{
    entry_t *entry = entry_at(log, log->end);
    entry->has_payload = payload != NULL;
    if (payload != NULL) {
        zmq_msg_init(&entry->payload);
        zmq_msg_copy(&entry->payload, payload);
    }
    log->end++;
    return log->end - log->begin > log->config.capacity ? drop_oldest(log) : WEFT_OK;
}

uint64_t kv_replay_log_begin(const kv_replay_log_t *log)
{
    return log->begin;
}

uint64_t kv_replay_log_end(const kv_replay_log_t *log)
{
    return log->end;
}

zmq_msg_t *kv_replay_log_at(kv_replay_log_t *log, uint64_t sequence)
{
    entry_t *entry = entry_at(log, sequence);
    return entry->has_payload ? &entry->payload : NULL;
}

/* ---- what fell out --------------------------------------------------------------------------- */

typedef struct summary {
    const kv_event_encoding_t *encoding;
    weft_buffer_t events;
    uint32_t n;
} summary_t;

static weft_status_t add_event(void *user, const kv_event_t *event)
{
    summary_t *summary = user;
    kv_event_encode(&summary->events, summary->encoding, KV_EVENT_WIDE, event);
    summary->n++;
    return summary->events.is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

weft_status_t kv_replay_log_summary(kv_replay_log_t *log, zmq_msg_t *payload_out)
{
    const kv_event_t cleared = {.kind = KV_EVENT_CLEARED};
    summary_t summary = {.encoding = log->config.encoding};
    weft_status_t status = add_event(&summary, &cleared);
    if (status >= 0) {
        status = kv_event_mirror_write(log->before, add_event, &summary);
    }
    if (status >= 0) {
        status = kv_event_message(log->before_ts, &summary.events, summary.n, log->config.rank,
                                  payload_out);
    }
    weft_buffer_free(&summary.events);
    return status;
}
