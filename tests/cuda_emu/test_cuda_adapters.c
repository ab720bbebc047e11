/* SPDX-License-Identifier: Apache-2.0 */
/* LoRA adapters through the whole engine on a GPU. */
#include <math.h>
#include <stdlib.h>

#include "base/log.h"
#include "tests/cuda_emu/cuda_check.h"
#include "tests/support/adapter_folder.h"
#include "tests/support/engine_rig.h"
#include "tests/support/scratch_folder.h"

enum { PROMPT = 20, ANSWER = 10, ADAPTERS = 3 };
enum { SHORT = 5, SHORTS = WEFT_ARRAY_LEN(engine_rig_prompt) / SHORT }; /* for beside a CPU */

/* A token's log-probability moves by shares of the model's range where activations are bf16. */
#define ROUNDED      0.05
#define ROUNDED_REAL 0.15 /* 30 layers of Q4_1, which each round as well */

static const char *const names[ADAPTERS] = {"a", "b", "c"};
static const uint32_t ranks[ADAPTERS] = {8, 3, 16};
static char folders[ADAPTERS][64];

/* For the model at path. */
static void make_folders(const char *path, float size)
{
    model_source_t *source = NULL;
    weft_diag_t diag = {0};
    if (model_source_open(path, &diag, &source) < 0) {
        fail_msg("%s", diag.text);
    }
    for (uint32_t i = 0; i < ADAPTERS; i++) {
        scratch_folder_make(folders[i], sizeof(folders[i]));
        adapter_folder_write(folders[i], model_source_config(source), "", ranks[i], size, 100 + i);
    }
    model_source_close(source);
}

static void remove_folders(void)
{
    for (uint32_t i = 0; i < ADAPTERS; i++) {
        scratch_folder_remove(folders[i]);
    }
}

static engine_options_t options_for(const char *device, uint32_t max_num_seqs)
{
    engine_options_t options = engine_rig_options();
    options.device = device;
    options.max_model_len = 64;
    options.num_gpu_blocks = 32;
    options.max_num_seqs = max_num_seqs;
    options.enable_prefix_caching = false;
    options.enable_lora = true;
    options.max_lora_rank = 16;
    options.max_loras = ADAPTERS;
    return options;
}

static void load(engine_rig_t *rig, uint32_t i)
{
    weft_diag_t diag = {0};
    if (engine_load_adapter(rig->engine, names[i], folders[i], &diag) < 0) {
        fail_msg("%s", diag.text);
    }
}

static void load_all(engine_rig_t *rig)
{
    for (uint32_t i = 0; i < ADAPTERS; i++) {
        load(rig, i);
    }
}

static void open_rig(engine_rig_t *rig, const char *path, const engine_options_t *options)
{
    weft_diag_t diag = {0};
    if (model_source_open(path, &diag, &rig->source) < 0 ||
        engine_create(options, rig->source, NULL, NULL, &diag, &rig->engine) < 0) {
        fail_msg("%s", diag.text);
    }
    assert_status(engine_client_create(rig->engine, &rig->client), WEFT_OK);
}

/* The model itself, NULL, then the adapters. */
static const char *name_of(size_t who)
{
    return who == 0 ? NULL : names[who - 1];
}

/* name NULL: the model itself */
static engine_request_t *send_prompt(engine_rig_t *rig, const char *name, const int32_t *prompt,
                                     uint32_t n_prompt, uint32_t n_answer)
{
    engine_submit_t submit = engine_rig_submit(prompt, n_prompt, n_answer);
    engine_adapter_t *adapter = name == NULL ? NULL : engine_find_adapter(rig->engine, name);
    assert_true(name == NULL || adapter != NULL);
    submit.adapter = adapter;
    submit.sampling.wants_logprobs = true;
    submit.sampling.wants_prompt_logprobs = true;
    engine_request_t *request = engine_rig_send(rig, &submit);
    engine_release_adapter(adapter);
    return request;
}

static engine_request_t *send(engine_rig_t *rig, const char *name, uint32_t n_answer)
{
    return send_prompt(rig, name, engine_rig_prompt, PROMPT, n_answer);
}

typedef struct answer {
    float prompt[PROMPT];
    int32_t tokens[ANSWER];
    float logprobs[ANSWER];
} answer_t;

static answer_t take(engine_rig_t *rig, engine_request_t *request)
{
    answer_t answer = {0};
    engine_rig_wait(rig, request);
    const engine_answer_t got = engine_request_answer(request, 0);
    const k_sampled_t *prompt = engine_request_prompt_logprobs(request);
    assert_int_equal(got.finish, ENGINE_FINISH_LENGTH);
    for (uint32_t i = 1; i < PROMPT; i++) {
        answer.prompt[i] = prompt[i].chosen.logprob;
    }
    for (uint32_t i = 0; i < got.n_tokens; i++) {
        answer.tokens[i] = got.tokens[i];
        answer.logprobs[i] = got.logprobs[i].chosen.logprob;
    }
    engine_request_release(request);
    return answer;
}

/* Of the model, then of each adapter, one after the other. */
static void answer_alone(const char *path, answer_t answers[1 + ADAPTERS])
{
    engine_rig_t rig = {0};
    const engine_options_t options = options_for("cuda", 1);
    open_rig(&rig, path, &options);
    load_all(&rig);
    for (uint32_t i = 0; i <= ADAPTERS; i++) {
        answers[i] = take(&rig, send(&rig, name_of(i), ANSWER));
    }
    engine_rig_close(&rig);
}

/* ---- beside a CPU ---------------------------------------------------------------------------- */

/* Log-probabilities of the tokens of short prompts; a prompt's first has none. */
typedef struct scores {
    float logprobs[SHORTS][SHORT];
} scores_t;

static scores_t score_shorts(engine_rig_t *rig, const char *name)
{
    engine_request_t *requests[SHORTS];
    scores_t scores = {0};
    for (uint32_t i = 0; i < SHORTS; i++) {
        requests[i] = send_prompt(rig, name, engine_rig_prompt + (size_t)i * SHORT, SHORT, 1);
    }
    for (uint32_t i = 0; i < SHORTS; i++) {
        engine_rig_wait(rig, requests[i]);
        const k_sampled_t *sampled = engine_request_prompt_logprobs(requests[i]);
        assert_int_equal(engine_request_answer(requests[i], 0).finish, ENGINE_FINISH_LENGTH);
        for (uint32_t j = 1; j < SHORT; j++) {
            scores.logprobs[i][j] = sampled[j].chosen.logprob;
        }
        engine_request_release(requests[i]);
    }
    return scores;
}

static void score_all(const char *path, const char *device, scores_t scores[1 + ADAPTERS])
{
    engine_rig_t rig = {0};
    const engine_options_t options = options_for(device, SHORTS);
    open_rig(&rig, path, &options);
    load_all(&rig);
    for (uint32_t i = 0; i <= ADAPTERS; i++) {
        scores[i] = score_shorts(&rig, name_of(i));
    }
    engine_rig_close(&rig);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

/*
 * The prompts' median of their tokens' mean. Where a router has two experts that are as good, rounding
 * chooses, which moves the token and through attention all behind it: of a few prompts, as they are short.
 * What is wrong with an adapter is so in most of them.
 */
static double distance(const scores_t *a, const scores_t *b)
{
    double means[SHORTS] = {0};
    for (uint32_t i = 0; i < SHORTS; i++) {
        for (uint32_t j = 1; j < SHORT; j++) {
            means[i] += fabs((double)a->logprobs[i][j] - (double)b->logprobs[i][j]) / (SHORT - 1);
        }
    }
    qsort(means, SHORTS, sizeof(means[0]), by_value);
    return (means[SHORTS / 2 - 1] + means[SHORTS / 2]) / 2;
}

static void compare_with_a_cpu(const char *path, double bound)
{
    scores_t cpu[1 + ADAPTERS];
    scores_t cuda[1 + ADAPTERS];
    score_all(path, "cpu", cpu);
    score_all(path, "cuda", cuda);
    for (uint32_t i = 0; i <= ADAPTERS; i++) {
        const double off = distance(&cpu[i], &cuda[i]);
        const double moved = distance(&cuda[i], &cuda[0]);
        print_message("%s: off by %.4f, moved the model by %.4f\n", i == 0 ? "-" : name_of(i), off,
                      moved);
        assert_true(off <= bound);
        assert_true(i == 0 || moved > 4 * off);
    }
}

static void adapters_add_on_a_gpu_what_they_add_on_a_cpu(void **state)
{
    compare_with_a_cpu(*state, ROUNDED);
}

/* ---- many at once ---------------------------------------------------------------------------- */

/* Decode steps are graphs: all rows' adapters in one. */
static void one_batch_takes_all_of_them(void **state)
{
    const char *path = *state;
    answer_t alone[1 + ADAPTERS];
    engine_request_t *requests[2 * (1 + ADAPTERS)];
    engine_rig_t rig = {0};
    answer_alone(path, alone);
    const engine_options_t options = options_for("cuda", WEFT_ARRAY_LEN(requests));
    open_rig(&rig, path, &options);
    load_all(&rig);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(requests); i++) {
        requests[i] = send(&rig, name_of(i % (1 + ADAPTERS)), ANSWER);
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(requests); i++) {
        const answer_t answer = take(&rig, requests[i]);
        assert_memory_equal(&answer, &alone[i % (1 + ADAPTERS)], sizeof(answer));
    }
    engine_rig_close(&rig);
}

/* The second one takes the first one's place in graphs that were made for the first. */
static void adapters_come_and_go_while_others_run(void **state)
{
    const char *path = *state;
    answer_t alone[1 + ADAPTERS];
    engine_rig_t rig = {0};
    answer_alone(path, alone);
    const engine_options_t options = options_for("cuda", 4);
    open_rig(&rig, path, &options);
    load(&rig, 0);
    load(&rig, 1);
    engine_request_t *first = send(&rig, "a", ANSWER);
    engine_request_t *other = send(&rig, "b", ANSWER);
    assert_status(engine_unload_adapter(rig.engine, "a"), WEFT_OK);
    answer_t answer = take(&rig, first); /* it goes on with what it began with */
    assert_memory_equal(&answer, &alone[1], sizeof(answer));
    load(&rig, 2);
    answer = take(&rig, send(&rig, "c", ANSWER));
    assert_memory_equal(&answer, &alone[3], sizeof(answer));
    answer = take(&rig, other);
    assert_memory_equal(&answer, &alone[2], sizeof(answer));
    engine_rig_close(&rig);
}

/* Graphs that were made when adapters added to one kind of linear alone are made anew. */
static void an_adapter_may_add_to_more_than_those_before(void **state)
{
    const char *path = *state;
    char narrow[64];
    answer_t alone[1 + ADAPTERS];
    engine_rig_t rig = {0};
    weft_diag_t diag = {0};
    answer_alone(path, alone);
    const engine_options_t options = options_for("cuda", 1);
    open_rig(&rig, path, &options);
    scratch_folder_make(narrow, sizeof(narrow));
    adapter_folder_write(narrow, model_source_config(rig.source), "o_proj", 4, 0.15f, 9);
    assert_status(engine_load_adapter(rig.engine, "narrow", narrow, &diag), WEFT_OK);
    scratch_folder_remove(narrow);
    (void)take(&rig, send(&rig, "narrow", ANSWER));
    load(&rig, 2);
    const answer_t answer = take(&rig, send(&rig, "c", ANSWER));
    assert_memory_equal(&answer, &alone[3], sizeof(answer));
    engine_rig_close(&rig);
}

static int set_up(void **state)
{
    static char path[512];
    engine_rig_path(*state, path, sizeof(path));
    make_folders(path, 0.15f);
    *state = path;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    remove_folders();
    return 0;
}

static void smollm2_takes_adapters(void **state)
{
    (void)state;
    const char *path = getenv("WEFT_TEST_MODEL");
    if (emu_is_emulated() || path == NULL || path[0] == '\0') {
        print_message("on a GPU, with WEFT_TEST_MODEL\n");
        skip();
    }
    make_folders(path, 0.08f);
    compare_with_a_cpu(path, ROUNDED_REAL);
    remove_folders();
}

#define OF(test, model) {#test " of " model, test, set_up, tear_down, (void *)(uintptr_t)model}

int main(void)
{
    cuda_skip_without_device();
    weft_log_set_level(WEFT_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        OF(adapters_add_on_a_gpu_what_they_add_on_a_cpu, "llama"),
        OF(one_batch_takes_all_of_them, "llama"),
        OF(adapters_come_and_go_while_others_run, "llama"),
        OF(an_adapter_may_add_to_more_than_those_before, "llama"),
        OF(adapters_add_on_a_gpu_what_they_add_on_a_cpu, "mixtral"),
        OF(adapters_add_on_a_gpu_what_they_add_on_a_cpu, "deepseek-v2"),
        OF(adapters_add_on_a_gpu_what_they_add_on_a_cpu, "deepseek-v3"),
        OF(adapters_add_on_a_gpu_what_they_add_on_a_cpu, "gpt-oss"),
        OF(adapters_add_on_a_gpu_what_they_add_on_a_cpu, "gpt-oss-mxfp4"),
        OF(adapters_add_on_a_gpu_what_they_add_on_a_cpu, "qwen3-moe"),
        OF(adapters_add_on_a_gpu_what_they_add_on_a_cpu, "gemma2"),
        OF(adapters_add_on_a_gpu_what_they_add_on_a_cpu, "granite"),
        OF(adapters_add_on_a_gpu_what_they_add_on_a_cpu, "olmo2"),
        OF(adapters_add_on_a_gpu_what_they_add_on_a_cpu, "phi3"),
        OF(one_batch_takes_all_of_them, "deepseek-v3"),
        OF(one_batch_takes_all_of_them, "gpt-oss"),
        OF(an_adapter_may_add_to_more_than_those_before, "deepseek-v2"),
        cmocka_unit_test(smollm2_takes_adapters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
