/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/sched/sched.h"

#include <string.h>

#include "tests/support/sched_rig.h"

static void init(sched_rig_t *rig, uint32_t block_tokens, uint32_t n_blocks, uint32_t slots,
                 uint32_t step_tokens, bool is_cached)
{
    const sched_rig_shape_t shape = {
        .block_tokens = block_tokens,
        .n_blocks = n_blocks,
        .slots = slots,
        .step_tokens = step_tokens,
        .is_cached = is_cached,
    };
    sched_rig_init(rig, &shape);
}

static void decodes_come_first_and_prefills_take_the_rest(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[64];
    init(&rig, 4, 100, 4, 16, true);
    sched_rig_fill_prompt(prompt, 64, 1);
    sched_rig_submit(&rig, sched_rig_add(&rig, prompt, 5, 8));
    sched_rig_submit(&rig, sched_rig_add(&rig, prompt + 5, 6, 8));
    assert_int_equal(sched_rig_step(&rig), 2);
    sched_rig_submit(&rig, sched_rig_add(&rig, prompt + 20, 40, 2));
    assert_int_equal(sched_rig_launch(&rig), 3);
    assert_int_equal(rig.plan->rows[0].n_tokens, 1);
    assert_int_equal(rig.plan->rows[1].n_tokens, 1);
    assert_int_equal(rig.plan->rows[0].flags, STEP_ROW_FROM_SLOT | STEP_ROW_SAMPLE);
    assert_int_equal(rig.plan->rows[2].n_tokens, 14);
    assert_int_equal(rig.plan->rows[2].flags, 0);
    sched_rig_commit(&rig);
    sched_rig_run(&rig);
    sched_rig_fini(&rig);
}

static void a_long_prefill_leaves_half_to_a_short_one(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[SCHED_RIG_MAX_CONTEXT];
    init(&rig, 4, 100, 4, 16, false);
    sched_rig_fill_prompt(prompt, SCHED_RIG_MAX_CONTEXT, 1);
    sched_rig_seq_t *longest = sched_rig_add(&rig, prompt, 140, 1);
    sched_rig_seq_t *shorter = sched_rig_add(&rig, prompt + 3, 6, 1);
    sched_rig_submit(&rig, longest);
    sched_rig_submit(&rig, shorter);
    sched_rig_step(&rig);
    assert_int_equal(shorter->seq.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(longest->seq.computed, 10); /* half, and what the short one left over */
    sched_rig_run(&rig);
    sched_rig_assert_answered(longest);
    sched_rig_fini(&rig);
}

static void prompts_beside_decodes_take_what_they_may(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[60];
    init(&rig, 4, 100, 4, 64, false);
    sched_rig_fill_prompt(prompt, 60, 1);
    sched_set_prompt_tokens(rig.sched, 10);
    sched_rig_seq_t *answering = sched_rig_add(&rig, prompt, 20, 12);
    sched_rig_submit(&rig, answering);
    sched_rig_step(&rig);
    assert_int_equal(sched_stats(rig.sched).last_step_prompt, 20); /* nobody waits for a token */
    prompt[0] = 9;
    sched_rig_seq_t *coming = sched_rig_add(&rig, prompt, 60, 3);
    sched_rig_submit(&rig, coming);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(sched_rig_step(&rig), 2);
        assert_int_equal(sched_stats(rig.sched).last_step_prompt, 10);
        assert_int_equal(sched_stats(rig.sched).last_step_tokens, 11);
    }
    sched_set_prompt_tokens(rig.sched, 0);
    assert_int_equal(sched_rig_step(&rig), 2); /* both decode now */
    sched_rig_run(&rig);
    sched_rig_assert_answered(answering);
    sched_rig_assert_answered(coming);
    sched_rig_fini(&rig);
}

static void equal_prompts_share_blocks_and_compute_one_token(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[32];
    init(&rig, 4, 100, 4, 64, true);
    sched_rig_fill_prompt(prompt, 32, 1);
    sched_rig_seq_t *first = sched_rig_add(&rig, prompt, 32, 9);
    sched_rig_submit(&rig, first);
    sched_rig_run(&rig);
    sched_rig_seq_t *second = sched_rig_add(&rig, prompt, 32, 1);
    sched_rig_submit(&rig, second);
    assert_int_equal(sched_rig_launch(&rig), 1);
    assert_int_equal(rig.plan->rows[0].start, 28);
    assert_int_equal(rig.plan->rows[0].n_tokens, 4);
    assert_int_equal(second->seq.cached_tokens, 28);
    sched_rig_commit(&rig);

    /* Blocks that filled during the answer are found too. */
    sched_rig_seq_t *third = sched_rig_add(&rig, first->tokens, 41, 1);
    sched_rig_submit(&rig, third);
    sched_rig_run(&rig);
    assert_int_equal(third->seq.cached_tokens, 40);
    sched_rig_assert_answered(third);
    assert_int_equal(sched_stats(rig.sched).prefix_queries, 32 + 32 + 41);
    assert_int_equal(sched_stats(rig.sched).prefix_hits, 68);
    sched_rig_fini(&rig);
}

static void a_prompt_that_is_being_computed_is_not_computed_again(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[64];
    init(&rig, 4, 100, 4, 16, true);
    sched_rig_fill_prompt(prompt, 64, 1);
    sched_rig_seq_t *first = sched_rig_add(&rig, prompt, 60, 2);
    prompt[44] = 0;
    sched_rig_seq_t *second = sched_rig_add(&rig, prompt, 60, 2);
    prompt[1] = 0;
    sched_rig_seq_t *other = sched_rig_add(&rig, prompt, 4, 2);
    sched_rig_submit(&rig, first);
    sched_rig_submit(&rig, second);
    sched_rig_submit(&rig, other);
    sched_rig_step(&rig);
    assert_int_equal(second->seq.state, SCHED_SEQ_WAITING);
    assert_int_equal(other->seq.state, SCHED_SEQ_RUNNING);
    sched_rig_run(&rig);
    assert_int_equal(second->seq.cached_tokens, 44);
    sched_rig_assert_answered(second);
    sched_rig_fini(&rig);
}

static void samples_of_a_prompt_share_its_blocks_without_caching(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[30];
    init(&rig, 4, 100, 4, 16, false);
    sched_rig_fill_prompt(prompt, 30, 1);
    sched_rig_seq_t *samples[3];
    for (int i = 0; i < 3; i++) {
        samples[i] = sched_rig_add(&rig, prompt, 30, 8);
    }
    for (int i = 0; i < 3; i++) {
        samples[i]->seq.sibling = &samples[(i + 1) % 3]->seq;
        sched_rig_submit(&rig, samples[i]);
    }
    sched_rig_step(&rig);
    sched_rig_step(&rig);
    assert_int_equal(samples[1]->seq.state, SCHED_SEQ_WAITING);
    sched_rig_step(&rig);
    sched_rig_step(&rig);
    assert_int_equal(samples[2]->seq.state, SCHED_SEQ_RUNNING);
    assert_int_equal(samples[2]->seq.cached_tokens, 28);
    assert_true(kv_pool_total_blocks(rig.pool) - kv_pool_free_blocks(rig.pool) <= 7 + 3 * 2);
    sched_rig_run(&rig);
    for (int i = 0; i < 3; i++) {
        sched_rig_assert_answered(samples[i]);
    }
    sched_rig_fini(&rig);
}

static void prompt_logprobs_are_complete_whatever_is_cached(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[40];
    init(&rig, 4, 100, 4, 7, true);
    sched_rig_fill_prompt(prompt, 40, 1);
    sched_rig_submit(&rig, sched_rig_add(&rig, prompt, 40, 2));
    sched_rig_run(&rig);
    for (uint32_t max_tokens = 0; max_tokens < 2; max_tokens++) {
        sched_rig_seq_t *t = sched_rig_add(&rig, prompt, 40, max_tokens);
        t->seq.wants_prompt_logprobs = true;
        sched_rig_submit(&rig, t);
        sched_rig_run(&rig);
        sched_rig_assert_answered(t);
        assert_int_equal(t->n_prompt_entries, 40);
    }
    sched_rig_fini(&rig);
}

static void a_lone_prompt_token_without_answer_is_done_at_once(void **state)
{
    (void)state;
    sched_rig_t rig;
    const int32_t prompt[1] = {3};
    init(&rig, 4, 40, 2, 7, true);
    sched_rig_seq_t *t = sched_rig_add(&rig, prompt, 1, 0);
    sched_rig_submit(&rig, t);
    sched_rig_assert_answered(t);
    sched_rig_fini(&rig);
}

static void what_can_never_fit_is_refused(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[SCHED_RIG_MAX_CONTEXT] = {0};
    init(&rig, 4, 10, 2, 8, true);
    sched_rig_seq_t *over_context = sched_rig_add(&rig, prompt, SCHED_RIG_MAX_CONTEXT - 5, 6);
    assert_status(sched_submit(rig.sched, &over_context->seq), WEFT_ERR_TOO_LARGE);
    sched_rig_seq_t *over_pool = sched_rig_add(&rig, prompt, 39, 2);
    assert_status(sched_submit(rig.sched, &over_pool->seq), WEFT_ERR_TOO_LARGE);
    sched_rig_seq_t *whole_pool = sched_rig_add(&rig, prompt, 39, 1);
    sched_rig_submit(&rig, whole_pool);
    sched_rig_run(&rig);
    sched_rig_assert_answered(whole_pool);
    sched_rig_fini(&rig);
}

static void the_youngest_is_preempted_and_still_answers_the_same(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[24];
    init(&rig, 4, 12, 3, 32, true);
    sched_rig_fill_prompt(prompt, 24, 1);
    sched_rig_seq_t *old = sched_rig_add(&rig, prompt, 16, 30);
    sched_rig_seq_t *young = sched_rig_add(&rig, prompt + 4, 16, 30);
    sched_rig_submit(&rig, old);
    sched_rig_submit(&rig, young);
    sched_rig_run(&rig);
    assert_int_equal(old->seq.preemptions, 0);
    assert_true(young->seq.preemptions > 0);
    sched_rig_assert_answered(old);
    sched_rig_assert_answered(young);
    sched_rig_fini(&rig);
}

static void lower_priority_number_runs_first_and_is_kept(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[24];
    init(&rig, 4, 60, 1, 32, true);
    sched_rig_fill_prompt(prompt, 24, 1);
    sched_rig_seq_t *low = sched_rig_add(&rig, prompt, 10, 3);
    sched_rig_seq_t *high = sched_rig_add(&rig, prompt + 5, 10, 3);
    low->seq.priority = 7;
    high->seq.priority = -2;
    sched_rig_submit(&rig, low);
    sched_rig_submit(&rig, high);
    sched_rig_step(&rig);
    assert_int_equal(high->seq.state, SCHED_SEQ_RUNNING);
    assert_int_equal(low->seq.state, SCHED_SEQ_WAITING);
    sched_rig_run(&rig);
    sched_rig_fini(&rig);
}

static void a_request_that_does_not_fit_yet_is_overtaken_but_not_for_ever(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[SCHED_RIG_MAX_CONTEXT];
    init(&rig, 4, 40, 4, 32, false);
    sched_rig_fill_prompt(prompt, SCHED_RIG_MAX_CONTEXT, 1);
    sched_rig_seq_t *holder = sched_rig_add(&rig, prompt, 30, 120);
    sched_rig_submit(&rig, holder);
    sched_rig_step(&rig);
    sched_rig_seq_t *large = sched_rig_add(&rig, prompt + 1, 150, 1);
    sched_rig_seq_t *small = sched_rig_add(&rig, prompt + 2, 8, 2);
    sched_rig_submit(&rig, large);
    sched_rig_submit(&rig, small);
    sched_rig_step(&rig);
    assert_int_equal(large->seq.state, SCHED_SEQ_WAITING);
    assert_int_not_equal(small->seq.state, SCHED_SEQ_WAITING);
    sched_rig_run(&rig);
    sched_rig_assert_answered(large);
    assert_true(large->seq.overtaken <= SCHED_MAX_OVERTAKEN);
    sched_rig_fini(&rig);
}

static void abort_frees_blocks_wherever_the_sequence_is(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[60];
    init(&rig, 4, 60, 2, 16, true);
    sched_rig_fill_prompt(prompt, 60, 1);
    sched_rig_seq_t *decoding = sched_rig_add(&rig, prompt, 8, 20);
    sched_rig_seq_t *in_prefill = sched_rig_add(&rig, prompt + 8, 50, 20);
    sched_rig_seq_t *queued = sched_rig_add(&rig, prompt, 8, 20);
    sched_rig_submit(&rig, decoding);
    sched_rig_submit(&rig, in_prefill);
    sched_rig_submit(&rig, queued);
    sched_rig_step(&rig);
    sched_rig_launch(&rig); /* and one in flight */
    sched_rig_seq_t *all[] = {queued, in_prefill, decoding};
    for (int i = 0; i < 3; i++) {
        all[i]->is_aborted = true;
        sched_abort(rig.sched, &all[i]->seq, ENGINE_FINISH_ABORT);
        sched_check(rig.sched);
        sched_abort(rig.sched, &all[i]->seq, ENGINE_FINISH_ABORT); /* again: nothing */
    }
    assert_int_equal(kv_pool_free_blocks(rig.pool), 60);
    assert_int_equal(queued->retirements, 1);
    assert_int_equal(decoding->retirements, 0);
    sched_rig_commit(&rig);
    assert_int_equal(decoding->retirements, 1);
    assert_int_equal(in_prefill->retirements, 1);
    sched_rig_fini(&rig);
}

static void a_lost_device_retires_everything(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[20];
    init(&rig, 4, 60, 2, 16, true);
    sched_rig_fill_prompt(prompt, 20, 1);
    for (int i = 0; i < 3; i++) {
        sched_rig_submit(&rig, sched_rig_add(&rig, prompt, 9, 12));
    }
    sched_rig_launch(&rig);
    sched_rig_launch(&rig);
    sched_abort_all(rig.sched, ENGINE_FINISH_ERROR);
    assert_int_equal(rig.seqs[0].retirements, 0);
    sched_forget_flights(rig.sched);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(rig.seqs[i].finishes, 1);
        assert_int_equal(rig.seqs[i].retirements, 1);
        assert_int_equal(rig.seqs[i].seq.finish, ENGINE_FINISH_ERROR);
    }
    sched_rig_fini(&rig);
}

static void the_next_step_can_be_planned_before_the_last_is_collected(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[20];
    init(&rig, 4, 60, 2, 16, true);
    sched_rig_fill_prompt(prompt, 20, 1);
    sched_rig_seq_t *t = sched_rig_add(&rig, prompt, 9, 12);
    sched_rig_submit(&rig, t);
    sched_rig_launch(&rig);
    for (int i = 0; i < 11; i++) {
        assert_int_equal(sched_rig_launch(&rig), 1);
        assert_int_equal(rig.plan->rows[0].flags, STEP_ROW_FROM_SLOT | STEP_ROW_SAMPLE);
        assert_int_equal(rig.plan->rows[0].start, 9 + i);
        sched_rig_commit(&rig);
    }
    assert_int_equal(sched_rig_launch(&rig), 0); /* all that it may answer is in flight */
    sched_rig_commit(&rig);
    sched_rig_assert_answered(t);
    sched_rig_fini(&rig);
}

/* The beginning that is still there is what was used longest ago. */
static void reading_the_rest_does_not_push_out_the_beginning(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[64];
    const sched_rig_shape_t shape = {.block_tokens = 4,
                                     .n_blocks = 12,
                                     .slots = 2,
                                     .step_tokens = 64,
                                     .is_cached = true,
                                     .host_blocks = 64};
    sched_rig_init(&rig, &shape);
    sched_rig_fill_prompt(prompt, 25, 1);
    sched_rig_submit(&rig, sched_rig_add(&rig, prompt, 25, 1));
    sched_rig_run(&rig);
    sched_rig_fill_prompt(prompt, 33, 2);
    sched_rig_submit(&rig, sched_rig_add(&rig, prompt, 33, 1));
    sched_rig_run(&rig);
    sched_rig_fill_prompt(prompt, 25, 1);
    sched_rig_seq_t *again = sched_rig_add(&rig, prompt, 25, 1);
    sched_rig_submit(&rig, again);
    sched_rig_run(&rig);
    sched_rig_assert_answered(again);
    assert_int_equal(again->seq.cached_tokens, 24);
    assert_true(again->seq.cached_blocks_from[KV_TIER_host] > 0);
    assert_true(again->seq.cached_blocks_from[KV_TIER_host] < 6);
    sched_rig_fini(&rig);
}

static void creation_survives_no_memory(void **state)
{
    (void)state;
    sched_rig_t rig;
    init(&rig, 4, 60, 2, 16, true);
    sched_config_t config = {.store = rig.store, .limits = rig.limits};
    sched_t *sched = NULL;
    for (uint64_t n = 1; n <= 6; n++) {
        weft_alloc_fail_nth(n);
        assert_status(sched_create(&config, &sched), WEFT_ERR_NO_MEMORY);
    }
    weft_alloc_fail_nth(0);
    config.limits.max_tokens = 1;
    assert_status(sched_create(&config, &sched), WEFT_ERR_INVALID);
    sched_rig_fini(&rig);
}

/* Until every sequence is a decode, with nothing in flight. */
static void prefill_all(sched_rig_t *rig, uint32_t n, uint32_t max_tokens)
{
    int32_t prompt[8];
    for (uint32_t i = 0; i < n; i++) {
        sched_rig_fill_prompt(prompt, 8, (int32_t)(10 * i));
        sched_rig_submit(rig, sched_rig_add(rig, prompt, 8, max_tokens));
    }
    assert_int_equal(sched_rig_step(rig), n);
}

static void stages_work_on_different_sequences_at_a_time(void **state)
{
    (void)state;
    sched_rig_t rig;
    const sched_rig_shape_t shape = {
        .block_tokens = 4, .n_blocks = 100, .slots = 8, .step_tokens = 64, .stages = 2};
    sched_rig_init(&rig, &shape);
    prefill_all(&rig, 5, 20);
    assert_int_equal(sched_rig_launch(&rig), 3);
    assert_int_equal(sched_rig_launch(&rig), 2);
    assert_int_equal(sched_plan(rig.sched, rig.plan), 0); /* all wait for their tokens */
    for (int i = 0; i < 6; i++) {
        sched_rig_commit(&rig);
        assert_int_equal(sched_in_flight(rig.sched), 1);
        assert_int_equal(sched_rig_launch(&rig), i % 2 == 0 ? 3 : 2);
        assert_int_equal(sched_in_flight(rig.sched), 2);
    }
    sched_rig_commit(&rig);
    sched_rig_commit(&rig);
    sched_rig_run(&rig);
    sched_rig_fini(&rig);
}

static void chunks_of_a_prefill_follow_each_other_through_the_stages(void **state)
{
    (void)state;
    sched_rig_t rig;
    int32_t prompt[40];
    const sched_rig_shape_t shape = {
        .block_tokens = 4, .n_blocks = 100, .slots = 4, .step_tokens = 16, .stages = 2};
    sched_rig_init(&rig, &shape);
    sched_rig_fill_prompt(prompt, 40, 1);
    sched_rig_submit(&rig, sched_rig_add(&rig, prompt, 40, 2));
    assert_int_equal(sched_rig_launch(&rig), 1);
    assert_int_equal(sched_rig_launch(&rig), 1);
    assert_int_equal(rig.plan->rows[0].start, 16);
    sched_rig_commit(&rig);
    assert_int_equal(sched_rig_launch(&rig), 1);
    assert_int_equal(rig.plan->rows[0].flags, STEP_ROW_SAMPLE);
    assert_int_equal(sched_plan(rig.sched, rig.plan), 0);
    sched_rig_commit(&rig);
    sched_rig_commit(&rig);
    assert_int_equal(sched_rig_launch(&rig), 1);
    assert_int_equal(rig.plan->rows[0].flags, STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT | STEP_ROW_TOLD);
    sched_rig_commit(&rig);
    sched_rig_run(&rig);
    sched_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_come_first_and_prefills_take_the_rest),
        cmocka_unit_test(a_long_prefill_leaves_half_to_a_short_one),
        cmocka_unit_test(prompts_beside_decodes_take_what_they_may),
        cmocka_unit_test(equal_prompts_share_blocks_and_compute_one_token),
        cmocka_unit_test(a_prompt_that_is_being_computed_is_not_computed_again),
        cmocka_unit_test(samples_of_a_prompt_share_its_blocks_without_caching),
        cmocka_unit_test(prompt_logprobs_are_complete_whatever_is_cached),
        cmocka_unit_test(a_lone_prompt_token_without_answer_is_done_at_once),
        cmocka_unit_test(what_can_never_fit_is_refused),
        cmocka_unit_test(the_youngest_is_preempted_and_still_answers_the_same),
        cmocka_unit_test(lower_priority_number_runs_first_and_is_kept),
        cmocka_unit_test(a_request_that_does_not_fit_yet_is_overtaken_but_not_for_ever),
        cmocka_unit_test(abort_frees_blocks_wherever_the_sequence_is),
        cmocka_unit_test(a_lost_device_retires_everything),
        cmocka_unit_test(the_next_step_can_be_planned_before_the_last_is_collected),
        cmocka_unit_test(reading_the_rest_does_not_push_out_the_beginning),
        cmocka_unit_test(creation_survives_no_memory),
        cmocka_unit_test(stages_work_on_different_sequences_at_a_time),
        cmocka_unit_test(chunks_of_a_prefill_follow_each_other_through_the_stages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
