/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Python's pickle, protocol 5, as CPython's pickler writes it (opcodes: Lib/pickletools.py): one
 * frame, and a MEMOIZE behind every value but integers, None and the empty tuple.
 *
 * A value that is the same object as an earlier one would be written as a reference to that. Here
 * no two can be, but for an adapter whose name and path are one object in vLLM: values do not tell.
 */
#include <endian.h>
#include <stdbool.h>
#include <string.h>

#include "kvstore/hash/kv_hash_priv.h"

#define PICKLE_PROTO            0x80
#define PICKLE_FRAME            0x95
#define PICKLE_STOP             '.'
#define PICKLE_NONE             'N'
#define PICKLE_BININT           'J'
#define PICKLE_BININT1          'K'
#define PICKLE_BININT2          'M'
#define PICKLE_SHORT_BINBYTES   'C'
#define PICKLE_SHORT_BINUNICODE 0x8c
#define PICKLE_BINUNICODE       'X'
#define PICKLE_MARK             '('
#define PICKLE_TUPLE            't'
#define PICKLE_EMPTY_TUPLE      ')'
#define PICKLE_TUPLE1           0x85 /* of the last value; the next two opcodes: of the last 2, 3 */
#define PICKLE_MEMOIZE          0x94

#define HEADER_BYTES 11 /* protocol, then the frame with its length */

static uint8_t *put_little_endian(uint8_t *out, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        *out++ = (uint8_t)(value >> 8 * i);
    }
    return out;
}

/* Without a branch: the lengths of token ids are past predicting. */
static inline uint8_t *put_int(uint8_t *out, int32_t value)
{
    static const uint8_t opcodes[] = {PICKLE_BININT1, PICKLE_BININT2, PICKLE_BININT};
    static const uint8_t lengths[] = {2, 3, 5};
    const uint32_t bits = (uint32_t)value; /* a negative one is too long for the short forms */
    const unsigned size = (bits > UINT8_MAX) + (bits > UINT16_MAX);
    const uint64_t item = htole64((uint64_t)bits << 8 | opcodes[size]);
    memcpy(out, &item, sizeof(item));
    return out + lengths[size];
}

static uint8_t *put_data(uint8_t *out, const void *data, size_t bytes)
{
    memcpy(out, data, bytes);
    out += bytes;
    *out++ = PICKLE_MEMOIZE;
    return out;
}

static uint8_t *put_text(uint8_t *out, const char *text)
{
    const size_t bytes = strlen(text);
    const bool is_short = bytes <= UINT8_MAX;
    *out++ = is_short ? PICKLE_SHORT_BINUNICODE : PICKLE_BINUNICODE;
    out = put_little_endian(out, bytes, is_short ? 1 : 4);
    return put_data(out, text, bytes);
}

/* Of the last n values, 1 to 3. */
static uint8_t *put_small_tuple(uint8_t *out, uint32_t n)
{
    *out++ = (uint8_t)(PICKLE_TUPLE1 + n - 1);
    *out++ = PICKLE_MEMOIZE;
    return out;
}

static uint8_t *put_tokens(uint8_t *out, const int32_t *tokens, uint32_t n)
{
    if (n == 0) {
        *out++ = PICKLE_EMPTY_TUPLE;
        return out;
    }
    if (n > 3) {
        *out++ = PICKLE_MARK;
    }
    for (uint32_t i = 0; i < n; i++) {
        out = put_int(out, tokens[i]);
    }
    if (n <= 3) {
        return put_small_tuple(out, n);
    }
    *out++ = PICKLE_TUPLE;
    *out++ = PICKLE_MEMOIZE;
    return out;
}

/* (("lora", name, path), ("cache_salt", salt)), without what there is none of. */
static uint8_t *put_extra(uint8_t *out, const kv_hash_input_t *input)
{
    const uint32_t items = (input->lora_name != NULL) + (input->salt != NULL);
    if (items == 0) {
        *out++ = PICKLE_NONE;
        return out;
    }
    if (input->lora_name != NULL) {
        out = put_text(out, "lora");
        out = put_text(out, input->lora_name);
        out = put_text(out, input->lora_path);
        out = put_small_tuple(out, 3);
    }
    if (input->salt != NULL) {
        out = put_text(out, "cache_salt");
        out = put_text(out, input->salt);
        out = put_small_tuple(out, 2);
    }
    return put_small_tuple(out, items);
}

/* What lies between out + HEADER_BYTES and end becomes a pickle. */
static uint8_t *finish(uint8_t *out, uint8_t *end)
{
    *end++ = PICKLE_STOP;
    out[0] = PICKLE_PROTO;
    out[1] = 5;
    out[2] = PICKLE_FRAME;
    put_little_endian(out + 3, (uint64_t)(end - (out + HEADER_BYTES)), 8);
    return end;
}

uint8_t *kv_hash_pickle_text(uint8_t *out, const char *text)
{
    return finish(out, put_text(out + HEADER_BYTES, text));
}

uint8_t *kv_hash_pickle_block(uint8_t *out, const kv_hash_input_t *input)
{
    uint8_t *at = out + HEADER_BYTES;
    *at++ = PICKLE_SHORT_BINBYTES;
    at = put_little_endian(at, input->parent_bytes, 1);
    at = put_data(at, input->parent, input->parent_bytes);
    at = put_tokens(at, input->tokens, input->n_tokens);
    at = put_extra(at, input);
    return finish(out, put_small_tuple(at, 3));
}
