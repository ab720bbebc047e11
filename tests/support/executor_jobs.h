/* SPDX-License-Identifier: Apache-2.0 */
/*
 * executor_jobs: the golden sequences of a tiny model carried out by an executor, one after another
 * or together, and what it answered.
 */
#pragma once

#include "tests/support/executor_rig.h"
#include "tests/support/random.h"

#define VOCAB     320
#define SEQUENCES 4
#define LONGEST   100
#define ANSWER    16
#define N_TOP     5
#define CONTEXT   128

/* How tokens are sampled. */
typedef enum job_kind {
    JOBS_GREEDY,
    JOBS_FILTERED, /* a narrow nucleus, under penalties */
    JOBS_WIDE,     /* each job in another way, from most of the vocabulary */
} job_kind_t;

static const step_limits_t limits = {.max_slots = 6,
                                     .max_tokens = 64,
                                     .max_context = CONTEXT,
                                     .max_blocks = 512,
                                     .max_bind_tokens = 512,
                                     .max_biases = 8,
                                     .max_outputs = 3};

static inline void jobs_open(executor_rig_t *rig, const char *name, const char *isa,
                             uint32_t block_tokens, k_dtype_t kv_dtype, const model_shard_t *shard)
{
    executor_rig_open(rig,
                      (model_rig_config_t){.path = tiny_model_path(name),
                                           .isa = isa,
                                           .threads = shard == NULL ? 2 : 1,
                                           .kv_dtype = kv_dtype,
                                           .block_tokens = block_tokens,
                                           .n_blocks = SEQUENCES * CONTEXT / block_tokens + 1,
                                           .shard = shard},
                      &limits);
}

/* Slot `slot` owns the blocks of its CONTEXT tokens, in reverse order. */
static inline void plan_all_blocks(executor_rig_t *rig, uint32_t slot)
{
    const uint32_t n = CONTEXT / rig->rig.layout.block_tokens;
    for (uint32_t i = 0; i < n; i++) {
        plan_block(rig->plan, slot, i, (slot % SEQUENCES + 1) * n - i);
    }
}

typedef struct job {
    int32_t prompt[LONGEST];
    uint32_t n_prompt;
    k_sampled_t prompt_logprobs[LONGEST];
    uint32_t n_prompt_logprobs;
    k_sampled_t answer[ANSWER];
    uint32_t n_answer;
} job_t;

static inline void load_jobs(const char *name, job_t *jobs, int32_t greedy[SEQUENCES][ANSWER],
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

static inline step_sampling_t sampling_of(uint32_t job, job_kind_t kind)
{
    step_sampling_t sampling = greedy_sampling;
    sampling.n_top = N_TOP;
    sampling.n_prompt_top = 2;
    sampling.seed = 1000 + job;
    if (kind == JOBS_FILTERED) {
        sampling.temperature = 0.9f;
        sampling.top_p = 0.95f;
        sampling.presence_penalty = 0.5f;
        sampling.repetition_penalty = 1.1f;
    } else if (kind == JOBS_WIDE) {
        sampling.temperature = job % 2 == 0 ? 1 : 5;
        sampling.top_p = job == 1 ? 0.995f : 1;
        sampling.top_k = job == 2 ? 300 : 0;
        sampling.min_p = job == 3 ? 0.01f : 0;
        sampling.n_top = job == 0 ? 0 : N_TOP;
        sampling.wants_logprob = job != 0;
    }
    return sampling;
}

static inline void take_prompt_logprobs(job_t *job, const k_sampled_t *from, uint32_t n)
{
    memcpy(job->prompt_logprobs + job->n_prompt_logprobs, from, n * sizeof(*from));
    job->n_prompt_logprobs += n;
}

/* The whole prompt in as few steps as the limits allow, then token by token. */
static inline void run_alone(executor_rig_t *rig, uint32_t index, job_t *job, job_kind_t kind)
{
    const step_sampling_t sampling = sampling_of(index, kind);
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

static inline void plan_job(executor_rig_t *rig, uint32_t index, const job_t *job,
                            progress_t *progress, job_kind_t kind, uint32_t budget,
                            test_random_t *random, expectation_t *expectation)
{
    const step_sampling_t sampling = sampling_of(index, kind);
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

static inline void collect_step(executor_rig_t *rig, const expectation_t *expectation, job_t *jobs)
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
static inline void run_together(executor_rig_t *rig, job_t *jobs, job_kind_t kind,
                                test_random_t *random)
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
                    plan_job(rig, index, &jobs[index], &progress[index], kind,
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

static inline bool is_same(const k_sampled_t *a, const k_sampled_t *b)
{
    return memcmp(&a->chosen, &b->chosen, sizeof(a->chosen)) == 0 && a->n_top == b->n_top &&
           memcmp(a->top, b->top, a->n_top * sizeof(a->top[0])) == 0;
}

static inline void assert_same_job(const job_t *a, const job_t *b)
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

static inline void forget_answers(job_t *jobs)
{
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        jobs[i].n_answer = 0;
        jobs[i].n_prompt_logprobs = 0;
    }
}
