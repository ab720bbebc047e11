/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/coll/coll_sum.h"

#include <math.h>
#include <string.h>

#include "tests/support/check.h"
#include "tests/support/random.h"
#include "transport/coll/coll_half.h"
#include "transport/coll/coll_sum_priv.h"

#define MAX_RANKS 5
#define ROOM      1200 /* bytes */

static void every_f16_survives_f32(void **state)
{
    (void)state;
    for (uint32_t half = 0; half <= 0xffff; half++) {
        const uint16_t back = coll_f16_of_f32(coll_f32_of_f16((uint16_t)half));
        const bool is_signalling = (half & 0x7c00) == 0x7c00 && (half & 0x3ff) != 0;
        assert_int_equal(back, is_signalling ? half | 0x200 : half);
    }
    assert_true(coll_f32_of_f16(0x3c00) == 1.0f);
    assert_true(coll_f32_of_f16(0x0001) == 0x1p-24f);
    assert_true(coll_f32_of_f16(0xfbff) == -65504.0f);
}

/* Between neighbours a rounding goes to the nearer, in the middle to the even one. */
static void f32_rounds_to_the_nearest_half(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 0x7bff; half++) {
        const float low = coll_f32_of_f16((uint16_t)half);
        const float high = coll_f32_of_f16((uint16_t)(half + 1));
        const float middle = (low + high) / 2;
        assert_int_equal(coll_f16_of_f32(middle), half + (half & 1));
        assert_int_equal(coll_f16_of_f32(nextafterf(middle, 0)), half);
        assert_int_equal(coll_f16_of_f32(nextafterf(middle, INFINITY)), half + 1);
        assert_int_equal(coll_f16_of_f32(-middle), 0x8000 | (half + (half & 1)));
    }
    assert_int_equal(coll_f16_of_f32(65519.99f), 0x7bff);
    assert_int_equal(coll_f16_of_f32(65520.0f), 0x7c00);
    assert_int_equal(coll_f16_of_f32(-1e30f), 0xfc00);
    for (uint32_t half = 0; half < 0x7f80; half++) {
        const float low = coll_f32_of_bf16((uint16_t)half);
        const float middle = coll_f32_of_bits(coll_bits_of_f32(low) + 0x8000);
        assert_int_equal(coll_bf16_of_f32(middle), half + (half & 1));
        assert_int_equal(coll_bf16_of_f32(nextafterf(middle, 0)), half);
        assert_int_equal(coll_bf16_of_f32(nextafterf(middle, INFINITY)), half + 1);
    }
    assert_true(isnan(coll_f32_of_bf16(coll_bf16_of_f32(NAN))));
}

/* Any bits, but NaNs of one rank only: which of two survives a sum is the compiler's choice. */
static void fill(test_random_t *random, coll_dtype_t dtype, char (*in)[ROOM])
{
    const size_t width = coll_dtype_bytes(dtype);
    const uint32_t special = test_random_below(random, MAX_RANKS);
    for (uint32_t rank = 0; rank < MAX_RANKS; rank++) {
        for (size_t at = 0; at + width <= ROOM; at += width) {
            uint32_t bits = (uint32_t)test_random_u64(random);
            const uint32_t exponent = dtype == COLL_F32   ? UINT32_C(0x7f800000)
                                      : dtype == COLL_F16 ? UINT32_C(0x7c00)
                                                          : UINT32_C(0x7f80);
            if ((bits & exponent) == exponent && rank != special) {
                bits ^= exponent & -exponent;
            }
            memcpy(&in[rank][at], &bits, width);
        }
    }
}

static void compare(test_random_t *random, const coll_sum_way_t *way, coll_dtype_t dtype)
{
    static char in[MAX_RANKS][ROOM];
    static char out[ROOM];
    static char copy[ROOM];
    static char expected[ROOM];
    const void *sources[MAX_RANKS];
    const size_t width = coll_dtype_bytes(dtype);
    const size_t n = test_random_below(random, 130);
    const uint32_t count = 1 + test_random_below(random, MAX_RANKS);
    const size_t shift = test_random_below(random, 20) * width;
    const uint32_t in_place = test_random_below(random, 2 * MAX_RANKS);
    fill(random, dtype, in);
    for (uint32_t rank = 0; rank < count; rank++) {
        sources[rank] = &in[rank][test_random_below(random, 20) * width];
    }
    memset(expected, 0x5a, sizeof(expected));
    memset(out, 0x5a, sizeof(out));
    memset(copy, 0x5a, sizeof(copy));
    coll_sum_by(&coll_sum_plain, dtype, expected + shift, NULL, sources, count, n);
    coll_sum_by(way, dtype, out + shift, copy + shift, sources, count, n);
    assert_memory_equal(out, expected, sizeof(out));
    assert_memory_equal(copy, expected, sizeof(copy));
    if (in_place < count) {
        void *own = (void *)(uintptr_t)sources[in_place];
        coll_sum_by(way, dtype, own, NULL, sources, count, n);
        assert_memory_equal(own, expected + shift, n * width);
    }
}

static void every_instruction_set_gives_the_same_bits(void **state)
{
    test_random_t random = {.state = test_seed(5)};
    (void)state;
    for (const coll_sum_way_t *const *way = coll_sum_ways(); *way != NULL; way++) {
        print_message("way=%s\n", (*way)->name);
        for (int i = 0; i < 6000; i++) {
            compare(&random, *way, (coll_dtype_t)(i % 3));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_f16_survives_f32),
        cmocka_unit_test(f32_rounds_to_the_nearest_half),
        cmocka_unit_test(every_instruction_set_gives_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
