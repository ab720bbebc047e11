/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_convert.h"

#include <math.h>
#include <string.h>

#include "base/int8.h"
#include "tests/support/random.h"
#include "tests/support/vectors.h"

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* One element of one token, by way of heads of one. */
static float widen(kv_element_t element, uint16_t half)
{
    const kv_head_form_t from = {element, false, 1, 1};
    const kv_head_form_t to = {KV_ELEMENT_F32, false, 1, 1};
    const uint16_t pair[2] = {half, half};
    float out[2];
    kv_convert_head(&from, pair, 0, &to, out, 0, 1);
    return out[1];
}

static uint16_t narrow(kv_element_t element, float value)
{
    const kv_head_form_t from = {KV_ELEMENT_F32, false, 1, 1};
    const kv_head_form_t to = {element, false, 1, 1};
    const float pair[2] = {value, value};
    uint16_t out[2];
    kv_convert_head(&from, pair, 0, &to, out, 0, 1);
    return out[1];
}

/* sign · 2^(e-15) · 1.m, subnormals sign · 2^-14 · 0.m: IEEE 754, 3.4. */
static double half_value(uint16_t half)
{
    const double sign = (half & 0x8000) != 0 ? -1 : 1;
    const int exponent = half >> 10 & 0x1f;
    const double mantissa = (half & 0x3ff) / 1024.0;
    if (exponent == 31) {
        return mantissa == 0 ? sign * INFINITY : (double)NAN;
    }
    return exponent == 0 ? sign * ldexp(mantissa, -14) : sign * ldexp(1 + mantissa, exponent - 15);
}

static void every_half_is_widened_exactly_and_comes_back(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 65536; half++) {
        const float f16 = widen(KV_ELEMENT_F16, (uint16_t)half);
        const double value = half_value((uint16_t)half);
        if (isnan(value)) {
            assert_true(isnan(f16) && isnan(widen(KV_ELEMENT_F16, narrow(KV_ELEMENT_F16, f16))));
        } else {
            assert_true((double)f16 == value && !signbit(f16) == !signbit(value));
            assert_int_equal(narrow(KV_ELEMENT_F16, f16), half);
        }
        const float bf16 = widen(KV_ELEMENT_BF16, (uint16_t)half);
        assert_int_equal(bits_of(bf16), half << 16);
        if (isnan(bf16)) {
            assert_true(isnan(widen(KV_ELEMENT_BF16, narrow(KV_ELEMENT_BF16, bf16))));
        } else {
            assert_int_equal(narrow(KV_ELEMENT_BF16, bf16), half);
        }
    }
}

/* What is chosen is as near as its neighbours, and even where two are. */
static void check_nearest(kv_element_t element, float value)
{
    const uint16_t chosen = narrow(element, value);
    const double distance = fabs((double)widen(element, chosen) - (double)value);
    for (int step = -1; step <= 1; step += 2) {
        const uint16_t other = (uint16_t)(chosen + step);
        const double neighbour = (double)widen(element, other);
        if (isfinite(neighbour) && ((other ^ chosen) & 0x8000) == 0) {
            const double theirs = fabs(neighbour - (double)value);
            assert_true(distance < theirs || (distance == theirs && (chosen & 1) == 0));
        }
    }
}

static void narrowing_takes_the_nearest(void **state)
{
    test_random_t random = {test_seed(1)};
    (void)state;
    for (int i = 0; i < 200000; i++) {
        const double size = ldexp(1 + test_random_below(&random, 1 << 20) / 1048576.0,
                                  (int)test_random_between(&random, 0, 40) - 26);
        const float value = (float)(test_random_below(&random, 2) == 0 ? size : -size);
        check_nearest(KV_ELEMENT_F16, value);
        check_nearest(KV_ELEMENT_BF16, value);
    }
    assert_int_equal(narrow(KV_ELEMENT_F16, 65519.996f), 0x7bff);
    assert_int_equal(narrow(KV_ELEMENT_F16, 65520.0f), 0x7c00);
    assert_int_equal(narrow(KV_ELEMENT_F16, -1e9f), 0xfc00);
    assert_int_equal(narrow(KV_ELEMENT_F16, 0x1p-25f), 0);
    assert_int_equal(narrow(KV_ELEMENT_F16, 0x1.1p-25f), 1);
    assert_int_equal(narrow(KV_ELEMENT_BF16, 3.4e38f), 0x7f80);
}

/* ---- orders ---------------------------------------------------------------------------------- */

static void tokens_go_from_any_form_to_any_other_and_back(void **state)
{
    enum { DIM = 6, TOKENS = 16, LARGE = 32 };
    static const kv_element_t elements[] = {KV_ELEMENT_F32, KV_ELEMENT_F16, KV_ELEMENT_BF16,
                                            KV_ELEMENT_F8};
    test_random_t random = {test_seed(1)};
    (void)state;
    for (int round = 0; round < 200; round++) {
        const kv_head_form_t small = {KV_ELEMENT_F32, test_random_below(&random, 2) == 0, TOKENS,
                                      DIM};
        const kv_head_form_t large = {elements[test_random_below(&random, 4)],
                                      test_random_below(&random, 2) == 0, LARGE, DIM};
        float from[2 * DIM * TOKENS];
        float back[2 * DIM * TOKENS] = {0};
        char between[4 * 2 * DIM * LARGE];
        const uint32_t n = test_random_between(&random, 1, TOKENS);
        const uint32_t first = test_random_below(&random, TOKENS - n + 1);
        const uint32_t place = test_random_below(&random, LARGE - n + 1);
        for (int i = 0; i < 2 * DIM * TOKENS; i++) {
            from[i] = (float)((int)test_random_below(&random, 31) - 15); /* exact in all */
        }
        memset(between, 0x5a, sizeof(between));
        kv_convert_head(&small, from, first, &large, between, place, n);
        kv_convert_head(&large, between, place, &small, back, first, n);
        for (int i = 0; i < 2 * DIM * TOKENS; i++) {
            const int token = !small.is_transposed ? i / (2 * DIM)
                              : i < DIM * TOKENS   ? i % TOKENS
                                                   : (i - DIM * TOKENS) / DIM;
            const bool is_in = token >= (int)first && token < (int)(first + n);
            assert_true(back[i] == (is_in ? from[i] : 0));
        }
    }
}

/* Rows get the codes and the scale of base/int8.h, widen to code · scale, and are copied as they are. */
static void rows_are_converted_to_codes_with_a_scale(void **state)
{
    enum { DIM = 6, TOKENS = 8, LARGE = 16, ROW = 2 * DIM };
    const kv_head_form_t floats = {KV_ELEMENT_F32, false, TOKENS, DIM};
    const kv_head_form_t codes = {KV_ELEMENT_I8, false, TOKENS, DIM};
    const kv_head_form_t large = {KV_ELEMENT_I8, false, LARGE, DIM};
    test_random_t random = {test_seed(2)};
    float from[TOKENS * ROW];
    float back[TOKENS * ROW] = {0};
    struct {
        int8_t codes[TOKENS][2][DIM];
        float scales[2][TOKENS];
    } narrow = {0};
    struct {
        int8_t codes[LARGE][2][DIM];
        float scales[2][LARGE];
    } wide = {0};
    (void)state;
    for (int i = 0; i < TOKENS * ROW; i++) {
        from[i] = (float)test_random_below(&random, 2001) / 100 - 10;
    }
    memset(from + 3 * ROW, 0, DIM * sizeof(float));
    from[5 * ROW + DIM] = NAN;
    assert_int_equal(kv_head_token_bytes(&codes) * TOKENS, sizeof(narrow));
    kv_convert_head(&floats, from, 0, &codes, &narrow, 0, TOKENS);
    for (int t = 0; t < TOKENS; t++) {
        for (int part = 0; part < 2; part++) {
            const float *row = from + t * ROW + part * DIM;
            const weft_i8_scale_t scale = weft_i8_scale_of(weft_i8_largest(row, DIM));
            const float stored = narrow.scales[part][t];
            assert_true(stored == scale.scale || (t == 5 && part == 1 && isnan(stored)));
            for (int i = 0; i < DIM && isfinite(stored); i++) {
                assert_int_equal(narrow.codes[t][part][i], weft_f32_to_i8(row[i] * scale.inverse));
            }
        }
    }
    kv_convert_head(&codes, &narrow, 2, &large, &wide, 9, 5);
    assert_memory_equal(wide.codes[9], narrow.codes[2], sizeof(narrow.codes[0]) * 5);
    for (int part = 0; part < 2; part++) {
        assert_memory_equal(&wide.scales[part][9], &narrow.scales[part][2], 5 * sizeof(float));
    }
    kv_convert_head(&large, &wide, 9, &floats, back, 2, 5);
    for (int i = 2 * ROW; i < 7 * ROW; i++) {
        const int t = i / ROW;
        const int part = i / DIM % 2;
        const float expected = (float)narrow.codes[t][part][i % DIM] * narrow.scales[part][t];
        assert_true(back[i] == expected || (isnan(back[i]) && t == 5 && part == 1));
        assert_true(fabsf(back[i] - from[i]) <= 0.501f * narrow.scales[part][t] || t == 5);
    }
    assert_false(kv_head_form_is_same(&codes, &large));
    assert_true(kv_head_form_is_same(&codes, &codes));
}

static void assert_near(const json_t *golden, const char *key, const float *values)
{
    const json_t *list = json_object_get(golden, key);
    assert_int_equal(json_array_size(list), 8);
    for (size_t i = 0; i < 8; i++) {
        const double expected = json_number_value(json_array_get(list, i));
        assert_true(fabs((double)values[i] - expected) <= 0.01 * fabs(expected) + 0.01);
    }
}

/* K and V that were computed apart from the weights are where we say they are. */
static void a_running_workers_block_is_understood(void **state)
{
    enum { DIM = 64, TOKENS = 128 };
    const kv_head_form_t theirs = {KV_ELEMENT_BF16, true, TOKENS, DIM};
    const kv_head_form_t ours = {KV_ELEMENT_F32, false, 16, DIM};
    const size_t head_bytes = (size_t)2 * DIM * TOKENS * 2;
    float block[16 * 2 * DIM];
    size_t length;
    (void)state;
    char *bytes = read_vector("kv_transfer/vllm_live_block.bin", &length);
    json_t *golden = read_json_vector("kv_transfer/vllm_live_block.json");
    assert_int_equal(length, 3 * head_bytes);
    kv_convert_head(&theirs, bytes, 0, &ours, block, 0, 16);
    assert_near(golden, "k_head0_token0_first8", block);
    assert_near(golden, "v_head0_token0_first8", block + DIM);
    kv_convert_head(&theirs, bytes + 2 * head_bytes, 112, &ours, block, 0, 16);
    assert_near(golden, "k_head2_token127_first8", block + 15 * 2 * DIM);
    assert_near(golden, "v_head2_token127_first8", block + 15 * 2 * DIM + DIM);
    json_decref(golden);
    weft_free(bytes);
}

static void names_are_ours_and_vllms(void **state)
{
    kv_element_t element;
    (void)state;
    assert_true(kv_element_parse("bf16", 4, &element) && element == KV_ELEMENT_BF16);
    assert_true(kv_element_parse("torch.float16", 13, &element) && element == KV_ELEMENT_F16);
    assert_false(kv_element_parse("fp8", 3, &element));
    assert_false(kv_element_parse("f3", 2, &element));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_is_widened_exactly_and_comes_back),
        cmocka_unit_test(narrowing_takes_the_nearest),
        cmocka_unit_test(tokens_go_from_any_form_to_any_other_and_back),
        cmocka_unit_test(rows_are_converted_to_codes_with_a_scale),
        cmocka_unit_test(a_running_workers_block_is_understood),
        cmocka_unit_test(names_are_ours_and_vllms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
