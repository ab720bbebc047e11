/* SPDX-License-Identifier: Apache-2.0 */
#include "base/signal_pair.h"

#include <signal.h>

#include "tests/support/check.h"

enum { START_NS = 1000 };

static weft_signal_pair_t after_first(void)
{
    weft_signal_pair_t pair = {0};
    assert_int_equal(weft_signal_take(&pair, SIGTERM, START_NS), WEFT_SIGNAL_FIRST);
    return pair;
}

static void the_same_that_is_found_with_it_is_its_echo(void **state)
{
    (void)state;
    weft_signal_pair_t pair = after_first();
    assert_int_equal(weft_signal_take(&pair, SIGTERM, START_NS), WEFT_SIGNAL_ECHO);
    assert_int_equal(weft_signal_take(&pair, SIGTERM, START_NS), WEFT_SIGNAL_ECHO);
}

static void the_same_after_the_time_of_echoes_is_the_second(void **state)
{
    (void)state;
    weft_signal_pair_t pair = after_first();
    const uint64_t end = START_NS + WEFT_SIGNAL_ECHO_NS;
    assert_int_equal(weft_signal_take(&pair, SIGTERM, end - 1), WEFT_SIGNAL_ECHO);
    assert_int_equal(weft_signal_take(&pair, SIGTERM, end), WEFT_SIGNAL_SECOND);
}

static void another_one_is_the_second_at_any_time(void **state)
{
    (void)state;
    weft_signal_pair_t pair = after_first();
    assert_int_equal(weft_signal_take(&pair, SIGINT, START_NS), WEFT_SIGNAL_SECOND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_that_is_found_with_it_is_its_echo),
        cmocka_unit_test(the_same_after_the_time_of_echoes_is_the_second),
        cmocka_unit_test(another_one_is_the_second_at_any_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
