/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One engine prefills, another decodes from its blocks, over the fabric: each answers bit for bit as
 * one engine alone, disturbed at random on both sides.
 */
#include "base/log.h"
#include "runtime/engine/engine_priv.h"
#include "tests/support/engine_rig.h"
#include "tests/support/random.h"
#include "tests/support/zmq_tsan.h"

enum { CONTEXT = 96, MAX_REQUESTS = 8, VOCAB = 320 };

static const char producer[] = "{\"kv_connector\":\"WeftConnector\",\"kv_role\":\"kv_producer\"}";
static const char consumer[] = "{\"kv_connector\":\"WeftConnector\",\"kv_role\":\"kv_consumer\"}";

typedef struct split_case {
    engine_submit_t submit;
    int32_t prompt[CONTEXT];
    int32_t tokens[3][CONTEXT]; /* as answered alone */
    uint32_t n_tokens[3];
} split_case_t;

typedef struct split {
    test_random_t random;
    engine_rig_t prefill;
    engine_rig_t decode;
    split_case_t cases[MAX_REQUESTS];
    uint32_t n_cases;
} split_t;

static int set_ports(void **state)
{
    (void)state;
    setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1", 1);
    setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", "0", 1);
    weft_log_set_level(WEFT_LOG_WARN);
    return 0;
}

static engine_options_t options_of(const char *config, const char *layout, uint32_t block_size)
{
    engine_options_t options = engine_rig_options();
    options.max_model_len = CONTEXT;
    options.kv_transfer_config = config;
    options.kv_cache_layout = layout;
    options.block_size = block_size;
    options.num_gpu_blocks = 64 * 16 / block_size;
    return options;
}

static void open_both(split_t *split)
{
    const engine_options_t p = options_of(producer, "BHLNC", 16);
    const engine_options_t d = options_of(consumer, "BHLNC", 16);
    engine_rig_open(&split->prefill, ENGINE_RIG_MODEL, &p);
    engine_rig_open(&split->decode, ENGINE_RIG_MODEL, &d);
}

static void close_both(split_t *split)
{
    (void)engine_rig_wait_idle(&split->prefill); /* no lease is left */
    (void)engine_rig_wait_idle(&split->decode);
    engine_rig_close(&split->prefill);
    engine_rig_close(&split->decode);
}

/* The prefill leg; what its answer carries, in params (to be freed). */
static void prefill(split_t *split, const engine_submit_t *submit, kv_transfer_params_t *params)
{
    const kv_transfer_params_t asked = {
        .do_remote_decode = true, .tp_size = 1, .dcp_size = 1, .pp_size = 1};
    engine_submit_t leg = *submit;
    leg.n = 1;
    leg.sampling.max_tokens = 1;
    leg.sampling.min_tokens = 0;
    leg.transfer = &asked;
    engine_request_t *request = engine_rig_send(&split->prefill, &leg);
    assert_null(engine_rig_is_done(request) ? NULL : engine_request_transfer(request));
    engine_rig_wait(&split->prefill, request);
    assert_non_null(engine_request_transfer(request));
    assert_status(kv_transfer_params_copy(engine_request_transfer(request), params), WEFT_OK);
    engine_request_release(request);
}

static engine_request_t *send_decode(split_t *split, const engine_submit_t *submit,
                                     const kv_transfer_params_t *params)
{
    engine_submit_t leg = *submit;
    leg.transfer = params;
    return engine_rig_send(&split->decode, &leg);
}

static void assert_answer(const engine_request_t *request, uint32_t sample, const int32_t *tokens,
                          uint32_t n)
{
    const engine_answer_t answer = engine_request_answer(request, sample);
    assert_int_equal(answer.n_tokens, n);
    assert_memory_equal(answer.tokens, tokens, n * sizeof(int32_t));
}

static void a_decoded_request_answers_as_the_prefiller_would(void **state)
{
    (void)state;
    split_t split = {.n_cases = 0};
    kv_transfer_params_t params;
    open_both(&split);
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 12);
    prefill(&split, &submit, &params);
    assert_int_equal(params.remote_num_tokens, 40);
    assert_int_equal(params.n_blocks, 3);
    engine_request_t *there = send_decode(&split, &submit, &params);
    engine_request_t *here = engine_rig_send(&split.prefill, &submit);
    engine_rig_wait(&split.decode, there);
    engine_rig_wait(&split.prefill, here);
    const engine_answer_t answer = engine_request_answer(here, 0);
    assert_answer(there, 0, answer.tokens, 12);
    const engine_timings_t timings = engine_request_timings(there);
    assert_int_equal(timings.pulled_tokens, 39);
    assert_int_equal(timings.cached_tokens, 39);
    assert_int_equal(timings.cached_tokens_from[KV_TIER_device], 0);
    assert_int_equal(engine_stats(split.decode.engine).pull_hits, 39);
    assert_null(engine_request_transfer(there));
    engine_request_release(there);
    engine_request_release(here);
    kv_transfer_params_fini(&params);
    close_both(&split);
}

static void what_is_declined_is_free_at_once(void **state)
{
    (void)state;
    split_t split = {.n_cases = 0};
    kv_transfer_params_t params;
    open_both(&split);
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 12);
    prefill(&split, &submit, &params);
    assert_true(kv_pool_held_blocks(kv_store_pool(split.prefill.engine->store)) == 3);
    engine_decline(split.decode.engine, &params);
    kv_transfer_params_fini(&params);
    close_both(&split);
}

static void an_abandoned_decode_frees_both_sides(void **state)
{
    (void)state;
    split_t split = {.n_cases = 0};
    kv_transfer_params_t params;
    open_both(&split);
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 50);
    for (int i = 0; i < 20; i++) {
        prefill(&split, &submit, &params);
        engine_request_release(send_decode(&split, &submit, &params));
        kv_transfer_params_fini(&params);
    }
    close_both(&split);
}

/* Nobody prefills: it is computed once that is said. */
static void a_pull_that_is_given_up_is_computed_here(void **state)
{
    (void)state;
    split_t split = {.n_cases = 0};
    open_both(&split);
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 12);
    kv_transfer_params_t params = {
        .do_remote_prefill = true,
        .transfer_id = "never",
        .remote_host = "127.0.0.1",
        .has_port = true,
        .remote_port = kv_transfer_port(engine_transfer(split.prefill.engine)),
        .tp_size = 1,
        .dcp_size = 1,
        .pp_size = 1,
    };
    engine_request_t *there = send_decode(&split, &submit, &params);
    engine_give_up_pull(there);
    engine_give_up_pull(there);
    engine_request_t *here = engine_rig_send(&split.prefill, &submit);
    engine_rig_wait(&split.decode, there);
    engine_rig_wait(&split.prefill, here);
    assert_answer(there, 0, engine_request_answer(here, 0).tokens, 12);
    assert_int_equal(engine_request_timings(there).pulled_tokens, 0);
    engine_request_release(there);
    engine_request_release(here);
    close_both(&split);
}

/* Both are told at once: blocks come as they fill. */
static void a_decode_told_ahead_takes_blocks_as_they_fill(void **state)
{
    (void)state;
    split_t split = {.n_cases = 0};
    open_both(&split);
    const kv_transfer_params_t asked = {
        .do_remote_decode = true, .transfer_id = "both", .tp_size = 1, .dcp_size = 1, .pp_size = 1};
    const kv_transfer_params_t params = {
        .do_remote_prefill = true,
        .transfer_id = "both",
        .remote_host = "127.0.0.1",
        .has_port = true,
        .remote_port = kv_transfer_port(engine_transfer(split.prefill.engine)),
        .tp_size = 1,
        .dcp_size = 1,
        .pp_size = 1,
    };
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 12);
    engine_request_t *there = send_decode(&split, &submit, &params);
    submit.transfer = &asked;
    engine_request_t *here = engine_rig_send(&split.prefill, &submit);
    engine_rig_wait(&split.decode, there);
    engine_rig_wait(&split.prefill, here);
    assert_answer(there, 0, engine_request_answer(here, 0).tokens, 12);
    assert_int_equal(engine_request_timings(there).pulled_tokens, 39);
    engine_request_release(there);
    engine_request_release(here);
    close_both(&split);
}

/* ---- other types of cache ---------------------------------------------------------------------- */

/*
 * The request as the prefiller answers it alone, and as a worker with another type of cache does from its
 * blocks: the same tokens, at least as long as each leads by the margin, in nats.
 */
static void check_conversion(const char *from, const char *to, uint32_t to_block_size, float margin)
{
    enum { ANSWER = 12 };
    split_t split = {.n_cases = 0};
    kv_transfer_params_t params;
    engine_options_t p = options_of(producer, "BHLNC", 16);
    engine_options_t d = options_of(consumer, "BLHNC", to_block_size);
    p.kv_cache_dtype = from;
    d.kv_cache_dtype = to;
    engine_rig_open(&split.prefill, ENGINE_RIG_MODEL, &p);
    engine_rig_open(&split.decode, ENGINE_RIG_MODEL, &d);
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, ANSWER);
    submit.sampling.n_top_logprobs = 2;
    submit.sampling.wants_logprobs = true;
    prefill(&split, &submit, &params);
    engine_request_t *there = send_decode(&split, &submit, &params);
    engine_request_t *here = engine_rig_send(&split.prefill, &submit);
    engine_rig_wait(&split.decode, there);
    engine_rig_wait(&split.prefill, here);
    const engine_answer_t expected = engine_request_answer(here, 0);
    const engine_answer_t answer = engine_request_answer(there, 0);
    assert_int_equal(engine_request_timings(there).pulled_tokens, 39);
    assert_int_equal(answer.n_tokens, ANSWER);
    uint32_t same = 0;
    while (same < ANSWER && answer.tokens[same] == expected.tokens[same]) {
        same++;
    }
    if (same < ANSWER) {
        const k_sampled_t *choice = &expected.logprobs[same];
        const float lead = choice->top[0].logprob - choice->top[1].logprob;
        print_message("%s to %s: token %u, which leads by %g, differs\n", from, to, same,
                      (double)lead);
        assert_true(lead < margin);
    }
    assert_true(same > 0);
    engine_request_release(there);
    engine_request_release(here);
    kv_transfer_params_fini(&params);
    close_both(&split);
}

static void a_cache_of_another_type_takes_the_blocks_over(void **state)
{
    (void)state;
    check_conversion("bf16", "int8", 16, 0.3f);
    check_conversion("bf16", "fp8", 16, 1.2f);
    check_conversion("int8", "f16", 8, 0.3f);
    check_conversion("int8", "int8", 32, 0);
}

static void a_policy_that_fails_says_why(void **state)
{
    (void)state;
    engine_rig_t rig;
    engine_options_t options = options_of(consumer, "BHLNC", 16);
    options.kv_load_failure_policy = "fail";
    engine_rig_open(&rig, ENGINE_RIG_MODEL, &options);
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 12);
    uint32_t blocks[3] = {0, 1, 2};
    const kv_transfer_params_t params = {
        .do_remote_prefill = true,
        .has_block_ids = true,
        .has_port = true,
        .remote_port = 1,
        .remote_engine_id = "nobody",
        .remote_request_id = "nothing",
        .remote_host = "127.0.0.1",
        .blocks = blocks,
        .n_blocks = 3,
        .n_groups = 1,
        .group_blocks = {3},
        .tp_size = 1,
        .dcp_size = 1,
        .pp_size = 1,
    };
    submit.transfer = &params;
    engine_request_t *request = engine_rig_send(&rig, &submit);
    engine_rig_wait(&rig, request);
    const engine_answer_t answer = engine_request_answer(request, 0);
    assert_int_equal(answer.finish, ENGINE_FINISH_ERROR);
    assert_non_null(answer.reason);
    engine_request_release(request);
    (void)engine_rig_wait_idle(&rig);
    engine_rig_close(&rig);
}

static void bad_settings_are_named(void **state)
{
    const struct {
        const char *config;
        const char *policy;
        const char *text;
    } cases[] = {
        {"{", "recompute", "--kv-transfer-config"},
        {"{\"kv_connector\":\"Pigeon\",\"kv_role\":\"kv_both\"}", "recompute", "Pigeon"},
        {producer, "hope", "--kv-load-failure-policy hope"},
    };
    model_source_t *source = NULL;
    (void)state;
    assert_status(
        model_source_open(WEFT_TEST_VECTORS "/tiny-models/" ENGINE_RIG_MODEL, NULL, &source),
        WEFT_OK);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(cases); i++) {
        engine_options_t options = options_of(cases[i].config, "BHLNC", 16);
        weft_diag_t diag = {0};
        engine_t *engine = NULL;
        options.kv_load_failure_policy = cases[i].policy;
        assert_true(engine_create(&options, source, NULL, NULL, &diag, &engine) < 0);
        if (strstr(diag.text, cases[i].text) == NULL) {
            fail_msg("\"%s\" lacks \"%s\"", diag.text, cases[i].text);
        }
    }
    model_source_close(source);
}

/* ---- random mixes ---------------------------------------------------------------------------- */

static void fill_cases(split_t *split)
{
    test_random_t *random = &split->random;
    split->n_cases = test_random_between(random, 2, MAX_REQUESTS);
    for (uint32_t i = 0; i < split->n_cases; i++) {
        split_case_t *c = &split->cases[i];
        const uint32_t n_prompt = test_random_between(random, 1, CONTEXT - 20);
        const uint32_t shared = test_random_below(random, n_prompt + 1);
        for (uint32_t k = 0; k < n_prompt; k++) {
            c->prompt[k] =
                k < shared ? (int32_t)(k * 37 % VOCAB) : (int32_t)test_random_below(random, VOCAB);
        }
        c->submit = engine_rig_submit(c->prompt, n_prompt, test_random_between(random, 1, 19));
        c->submit.n = test_random_below(random, 3) == 0 ? test_random_between(random, 2, 3) : 1;
        c->submit.sampling.temperature = test_random_below(random, 2) == 0 ? 0 : 1;
        c->submit.sampling.seed = test_random_u64(random) >> 1;
    }
}

static void answer_alone(split_t *split)
{
    engine_rig_t rig;
    engine_options_t options = options_of("", "BHLNC", 16);
    engine_rig_open(&rig, ENGINE_RIG_MODEL, &options);
    for (uint32_t i = 0; i < split->n_cases; i++) {
        split_case_t *c = &split->cases[i];
        engine_request_t *request = engine_rig_send(&rig, &c->submit);
        engine_rig_wait(&rig, request);
        for (uint32_t k = 0; k < c->submit.n; k++) {
            const engine_answer_t answer = engine_request_answer(request, k);
            c->n_tokens[k] = answer.n_tokens;
            memcpy(c->tokens[k], answer.tokens, answer.n_tokens * sizeof(int32_t));
        }
        engine_request_release(request);
    }
    engine_rig_close(&rig);
}

static void open_disturbed(split_t *split)
{
    static const char *const layouts[] = {"BHLNC", "BLHNC", "LBHNC"};
    test_random_t *random = &split->random;
    engine_rig_t *const rigs[] = {&split->prefill, &split->decode};
    const char *const configs[] = {producer, consumer};
    for (int i = 0; i < 2; i++) {
        engine_options_t options = options_of(configs[i], layouts[test_random_below(random, 3)],
                                              8u << test_random_below(random, 4));
        options.enable_prefix_caching = test_random_below(random, 4) > 0;
        options.max_num_batched_tokens = test_random_between(random, 8, 64);
        options.num_gpu_blocks = CONTEXT * 2 / options.block_size + test_random_below(random, 8);
        engine_rig_open(rigs[i], ENGINE_RIG_MODEL, &options);
        engine_set_chaos(rigs[i]->engine, test_random_u64(random) | 1);
    }
}

static uint64_t run_mix(split_t *split, uint64_t seed)
{
    engine_request_t *requests[MAX_REQUESTS];
    split->random = (test_random_t){seed};
    fill_cases(split);
    answer_alone(split);
    open_disturbed(split);
    for (uint32_t i = 0; i < split->n_cases; i++) {
        split_case_t *c = &split->cases[i];
        kv_transfer_params_t params;
        prefill(split, &c->submit, &params);
        requests[i] = send_decode(split, &c->submit, &params);
        kv_transfer_params_fini(&params);
    }
    for (uint32_t i = 0; i < split->n_cases; i++) {
        const split_case_t *c = &split->cases[i];
        engine_rig_wait(&split->decode, requests[i]);
        for (uint32_t k = 0; k < c->submit.n; k++) {
            assert_answer(requests[i], k, c->tokens[k], c->n_tokens[k]);
        }
        engine_request_release(requests[i]);
    }
    const uint64_t hits = engine_stats(split->decode.engine).pull_hits;
    close_both(split);
    return hits;
}

static void mixes_answer_as_one_engine(void **state)
{
    const uint64_t seed = test_seed(3);
    const uint32_t rounds = test_rounds(400);
    split_t *split = calloc(1, sizeof(*split));
    uint64_t hits = 0;
    (void)state;
    for (uint32_t i = 0; i < rounds; i++) {
        print_message("seed %llu\n", (unsigned long long)(seed + i));
        hits += run_mix(split, seed + i);
    }
    print_message("%llu tokens came from the prefiller\n", (unsigned long long)hits);
    assert_true(rounds == 1 || hits > 0);
    free(split);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_decoded_request_answers_as_the_prefiller_would),
        cmocka_unit_test(what_is_declined_is_free_at_once),
        cmocka_unit_test(an_abandoned_decode_frees_both_sides),
        cmocka_unit_test(a_pull_that_is_given_up_is_computed_here),
        cmocka_unit_test(a_decode_told_ahead_takes_blocks_as_they_fill),
        cmocka_unit_test(a_cache_of_another_type_takes_the_blocks_over),
        cmocka_unit_test(a_policy_that_fails_says_why),
        cmocka_unit_test(bad_settings_are_named),
        cmocka_unit_test(mixes_answer_as_one_engine),
    };
    return cmocka_run_group_tests(tests, set_ports, NULL);
}
