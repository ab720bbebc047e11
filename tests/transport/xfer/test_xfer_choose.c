/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_choose.h"

#include "base/compiler.h"
#include "tests/support/check.h"

#define SMALL (XFER_MEASURED_BYTES_MIN - 1)
#define BIG   XFER_MEASURED_BYTES_MIN
#define HUGE  (XFER_TRIED_BYTES_MAX + 1)
#define N     3

static void the_first_usable_one_is_taken_while_nothing_is_known(void **state)
{
    (void)state;
    xfer_choice_t choices[N] = {{0}, {.is_usable = true}, {.is_usable = true}};
    assert_int_equal(xfer_choose(choices, N, N, SMALL), 1);
    assert_int_equal(xfer_choose(choices, N, N, BIG), 1);
    choices[1].is_usable = choices[2].is_usable = false;
    assert_int_equal(xfer_choose(choices, N, N, BIG), N);
}

static void others_are_tried_once_each_after_the_first_was_measured(void **state)
{
    (void)state;
    xfer_choice_t choices[N] = {{.is_usable = true}, {.is_usable = true}, {.is_usable = true}};
    choices[0].is_tried = true; /* but was not alone */
    assert_int_equal(xfer_choose(choices, N, 0, BIG), 0);
    choices[0].bytes_per_second = 1e9;
    assert_int_equal(xfer_choose(choices, N, 0, SMALL), 0);
    assert_int_equal(xfer_choose(choices, N, 0, HUGE), 0);
    assert_int_equal(xfer_choose(choices, N, 0, BIG), 1);
    choices[1].is_tried = true;
    assert_int_equal(xfer_choose(choices, N, 1, BIG), 2);
    choices[2].is_tried = true;
    assert_int_equal(xfer_choose(choices, N, 2, BIG), 0);
}

static void memory_of_this_host_is_compared_with_nothing(void **state)
{
    (void)state;
    xfer_choice_t choices[N] = {
        {.is_usable = true, .is_on_host = true, .is_tried = true, .bytes_per_second = 1e9},
        {.is_usable = true, .bytes_per_second = 9e9},
    };
    assert_int_equal(xfer_choose(choices, N, 1, BIG), 0);
    choices[0].is_doubtful = true;
    assert_int_equal(xfer_choose(choices, N, 0, BIG), 1);
    choices[0].is_doubtful = false;
    choices[0].is_usable = false;
    assert_int_equal(xfer_choose(choices, N, 0, BIG), 1);
}

static void the_faster_one_stays(void **state)
{
    (void)state;
    xfer_choice_t choices[N] = {
        {.is_usable = true, .is_tried = true, .bytes_per_second = 1.0e9},
        {.is_usable = true, .is_tried = true, .bytes_per_second = 1.2e9},
        {.is_usable = true, .is_tried = true, .bytes_per_second = 0.5e9},
    };
    assert_int_equal(xfer_choose(choices, N, N, BIG), 1);
    assert_int_equal(xfer_choose(choices, N, 0, BIG), 0); /* not faster by enough to change */
    assert_int_equal(xfer_choose(choices, N, 2, SMALL), 1);
    choices[1].bytes_per_second = 1.3e9;
    assert_int_equal(xfer_choose(choices, N, 0, BIG), 1);
}

static void a_lost_one_comes_last(void **state)
{
    (void)state;
    xfer_choice_t choices[N] = {
        {.is_usable = true, .is_doubtful = true, .bytes_per_second = 9e9},
        {.is_usable = true},
    };
    assert_int_equal(xfer_choose(choices, N, 0, BIG), 1);
    choices[1].is_doubtful = true;
    choices[1].is_tried = true;
    assert_int_equal(xfer_choose(choices, N, 0, BIG), 0);
}

static void speed_follows_what_is_measured(void **state)
{
    (void)state;
    double speed = xfer_choose_smooth(0, 1000, 1000);
    assert_true(speed == 1e9);
    speed = xfer_choose_smooth(speed, 2000, 1000);
    assert_true(speed > 1.2e9 && speed < 1.3e9);
    for (int i = 0; i < 50; i++) {
        speed = xfer_choose_smooth(speed, 3000, 1000);
    }
    assert_true(speed > 2.99e9 && speed <= 3e9);
    assert_true(xfer_choose_smooth(0, 1, 0) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_usable_one_is_taken_while_nothing_is_known),
        cmocka_unit_test(others_are_tried_once_each_after_the_first_was_measured),
        cmocka_unit_test(memory_of_this_host_is_compared_with_nothing),
        cmocka_unit_test(the_faster_one_stays),
        cmocka_unit_test(a_lost_one_comes_last),
        cmocka_unit_test(speed_follows_what_is_measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
