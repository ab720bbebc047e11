/* SPDX-License-Identifier: Apache-2.0 */
/* kv_event_json: events of tests/vectors/kv_events, which are JSON, as the codec's. */
#pragma once

#include <string.h>

#include "kvstore/events/kv_event_codec.h"
#include "tests/support/hex.h"
#include "tests/support/vectors.h"

static inline kv_event_hash_t json_hash(const json_t *json)
{
    const char *hex = json_string_value(json_object_get(json, "hex"));
    kv_event_hash_t hash = {0};
    weft_arena_t arena = {0};
    size_t length;
    if (hex != NULL) {
        const uint8_t *bytes = hex_bytes(&arena, hex, &length);
        hash = kv_event_hash_bytes(bytes, (uint32_t)length);
    } else if (json_is_string(json)) {
        hash = kv_event_hash_number(strtoull(json_string_value(json), NULL, 10));
    } else if (json_is_integer(json)) {
        hash = kv_event_hash_number((uint64_t)json_integer_value(json));
    }
    weft_arena_free(&arena);
    return hash;
}

/* msgpack of arrays, texts, bytes, numbers and null. */
static inline void json_put_items(weft_buffer_t *out, const json_t *json)
{
    if (json_is_array(json)) {
        kv_event_put_array(out, (uint32_t)json_array_size(json));
        for (size_t i = 0; i < json_array_size(json); i++) {
            json_put_items(out, json_array_get(json, i));
        }
    } else if (json_is_string(json)) {
        kv_event_put_text(out, kv_event_text(json_string_value(json)));
    } else if (json_is_integer(json)) {
        kv_event_put_int(out, json_integer_value(json));
    } else {
        assert_true(json_is_null(json));
        kv_event_put_nil(out);
    }
}

static inline kv_event_items_t json_items(weft_arena_t *arena, const json_t *json)
{
    weft_buffer_t buffer = {0};
    json_put_items(&buffer, json);
    assert_false(buffer.is_failed);
    const uint32_t length = (uint32_t)buffer.length;
    char *copy = weft_arena_strndup(arena, buffer.data, length);
    weft_buffer_free(&buffer);
    return (kv_event_items_t){copy, length};
}

static inline void json_list(weft_arena_t *arena, const json_t *json, kv_event_type_t type,
                             void *value)
{
    const size_t n = json_array_size(json);
    kv_event_hash_t *hashes = weft_arena_calloc(arena, n, sizeof(*hashes));
    uint32_t *tokens = weft_arena_calloc(arena, n, sizeof(*tokens));
    for (size_t i = 0; i < n; i++) {
        hashes[i] = json_hash(json_array_get(json, i));
        tokens[i] = (uint32_t)json_integer_value(json_array_get(json, i));
    }
    if (type == KV_EVENT_TYPE_HASHES) {
        *(kv_event_hashes_t *)value = (kv_event_hashes_t){hashes, (uint32_t)n};
    } else {
        *(kv_event_tokens_t *)value = (kv_event_tokens_t){tokens, (uint32_t)n};
    }
}

static inline void json_field(weft_arena_t *arena, const json_t *json,
                              const kv_event_field_t *field, kv_event_t *event)
{
    void *value = (char *)event + field->offset;
    if (json == NULL || json_is_null(json)) {
        return;
    }
    switch (field->type) {
    case KV_EVENT_TYPE_HASHES:
    case KV_EVENT_TYPE_TOKENS:
        json_list(arena, json, field->type, value);
        break;
    case KV_EVENT_TYPE_HASH:
        *(kv_event_hash_t *)value = json_hash(json);
        break;
    case KV_EVENT_TYPE_SIZE:
        *(uint32_t *)value = (uint32_t)json_integer_value(json);
        break;
    case KV_EVENT_TYPE_INT:
        *(kv_event_int_t *)value = (kv_event_int_t){true, json_integer_value(json)};
        break;
    case KV_EVENT_TYPE_TEXT:
        *(kv_event_text_t *)value = kv_event_text(json_string_value(json));
        break;
    case KV_EVENT_TYPE_EXTRAS:
    case KV_EVENT_TYPE_LISTS:
        *(kv_event_items_t *)value = json_items(arena, json);
        break;
    }
}

/* json: a map with "type", or the array form. It outlives the event. */
static inline kv_event_t json_event(weft_arena_t *arena, const json_t *json)
{
    kv_event_t event = {0};
    uint32_t n_fields;
    const bool is_map = json_is_object(json);
    const char *type =
        json_string_value(is_map ? json_object_get(json, "type") : json_array_get(json, 0));
    assert_non_null(type);
    while (strcmp(type, kv_event_kind_name(event.kind)) != 0) {
        event.kind++;
    }
    const kv_event_field_t *fields = kv_event_fields(event.kind, &n_fields);
    for (uint32_t i = 0; i < n_fields; i++) {
        json_field(arena,
                   is_map ? json_object_get(json, fields[i].name) : json_array_get(json, i + 1),
                   &fields[i], &event);
    }
    return event;
}
