/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/events.h"

static void write_hex(weft_json_t *json, const void *data, uint32_t length)
{
    static const char digits[] = "0123456789abcdef";
    weft_buffer_t text = {0};
    for (uint32_t i = 0; i < length; i++) {
        const uint8_t byte = ((const uint8_t *)data)[i];
        const char pair[] = {digits[byte >> 4], digits[byte & 15]};
        weft_buffer_append(&text, pair, sizeof(pair));
    }
    json->out->is_failed |= text.is_failed;
    weft_json_text(json, text.data == NULL ? "" : text.data, text.length);
    weft_buffer_free(&text);
}

static void write_hash(weft_json_t *json, const kv_event_hash_t *hash)
{
    if (hash->n_bytes == 0) {
        weft_json_null(json);
    } else {
        write_hex(json, hash->bytes, hash->n_bytes);
    }
}

static void write_hashes(weft_json_t *json, const kv_event_hashes_t *hashes)
{
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < hashes->count; i++) {
        write_hash(json, &hashes->items[i]);
    }
    weft_json_end_array(json);
}

static void write_tokens(weft_json_t *json, const kv_event_tokens_t *tokens)
{
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < tokens->count; i++) {
        weft_json_u64(json, tokens->items[i]);
    }
    weft_json_end_array(json);
}

/* Of arrays at most three deep; the decoder let nothing else through. */
static void write_item(weft_json_t *json, kv_msgpack_t *reader)
{
    kv_msgpack_span_t span;
    switch (kv_msgpack_peek(reader)) {
    case KV_MSGPACK_ARRAY: {
        const uint32_t n = kv_msgpack_array(reader);
        weft_json_begin_array(json);
        for (uint32_t i = 0; i < n && !reader->is_failed; i++) {
            write_item(json, reader);
        }
        weft_json_end_array(json);
        break;
    }
    case KV_MSGPACK_TEXT:
        span = kv_msgpack_text(reader);
        weft_json_text(json, span.data, span.length);
        break;
    case KV_MSGPACK_BIN:
        span = kv_msgpack_bin(reader);
        write_hex(json, span.data, span.length);
        break;
    case KV_MSGPACK_INT:
        weft_json_i64(json, kv_msgpack_i64(reader));
        break;
    default:
        kv_msgpack_item(reader);
        weft_json_null(json);
        break;
    }
}

static void write_value(weft_json_t *json, kv_event_type_t type, const void *value)
{
    const kv_msgpack_span_t *span = value;
    switch (type) {
    case KV_EVENT_TYPE_HASHES:
        write_hashes(json, value);
        break;
    case KV_EVENT_TYPE_HASH:
        write_hash(json, value);
        break;
    case KV_EVENT_TYPE_TOKENS:
        write_tokens(json, value);
        break;
    case KV_EVENT_TYPE_SIZE:
        weft_json_u64(json, *(const uint32_t *)value);
        break;
    case KV_EVENT_TYPE_INT:
        weft_json_i64(json, ((const kv_event_int_t *)value)->value);
        break;
    case KV_EVENT_TYPE_TEXT:
        weft_json_text(json, span->data, span->length);
        break;
    case KV_EVENT_TYPE_EXTRAS:
    case KV_EVENT_TYPE_LISTS: {
        kv_msgpack_t reader = kv_msgpack_of(span->data, span->length);
        write_item(json, &reader);
        break;
    }
    }
}

void events_write_json(weft_json_t *json, const kv_event_news_t *news, const kv_event_t *event)
{
    uint32_t n_fields;
    const kv_event_field_t *fields = kv_event_fields(event->kind, &n_fields);
    weft_json_begin_object(json);
    weft_json_put_u64(json, "sequence", news->sequence);
    weft_json_put_f64(json, "ts", news->batch->ts);
    if (news->batch->rank.is_set) {
        weft_json_put_i64(json, "rank", news->batch->rank.value);
    }
    weft_json_key(json, "topic");
    weft_json_text(json, news->topic.data, news->topic.length);
    if (news->is_replayed) {
        weft_json_put_bool(json, "replayed", true);
    }
    weft_json_put_string(json, "type", kv_event_kind_name(event->kind));
    for (uint32_t i = 0; i < n_fields; i++) {
        if (!kv_event_field_is_default(event, &fields[i])) {
            weft_json_key(json, fields[i].name);
            write_value(json, fields[i].type, (const char *)event + fields[i].offset);
        }
    }
    weft_json_end_object(json);
}
