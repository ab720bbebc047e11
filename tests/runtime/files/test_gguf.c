/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/mapped_file.h"
#include "runtime/files/gguf.h"
#include "tests/support/gguf_writer.h"

#define TINY_MODEL WEFT_TEST_VECTORS "/tiny-models/llama-gguf-q8_0/model.gguf"

static weft_status_t parse(const weft_buffer_t *file, weft_diag_t *diag, gguf_t **gguf_out)
{
    assert_false(file->is_failed);
    memset(diag, 0, sizeof(*diag));
    return gguf_parse(file->data, file->length, file->length, "x.gguf", diag, gguf_out);
}

/* Parses, expects a refusal whose line names the file and holds `reason`; frees the file. */
static void assert_refused(weft_buffer_t *file, weft_status_t status, const char *reason)
{
    weft_diag_t diag;
    gguf_t *gguf = NULL;
    assert_int_equal(parse(file, &diag, &gguf), status);
    assert_null(gguf);
    if (strncmp(diag.text, "x.gguf: ", 8) != 0 || strstr(diag.text, reason) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", diag.text, reason);
    }
    weft_buffer_free(file);
}

static void write_two_tensors(weft_buffer_t *file, uint64_t second_offset)
{
    gguf_write_header(file, 3, 2, 1);
    gguf_write_key_string(file, "general.architecture", "llama");
    gguf_write_tensor(file, "a", 4, 2, 0, 0);
    gguf_write_tensor(file, "b", 8, 0, 1, second_offset);
    gguf_write_data(file, 32, 48);
}

static void a_sound_file_gives_its_values_and_tensors(void **state)
{
    (void)state;
    weft_diag_t diag;
    weft_buffer_t file = {0};
    gguf_t *gguf = NULL;
    gguf_string_t text;
    write_two_tensors(&file, 32);
    assert_int_equal(parse(&file, &diag, &gguf), WEFT_OK);

    assert_int_equal(gguf_get_string(gguf, "general.architecture", &diag, &text), WEFT_OK);
    assert_int_equal(text.length, 5);
    assert_memory_equal(text.data, "llama", 5);

    assert_int_equal(gguf_tensor_count(gguf), 2);
    const gguf_tensor_t *a = gguf_tensor_at(gguf, 0);
    const gguf_tensor_t *b = gguf_tensor_at(gguf, 1);
    assert_string_equal(a->name, "a");
    assert_int_equal(a->dims[0], 4);
    assert_int_equal(a->dims[1], 2);
    assert_int_equal(a->bytes, 32);
    assert_int_equal(a->offset, file.length - 48);
    assert_string_equal(b->name, "b");
    assert_int_equal(b->dtype, K_F16);
    assert_int_equal(b->n_dims, 1);
    assert_int_equal(b->offset, a->offset + 32);
    gguf_destroy(gguf);
    weft_buffer_free(&file);
}

static void values_of_every_type_are_read_and_others_refused(void **state)
{
    (void)state;
    const double pi = 3.25;
    weft_diag_t diag = {0};
    weft_buffer_t file = {0};
    gguf_t *gguf = NULL;
    uint64_t n = 77;
    double x;
    bool flag = false;
    const gguf_value_t *array;
    gguf_write_header(&file, 2, 0, 6);
    gguf_write_key_u32(&file, "u", 42);
    gguf_write_key(&file, "i", GGUF_INT16);
    gguf_write_uint(&file, 0xfffe, 2);
    gguf_write_key(&file, "d", GGUF_FLOAT64);
    weft_buffer_append(&file, &pi, sizeof(pi));
    gguf_write_key(&file, "b", GGUF_BOOL);
    gguf_write_uint(&file, 1, 1);
    gguf_write_key_array(&file, "s", GGUF_STRING, 2);
    gguf_write_string(&file, "one");
    gguf_write_string(&file, "");
    gguf_write_key_f32(&file, "f", 0.5f);
    assert_int_equal(parse(&file, &diag, &gguf), WEFT_OK);

    assert_int_equal(gguf_get_u64(gguf, "nothing", &diag, &n), WEFT_ERR_NOT_FOUND);
    assert_int_equal(n, 77);
    assert_string_equal(diag.text, "");
    assert_int_equal(gguf_get_u64(gguf, "u", &diag, &n), WEFT_OK);
    assert_int_equal(n, 42);
    assert_int_equal(gguf_get_u64(gguf, "i", &diag, &n), WEFT_ERR_MALFORMED); /* -2 */
    assert_int_equal(gguf_get_u64(gguf, "s", &diag, &n), WEFT_ERR_MALFORMED);
    assert_string_equal(diag.text, "x.gguf: key s: is not an integer");
    assert_int_equal(gguf_get_f64(gguf, "d", &diag, &x), WEFT_OK);
    assert_true(x == pi);
    assert_int_equal(gguf_get_f64(gguf, "f", &diag, &x), WEFT_OK);
    assert_true(x == 0.5);
    assert_int_equal(gguf_get_f64(gguf, "u", &diag, &x), WEFT_ERR_MALFORMED);
    assert_int_equal(gguf_get_bool(gguf, "b", &diag, &flag), WEFT_OK);
    assert_true(flag);
    assert_int_equal(gguf_get_array(gguf, "s", GGUF_INT32, &diag, &array), WEFT_ERR_MALFORMED);
    assert_int_equal(gguf_get_array(gguf, "s", GGUF_STRING, &diag, &array), WEFT_OK);
    const uint8_t *cursor = array->data;
    assert_int_equal(gguf_next_string(&cursor).length, 3);
    assert_int_equal(gguf_next_string(&cursor).length, 0);
    gguf_destroy(gguf);
    weft_buffer_free(&file);
}

static void byte_order_and_versions_that_we_do_not_read_are_named(void **state)
{
    (void)state;
    weft_buffer_t file = {0};
    gguf_write_header(&file, 0x03000000, 0, 0);
    assert_refused(&file, WEFT_ERR_UNSUPPORTED, "big-endian");
    gguf_write_header(&file, 1, 0, 0);
    assert_refused(&file, WEFT_ERR_UNSUPPORTED, "GGUF version 1 is not supported");
}

static void a_type_of_the_format_that_we_do_not_compute_with_is_named(void **state)
{
    (void)state;
    weft_buffer_t file = {0};
    gguf_write_header(&file, 3, 1, 0);
    gguf_write_tensor(&file, "w", 256, 1, 9, 0);
    gguf_write_data(&file, 32, 292);
    assert_refused(&file, WEFT_ERR_UNSUPPORTED, "tensor w: type Q8_1 is not one of weights");
}

static void faults_name_the_key_or_tensor(void **state)
{
    (void)state;
    weft_buffer_t file = {0};
    gguf_write_header(&file, 3, 0, 2);
    gguf_write_key_u32(&file, "twice", 1);
    gguf_write_key_u32(&file, "twice", 1);
    assert_refused(&file, WEFT_ERR_MALFORMED, "key twice: appears twice");

    gguf_write_header(&file, 3, 0, 1);
    gguf_write_key_array(&file, "nested", GGUF_ARRAY, 1);
    gguf_write_uint(&file, 0, 8);
    assert_refused(&file, WEFT_ERR_MALFORMED, "key nested: an array of arrays");

    gguf_write_header(&file, 3, 0, 1);
    gguf_write_key(&file, "maybe", GGUF_BOOL);
    gguf_write_uint(&file, 2, 1);
    assert_refused(&file, WEFT_ERR_MALFORMED, "key maybe: a bool");

    gguf_write_header(&file, 3, 0, 1);
    gguf_write_key_u32(&file, "general.alignment", 48);
    assert_refused(&file, WEFT_ERR_MALFORMED, "general.alignment: 48 is not a power of two");

    gguf_write_header(&file, 3, 1, 0);
    gguf_write_tensor(&file, "flat", 0, 4, 0, 0);
    assert_refused(&file, WEFT_ERR_MALFORMED, "tensor flat: a dimension of 0");

    write_two_tensors(&file, 31);
    assert_refused(&file, WEFT_ERR_MALFORMED, "tensor b: its offset is not aligned");
    write_two_tensors(&file, 0);
    assert_refused(&file, WEFT_ERR_MALFORMED, "overlaps that of tensor");
    write_two_tensors(&file, 64);
    assert_refused(&file, WEFT_ERR_MALFORMED, "tensor b: its 16 bytes");
}

/* What a download sees: every beginning is "more, please", and only a file that ends there is cut. */
static void every_beginning_is_pending_and_every_cut_file_malformed(void **state)
{
    (void)state;
    weft_diag_t diag;
    weft_mapped_file_t file = {0};
    gguf_t *gguf = NULL;
    bool is_complete = false;
    const size_t before = weft_alloc_live_bytes();
    assert_int_equal(weft_mapped_file_open(TINY_MODEL, &diag, &file), WEFT_OK);
    for (size_t length = 0; length < file.length; length += 1 + length / 64) {
        weft_status_t status = gguf_parse(file.data, length, file.length, "x.gguf", &diag, &gguf);
        assert_int_equal(status, is_complete || status == WEFT_OK ? WEFT_OK : WEFT_PENDING);
        is_complete = status == WEFT_OK;
        gguf_destroy(gguf);
        gguf = NULL;
        assert_int_equal(gguf_parse(file.data, length, length, "x.gguf", &diag, &gguf),
                         WEFT_ERR_MALFORMED);
    }
    assert_true(is_complete);
    assert_int_equal(weft_alloc_live_bytes(), before);
    weft_mapped_file_close(&file);
}

static void every_failed_allocation_is_reported_and_leaks_nothing(void **state)
{
    (void)state;
    weft_diag_t diag;
    weft_mapped_file_t file = {0};
    gguf_t *gguf = NULL;
    weft_status_t status;
    const size_t before = weft_alloc_live_bytes();
    assert_int_equal(weft_mapped_file_open(TINY_MODEL, &diag, &file), WEFT_OK);
    uint64_t n = 0;
    do {
        weft_alloc_fail_nth(++n);
        status = gguf_parse(file.data, file.length, file.length, "x.gguf", &diag, &gguf);
        weft_alloc_fail_nth(0);
        assert_true(status == WEFT_OK || status == WEFT_ERR_NO_MEMORY);
        assert_true(status == WEFT_OK || weft_alloc_live_bytes() == before);
    } while (status != WEFT_OK);
    assert_true(n > 3);
    gguf_destroy(gguf);
    assert_int_equal(weft_alloc_live_bytes(), before);
    weft_mapped_file_close(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sound_file_gives_its_values_and_tensors),
        cmocka_unit_test(values_of_every_type_are_read_and_others_refused),
        cmocka_unit_test(byte_order_and_versions_that_we_do_not_read_are_named),
        cmocka_unit_test(a_type_of_the_format_that_we_do_not_compute_with_is_named),
        cmocka_unit_test(faults_name_the_key_or_tensor),
        cmocka_unit_test(every_beginning_is_pending_and_every_cut_file_malformed),
        cmocka_unit_test(every_failed_allocation_is_reported_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
