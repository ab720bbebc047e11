/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_wire_map: a struct as a msgpack map with one pair a field, the way msgspec writes a dataclass.
 * A table of the fields (kv_*.def) does both directions.
 *
 * Reading takes anything: unknown keys are skipped, the last of a repeated key counts, a required
 * one that is missing and a value of another kind are faults that diag names. What was read points
 * into the message, lists are in the arena.
 *
 * Threads  none of its own
 */
#pragma once

#include "base/arena.h"
#include "base/buffer.h"
#include "base/diag.h"
#include "kvstore/events/kv_msgpack.h"

/* nil: data NULL. */
typedef kv_msgpack_span_t kv_wire_TEXT_t;
typedef kv_msgpack_span_t kv_wire_BIN_t;
typedef kv_msgpack_span_t kv_wire_ITEM_t; /* any value, as it lies in the message */
typedef uint64_t kv_wire_COUNT_t;
typedef struct kv_wire_counts {
    const uint64_t *items; /* NULL: nil */
    uint32_t n;
} kv_wire_COUNTS_t;

typedef enum kv_wire_type {
    KV_WIRE_TEXT,
    KV_WIRE_BIN,
    KV_WIRE_ITEM,
    KV_WIRE_COUNT,
    KV_WIRE_COUNTS
} kv_wire_type_t;

typedef enum kv_wire_rule {
    KV_WIRE_REQUIRED,
    KV_WIRE_OPTIONAL, /* reading leaves what was there; nil is accepted */
    KV_WIRE_EXTENSION /* the same, and written only when it is not nil or 0 */
} kv_wire_rule_t;

typedef struct kv_wire_field {
    const char *name;
    size_t name_length;
    kv_wire_type_t type;
    kv_wire_rule_t rule;
    size_t offset;
} kv_wire_field_t;

#define KV_WIRE_FIELD(struct_t, field, type, rule)                                                 \
    {#field, sizeof(#field) - 1, KV_WIRE_##type, KV_WIRE_##rule, offsetof(struct_t, field)}

void kv_wire_map_encode(const kv_wire_field_t *fields, uint32_t n, const void *value,
                        weft_buffer_t *out);

/* value: as far as it is optional, set before. WEFT_ERR_MALFORMED; what names the message. */
weft_status_t kv_wire_map_decode(const kv_wire_field_t *fields, uint32_t n, const void *data,
                                 size_t bytes, const char *what, weft_arena_t *arena,
                                 weft_diag_t *diag, void *value);

kv_msgpack_span_t kv_wire_text(const char *text); /* borrowed; NULL: nil */
bool kv_wire_text_is(kv_msgpack_span_t text, const char *other);
