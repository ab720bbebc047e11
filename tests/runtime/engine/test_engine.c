/* SPDX-License-Identifier: Apache-2.0 */

#include <poll.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "kvstore/hash/kv_extra.h"
#include "runtime/engine/engine_priv.h"
#include "tests/support/engine_rig.h"

enum { EOS = 2, VOCAB = 320 };

static engine_answer_t run(engine_rig_t *rig, const engine_submit_t *submit,
                           engine_request_t **request_out)
{
    *request_out = engine_rig_send(rig, submit);
    engine_rig_wait(rig, *request_out);
    return engine_request_answer(*request_out, 0);
}

static void a_request_is_answered_and_timed(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    engine_request_t *request = engine_rig_greedy(&rig, 12);
    const engine_answer_t answer = engine_request_answer(request, 0);
    assert_int_equal(answer.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(answer.n_tokens, 12);
    assert_int_equal(answer.stop_token, -1);
    assert_null(answer.logprobs);
    const engine_timings_t t = engine_request_timings(request);
    assert_true(t.arrival_ns <= t.scheduled_ns && t.scheduled_ns <= t.first_token_ns);
    assert_true(t.first_token_ns <= t.finished_ns);
    engine_request_release(request);
    engine_rig_close(&rig);
}

static void an_idle_engine_sleeps_and_shows_zero(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    engine_request_release(engine_rig_greedy(&rig, 3));
    const engine_stats_t stats = engine_rig_wait_idle(&rig);
    assert_int_equal(stats.free_blocks, stats.total_blocks);
    assert_int_equal(stats.generation_tokens, 3);
    assert_int_equal(stats.prompt_tokens, 20);
    assert_int_equal(stats.steps, 3);
    engine_rig_close(&rig);
}

static void a_device_without_a_clock_counts_no_time(void **state)
{
    (void)state;
    const engine_device_stats_t none[ENGINE_STEP_KINDS] = {{0}};
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    engine_request_release(engine_rig_greedy(&rig, 3));
    const engine_stats_t stats = engine_stats(rig.engine);
    assert_memory_equal(stats.device, none, sizeof(none));
    engine_rig_close(&rig);
}

static void the_descriptor_is_readable_while_there_is_news(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    struct pollfd poll_fd = {.fd = engine_client_fd(rig.client), .events = POLLIN};
    assert_int_equal(poll(&poll_fd, 1, 0), 0);
    int user = 0;
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 5, 1);
    submit.user = &user;
    engine_request_t *request = engine_rig_send(&rig, &submit);
    assert_int_equal(poll(&poll_fd, 1, 60000), 1);
    assert_ptr_equal(engine_client_wait(rig.client, 60000), request);
    assert_ptr_equal(engine_request_user(request), &user);
    engine_rig_wait(&rig, request);
    while (engine_client_next(rig.client) != NULL) {
    }
    assert_int_equal(poll(&poll_fd, 1, 0), 0);
    assert_null(engine_client_wait(rig.client, 0));
    engine_request_release(request);
    engine_rig_close(&rig);
}

static void stop_ids_end_an_answer_and_are_named(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    engine_request_t *whole = engine_rig_greedy(&rig, 8);
    const int32_t third = engine_request_answer(whole, 0).tokens[2];
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, 8);
    submit.sampling.stop_token_ids = &third;
    submit.sampling.n_stop_token_ids = 1;
    engine_request_t *stopped = NULL;
    engine_answer_t answer = run(&rig, &submit, &stopped);
    assert_int_equal(answer.finish, ENGINE_FINISH_STOP);
    assert_int_equal(answer.stop_token, third);
    assert_true(answer.n_tokens <= 3);
    engine_request_release(stopped);

    submit.sampling.min_tokens = 6;
    answer = run(&rig, &submit, &stopped);
    for (uint32_t i = 0; i < 6 && i < answer.n_tokens; i++) {
        assert_true(answer.tokens[i] != third);
    }
    assert_true(answer.n_tokens >= 6);
    engine_request_release(stopped);
    engine_request_release(whole);
    engine_rig_close(&rig);
}

static void end_tokens_end_an_answer_unless_ignored(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    const k_bias_t bias = {.token = EOS, .value = 1e4f};
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, 5);
    submit.sampling.logit_bias = &bias;
    submit.sampling.n_logit_bias = 1;
    engine_request_t *request = NULL;
    engine_answer_t answer = run(&rig, &submit, &request);
    assert_int_equal(answer.n_tokens, 5);
    assert_int_equal(answer.tokens[4], EOS);
    engine_request_release(request);

    submit.sampling.ignore_eos = false;
    answer = run(&rig, &submit, &request);
    assert_int_equal(answer.finish, ENGINE_FINISH_STOP);
    assert_int_equal(answer.n_tokens, 1);
    assert_int_equal(answer.stop_token, -1);
    engine_request_release(request);

    submit.sampling.min_tokens = 3;
    answer = run(&rig, &submit, &request);
    assert_int_equal(answer.n_tokens, 4);
    assert_int_equal(answer.tokens[3], EOS);
    engine_request_release(request);
    engine_rig_close(&rig);
}

static void masks_forbid_what_is_not_allowed_and_bad_words(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    const int32_t allowed[] = {100, 200, 300};
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, 12);
    submit.sampling.allowed_token_ids = allowed;
    submit.sampling.n_allowed_token_ids = 3;
    submit.sampling.temperature = 1.5f;
    engine_request_t *request = NULL;
    engine_answer_t answer = run(&rig, &submit, &request);
    for (uint32_t i = 0; i < answer.n_tokens; i++) {
        assert_int_equal(answer.tokens[i] % 100, 0);
    }
    engine_request_release(request);

    /* Never 100 at all, and never 200 after 300: so 200s, then 300s. */
    const int32_t words[] = {100, 300, 200};
    const uint32_t lengths[] = {1, 2};
    submit.sampling.bad_words = words;
    submit.sampling.bad_word_lengths = lengths;
    submit.sampling.n_bad_words = 2;
    answer = run(&rig, &submit, &request);
    for (uint32_t i = 0; i < answer.n_tokens; i++) {
        assert_true(answer.tokens[i] == 200 || answer.tokens[i] == 300);
        assert_false(i > 0 && answer.tokens[i - 1] == 300 && answer.tokens[i] == 200);
    }
    engine_request_release(request);

    /* Nothing is left. */
    submit.sampling.n_allowed_token_ids = 1;
    answer = run(&rig, &submit, &request);
    assert_int_equal(answer.finish, ENGINE_FINISH_CONSTRAINT);
    assert_non_null(strstr(answer.reason, "allowed_token_ids"));
    engine_request_release(request);
    assert_true(engine_is_healthy(rig.engine));
    engine_rig_close(&rig);
}

static void logprobs_come_with_the_tokens(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 4);
    submit.sampling.wants_logprobs = true;
    submit.sampling.n_top_logprobs = 3;
    submit.sampling.wants_prompt_logprobs = true;
    submit.sampling.n_prompt_top_logprobs = 2;
    engine_request_t *request = NULL;
    const engine_answer_t answer = run(&rig, &submit, &request);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(answer.logprobs[i].chosen.token, answer.tokens[i]);
        assert_int_equal(answer.logprobs[i].chosen.rank, 1);
        assert_int_equal(answer.logprobs[i].n_top, 3);
        assert_int_equal(answer.logprobs[i].top[0].token, answer.tokens[i]);
    }
    const k_sampled_t *about_prompt = engine_request_prompt_logprobs(request);
    assert_non_null(about_prompt);
    for (uint32_t i = 1; i < 40; i++) {
        assert_int_equal(about_prompt[i].chosen.token, engine_rig_prompt[i]);
        assert_true(about_prompt[i].chosen.logprob < 0);
        assert_int_equal(about_prompt[i].n_top, 2);
    }
    engine_request_release(request);
    engine_rig_close(&rig);
}

static void no_answer_wanted_computes_the_prompt_alone(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 0);
    submit.sampling.wants_prompt_logprobs = true;
    engine_request_t *request = NULL;
    engine_answer_t answer = run(&rig, &submit, &request);
    assert_int_equal(answer.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(answer.n_tokens, 0);
    assert_non_null(engine_request_prompt_logprobs(request));
    engine_request_release(request);
    submit.n_prompt = 1;
    answer = run(&rig, &submit, &request);
    assert_int_equal(answer.finish, ENGINE_FINISH_LENGTH);
    engine_request_release(request);
    engine_rig_close(&rig);
}

static void samples_differ_by_seed_and_repeat_by_seed(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, 16);
    submit.n = 3;
    submit.sampling.temperature = 2.0f;
    submit.sampling.seed = 41;
    engine_request_t *many = NULL, *one = NULL;
    (void)run(&rig, &submit, &many);
    submit.n = 1;
    submit.sampling.seed = 43;
    const engine_answer_t alone = run(&rig, &submit, &one);
    const engine_answer_t third = engine_request_answer(many, 2);
    assert_memory_equal(alone.tokens, third.tokens, 16 * sizeof(int32_t));
    assert_memory_not_equal(alone.tokens, engine_request_answer(many, 0).tokens,
                            16 * sizeof(int32_t));
    engine_request_release(one);
    engine_request_release(many);
    engine_rig_close(&rig);
}

static void a_prompt_computed_once_is_found_again(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 4);
    engine_request_t *first = NULL, *second = NULL, *salted = NULL;
    const engine_answer_t a = run(&rig, &submit, &first);
    const engine_answer_t b = run(&rig, &submit, &second);
    assert_memory_equal(a.tokens, b.tokens, 4 * sizeof(int32_t));
    assert_int_equal(engine_request_timings(first).cached_tokens, 0);
    assert_int_equal(engine_request_timings(second).cached_tokens, 32);
    submit.cache_salt = "someone else";
    (void)run(&rig, &submit, &salted);
    assert_int_equal(engine_request_timings(salted).cached_tokens, 0);
    engine_request_release(first);
    engine_request_release(second);
    engine_request_release(salted);
    assert_int_equal(engine_rig_wait_idle(&rig).prefix_hits, 32);

    assert_status(engine_reset_prefix_cache(rig.engine, false, false), WEFT_OK);
    submit.cache_salt = NULL;
    (void)run(&rig, &submit, &first);
    assert_int_equal(engine_request_timings(first).cached_tokens, 0);
    engine_request_release(first);
    engine_rig_close(&rig);
}

/* A block named in decode, by the engine, is found by the name that a submitting thread gives it. */
static void every_hash_algorithm_finds_prompts_and_answers_again(void **state)
{
    (void)state;
    static const char *const algos[] = {"sha256", "sha256_cbor", "xxhash", "xxhash_cbor"};
    for (size_t i = 0; i < sizeof(algos) / sizeof(algos[0]); i++) {
        engine_rig_t rig;
        engine_options_t options = engine_rig_options();
        options.hash_algo = algos[i];
        engine_rig_open(&rig, ENGINE_RIG_MODEL, &options);
        engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 20);
        engine_request_t *first = NULL, *second = NULL;
        const engine_answer_t answer = run(&rig, &submit, &first);
        assert_int_equal(answer.n_tokens, 20);
        int32_t turn[60];
        memcpy(turn, engine_rig_prompt, 40 * sizeof(int32_t));
        memcpy(turn + 40, answer.tokens, 20 * sizeof(int32_t));
        submit = engine_rig_submit(turn, 60, 4);
        (void)run(&rig, &submit, &second);
        assert_int_equal(engine_request_timings(second).cached_tokens, 48);
        engine_request_release(first);
        engine_request_release(second);
        engine_rig_close(&rig);
    }
}

static void bad_requests_name_their_field(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    const int32_t outside[2] = {1, VOCAB};
    const uint32_t empty_word = 0;
    const engine_submit_t good = engine_rig_submit(engine_rig_prompt, 10, 5);
    static char long_salt[KV_EXTRA_MAX_BYTES + 1];
    memset(long_salt, 's', sizeof(long_salt) - 1);
    engine_submit_t bad[12];
    for (size_t i = 0; i < 12; i++) {
        bad[i] = good;
    }
    bad[0].prompt = outside;
    bad[0].n_prompt = 2;
    bad[1].n = 0;
    bad[2].sampling.top_p = 0;
    bad[3].sampling.temperature = -1;
    bad[4].sampling.min_tokens = 6;
    bad[5].sampling.n_top_logprobs = K_MAX_LOGPROBS + 1;
    bad[6].sampling.repetition_penalty = 0;
    bad[7].sampling.bad_word_lengths = &empty_word;
    bad[7].sampling.n_bad_words = 1;
    bad[8].sampling.min_p = (float)-(0.0 / 0.0);
    bad[9].n_prompt = 0;
    bad[10].cache_salt = "";
    bad[11].cache_salt = long_salt;
    static const char *const fields[] = {"320",
                                         "n must",
                                         "top_p",
                                         "temperature",
                                         "min_tokens",
                                         "logprobs",
                                         "repetition_penalty",
                                         "bad_words",
                                         "min_p",
                                         "prompt",
                                         "cache_salt is empty",
                                         "cache_salt has 12288 bytes"};
    for (size_t i = 0; i < 12; i++) {
        weft_diag_t diag = {0};
        engine_request_t *request = NULL;
        assert_status(engine_submit(rig.engine, rig.client, &bad[i], &diag, &request),
                      WEFT_ERR_INVALID);
        assert_non_null(strstr(diag.text, fields[i]));
        assert_null(request);
    }
    engine_rig_close(&rig);
}

static void prompts_over_the_context_are_refused_and_answers_end_there(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_options_t options = engine_rig_options();
    options.max_model_len = 32;
    engine_rig_open(&rig, ENGINE_RIG_MODEL, &options);
    assert_int_equal(engine_max_context(rig.engine), 32);
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 32, 1);
    engine_request_t *request = NULL;
    weft_diag_t diag = {0};
    assert_status(engine_submit(rig.engine, rig.client, &submit, &diag, &request),
                  WEFT_ERR_TOO_LARGE);
    assert_non_null(strstr(diag.text, "32"));
    submit.n_prompt = 30;
    submit.sampling.max_tokens = UINT32_MAX;
    const engine_answer_t answer = run(&rig, &submit, &request);
    assert_int_equal(answer.n_tokens, 2);
    assert_int_equal(answer.finish, ENGINE_FINISH_LENGTH);
    engine_request_release(request);
    engine_rig_close(&rig);
}

static void what_does_not_fit_says_what_to_change(void **state)
{
    (void)state;
    struct {
        engine_options_t options;
        weft_status_t status;
        const char *text;
    } cases[] = {
        {engine_rig_options(), WEFT_ERR_INVALID, "--max-model-len 257: the model allows 256"},
        {engine_rig_options(), WEFT_ERR_NO_MEMORY, "--kv-cache-memory-bytes"},
        {engine_rig_options(), WEFT_ERR_NO_MEMORY, "--kv-cache-memory-bytes"},
        {engine_rig_options(), WEFT_ERR_INVALID, "--block-size 12"},
        {engine_rig_options(), WEFT_ERR_INVALID, "--kv-cache-dtype int3"},
        {engine_rig_options(), WEFT_ERR_INVALID, "--max-num-seqs 0"},
        {engine_rig_options(), WEFT_ERR_UNSUPPORTED, "avx7"},
        {engine_rig_options(), WEFT_ERR_INVALID,
         "--prefix-caching-hash-algo: unknown hash algorithm 'builtin', there are: sha256"},
        {engine_rig_options(), WEFT_ERR_INVALID, "--kv-cache-layout: KV layout NHD: unknown"},
        {engine_rig_options(), WEFT_ERR_UNSUPPORTED, "--kv-cache-layout LBHNC: its blocks"},
    };
    cases[0].options.max_model_len = 257;
    cases[1].options.max_model_len = 200;
    cases[1].options.num_gpu_blocks = 2;
    cases[2].options.num_gpu_blocks = 1 << 30;
    cases[3].options.block_size = 12;
    cases[4].options.kv_cache_dtype = "int3";
    cases[5].options.max_num_seqs = 0;
    cases[6].options.cpu_isa = "avx7";
    cases[7].options.hash_algo = "builtin";
    cases[8].options.kv_cache_layout = "NHD";
    cases[9].options.kv_cache_layout = "LBHNC";
    cases[9].options.kv_host_bytes = 1 << 20;
    model_source_t *source = NULL;
    assert_status(
        model_source_open(WEFT_TEST_VECTORS "/tiny-models/" ENGINE_RIG_MODEL, NULL, &source),
        WEFT_OK);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        weft_diag_t diag = {0};
        engine_t *engine = NULL;
        assert_status(engine_create(&cases[i].options, source, NULL, NULL, &diag, &engine),
                      cases[i].status);
        if (strstr(diag.text, cases[i].text) == NULL) {
            fail_msg("\"%s\" lacks \"%s\"", diag.text, cases[i].text);
        }
    }
    model_source_close(source);
}

static void the_context_shrinks_to_what_the_cache_holds(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_options_t options = engine_rig_options();
    options.num_gpu_blocks = 3;
    engine_rig_open(&rig, ENGINE_RIG_MODEL, &options);
    assert_int_equal(engine_max_context(rig.engine), 48);
    engine_rig_close(&rig);
    options.num_gpu_blocks = 0;
    engine_rig_open(&rig, ENGINE_RIG_MODEL, &options);
    assert_int_equal(engine_max_context(rig.engine), 256);
    assert_int_equal(engine_stats(rig.engine).total_blocks, 8 * 16);
    engine_rig_close(&rig);
}

static void creation_survives_no_memory(void **state)
{
    (void)state;
    const engine_options_t options = engine_rig_options();
    model_source_t *source = NULL;
    assert_status(
        model_source_open(WEFT_TEST_VECTORS "/tiny-models/" ENGINE_RIG_MODEL, NULL, &source),
        WEFT_OK);
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    const size_t live = weft_alloc_live_bytes();
    for (uint64_t n = 1; status == WEFT_ERR_NO_MEMORY; n++) {
        weft_diag_t diag = {0};
        engine_t *engine = NULL;
        weft_alloc_fail_nth(n);
        status = engine_create(&options, source, NULL, NULL, &diag, &engine);
        weft_alloc_fail_nth(0);
        engine_destroy(engine);
        assert_true(n < 1000);
        assert_int_equal(weft_alloc_live_bytes(), live);
    }
    assert_status(status, WEFT_OK);
    model_source_close(source);
}

static void submitting_survives_no_memory(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_rig_open_small(&rig);
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 4);
    submit.n = 2;
    engine_request_t *request = NULL;
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    for (uint64_t n = 1; status == WEFT_ERR_NO_MEMORY; n++) {
        weft_diag_t diag = {0};
        weft_alloc_fail_nth(n);
        status = engine_submit(rig.engine, rig.client, &submit, &diag, &request);
        weft_alloc_fail_nth(0);
        assert_true(n < 10);
    }
    engine_rig_wait(&rig, request);
    assert_int_equal(engine_request_answer(request, 1).n_tokens, 4);
    engine_request_release(request);
    engine_rig_wait_idle(&rig);
    engine_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_is_answered_and_timed),
        cmocka_unit_test(an_idle_engine_sleeps_and_shows_zero),
        cmocka_unit_test(a_device_without_a_clock_counts_no_time),
        cmocka_unit_test(the_descriptor_is_readable_while_there_is_news),
        cmocka_unit_test(stop_ids_end_an_answer_and_are_named),
        cmocka_unit_test(end_tokens_end_an_answer_unless_ignored),
        cmocka_unit_test(masks_forbid_what_is_not_allowed_and_bad_words),
        cmocka_unit_test(logprobs_come_with_the_tokens),
        cmocka_unit_test(no_answer_wanted_computes_the_prompt_alone),
        cmocka_unit_test(samples_differ_by_seed_and_repeat_by_seed),
        cmocka_unit_test(a_prompt_computed_once_is_found_again),
        cmocka_unit_test(every_hash_algorithm_finds_prompts_and_answers_again),
        cmocka_unit_test(bad_requests_name_their_field),
        cmocka_unit_test(prompts_over_the_context_are_refused_and_answers_end_there),
        cmocka_unit_test(what_does_not_fit_says_what_to_change),
        cmocka_unit_test(the_context_shrinks_to_what_the_cache_holds),
        cmocka_unit_test(creation_survives_no_memory),
        cmocka_unit_test(submitting_survives_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
