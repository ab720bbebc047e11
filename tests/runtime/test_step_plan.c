/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "runtime/step_plan.h"

static const step_limits_t limits = {.max_slots = 4,
                                     .max_tokens = 16,
                                     .max_context = 64,
                                     .max_blocks = 8,
                                     .max_bind_tokens = 64,
                                     .max_biases = 3,
                                     .max_outputs = 2,
                                     .max_drafts = 3};

/* A plan that uses everything and is right. */
static step_plan_t *valid_plan(void)
{
    step_plan_t *plan = NULL;
    assert_int_equal(step_plan_create(&limits, &plan), WEFT_OK);
    step_plan_clear(plan, 1);
    plan->binds[plan->n_binds++] = (step_bind_t){.slot = 3,
                                                 .prompt_tokens = 15,
                                                 .first_token = 10,
                                                 .n_tokens = 20,
                                                 .first_bias = 1,
                                                 .n_bias = 2};
    plan->n_tokens = 30;
    plan->n_biases = 3;
    plan->blocks[plan->n_blocks++] = (step_block_t){.slot = 3, .index = 0, .block = 9};
    plan->rows[plan->n_rows++] = (step_row_t){.slot = 3, .start = 0, .n_tokens = 15};
    plan->rows[plan->n_rows++] = (step_row_t){
        .slot = 0, .flags = STEP_ROW_FROM_SLOT | STEP_ROW_SAMPLE, .start = 63, .n_tokens = 1};
    return plan;
}

static void step_plan_check_takes_a_full_plan(void **state)
{
    (void)state;
    step_plan_t *plan = valid_plan();
    assert_int_equal(step_plan_check(plan, &limits, NULL), WEFT_OK);
    plan->rows[0].n_tokens = 12;
    plan->rows[1].start = 60;
    plan->rows[1].n_drafts = 3;
    assert_int_equal(step_plan_check(plan, &limits, NULL), WEFT_OK);
    step_plan_clear(plan, 7);
    assert_int_equal(plan->step, 7);
    assert_int_equal(step_plan_check(plan, &limits, NULL), WEFT_OK);
    step_plan_destroy(plan);
}

static void bind_slot(step_plan_t *plan)
{
    plan->binds[0].slot = 4;
}
static void bind_tokens_past_end(step_plan_t *plan)
{
    plan->binds[0].first_token = 11;
}
static void bind_tokens_wrap(step_plan_t *plan)
{
    plan->binds[0].first_token = UINT32_MAX - 3;
}
static void bind_biases_past_end(step_plan_t *plan)
{
    plan->binds[0].first_bias = 2;
}
static void bind_prompt_longer_than_history(step_plan_t *plan)
{
    plan->binds[0].prompt_tokens = 21;
}
static void bind_too_many_logprobs(step_plan_t *plan)
{
    plan->binds[0].sampling.n_top = K_MAX_LOGPROBS + 1;
}
static void block_slot(step_plan_t *plan)
{
    plan->blocks[0].slot = 4;
}
static void row_slot(step_plan_t *plan)
{
    plan->rows[0].slot = UINT32_MAX;
}
static void row_without_tokens(step_plan_t *plan)
{
    plan->rows[0].n_tokens = 0;
}
static void row_from_slot_with_two_tokens(step_plan_t *plan)
{
    plan->rows[1].start = 62;
    plan->rows[1].n_tokens = 2;
}
static void row_with_a_flag_that_is_none(step_plan_t *plan)
{
    plan->rows[0].flags = STEP_ROW_ALL + 1;
}
static void a_told_row_of_more_tokens_than_there_are(step_plan_t *plan)
{
    plan->rows[0].flags = STEP_ROW_TOLD;
    plan->n_binds = 0;
    plan->n_tokens = plan->rows[0].n_tokens - 1;
}
static void rows_told_of_more_than_there_are(step_plan_t *plan)
{
    plan->rows[1].flags |= STEP_ROW_TOLD;
    plan->n_binds = 0;
    plan->n_tokens = 0;
}
/* Within the budget. */
static void give_drafts(step_plan_t *plan, uint32_t n)
{
    plan->rows[0].n_tokens = 8;
    plan->rows[1].start = 40;
    plan->rows[1].n_drafts = n;
}
static void row_with_more_drafts_than_one_may_have(step_plan_t *plan)
{
    give_drafts(plan, 4);
}
static void drafts_of_a_row_that_does_not_sample(step_plan_t *plan)
{
    give_drafts(plan, 1);
    plan->rows[1].flags = STEP_ROW_FROM_SLOT;
}
static void drafts_under_a_mask(step_plan_t *plan)
{
    give_drafts(plan, 1);
    plan->rows[1].flags |= STEP_ROW_MASKED;
}
static void drafts_past_the_context(step_plan_t *plan)
{
    give_drafts(plan, 2);
    plan->rows[1].start = 62;
}
static void more_drafts_than_tokens(step_plan_t *plan)
{
    give_drafts(plan, 3);
    plan->n_binds = 0;
    plan->n_tokens = 2;
}
static void drafts_over_the_token_budget(step_plan_t *plan)
{
    give_drafts(plan, 3);
    plan->rows[0].n_tokens = 13;
}
static void row_past_the_context(step_plan_t *plan)
{
    plan->rows[1].start = 64;
}
static void rows_over_the_token_budget(step_plan_t *plan)
{
    plan->rows[0].n_tokens = 16;
}
static void too_many_rows(step_plan_t *plan)
{
    plan->n_rows = 5;
}
static void other_version(step_plan_t *plan)
{
    plan->version = STEP_PLAN_VERSION + 1;
}

static void step_plan_check_refuses_every_broken_field(void **state)
{
    (void)state;
    void (*const breaks[])(step_plan_t *) = {
        bind_slot,
        bind_tokens_past_end,
        bind_tokens_wrap,
        bind_biases_past_end,
        bind_prompt_longer_than_history,
        bind_too_many_logprobs,
        block_slot,
        row_slot,
        row_without_tokens,
        row_from_slot_with_two_tokens,
        row_with_a_flag_that_is_none,
        a_told_row_of_more_tokens_than_there_are,
        rows_told_of_more_than_there_are,
        row_with_more_drafts_than_one_may_have,
        drafts_of_a_row_that_does_not_sample,
        drafts_under_a_mask,
        drafts_past_the_context,
        more_drafts_than_tokens,
        drafts_over_the_token_budget,
        row_past_the_context,
        rows_over_the_token_budget,
        too_many_rows,
        other_version,
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(breaks); i++) {
        step_plan_t *plan = valid_plan();
        weft_diag_t diag = {0};
        breaks[i](plan);
        assert_int_equal(step_plan_check(plan, &limits, &diag), WEFT_ERR_INVALID);
        assert_true(strlen(diag.text) > 0);
        step_plan_destroy(plan);
    }
}

static void step_plan_create_reports_a_failed_allocation(void **state)
{
    (void)state;
    step_plan_t *plan = NULL;
    weft_alloc_fail_nth(1);
    assert_int_equal(step_plan_create(&limits, &plan), WEFT_ERR_NO_MEMORY);
    weft_alloc_fail_nth(0);
    assert_null(plan);
    step_plan_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(step_plan_check_takes_a_full_plan),
        cmocka_unit_test(step_plan_check_refuses_every_broken_field),
        cmocka_unit_test(step_plan_create_reports_a_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
