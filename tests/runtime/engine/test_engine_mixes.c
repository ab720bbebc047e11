/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Same request, same tokens, whatever else runs: random mixes of requests, disturbed at random,
 * answer bit for bit as each request does alone.
 */
#include "base/log.h"
#include "kernels/kernels.h"
#include "runtime/engine/engine_priv.h"
#include "tests/support/engine_rig.h"
#include "tests/support/random.h"
#include "tests/support/scratch_folder.h"

/* Also built for CUDA, emulated and for a GPU. */
#ifndef TEST_DEVICE
#define TEST_DEVICE           "cpu"
#define TEST_ROUNDS           200
#define SMALLEST_BLOCK        0 /* a power of two */
#define skip_without_device() ((void)0)
#else
#include "tests/cuda_emu/cuda_check.h"
#define SMALLEST_BLOCK        3
#define skip_without_device() cuda_skip_without_device()
#endif

enum { CONTEXT = 96, MAX_REQUESTS = 8, MAX_N = 3, VOCAB = 320, ENOUGH_ROUNDS = 8 };

static const char *const models[] = {
    "llama",           "qwen2",          "qwen3",           "mistral", "llama-rope-llama3",
    "qwen3-gguf-q8_0", "llama-gguf-f32", "gemma2",          "gemma3",  "granite",
    "olmo2",           "phi3",           "llama-fp8-block", "mixtral", "qwen3-moe",
    "gpt-oss-mxfp4",   "deepseek-v2",    "deepseek-v3",
};

typedef struct answer {
    uint32_t n_tokens;
    engine_finish_t finish;
    int32_t tokens[CONTEXT];
    k_sampled_t logprobs[CONTEXT];
    k_sampled_t prompt[CONTEXT];
} answer_t;

typedef struct request_case {
    engine_submit_t submit;
    int32_t prompt[CONTEXT];
    int32_t stop_id;
    k_bias_t bias[2];
    answer_t alone[MAX_N];
} request_case_t;

typedef struct mix {
    test_random_t random;
    engine_options_t options;
    const char *model;
    char folder[64]; /* of a disk tier */
    uint32_t n_cases;
    request_case_t cases[MAX_REQUESTS];
} mix_t;

static float pick(test_random_t *random, const float *values, uint32_t n)
{
    return values[test_random_below(random, n)];
}

static void fill_sampling(test_random_t *random, request_case_t *c)
{
    engine_sampling_t *s = &c->submit.sampling;
    s->temperature = pick(random, (const float[]){0, 0.7f, 1, 1.8f}, 4);
    s->top_p = pick(random, (const float[]){1, 1, 0.9f}, 3);
    s->min_p = pick(random, (const float[]){0, 0, 0.05f}, 3);
    s->top_k = (int32_t)test_random_below(random, 2) * 40;
    s->repetition_penalty = pick(random, (const float[]){1, 1, 1.3f}, 3);
    s->frequency_penalty = pick(random, (const float[]){0, 0, 0.6f}, 3);
    s->presence_penalty = pick(random, (const float[]){0, 0, -0.4f}, 3);
    s->seed = test_random_u64(random) >> 1;
    s->ignore_eos = test_random_below(random, 2) == 0;
    s->wants_logprobs = true;
    s->n_top_logprobs = test_random_below(random, 6);
    s->wants_prompt_logprobs = test_random_below(random, 5) == 0;
    s->n_prompt_top_logprobs = 2;
    s->min_tokens = test_random_below(random, 4) == 0 ? s->max_tokens / 2 : 0;
    c->stop_id = (int32_t)test_random_below(random, VOCAB);
    s->stop_token_ids = &c->stop_id;
    s->n_stop_token_ids = test_random_below(random, 2);
    /* With 12 an answer is one token most of the time, which drafts guess. */
    c->bias[0] = (k_bias_t){(int32_t)test_random_below(random, VOCAB),
                            pick(random, (const float[]){3, 3, 12}, 3)};
    c->bias[1] = (k_bias_t){(int32_t)test_random_below(random, VOCAB), -100};
    s->logit_bias = c->bias;
    s->n_logit_bias = test_random_below(random, 3);
}

/* Prompts begin alike, so that some find others' blocks. */
static void fill_case(test_random_t *random, request_case_t *c)
{
    const uint32_t n_prompt = test_random_between(random, 1, CONTEXT - 20);
    const uint32_t shared = test_random_below(random, n_prompt + 1);
    const uint32_t family = test_random_below(random, 2);
    for (uint32_t i = 0; i < n_prompt; i++) {
        c->prompt[i] = i < shared ? (int32_t)((i * 37 + family * 11) % VOCAB)
                                  : (int32_t)test_random_below(random, VOCAB);
    }
    c->submit = engine_rig_submit(c->prompt, n_prompt, test_random_below(random, 30));
    c->submit.n = test_random_below(random, 3) == 0 ? test_random_between(random, 2, MAX_N) : 1;
    c->submit.priority = test_random_below(random, 3);
    c->submit.pin_prompt = test_random_below(random, 6) == 0;
    fill_sampling(random, c);
}

static void fill_mix(mix_t *mix, uint64_t seed, const char *isa)
{
    static const char *const dtypes[] = {"f32", "f16", "bf16", "fp8", "int8"};
    mix->random = (test_random_t){seed};
    test_random_t *random = &mix->random;
    mix->model = models[test_random_below(random, WEFT_ARRAY_LEN(models))];
    mix->options = engine_rig_options();
    mix->options.device = TEST_DEVICE;
    mix->options.cpu_isa = isa;
    mix->options.max_model_len = CONTEXT;
    mix->options.kv_cache_dtype = dtypes[test_random_below(random, WEFT_ARRAY_LEN(dtypes))];
    const bool has_latents = strncmp(mix->model, "deepseek", 8) == 0;
    if (has_latents && strcmp(mix->options.kv_cache_dtype, "int8") == 0) {
        mix->options.kv_cache_dtype = "fp8"; /* engine_kv_dtype_check refuses int8 */
    }
    mix->n_cases = test_random_between(random, 2, MAX_REQUESTS);
    for (uint32_t i = 0; i < mix->n_cases; i++) {
        fill_case(random, &mix->cases[i]);
    }
}

static void keep_answer(const engine_request_t *request, uint32_t n_prompt, answer_t *answer)
{
    const engine_answer_t a = engine_request_answer(request, 0);
    const k_sampled_t *prompt = engine_request_prompt_logprobs(request);
    answer->n_tokens = a.n_tokens;
    answer->finish = a.finish;
    memcpy(answer->tokens, a.tokens, a.n_tokens * sizeof(int32_t));
    memcpy(answer->logprobs, a.logprobs, a.n_tokens * sizeof(k_sampled_t));
    if (prompt != NULL) {
        memcpy(answer->prompt, prompt, n_prompt * sizeof(k_sampled_t));
    }
}

static void answer_alone(mix_t *mix)
{
    engine_rig_t rig;
    engine_options_t options = mix->options;
    options.enable_prefix_caching = false;
    options.max_num_seqs = 1;
    engine_rig_open(&rig, mix->model, &options);
    for (uint32_t i = 0; i < mix->n_cases; i++) {
        request_case_t *c = &mix->cases[i];
        for (uint32_t k = 0; k < c->submit.n; k++) {
            engine_submit_t submit = c->submit;
            submit.n = 1;
            submit.sampling.seed += k;
            engine_request_t *request = engine_rig_send(&rig, &submit);
            engine_rig_wait(&rig, request);
            keep_answer(request, submit.n_prompt, &c->alone[k]);
            engine_request_release(request);
        }
    }
    engine_rig_close(&rig);
}

static void assert_logprobs_equal(const k_sampled_t *a, const k_sampled_t *b)
{
    assert_memory_equal(&a->chosen, &b->chosen, sizeof(a->chosen));
    assert_int_equal(a->n_top, b->n_top);
    assert_memory_equal(a->top, b->top, a->n_top * sizeof(a->top[0]));
}

static void assert_answers_equal(const request_case_t *c, const engine_request_t *request)
{
    for (uint32_t k = 0; k < c->submit.n; k++) {
        const answer_t *alone = &c->alone[k];
        const engine_answer_t mixed = engine_request_answer(request, k);
        assert_int_equal(mixed.finish, alone->finish);
        assert_int_equal(mixed.n_tokens, alone->n_tokens);
        assert_memory_equal(mixed.tokens, alone->tokens, alone->n_tokens * sizeof(int32_t));
        for (uint32_t i = 0; i < alone->n_tokens; i++) {
            assert_logprobs_equal(&mixed.logprobs[i], &alone->logprobs[i]);
        }
    }
    for (uint32_t i = 1; c->submit.sampling.wants_prompt_logprobs && i < c->submit.n_prompt; i++) {
        assert_logprobs_equal(&engine_request_prompt_logprobs(request)[i], &c->alone[0].prompt[i]);
    }
}

/* Room for one whole sequence and little more, so that preemption is also in earnest. */
static engine_options_t tight_options(mix_t *mix)
{
    static const char *const layouts[] = {"BHLNC", "BHLNC", "BLHNC", "LBHNC"};
    static const char *const drafts[] = {
        "",
        "{\"method\": \"ngram\", \"num_speculative_tokens\": 3, \"prompt_lookup_min\": 1}",
        "{\"method\": \"ngram\", \"num_speculative_tokens\": 16, \"prompt_lookup_min\": 1, "
        "\"prompt_lookup_max\": 4}",
        "{\"model\": \"" WEFT_TEST_VECTORS "/tiny-models/llama\", \"num_speculative_tokens\": 4}",
        "{\"model\": \"" WEFT_TEST_VECTORS "/tiny-models/llama-gguf-q8_0/model.gguf\", "
        "\"num_speculative_tokens\": 11, \"max_model_len\": 64}",
    };
    test_random_t *random = &mix->random;
    engine_options_t options = mix->options;
    options.block_size = 1u << test_random_between(random, SMALLEST_BLOCK, 5);
    options.num_gpu_blocks = CONTEXT / options.block_size + test_random_below(random, 12);
    options.max_num_seqs = test_random_between(random, 1, 6);
    options.max_num_batched_tokens = test_random_between(random, 6, 64);
    options.enable_prefix_caching = test_random_below(random, 4) > 0;
    options.threads = test_random_between(random, 1, 2);
    options.speculative_config = drafts[test_random_below(random, WEFT_ARRAY_LEN(drafts))];
    options.step_time_target = test_random_below(random, 3) * 1.5;
    options.kv_pin_quota = test_random_below(random, 3) * 0.25;
    options.kv_cache_layout = layouts[test_random_below(random, WEFT_ARRAY_LEN(layouts))];
    if (strcmp(options.kv_cache_layout, "LBHNC") == 0) {
        return options; /* its blocks are in pieces: no tiers */
    }
    options.kv_host_bytes =
        test_random_below(random, 2) * test_random_between(random, 50000, 500000);
    if (test_random_below(random, 3) == 0) {
        options.kv_disk_path = mix->folder;
        options.kv_disk_bytes = 4 << 20;
        options.kv_disk_admission = test_random_below(random, 2) == 0 ? "all" : "reuse";
    }
    return options;
}

static engine_stats_t answer_mixed(mix_t *mix)
{
    engine_rig_t rig;
    engine_request_t *requests[2 * MAX_REQUESTS];
    scratch_folder_make(mix->folder, sizeof(mix->folder));
    const engine_options_t options = tight_options(mix);
    engine_rig_open(&rig, mix->model, &options);
    engine_set_chaos(rig.engine, test_random_u64(&mix->random) | 1);
    /* Twice, so that the second round finds blocks of the first. */
    const uint32_t n = 2 * mix->n_cases;
    for (uint32_t i = 0; i < n; i++) {
        requests[i] = engine_rig_send(&rig, &mix->cases[i % mix->n_cases].submit);
        if (test_random_below(&mix->random, 4) == 0) {
            engine_rig_wait(&rig, requests[i]);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        engine_rig_wait(&rig, requests[i]);
        assert_answers_equal(&mix->cases[i % mix->n_cases], requests[i]);
        engine_request_release(requests[i]);
    }
    const engine_stats_t stats = engine_rig_wait_idle(&rig);
    engine_rig_close(&rig);
    scratch_folder_remove(mix->folder);
    return stats;
}

/* What came of the mixed engines. */
typedef struct sums {
    uint64_t preemptions;
    uint64_t hits;
    uint64_t from_host;
    uint64_t from_disk;
    uint64_t drafted;
    uint64_t accepted; /* first ones of their draft */
} sums_t;

static void check_mix(mix_t *mix, uint64_t seed, const char *isa, sums_t *sums)
{
    fill_mix(mix, seed, isa);
    print_message("seed %llu %s %s %s\n", (unsigned long long)seed, mix->model, TEST_DEVICE, isa);
    answer_alone(mix);
    const engine_stats_t stats = answer_mixed(mix);
    sums->preemptions += stats.preemptions;
    sums->hits += stats.prefix_hits;
    sums->from_host += stats.store.tiers[KV_TIER_host].hit_blocks;
    sums->from_disk += stats.store.tiers[KV_TIER_disk].hit_blocks;
    sums->drafted += stats.draft_tokens;
    sums->accepted += stats.accepted[0];
}

static void check_mix_everywhere(mix_t *mix, uint64_t seed, sums_t *sums)
{
    if (strcmp(TEST_DEVICE, "cpu") != 0) {
        check_mix(mix, seed, "auto", sums);
        return;
    }
    for (const k_ops_t *const *ops = k_ops_all(); *ops != NULL; ops++) {
        if ((*ops)->is_supported()) {
            check_mix(mix, seed, (*ops)->name, sums);
        }
    }
}

static void mixes_answer_as_each_request_alone(void **state)
{
    (void)state;
    const uint64_t seed = test_seed(1);
    const uint32_t rounds = test_rounds(TEST_ROUNDS);
    mix_t *mix = calloc(1, sizeof(*mix));
    sums_t sums = {0};
    weft_log_set_level(WEFT_LOG_WARN);
    for (uint32_t i = 0; i < rounds; i++) {
        check_mix_everywhere(mix, seed + i, &sums);
    }
    print_message("%llu preemptions, %llu tokens found in the cache, %llu blocks read from the "
                  "host, %llu from the disk, %llu drafted, %llu of them taken\n",
                  (unsigned long long)sums.preemptions, (unsigned long long)sums.hits,
                  (unsigned long long)sums.from_host, (unsigned long long)sums.from_disk,
                  (unsigned long long)sums.drafted, (unsigned long long)sums.accepted);
    /* The few rounds of an emulated device may lack the one or other; a guess is seldom right. */
    assert_true(rounds < ENOUGH_ROUNDS ||
                (sums.preemptions > 0 && sums.hits > 0 && sums.from_host + sums.from_disk > 0 &&
                 sums.accepted > 0 && sums.drafted > sums.accepted));
    free(mix);
}

int main(void)
{
    skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mixes_answer_as_each_request_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
