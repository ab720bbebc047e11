/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_handshake.h"

#include <msgpack/pack.h>
#include <string.h>

#include "base/compiler.h"

static const char get_meta[] = "get_meta_msg";

static const kv_wire_field_t agent_fields[] = {
#define FIELD(name, type, rule) KV_WIRE_FIELD(kv_agent_meta_t, name, type, rule),
#include "kvstore/transfer/kv_agent_meta.def"
#undef FIELD
};

static const kv_wire_field_t weft_fields[] = {
#define FIELD(name, type, rule) KV_WIRE_FIELD(kv_weft_meta_t, name, type, rule),
#include "kvstore/transfer/kv_weft_meta.def"
#undef FIELD
};

typedef struct payload {
    kv_msgpack_span_t compatibility_hash;
    kv_msgpack_span_t agent_metadata_bytes;
} payload_t;

static const kv_wire_field_t payload_fields[] = {
    KV_WIRE_FIELD(payload_t, compatibility_hash, TEXT, REQUIRED),
    KV_WIRE_FIELD(payload_t, agent_metadata_bytes, BIN, REQUIRED),
};

/* ---- request and clock ----------------------------------------------------------------------- */

static int append(void *user, const char *data, size_t length)
{
    weft_buffer_append(user, data, length);
    return 0;
}

void kv_meta_request_encode(kv_meta_request_t request, weft_buffer_t *out)
{
    msgpack_packer packer = {.data = out, .callback = append};
    msgpack_pack_array(&packer, 3);
    msgpack_pack_bin(&packer, sizeof(get_meta) - 1);
    msgpack_pack_bin_body(&packer, get_meta, sizeof(get_meta) - 1);
    msgpack_pack_uint32(&packer, request.pp_rank);
    msgpack_pack_uint32(&packer, request.tp_rank);
}

weft_status_t kv_meta_request_decode(const void *data, size_t bytes, kv_meta_request_t *request_out)
{
    kv_msgpack_t reader = kv_msgpack_of(data, bytes);
    kv_meta_request_t request = {0};
    const uint32_t n = kv_msgpack_array(&reader);
    const kv_msgpack_span_t verb = kv_msgpack_bin(&reader);
    if (n == 3) {
        request.pp_rank = kv_msgpack_u32(&reader);
    }
    request.tp_rank = kv_msgpack_u32(&reader);
    if (reader.is_failed || reader.at != reader.end || (n != 2 && n != 3) ||
        !kv_wire_text_is(verb, get_meta)) {
        return WEFT_ERR_MALFORMED;
    }
    *request_out = request;
    return WEFT_OK;
}

void kv_clock_encode(double seconds, uint8_t out[KV_HANDSHAKE_CLOCK_BYTES])
{
    uint64_t bits;
    memcpy(&bits, &seconds, sizeof(bits));
    out[0] = 0xcb;
    for (unsigned i = 0; i < sizeof(bits); i++) {
        out[1 + i] = (uint8_t)(bits >> (56 - 8 * i));
    }
}

weft_status_t kv_clock_decode(const void *data, size_t bytes, double *seconds_out)
{
    kv_msgpack_t reader = kv_msgpack_of(data, bytes);
    const double seconds = kv_msgpack_number(&reader);
    if (reader.is_failed || reader.at != reader.end) {
        return WEFT_ERR_MALFORMED;
    }
    *seconds_out = seconds;
    return WEFT_OK;
}

/* ---- metadata -------------------------------------------------------------------------------- */

void kv_agent_meta_encode(const kv_agent_meta_t *meta, weft_buffer_t *out)
{
    kv_wire_map_encode(agent_fields, WEFT_ARRAY_LEN(agent_fields), meta, out);
}

void kv_weft_meta_encode(const kv_weft_meta_t *meta, weft_buffer_t *out)
{
    kv_wire_map_encode(weft_fields, WEFT_ARRAY_LEN(weft_fields), meta, out);
}

void kv_payload_encode(const char *compatibility_hash, const void *agent_meta, size_t bytes,
                       weft_buffer_t *out)
{
    const payload_t payload = {kv_wire_text(compatibility_hash), {agent_meta, (uint32_t)bytes}};
    kv_wire_map_encode(payload_fields, WEFT_ARRAY_LEN(payload_fields), &payload, out);
}

static weft_status_t wrong(weft_diag_t *diag, const char *what)
{
    return weft_diag(diag, WEFT_ERR_MALFORMED, "handshake: %s", what);
}

static weft_status_t check_regions(kv_agent_meta_t *meta, weft_diag_t *diag)
{
    const uint32_t n = meta->kv_caches_base_addr.n;
    if (meta->block_strides.items == NULL) {
        meta->block_strides = meta->block_lens;
    }
    if (n == 0 || n > KV_HANDSHAKE_MAX_REGIONS || meta->block_lens.n != n ||
        meta->block_strides.n != n ||
        (meta->region_num_blocks.items != NULL && meta->region_num_blocks.n != n)) {
        return wrong(diag, "not as many lengths and strides as regions");
    }
    if (meta->num_blocks == 0 || meta->num_blocks >= UINT32_MAX) {
        return wrong(diag, "num_blocks is not possible");
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t length = meta->block_lens.items[i];
        const uint64_t stride = meta->block_strides.items[i];
        const uint64_t base = meta->kv_caches_base_addr.items[i];
        if (length == 0 || stride < length || stride > UINT64_MAX / meta->num_blocks ||
            base > UINT64_MAX - stride * meta->num_blocks) {
            return wrong(diag, "a region that cannot be");
        }
    }
    return WEFT_OK;
}

static weft_status_t check_agent(kv_agent_meta_t *meta, weft_diag_t *diag)
{
    const uint64_t tokens = meta->block_size;
    if (meta->engine_id.length == 0 || meta->engine_id.length > 512) {
        return wrong(diag, "engine_id is empty or too long");
    }
    if (tokens == 0 || tokens > UINT64_C(1) << 20) {
        return wrong(diag, "block_size is not possible");
    }
    if (meta->physical_blocks_per_logical_kv_block == 0 ||
        meta->physical_blocks_per_logical_kv_block > meta->num_blocks) {
        return wrong(diag, "physical_blocks_per_logical_kv_block is not possible");
    }
    return check_regions(meta, diag);
}

static weft_status_t check_weft(const kv_weft_meta_t *meta, weft_diag_t *diag)
{
    const uint64_t limit = UINT64_C(1) << 20;
    const bool is_possible =
        meta->fingerprint.length == KV_HANDSHAKE_FINGERPRINT && meta->total_layers > 0 &&
        meta->total_layers < limit && meta->total_heads > 0 && meta->total_heads < limit &&
        meta->head_dim > 0 && meta->head_dim < limit && meta->layers > 0 &&
        meta->first_layer <= meta->total_layers &&
        meta->layers <= meta->total_layers - meta->first_layer && meta->heads > 0 &&
        meta->heads <= meta->total_heads && meta->tp_size > 0 && meta->tp_size < limit &&
        meta->tp_rank < meta->tp_size && meta->pp_size > 0 && meta->pp_size < limit &&
        meta->pp_rank < meta->pp_size && meta->lease_slots < UINT32_MAX &&
        meta->lease_addr % sizeof(uint64_t) == 0;
    return is_possible ? WEFT_OK : wrong(diag, "weft: numbers that cannot be");
}

static weft_status_t decode(const void *data, size_t bytes, weft_diag_t *diag,
                            kv_handshake_t *handshake)
{
    payload_t payload = {0};
    kv_agent_meta_t *agent = &handshake->agent;
    weft_status_t status =
        kv_wire_map_decode(payload_fields, WEFT_ARRAY_LEN(payload_fields), data, bytes, "handshake",
                           &handshake->arena, diag, &payload);
    if (status < 0) {
        return status;
    }
    handshake->compatibility_hash = payload.compatibility_hash;
    agent->physical_blocks_per_logical_kv_block = 1;
    agent->dcp_size = 1;
    agent->pcp_size = 1;
    status = kv_wire_map_decode(
        agent_fields, WEFT_ARRAY_LEN(agent_fields), payload.agent_metadata_bytes.data,
        payload.agent_metadata_bytes.length, "handshake", &handshake->arena, diag, agent);
    if (status >= 0) {
        status = check_agent(agent, diag);
    }
    if (status < 0 || agent->weft.data == NULL) {
        return status;
    }
    handshake->is_weft = true;
    status = kv_wire_map_decode(weft_fields, WEFT_ARRAY_LEN(weft_fields), agent->weft.data,
                                agent->weft.length, "handshake: weft", &handshake->arena, diag,
                                &handshake->weft);
    return status < 0 ? status : check_weft(&handshake->weft, diag);
}

weft_status_t kv_handshake_decode(const void *data, size_t bytes, weft_diag_t *diag,
                                  kv_handshake_t *handshake_out)
{
    kv_handshake_t handshake = {0};
    if (bytes > KV_HANDSHAKE_MAX_BYTES) {
        return wrong(diag, "too many bytes");
    }
    void *copy = weft_arena_alloc(&handshake.arena, bytes + 1);
    if (copy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (bytes > 0) {
        memcpy(copy, data, bytes);
    }
    const weft_status_t status = decode(copy, bytes, diag, &handshake);
    if (status < 0) {
        kv_handshake_fini(&handshake);
        return status;
    }
    *handshake_out = handshake;
    return WEFT_OK;
}

void kv_handshake_fini(kv_handshake_t *handshake)
{
    weft_arena_free(&handshake->arena);
    *handshake = (kv_handshake_t){0};
}
