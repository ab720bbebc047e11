/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_notice.h"

#include "tests/support/nixl_vectors.h"

static weft_arena_t arena;
static kv_notice_t notice;

static weft_status_t decode(const void *data, size_t bytes)
{
    weft_arena_free(&arena);
    return kv_notice_decode(data, bytes, &arena, &notice);
}

static weft_status_t decode_text(const char *text)
{
    return decode(text, strlen(text));
}

static int teardown(void **state)
{
    (void)state;
    weft_arena_free(&arena);
    return 0;
}

static void check_read(const json_t *test)
{
    weft_buffer_t out = {0};
    const char *id = nixl_text(test, "remote_request_id");
    const uint32_t readers = (uint32_t)nixl_number(test, "expected_consumers");
    const char *golden = nixl_text(test, "text");
    kv_notice_encode_read(id, readers, &out);
    assert_int_equal(out.length, strlen(golden));
    assert_memory_equal(out.data, golden, out.length);
    assert_status(decode(out.data, out.length), WEFT_OK);
    assert_int_equal(notice.kind, KV_NOTICE_READ);
    assert_true(kv_wire_text_is(notice.ids, id));
    assert_int_equal(notice.readers, readers);
    weft_buffer_free(&out);
}

static void read_notices_are_vllms(void **state)
{
    (void)state;
    nixl_for_each("notif", check_read);
}

static void check_heartbeat(const json_t *test)
{
    weft_buffer_t out = {0};
    weft_arena_t hex = {0};
    size_t length;
    const json_t *ids = json_object_get(test, "request_ids");
    kv_msgpack_span_t id;
    const uint8_t *golden = hex_bytes(&hex, nixl_text(test, "bytes"), &length);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        kv_notice_add_heartbeat(json_string_value(json_array_get(ids, i)), &out);
    }
    assert_int_equal(out.length, length);
    assert_memory_equal(out.data, golden, length);
    assert_status(decode(out.data, out.length), WEFT_OK);
    assert_int_equal(notice.kind, KV_NOTICE_HEARTBEAT);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        assert_true(kv_notice_next_id(&notice.ids, &id));
        assert_true(kv_wire_text_is(id, json_string_value(json_array_get(ids, i))));
    }
    assert_false(kv_notice_next_id(&notice.ids, &id));
    weft_buffer_free(&out);
    weft_arena_free(&hex);
}

static void heartbeats_are_vllms(void **state)
{
    (void)state;
    nixl_for_each("heartbeat", check_heartbeat);
}

static void empty_ids_of_a_heartbeat_are_passed_over(void **state)
{
    kv_msgpack_span_t id;
    (void)state;
    assert_status(decode_text("HB:,,a,,"), WEFT_OK);
    assert_true(kv_notice_next_id(&notice.ids, &id));
    assert_true(kv_wire_text_is(id, "a"));
    assert_false(kv_notice_next_id(&notice.ids, &id));
}

static void watches_and_progress_come_back(void **state)
{
    static const uint64_t blocks[] = {9, 0, 70000};
    weft_buffer_t out = {0};
    (void)state;
    const kv_watch_t watch = {.version = KV_NOTICE_VERSION,
                              .transfer_id = kv_wire_text("t"),
                              .first_block = 7,
                              .agent = {"blob", 4}};
    kv_notice_encode_watch(&watch, &out);
    assert_status(decode(out.data, out.length), WEFT_OK);
    assert_int_equal(notice.kind, KV_NOTICE_WATCH);
    assert_true(kv_wire_text_is(notice.watch.transfer_id, "t"));
    assert_null(notice.watch.request_id.data);
    assert_int_equal(notice.watch.first_block, 7);
    assert_int_equal(notice.watch.agent.length, 4);
    weft_buffer_clear(&out);
    const kv_progress_t progress = {.version = KV_NOTICE_VERSION,
                                    .request_id = kv_wire_text("r"),
                                    .state = KV_PROGRESS_HELD,
                                    .slot = 3,
                                    .epoch = UINT64_C(1) << 52,
                                    .tokens = 40,
                                    .first_block = 1,
                                    .blocks = {blocks, 3}};
    kv_notice_encode_progress(&progress, &out);
    assert_status(decode(out.data, out.length), WEFT_OK);
    assert_int_equal(notice.kind, KV_NOTICE_PROGRESS);
    assert_int_equal(notice.progress.state, KV_PROGRESS_HELD);
    assert_true(notice.progress.epoch == UINT64_C(1) << 52);
    assert_int_equal(notice.progress.blocks.n, 3);
    assert_int_equal(notice.progress.blocks.items[2], 70000);
    for (size_t n = 0; n < out.length; n++) {
        const weft_status_t status = decode(out.data, n);
        assert_true(status == WEFT_ERR_MALFORMED);
    }
    weft_buffer_free(&out);
}

static void the_largest_progress_fits_a_notification(void **state)
{
    uint64_t blocks[KV_NOTICE_PROGRESS_BLOCKS];
    char id[513];
    weft_buffer_t out = {0};
    (void)state;
    memset(id, 'x', 512);
    id[512] = '\0';
    for (size_t i = 0; i < KV_NOTICE_PROGRESS_BLOCKS; i++) {
        blocks[i] = UINT32_MAX - 1;
    }
    const kv_progress_t progress = {.version = KV_NOTICE_VERSION,
                                    .transfer_id = kv_wire_text(id),
                                    .request_id = kv_wire_text(id),
                                    .slot = UINT32_MAX - 1,
                                    .epoch = UINT64_MAX,
                                    .tokens = INT32_MAX,
                                    .first_block = INT32_MAX,
                                    .blocks = {blocks, KV_NOTICE_PROGRESS_BLOCKS}};
    kv_notice_encode_progress(&progress, &out);
    assert_true(out.length < (size_t)64 * 1024);
    weft_buffer_free(&out);
}

static void what_means_nothing_is_malformed(void **state)
{
    static const char *const wrong[] = {"x",
                                        ":",
                                        ":1",
                                        "a:",
                                        "a:0",
                                        "a:-1",
                                        "a:1x",
                                        "a:+1",
                                        "a: 1",
                                        "a:99999999999999999999",
                                        "a:65537",
                                        "WEFT_WATCH:",
                                        "WEFT_KV:",
                                        "WEFT_WATCH:\x80",
                                        "WEFT_KV:\x80",
                                        "WEFT_KV:\xc1"};
    (void)state;
    assert_status(decode("", 0), WEFT_ERR_MALFORMED);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        if (decode_text(wrong[i]) != WEFT_ERR_MALFORMED) {
            fail_msg("%s is taken", wrong[i]);
        }
    }
}

static void another_version_and_numbers_that_cannot_be_are_refused(void **state)
{
    weft_buffer_t out = {0};
    (void)state;
    kv_watch_t watch = {.version = 2, .transfer_id = kv_wire_text("t"), .agent = {"b", 1}};
    kv_notice_encode_watch(&watch, &out);
    assert_status(decode(out.data, out.length), WEFT_ERR_UNSUPPORTED);
    weft_buffer_clear(&out);
    watch.version = KV_NOTICE_VERSION;
    watch.request_id = kv_wire_text("r"); /* both names */
    kv_notice_encode_watch(&watch, &out);
    assert_status(decode(out.data, out.length), WEFT_ERR_MALFORMED);
    weft_buffer_clear(&out);
    static const uint64_t none[1];
    const kv_progress_t progress = {.version = KV_NOTICE_VERSION,
                                    .transfer_id = kv_wire_text("t"),
                                    .state = KV_PROGRESS_GONE + 1,
                                    .blocks = {none, 0}};
    kv_notice_encode_progress(&progress, &out);
    assert_status(decode(out.data, out.length), WEFT_ERR_MALFORMED);
    weft_buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(read_notices_are_vllms, teardown),
        cmocka_unit_test_teardown(heartbeats_are_vllms, teardown),
        cmocka_unit_test_teardown(empty_ids_of_a_heartbeat_are_passed_over, teardown),
        cmocka_unit_test_teardown(watches_and_progress_come_back, teardown),
        cmocka_unit_test_teardown(the_largest_progress_fits_a_notification, teardown),
        cmocka_unit_test_teardown(what_means_nothing_is_malformed, teardown),
        cmocka_unit_test_teardown(another_version_and_numbers_that_cannot_be_are_refused, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
