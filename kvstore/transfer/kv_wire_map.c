/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_wire_map.h"

#include <msgpack/pack.h>
#include <string.h>

/* ---- writing --------------------------------------------------------------------------------- */

static int append(void *user, const char *data, size_t length)
{
    weft_buffer_append(user, data, length);
    return 0;
}

static const void *place_of(const void *value, const kv_wire_field_t *field)
{
    return (const char *)value + field->offset;
}

static bool is_nil(const void *value, const kv_wire_field_t *field)
{
    const void *place = place_of(value, field);
    switch (field->type) {
    case KV_WIRE_TEXT:
    case KV_WIRE_BIN:
    case KV_WIRE_ITEM:
        return ((const kv_msgpack_span_t *)place)->data == NULL;
    case KV_WIRE_COUNT:
        return *(const uint64_t *)place == 0;
    case KV_WIRE_COUNTS:
        return ((const kv_wire_COUNTS_t *)place)->items == NULL;
    }
    return true;
}

static void pack_span(msgpack_packer *packer, kv_wire_type_t type, kv_msgpack_span_t span)
{
    if (type == KV_WIRE_TEXT) {
        msgpack_pack_str(packer, span.length);
        msgpack_pack_str_body(packer, span.data, span.length);
    } else if (type == KV_WIRE_BIN) {
        msgpack_pack_bin(packer, span.length);
        msgpack_pack_bin_body(packer, span.data, span.length);
    } else {
        append(packer->data, span.data, span.length);
    }
}

static void pack_value(msgpack_packer *packer, const void *value, const kv_wire_field_t *field)
{
    const void *place = place_of(value, field);
    if (field->type == KV_WIRE_COUNT) {
        msgpack_pack_uint64(packer, *(const uint64_t *)place);
        return;
    }
    if (is_nil(value, field)) {
        msgpack_pack_nil(packer);
        return;
    }
    if (field->type == KV_WIRE_COUNTS) {
        const kv_wire_COUNTS_t *counts = place;
        msgpack_pack_array(packer, counts->n);
        for (uint32_t i = 0; i < counts->n; i++) {
            msgpack_pack_uint64(packer, counts->items[i]);
        }
        return;
    }
    pack_span(packer, field->type, *(const kv_msgpack_span_t *)place);
}

static bool is_written(const void *value, const kv_wire_field_t *field)
{
    return field->rule != KV_WIRE_EXTENSION || !is_nil(value, field);
}

void kv_wire_map_encode(const kv_wire_field_t *fields, uint32_t n, const void *value,
                        weft_buffer_t *out)
{
    msgpack_packer packer = {.data = out, .callback = append};
    uint32_t n_written = 0;
    for (uint32_t i = 0; i < n; i++) {
        n_written += is_written(value, &fields[i]);
    }
    msgpack_pack_map(&packer, n_written);
    for (uint32_t i = 0; i < n; i++) {
        if (is_written(value, &fields[i])) {
            msgpack_pack_str(&packer, fields[i].name_length);
            msgpack_pack_str_body(&packer, fields[i].name, fields[i].name_length);
            pack_value(&packer, value, &fields[i]);
        }
    }
}

/* ---- reading --------------------------------------------------------------------------------- */

static const kv_wire_field_t *find(const kv_wire_field_t *fields, uint32_t n,
                                   kv_msgpack_span_t name)
{
    for (uint32_t i = 0; i < n; i++) {
        if (fields[i].name_length == name.length &&
            memcmp(fields[i].name, name.data, name.length) == 0) {
            return &fields[i];
        }
    }
    return NULL;
}

static uint64_t read_count(kv_msgpack_t *reader)
{
    bool is_negative = false;
    const uint64_t number = kv_msgpack_int(reader, &is_negative);
    reader->is_failed |= is_negative;
    return number;
}

static weft_status_t read_counts(kv_msgpack_t *reader, weft_arena_t *arena, kv_wire_COUNTS_t *out)
{
    const uint32_t n = kv_msgpack_array(reader);
    uint64_t *items = weft_arena_calloc(arena, (size_t)n + 1, sizeof(*items));
    if (items == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < n; i++) {
        items[i] = read_count(reader);
    }
    *out = (kv_wire_COUNTS_t){items, n};
    return WEFT_OK;
}

static weft_status_t read_value(kv_msgpack_t *reader, const kv_wire_field_t *field,
                                weft_arena_t *arena, void *value)
{
    void *place = (char *)value + field->offset;
    if (field->rule != KV_WIRE_REQUIRED && kv_msgpack_take_nil(reader)) {
        return WEFT_OK;
    }
    switch (field->type) {
    case KV_WIRE_TEXT:
        *(kv_msgpack_span_t *)place = kv_msgpack_text(reader);
        break;
    case KV_WIRE_BIN:
        *(kv_msgpack_span_t *)place = kv_msgpack_bin(reader);
        break;
    case KV_WIRE_ITEM:
        *(kv_msgpack_span_t *)place = kv_msgpack_item(reader);
        break;
    case KV_WIRE_COUNT:
        *(uint64_t *)place = read_count(reader);
        break;
    case KV_WIRE_COUNTS:
        return read_counts(reader, arena, place);
    }
    return WEFT_OK;
}

static weft_status_t check_required(const kv_wire_field_t *fields, uint32_t n, uint64_t seen,
                                    const char *what, weft_diag_t *diag)
{
    for (uint32_t i = 0; i < n; i++) {
        if (fields[i].rule == KV_WIRE_REQUIRED && (seen >> i & 1) == 0) {
            return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: %s is missing", what, fields[i].name);
        }
    }
    return WEFT_OK;
}

weft_status_t kv_wire_map_decode(const kv_wire_field_t *fields, uint32_t n, const void *data,
                                 size_t bytes, const char *what, weft_arena_t *arena,
                                 weft_diag_t *diag, void *value)
{
    kv_msgpack_t reader = kv_msgpack_of(data, bytes);
    const uint32_t n_pairs = kv_msgpack_map(&reader);
    uint64_t seen = 0;
    for (uint32_t i = 0; i < n_pairs && !reader.is_failed; i++) {
        const kv_msgpack_span_t name = kv_msgpack_text(&reader);
        const kv_wire_field_t *field = reader.is_failed ? NULL : find(fields, n, name);
        if (field == NULL) {
            kv_msgpack_item(&reader);
            continue;
        }
        if (read_value(&reader, field, arena, value) < 0) {
            return WEFT_ERR_NO_MEMORY;
        }
        if (reader.is_failed) {
            return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: %s is not what it should be", what,
                             field->name);
        }
        seen |= UINT64_C(1) << (field - fields);
    }
    if (reader.is_failed || reader.at != reader.end) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "%s: not one map of msgpack", what);
    }
    return check_required(fields, n, seen, what, diag);
}

/* ---- texts ----------------------------------------------------------------------------------- */

kv_msgpack_span_t kv_wire_text(const char *text)
{
    return (kv_msgpack_span_t){text, text == NULL ? 0 : (uint32_t)strlen(text)};
}

bool kv_wire_text_is(kv_msgpack_span_t text, const char *other)
{
    return text.data != NULL && other != NULL && strlen(other) == text.length &&
           memcmp(text.data, other, text.length) == 0;
}
