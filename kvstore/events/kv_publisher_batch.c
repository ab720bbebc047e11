/* SPDX-License-Identifier: Apache-2.0 */
/* kv_publisher: records into events, blocks of one chain together. */
#include <string.h>

#include "kvstore/events/kv_event_message.h"
#include "kvstore/events/kv_publisher_priv.h"

static kv_event_hash_t hash_at(const kv_publisher_t *publisher, const uint8_t *data)
{
    kv_event_hash_t hash = kv_event_hash_bytes(data, publisher->hash_bytes);
    hash.is_number = publisher->has_int_hashes;
    return hash;
}

/* vLLM's keys as events have them: adapter, then salt, the latter with a chain's first block. */
static void put_extra(weft_buffer_t *out, const kv_extra_t *extra, bool is_first)
{
    const char *lora = kv_extra_lora_name(extra);
    const char *salt = is_first ? kv_extra_salt(extra) : NULL;
    const uint32_t n = (lora != NULL) + (salt != NULL);
    if (n == 0) {
        kv_event_put_nil(out);
        return;
    }
    kv_event_put_array(out, n);
    if (lora != NULL) {
        kv_event_put_text(out, kv_event_text(lora));
    }
    if (salt != NULL) {
        kv_event_put_text(out, kv_event_text(salt));
    }
}

static void add_event(kv_publisher_t *publisher, const kv_event_t *event)
{
    kv_publisher_batch_t *batch = &publisher->batch;
    kv_event_encode(&batch->events, publisher->encoding, KV_EVENT_WIDE, event);
    batch->n_events++;
    batch->n_blocks += event->block_hashes.count;
}

static void end_chain(kv_publisher_t *publisher)
{
    kv_publisher_batch_t *batch = &publisher->batch;
    const uint32_t n = batch->n_chained;
    if (n == 0) {
        return;
    }
    weft_buffer_clear(&batch->extras);
    kv_event_put_array(&batch->extras, n);
    for (uint32_t i = 0; i < n; i++) {
        put_extra(&batch->extras, batch->extra, i == 0 && batch->parent.n_bytes == 0);
    }
    batch->events.is_failed |=
        batch->hashes.is_failed || batch->tokens.is_failed || batch->extras.is_failed;
    const kv_event_t event = {
        .kind = KV_EVENT_STORED,
        .block_hashes = {(const void *)batch->hashes.data, n},
        .parent_block_hash = batch->parent,
        .token_ids = {(const void *)batch->tokens.data, n * publisher->block_tokens},
        .block_size = publisher->block_tokens,
        .medium = kv_event_text(kv_tier_medium((kv_tier_id_t)batch->tier)),
        .lora_name = kv_event_text(kv_extra_lora_name(batch->extra)),
        .extra_keys = {batch->extras.data, (uint32_t)batch->extras.length},
        .group_idx = {true, 0},
        .kv_cache_spec_kind = kv_event_text("full_attention"),
    };
    if (!batch->events.is_failed) {
        add_event(publisher, &event);
    }
    weft_buffer_clear(&batch->hashes);
    weft_buffer_clear(&batch->tokens);
    kv_extra_release(batch->extra);
    batch->extra = NULL;
    batch->n_chained = 0;
}

static bool continues_chain(const kv_publisher_batch_t *batch, const record_t *record,
                            const kv_event_hash_t *parent)
{
    return batch->n_chained > 0 && !record->is_first && batch->tier == record->tier &&
           batch->extra == record->extra && memcmp(&batch->last, parent, sizeof(*parent)) == 0;
}

void kv_publisher_batch_stored(kv_publisher_t *publisher, const record_t *record)
{
    kv_publisher_batch_t *batch = &publisher->batch;
    const kv_event_hash_t hash = hash_at(publisher, record->data);
    const kv_event_hash_t parent = hash_at(publisher, record->data + publisher->hash_bytes);
    if (continues_chain(batch, record, &parent)) {
        kv_extra_release(record->extra); /* the chain has one */
    } else {
        end_chain(publisher);
        batch->tier = record->tier;
        batch->extra = record->extra;
        batch->parent = record->is_first ? (kv_event_hash_t){.n_bytes = 0} : parent;
    }
    weft_buffer_append(&batch->hashes, &hash, sizeof(hash));
    weft_buffer_append(&batch->tokens, record->data + 2 * (size_t)publisher->hash_bytes,
                       publisher->block_tokens * sizeof(uint32_t));
    batch->last = hash;
    batch->n_chained++;
}

void kv_publisher_batch_removed(kv_publisher_t *publisher, const record_t *record)
{
    end_chain(publisher);
    const kv_event_hash_t hash = hash_at(publisher, record->data);
    const kv_event_t event = {
        .kind = KV_EVENT_REMOVED,
        .block_hashes = {&hash, 1},
        .medium = kv_event_text(kv_tier_medium((kv_tier_id_t)record->tier)),
        .group_idx = {true, 0},
    };
    add_event(publisher, &event);
}

void kv_publisher_batch_cleared(kv_publisher_t *publisher)
{
    const kv_event_t event = {.kind = KV_EVENT_CLEARED};
    end_chain(publisher);
    add_event(publisher, &event);
}

weft_status_t kv_publisher_batch_take(kv_publisher_t *publisher, double ts, zmq_msg_t *payload_out)
{
    kv_publisher_batch_t *batch = &publisher->batch;
    const kv_event_int_t rank = {true, publisher->rank};
    end_chain(publisher);
    const weft_status_t status =
        kv_event_message(ts, &batch->events, batch->n_events, rank, payload_out);
    if (status >= 0) {
        atomic_fetch_add_explicit(&publisher->counts.events, batch->n_events, memory_order_relaxed);
        atomic_fetch_add_explicit(&publisher->counts.blocks, batch->n_blocks, memory_order_relaxed);
    }
    weft_buffer_clear(&batch->events);
    batch->n_events = 0;
    batch->n_blocks = 0;
    return status;
}

void kv_publisher_batch_fini(kv_publisher_batch_t *batch)
{
    weft_buffer_free(&batch->events);
    weft_buffer_free(&batch->hashes);
    weft_buffer_free(&batch->tokens);
    weft_buffer_free(&batch->extras);
    kv_extra_release(batch->extra);
    batch->extra = NULL;
}
