/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tiny models on the CUDA backend against what Hugging Face transformers computes in float32
 * (tests/vectors/tiny-models). Activations and cache are bf16 here: with random weights, logits move
 * by shares of their range, as they do where the CPU's kernels round activations to 8 bits.
 */
#include "tests/cuda_emu/cuda_check.h"
#include "tests/support/executor_rig.h"
#include "tests/support/int4_folder.h"
#include "tests/support/scratch_folder.h"

enum { VOCAB = 320, LONGEST = 100, ANSWER = 16, BLOCK = 16, SEQUENCES = 4 };
/* Tokens of one answer, that to a prompt of so many: emulated, each takes its time. */
enum { DECODED = 4, DECODED_BEHIND = 33 };

#define ROUNDED      0.06 /* of the range of logits: any logit, so half the gap of a clear choice */
#define ROUNDED_SUM  0.004 /* the same of a token's log-probability, on average over a sequence */
#define OTHER_EXPERT 0.04  /* what one token may gain or lose when a near tie is another expert's */
#define BYTES        2     /* times that with a cache of bytes */

/* A golden sequence and what the reference answered, in one. */
typedef struct sequence {
    const json_t *golden;
    int32_t tokens[LONGEST + ANSWER];
    uint32_t n_prompt;
    uint32_t n;
} sequence_t;

static sequence_t load_sequence(const json_t *golden)
{
    sequence_t sequence = {.golden = golden};
    sequence.n_prompt = json_ids(json_object_get(golden, "tokens"), sequence.tokens, LONGEST);
    sequence.n = sequence.n_prompt + json_ids(json_object_get(golden, "greedy"),
                                              sequence.tokens + sequence.n_prompt, ANSWER);
    return sequence;
}

static void open_model(executor_rig_t *rig, const char *path, const char *device,
                       k_dtype_t kv_dtype, uint32_t context)
{
    const uint32_t blocks = (context + BLOCK - 1) / BLOCK;
    const step_limits_t limits = {.max_slots = 1,
                                  .max_tokens = context,
                                  .max_context = context,
                                  .max_blocks = blocks,
                                  .max_bind_tokens = context,
                                  .max_biases = 1,
                                  .max_outputs = 8};
    executor_rig_open(rig,
                      (model_rig_config_t){.path = path,
                                           .device = device,
                                           .isa = strcmp(device, "cpu") == 0 ? "ref" : "auto",
                                           .kv_dtype = kv_dtype,
                                           .block_tokens = BLOCK,
                                           .n_blocks = blocks},
                      &limits);
}

/* n of its tokens from `start` on, whatever was sampled there. */
static void plan_told(step_plan_t *plan, const sequence_t *sequence, uint32_t start, uint32_t n,
                      uint32_t flags)
{
    memcpy(plan->tokens + plan->n_tokens, sequence->tokens + start, n * sizeof(int32_t));
    plan->n_tokens += n;
    plan_row(plan, 0, start, n, STEP_ROW_TOLD | flags, start - sequence->n_prompt + 1);
}

/*
 * The prompt in one step, the answer in another. entries [n - 1]: each is of the token behind it, and of
 * the best ones there; the prompt's last is of what is sampled there.
 */
static void run(executor_rig_t *rig, const sequence_t *sequence, k_sampled_t *entries)
{
    const uint32_t n_prompt = sequence->n_prompt;
    const uint32_t n_answer = sequence->n - n_prompt;
    step_sampling_t sampling = greedy_sampling;
    sampling.n_top = K_MAX_LOGPROBS;
    sampling.n_prompt_top = 1;
    plan_bind(rig->plan, 0, sequence->tokens, n_prompt, &sampling);
    for (uint32_t i = 0; i < rig->limits.max_blocks; i++) {
        plan_block(rig->plan, 0, i, i);
    }
    plan_row(rig->plan, 0, 0, n_prompt, STEP_ROW_SAMPLE | STEP_ROW_PROMPT_LOGPROBS, 0);
    step_result_t result = executor_rig_step(rig);
    assert_int_equal(result.n_prompt, n_prompt - 1);
    memcpy(entries, result.prompt, result.n_prompt * sizeof(*entries));
    entries[n_prompt - 1] = result.rows[0];
    plan_told(rig->plan, sequence, n_prompt, n_answer, STEP_ROW_PROMPT_LOGPROBS);
    result = executor_rig_step(rig);
    assert_int_equal(result.n_prompt, n_answer - 1);
    memcpy(entries + n_prompt, result.prompt, result.n_prompt * sizeof(*entries));
}

static void check_last(const sequence_t *sequence, const k_sampled_t *last, double bound)
{
    const json_t *logits = json_object_get(sequence->golden, "logits_last");
    double sum = 0;
    for (uint32_t i = 0; i < VOCAB; i++) {
        sum += exp(json_number_value(json_array_get(logits, i)));
    }
    assert_int_equal(last->n_top, K_MAX_LOGPROBS);
    for (uint32_t i = 0; i < last->n_top; i++) {
        const double expected =
            json_number_value(json_array_get(logits, (size_t)last->top[i].token)) - log(sum);
        assert_float_equal(last->top[i].logprob, expected, bound);
    }
}

static void check_choices(const sequence_t *sequence, const k_sampled_t *entries, double bound)
{
    int32_t argmax[LONGEST];
    if (json_number_value(json_object_get(sequence->golden, "argmax_min_gap")) <= 2 * bound) {
        return;
    }
    assert_int_equal(json_ids(json_object_get(sequence->golden, "argmax"), argmax, LONGEST),
                     sequence->n_prompt);
    for (uint32_t i = 0; i < sequence->n_prompt; i++) {
        assert_int_equal(entries[i].top[0].token, argmax[i]);
    }
}

static double logprob_of(const k_sampled_t *entry, int32_t token)
{
    double logprob = entry->chosen.token == token ? (double)entry->chosen.logprob : -INFINITY;
    for (uint32_t i = 0; i < entry->n_top; i++) {
        logprob = entry->top[i].token == token ? (double)entry->top[i].logprob : logprob;
    }
    return logprob;
}

/* The reference says no more of its answer than that each token was the best one. */
static void check_answer(const sequence_t *sequence, const k_sampled_t *entries, double bound)
{
    for (uint32_t i = sequence->n_prompt - 1; i + 1 < sequence->n; i++) {
        const double logprob = logprob_of(&entries[i], sequence->tokens[i + 1]);
        assert_true(entries[i].top[0].logprob - logprob <= 2 * bound);
    }
}

static void check_sum(const sequence_t *sequence, const k_sampled_t *entries, double bound)
{
    double sum = 0;
    for (uint32_t i = 0; i + 1 < sequence->n_prompt; i++) {
        sum += entries[i].chosen.logprob;
    }
    assert_float_equal(sum, json_number_value(json_object_get(sequence->golden, "logprob_sum")),
                       bound);
}

/* The answer's first tokens in steps of their own: the bits that they had together. */
static void check_decodes(executor_rig_t *rig, const sequence_t *sequence,
                          const k_sampled_t *entries)
{
    for (uint32_t i = sequence->n_prompt; i < sequence->n_prompt + DECODED; i++) {
        plan_told(rig->plan, sequence, i, 1, STEP_ROW_SAMPLE);
        const step_result_t result = executor_rig_step(rig);
        assert_memory_equal(&result.rows[0].top[0], &entries[i].top[0], sizeof(entries[i].top[0]));
    }
}

static void check_sequence(executor_rig_t *rig, const sequence_t *sequence, double range)
{
    static k_sampled_t entries[LONGEST + ANSWER];
    const bool has_experts = model_config(rig->rig.model)->experts.count > 0;
    const uint32_t n_prompt = sequence->n_prompt;
    run(rig, sequence, entries);
    check_last(sequence, &entries[n_prompt - 1], ROUNDED * range);
    check_choices(sequence, entries, ROUNDED * range);
    check_answer(sequence, entries, ROUNDED * range);
    check_sum(sequence, entries,
              (ROUNDED_SUM * n_prompt + (has_experts ? OTHER_EXPERT : 0)) * range);
    if (n_prompt == DECODED_BEHIND) {
        check_decodes(rig, sequence, entries);
    }
}

/* All, or all but the longest of a copy of a checkpoint: it has the same numbers from another file. */
static size_t count_sequences(const char *name)
{
    const char *suffix = strstr(name, "-gguf");
    return suffix != NULL && strcmp(suffix, "-gguf") == 0 ? SEQUENCES - 1 : SEQUENCES;
}

static void check_model(const char *name, k_dtype_t kv_dtype, double slack)
{
    json_t *golden = load_golden(name);
    const double range = slack * json_number_value(json_object_get(golden, "logit_range"));
    const json_t *sequences = json_object_get(golden, "sequences");
    /* The factors of longrope are chosen by the context. */
    const bool is_of_context = strstr(name, "longrope") != NULL;
    const size_t n = count_sequences(name);
    executor_rig_t rig;
    print_message("%s, %s cache\n", name, k_dtype_info(kv_dtype)->name);
    assert_int_equal(json_array_size(sequences), SEQUENCES);
    for (size_t j = 0; j < n; j++) {
        const sequence_t sequence = load_sequence(json_array_get(sequences, j));
        if (is_of_context || j == 0) {
            open_model(&rig, tiny_model_path(name), "cuda", kv_dtype,
                       is_of_context ? sequence.n : LONGEST + ANSWER);
        }
        check_sequence(&rig, &sequence, range);
        if (is_of_context || j == n - 1) {
            executor_rig_close(&rig);
        }
    }
    json_decref(golden);
}

static void tiny_models_compute_what_the_reference_does(void **state)
{
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(tiny_models); i++) {
        check_model(tiny_models[i], K_BF16, 1);
    }
}

static void tiny_models_do_with_caches_of_bytes(void **state)
{
    (void)state;
    check_model("mistral", K_F8, BYTES); /* with a window */
    check_model("qwen3", K_I8, 1);
}

/* ---- AWQ and GPTQ ----------------------------------------------------------------------------- */

static double range_of(const k_sampled_t *entries, uint32_t n)
{
    double lowest = 0;
    double highest = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        lowest = fmin(lowest, entries[i].chosen.logprob);
        highest = fmax(highest, entries[i].chosen.logprob);
    }
    return highest - lowest;
}

/* The reference is the plain kernels on the CPU: test_model_int4 holds the loader to the numbers. */
static void check_int4(bool is_awq)
{
    static int4_checkpoint_t checkpoint;
    static k_sampled_t expected[LONGEST];
    static k_sampled_t entries[LONGEST];
    char folder[256];
    executor_rig_t rig;
    sequence_t sequence = {.n_prompt = LONGEST - ANSWER, .n = LONGEST};
    checkpoint = (int4_checkpoint_t){.is_awq = is_awq, .random = {test_seed(9)}};
    scratch_folder_make(folder, sizeof(folder));
    int4_folder_write(&checkpoint, folder);
    for (uint32_t i = 0; i < sequence.n; i++) {
        sequence.tokens[i] = (int32_t)test_random_below(&checkpoint.random, INT4_VOCAB);
    }
    open_model(&rig, folder, "cpu", K_F32, sequence.n);
    run(&rig, &sequence, expected);
    executor_rig_close(&rig);
    open_model(&rig, folder, "cuda", K_BF16, sequence.n);
    run(&rig, &sequence, entries);
    const double range = range_of(expected, sequence.n - 1);
    for (uint32_t i = 0; i + 1 < sequence.n; i++) {
        assert_float_equal(entries[i].chosen.logprob, expected[i].chosen.logprob, ROUNDED * range);
    }
    check_decodes(&rig, &sequence, entries);
    executor_rig_close(&rig);
    scratch_folder_remove(folder);
}

static void awq_and_gptq_compute_what_the_plain_kernels_do(void **state)
{
    (void)state;
    check_int4(true);
    check_int4(false);
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_models_compute_what_the_reference_does),
        cmocka_unit_test(tiny_models_do_with_caches_of_bytes),
        cmocka_unit_test(awq_and_gptq_compute_what_the_plain_kernels_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
