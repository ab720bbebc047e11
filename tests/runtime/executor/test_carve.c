/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "runtime/executor/carve.h"

static void carve_measures_what_it_hands_out(void **state)
{
    (void)state;
    _Alignas(CARVE_ALIGNMENT) char memory[1024];
    carve_t measure = {.base = NULL};
    carve_t real = {.base = memory};
    const size_t counts[] = {1, 0, 17, 64, 3};
    char *end = memory;
    for (size_t i = 0; i < 5; i++) {
        assert_null(carve_take(&measure, counts[i], 5));
        char *at = carve_take(&real, counts[i], 5);
        assert_int_equal((uintptr_t)at % CARVE_ALIGNMENT, 0);
        assert_true(at >= end);
        end = at + counts[i] * 5;
        assert_int_equal(measure.used, real.used);
    }
    assert_true(end <= memory + real.used);
}

static void carve_says_when_a_size_does_not_fit(void **state)
{
    (void)state;
    carve_t product = {.base = NULL};
    carve_take(&product, SIZE_MAX / 2, 3);
    assert_true(product.used == SIZE_MAX);
    carve_take(&product, 1, 1);
    assert_true(product.used == SIZE_MAX);

    carve_t sum = {.base = NULL};
    for (int i = 0; i < 3; i++) {
        carve_take(&sum, SIZE_MAX / 2 - 100, 1);
    }
    assert_true(sum.used == SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(carve_measures_what_it_hands_out),
        cmocka_unit_test(carve_says_when_a_size_does_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
