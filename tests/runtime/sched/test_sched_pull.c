/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks that another worker computed, or will read, as the scheduler deals with them. */
#include <string.h>

#include "runtime/sched/sched.h"
#include "tests/support/sched_rig.h"

static int32_t prompt[SCHED_RIG_MAX_CONTEXT];

static void init(sched_rig_t *rig, uint32_t n_blocks, bool is_cached)
{
    const sched_rig_shape_t shape = {.block_tokens = 4,
                                     .n_blocks = n_blocks,
                                     .slots = 4,
                                     .step_tokens = 16,
                                     .is_cached = is_cached};
    sched_rig_init(rig, &shape);
    sched_rig_fill_prompt(prompt, SCHED_RIG_MAX_CONTEXT, 1);
}

/* With a pull that comes when the test says so. */
static sched_rig_seq_t *add_stalled(sched_rig_t *rig, const int32_t *tokens, uint32_t n,
                                    uint32_t max_tokens)
{
    sched_rig_seq_t *t = sched_rig_add(rig, tokens, n, max_tokens);
    sched_rig_pull(rig, t, FAKE_MOVER_NEVER);
    fake_pull_stall(t->seq.pull, true);
    sched_rig_submit(rig, t);
    return t;
}

static void a_pulled_prompt_computes_its_last_token_alone(void **state)
{
    for (int is_cached = 0; is_cached < 2; is_cached++) {
        sched_rig_t rig;
        (void)state;
        init(&rig, 100, is_cached);
        sched_rig_seq_t *t = add_stalled(&rig, prompt, 30, 5);
        assert_int_equal(sched_rig_launch(&rig), 0);
        assert_int_equal(kv_pool_held_blocks(rig.pool), 8);
        fake_pull_bring(t->seq.pull, 7);
        assert_int_equal(sched_rig_launch(&rig), 0);
        fake_pull_bring(t->seq.pull, 1);
        assert_int_equal(sched_rig_launch(&rig), 1);
        assert_int_equal(rig.plan->rows[0].start, 29);
        assert_int_equal(rig.plan->rows[0].n_tokens, 1);
        sched_rig_commit(&rig);
        sched_rig_run(&rig);
        sched_rig_assert_answered(t);
        assert_int_equal(t->seq.cached_tokens, 29);
        assert_int_equal(t->seq.pulled_tokens, 29);
        assert_int_equal(sched_stats(rig.sched).pull_queries, 29);
        assert_int_equal(sched_stats(rig.sched).pull_hits, 29);
        assert_int_equal(sched_stats(rig.sched).prefix_hits, 0);
        sched_rig_fini(&rig);
    }
}

/* A step in flight still writes to blocks of a sequence that has ended since. */
static void a_pull_into_blocks_that_a_step_may_write_settles_first(void **state)
{
    for (int is_aborted = 0; is_aborted < 2; is_aborted++) {
        sched_rig_t rig;
        (void)state;
        init(&rig, 100, false);
        sched_rig_seq_t *running = sched_rig_add(&rig, prompt, 8, 5);
        sched_rig_submit(&rig, running);
        assert_int_equal(sched_rig_launch(&rig), 1);
        if (is_aborted) {
            running->is_aborted = true;
            sched_abort(rig.sched, &running->seq, ENGINE_FINISH_ABORT);
        }
        sched_rig_seq_t *pulled = add_stalled(&rig, prompt, 30, 5);
        sched_rig_launch(&rig);
        assert_int_equal(rig.settles, is_aborted);
        while (sched_in_flight(rig.sched) > 0) {
            sched_rig_commit(&rig);
        }
        fake_pull_bring(pulled->seq.pull, 8);
        sched_rig_run(&rig);
        sched_rig_fini(&rig);
    }
}

static void pulled_blocks_are_found_by_others(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    sched_rig_seq_t *first = add_stalled(&rig, prompt, 32, 2);
    sched_rig_launch(&rig);
    fake_pull_bring(first->seq.pull, 3);
    sched_rig_launch(&rig); /* they get their names */
    sched_rig_seq_t *second = sched_rig_add(&rig, prompt, 20, 2);
    sched_rig_submit(&rig, second);
    sched_rig_step(&rig);
    assert_int_equal(second->seq.cached_tokens, 12);
    fake_pull_bring(first->seq.pull, 5);
    sched_rig_run(&rig);
    sched_rig_assert_answered(first);
    sched_rig_assert_answered(second);
    sched_rig_fini(&rig);
}

static void one_prompt_is_pulled_once(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    sched_rig_seq_t *first = add_stalled(&rig, prompt, 33, 2);
    sched_rig_seq_t *second = add_stalled(&rig, prompt, 33, 2);
    sched_rig_launch(&rig);
    assert_int_equal(kv_pool_held_blocks(rig.pool), 8); /* the first one's */
    fake_pull_bring(first->seq.pull, 8);
    sched_rig_run(&rig);
    sched_rig_assert_answered(first);
    sched_rig_assert_answered(second);
    assert_int_equal(second->seq.pulled_tokens, 0);
    assert_int_equal(second->seq.cached_tokens, 32);
    assert_int_equal(fake_mover_stats(rig.mover).unstarted, 1);
    sched_rig_fini(&rig);
}

static void one_that_waits_for_a_pull_that_fails_pulls_itself(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    sched_rig_seq_t *first = sched_rig_add(&rig, prompt, 33, 2);
    sched_rig_pull(&rig, first, 12);
    sched_rig_submit(&rig, first);
    sched_rig_seq_t *second = sched_rig_add(&rig, prompt, 33, 2);
    sched_rig_pull(&rig, second, FAKE_MOVER_NEVER);
    sched_rig_submit(&rig, second);
    sched_rig_run(&rig);
    sched_rig_assert_answered(first);
    sched_rig_assert_answered(second);
    assert_true(first->has_pull_failed);
    assert_false(second->has_pull_failed);
    assert_int_equal(second->seq.cached_tokens, 32);
    sched_rig_fini(&rig);
}

static void what_is_here_is_not_pulled(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    sched_rig_submit(&rig, sched_rig_add(&rig, prompt, 16, 1));
    sched_rig_run(&rig);
    sched_rig_seq_t *t = add_stalled(&rig, prompt, 30, 2);
    sched_rig_launch(&rig);
    fake_pull_bring(t->seq.pull, 4); /* of 8 */
    sched_rig_run(&rig);
    sched_rig_assert_answered(t);
    assert_int_equal(t->seq.cached_tokens, 29);
    assert_int_equal(t->seq.pulled_tokens, 13);

    /* All full blocks are here, and there is nothing beyond them. */
    sched_rig_seq_t *whole = add_stalled(&rig, prompt, 29, 2);
    sched_rig_run(&rig);
    sched_rig_assert_answered(whole);
    assert_int_equal(whole->seq.pulled_tokens, 0);
    assert_int_equal(whole->seq.cached_tokens, 28);
    assert_int_equal(fake_mover_stats(rig.mover).unstarted, 1);
    sched_rig_fini(&rig);
}

static void what_came_before_a_failure_is_of_use(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    sched_rig_seq_t *t = sched_rig_add(&rig, prompt, 30, 5);
    sched_rig_pull(&rig, t, 12);
    sched_rig_submit(&rig, t);
    sched_rig_run(&rig);
    sched_rig_assert_answered(t);
    assert_true(t->has_pull_failed);
    assert_int_equal(t->seq.cached_tokens, 12);
    assert_int_equal(t->seq.pulled_tokens, 12);
    sched_rig_fini(&rig);
}

static void one_that_needs_its_pull_fails_with_it(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    for (uint32_t fails_at = 0; fails_at <= 12; fails_at += 12) {
        sched_rig_seq_t *t = sched_rig_add(&rig, prompt, 30, 5);
        prompt[0]++;
        sched_rig_pull(&rig, t, fails_at);
        t->seq.needs_pull = true;
        sched_rig_submit(&rig, t);
        sched_rig_run(&rig);
        sched_rig_assert_answered(t);
        assert_int_equal(t->seq.finish, ENGINE_FINISH_ERROR);
    }
    sched_rig_fini(&rig);
}

static void a_stalled_pull_holds_up_nobody(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    sched_rig_seq_t *stalled = add_stalled(&rig, prompt, 30, 5);
    prompt[0]++;
    sched_rig_seq_t *other = sched_rig_add(&rig, prompt, 30, 5);
    sched_rig_submit(&rig, other);
    while (other->finishes == 0) {
        assert_true(sched_rig_step(&rig) > 0);
    }
    sched_rig_assert_answered(other);
    assert_int_equal(stalled->seq.state, SCHED_SEQ_WAITING);
    sched_abort(rig.sched, &stalled->seq, ENGINE_FINISH_ABORT);
    sched_rig_fini(&rig);
}

static void a_pull_gives_way_to_who_runs(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 12, true);
    sched_rig_seq_t *running = sched_rig_add(&rig, prompt, 8, 30); /* 10 blocks in the end */
    sched_rig_submit(&rig, running);
    sched_rig_step(&rig);
    prompt[0]++;
    sched_rig_seq_t *pulled = add_stalled(&rig, prompt, 28, 3); /* 7 of the 10 that are free */
    sched_rig_launch(&rig);
    assert_true(kv_pool_held_blocks(rig.pool) > 7);
    fake_pull_bring(pulled->seq.pull, 2);
    sched_rig_commit(&rig);
    sched_rig_run(&rig);
    sched_rig_assert_answered(running);
    sched_rig_assert_answered(pulled);
    assert_int_equal(running->seq.preemptions, 0);
    assert_int_equal(fake_mover_stats(rig.mover).given_up, 1);
    sched_rig_fini(&rig);
}

/* Its blocks lie with a pull behind it that will not end. */
static void the_first_in_line_takes_from_those_behind(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 12, true);
    sched_rig_seq_t *behind = sched_rig_add(&rig, prompt, 28, 2);
    behind->seq.priority = 1;
    sched_rig_pull(&rig, behind, FAKE_MOVER_NEVER);
    fake_pull_stall(behind->seq.pull, true);
    sched_rig_submit(&rig, behind);
    assert_int_equal(sched_rig_launch(&rig), 0);
    prompt[0]++;
    sched_rig_seq_t *first = sched_rig_add(&rig, prompt, 36, 2);
    sched_rig_pull(&rig, first, FAKE_MOVER_NEVER);
    sched_rig_submit(&rig, first);
    sched_rig_run(&rig);
    sched_rig_assert_answered(first);
    sched_rig_assert_answered(behind);
    assert_int_equal(first->seq.pulled_tokens, 35);
    assert_int_equal(fake_mover_stats(rig.mover).given_up, 1);
    sched_rig_fini(&rig);
}

static void samples_share_what_one_of_them_pulls(void **state)
{
    for (int is_cached = 0; is_cached < 2; is_cached++) {
        sched_rig_t rig;
        (void)state;
        init(&rig, 100, is_cached);
        sched_rig_seq_t *a = sched_rig_add(&rig, prompt, 30, 4);
        sched_rig_seq_t *b = sched_rig_add(&rig, prompt, 30, 4);
        a->seq.sibling = &b->seq;
        b->seq.sibling = &a->seq;
        sched_rig_pull(&rig, a, FAKE_MOVER_NEVER);
        sched_rig_submit(&rig, a);
        sched_rig_submit(&rig, b);
        sched_rig_run(&rig);
        sched_rig_assert_answered(a);
        sched_rig_assert_answered(b);
        assert_int_equal(a->seq.pulled_tokens, 29);
        assert_int_equal(b->seq.cached_tokens, 28);
        sched_rig_fini(&rig);
    }
}

static void a_pull_that_is_given_up_is_computed(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    sched_rig_seq_t *t = add_stalled(&rig, prompt, 30, 3);
    t->seq.needs_pull = true; /* which is of pulls that fail */
    sched_rig_launch(&rig);
    fake_pull_bring(t->seq.pull, 2);
    sched_give_up_pull(rig.sched, &t->seq);
    sched_rig_run(&rig);
    sched_rig_assert_answered(t);
    assert_int_equal(t->seq.cached_tokens, 8);
    sched_give_up_pull(rig.sched, &t->seq);
    sched_rig_fini(&rig);
}

static void log_probabilities_of_the_prompt_need_all_of_it_computed(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    sched_rig_seq_t *t = sched_rig_add(&rig, prompt, 30, 3);
    t->seq.wants_prompt_logprobs = true;
    sched_rig_pull(&rig, t, FAKE_MOVER_NEVER);
    sched_rig_submit(&rig, t);
    sched_rig_run(&rig);
    sched_rig_assert_answered(t);
    assert_int_equal(t->seq.cached_tokens, 0);
    sched_rig_fini(&rig);
}

static void only_the_prompt_may_be_asked_for(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    for (uint32_t n = 1; n < 14; n++) {
        prompt[0]++;
        sched_rig_seq_t *t = sched_rig_add(&rig, prompt, n, 0);
        sched_rig_pull(&rig, t, FAKE_MOVER_NEVER);
        sched_rig_submit(&rig, t);
        sched_rig_run(&rig);
        sched_rig_assert_answered(t);
    }
    sched_rig_fini(&rig);
}

/* ---- leases ---------------------------------------------------------------------------------- */

static void blocks_are_told_of_as_they_fill_and_kept_at_the_end(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    sched_rig_seq_t *t = sched_rig_add(&rig, prompt, 40, 1);
    t->seq.is_kept = t->has_lease = true;
    sched_rig_submit(&rig, t);
    sched_rig_step(&rig); /* 16 tokens a step */
    assert_int_equal(fake_mover_stats(rig.mover).told, 1);
    sched_rig_step(&rig);
    assert_int_equal(fake_mover_stats(rig.mover).told, 2);
    sched_rig_step(&rig);
    assert_int_equal(t->seq.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(t->holds, 1);
    assert_int_equal(t->held_tokens, 40);
    assert_int_equal(kv_pool_held_blocks(rig.pool), 10);
    sched_rig_fini(&rig);
}

static void what_was_preempted_is_told_of_again(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    sched_rig_seq_t *t = sched_rig_add(&rig, prompt, 40, 1);
    t->seq.is_kept = t->has_lease = true;
    sched_rig_submit(&rig, t);
    sched_rig_step(&rig);
    sched_preempt_nth(rig.sched, 0);
    assert_int_equal(fake_mover_stats(rig.mover).retracted, 1);
    sched_rig_run(&rig);
    assert_int_equal(t->held_tokens, 40);
    sched_rig_fini(&rig);
}

static void preempted_after_its_last_step_it_keeps_what_is_found(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    sched_rig_seq_t *t = sched_rig_add(&rig, prompt, 14, 1);
    t->seq.is_kept = true;
    sched_rig_submit(&rig, t);
    sched_rig_launch(&rig);
    sched_preempt_nth(rig.sched, 0); /* its token is on its way */
    sched_rig_commit(&rig);
    assert_int_equal(t->seq.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(t->holds, 1);
    assert_int_equal(t->held_tokens, 0); /* nothing had a name yet */
    sched_rig_fini(&rig);
}

static void an_aborted_prefill_keeps_nothing(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 100, true);
    sched_rig_seq_t *t = sched_rig_add(&rig, prompt, 40, 1);
    t->seq.is_kept = t->has_lease = true;
    sched_rig_submit(&rig, t);
    sched_rig_step(&rig);
    sched_abort(rig.sched, &t->seq, ENGINE_FINISH_ABORT);
    assert_int_equal(t->holds, 0);
    assert_int_equal(fake_mover_stats(rig.mover).dropped, 1);
    assert_int_equal(kv_pool_held_blocks(rig.pool), 0);
    sched_rig_fini(&rig);
}

/* All blocks are kept for readers: the next prefill waits for them, and is not lost. */
static void a_prefill_waits_for_blocks_that_are_kept(void **state)
{
    sched_rig_t rig;
    (void)state;
    init(&rig, 10, true);
    for (int i = 0; i < 4; i++) {
        prompt[0]++;
        sched_rig_seq_t *t = sched_rig_add(&rig, prompt, 38, 1);
        t->seq.is_kept = true;
        sched_rig_submit(&rig, t);
    }
    sched_rig_run(&rig);
    for (uint32_t i = 0; i < rig.n_seqs; i++) {
        sched_rig_assert_answered(&rig.seqs[i]);
    }
    sched_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pulled_prompt_computes_its_last_token_alone),
        cmocka_unit_test(a_pull_into_blocks_that_a_step_may_write_settles_first),
        cmocka_unit_test(pulled_blocks_are_found_by_others),
        cmocka_unit_test(one_prompt_is_pulled_once),
        cmocka_unit_test(one_that_waits_for_a_pull_that_fails_pulls_itself),
        cmocka_unit_test(what_is_here_is_not_pulled),
        cmocka_unit_test(what_came_before_a_failure_is_of_use),
        cmocka_unit_test(one_that_needs_its_pull_fails_with_it),
        cmocka_unit_test(a_stalled_pull_holds_up_nobody),
        cmocka_unit_test(a_pull_gives_way_to_who_runs),
        cmocka_unit_test(the_first_in_line_takes_from_those_behind),
        cmocka_unit_test(samples_share_what_one_of_them_pulls),
        cmocka_unit_test(a_pull_that_is_given_up_is_computed),
        cmocka_unit_test(log_probabilities_of_the_prompt_need_all_of_it_computed),
        cmocka_unit_test(only_the_prompt_may_be_asked_for),
        cmocka_unit_test(blocks_are_told_of_as_they_fill_and_kept_at_the_end),
        cmocka_unit_test(what_was_preempted_is_told_of_again),
        cmocka_unit_test(preempted_after_its_last_step_it_keeps_what_is_found),
        cmocka_unit_test(an_aborted_prefill_keeps_nothing),
        cmocka_unit_test(a_prefill_waits_for_blocks_that_are_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
