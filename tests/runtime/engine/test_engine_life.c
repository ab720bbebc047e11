/* SPDX-License-Identifier: Apache-2.0 */
/* An engine's queue and its ends: draining, aborting, failing, and what steps may not do. */
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "runtime/engine/engine_priv.h"
#include "tests/support/engine_rig.h"

/*
 * Holds the engine after each step until it is let go on, so that what a test finds running or
 * waiting does not depend on who is faster.
 */
typedef struct gate {
    sem_t permits;
    atomic_uint arrived;
} gate_t;

static void wait_at_gate(void *user, uint32_t tokens)
{
    (void)tokens;
    gate_t *gate = user;
    atomic_fetch_add(&gate->arrived, 1);
    while (sem_wait(&gate->permits) != 0) {
    }
}

static void allow_steps(gate_t *gate, int n)
{
    for (int i = 0; i < n; i++) {
        assert_int_equal(sem_post(&gate->permits), 0);
    }
}

static void put_gate(gate_t *gate, engine_rig_t *rig, uint32_t permits)
{
    atomic_init(&gate->arrived, 0);
    assert_int_equal(sem_init(&gate->permits, 0, permits), 0);
    engine_observe(rig->engine, &(engine_observer_t){.user = gate, .on_step = wait_at_gate});
}

static void a_full_queue_refuses_and_takes_again(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_options_t options = engine_rig_options();
    options.max_num_seqs = 1;
    options.max_num_queued_reqs = 1;
    gate_t gate;
    engine_rig_open(&rig, ENGINE_RIG_MODEL, &options);
    put_gate(&gate, &rig, 0);
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 10, 200);
    engine_request_t *first = engine_rig_send(&rig, &submit);
    engine_request_t *second = engine_rig_send(&rig, &submit);
    engine_request_t *third = NULL;
    assert_status(engine_submit(rig.engine, rig.client, &submit, NULL, &third),
                  WEFT_ERR_QUEUE_FULL);
    assert_null(third);
    engine_abort(first);
    allow_steps(&gate, 2000);
    engine_rig_wait(&rig, first);
    third = engine_rig_send(&rig, &submit);
    engine_request_release(third);
    engine_request_release(second);
    engine_request_release(first);
    engine_rig_wait_idle(&rig);
    engine_rig_close(&rig);
}

static void a_draining_engine_finishes_what_it_has(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 10, 20);
    engine_request_t *request = engine_rig_send(&rig, &submit);
    engine_drain(rig.engine);
    engine_request_t *late = NULL;
    assert_status(engine_submit(rig.engine, rig.client, &submit, NULL, &late), WEFT_ERR_STOPPING);
    engine_rig_wait(&rig, request);
    assert_int_equal(engine_request_answer(request, 0).n_tokens, 20);
    engine_request_release(request);
    engine_rig_close(&rig);
}

static void destroying_the_engine_aborts_and_requests_outlive_it(void **state)
{
    (void)state;
    engine_rig_t rig;
    gate_t gate;
    engine_rig_open_small(&rig);
    put_gate(&gate, &rig, 1);
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 10, 200);
    engine_request_t *request = engine_rig_send(&rig, &submit);
    assert_non_null(engine_client_wait(rig.client, 60000));
    engine_drain(rig.engine);
    allow_steps(&gate, 100); /* fewer than the answer needs */
    engine_destroy(rig.engine);
    assert_int_equal(engine_request_answer(request, 0).finish, ENGINE_FINISH_ABORT);
    engine_abort(request);
    engine_request_release(request);
    engine_client_destroy(rig.client);
    model_source_close(rig.source);
}

static void aborting_frees_the_blocks_of_running_and_waiting_requests(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_options_t options = engine_rig_options();
    options.max_num_seqs = 2;
    gate_t gate;
    engine_rig_open(&rig, ENGINE_RIG_MODEL, &options);
    put_gate(&gate, &rig, 5);
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 200);
    engine_request_t *requests[4];
    for (int i = 0; i < 4; i++) {
        requests[i] = engine_rig_send(&rig, &submit);
    }
    assert_non_null(engine_client_wait(rig.client, 60000));
    allow_steps(&gate, 5);
    assert_status(engine_reset_prefix_cache(rig.engine, false, false), WEFT_ERR_IN_USE);
    for (int i = 3; i >= 0; i--) {
        engine_abort(requests[i]);
        engine_abort(requests[i]);
    }
    allow_steps(&gate, 100);
    for (int i = 0; i < 4; i++) {
        engine_rig_wait(&rig, requests[i]);
        assert_int_equal(engine_request_answer(requests[i], 0).finish, ENGINE_FINISH_ABORT);
        engine_request_release(requests[i]);
    }
    engine_rig_wait_idle(&rig);
    engine_rig_close(&rig);
}

/* Until the nth step waits at the gate; the one before has left its numbers. */
static void wait_for_step(const gate_t *gate, engine_rig_t *rig, uint32_t n)
{
    while (atomic_load(&gate->arrived) < n) {
        (void)engine_client_wait(rig->client, 1);
    }
}

static void aborting_a_sample_frees_its_blocks_and_leaves_its_siblings(void **state)
{
    (void)state;
    engine_rig_t undisturbed;
    engine_rig_t rig;
    gate_t gate;
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 100);
    submit.n = 3;
    submit.sampling.temperature = 1.5f;
    submit.sampling.seed = 7;
    engine_rig_open_small(&undisturbed);
    engine_request_t *whole = engine_rig_send(&undisturbed, &submit);
    engine_rig_wait(&undisturbed, whole);

    engine_rig_open_small(&rig);
    put_gate(&gate, &rig, 30);
    engine_request_t *request = engine_rig_send(&rig, &submit);
    wait_for_step(&gate, &rig, 31);
    const uint32_t blocks = engine_stats(rig.engine).referenced_blocks;
    const size_t live = weft_alloc_live_bytes();
    engine_abort_sample(request, 1);
    engine_abort_sample(request, 1);
    assert_int_equal(weft_alloc_live_bytes(), live);
    allow_steps(&gate, 2); /* the one at the gate, and that before which the abort is seen */
    wait_for_step(&gate, &rig, 33);
    assert_int_equal(engine_request_answer(request, 1).finish, ENGINE_FINISH_ABORT);
    assert_int_equal(engine_stats(rig.engine).running, 2);
    assert_true(engine_stats(rig.engine).referenced_blocks < blocks);
    allow_steps(&gate, 200);
    engine_rig_wait(&rig, request);
    assert_true(engine_request_answer(request, 1).n_tokens < 40);
    for (uint32_t i = 0; i < 3; i++) {
        const engine_answer_t answer = engine_request_answer(request, i);
        assert_int_equal(answer.finish, i == 1 ? ENGINE_FINISH_ABORT : ENGINE_FINISH_LENGTH);
        assert_memory_equal(answer.tokens, engine_request_answer(whole, i).tokens,
                            answer.n_tokens * sizeof(int32_t));
    }
    engine_abort_sample(request, 0); /* done: nothing happens */
    engine_request_release(request);
    engine_request_release(whole);
    engine_rig_wait_idle(&rig);
    engine_rig_close(&rig);
    engine_rig_close(&undisturbed);
}

static void steady_decoding_allocates_nothing(void **state)
{
    (void)state;
    engine_rig_t rig;
    gate_t gate;
    engine_rig_open_small(&rig);
    put_gate(&gate, &rig, 10);
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 10, 220);
    const int32_t bad_word = 5;
    const uint32_t bad_length = 1;
    submit.sampling.wants_logprobs = true;
    submit.sampling.n_top_logprobs = 5;
    submit.sampling.bad_words = &bad_word;
    submit.sampling.bad_word_lengths = &bad_length;
    submit.sampling.n_bad_words = 1;
    submit.sampling.frequency_penalty = 0.5f;
    engine_request_t *requests[4];
    for (int i = 0; i < 4; i++) {
        requests[i] = engine_rig_send(&rig, &submit);
    }
    assert_non_null(engine_client_wait(rig.client, 60000));
    (void)weft_alloc_fail_nth(0);
    allow_steps(&gate, 2000);
    for (int i = 0; i < 4; i++) {
        engine_rig_wait(&rig, requests[i]);
    }
    assert_int_equal(weft_alloc_fail_nth(0), 0);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(engine_request_answer(requests[i], 0).n_tokens, 220);
        engine_request_release(requests[i]);
    }
    engine_rig_close(&rig);
}

static void a_failed_device_ends_everything_with_an_error(void **state)
{
    (void)state;
    engine_rig_t rig;
    gate_t gate;
    engine_rig_open_small(&rig);
    put_gate(&gate, &rig, 3);
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, 100);
    submit.n = 12; /* more than run at a time */
    engine_request_t *request = engine_rig_send(&rig, &submit);
    while (atomic_load(&gate.arrived) < 4) {
        (void)engine_client_wait(rig.client, 1);
    }
    /* The engine stands between launch and collect: the result is taken from it. */
    step_result_t stolen;
    assert_status(executor_collect(rig.engine->executor, &stolen), WEFT_OK);
    allow_steps(&gate, 10);
    engine_rig_wait(&rig, request);
    for (uint32_t i = 0; i < 12; i++) {
        assert_int_equal(engine_request_answer(request, i).finish, ENGINE_FINISH_ERROR);
    }
    assert_false(engine_is_healthy(rig.engine));
    engine_request_t *late = NULL;
    assert_status(engine_submit(rig.engine, rig.client, &submit, NULL, &late), WEFT_ERR_DEVICE);
    engine_request_release(request);
    assert_int_equal(engine_rig_wait_idle(&rig).referenced_blocks, 0);
    engine_rig_close(&rig);
}

static void add_tokens(void *user, uint32_t tokens)
{
    atomic_fetch_add((atomic_uint *)user, tokens);
}

static void every_step_is_observed(void **state)
{
    (void)state;
    engine_rig_t rig;
    atomic_uint tokens;
    atomic_init(&tokens, 0);
    engine_rig_open_small(&rig);
    engine_observe(rig.engine, &(engine_observer_t){.user = &tokens, .on_step = add_tokens});
    engine_request_release(engine_rig_greedy(&rig, 6));
    assert_int_equal(atomic_load(&tokens), 20 + 5);
    engine_rig_close(&rig);
}

/* Read at once, by one who does not even wait to be told. */
static void whoever_sees_an_end_finds_it_counted(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 10, 2);
    for (uint32_t i = 1; i <= 200; i++) {
        engine_request_t *request = engine_rig_send(&rig, &submit);
        while (!engine_rig_is_done(request)) {
            sched_yield();
        }
        const engine_stats_t stats = engine_stats(rig.engine);
        assert_int_equal(stats.generation_tokens, 2 * i);
        assert_int_equal(stats.running, 0);
        assert_int_equal(stats.referenced_blocks, 0);
        engine_request_release(request);
    }
    engine_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_queue_refuses_and_takes_again),
        cmocka_unit_test(a_draining_engine_finishes_what_it_has),
        cmocka_unit_test(destroying_the_engine_aborts_and_requests_outlive_it),
        cmocka_unit_test(aborting_frees_the_blocks_of_running_and_waiting_requests),
        cmocka_unit_test(aborting_a_sample_frees_its_blocks_and_leaves_its_siblings),
        cmocka_unit_test(steady_decoding_allocates_nothing),
        cmocka_unit_test(a_failed_device_ends_everything_with_an_error),
        cmocka_unit_test(every_step_is_observed),
        cmocka_unit_test(whoever_sees_an_end_finds_it_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
