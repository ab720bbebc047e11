/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_msgpack.h"

#include <string.h>

#include "base/compiler.h"

#define MAX_DEPTH 16

static void fail(kv_msgpack_t *reader)
{
    reader->is_failed = true;
    reader->at = reader->end;
}

static size_t left(const kv_msgpack_t *reader)
{
    return (size_t)(reader->end - reader->at);
}

/* n bytes, big-endian; n is at most 8. */
static uint64_t take(kv_msgpack_t *reader, size_t n)
{
    uint64_t value = 0;
    if (WEFT_UNLIKELY(left(reader) < n)) {
        fail(reader);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        value = value << 8 | reader->at[i];
    }
    reader->at += n;
    return value;
}

kv_msgpack_kind_t kv_msgpack_peek(const kv_msgpack_t *reader)
{
    static const uint8_t kinds[0x20] = {
        [0x00] = KV_MSGPACK_NIL,   [0x02] = KV_MSGPACK_BOOL,  [0x03] = KV_MSGPACK_BOOL,
        [0x04] = KV_MSGPACK_BIN,   [0x05] = KV_MSGPACK_BIN,   [0x06] = KV_MSGPACK_BIN,
        [0x07] = KV_MSGPACK_EXT,   [0x08] = KV_MSGPACK_EXT,   [0x09] = KV_MSGPACK_EXT,
        [0x0a] = KV_MSGPACK_FLOAT, [0x0b] = KV_MSGPACK_FLOAT, [0x0c] = KV_MSGPACK_INT,
        [0x0d] = KV_MSGPACK_INT,   [0x0e] = KV_MSGPACK_INT,   [0x0f] = KV_MSGPACK_INT,
        [0x10] = KV_MSGPACK_INT,   [0x11] = KV_MSGPACK_INT,   [0x12] = KV_MSGPACK_INT,
        [0x13] = KV_MSGPACK_INT,   [0x14] = KV_MSGPACK_EXT,   [0x15] = KV_MSGPACK_EXT,
        [0x16] = KV_MSGPACK_EXT,   [0x17] = KV_MSGPACK_EXT,   [0x18] = KV_MSGPACK_EXT,
        [0x19] = KV_MSGPACK_TEXT,  [0x1a] = KV_MSGPACK_TEXT,  [0x1b] = KV_MSGPACK_TEXT,
        [0x1c] = KV_MSGPACK_ARRAY, [0x1d] = KV_MSGPACK_ARRAY, [0x1e] = KV_MSGPACK_MAP,
        [0x1f] = KV_MSGPACK_MAP,
    };
    if (left(reader) == 0) {
        return KV_MSGPACK_NONE;
    }
    const uint8_t head = *reader->at;
    if (head < 0x80 || head >= 0xe0) {
        return KV_MSGPACK_INT;
    }
    if (head < 0xc0) {
        return head < 0x90 ? KV_MSGPACK_MAP : head < 0xa0 ? KV_MSGPACK_ARRAY : KV_MSGPACK_TEXT;
    }
    return (kv_msgpack_kind_t)kinds[head - 0xc0];
}

bool kv_msgpack_take_nil(kv_msgpack_t *reader)
{
    const bool is_nil = kv_msgpack_peek(reader) == KV_MSGPACK_NIL;
    reader->at += is_nil;
    return is_nil;
}

uint64_t kv_msgpack_int(kv_msgpack_t *reader, bool *is_negative_out)
{
    bool is_negative = false;
    uint64_t value = take(reader, 1);
    if (value >= 0xe0) {
        is_negative = true;
        value |= ~UINT64_C(0xff);
    } else if (value >= 0xcc && value <= 0xcf) {
        value = take(reader, (size_t)1 << (value - 0xcc));
    } else if (value >= 0xd0 && value <= 0xd3) {
        const unsigned bits = 8u << (value - 0xd0);
        value = take(reader, bits / 8);
        is_negative = (value >> (bits - 1)) != 0;
        value |= is_negative && bits < 64 ? ~UINT64_C(0) << bits : 0;
    } else if (value >= 0x80) {
        fail(reader);
    }
    if (WEFT_UNLIKELY(reader->is_failed)) {
        is_negative = false;
        value = 0;
    }
    if (is_negative_out != NULL) {
        *is_negative_out = is_negative;
    }
    return value;
}

uint32_t kv_msgpack_u32(kv_msgpack_t *reader)
{
    bool is_negative;
    if (WEFT_LIKELY(reader->at < reader->end && *reader->at < 0x80)) {
        return *reader->at++;
    }
    const uint64_t value = kv_msgpack_int(reader, &is_negative);
    if (is_negative || value > UINT32_MAX) {
        fail(reader);
        return 0;
    }
    return (uint32_t)value;
}

int64_t kv_msgpack_i64(kv_msgpack_t *reader)
{
    bool is_negative;
    const uint64_t value = kv_msgpack_int(reader, &is_negative);
    if (!is_negative && value > INT64_MAX) {
        fail(reader);
        return 0;
    }
    return (int64_t)value;
}

bool kv_msgpack_bool(kv_msgpack_t *reader)
{
    const uint64_t head = take(reader, 1);
    if (head != 0xc2 && head != 0xc3) {
        fail(reader);
    }
    return head == 0xc3;
}

double kv_msgpack_number(kv_msgpack_t *reader)
{
    if (kv_msgpack_peek(reader) != KV_MSGPACK_FLOAT) {
        bool is_negative;
        const uint64_t value = kv_msgpack_int(reader, &is_negative);
        return is_negative ? (double)(int64_t)value : (double)value;
    }
    double number = 0;
    if (take(reader, 1) == 0xca) {
        const uint32_t bits = (uint32_t)take(reader, sizeof(float));
        float narrow;
        memcpy(&narrow, &bits, sizeof(narrow));
        return (double)narrow;
    }
    const uint64_t bits = take(reader, sizeof(double));
    memcpy(&number, &bits, sizeof(number));
    return number;
}

static kv_msgpack_span_t take_span(kv_msgpack_t *reader, uint64_t length)
{
    if (left(reader) < length || length > UINT32_MAX) {
        fail(reader);
    }
    if (reader->is_failed) {
        return (kv_msgpack_span_t){NULL, 0};
    }
    const kv_msgpack_span_t span = {(const char *)reader->at, (uint32_t)length};
    reader->at += length;
    return span;
}

kv_msgpack_span_t kv_msgpack_text(kv_msgpack_t *reader)
{
    uint64_t head = take(reader, 1);
    if (head >= 0xd9 && head <= 0xdb) {
        head = take(reader, (size_t)1 << (head - 0xd9));
    } else if (head >= 0xa0 && head < 0xc0) {
        head &= 0x1f;
    } else {
        fail(reader);
    }
    return take_span(reader, head);
}

kv_msgpack_span_t kv_msgpack_bin(kv_msgpack_t *reader)
{
    uint64_t head = take(reader, 1);
    if (head >= 0xc4 && head <= 0xc6) {
        head = take(reader, (size_t)1 << (head - 0xc4));
    } else {
        fail(reader);
    }
    return take_span(reader, head);
}

/* Short form: 16 values from fix on; long forms: wide, of 16 and of 32 bits. */
static uint32_t take_count(kv_msgpack_t *reader, uint8_t fix, uint8_t wide, size_t item_bytes)
{
    uint64_t count = take(reader, 1);
    if (count == wide || count == wide + 1u) {
        count = take(reader, count == wide ? 2 : 4);
    } else if ((count & 0xf0) == fix) {
        count &= 0x0f;
    } else {
        fail(reader);
    }
    if (count > left(reader) / item_bytes) {
        fail(reader);
    }
    return reader->is_failed ? 0 : (uint32_t)count;
}

uint32_t kv_msgpack_array(kv_msgpack_t *reader)
{
    return take_count(reader, 0x90, 0xdc, 1);
}

uint32_t kv_msgpack_map(kv_msgpack_t *reader)
{
    return take_count(reader, 0x80, 0xde, 2);
}

static void skip_ext(kv_msgpack_t *reader)
{
    uint64_t head = take(reader, 1);
    if (head >= 0xd4) {
        head = UINT64_C(1) << (head - 0xd4);
    } else {
        head = take(reader, (size_t)1 << (head - 0xc7));
    }
    take_span(reader, head + 1); /* the type's byte */
}

static void skip(kv_msgpack_t *reader, unsigned depth)
{
    uint32_t items = 0;
    switch (kv_msgpack_peek(reader)) {
    case KV_MSGPACK_NIL:
    case KV_MSGPACK_BOOL:
        reader->at++;
        break;
    case KV_MSGPACK_INT:
        kv_msgpack_int(reader, NULL);
        break;
    case KV_MSGPACK_FLOAT:
        kv_msgpack_number(reader);
        break;
    case KV_MSGPACK_TEXT:
        kv_msgpack_text(reader);
        break;
    case KV_MSGPACK_BIN:
        kv_msgpack_bin(reader);
        break;
    case KV_MSGPACK_EXT:
        skip_ext(reader);
        break;
    case KV_MSGPACK_ARRAY:
        items = kv_msgpack_array(reader);
        break;
    case KV_MSGPACK_MAP:
        items = 2 * kv_msgpack_map(reader);
        break;
    case KV_MSGPACK_NONE:
        fail(reader);
        break;
    }
    if (items > 0 && depth == 0) {
        fail(reader);
    }
    for (uint32_t i = 0; i < items && !reader->is_failed; i++) {
        skip(reader, depth - 1);
    }
}

kv_msgpack_span_t kv_msgpack_item(kv_msgpack_t *reader)
{
    const uint8_t *begin = reader->at;
    skip(reader, MAX_DEPTH);
    if (reader->is_failed || reader->at - begin > UINT32_MAX) {
        return (kv_msgpack_span_t){NULL, 0};
    }
    return (kv_msgpack_span_t){(const char *)begin, (uint32_t)(reader->at - begin)};
}
