/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_handshake: the bytes that workers exchange on the side channel before blocks move, as vLLM
 * 0.32's NixlConnector has them.
 *
 *   request  one frame, msgpack [bin "get_meta_msg", pipeline rank, tensor rank] (from 0.26 on) or
 *            [bin "get_meta_msg", tensor rank]
 *   reply    a frame with the payload, a frame with a float64: the server's monotonic clock, seconds
 *   payload  {"compatibility_hash": text, "agent_metadata_bytes": bin}; in it one more map, see
 *            kv_agent_meta.def
 *
 * A weft worker adds the key "weft" to the inner map, which vLLM skips: see kv_weft_meta.def.
 *
 * Threads  none of its own
 */
#pragma once

#include "kvstore/transfer/kv_wire_map.h"

#define KV_WEFT_META_VERSION     1
#define KV_HANDSHAKE_MAX_REQUEST 64 /* bytes */
#define KV_HANDSHAKE_MAX_BYTES   ((size_t)64 << 20)
#define KV_HANDSHAKE_FINGERPRINT 32 /* bytes */
#define KV_HANDSHAKE_CLOCK_BYTES 9
#define KV_HANDSHAKE_MAX_REGIONS 4096

typedef struct kv_agent_meta {
#define FIELD(name, type, rule) kv_wire_##type##_t name;
#include "kvstore/transfer/kv_agent_meta.def"
#undef FIELD
} kv_agent_meta_t;

typedef struct kv_weft_meta {
#define FIELD(name, type, rule) kv_wire_##type##_t name;
#include "kvstore/transfer/kv_weft_meta.def"
#undef FIELD
} kv_weft_meta_t;

/* What a handshake brings. */
typedef struct kv_handshake {
    weft_arena_t arena; /* everything below is in it */
    kv_msgpack_span_t compatibility_hash;
    kv_agent_meta_t agent;
    bool is_weft;
    kv_weft_meta_t weft;
} kv_handshake_t;

typedef struct kv_meta_request {
    uint32_t pp_rank; /* 0 in the older form */
    uint32_t tp_rank;
} kv_meta_request_t;

void kv_meta_request_encode(kv_meta_request_t request, weft_buffer_t *out);
/* WEFT_ERR_MALFORMED: anything else. */
weft_status_t kv_meta_request_decode(const void *data, size_t bytes,
                                     kv_meta_request_t *request_out);

void kv_clock_encode(double seconds, uint8_t out[KV_HANDSHAKE_CLOCK_BYTES]);
weft_status_t kv_clock_decode(const void *data, size_t bytes, double *seconds_out);

void kv_agent_meta_encode(const kv_agent_meta_t *meta, weft_buffer_t *out);
void kv_weft_meta_encode(const kv_weft_meta_t *meta, weft_buffer_t *out);
void kv_payload_encode(const char *compatibility_hash, const void *agent_meta, size_t bytes,
                       weft_buffer_t *out);

/*
 * Distrusts every byte: counts are within the message, as many lengths and strides as regions, no
 * region of zero or overlapping itself. data is copied.
 * WEFT_ERR_MALFORMED: diag says what.
 */
weft_status_t kv_handshake_decode(const void *data, size_t bytes, weft_diag_t *diag,
                                  kv_handshake_t *handshake_out);
void kv_handshake_fini(kv_handshake_t *handshake); /* zeroed ones are fine */
