/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_handshake.h"

#include "tests/support/nixl_vectors.h"

static weft_arena_t arena;
static weft_diag_t diag;

static uint8_t *bytes_of(const json_t *test, const char *key, size_t *length_out)
{
    return hex_bytes(&arena, nixl_text(test, key), length_out);
}

static int setup(void **state)
{
    (void)state;
    diag = (weft_diag_t){0};
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    weft_arena_free(&arena);
    return 0;
}

/* ---- requests, clocks ------------------------------------------------------------------------ */

static void check_request(const json_t *test)
{
    weft_buffer_t out = {0};
    size_t length;
    kv_meta_request_t request = {(uint32_t)nixl_number(test, "pp_rank"),
                                 (uint32_t)nixl_number(test, "tp_rank")};
    const uint8_t *golden = bytes_of(test, "bytes", &length);
    kv_meta_request_encode(request, &out);
    assert_int_equal(out.length, length);
    assert_memory_equal(out.data, golden, length);
    weft_buffer_free(&out);
    kv_meta_request_t read;
    assert_status(kv_meta_request_decode(golden, length, &read), WEFT_OK);
    assert_int_equal(read.pp_rank, request.pp_rank);
    assert_int_equal(read.tp_rank, request.tp_rank);
    const uint8_t *older = bytes_of(test, "older_two_element_form", &length);
    assert_status(kv_meta_request_decode(older, length, &read), WEFT_OK);
    assert_int_equal(read.pp_rank, 0);
    assert_int_equal(read.tp_rank, request.tp_rank);
    for (size_t n = 0; n < length; n++) {
        assert_status(kv_meta_request_decode(older, n, &read), WEFT_ERR_MALFORMED);
    }
}

static void requests_are_vllms_in_both_forms(void **state)
{
    (void)state;
    nixl_for_each("get_meta", check_request);
}

static void what_is_no_request_is_malformed(void **state)
{
    static const char *const wrong[] = {
        "",
        "6765745f6d6574615f6d7367", /* of 0.10 */
        "93c40c6765745f6d6574615f6d736800"
        "00",                                   /* another verb */
        "93ac6765745f6d6574615f6d73670000",     /* a text */
        "93c40c6765745f6d6574615f6d736700ff",   /* rank -1 */
        "93c40c6765745f6d6574615f6d7367000000", /* one byte more */
        "94c40c6765745f6d6574615f6d7367000000",
        "91c40c6765745f6d6574615f6d7367",
    };
    kv_meta_request_t request;
    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        size_t length;
        const uint8_t *data = hex_bytes(&arena, wrong[i], &length);
        assert_status(kv_meta_request_decode(data, length, &request), WEFT_ERR_MALFORMED);
    }
}

static void check_clock(const json_t *test)
{
    uint8_t out[KV_HANDSHAKE_CLOCK_BYTES];
    size_t length;
    double seconds;
    const double value = json_number_value(json_object_get(test, "value"));
    const uint8_t *golden = bytes_of(test, "bytes", &length);
    kv_clock_encode(value, out);
    assert_int_equal(length, sizeof(out));
    assert_memory_equal(out, golden, length);
    assert_status(kv_clock_decode(golden, length, &seconds), WEFT_OK);
    assert_true(seconds == value);
    assert_status(kv_clock_decode(golden, length - 1, &seconds), WEFT_ERR_MALFORMED);
}

static void clocks_are_vllms(void **state)
{
    (void)state;
    nixl_for_each("clock_frame", check_clock);
}

/* ---- metadata -------------------------------------------------------------------------------- */

static void check_numbers(const json_t *list, kv_wire_COUNTS_t counts)
{
    if (json_is_null(list)) {
        assert_null(counts.items);
        return;
    }
    assert_int_equal(counts.n, json_array_size(list));
    for (uint32_t i = 0; i < counts.n; i++) {
        assert_true(counts.items[i] == (uint64_t)json_integer_value(json_array_get(list, i)));
    }
}

static void check_fields(const json_t *fields, const kv_agent_meta_t *meta)
{
    size_t length;
    const char *hex = nixl_text(json_object_get(fields, "agent_metadata"), "hex");
    const uint8_t *blob = hex_bytes(&arena, hex, &length);
    assert_int_equal(meta->agent_metadata.length, length);
    assert_memory_equal(meta->agent_metadata.data, blob, length);
    assert_true(kv_wire_text_is(meta->engine_id, nixl_text(fields, "engine_id")));
    assert_true(kv_wire_text_is(meta->kv_cache_layout, nixl_text(fields, "kv_cache_layout")));
    assert_true(kv_wire_text_is(meta->attn_backend_name, nixl_text(fields, "attn_backend_name")));
    assert_true(meta->num_blocks == nixl_number(fields, "num_blocks"));
    assert_true(meta->block_size == nixl_number(fields, "block_size"));
    assert_true(meta->device_id == nixl_number(fields, "device_id"));
    assert_true(meta->dcp_size == nixl_number(fields, "dcp_size"));
    assert_true(meta->physical_blocks_per_logical_kv_block ==
                nixl_number(fields, "physical_blocks_per_logical_kv_block"));
    check_numbers(json_object_get(fields, "kv_caches_base_addr"), meta->kv_caches_base_addr);
    check_numbers(json_object_get(fields, "block_lens"), meta->block_lens);
    check_numbers(json_object_get(fields, "block_strides"), meta->block_strides);
    check_numbers(json_object_get(fields, "region_num_blocks"), meta->region_num_blocks);
}

/* Every byte is read, and written again as it was; whatever is cut off is missed. */
static void check_payload(const uint8_t *payload, size_t length, kv_handshake_t *handshake_out)
{
    weft_buffer_t meta = {0};
    weft_buffer_t again = {0};
    char hash[65] = {0};
    if (kv_handshake_decode(payload, length, &diag, handshake_out) < 0) {
        fail_msg("%s", diag.text);
    }
    memcpy(hash, handshake_out->compatibility_hash.data, 64);
    kv_agent_meta_encode(&handshake_out->agent, &meta);
    kv_payload_encode(hash, meta.data, meta.length, &again);
    assert_int_equal(again.length, length);
    assert_memory_equal(again.data, payload, length);
    weft_buffer_free(&meta);
    weft_buffer_free(&again);
    for (size_t n = 0; n < length; n++) {
        kv_handshake_t cut;
        assert_status(kv_handshake_decode(payload, n, NULL, &cut), WEFT_ERR_MALFORMED);
    }
}

static void check_agent(const json_t *test)
{
    kv_handshake_t handshake;
    size_t length;
    const uint8_t *payload = bytes_of(test, "payload_bytes", &length);
    check_payload(payload, length, &handshake);
    assert_false(handshake.is_weft);
    assert_true(
        kv_wire_text_is(handshake.compatibility_hash, nixl_text(test, "payload_compat_hash")));
    check_fields(json_object_get(test, "fields"), &handshake.agent);
    kv_handshake_fini(&handshake);
}

static void metadata_is_vllms(void **state)
{
    (void)state;
    nixl_for_each("agent_metadata", check_agent);
}

static void a_running_workers_handshake_is_read(void **state)
{
    kv_handshake_t handshake;
    double seconds;
    size_t length;
    (void)state;
    json_t *live = read_json_vector("kv_transfer/vllm_live.json");
    const json_t *frames = json_object_get(live, "reply_frames_hex");
    const uint8_t *payload =
        hex_bytes(&arena, json_string_value(json_array_get(frames, 0)), &length);
    check_payload(payload, length, &handshake);
    assert_int_equal(handshake.agent.kv_caches_base_addr.n, 30);
    assert_int_equal(handshake.agent.num_blocks, 364);
    assert_int_equal(handshake.agent.block_size, 128);
    assert_int_equal(handshake.agent.block_lens.items[29], 98304);
    assert_true(kv_wire_text_is(handshake.agent.kv_cache_layout, "LBHNC"));
    assert_true(kv_wire_text_is(handshake.agent.attn_backend_name, "CPU_ATTN"));
    kv_handshake_fini(&handshake);
    const uint8_t *clock = hex_bytes(&arena, json_string_value(json_array_get(frames, 1)), &length);
    assert_status(kv_clock_decode(clock, length, &seconds), WEFT_OK);
    assert_true(seconds > 0);
    json_decref(live);
}

/* ---- weft's own ------------------------------------------------------------------------------ */

typedef struct sample {
    uint64_t base[2];
    uint64_t lens[2];
    uint8_t fingerprint[32];
    kv_agent_meta_t agent;
    kv_weft_meta_t weft;
} sample_t;

static void make_sample(sample_t *sample)
{
    *sample = (sample_t){.base = {0x10000, 0x20000}, .lens = {64, 64}};
    sample->agent = (kv_agent_meta_t){.engine_id = kv_wire_text("e"),
                                      .agent_metadata = {"blob", 4},
                                      .kv_caches_base_addr = {sample->base, 2},
                                      .num_blocks = 10,
                                      .block_lens = {sample->lens, 2},
                                      .block_strides = {sample->lens, 2},
                                      .kv_cache_layout = kv_wire_text("LBHNC"),
                                      .block_size = 16,
                                      .physical_blocks_per_logical_kv_block = 1};
    sample->weft = (kv_weft_meta_t){.version = KV_WEFT_META_VERSION,
                                    .fingerprint = {(const char *)sample->fingerprint, 32},
                                    .model = kv_wire_text("m"),
                                    .dtype = kv_wire_text("bf16"),
                                    .total_layers = 2,
                                    .total_heads = 4,
                                    .head_dim = 8,
                                    .layers = 2,
                                    .heads = 2,
                                    .tp_size = 2,
                                    .pp_size = 1,
                                    .lease_addr = 4096,
                                    .lease_slots = 5};
}

static weft_status_t round_trip(sample_t *sample, bool with_weft, kv_handshake_t *handshake_out)
{
    weft_buffer_t weft = {0};
    weft_buffer_t agent = {0};
    weft_buffer_t payload = {0};
    kv_weft_meta_encode(&sample->weft, &weft);
    if (with_weft) {
        sample->agent.weft = (kv_msgpack_span_t){weft.data, (uint32_t)weft.length};
    }
    kv_agent_meta_encode(&sample->agent, &agent);
    kv_payload_encode("hash", agent.data, agent.length, &payload);
    diag = (weft_diag_t){0};
    const weft_status_t status =
        kv_handshake_decode(payload.data, payload.length, &diag, handshake_out);
    weft_buffer_free(&weft);
    weft_buffer_free(&agent);
    weft_buffer_free(&payload);
    return status;
}

static void a_weft_worker_says_more(void **state)
{
    sample_t sample;
    kv_handshake_t handshake;
    (void)state;
    make_sample(&sample);
    assert_status(round_trip(&sample, true, &handshake), WEFT_OK);
    assert_true(handshake.is_weft);
    assert_int_equal(handshake.weft.tp_size, 2);
    assert_int_equal(handshake.weft.lease_addr, 4096);
    assert_true(kv_wire_text_is(handshake.weft.dtype, "bf16"));
    kv_handshake_fini(&handshake);
    make_sample(&sample);
    assert_status(round_trip(&sample, false, &handshake), WEFT_OK);
    assert_false(handshake.is_weft);
    kv_handshake_fini(&handshake);
}

static void assert_refused(sample_t *sample)
{
    kv_handshake_t handshake;
    assert_status(round_trip(sample, true, &handshake), WEFT_ERR_MALFORMED);
    assert_string_not_equal(diag.text, "");
    make_sample(sample);
}

static void numbers_that_cannot_be_are_refused(void **state)
{
    sample_t sample;
    (void)state;
    make_sample(&sample);
    sample.agent.num_blocks = 0;
    assert_refused(&sample);
    sample.agent.num_blocks = UINT32_MAX;
    assert_refused(&sample);
    sample.agent.block_size = 0;
    assert_refused(&sample);
    sample.agent.block_lens.n = 1;
    assert_refused(&sample);
    sample.agent.kv_caches_base_addr.n = 0;
    assert_refused(&sample);
    sample.lens[1] = 0;
    assert_refused(&sample);
    sample.base[0] = UINT64_MAX - 100;
    assert_refused(&sample);
    sample.lens[0] = UINT64_MAX / 2;
    assert_refused(&sample);
    sample.agent.physical_blocks_per_logical_kv_block = 0;
    assert_refused(&sample);
    sample.agent.engine_id = kv_wire_text("");
    assert_refused(&sample);
    sample.weft.tp_rank = 2;
    assert_refused(&sample);
    sample.weft.layers = 3;
    assert_refused(&sample);
    sample.weft.first_layer = UINT64_MAX;
    assert_refused(&sample);
    sample.weft.fingerprint.length = 31;
    assert_refused(&sample);
    sample.weft.lease_addr = 4;
    assert_refused(&sample);
    sample.weft.lease_slots = UINT32_MAX;
    assert_refused(&sample);
}

static void a_missing_key_is_named(void **state)
{
    static const uint8_t no_agent[] = {0x81, 0xb2, 'c', 'o', 'm', 'p', 'a', 't', 'i', 'b',  'i',
                                       'l',  'i',  't', 'y', '_', 'h', 'a', 's', 'h', 0xa1, 'x'};
    kv_handshake_t handshake;
    (void)state;
    assert_status(kv_handshake_decode(no_agent, sizeof(no_agent), &diag, &handshake),
                  WEFT_ERR_MALFORMED);
    assert_non_null(strstr(diag.text, "agent_metadata_bytes"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(requests_are_vllms_in_both_forms, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_no_request_is_malformed, setup, teardown),
        cmocka_unit_test_setup_teardown(clocks_are_vllms, setup, teardown),
        cmocka_unit_test_setup_teardown(metadata_is_vllms, setup, teardown),
        cmocka_unit_test_setup_teardown(a_running_workers_handshake_is_read, setup, teardown),
        cmocka_unit_test_setup_teardown(a_weft_worker_says_more, setup, teardown),
        cmocka_unit_test_setup_teardown(numbers_that_cannot_be_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(a_missing_key_is_named, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
