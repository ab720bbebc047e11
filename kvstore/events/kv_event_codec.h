/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_event_codec: vLLM's KV events as bytes: batches [ts, [event …], rank] in msgpack.
 *
 * An event is a map that begins with "type" (vLLM 0.24 and later; what equals its default is left
 * out) or an array that begins with the type (before; every field the release knew, nil included).
 * kv_event_encodings.def has the forms, kv_event_fields.def the fields. Encoding is byte for byte
 * vLLM's; decoding takes every form, and integers of any width.
 *
 * Threads  none of its own; values borrow from what they were made of
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/buffer.h"
#include "base/diag.h"
#include "base/status.h"
#include "kvstore/events/kv_msgpack.h"
#include "kvstore/hash/kv_hash.h"

typedef enum kv_event_kind {
    KV_EVENT_STORED,
    KV_EVENT_REMOVED,
    KV_EVENT_CLEARED,
} kv_event_kind_t;

/* What events call a block: the digest, or its last 64 bits as a number. Zeros behind n_bytes, so
 * that equal names are equal bytes. */
typedef struct kv_event_hash {
    uint8_t bytes[KV_HASH_BYTES]; /* a number: 8 bytes, big-endian */
    uint8_t n_bytes;              /* 0: nil */
    bool is_number;
} kv_event_hash_t;

typedef struct kv_event_hashes {
    const kv_event_hash_t *items; /* [count] */
    uint32_t count;
} kv_event_hashes_t;

typedef struct kv_event_tokens {
    const uint32_t *items; /* [count] */
    uint32_t count;
} kv_event_tokens_t;

typedef struct kv_event_int {
    bool is_set; /* else nil */
    int64_t value;
} kv_event_int_t;

typedef kv_msgpack_span_t kv_event_text_t;  /* data NULL: nil */
typedef kv_msgpack_span_t kv_event_items_t; /* msgpack; data NULL: nil */

/* Fields that an event's kind has not are ignored. Zeros are nil. */
typedef struct kv_event {
    kv_event_kind_t kind;
    kv_event_hashes_t block_hashes;
    kv_event_hash_t parent_block_hash; /* of the block before the first; nil: there is none */
    kv_event_tokens_t token_ids;       /* of all blocks */
    uint32_t block_size;
    kv_event_int_t lora_id;
    kv_event_text_t medium;
    kv_event_text_t lora_name;
    kv_event_items_t extra_keys; /* an array: for each block nil, or what kv_event_put_* wrote */
    kv_event_int_t group_idx;
    kv_event_text_t kv_cache_spec_kind;
    kv_event_int_t kv_cache_spec_sliding_window;
    kv_event_text_t locality;
    kv_event_text_t ownership;
    kv_event_text_t session_id;
    kv_event_items_t lookahead_token_ids; /* an array of arrays of numbers */
} kv_event_t;

typedef struct kv_event_encoding {
    const char *name;
    bool is_map;
    uint8_t fields[KV_EVENT_CLEARED + 1]; /* how many of its kind's, by kv_event_kind_t */
} kv_event_encoding_t;

/* WEFT_ERR_INVALID: the known names are in diag. */
weft_status_t kv_event_encoding_parse(const char *name, weft_diag_t *diag,
                                      const kv_event_encoding_t **encoding_out);
const kv_event_encoding_t *kv_event_encoding_at(uint32_t index); /* NULL: there are no more */

/* Hashes that are numbers in 8 bytes whatever their value: llm-d refuses a batch with a shorter one.
 * vLLM writes the shortest form. */
typedef enum kv_event_width { KV_EVENT_WIDE, KV_EVENT_SHORTEST } kv_event_width_t;

kv_event_hash_t kv_event_hash_number(uint64_t number);
kv_event_hash_t kv_event_hash_bytes(const uint8_t *bytes, uint32_t n); /* n <= KV_HASH_BYTES */
kv_event_text_t kv_event_text(const char *text);                       /* NULL: nil */
bool kv_event_text_equal(kv_event_text_t a, kv_event_text_t b);

/* ---- writing: a failure shows in out (is_failed) ---- */

void kv_event_encode(weft_buffer_t *out, const kv_event_encoding_t *encoding,
                     kv_event_width_t width, const kv_event_t *event);

/* events: n encoded ones, one after the other. rank not set: nil. */
void kv_event_batch_begin(weft_buffer_t *out, double ts, uint32_t n);
void kv_event_batch_end(weft_buffer_t *out, kv_event_int_t rank);

/* The parts of extra_keys: an array of what follows, text, bytes, or [text, offset]. */
void kv_event_put_array(weft_buffer_t *out, uint32_t n);
void kv_event_put_nil(weft_buffer_t *out);
void kv_event_put_text(weft_buffer_t *out, kv_event_text_t text);
void kv_event_put_bytes(weft_buffer_t *out, const void *data, uint32_t length);
void kv_event_put_int(weft_buffer_t *out, int64_t value);

/* ---- reading ---- */

typedef struct kv_event_batch {
    double ts; /* UNIX seconds */
    kv_event_int_t rank;
    uint32_t n_events;
    kv_event_t *events; /* [n_events] in memory, pointing there and into the payload */
    weft_arena_t memory;
} kv_event_batch_t;

/*
 * payload is borrowed until fini. WEFT_ERR_MALFORMED, WEFT_ERR_TOO_LARGE (2 GiB or more): diag says
 * what, batch_out is empty. The memory taken is at most 64 times the payload.
 */
weft_status_t kv_event_batch_decode(const void *payload, size_t length, weft_diag_t *diag,
                                    kv_event_batch_t *batch_out);
void kv_event_batch_fini(kv_event_batch_t *batch);

/* ---- the table of fields, for who prints or checks them all ---- */

typedef enum kv_event_type {
    KV_EVENT_TYPE_HASHES,
    KV_EVENT_TYPE_HASH,
    KV_EVENT_TYPE_TOKENS,
    KV_EVENT_TYPE_SIZE,
    KV_EVENT_TYPE_INT,
    KV_EVENT_TYPE_TEXT,
    KV_EVENT_TYPE_EXTRAS,
    KV_EVENT_TYPE_LISTS,
} kv_event_type_t;

typedef struct kv_event_field {
    const char *name;
    uint32_t name_length;
    kv_event_type_t type;
    bool is_required;
    size_t offset; /* in kv_event_t */
} kv_event_field_t;

const char *kv_event_kind_name(kv_event_kind_t kind); /* "BlockStored" */
const kv_event_field_t *kv_event_fields(kv_event_kind_t kind, uint32_t *n_out);
bool kv_event_field_is_default(const kv_event_t *event, const kv_event_field_t *field);
