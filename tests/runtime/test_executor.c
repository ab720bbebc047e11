/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/executor_rig.h"
#include "tests/support/random.h"

#define VOCAB     320
#define SEQUENCES 4
#define LONGEST   100
#define ANSWER    16
#define N_TOP     5
#define CONTEXT   128

static const step_limits_t limits = {.max_slots = 6,
                                     .max_tokens = 64,
                                     .max_context = CONTEXT,
                                     .max_blocks = 512,
                                     .max_bind_tokens = 512,
                                     .max_biases = 8,
                                     .max_outputs = 3};

static void open_rig(executor_rig_t *rig, const char *name, const char *isa, uint32_t block_tokens,
                     k_dtype_t kv_dtype)
{
    executor_rig_open(rig,
                      (model_rig_config_t){.path = tiny_model_path(name),
                                           .isa = isa,
                                           .threads = 2,
                                           .kv_dtype = kv_dtype,
                                           .block_tokens = block_tokens,
                                           .n_blocks = SEQUENCES * CONTEXT / block_tokens + 1},
                      &limits);
}

/* Slot `slot` owns the blocks of its CONTEXT tokens, in reverse order. */
static void plan_all_blocks(executor_rig_t *rig, uint32_t slot)
{
    const uint32_t n = CONTEXT / rig->rig.layout.block_tokens;
    for (uint32_t i = 0; i < n; i++) {
        plan_block(rig->plan, slot, i, (slot % SEQUENCES + 1) * n - i);
    }
}

/* ---- the same answers, alone and in company ------------------------------------------------- */

typedef struct job {
    int32_t prompt[LONGEST];
    uint32_t n_prompt;
    k_sampled_t prompt_logprobs[LONGEST];
    uint32_t n_prompt_logprobs;
    k_sampled_t answer[ANSWER];
    uint32_t n_answer;
} job_t;

static void load_jobs(const char *name, job_t *jobs, int32_t greedy[SEQUENCES][ANSWER],
                      double *logprob_sums, double *range)
{
    json_t *golden = load_golden(name);
    const json_t *sequences = json_object_get(golden, "sequences");
    assert_int_equal(json_array_size(sequences), SEQUENCES);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        const json_t *sequence = json_array_get(sequences, i);
        jobs[i] = (job_t){0};
        jobs[i].n_prompt = json_ids(json_object_get(sequence, "tokens"), jobs[i].prompt, LONGEST);
        json_ids(json_object_get(sequence, "greedy"), greedy[i], ANSWER);
        logprob_sums[i] = json_number_value(json_object_get(sequence, "logprob_sum"));
    }
    *range = json_number_value(json_object_get(golden, "logit_range"));
    json_decref(golden);
}

static step_sampling_t sampling_of(uint32_t job, bool is_random)
{
    step_sampling_t sampling = greedy_sampling;
    sampling.n_top = N_TOP;
    sampling.n_prompt_top = 2;
    if (is_random) {
        sampling.temperature = 0.9f;
        sampling.top_p = 0.95f;
        sampling.presence_penalty = 0.5f;
        sampling.repetition_penalty = 1.1f;
        sampling.seed = 1000 + job;
    }
    return sampling;
}

static void take_prompt_logprobs(job_t *job, const k_sampled_t *from, uint32_t n)
{
    memcpy(job->prompt_logprobs + job->n_prompt_logprobs, from, n * sizeof(*from));
    job->n_prompt_logprobs += n;
}

/* The whole prompt in as few steps as the limits allow, then token by token. */
static void run_alone(executor_rig_t *rig, uint32_t index, job_t *job, bool is_random)
{
    const step_sampling_t sampling = sampling_of(index, is_random);
    plan_bind(rig->plan, index, job->prompt, job->n_prompt, &sampling);
    plan_all_blocks(rig, index);
    for (uint32_t at = 0; at < job->n_prompt;) {
        const uint32_t left = job->n_prompt - at;
        const uint32_t n = left < limits.max_tokens ? left : limits.max_tokens;
        const uint32_t last = n == left ? STEP_ROW_SAMPLE : 0;
        plan_row(rig->plan, index, at, n, last | STEP_ROW_PROMPT_LOGPROBS, 0);
        const step_result_t result = executor_rig_step(rig);
        take_prompt_logprobs(job, result.prompt, result.n_prompt);
        if (last != 0) {
            job->answer[job->n_answer++] = result.rows[0];
        }
        at += n;
    }
    while (job->n_answer < ANSWER) {
        plan_row(rig->plan, index, job->n_prompt + job->n_answer - 1, 1,
                 STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT, job->n_answer);
        job->answer[job->n_answer++] = executor_rig_step(rig).rows[0];
    }
}

/* What one launched step will answer to whom. */
typedef struct expectation {
    uint32_t jobs[SEQUENCES];
    uint32_t prompt_entries[SEQUENCES];
    bool samples[SEQUENCES];
    uint32_t n_rows;
} expectation_t;

typedef struct progress {
    uint32_t slot;
    uint32_t at; /* tokens that were run */
    uint32_t n_launched;
    bool is_bound;
} progress_t;

static void plan_job(executor_rig_t *rig, uint32_t index, const job_t *job, progress_t *progress,
                     bool is_random, uint32_t budget, test_random_t *random,
                     expectation_t *expectation)
{
    const step_sampling_t sampling = sampling_of(index, is_random);
    if (!progress->is_bound) {
        plan_bind(rig->plan, progress->slot, job->prompt, job->n_prompt, &sampling);
        plan_all_blocks(rig, progress->slot);
        progress->is_bound = true;
    }
    const uint32_t row = expectation->n_rows++;
    expectation->jobs[row] = index;
    if (progress->at >= job->n_prompt) {
        plan_row(rig->plan, progress->slot, progress->at, 1, STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT,
                 progress->n_launched);
        expectation->prompt_entries[row] = 0;
        expectation->samples[row] = true;
        progress->at++;
        progress->n_launched++;
        return;
    }
    const uint32_t left = job->n_prompt - progress->at;
    const uint32_t wanted = test_random_between(random, 1, budget);
    const uint32_t n = wanted < left ? wanted : left;
    const bool is_last = n == left;
    plan_row(rig->plan, progress->slot, progress->at, n,
             STEP_ROW_PROMPT_LOGPROBS | (is_last ? STEP_ROW_SAMPLE : 0), 0);
    expectation->prompt_entries[row] = is_last ? n - 1 : n;
    expectation->samples[row] = is_last;
    progress->at += n;
    progress->n_launched += is_last;
}

static void collect_step(executor_rig_t *rig, const expectation_t *expectation, job_t *jobs)
{
    const step_result_t result = executor_rig_collect(rig);
    uint32_t prompt = 0;
    assert_int_equal(result.n_rows, expectation->n_rows);
    for (uint32_t i = 0; i < expectation->n_rows; i++) {
        job_t *job = &jobs[expectation->jobs[i]];
        take_prompt_logprobs(job, result.prompt + prompt, expectation->prompt_entries[i]);
        prompt += expectation->prompt_entries[i];
        if (expectation->samples[i]) {
            job->answer[job->n_answer++] = result.rows[i];
        }
    }
    assert_int_equal(result.n_prompt, prompt);
}

/* All jobs together, in random slots, order and pieces, each step launched before the last is read. */
static void run_together(executor_rig_t *rig, job_t *jobs, bool is_random, test_random_t *random)
{
    progress_t progress[SEQUENCES] = {0};
    expectation_t expectations[2];
    uint32_t launched = 0;
    const uint32_t shift = test_random_below(random, SEQUENCES);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        progress[i].slot = (i + shift) % SEQUENCES;
    }
    for (bool is_done = false; !is_done; launched++) {
        expectation_t *expectation = &expectations[launched % 2];
        *expectation = (expectation_t){0};
        is_done = true;
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            const uint32_t index = (i + launched) % SEQUENCES;
            if (progress[index].n_launched < ANSWER) {
                is_done = false;
                if (test_random_below(random, 4) > 0) {
                    plan_job(rig, index, &jobs[index], &progress[index], is_random,
                             limits.max_tokens / SEQUENCES, random, expectation);
                }
            }
        }
        assert_status(executor_rig_launch(rig), WEFT_OK);
        if (launched > 0) {
            collect_step(rig, &expectations[(launched - 1) % 2], jobs);
        }
    }
    collect_step(rig, &expectations[(launched - 1) % 2], jobs);
}

static bool is_same(const k_sampled_t *a, const k_sampled_t *b)
{
    return memcmp(&a->chosen, &b->chosen, sizeof(a->chosen)) == 0 && a->n_top == b->n_top &&
           memcmp(a->top, b->top, a->n_top * sizeof(a->top[0])) == 0;
}

static void assert_same_job(const job_t *a, const job_t *b)
{
    assert_int_equal(a->n_answer, ANSWER);
    assert_int_equal(b->n_answer, ANSWER);
    assert_int_equal(a->n_prompt_logprobs, b->n_prompt_logprobs);
    for (uint32_t i = 0; i < ANSWER; i++) {
        assert_true(is_same(&a->answer[i], &b->answer[i]));
    }
    for (uint32_t i = 0; i < a->n_prompt_logprobs; i++) {
        assert_true(is_same(&a->prompt_logprobs[i], &b->prompt_logprobs[i]));
    }
}

static void forget_answers(job_t *jobs)
{
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        jobs[i].n_answer = 0;
        jobs[i].n_prompt_logprobs = 0;
    }
}

static void check_company(const char *isa, k_dtype_t kv_dtype, bool is_random,
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
        run_alone(&rig, i, &alone[i], is_random);
    }
    executor_rig_close(&rig);

    static const uint32_t block_sizes[] = {1, 8, 16, 64};
    for (uint32_t round = 0; round < 4; round++) {
        memcpy(together, alone, sizeof(together));
        forget_answers(together);
        open_rig(&rig, "llama-gguf-q8_0", isa, block_sizes[round], kv_dtype);
        run_together(&rig, together, is_random, random);
        executor_rig_close(&rig);
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            assert_same_job(&alone[i], &together[i]);
        }
    }
}

static void check_company_on(const char *isa)
{
    test_random_t random = {test_seed(11)};
    check_company(isa, K_F32, false, &random);
    check_company(isa, K_F16, true, &random);
    check_company(isa, K_BF16, true, &random);
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
            run_alone(&rig, i, &jobs[i], false);
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
    const size_t bytes = executor_memory(&limits, config, 16);
    step_limits_t larger = limits;
    larger.max_outputs = 100;
    assert_true(bytes > limits.max_outputs * VOCAB * sizeof(float));
    assert_true(executor_memory(&larger, config, 16) - bytes >=
                (100 - limits.max_outputs - 1) * VOCAB * sizeof(float));
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
