/* SPDX-License-Identifier: Apache-2.0 */
/* Executors of a model cut over ranks, each a process, against one of the whole model. */
#include "tests/support/coll_rig.h"
#include "tests/support/executor_jobs.h"

/* Cut in every way that the reference's tokens are clear enough for. */
static const char *const names[] = {"llama", "gemma2", "granite", "qwen3-moe", "deepseek-v2"};

/* What the whole model answers; made before there are ranks. */
typedef struct answers {
    const char *name;
    const char *isa;
    job_kind_t kind;
    job_t jobs[SEQUENCES];
} answers_t;

static void run_all_alone(executor_rig_t *rig, job_kind_t kind, job_t *jobs)
{
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        run_alone(rig, i, &jobs[i], kind);
    }
}

static void load_answers(answers_t *answers)
{
    int32_t greedy[SEQUENCES][ANSWER];
    double sums[SEQUENCES];
    double range;
    load_jobs(answers->name, answers->jobs, greedy, sums, &range);
}

static void make_answers(answers_t *answers)
{
    executor_rig_t rig;
    load_answers(answers);
    jobs_open(&rig, answers->name, answers->isa, 16, K_F32, NULL);
    run_all_alone(&rig, answers->kind, answers->jobs);
    executor_rig_close(&rig);
}

static coll_t *open_rank(coll_rig_rank_t *self, executor_rig_t *rig, const char *name,
                         const char *isa, uint32_t block_tokens, k_dtype_t kv_dtype)
{
    coll_t *coll = coll_rig_create(self, "shm");
    const model_shard_t shard = {
        .tensor_rank = self->rank, .tensor_size = self->size, .tensor = coll};
    jobs_open(rig, name, isa, block_tokens, kv_dtype, &shard);
    return coll;
}

static void close_rank(executor_rig_t *rig, coll_t *coll)
{
    executor_rig_close(rig);
    assert_status(coll_status(coll, NULL), WEFT_OK);
    coll_destroy(coll);
}

/* ---- the tokens of the whole model ----------------------------------------------------------- */

/* The same choices; log-probabilities differ by how sums over ranks are rounded. */
static void assert_alike(const k_sampled_t *a, const k_sampled_t *b)
{
    assert_int_equal(a->chosen.token, b->chosen.token);
    assert_int_equal(a->chosen.rank, b->chosen.rank);
    assert_true(fabsf(a->chosen.logprob - b->chosen.logprob) < 1e-3f);
    assert_int_equal(a->n_top, b->n_top);
    for (uint32_t i = 0; i < a->n_top; i++) {
        assert_int_equal(a->top[i].token, b->top[i].token);
        assert_int_equal(a->top[i].rank, i + 1);
        assert_true(fabsf(a->top[i].logprob - b->top[i].logprob) < 1e-3f);
    }
}

static void check_answers(coll_rig_rank_t *self)
{
    const answers_t *answers = self->user;
    static job_t jobs[SEQUENCES];
    executor_rig_t rig;
    memcpy(jobs, answers->jobs, sizeof(jobs));
    forget_answers(jobs);
    coll_t *coll = open_rank(self, &rig, answers->name, answers->isa, 16, K_F32);
    run_all_alone(&rig, answers->kind, jobs);
    close_rank(&rig, coll);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        const job_t *expected = &answers->jobs[i];
        assert_int_equal(jobs[i].n_prompt_logprobs, expected->n_prompt_logprobs);
        for (uint32_t j = 0; j < expected->n_prompt_logprobs; j++) {
            assert_alike(&jobs[i].prompt_logprobs[j], &expected->prompt_logprobs[j]);
        }
        for (uint32_t j = 0; j < ANSWER; j++) {
            assert_alike(&jobs[i].answer[j], &expected->answer[j]);
        }
    }
}

/* 320 tokens over 2, 3 and 4 ranks: equal parts and unequal ones. */
static void ranks_sample_what_the_whole_model_samples(void **state)
{
    (void)state;
    static answers_t answers;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        for (job_kind_t kind = JOBS_GREEDY; kind <= JOBS_WIDE; kind++) {
            answers = (answers_t){.name = names[i], .isa = "ref", .kind = kind};
            make_answers(&answers);
            coll_rig_run(2 + (uint32_t)(i + kind) % 3, check_answers, &answers);
        }
    }
}

/* ---- decision 7 ------------------------------------------------------------------------------ */

static void check_company(coll_rig_rank_t *self)
{
    static job_t alone[SEQUENCES];
    static job_t together[SEQUENCES];
    const answers_t *answers = self->user;
    test_random_t random = {test_seed(12)}; /* every rank plans the same steps */
    executor_rig_t rig;
    memcpy(alone, answers->jobs, sizeof(alone));
    coll_t *coll = open_rank(self, &rig, answers->name, answers->isa, 16, K_F16);
    run_all_alone(&rig, answers->kind, alone);
    close_rank(&rig, coll);
    memcpy(together, alone, sizeof(together));
    forget_answers(together);
    coll = open_rank(self, &rig, answers->name, answers->isa, 8, K_F16);
    run_together(&rig, together, answers->kind, &random);
    close_rank(&rig, coll);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        assert_same_job(&alone[i], &together[i]);
    }
}

static void check_company_on(const char *isa)
{
    static answers_t answers;
    for (job_kind_t kind = JOBS_GREEDY; kind <= JOBS_WIDE; kind++) {
        answers = (answers_t){.name = "llama-gguf-q8_0", .isa = isa, .kind = kind};
        load_answers(&answers);
        coll_rig_run(2, check_company, &answers);
    }
}

static void an_answer_of_ranks_is_the_same_alone_and_in_company(void **state)
{
    (void)state;
    for_each_isa(check_company_on);
}

/* ---- tokens that one rank has ---------------------------------------------------------------- */

/* The token that a prefill samples when only `token` may be. */
static int32_t sample_masked(executor_rig_t *rig, int32_t token, float temperature)
{
    static const int32_t prompt[] = {5, 100, 7, 42};
    const uint32_t n = (uint32_t)WEFT_ARRAY_LEN(prompt);
    step_sampling_t sampling = greedy_sampling;
    sampling.temperature = temperature;
    sampling.top_p = 0.9f;
    uint32_t *mask = executor_mask(rig->executor, 0);
    memset(mask, 0, (VOCAB + 31) / 32 * sizeof(*mask));
    mask[token / 32] = UINT32_C(1) << token % 32;
    plan_bind(rig->plan, 0, prompt, n, &sampling);
    plan_all_blocks(rig, 0);
    plan_row(rig->plan, 0, 0, n, STEP_ROW_SAMPLE | STEP_ROW_MASKED, 0);
    return executor_rig_step(rig).rows[0].chosen.token;
}

static void check_borders(coll_rig_rank_t *self)
{
    static const int32_t borders[] = {0, 105, 106, 107, 212, 213, 214, 319};
    executor_rig_t rig;
    coll_t *coll = open_rank(self, &rig, "llama", "auto", 16, K_F16);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(borders); i++) {
        assert_int_equal(sample_masked(&rig, borders[i], 0), borders[i]);
        assert_int_equal(sample_masked(&rig, borders[i], 1), borders[i]);
    }
    close_rank(&rig, coll);
}

static void every_token_can_be_sampled_wherever_it_lies(void **state)
{
    (void)state;
    coll_rig_run(3, check_borders, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_sample_what_the_whole_model_samples),
        cmocka_unit_test(an_answer_of_ranks_is_the_same_alone_and_in_company),
        cmocka_unit_test(every_token_can_be_sampled_wherever_it_lies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
