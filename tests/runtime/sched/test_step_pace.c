/* SPDX-License-Identifier: Apache-2.0 */
/* How long chunks of prompts may be, from steps whose times are made up. */
#include "runtime/sched/step_pace.h"

#include "tests/support/check.h"

enum { DECODE_NS = 10000, TOKEN_NS = 100 };

/* A machine on which decodes take D, whatever their number, and each token of a prompt adds T. */
static void run_steps(step_pace_t *pace, uint32_t n, uint32_t decodes, uint32_t prompt_tokens)
{
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t ns = (decodes > 0 ? DECODE_NS : 0) + (uint64_t)prompt_tokens * TOKEN_NS;
        step_pace_note(pace, decodes, prompt_tokens, ns);
    }
}

static void nothing_is_limited_before_both_are_known(void **state)
{
    (void)state;
    step_pace_t pace = {.target = 2};
    assert_int_equal(step_pace_tokens(&pace), UINT32_MAX);
    run_steps(&pace, 5, 4, 0);
    assert_int_equal(step_pace_tokens(&pace), UINT32_MAX);
    run_steps(&pace, 1, 0, 256);
    assert_int_equal(step_pace_tokens(&pace), 100);
}

static void a_step_takes_as_long_as_the_target_says(void **state)
{
    (void)state;
    const double targets[] = {1.5, 2, 4};
    for (size_t i = 0; i < 3; i++) {
        step_pace_t pace = {.target = targets[i]};
        run_steps(&pace, 20, 4, 0);
        run_steps(&pace, 20, 4, 64);
        const double ns = DECODE_NS + step_pace_tokens(&pace) * (double)TOKEN_NS;
        assert_in_range((uint64_t)ns, (uint64_t)(targets[i] * DECODE_NS) - TOKEN_NS,
                        (uint64_t)(targets[i] * DECODE_NS) + 1);
    }
}

static void without_a_target_nothing_is_limited(void **state)
{
    (void)state;
    step_pace_t pace = {0};
    run_steps(&pace, 10, 4, 0);
    run_steps(&pace, 200, 4, 64);
    assert_int_equal(step_pace_tokens(&pace), UINT32_MAX);
}

static void a_few_tokens_always_go(void **state)
{
    (void)state;
    step_pace_t pace = {.target = 1.01};
    run_steps(&pace, 10, 4, 0);
    run_steps(&pace, 10, 4, 64);
    assert_int_equal(step_pace_tokens(&pace), STEP_PACE_LEAST);
}

static void decodes_are_measured_alone_now_and_then(void **state)
{
    (void)state;
    step_pace_t pace = {.target = 2};
    run_steps(&pace, 1, 4, 0);
    run_steps(&pace, STEP_PACE_MIXED, 4, 64);
    assert_int_equal(step_pace_tokens(&pace), 0);
    run_steps(&pace, 1, 4, 0);
    assert_in_range(step_pace_tokens(&pace), STEP_PACE_LEAST, 1000);
}

/* Else prompts would trickle beside many sequences at the pace of the few that were measured. */
static void decodes_are_measured_anew_when_their_number_has_changed(void **state)
{
    (void)state;
    step_pace_t pace = {.target = 2};
    step_pace_note(&pace, 4, 0, DECODE_NS);
    step_pace_note(&pace, 4, 64, DECODE_NS + 64 * TOKEN_NS);
    assert_int_equal(step_pace_tokens(&pace), 100);
    step_pace_note(&pace, 6, 64, DECODE_NS + 64 * TOKEN_NS);
    assert_int_equal(step_pace_tokens(&pace), 100);
    step_pace_note(&pace, 16, 64, 4 * DECODE_NS + 64 * TOKEN_NS);
    assert_int_equal(step_pace_tokens(&pace), 0);
    step_pace_note(&pace, 16, 0, 4 * DECODE_NS);
    step_pace_note(&pace, 16, 64, 4 * DECODE_NS + 64 * TOKEN_NS);
    assert_int_equal(step_pace_tokens(&pace), 400);
    step_pace_note(&pace, 10, 64, 4 * DECODE_NS + 64 * TOKEN_NS);
    assert_int_equal(step_pace_tokens(&pace), 0);
}

static void a_slower_machine_gets_shorter_chunks(void **state)
{
    (void)state;
    step_pace_t pace = {.target = 2};
    run_steps(&pace, 20, 4, 0);
    run_steps(&pace, 20, 4, 64);
    const uint32_t before = step_pace_tokens(&pace);
    for (int i = 0; i < 60; i++) {
        step_pace_note(&pace, 4, 64, DECODE_NS + 64 * 2 * TOKEN_NS);
        step_pace_note(&pace, 4, 0, DECODE_NS);
    }
    assert_in_range(step_pace_tokens(&pace), before / 2, before / 2 + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_limited_before_both_are_known),
        cmocka_unit_test(a_step_takes_as_long_as_the_target_says),
        cmocka_unit_test(without_a_target_nothing_is_limited),
        cmocka_unit_test(a_few_tokens_always_go),
        cmocka_unit_test(decodes_are_measured_alone_now_and_then),
        cmocka_unit_test(decodes_are_measured_anew_when_their_number_has_changed),
        cmocka_unit_test(a_slower_machine_gets_shorter_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
