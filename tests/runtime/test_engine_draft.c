/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A second model that guesses. Its guesses must not change an answer; and where it is the model that
 * answers itself, each of them is right, unless its cache is not what it should be.
 */
#include "base/log.h"
#include "runtime/engine_priv.h"
#include "tests/support/engine_rig.h"
#include "tests/support/random.h"

enum {
    CONTEXT = 96,
    MAX_REQUESTS = 8,
    MAX_CONFIG = 512,
    ANSWER = 32,
    DRAFTS = 4,
    ROUNDS = 200,
    ENOUGH_ROUNDS = 8
};

static void draft_config(const char *model, uint32_t n_tokens, const char *more, char *out)
{
    char path[MAX_CONFIG / 2];
    engine_rig_path(model, path, sizeof(path));
    snprintf(out, MAX_CONFIG,
             "{\"method\": \"draft_model\", \"model\": \"%s\", \"num_speculative_tokens\": %u%s}",
             path, n_tokens, more);
}

static void open_with(engine_rig_t *rig, engine_options_t options, const char *model,
                      const char *draft, uint32_t n_tokens, const char *more)
{
    char config[MAX_CONFIG];
    draft_config(draft, n_tokens, more, config);
    options.speculative_config = config;
    engine_rig_open(rig, model, &options);
}

static uint64_t sum_of_accepted(const engine_stats_t *stats)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < ENGINE_MAX_DRAFTS; i++) {
        sum += stats->accepted[i];
    }
    return sum;
}

/* ---- its own guesses are right --------------------------------------------------------------- */

static void fill_prompt(test_random_t *random, int32_t *prompt, uint32_t n)
{
    const uint32_t shared = test_random_below(random, n + 1);
    for (uint32_t i = 0; i < n; i++) {
        prompt[i] =
            i < shared ? (int32_t)(i * 37 % 256) : 3 + (int32_t)test_random_below(random, 256);
    }
}

static engine_options_t tight_options(test_random_t *random)
{
    engine_options_t options = engine_rig_options();
    options.max_model_len = CONTEXT;
    options.block_size = 1u << test_random_below(random, 6);
    options.num_gpu_blocks = CONTEXT / options.block_size + test_random_below(random, 20);
    options.max_num_seqs = test_random_between(random, 1, 6);
    options.max_num_batched_tokens = test_random_between(random, 6, 64);
    options.enable_prefix_caching = test_random_below(random, 4) > 0;
    options.threads = test_random_between(random, 1, 2);
    options.kv_host_bytes = test_random_below(random, 2) * 300000;
    return options;
}

/* Greedy answers, some asked for twice, disturbed: what was guessed is what was answered. */
static void check_round(uint64_t seed, engine_stats_t *sums)
{
    static int32_t prompts[MAX_REQUESTS][CONTEXT];
    uint32_t lengths[MAX_REQUESTS];
    engine_request_t *requests[2 * MAX_REQUESTS];
    engine_rig_t rig;
    test_random_t random = {seed};
    const uint32_t n = test_random_between(&random, 2, MAX_REQUESTS);
    const engine_options_t options = tight_options(&random);
    open_with(&rig, options, "llama", "llama", test_random_between(&random, 1, 9), "");
    engine_set_chaos(rig.engine, test_random_u64(&random) | 1);
    for (uint32_t i = 0; i < n; i++) {
        lengths[i] = test_random_between(&random, 1, CONTEXT - ANSWER);
        fill_prompt(&random, prompts[i], lengths[i]);
    }
    for (uint32_t i = 0; i < 2 * n; i++) {
        engine_submit_t submit = engine_rig_submit(prompts[i % n], lengths[i % n], ANSWER);
        submit.n = test_random_between(&random, 1, 2);
        requests[i] = engine_rig_send(&rig, &submit);
        if (test_random_below(&random, 3) == 0) {
            engine_rig_wait(&rig, requests[i]);
        }
    }
    for (uint32_t i = 0; i < 2 * n; i++) {
        engine_rig_wait(&rig, requests[i]);
        engine_request_release(requests[i]);
    }
    const engine_stats_t stats = engine_rig_wait_idle(&rig);
    assert_int_equal(sum_of_accepted(&stats), stats.draft_tokens);
    sums->draft_tokens += stats.draft_tokens;
    sums->preemptions += stats.preemptions;
    sums->prefix_hits += stats.prefix_hits;
    engine_rig_close(&rig);
}

static void a_model_guesses_itself_right_whatever_happens(void **state)
{
    (void)state;
    const uint64_t seed = test_seed(1);
    const uint32_t rounds = test_rounds(ROUNDS);
    engine_stats_t sums = {0};
    weft_log_set_level(WEFT_LOG_WARN);
    for (uint32_t i = 0; i < rounds; i++) {
        print_message("seed %llu\n", (unsigned long long)(seed + i));
        check_round(seed + i, &sums);
    }
    print_message("%llu guessed, %llu preemptions, %llu tokens found in the cache\n",
                  (unsigned long long)sums.draft_tokens, (unsigned long long)sums.preemptions,
                  (unsigned long long)sums.prefix_hits);
    assert_true(rounds < ENOUGH_ROUNDS ||
                (sums.draft_tokens > 0 && sums.preemptions > 0 && sums.prefix_hits > 0));
}

/* ---- what it is put beside ------------------------------------------------------------------- */

static engine_request_t *answer_of(engine_rig_t *rig, uint32_t n_prompt)
{
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, n_prompt, ANSWER);
    submit.sampling.wants_logprobs = true;
    engine_request_t *request = engine_rig_send(rig, &submit);
    engine_rig_wait(rig, request);
    return request;
}

static void another_model_s_guesses_change_no_answer(void **state)
{
    (void)state;
    static const char *const drafts[] = {"llama", "qwen2", "gemma3", "deepseek-v2", "qwen3-moe"};
    const engine_options_t options = engine_rig_options();
    engine_rig_t alone;
    engine_rig_open(&alone, "mistral", &options);
    engine_request_t *expected = answer_of(&alone, 20);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(drafts); i++) {
        engine_rig_t rig;
        open_with(&rig, options, "mistral", drafts[i], DRAFTS, "");
        engine_request_t *request = answer_of(&rig, 20);
        const engine_answer_t a = engine_request_answer(request, 0);
        const engine_answer_t b = engine_request_answer(expected, 0);
        assert_int_equal(a.n_tokens, b.n_tokens);
        assert_memory_equal(a.tokens, b.tokens, a.n_tokens * sizeof(int32_t));
        for (uint32_t j = 0; j < a.n_tokens; j++) {
            assert_memory_equal(&a.logprobs[j].chosen, &b.logprobs[j].chosen,
                                sizeof(a.logprobs[j].chosen));
        }
        engine_request_release(request);
        assert_true(engine_rig_wait_idle(&rig).draft_tokens > 0);
        engine_rig_close(&rig);
    }
    engine_request_release(expected);
    engine_rig_close(&alone);
}

/* A step gives one token more than it has guesses; for the last token there is none. */
static void right_guesses_save_steps(void **state)
{
    (void)state;
    engine_rig_t rig;
    open_with(&rig, engine_rig_options(), "llama", "llama", DRAFTS, "");
    engine_request_release(answer_of(&rig, 20));
    const engine_stats_t stats = engine_rig_wait_idle(&rig);
    static_assert((ANSWER - 1) % (DRAFTS + 1) == 1, "one token is left");
    assert_int_equal(stats.drafts, (ANSWER - 1) / (DRAFTS + 1));
    assert_int_equal(stats.steps, 1 + stats.drafts + 1);
    assert_int_equal(stats.max_drafts, DRAFTS);
    engine_rig_close(&rig);
}

static void past_its_own_context_nothing_is_guessed(void **state)
{
    (void)state;
    engine_rig_t rig;
    open_with(&rig, engine_rig_options(), "llama", "llama", DRAFTS, ", \"max_model_len\": 30");
    engine_request_release(answer_of(&rig, 20));
    const engine_stats_t stats = engine_rig_wait_idle(&rig);
    /* 20 + 1 tokens are known, then 26, then 31: a guess ends behind the last one in its cache. */
    assert_int_equal(stats.draft_tokens, DRAFTS + DRAFTS);
    assert_int_equal(sum_of_accepted(&stats), stats.draft_tokens);
    engine_rig_close(&rig);
}

static void an_abandoned_answer_leaves_its_place_to_others(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_options_t options = engine_rig_options();
    options.max_num_seqs = 1;
    open_with(&rig, options, "llama", "llama", DRAFTS, "");
    for (uint32_t i = 0; i < 8; i++) {
        const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 5 + i, 400);
        engine_request_t *abandoned = engine_rig_send(&rig, &submit);
        if (i % 2 == 0) {
            while (engine_request_answer(abandoned, 0).n_tokens < 10) {
                assert_non_null(engine_client_wait(rig.client, 60000));
            }
        }
        engine_request_release(abandoned);
    }
    engine_request_release(answer_of(&rig, 20));
    const engine_stats_t stats = engine_rig_wait_idle(&rig);
    /* What was on its way when a request was abandoned is nobody's. */
    assert_true(sum_of_accepted(&stats) > 0);
    engine_rig_close(&rig);
}

/* ---- what cannot be -------------------------------------------------------------------------- */

static void a_model_of_another_vocabulary_is_refused(void **state)
{
    (void)state;
    char path[MAX_CONFIG];
    weft_diag_t diag = {0};
    model_source_t *source = NULL;
    engine_rig_path("llama", path, sizeof(path));
    assert_status(model_source_open(path, &diag, &source), WEFT_OK);
    model_config_t answering = *model_source_config(source);
    assert_status(draft_model_check_vocab(source, &answering, NULL, &diag), WEFT_OK);
    answering.vocab++;
    assert_status(draft_model_check_vocab(source, &answering, NULL, &diag), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, path));
    assert_non_null(strstr(diag.text, "320"));
    assert_non_null(strstr(diag.text, "321"));
    model_source_close(source);
}

static void assert_refused(engine_options_t options, const char *config, const char *told)
{
    char path[MAX_CONFIG];
    weft_diag_t diag = {0};
    model_source_t *source = NULL;
    engine_t *engine = NULL;
    engine_rig_path("llama", path, sizeof(path));
    assert_status(model_source_open(path, &diag, &source), WEFT_OK);
    options.speculative_config = config;
    assert_true(engine_create(&options, source, NULL, NULL, &diag, &engine) < 0);
    assert_non_null(strstr(diag.text, told));
    model_source_close(source);
}

static void what_is_missing_is_named_at_start(void **state)
{
    (void)state;
    char config[MAX_CONFIG];
    engine_options_t options = engine_rig_options();
    assert_refused(options, "{\"model\": \"/nowhere/m.gguf\", \"num_speculative_tokens\": 2}",
                   "/nowhere/m.gguf");
    /* Blocks are those of both models: what would hold one context of one does not of two. */
    options.max_model_len = 256;
    options.num_gpu_blocks = 0;
    options.kv_cache_bytes = 256 * 3 * 2 * 2 * 16 * sizeof(uint16_t);
    engine_rig_t rig;
    engine_rig_open(&rig, "llama", &options);
    engine_rig_close(&rig);
    draft_config("llama", DRAFTS, "", config);
    assert_refused(options, config, "--kv-cache-memory-bytes");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_guesses_itself_right_whatever_happens),
        cmocka_unit_test(another_model_s_guesses_change_no_answer),
        cmocka_unit_test(right_guesses_save_steps),
        cmocka_unit_test(past_its_own_context_nothing_is_guessed),
        cmocka_unit_test(an_abandoned_answer_leaves_its_place_to_others),
        cmocka_unit_test(a_model_of_another_vocabulary_is_refused),
        cmocka_unit_test(what_is_missing_is_named_at_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
