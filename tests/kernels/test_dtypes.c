/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/compiler.h"
#include "kernels/dtypes.h"

static json_t *load_vectors(k_dtype_t dtype)
{
    char path[1024];
    json_error_t error;
    snprintf(path, sizeof(path), WEFT_TEST_VECTORS "/gguf-quants/%s.json",
             k_dtype_info(dtype)->name);
    json_t *root = json_load_file(path, 0, &error);
    if (root == NULL) {
        fail_msg("%s: %s", path, error.text);
    }
    return root;
}

/* The bytes of a hex string; the caller frees them. */
static uint8_t *bytes_of_hex(const json_t *hex, size_t *length_out)
{
    const char *text = json_string_value(hex);
    const size_t length = json_string_length(hex) / 2;
    uint8_t *bytes = test_malloc(length + 1);
    for (size_t i = 0; i < length; i++) {
        const char digits[3] = {text[2 * i], text[2 * i + 1], '\0'};
        bytes[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    *length_out = length;
    return bytes;
}

static void assert_floats_equal(const float *got, const uint8_t *want, size_t n, bool nan_by_kind,
                                const char *where)
{
    for (size_t i = 0; i < n; i++) {
        float expected;
        memcpy(&expected, want + 4 * i, sizeof(expected));
        if (nan_by_kind && isnan(expected)) {
            assert_true(isnan(got[i]));
        } else if (memcmp(&expected, &got[i], sizeof(expected)) != 0) {
            fail_msg("%s: element %zu is %a, expected %a", where, i, (double)got[i],
                     (double)expected);
        }
    }
}

static void check_decoded(k_dtype_t dtype, const json_t *raw, const json_t *values,
                          bool is_nonfinite, const char *where)
{
    const k_dtype_info_t *info = k_dtype_info(dtype);
    size_t raw_bytes;
    size_t value_bytes;
    uint8_t *blocks = bytes_of_hex(raw, &raw_bytes);
    uint8_t *want = bytes_of_hex(values, &value_bytes);
    const size_t n = value_bytes / 4;
    size_t row_bytes;
    assert_int_equal(k_dtype_row_bytes(dtype, n, &row_bytes), WEFT_OK);
    assert_int_equal(row_bytes, raw_bytes);
    assert_int_equal(n % info->block_elements, 0);

    float *got = test_malloc(n * sizeof(float));
    k_dequantize(dtype, blocks, got, n);
    assert_floats_equal(got, want, n, is_nonfinite, where);
    test_free(got);
    test_free(want);
    test_free(blocks);
}

static size_t check_dtype(k_dtype_t dtype)
{
    size_t checked = 0;
    size_t i;
    json_t *test_case;
    json_t *root = load_vectors(dtype);
    assert_int_equal(json_integer_value(json_object_get(root, "type_id")),
                     k_dtype_info(dtype)->gguf_type);
    json_array_foreach(json_object_get(root, "dequantize"), i, test_case)
    {
        const json_t *blocks = json_object_get(test_case, "blocks");
        const json_t *values = json_object_get(test_case, "f32");
        assert_int_equal(json_array_size(blocks), json_array_size(values));
        for (size_t j = 0; j < json_array_size(blocks); j++, checked++) {
            check_decoded(dtype, json_array_get(blocks, j), json_array_get(values, j),
                          json_is_true(json_object_get(test_case, "nonfinite")),
                          json_string_value(json_object_get(test_case, "name")));
        }
    }
    json_array_foreach(json_object_get(root, "quantize"), i, test_case)
    {
        const json_t *bytes = json_object_get(test_case, "bytes");
        for (size_t j = 0; j < json_array_size(bytes); j++, checked++) {
            check_decoded(dtype, json_array_get(bytes, j),
                          json_array_get(json_object_get(test_case, "f32_after"), j), true,
                          json_string_value(json_object_get(test_case, "name")));
        }
    }
    json_decref(root);
    return checked;
}

static void every_gguf_type_dequantizes_to_the_last_bit(void **state)
{
    (void)state;
    for (int dtype = 0; dtype < K_DTYPE_COUNT; dtype++) {
        if (dtype != K_F32 && k_dtype_info((k_dtype_t)dtype)->gguf_type >= 0) { /* f32: next test */
            assert_true(check_dtype((k_dtype_t)dtype) >= 3);
        }
    }
}

/* Every code against the definition: sign, 4 bits of exponent with bias 7, 3 of mantissa. */
static void f8_numbers_are_e4m3_without_infinities(void **state)
{
    (void)state;
    for (int code = 0; code < 256; code++) {
        const uint8_t byte = (uint8_t)code;
        const int exponent = code >> 3 & 15;
        const double mantissa = (code & 7) / 8.0;
        double expected =
            exponent == 0 ? mantissa * pow(2, -6) : (1 + mantissa) * pow(2, exponent - 7);
        expected = code & 128 ? -expected : expected;
        uint8_t block[36] = {0};
        const float scale = 0.375f;
        float y[32];
        memcpy(block, &scale, sizeof(scale));
        block[4 + code % 32] = byte;
        k_dequantize(K_F8_32, block, y, 32);
        float plain;
        k_dequantize(K_F8, &byte, &plain, 1);
        if ((code & 127) == 127) {
            assert_true(isnan(plain) && isnan(y[code % 32]));
        } else {
            assert_true((double)plain == expected && (double)y[code % 32] == expected * 0.375);
        }
    }
}

static void f32_is_copied_bit_for_bit(void **state)
{
    (void)state;
    const uint32_t bits[] = {0, 0x80000000, 1, 0x7f800000, 0xff800000, 0x7f800001, 0x3f800000};
    char unaligned[sizeof(bits) + 1];
    float got[WEFT_ARRAY_LEN(bits)];
    memcpy(unaligned + 1, bits, sizeof(bits));
    k_dequantize(K_F32, unaligned + 1, got, WEFT_ARRAY_LEN(bits));
    assert_memory_equal(got, bits, sizeof(bits));
}

static uint16_t narrow(k_dtype_t dtype, float f)
{
    return dtype == K_F16 ? k_f32_to_f16(f) : k_f32_to_bf16(f);
}

static float widen(k_dtype_t dtype, uint16_t h)
{
    return dtype == K_F16 ? k_f16_to_f32(h) : k_bf16_to_f32(h);
}

static void check_narrowing(k_dtype_t dtype)
{
    size_t i;
    json_t *test_case;
    json_t *root = load_vectors(dtype);
    json_array_foreach(json_object_get(root, "quantize"), i, test_case)
    {
        const json_t *rows = json_object_get(test_case, "f32");
        for (size_t j = 0; j < json_array_size(rows); j++) {
            size_t n;
            size_t half_bytes;
            uint8_t *values = bytes_of_hex(json_array_get(rows, j), &n);
            uint8_t *halves =
                bytes_of_hex(json_array_get(json_object_get(test_case, "bytes"), j), &half_bytes);
            for (size_t k = 0; k < half_bytes / 2; k++) {
                float f;
                memcpy(&f, values + 4 * k, sizeof(f));
                assert_int_equal(narrow(dtype, f), halves[2 * k] | halves[2 * k + 1] << 8);
            }
            test_free(halves);
            test_free(values);
        }
    }
    json_decref(root);
}

static void narrowing_rounds_half_to_even_as_the_vectors_do(void **state)
{
    (void)state;
    check_narrowing(K_F16);
    check_narrowing(K_BF16);
}

static void all_65536_halves_survive_the_way_to_f32_and_back(void **state)
{
    (void)state;
    const k_dtype_t types[] = {K_F16, K_BF16};
    for (size_t t = 0; t < WEFT_ARRAY_LEN(types); t++) {
        for (uint32_t h = 0; h <= UINT16_MAX; h++) {
            const float f = widen(types[t], (uint16_t)h);
            const uint16_t back = narrow(types[t], f);
            if (isnan(f)) {
                assert_true(isnan(widen(types[t], back)));
            } else {
                assert_int_equal(back, h);
            }
        }
    }
}

/* Between neighbours a < b: just below the middle gives a, the middle the even one, above b. */
static void every_f16_midpoint_rounds_to_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7bff; h++) {
        const float low = k_f16_to_f32((uint16_t)h);
        const float high = k_f16_to_f32((uint16_t)(h + 1));
        const float middle = (low + high) / 2;
        assert_int_equal(k_f32_to_f16(middle), h + (h & 1));
        assert_int_equal(k_f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(k_f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
    }
    assert_int_equal(k_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(k_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(k_f32_to_f16(-INFINITY), 0xfc00);
}

static void nan_never_rounds_to_infinity(void **state)
{
    (void)state;
    const uint32_t bits = 0x7f800001; /* a payload that narrowing cuts off */
    float f;
    memcpy(&f, &bits, sizeof(f));
    assert_true(isnan(k_f16_to_f32(k_f32_to_f16(f))));
    assert_true(isnan(k_bf16_to_f32(k_f32_to_bf16(f))));
}

static void row_bytes_wants_whole_blocks_and_does_not_wrap(void **state)
{
    (void)state;
    size_t bytes = 7;
    assert_int_equal(k_dtype_row_bytes(K_Q8_0, 64, &bytes), WEFT_OK);
    assert_int_equal(bytes, 68);
    assert_int_equal(k_dtype_row_bytes(K_Q8_0, 33, &bytes), WEFT_ERR_INVALID);
    assert_int_equal(k_dtype_row_bytes(K_F32, UINT64_C(1) << 62, &bytes), WEFT_ERR_TOO_LARGE);
    assert_int_equal(bytes, 68);
}

static void types_are_found_by_id_and_name_and_nothing_else(void **state)
{
    (void)state;
    k_dtype_t dtype;
    for (int i = 0; i < K_DTYPE_COUNT; i++) {
        const k_dtype_info_t *info = k_dtype_info((k_dtype_t)i);
        if (info->gguf_type >= 0) {
            assert_int_equal(k_dtype_from_gguf((uint32_t)info->gguf_type, &dtype), WEFT_OK);
            assert_int_equal(dtype, i);
        }
        assert_int_equal(k_dtype_from_name(info->name, &dtype), WEFT_OK);
        assert_int_equal(dtype, i);
    }
    assert_int_equal(k_dtype_from_safetensors("BF16", &dtype), WEFT_OK);
    assert_int_equal(dtype, K_BF16);
    assert_int_equal(k_dtype_from_safetensors("", &dtype), WEFT_ERR_NOT_FOUND);
    assert_int_equal(k_dtype_from_safetensors("F8_E5M2", &dtype), WEFT_ERR_NOT_FOUND);
    assert_int_equal(k_dtype_from_gguf(250, &dtype), WEFT_ERR_NOT_FOUND);
    assert_int_equal(k_dtype_from_gguf(UINT32_MAX, &dtype), WEFT_ERR_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_gguf_type_dequantizes_to_the_last_bit),
        cmocka_unit_test(f8_numbers_are_e4m3_without_infinities),
        cmocka_unit_test(f32_is_copied_bit_for_bit),
        cmocka_unit_test(narrowing_rounds_half_to_even_as_the_vectors_do),
        cmocka_unit_test(all_65536_halves_survive_the_way_to_f32_and_back),
        cmocka_unit_test(every_f16_midpoint_rounds_to_even),
        cmocka_unit_test(nan_never_rounds_to_infinity),
        cmocka_unit_test(row_bytes_wants_whole_blocks_and_does_not_wrap),
        cmocka_unit_test(types_are_found_by_id_and_name_and_nothing_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
