/* SPDX-License-Identifier: Apache-2.0 */
/* kv_event_codec: reading what somebody else wrote. */
#include <inttypes.h>
#include <string.h>

#include "base/compiler.h"
#include "kvstore/events/kv_event_codec.h"

/* The names an old release wrote are those of today. */
#define MIN_STORED_FIELDS  5 /* 0.10.0: to lora_id */
#define MIN_REMOVED_FIELDS 1

typedef struct decoder {
    kv_msgpack_t reader;
    weft_arena_t *memory;
    weft_diag_t *diag;
} decoder_t;

static weft_status_t malformed(decoder_t *decoder, const char *what)
{
    return weft_diag(decoder->diag, WEFT_ERR_MALFORMED, "KV events: %s", what);
}

static bool read_hash(kv_msgpack_t *reader, kv_event_hash_t *hash)
{
    if (kv_msgpack_peek(reader) != KV_MSGPACK_BIN) {
        *hash = kv_event_hash_number(kv_msgpack_int(reader, NULL));
        return !reader->is_failed;
    }
    const kv_msgpack_span_t bytes = kv_msgpack_bin(reader);
    if (reader->is_failed || bytes.length == 0 || bytes.length > KV_HASH_BYTES) {
        return false;
    }
    *hash = kv_event_hash_bytes((const uint8_t *)bytes.data, bytes.length);
    return true;
}

static weft_status_t read_hashes(decoder_t *decoder, kv_event_hashes_t *out)
{
    const uint32_t n = kv_msgpack_array(&decoder->reader);
    kv_event_hash_t *items = weft_arena_calloc(decoder->memory, n, sizeof(*items));
    if (items == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!read_hash(&decoder->reader, &items[i])) {
            return malformed(decoder, "a block hash is neither a number nor 1 to 32 bytes");
        }
    }
    *out = (kv_event_hashes_t){items, n};
    return WEFT_OK;
}

static weft_status_t read_tokens(decoder_t *decoder, kv_event_tokens_t *out)
{
    const uint32_t n = kv_msgpack_array(&decoder->reader);
    uint32_t *items = weft_arena_calloc(decoder->memory, n, sizeof(*items));
    if (items == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < n; i++) {
        items[i] = kv_msgpack_u32(&decoder->reader);
    }
    *out = (kv_event_tokens_t){items, n};
    return WEFT_OK;
}

/* text, bytes, or [text, offset] */
static void check_extra(kv_msgpack_t *reader)
{
    switch (kv_msgpack_peek(reader)) {
    case KV_MSGPACK_TEXT:
        kv_msgpack_text(reader);
        break;
    case KV_MSGPACK_BIN:
        kv_msgpack_bin(reader);
        break;
    default:
        reader->is_failed |= kv_msgpack_array(reader) != 2;
        kv_msgpack_text(reader);
        kv_msgpack_i64(reader);
        break;
    }
}

static void check_extras(kv_msgpack_t *reader)
{
    const uint32_t n = kv_msgpack_array(reader);
    for (uint32_t i = 0; i < n && !reader->is_failed; i++) {
        const uint32_t parts = kv_msgpack_take_nil(reader) ? 0 : kv_msgpack_array(reader);
        for (uint32_t j = 0; j < parts && !reader->is_failed; j++) {
            check_extra(reader);
        }
    }
}

static void check_lists(kv_msgpack_t *reader)
{
    const uint32_t n = kv_msgpack_array(reader);
    for (uint32_t i = 0; i < n && !reader->is_failed; i++) {
        const uint32_t numbers = kv_msgpack_array(reader);
        for (uint32_t j = 0; j < numbers && !reader->is_failed; j++) {
            kv_msgpack_i64(reader);
        }
    }
}

/* The item as it stands, after check has walked through it. */
static kv_event_items_t read_items(kv_msgpack_t *reader, void (*check)(kv_msgpack_t *reader))
{
    const uint8_t *begin = reader->at;
    check(reader);
    return (kv_event_items_t){(const char *)begin, (uint32_t)(reader->at - begin)};
}

static bool may_be_nil(const kv_event_field_t *field)
{
    return field->type != KV_EVENT_TYPE_HASHES && field->type != KV_EVENT_TYPE_TOKENS &&
           field->type != KV_EVENT_TYPE_SIZE;
}

static weft_status_t read_value(decoder_t *decoder, const kv_event_field_t *field, void *value)
{
    kv_msgpack_t *reader = &decoder->reader;
    switch (field->type) {
    case KV_EVENT_TYPE_HASHES:
        return read_hashes(decoder, value);
    case KV_EVENT_TYPE_HASH:
        return read_hash(reader, value)
                   ? WEFT_OK
                   : malformed(decoder, "a parent is neither a number nor 1 to 32 bytes");
    case KV_EVENT_TYPE_TOKENS:
        return read_tokens(decoder, value);
    case KV_EVENT_TYPE_SIZE:
        *(uint32_t *)value = kv_msgpack_u32(reader);
        break;
    case KV_EVENT_TYPE_INT:
        *(kv_event_int_t *)value = (kv_event_int_t){true, kv_msgpack_i64(reader)};
        break;
    case KV_EVENT_TYPE_TEXT:
        *(kv_event_text_t *)value = kv_msgpack_text(reader);
        break;
    case KV_EVENT_TYPE_EXTRAS:
        *(kv_event_items_t *)value = read_items(reader, check_extras);
        break;
    case KV_EVENT_TYPE_LISTS:
        *(kv_event_items_t *)value = read_items(reader, check_lists);
        break;
    }
    return WEFT_OK;
}

static weft_status_t read_field(decoder_t *decoder, const kv_event_field_t *field,
                                kv_event_t *event)
{
    if (may_be_nil(field) && kv_msgpack_take_nil(&decoder->reader)) {
        return WEFT_OK;
    }
    const weft_status_t status = read_value(decoder, field, (char *)event + field->offset);
    if (status == WEFT_OK && decoder->reader.is_failed) {
        return weft_diag(decoder->diag, WEFT_ERR_MALFORMED, "KV events: %s of %s is wrong",
                         field->name, kv_event_kind_name(event->kind));
    }
    return status;
}

static weft_status_t find_kind(decoder_t *decoder, kv_event_text_t name, kv_event_kind_t *kind_out)
{
    for (kv_event_kind_t kind = KV_EVENT_STORED; kind <= KV_EVENT_CLEARED; kind++) {
        if (kv_event_text_equal(name, kv_event_text(kv_event_kind_name(kind)))) {
            *kind_out = kind;
            return WEFT_OK;
        }
    }
    return weft_diag(decoder->diag, WEFT_ERR_MALFORMED, "KV events: no event is called \"%.*s\"",
                     name.length > 64 ? 64 : (int)name.length, name.data == NULL ? "" : name.data);
}

static weft_status_t read_array_event(decoder_t *decoder, kv_event_t *event)
{
    uint32_t n_fields;
    const uint32_t n = kv_msgpack_array(&decoder->reader);
    weft_status_t status = find_kind(decoder, kv_msgpack_text(&decoder->reader), &event->kind);
    if (status < 0) {
        return status;
    }
    const kv_event_field_t *fields = kv_event_fields(event->kind, &n_fields);
    const uint32_t least = event->kind == KV_EVENT_STORED    ? MIN_STORED_FIELDS
                           : event->kind == KV_EVENT_REMOVED ? MIN_REMOVED_FIELDS
                                                             : 0;
    if (n < 1 + least) {
        return malformed(decoder, "an event has too few fields");
    }
    for (uint32_t i = 0; i < n - 1 && status == WEFT_OK; i++) {
        if (i < n_fields) {
            status = read_field(decoder, &fields[i], event);
        } else {
            kv_msgpack_item(&decoder->reader); /* of a later release */
        }
    }
    return status;
}

/* Reads the values of pairs [n] up to "type"; usually it is the first. */
static weft_status_t find_type(decoder_t *decoder, uint32_t n, kv_event_kind_t *kind_out)
{
    const kv_msgpack_t begin = decoder->reader;
    kv_msgpack_span_t type = {NULL, 0};
    for (uint32_t i = 0; i < n && type.data == NULL && !decoder->reader.is_failed; i++) {
        const kv_msgpack_span_t key = kv_msgpack_text(&decoder->reader);
        if (kv_event_text_equal(key, kv_event_text("type"))) {
            type = kv_msgpack_text(&decoder->reader);
        } else {
            kv_msgpack_item(&decoder->reader);
        }
    }
    decoder->reader = begin;
    return find_kind(decoder, type, kind_out);
}

static uint32_t find_field(const kv_event_field_t *fields, uint32_t n, uint32_t from,
                           kv_msgpack_span_t key)
{
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t at = (from + i) % n; /* they come in order */
        if (kv_event_text_equal(key, (kv_event_text_t){fields[at].name, fields[at].name_length})) {
            return at;
        }
    }
    return n;
}

static weft_status_t check_required(decoder_t *decoder, const kv_event_t *event, uint32_t seen)
{
    uint32_t n_fields;
    const kv_event_field_t *fields = kv_event_fields(event->kind, &n_fields);
    for (uint32_t i = 0; i < n_fields; i++) {
        if (fields[i].is_required && (seen >> i & 1) == 0) {
            return weft_diag(decoder->diag, WEFT_ERR_MALFORMED, "KV events: %s without %s",
                             kv_event_kind_name(event->kind), fields[i].name);
        }
    }
    return WEFT_OK;
}

static weft_status_t read_map_event(decoder_t *decoder, kv_event_t *event)
{
    uint32_t n_fields;
    uint32_t seen = 0;
    uint32_t next = 0;
    const uint32_t n = kv_msgpack_map(&decoder->reader);
    weft_status_t status = find_type(decoder, n, &event->kind);
    if (status < 0) {
        return status;
    }
    const kv_event_field_t *fields = kv_event_fields(event->kind, &n_fields);
    for (uint32_t i = 0; i < n && status == WEFT_OK && !decoder->reader.is_failed; i++) {
        const kv_msgpack_span_t key = kv_msgpack_text(&decoder->reader);
        const uint32_t at = find_field(fields, n_fields, next, key);
        if (at == n_fields) {
            kv_msgpack_item(&decoder->reader); /* "type", or of a later release */
            continue;
        }
        if ((seen >> at & 1) != 0) {
            return malformed(decoder, "an event has a field twice");
        }
        seen |= UINT32_C(1) << at;
        next = at + 1;
        status = read_field(decoder, &fields[at], event);
    }
    return status < 0 ? status : check_required(decoder, event, seen);
}

static weft_status_t check_event(decoder_t *decoder, const kv_event_t *event)
{
    kv_msgpack_t extras = kv_msgpack_of(event->extra_keys.data, event->extra_keys.length);
    if (event->extra_keys.data != NULL && kv_msgpack_array(&extras) != event->block_hashes.count) {
        return malformed(decoder, "extra_keys are not one for each block");
    }
    return WEFT_OK;
}

static weft_status_t read_event(decoder_t *decoder, kv_event_t *event)
{
    const bool is_map = kv_msgpack_peek(&decoder->reader) == KV_MSGPACK_MAP;
    weft_status_t status =
        is_map ? read_map_event(decoder, event) : read_array_event(decoder, event);
    if (status == WEFT_OK && decoder->reader.is_failed) {
        status = malformed(decoder, "an event is cut off or not msgpack");
    }
    return status < 0 ? status : check_event(decoder, event);
}

static weft_status_t read_batch(decoder_t *decoder, kv_event_batch_t *batch)
{
    kv_msgpack_t *reader = &decoder->reader;
    if (kv_msgpack_array(reader) != 3) {
        return malformed(decoder, "a batch is not an array of three");
    }
    batch->ts = kv_msgpack_number(reader);
    const uint32_t n = kv_msgpack_array(reader);
    if (reader->is_failed) {
        return malformed(decoder, "a batch does not begin with a time and an array of events");
    }
    /* An event is at least a header and the shortest tag, 13 bytes. */
    if (n > (size_t)(reader->end - reader->at) / 13 + 1) {
        return malformed(decoder, "a batch claims more events than it has bytes for");
    }
    batch->events = weft_arena_calloc(decoder->memory, n, sizeof(*batch->events));
    if (batch->events == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (; batch->n_events < n; batch->n_events++) {
        const weft_status_t status = read_event(decoder, &batch->events[batch->n_events]);
        if (status < 0) {
            return status;
        }
    }
    if (!kv_msgpack_take_nil(reader)) {
        batch->rank = (kv_event_int_t){true, kv_msgpack_i64(reader)};
    }
    return reader->is_failed || reader->at != reader->end
               ? malformed(decoder, "a batch does not end with its rank")
               : WEFT_OK;
}

weft_status_t kv_event_batch_decode(const void *payload, size_t length, weft_diag_t *diag,
                                    kv_event_batch_t *batch_out)
{
    kv_event_batch_t batch = {0};
    if (length > INT32_MAX) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "KV events: a batch of %zu bytes", length);
    }
    decoder_t decoder = {kv_msgpack_of(payload, length), &batch.memory, diag};
    const weft_status_t status = read_batch(&decoder, &batch);
    if (status < 0) {
        kv_event_batch_fini(&batch);
        batch = (kv_event_batch_t){0};
    }
    *batch_out = batch;
    return status;
}

void kv_event_batch_fini(kv_event_batch_t *batch)
{
    weft_arena_free(&batch->memory);
    *batch = (kv_event_batch_t){0};
}
