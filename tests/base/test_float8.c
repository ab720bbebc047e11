/* SPDX-License-Identifier: Apache-2.0 */
#include "base/float8.h"

#include <math.h>

#include "tests/support/check.h"
#include "tests/support/random.h"

static void every_number_survives_both_ways(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < 256; code++) {
        const float value = weft_f8_to_f32((uint8_t)code);
        assert_int_equal(weft_f32_to_f8(value), code);
        assert_int_equal(isnan(value) != 0, (code & 0x7f) == WEFT_F8_NAN);
    }
    assert_true(weft_f8_to_f32(0x38) == 1.0f);
    assert_true(weft_f8_to_f32(0x01) == 0x1p-9f);
    assert_true(weft_f8_to_f32(0x08) == 0x1p-6f);
    assert_true(weft_f8_to_f32(0x80 | WEFT_F8_MAX) == -448.0f);
}

/* Between neighbours the nearer one, in the middle the even one. */
static void what_lies_between_goes_to_the_nearer(void **state)
{
    (void)state;
    test_random_t random = {test_seed(83)};
    for (uint8_t code = 0; code < WEFT_F8_MAX; code++) {
        const float low = weft_f8_to_f32(code);
        const float high = weft_f8_to_f32((uint8_t)(code + 1));
        const float middle = (low + high) / 2;
        assert_int_equal(weft_f32_to_f8(middle), code + code % 2);
        assert_int_equal(weft_f32_to_f8(nextafterf(middle, low)), code);
        assert_int_equal(weft_f32_to_f8(nextafterf(middle, high)), code + 1);
        for (int i = 0; i < 20; i++) {
            const float share = (float)test_random_below(&random, 1000) / 1000;
            const float value = low + (high - low) * share;
            const uint8_t nearest = value < middle ? code : (uint8_t)(code + 1);
            if (value != middle) {
                assert_int_equal(weft_f32_to_f8(-value), nearest | 0x80);
            }
        }
    }
}

static void what_is_too_large_becomes_the_largest(void **state)
{
    (void)state;
    assert_int_equal(weft_f32_to_f8(448.1f), WEFT_F8_MAX);
    assert_int_equal(weft_f32_to_f8(1e30f), WEFT_F8_MAX);
    assert_int_equal(weft_f32_to_f8(INFINITY), WEFT_F8_MAX);
    assert_int_equal(weft_f32_to_f8(-INFINITY), 0x80 | WEFT_F8_MAX);
    assert_int_equal(weft_f32_to_f8(0x1p-11f), 0);
    assert_int_equal(weft_f32_to_f8(-0x1p-140f), 0x80);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_number_survives_both_ways),
        cmocka_unit_test(what_lies_between_goes_to_the_nearer),
        cmocka_unit_test(what_is_too_large_becomes_the_largest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
