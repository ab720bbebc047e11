/* SPDX-License-Identifier: Apache-2.0 */
/* The engine over ranks on a CUDA device: what it answers, and how it goes on when one is lost. */
#include "tests/support/ranks_rig.h"

enum { N_CASES = 4, MAX_ANSWER = 8 };

typedef struct request_case {
    engine_submit_t submit;
    uint32_t n_tokens;
    int32_t tokens[MAX_ANSWER];
} request_case_t;

static void fill_cases(request_case_t cases[N_CASES])
{
    for (uint32_t i = 0; i < N_CASES; i++) {
        cases[i] = (request_case_t){
            .submit = engine_rig_submit(engine_rig_prompt, 18 + 3 * i, MAX_ANSWER - i)};
        cases[i].submit.sampling.wants_logprobs = i == 1;
        cases[i].submit.sampling.seed = 40 + i;
        cases[i].submit.sampling.temperature = i % 2 == 0 ? 0 : 1.1f;
    }
    cases[1].submit.sampling.top_p = 0.9f;
    cases[3].submit.sampling.top_k = 30;
}

static void answer_one_by_one(engine_rig_t *rig, request_case_t cases[N_CASES])
{
    for (uint32_t i = 0; i < N_CASES; i++) {
        engine_request_t *request = engine_rig_send(rig, &cases[i].submit);
        engine_rig_wait(rig, request);
        const engine_answer_t answer = engine_request_answer(request, 0);
        assert_int_equal(answer.finish, ENGINE_FINISH_LENGTH);
        cases[i].n_tokens = answer.n_tokens;
        memcpy(cases[i].tokens, answer.tokens, answer.n_tokens * sizeof(int32_t));
        engine_request_release(request);
    }
}

static void check_all_at_once(engine_rig_t *rig, const request_case_t cases[N_CASES])
{
    engine_request_t *requests[N_CASES];
    for (uint32_t i = 0; i < N_CASES; i++) {
        requests[i] = engine_rig_send(rig, &cases[i].submit);
    }
    for (uint32_t i = 0; i < N_CASES; i++) {
        engine_rig_wait(rig, requests[i]);
        const engine_answer_t answer = engine_request_answer(requests[i], 0);
        assert_int_equal(answer.n_tokens, cases[i].n_tokens);
        assert_memory_equal(answer.tokens, cases[i].tokens, answer.n_tokens * sizeof(int32_t));
        engine_request_release(requests[i]);
    }
}

static ranks_rig_config_t config_of(uint32_t tensor_size, uint32_t stages)
{
    ranks_rig_config_t config = {.model = ENGINE_RIG_MODEL,
                                 .size = tensor_size * stages,
                                 .stages = stages,
                                 .options = engine_rig_options()};
    config.options.device = "cuda";
    config.options.max_model_len = 64;
    config.options.max_num_seqs = 4;
    config.options.max_num_batched_tokens = 32;
    config.options.num_gpu_blocks = 32;
    config.options.tensor_parallel_size = tensor_size;
    config.options.pipeline_parallel_size = stages;
    return config;
}

static void check_company(uint32_t tensor_size, uint32_t stages)
{
    request_case_t cases[N_CASES];
    ranks_rig_t rig;
    const ranks_rig_config_t config = config_of(tensor_size, stages);
    fill_cases(cases);
    ranks_rig_open(&rig, &config);
    answer_one_by_one(&rig.rig, cases);
    check_all_at_once(&rig.rig, cases);
    ranks_rig_close(&rig);
}

static void tensor_ranks_answer_the_same_alone_and_in_company(void **state)
{
    (void)state;
    check_company(2, 1);
}

static void stages_answer_the_same_alone_and_in_company(void **state)
{
    (void)state;
    check_company(1, 2);
}

/* ---- losing ---------------------------------------------------------------------------------- */

/* Graphs of the first group would wait for a rank that is no more. */
static void a_group_that_forms_again_goes_on_with_the_same_tokens(void **state)
{
    (void)state;
    ranks_rig_t rig;
    ranks_rig_config_t config = config_of(2, 1);
    config.restarts = 1;
    ranks_rig_open(&rig, &config);
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 18, MAX_ANSWER);
    engine_request_t *before = engine_rig_send(&rig.rig, &submit);
    engine_rig_wait(&rig.rig, before);
    engine_request_t *request = ranks_rig_kill_amid(&rig, &submit, 4);
    ranks_rig_replace(&rig, 1);
    engine_rig_wait(&rig.rig, request);
    engine_rig_assert_whole_as(request, before);
    assert_int_equal(engine_stats(rig.rig.engine).regroupings, 1);
    engine_request_release(before);
    engine_request_release(request);
    ranks_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensor_ranks_answer_the_same_alone_and_in_company),
        cmocka_unit_test(stages_answer_the_same_alone_and_in_company),
        cmocka_unit_test(a_group_that_forms_again_goes_on_with_the_same_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
