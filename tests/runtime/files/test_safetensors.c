/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/buffer.h"
#include "base/mapped_file.h"
#include "runtime/files/safetensors.h"

#define TINY_MODEL WEFT_TEST_VECTORS "/tiny-models/llama/model.safetensors"

/* header as it is, then data_bytes of data. */
static weft_buffer_t make_file(const char *header, size_t data_bytes)
{
    weft_buffer_t file = {0};
    const uint64_t length = strlen(header);
    for (int i = 0; i < 8; i++) {
        const uint8_t byte = (uint8_t)(length >> (8 * i));
        weft_buffer_append(&file, &byte, 1);
    }
    weft_buffer_puts(&file, header);
    for (size_t i = 0; i < data_bytes; i++) {
        weft_buffer_append(&file, "x", 1);
    }
    assert_false(file.is_failed);
    return file;
}

static weft_status_t parse(const char *header, size_t data_bytes, weft_diag_t *diag,
                           safetensors_t **out)
{
    weft_buffer_t file = make_file(header, data_bytes);
    memset(diag, 0, sizeof(*diag));
    const weft_status_t status =
        safetensors_parse(file.data, file.length, file.length, "x.safetensors", diag, out);
    weft_buffer_free(&file);
    return status;
}

static void assert_refused(const char *header, size_t data_bytes, const char *reason)
{
    weft_diag_t diag;
    safetensors_t *file = NULL;
    assert_int_equal(parse(header, data_bytes, &diag, &file), WEFT_ERR_MALFORMED);
    if (strncmp(diag.text, "x.safetensors: ", 15) != 0 || strstr(diag.text, reason) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", diag.text, reason);
    }
}

static void tensors_come_in_the_order_of_their_data(void **state)
{
    (void)state;
    weft_diag_t diag;
    safetensors_t *file = NULL;
    const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[8,20]},"
        "\"a\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
        "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,4],\"data_offsets\":[8,8]}}   ";
    assert_int_equal(parse(header, 20, &diag, &file), WEFT_OK);
    assert_int_equal(safetensors_tensor_count(file), 3);
    const safetensors_tensor_t *first = safetensors_tensor_at(file, 0);
    const safetensors_tensor_t *last = safetensors_tensor_at(file, 2);
    assert_string_equal(first->name, "a");
    assert_string_equal(first->type, "I64");
    assert_false(first->is_computable);
    assert_int_equal(first->n_dims, 0);
    assert_int_equal(first->offset, 8 + strlen(header));
    assert_string_equal(safetensors_tensor_at(file, 1)->name, "empty");
    assert_true(last->is_computable);
    assert_int_equal(last->dtype, K_BF16);
    assert_int_equal(last->dims[1], 3);
    assert_int_equal(last->bytes, 12);
    safetensors_destroy(file);
}

static void headers_that_the_reference_refuses_are_refused(void **state)
{
    (void)state;
    assert_refused("", 0, "is not a JSON object");
    assert_refused(" {}", 0, "is not a JSON object");
    assert_refused("{} {}", 0, "is not valid JSON");
    assert_refused("{}", 1, "its tensors take 0 bytes, the file has 1");
    assert_refused("{\"a\":5}", 0, "tensor a: dtype missing");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4,
                   "tensor a: shape missing");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4,
                   "tensor a: data_offsets missing");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4,
                   "tensor a: a dimension is not an integer");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4,
                   "tensor a: a dimension is not an integer");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4,
                   "tensor a: data_offsets missing or not two offsets");
    assert_refused("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1,
                   "tensor a: 3 elements of F4 do not take 1 bytes");
    assert_refused(
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1,
        "tensor a: more than 8 dimensions");
}

static void a_header_of_more_values_than_any_model_is_too_large(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    safetensors_t *file = NULL;
    const size_t length = (1 << 20) + 100;
    char *header = test_malloc(length + 1);
    memset(header, '[', length);
    header[0] = '{';
    header[length] = '\0';
    const size_t before = weft_alloc_live_bytes();
    assert_int_equal(parse(header, 0, &diag, &file), WEFT_ERR_TOO_LARGE);
    assert_int_equal(weft_alloc_live_bytes(), before);
    test_free(header);
}

static void every_beginning_is_pending_until_the_header_is_there(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    weft_mapped_file_t file = {0};
    safetensors_t *tensors = NULL;
    assert_int_equal(weft_mapped_file_open(TINY_MODEL, &diag, &file), WEFT_OK);
    const size_t header_end = 8 + (size_t)((const uint8_t *)file.data)[0] +
                              ((size_t)((const uint8_t *)file.data)[1] << 8);
    for (size_t length = 0; length < header_end; length += 7) {
        assert_int_equal(safetensors_parse(file.data, length, file.length, "x", &diag, &tensors),
                         WEFT_PENDING);
        assert_int_equal(safetensors_parse(file.data, length, length, "x", &diag, &tensors),
                         WEFT_ERR_MALFORMED);
    }
    assert_int_equal(safetensors_parse(file.data, header_end, file.length, "x", &diag, &tensors),
                     WEFT_OK);
    safetensors_destroy(tensors);
    assert_int_equal(
        safetensors_parse(file.data, file.length - 1, file.length - 1, "x", &diag, &tensors),
        WEFT_ERR_MALFORMED);
    weft_mapped_file_close(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_come_in_the_order_of_their_data),
        cmocka_unit_test(headers_that_the_reference_refuses_are_refused),
        cmocka_unit_test(a_header_of_more_values_than_any_model_is_too_large),
        cmocka_unit_test(every_beginning_is_pending_until_the_header_is_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
