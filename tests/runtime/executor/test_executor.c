/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/executor_jobs.h"

static void open_rig(executor_rig_t *rig, const char *name, const char *isa, uint32_t block_tokens,
                     k_dtype_t kv_dtype)
{
    jobs_open(rig, name, isa, block_tokens, kv_dtype, NULL);
}

/* ---- the same answers, alone and in company ------------------------------------------------- */

static void check_company(const char *isa, k_dtype_t kv_dtype, job_kind_t kind,
                          test_random_t *random)
{
    static job_t alone[SEQUENCES];
    static job_t together[SEQUENCES];
    int32_t greedy[SEQUENCES][ANSWER];
    double sums[SEQUENCES];
    double range;
    executor_rig_t rig;

    load_jobs("llama-gguf-q8_0", alone, greedy, sums, &range);
    open_rig(&rig, "llama-gguf-q8_0", isa, 16, kv_dtype);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        run_alone(&rig, i, &alone[i], kind);
    }
    executor_rig_close(&rig);

    static const uint32_t block_sizes[] = {1, 8, 16, 64};
    for (uint32_t round = 0; round < 4; round++) {
        memcpy(together, alone, sizeof(together));
        forget_answers(together);
        open_rig(&rig, "llama-gguf-q8_0", isa, block_sizes[round], kv_dtype);
        run_together(&rig, together, kind, random);
        executor_rig_close(&rig);
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            assert_same_job(&alone[i], &together[i]);
        }
    }
}

static void check_company_on(const char *isa)
{
    test_random_t random = {test_seed(11)};
    check_company(isa, K_F32, JOBS_GREEDY, &random);
    check_company(isa, K_F16, JOBS_FILTERED, &random);
    check_company(isa, K_BF16, JOBS_WIDE, &random);
}

static void an_answer_is_the_same_alone_and_in_company(void **state)
{
    (void)state;
    for_each_isa(check_company_on);
}

static void answers_and_prompt_logprobs_are_the_references(void **state)
{
    (void)state;
    for (size_t m = 0; m < WEFT_ARRAY_LEN(tiny_models); m++) {
        static job_t jobs[SEQUENCES];
        int32_t greedy[SEQUENCES][ANSWER];
        double sums[SEQUENCES];
        double range;
        executor_rig_t rig;
        if (strstr(tiny_models[m], "longrope") != NULL) {
            continue; /* rotates by the longest context: test_models has one for each sequence */
        }
        load_jobs(tiny_models[m], jobs, greedy, sums, &range);
        open_rig(&rig, tiny_models[m], "ref", 16, K_F32);
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            double sum = 0;
            run_alone(&rig, i, &jobs[i], JOBS_GREEDY);
            for (uint32_t j = 0; j < ANSWER; j++) {
                assert_int_equal(jobs[i].answer[j].chosen.token, greedy[i][j]);
                assert_int_equal(jobs[i].answer[j].chosen.rank, 1);
                assert_int_equal(jobs[i].answer[j].top[0].token, greedy[i][j]);
                assert_int_equal(jobs[i].answer[j].n_top, N_TOP);
            }
            assert_int_equal(jobs[i].n_prompt_logprobs, jobs[i].n_prompt - 1);
            for (uint32_t j = 0; j + 1 < jobs[i].n_prompt; j++) {
                assert_int_equal(jobs[i].prompt_logprobs[j].chosen.token, jobs[i].prompt[j + 1]);
                assert_int_equal(jobs[i].prompt_logprobs[j].n_top, 2);
                sum += jobs[i].prompt_logprobs[j].chosen.logprob;
            }
            assert_true(fabs(sum - sums[i]) <= 1e-5 * range * jobs[i].n_prompt);
        }
        executor_rig_close(&rig);
    }
}

/* ---- what steers sampling ------------------------------------------------------------------- */

static const int32_t prompt[] = {5, 100, 7, 42, 300, 11, 9};
#define N_PROMPT (uint32_t)WEFT_ARRAY_LEN(prompt)

/* Prefill and `n` tokens; flags are added to every sampling row. */
static void generate(executor_rig_t *rig, uint32_t slot, uint32_t flags, uint32_t n,
                     int32_t *tokens_out)
{
    plan_all_blocks(rig, slot);
    plan_row(rig->plan, slot, 0, N_PROMPT, STEP_ROW_SAMPLE | flags, 0);
    for (uint32_t i = 0; i < n; i++) {
        tokens_out[i] = executor_rig_step(rig).rows[0].chosen.token;
        if (i + 1 < n) {
            plan_row(rig->plan, slot, N_PROMPT + i, 1, STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT | flags,
                     i + 1);
        }
    }
}

static void masked_rows_sample_allowed_tokens_only(void **state)
{
    (void)state;
    int32_t tokens[8];
    executor_rig_t rig;
    open_rig(&rig, "llama", "auto", 16, K_F16);
    memset(executor_mask(rig.executor, 2), 0, (VOCAB + 31) / 32 * sizeof(uint32_t));
    executor_mask(rig.executor, 2)[317 / 32] = UINT32_C(1) << (317 % 32);

    plan_bind(rig.plan, 2, prompt, N_PROMPT, &greedy_sampling);
    generate(&rig, 2, STEP_ROW_MASKED, 8, tokens);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(tokens[i], 317);
    }
    executor_rig_close(&rig);
}

static void biases_belong_to_their_slot(void **state)
{
    (void)state;
    executor_rig_t rig;
    open_rig(&rig, "llama", "auto", 16, K_F16);
    for (uint32_t slot = 0; slot < 3; slot++) {
        plan_bind(rig.plan, slot, prompt, N_PROMPT, &greedy_sampling);
        if (slot > 0) {
            plan_bias(rig.plan, 3, 1.0f);
            plan_bias(rig.plan, 200 + (int32_t)slot, 1000.0f);
        }
        plan_all_blocks(&rig, slot);
        plan_row(rig.plan, slot, 0, N_PROMPT, STEP_ROW_SAMPLE, 0);
    }
    const step_result_t result = executor_rig_step(&rig);
    assert_true(result.rows[0].chosen.token != 201 && result.rows[0].chosen.token != 202);
    assert_int_equal(result.rows[1].chosen.token, 201);
    assert_int_equal(result.rows[2].chosen.token, 202);
    executor_rig_close(&rig);
}

static void penalties_see_tokens_that_were_sampled_on_the_device(void **state)
{
    (void)state;
    int32_t tokens[64];
    bool is_seen[VOCAB] = {false};
    executor_rig_t rig;
    step_sampling_t sampling = greedy_sampling;
    sampling.presence_penalty = 1000.0f;
    open_rig(&rig, "llama", "auto", 16, K_F16);
    plan_bind(rig.plan, 1, prompt, N_PROMPT, &sampling);
    generate(&rig, 1, 0, 64, tokens);
    for (int i = 0; i < 64; i++) {
        assert_false(is_seen[tokens[i]]);
        is_seen[tokens[i]] = true;
    }
    executor_rig_close(&rig);
}

static void noise_depends_on_seed_and_output_index_alone(void **state)
{
    (void)state;
    int32_t first[24];
    int32_t again[24];
    int32_t other[24];
    executor_rig_t rig;
    step_sampling_t sampling = greedy_sampling;
    sampling.temperature = 2.0f;
    sampling.seed = 77;
    open_rig(&rig, "llama", "auto", 16, K_F16);
    plan_bind(rig.plan, 0, prompt, N_PROMPT, &sampling);
    generate(&rig, 0, 0, 24, first);
    plan_bind(rig.plan, 3, prompt, N_PROMPT, &sampling);
    generate(&rig, 3, 0, 24, again);
    sampling.seed = 78;
    plan_bind(rig.plan, 0, prompt, N_PROMPT, &sampling);
    generate(&rig, 0, 0, 24, other);
    assert_memory_equal(first, again, sizeof(first));
    assert_memory_not_equal(first, other, sizeof(first));
    executor_rig_close(&rig);
}

/* A slot rebound to prompt and answer goes on as if nothing had happened: preemption. */
static void a_recomputed_sequence_goes_on_as_before(void **state)
{
    (void)state;
    int32_t tokens[20];
    int32_t history[N_PROMPT + 10];
    executor_rig_t rig;
    step_sampling_t sampling = greedy_sampling;
    sampling.temperature = 1.5f;
    sampling.frequency_penalty = 0.5f;
    sampling.seed = 5;
    open_rig(&rig, "qwen3", "auto", 16, K_BF16);
    plan_bind(rig.plan, 0, prompt, N_PROMPT, &sampling);
    generate(&rig, 0, 0, 20, tokens);

    memcpy(history, prompt, sizeof(prompt));
    memcpy(history + N_PROMPT, tokens, 10 * sizeof(int32_t));
    plan_bind(rig.plan, 1, history, N_PROMPT + 10, &sampling)->prompt_tokens = N_PROMPT;
    plan_all_blocks(&rig, 1);
    plan_row(rig.plan, 1, 0, N_PROMPT + 10, STEP_ROW_SAMPLE, 10);
    for (uint32_t i = 10; i < 20; i++) {
        assert_int_equal(executor_rig_step(&rig).rows[0].chosen.token, tokens[i]);
        plan_row(rig.plan, 1, N_PROMPT + i, 1, STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT, i + 1);
    }
    executor_rig_close(&rig);
}

/* ---- plans ---------------------------------------------------------------------------------- */

static void two_steps_may_be_out_and_no_more(void **state)
{
    (void)state;
    step_result_t result;
    executor_rig_t rig;
    open_rig(&rig, "llama", "auto", 16, K_F16);
    assert_status(executor_collect(rig.executor, &result), WEFT_ERR_NOT_FOUND);
    plan_bind(rig.plan, 0, prompt, N_PROMPT, &greedy_sampling);
    plan_all_blocks(&rig, 0);
    plan_row(rig.plan, 0, 0, N_PROMPT, STEP_ROW_SAMPLE, 0);
    assert_status(executor_rig_launch(&rig), WEFT_OK);
    assert_status(executor_rig_launch(&rig), WEFT_OK); /* nothing to do is fine */
    assert_status(executor_rig_launch(&rig), WEFT_ERR_QUEUE_FULL);
    assert_int_equal(executor_rig_collect(&rig).step, 1);
    result = executor_rig_collect(&rig);
    assert_int_equal(result.step, 2);
    assert_int_equal(result.n_rows, 0);
    assert_status(executor_collect(rig.executor, &result), WEFT_ERR_NOT_FOUND);
    executor_rig_close(&rig);
}

static void bind_without_blocks(executor_rig_t *rig)
{
    plan_bind(rig->plan, 0, prompt, N_PROMPT, &greedy_sampling);
    plan_row(rig->plan, 0, 0, N_PROMPT, STEP_ROW_SAMPLE, 0);
}
static void row_of_a_slot_without_history(executor_rig_t *rig)
{
    plan_all_blocks(rig, 4);
    plan_row(rig->plan, 4, 0, 1, 0, 0);
}
static void row_past_the_history(executor_rig_t *rig)
{
    plan_bind(rig->plan, 0, prompt, N_PROMPT, &greedy_sampling);
    plan_all_blocks(rig, 0);
    plan_row(rig->plan, 0, 1, N_PROMPT, 0, 0);
}
static void sample_before_the_end(executor_rig_t *rig)
{
    plan_bind(rig->plan, 0, prompt, N_PROMPT, &greedy_sampling);
    plan_all_blocks(rig, 0);
    plan_row(rig->plan, 0, 0, N_PROMPT - 1, STEP_ROW_SAMPLE, 0);
}
static void slot_twice(executor_rig_t *rig)
{
    plan_bind(rig->plan, 0, prompt, N_PROMPT, &greedy_sampling);
    plan_all_blocks(rig, 0);
    plan_row(rig->plan, 0, 0, 2, 0, 0);
    plan_row(rig->plan, 0, 2, 2, 0, 0);
}
static void block_with_a_hole_before_it(executor_rig_t *rig)
{
    plan_bind(rig->plan, 0, prompt, N_PROMPT, &greedy_sampling);
    plan_block(rig->plan, 0, 1, 0);
}
static void slot_out_of_range(executor_rig_t *rig)
{
    plan_row(rig->plan, limits.max_slots, 0, 1, 0, 0);
}

static void a_plan_that_does_not_fit_the_slots_is_refused(void **state)
{
    (void)state;
    void (*const breaks[])(executor_rig_t *) = {
        bind_without_blocks,  row_of_a_slot_without_history,
        row_past_the_history, sample_before_the_end,
        slot_twice,           block_with_a_hole_before_it,
        slot_out_of_range,
    };
    executor_rig_t rig;
    open_rig(&rig, "llama", "ref", 16, K_F16);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(breaks); i++) {
        step_result_t result;
        breaks[i](&rig);
        assert_status(executor_rig_launch(&rig), WEFT_ERR_INVALID);
        assert_status(executor_collect(rig.executor, &result), WEFT_ERR_NOT_FOUND);
    }
    executor_rig_close(&rig);
}

/* ---- life ----------------------------------------------------------------------------------- */

static void limits_the_model_cannot_hold_are_refused(void **state)
{
    (void)state;
    executor_rig_t rig;
    open_rig(&rig, "llama", "ref", 16, K_F16);
    const uint32_t more[][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(more); i++) {
        weft_diag_t diag = {0};
        executor_t *executor = NULL;
        executor_config_t config = executor_rig_config(&rig, K_F16);
        config.limits.max_tokens += more[i][0];
        config.limits.max_outputs += more[i][1];
        config.limits.max_context += more[i][2];
        assert_status(executor_create(&config, &diag, &executor), WEFT_ERR_INVALID);
        assert_non_null(strstr(diag.text, "do not fit"));
    }
    executor_rig_close(&rig);
}

static void a_failed_allocation_leaves_nothing_behind(void **state)
{
    (void)state;
    executor_rig_t rig;
    open_rig(&rig, "llama", "ref", 16, K_F16);
    const executor_config_t config = executor_rig_config(&rig, K_F16);
    const size_t before = weft_alloc_live_bytes();
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    uint64_t failures = 0;
    while (status < 0) {
        weft_diag_t diag = {0};
        executor_t *executor = NULL;
        weft_alloc_fail_nth(failures + 1);
        status = executor_create(&config, &diag, &executor);
        weft_alloc_fail_nth(0);
        if (status < 0) {
            assert_status(status, WEFT_ERR_NO_MEMORY);
            assert_null(executor);
            failures++;
        }
        executor_destroy(executor);
        assert_true(weft_alloc_live_bytes() == before);
    }
    assert_true(failures >= 1);
    executor_rig_close(&rig);
}

static void a_step_allocates_nothing(void **state)
{
    (void)state;
    int32_t tokens[8];
    executor_rig_t rig;
    open_rig(&rig, "llama", "auto", 16, K_F16);
    plan_bind(rig.plan, 0, prompt, N_PROMPT, &greedy_sampling);
    weft_alloc_fail_nth(0);
    generate(&rig, 0, STEP_ROW_PROMPT_LOGPROBS, 8, tokens);
    assert_int_equal(weft_alloc_fail_nth(0), 0);
    executor_rig_close(&rig);
}

static void executor_memory_grows_with_what_it_is_made_of(void **state)
{
    (void)state;
    executor_rig_t rig;
    open_rig(&rig, "llama", "ref", 16, K_F16);
    const model_config_t *config = model_config(rig.rig.model);
    const size_t bytes = executor_memory(&limits, config, NULL, 16, 0, true);
    step_limits_t larger = limits;
    larger.max_outputs = 100;
    assert_true(bytes > limits.max_outputs * VOCAB * sizeof(float));
    assert_true(executor_memory(&larger, config, NULL, 16, 0, true) - bytes >=
                (100 - limits.max_outputs - 1) * VOCAB * sizeof(float));
    const size_t step =
        (executor_memory(&limits, config, NULL, 16, 8, true) - bytes) / 6; /* beyond 2 */
    assert_true(step > limits.max_tokens * sizeof(k_sampled_t));
    executor_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer_is_the_same_alone_and_in_company),
        cmocka_unit_test(answers_and_prompt_logprobs_are_the_references),
        cmocka_unit_test(masked_rows_sample_allowed_tokens_only),
        cmocka_unit_test(biases_belong_to_their_slot),
        cmocka_unit_test(penalties_see_tokens_that_were_sampled_on_the_device),
        cmocka_unit_test(noise_depends_on_seed_and_output_index_alone),
        cmocka_unit_test(a_recomputed_sequence_goes_on_as_before),
        cmocka_unit_test(two_steps_may_be_out_and_no_more),
        cmocka_unit_test(a_plan_that_does_not_fit_the_slots_is_refused),
        cmocka_unit_test(limits_the_model_cannot_hold_are_refused),
        cmocka_unit_test(a_failed_allocation_leaves_nothing_behind),
        cmocka_unit_test(a_step_allocates_nothing),
        cmocka_unit_test(executor_memory_grows_with_what_it_is_made_of),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
