/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_msgpack: reads msgpack that somebody else wrote, front to back, in place.
 *
 * A reader that meets what it was not asked for, or the end, is failed for good (is_failed) and
 * answers zeros from then on, so that a caller checks once. Nothing is allocated; a count never
 * exceeds the bytes that are left, so it may size an array. Writing is msgpack-c's business.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_msgpack {
    const uint8_t *at;
    const uint8_t *end;
    bool is_failed;
} kv_msgpack_t;

/* Bytes in the message that is read: a text (UTF-8, unchecked), a bin, or one whole item. */
typedef struct kv_msgpack_span {
    const char *data; /* NULL: nil */
    uint32_t length;
} kv_msgpack_span_t;

typedef enum kv_msgpack_kind {
    KV_MSGPACK_NONE, /* the end, or a byte that begins nothing */
    KV_MSGPACK_NIL,
    KV_MSGPACK_BOOL,
    KV_MSGPACK_INT,
    KV_MSGPACK_FLOAT,
    KV_MSGPACK_TEXT,
    KV_MSGPACK_BIN,
    KV_MSGPACK_ARRAY,
    KV_MSGPACK_MAP,
    KV_MSGPACK_EXT,
} kv_msgpack_kind_t;

/* data may be NULL when length is 0. */
static inline kv_msgpack_t kv_msgpack_of(const void *data, size_t length)
{
    const uint8_t *end = length == 0 ? data : (const uint8_t *)data + length;
    return (kv_msgpack_t){data, end, false};
}

kv_msgpack_kind_t kv_msgpack_peek(const kv_msgpack_t *reader);
bool kv_msgpack_take_nil(kv_msgpack_t *reader); /* false, and nothing is read: something else */

/* A negative number as its two's complement, *is_negative_out set. May be NULL. */
uint64_t kv_msgpack_int(kv_msgpack_t *reader, bool *is_negative_out);
uint32_t kv_msgpack_u32(kv_msgpack_t *reader); /* one that fits */
int64_t kv_msgpack_i64(kv_msgpack_t *reader);
bool kv_msgpack_bool(kv_msgpack_t *reader);
double kv_msgpack_number(kv_msgpack_t *reader); /* float or integer */
kv_msgpack_span_t kv_msgpack_text(kv_msgpack_t *reader);
kv_msgpack_span_t kv_msgpack_bin(kv_msgpack_t *reader);
uint32_t kv_msgpack_array(kv_msgpack_t *reader); /* items that follow */
uint32_t kv_msgpack_map(kv_msgpack_t *reader);   /* pairs that follow */

/* One whole item of any kind, at most 16 deep. */
kv_msgpack_span_t kv_msgpack_item(kv_msgpack_t *reader);
