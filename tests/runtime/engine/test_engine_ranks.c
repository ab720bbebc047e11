/* SPDX-License-Identifier: Apache-2.0 */
/* An engine over several ranks: what it answers, and which ranks make one. */
#include "runtime/engine/engine_priv.h"
#include "tests/support/ranks_rig.h"

#define N_CASES    8
#define MAX_ANSWER 24

/* ---- requests of every kind ------------------------------------------------------------------ */

typedef struct request_case {
    engine_submit_t submit;
    uint32_t n_tokens;
    int32_t tokens[MAX_ANSWER];
    k_sampled_t logprobs[MAX_ANSWER];
    k_sampled_t last_prompt; /* of the prompt's last token, when asked for */
} request_case_t;

static const int32_t few_ids[] = {5, 17, 33, 64, 65, 66, 100, 200, 301};
static const k_bias_t biases[] = {{70, 4}, {71, -100}};
static const int32_t bad_words[] = {72};
static const uint32_t bad_word_lengths[] = {1};

/* All begin alike, so that later ones find the earlier ones' blocks. */
static void fill_cases(request_case_t cases[N_CASES])
{
    for (uint32_t i = 0; i < N_CASES; i++) {
        cases[i] = (request_case_t){
            .submit = engine_rig_submit(engine_rig_prompt, 20 + 2 * i, MAX_ANSWER - i)};
        cases[i].submit.sampling.wants_logprobs = true;
        cases[i].submit.sampling.n_top_logprobs = i % 4;
        cases[i].submit.sampling.seed = 40 + i;
        cases[i].submit.sampling.temperature = i % 2 == 0 ? 0 : 1.1f;
    }
    cases[1].submit.sampling.top_k = 30;
    cases[2].submit.sampling.repetition_penalty = 1.3f;
    cases[3].submit.sampling.logit_bias = biases;
    cases[3].submit.sampling.n_logit_bias = 2;
    cases[4].submit.sampling.wants_prompt_logprobs = true;
    cases[5].submit.sampling.allowed_token_ids = few_ids;
    cases[5].submit.sampling.n_allowed_token_ids = WEFT_ARRAY_LEN(few_ids);
    cases[6].submit.sampling.bad_words = bad_words;
    cases[6].submit.sampling.bad_word_lengths = bad_word_lengths;
    cases[6].submit.sampling.n_bad_words = 1;
    cases[6].submit.sampling.frequency_penalty = 0.5f;
    cases[7].submit.sampling.top_p = 0.9f;
}

static void keep(request_case_t *c, const engine_request_t *request)
{
    const engine_answer_t a = engine_request_answer(request, 0);
    const k_sampled_t *prompt = engine_request_prompt_logprobs(request);
    assert_int_equal(a.finish, ENGINE_FINISH_LENGTH);
    c->n_tokens = a.n_tokens;
    memcpy(c->tokens, a.tokens, a.n_tokens * sizeof(int32_t));
    memcpy(c->logprobs, a.logprobs, a.n_tokens * sizeof(k_sampled_t));
    if (prompt != NULL) {
        c->last_prompt = prompt[c->submit.n_prompt - 1];
    }
}

static void assert_logprobs_equal(const k_sampled_t *a, const k_sampled_t *b)
{
    assert_memory_equal(&a->chosen, &b->chosen, sizeof(a->chosen));
    assert_int_equal(a->n_top, b->n_top);
    assert_memory_equal(a->top, b->top, a->n_top * sizeof(a->top[0]));
}

static void assert_kept(const request_case_t *c, const engine_request_t *request)
{
    request_case_t now = {.submit = c->submit};
    keep(&now, request);
    assert_int_equal(now.n_tokens, c->n_tokens);
    assert_memory_equal(now.tokens, c->tokens, c->n_tokens * sizeof(int32_t));
    for (uint32_t i = 0; i < c->n_tokens; i++) {
        assert_logprobs_equal(&now.logprobs[i], &c->logprobs[i]);
    }
    assert_logprobs_equal(&now.last_prompt, &c->last_prompt);
}

static void answer_one_by_one(engine_rig_t *rig, request_case_t cases[N_CASES])
{
    for (uint32_t i = 0; i < N_CASES; i++) {
        engine_request_t *request = engine_rig_send(rig, &cases[i].submit);
        engine_rig_wait(rig, request);
        keep(&cases[i], request);
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
        assert_kept(&cases[i], requests[i]);
        engine_request_release(requests[i]);
    }
}

/* ---- answers --------------------------------------------------------------------------------- */

static void replicas_answer_as_one_engine_alone(void **state)
{
    (void)state;
    request_case_t cases[N_CASES];
    engine_rig_t alone;
    ranks_rig_t rig;
    const ranks_rig_config_t config = ranks_rig_replicas(3);
    fill_cases(cases);
    engine_rig_open(&alone, config.model, &config.options);
    answer_one_by_one(&alone, cases);
    engine_rig_close(&alone);
    ranks_rig_open(&rig, &config);
    check_all_at_once(&rig.rig, cases);
    ranks_rig_close(&rig);
}

/*
 * With tensor parallelism a follower that mirrored anything wrong would add the wrong numbers to
 * everybody's sums.
 */
static void disturbed_ranks_answer_as_undisturbed_ones(const char *model, uint32_t size,
                                                       uint32_t stages)
{
    request_case_t cases[N_CASES];
    ranks_rig_t rig;
    ranks_rig_config_t config = ranks_rig_tensor(model, size);
    config.stages = stages;
    config.options.tensor_parallel_size = size / stages;
    config.options.pipeline_parallel_size = stages;
    fill_cases(cases);
    config.options.enable_prefix_caching = false;
    ranks_rig_open(&rig, &config);
    answer_one_by_one(&rig.rig, cases);
    ranks_rig_close(&rig);

    config.options.enable_prefix_caching = true;
    /* The leader guesses, what it guessed is computed by all. */
    config.options.speculative_config = stages > 1 ? ""
                                                   : "{\"model\": \"" WEFT_TEST_VECTORS
                                                     "/tiny-models/llama\", "
                                                     "\"num_speculative_tokens\": 3}";
    config.options.num_gpu_blocks = 12; /* so that preemption is also in earnest */
    config.options.max_num_batched_tokens = 24;
    ranks_rig_open(&rig, &config);
    for (uint64_t seed = 1; seed <= 4; seed++) {
        engine_set_chaos(rig.rig.engine, seed);
        check_all_at_once(&rig.rig, cases);
    }
    engine_set_chaos(rig.rig.engine, 0);
    assert_true(engine_stats(rig.rig.engine).preemptions > 0);
    assert_true(engine_stats(rig.rig.engine).prefix_hits > 0);
    assert_true(stages > 1 || engine_stats(rig.rig.engine).drafts > 0);
    ranks_rig_close(&rig);
}

static void two_ranks_answer_the_same_disturbed_or_not(void **state)
{
    (void)state;
    disturbed_ranks_answer_as_undisturbed_ones("llama", 2, 1);
}

static void more_ranks_than_kv_heads_answer_the_same_disturbed_or_not(void **state)
{
    (void)state;
    disturbed_ranks_answer_as_undisturbed_ones("qwen3", 4, 1);
}

/* Each stage computes what one engine would, in the same order: to the last bit. */
static void stages_answer_as_one_engine_alone(void **state)
{
    (void)state;
    request_case_t cases[N_CASES];
    engine_rig_t alone;
    ranks_rig_t rig;
    ranks_rig_config_t config = ranks_rig_tensor("llama", 3);
    config.stages = 3;
    config.options.tensor_parallel_size = 1;
    fill_cases(cases);
    engine_rig_open(&alone, config.model, &config.options);
    answer_one_by_one(&alone, cases);
    engine_rig_close(&alone);
    config.options.pipeline_parallel_size = 3;
    ranks_rig_open(&rig, &config);
    check_all_at_once(&rig.rig, cases);
    ranks_rig_close(&rig);
}

static void stages_answer_the_same_disturbed_or_not(void **state)
{
    (void)state;
    disturbed_ranks_answer_as_undisturbed_ones("llama", 2, 2);
}

static void stages_of_ranks_answer_the_same_disturbed_or_not(void **state)
{
    (void)state;
    disturbed_ranks_answer_as_undisturbed_ones("llama", 4, 2);
}

/* ---- starting -------------------------------------------------------------------------------- */

static void sizes_are_those_of_the_smallest_rank(void **state)
{
    (void)state;
    ranks_rig_t rig;
    ranks_rig_config_t config = ranks_rig_replicas(2);
    config.follower_options = config.options;
    config.follower_options.num_gpu_blocks = 7;
    config.follower_options.max_model_len = 100;
    ranks_rig_open(&rig, &config);
    assert_int_equal(engine_stats(rig.rig.engine).total_blocks, 7);
    assert_int_equal(engine_max_context(rig.rig.engine), 100);
    engine_request_t *request = engine_rig_greedy(&rig.rig, 50);
    assert_int_equal(engine_request_answer(request, 0).n_tokens, 50);
    engine_request_release(request);
    ranks_rig_close(&rig);
}

static void assert_refused(const ranks_rig_config_t *config, weft_status_t status,
                           const char *reason)
{
    ranks_rig_t rig;
    weft_diag_t diag = {0};
    assert_status(ranks_rig_try(&rig, config, &diag), status);
    if (strstr(diag.text, reason) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", diag.text, reason);
    }
    ranks_rig_end(&rig);
}

static void ranks_that_differ_are_refused_by_what_differs(void **state)
{
    (void)state;
    ranks_rig_config_t config = ranks_rig_replicas(2);
    config.follower_options = config.options;
    config.follower_options.max_num_seqs = 3;
    assert_refused(&config, WEFT_ERR_DENIED, "--max-num-seqs is 8 on rank 0 but 3 on rank 1");
    config.follower_options = config.options;
    config.follower_options.block_size = 32;
    assert_refused(&config, WEFT_ERR_DENIED, "--block-size is 16 on rank 0 but 32 on rank 1");
}

static void a_rank_that_cannot_start_is_everybodys_reason(void **state)
{
    (void)state;
    ranks_rig_config_t config = ranks_rig_replicas(2);
    config.follower_options = config.options;
    config.follower_options.cpu_isa = "z80";
    assert_refused(&config, WEFT_ERR_UNSUPPORTED, "rank 1: ");
    config = ranks_rig_replicas(2);
    config.options.kv_cache_dtype = "f5";
    config.follower_options = ranks_rig_replicas(2).options;
    assert_refused(&config, WEFT_ERR_INVALID, "--kv-cache-dtype f5");
}

static void ranks_of_which_one_alone_would_move_blocks_are_refused(void **state)
{
    (void)state;
    ranks_rig_config_t config = ranks_rig_replicas(2);
    config.follower_options = config.options;
    config.follower_options.kv_transfer_config =
        "{\"kv_connector\":\"WeftConnector\",\"kv_role\":\"kv_both\"}";
    assert_refused(&config, WEFT_ERR_DENIED, "--kv-transfer-config: rank 0 has none, rank 1 has");
}

static void sizes_that_do_not_make_up_the_ranks_are_refused(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    model_shard_t shard;
    engine_options_t options = engine_rig_options();
    options.tensor_parallel_size = 2;
    options.pipeline_parallel_size = 3;
    options.enable_expert_parallel = true;
    assert_status(engine_shard(&options, 5, 6, &diag, &shard), WEFT_OK);
    assert_int_equal(shard.tensor_rank, 1);
    assert_int_equal(shard.tensor_size, 2);
    assert_int_equal(shard.stage, 2);
    assert_int_equal(shard.stages, 3);
    assert_true(shard.splits_experts);
    assert_status(engine_shard(&options, 0, 4, &diag, &shard), WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "here are 4: 1 x 4, 2 x 2, 4 x 1 would fit"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replicas_answer_as_one_engine_alone),
        cmocka_unit_test(two_ranks_answer_the_same_disturbed_or_not),
        cmocka_unit_test(more_ranks_than_kv_heads_answer_the_same_disturbed_or_not),
        cmocka_unit_test(stages_answer_as_one_engine_alone),
        cmocka_unit_test(stages_answer_the_same_disturbed_or_not),
        cmocka_unit_test(stages_of_ranks_answer_the_same_disturbed_or_not),
        cmocka_unit_test(sizes_are_those_of_the_smallest_rank),
        cmocka_unit_test(ranks_that_differ_are_refused_by_what_differs),
        cmocka_unit_test(a_rank_that_cannot_start_is_everybodys_reason),
        cmocka_unit_test(ranks_of_which_one_alone_would_move_blocks_are_refused),
        cmocka_unit_test(sizes_that_do_not_make_up_the_ranks_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
