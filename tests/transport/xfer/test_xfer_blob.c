/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_blob.h"

#include <string.h>

#include "tests/support/random.h"
#include "tests/support/vectors.h"

static uint8_t nibble(char c)
{
    return (uint8_t)(c <= '9' ? c - '0' : c - 'a' + 10);
}

/* The metadata in a worker's handshake; weft_free it. */
static uint8_t *read_golden(size_t *n_out)
{
    json_t *handshake = read_json_vector("fabric/handshake.json");
    const char *hex =
        json_string_value(json_array_get(json_object_get(handshake, "reply_frames_hex"), 0));
    const size_t n = strlen(hex) / 2;
    uint8_t *frame = weft_alloc(n, "test.frame");
    assert_non_null(frame);
    for (size_t i = 0; i < n; i++) {
        frame[i] = (uint8_t)(nibble(hex[2 * i]) << 4 | nibble(hex[2 * i + 1]));
    }
    json_decref(handshake);
    const uint8_t *at = memmem(frame, n, "nixlSerDes|", 11);
    assert_non_null(at);
    *n_out = (size_t)at[-2] << 8 | at[-1];
    assert_true((size_t)(at - frame) + *n_out <= n);
    memmove(frame, at, *n_out);
    return frame;
}

static xfer_bytes_t text(const char *of)
{
    return (xfer_bytes_t){of, strlen(of)};
}

static void assert_bytes(xfer_bytes_t bytes, const char *expected)
{
    assert_int_equal(bytes.n, strlen(expected));
    assert_memory_equal(bytes.data, expected, bytes.n);
}

static void a_running_worker_is_understood(void **state)
{
    (void)state;
    size_t n;
    uint8_t *golden = read_golden(&n);
    xfer_blob_t blob;
    weft_diag_t diag = {0};
    assert_status(xfer_blob_decode(golden, n, &diag, &blob), WEFT_OK);
    assert_bytes(blob.agent, "8ddd584f-666b-43c3-a7ca-6d785756c862");
    assert_int_equal(blob.n_conns, 1);
    assert_bytes(blob.conns[0].backend, "UCX");
    assert_int_equal(blob.conns[0].address.n, 0x6a);
    assert_int_equal(blob.n_sections, 1);
    assert_bytes(blob.sections[0].backend, "UCX");
    assert_int_equal(blob.sections[0].space, 0);
    assert_int_equal(blob.sections[0].n, 1);
    const xfer_blob_region_t *region = &blob.sections[0].regions[0];
    assert_true(region->addr == UINT64_C(0x7fbac803f040));
    assert_int_equal(region->bytes, 0x3ffc0000);
    assert_int_equal(region->device, 0);
    assert_int_equal(region->key.n, 11);
    xfer_blob_fini(&blob);
    weft_free(golden);
}

static void what_was_understood_is_written_the_same(void **state)
{
    (void)state;
    size_t n;
    uint8_t *golden = read_golden(&n);
    xfer_blob_t blob;
    weft_buffer_t out = {0};
    assert_status(xfer_blob_decode(golden, n, NULL, &blob), WEFT_OK);
    xfer_blob_encode(&blob, &out);
    assert_int_equal(out.length, n);
    assert_memory_equal(out.data, golden, n);
    weft_buffer_free(&out);
    xfer_blob_fini(&blob);
    weft_free(golden);
}

/* Two backends, two kinds of memory, one region without a key. */
static void encode_example(weft_buffer_t *out)
{
    xfer_blob_conn_t conns[] = {{text("WEFT_SHM"), text("|a|")}, {text("UCX"), text("there")}};
    xfer_blob_region_t first[] = {{4096, 100, 0, text("k1")}, {8192, 1, 0, {NULL, 0}}};
    xfer_blob_region_t second[] = {{0, UINT64_MAX, 7, text("a longer key")}};
    xfer_blob_section_t sections[] = {{text("WEFT_SHM"), 0, first, 2}, {text("UCX"), 4, second, 1}};
    const xfer_blob_t blob = {
        .agent = text("w"), .conns = conns, .n_conns = 2, .sections = sections, .n_sections = 2};
    xfer_blob_encode(&blob, out);
    assert_false(out->is_failed);
}

static void every_part_survives(void **state)
{
    (void)state;
    weft_buffer_t out = {0};
    xfer_blob_t blob;
    encode_example(&out);
    assert_status(xfer_blob_decode(out.data, out.length, NULL, &blob), WEFT_OK);
    assert_bytes(blob.agent, "w");
    assert_int_equal(blob.n_conns, 2);
    assert_bytes(blob.conns[0].address, "|a|");
    assert_bytes(blob.conns[1].backend, "UCX");
    assert_int_equal(blob.n_sections, 2);
    assert_int_equal(blob.sections[0].n, 2);
    assert_bytes(blob.sections[0].regions[0].key, "k1");
    assert_int_equal(blob.sections[0].regions[1].key.n, 0);
    assert_int_equal(blob.sections[1].space, 4);
    assert_int_equal(blob.sections[1].regions[0].device, 7);
    xfer_blob_fini(&blob);
    weft_buffer_free(&out);
}

static void a_blob_cut_anywhere_is_refused(void **state)
{
    (void)state;
    weft_buffer_t out = {0};
    xfer_blob_t blob;
    encode_example(&out);
    for (size_t n = 0; n < out.length; n++) {
        weft_diag_t diag = {0};
        char *copy = malloc(n + 1); /* so that a read beyond it is seen */
        memcpy(copy, out.data, n);
        assert_status(xfer_blob_decode(copy, n, &diag, &blob), WEFT_ERR_MALFORMED);
        assert_true(diag.text[0] != '\0');
        free(copy);
    }
    weft_buffer_append(&out, "x", 1);
    assert_status(xfer_blob_decode(out.data, out.length, NULL, &blob), WEFT_ERR_MALFORMED);
    weft_buffer_free(&out);
}

static void changed_bytes_are_refused_or_understood_as_written(void **state)
{
    (void)state;
    test_random_t random = {test_seed(1)};
    weft_buffer_t out = {0};
    encode_example(&out);
    for (int round = 0; round < 20000; round++) {
        weft_buffer_t again = {0};
        xfer_blob_t blob;
        char *copy = malloc(out.length);
        memcpy(copy, out.data, out.length);
        copy[test_random_below(&random, (uint32_t)out.length)] = (char)test_random_u64(&random);
        if (xfer_blob_decode(copy, out.length, NULL, &blob) == WEFT_OK) {
            xfer_blob_encode(&blob, &again);
            assert_int_equal(again.length, out.length);
            assert_memory_equal(again.data, copy, out.length);
            xfer_blob_fini(&blob);
        }
        weft_buffer_free(&again);
        free(copy);
    }
    weft_buffer_free(&out);
}

static void refuse(const xfer_blob_t *blob, const char *why)
{
    weft_buffer_t out = {0};
    weft_diag_t diag = {0};
    xfer_blob_t decoded;
    xfer_blob_encode(blob, &out);
    assert_status(xfer_blob_decode(out.data, out.length, &diag, &decoded), WEFT_ERR_MALFORMED);
    if (strstr(diag.text, why) == NULL) {
        fail_msg("\"%s\" says nothing of \"%s\"", diag.text, why);
    }
    weft_buffer_free(&out);
}

static void what_makes_no_sense_is_refused(void **state)
{
    (void)state;
    xfer_blob_conn_t twice[] = {{text("UCX"), text("a")}, {text("UCX"), text("b")}};
    refuse(&(xfer_blob_t){.agent = text("w"), .conns = twice, .n_conns = 2}, "second connection");
    xfer_blob_region_t region = {4096, 100, 0, text("k")};
    xfer_blob_section_t sections[] = {{text("UCX"), 0, &region, 1}, {text("UCX"), 0, &region, 1}};
    xfer_blob_t blob = {.agent = text("w"), .sections = sections, .n_sections = 2};
    refuse(&blob, "second section");
    sections[1].space = 1;
    sections[1].n = 0;
    refuse(&blob, "empty section");
    blob.n_sections = 1;
    region.bytes = 0;
    refuse(&blob, "impossible size");
    region = (xfer_blob_region_t){UINT64_MAX - 5, 100, 0, text("k")};
    refuse(&blob, "impossible size");
    refuse(&(xfer_blob_t){.agent = text("")}, "Agent");
}

static void absurd_counts_are_not_believed(void **state)
{
    (void)state;
    static const char *const tags[] = {"Conns", "nixlSecElms", "n"};
    weft_buffer_t out = {0};
    encode_example(&out);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(tags); i++) {
        char *copy = malloc(out.length);
        char pattern[32];
        xfer_blob_t blob;
        const size_t tag_bytes = strlen(tags[i]);
        memcpy(copy, out.data, out.length);
        memcpy(pattern, tags[i], tag_bytes);
        memcpy(pattern + tag_bytes, "\x08\0\0\0\0\0\0\0", 8);
        char *at = memmem(copy, out.length, pattern, tag_bytes + 8);
        assert_non_null(at);
        memset(at + tag_bytes + 8, 0xff, 8);
        assert_status(xfer_blob_decode(copy, out.length, NULL, &blob), WEFT_ERR_MALFORMED);
        memset(at + tag_bytes + 8, 0, 8);
        at[tag_bytes + 8 + 3] = 1;
        assert_status(xfer_blob_decode(copy, out.length, NULL, &blob), WEFT_ERR_MALFORMED);
        free(copy);
    }
    weft_buffer_free(&out);
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    weft_buffer_t out = {0};
    encode_example(&out);
    const size_t before = weft_alloc_live_bytes();
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    for (uint64_t n = 1; status != WEFT_OK; n++) {
        xfer_blob_t blob;
        weft_alloc_fail_nth(n);
        status = xfer_blob_decode(out.data, out.length, NULL, &blob);
        weft_alloc_fail_nth(0);
        if (status == WEFT_OK) {
            xfer_blob_fini(&blob);
        } else {
            assert_status(status, WEFT_ERR_NO_MEMORY);
        }
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
    weft_buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_running_worker_is_understood),
        cmocka_unit_test(what_was_understood_is_written_the_same),
        cmocka_unit_test(every_part_survives),
        cmocka_unit_test(a_blob_cut_anywhere_is_refused),
        cmocka_unit_test(changed_bytes_are_refused_or_understood_as_written),
        cmocka_unit_test(what_makes_no_sense_is_refused),
        cmocka_unit_test(absurd_counts_are_not_believed),
        cmocka_unit_test(running_out_of_memory_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
