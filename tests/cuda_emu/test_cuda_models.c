/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tiny models on the CUDA backend against what Hugging Face transformers computes in float32
 * (tests/vectors/tiny-models). Activations and cache are bf16 here: with random weights, logits move
 * by shares of their range, as they do where the CPU's kernels round activations to 8 bits.
 */
#include "tests/cuda_emu/cuda_check.h"
#include "tests/support/executor_rig.h"

enum { VOCAB = 320, LONGEST = 116, BLOCK = 16, SEQUENCES = 4 };

#define ROUNDED      0.06 /* of the range of logits: any logit, so half the gap of a clear choice */
#define ROUNDED_SUM  0.004 /* the same of a token's log-probability, on average over a sequence */
#define OTHER_EXPERT 0.04  /* what one token may gain or lose when a near tie is another expert's */
#define BYTES        2     /* times that with a cache of bytes */

static const char *const models[] = {"llama",           "llama-rope-llama3",
                                     "llama-fp8-block", "llama-fp8-tensor",
                                     "mistral",         "qwen2",
                                     "qwen3",           "llama-gguf-f32",
                                     "llama-gguf-q8_0", "mixtral",
                                     "qwen3-moe",       "gpt-oss-mxfp4",
                                     "deepseek-v2",     "deepseek-v3"};

static const step_limits_t limits = {.max_slots = 1,
                                     .max_tokens = 128,
                                     .max_context = LONGEST,
                                     .max_blocks = LONGEST / BLOCK + 1,
                                     .max_bind_tokens = LONGEST,
                                     .max_biases = 1,
                                     .max_outputs = 8};

static void open_model(executor_rig_t *rig, const char *name, k_dtype_t kv_dtype)
{
    executor_rig_open(rig,
                      (model_rig_config_t){.path = tiny_model_path(name),
                                           .device = "cuda",
                                           .isa = "auto",
                                           .kv_dtype = kv_dtype,
                                           .block_tokens = BLOCK,
                                           .n_blocks = LONGEST / BLOCK + 1},
                      &limits);
}

/* The whole sequence in one step: what each token was thought of, and what may come after. */
static step_result_t run(executor_rig_t *rig, const int32_t *tokens, uint32_t n)
{
    step_sampling_t sampling = greedy_sampling;
    sampling.n_top = K_MAX_LOGPROBS;
    sampling.n_prompt_top = 1;
    sampling.wants_logprob = 1;
    plan_bind(rig->plan, 0, tokens, n, &sampling);
    for (uint32_t i = 0; i < limits.max_blocks; i++) {
        plan_block(rig->plan, 0, i, i);
    }
    plan_row(rig->plan, 0, 0, n, STEP_ROW_SAMPLE | STEP_ROW_PROMPT_LOGPROBS, 0);
    return executor_rig_step(rig);
}

static void check_last(const json_t *sequence, const k_sampled_t *last, double bound)
{
    const json_t *logits = json_object_get(sequence, "logits_last");
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

static void check_choices(const json_t *sequence, const step_result_t *result, uint32_t n,
                          double bound)
{
    int32_t argmax[LONGEST];
    if (json_number_value(json_object_get(sequence, "argmax_min_gap")) <= 2 * bound) {
        return;
    }
    assert_int_equal(json_ids(json_object_get(sequence, "argmax"), argmax, LONGEST), n);
    for (uint32_t i = 0; i + 1 < n; i++) {
        assert_int_equal(result->prompt[i].top[0].token, argmax[i]);
    }
    assert_int_equal(result->rows[0].chosen.token, argmax[n - 1]);
}

static void check_sequence(executor_rig_t *rig, const json_t *sequence, double range)
{
    int32_t tokens[LONGEST];
    const uint32_t n = json_ids(json_object_get(sequence, "tokens"), tokens, LONGEST);
    const step_result_t result = run(rig, tokens, n);
    double sum = 0;
    assert_int_equal(result.n_prompt, n - 1);
    for (uint32_t i = 0; i + 1 < n; i++) {
        sum += result.prompt[i].chosen.logprob;
    }
    check_last(sequence, &result.rows[0], ROUNDED * range);
    check_choices(sequence, &result, n, ROUNDED * range);
    const bool has_experts = model_config(rig->rig.model)->experts.count > 0;
    assert_float_equal(sum, json_number_value(json_object_get(sequence, "logprob_sum")),
                       (ROUNDED_SUM * n + (has_experts ? OTHER_EXPERT : 0)) * range);
}

static void check_model(const char *name, k_dtype_t kv_dtype, double slack)
{
    executor_rig_t rig;
    json_t *golden = load_golden(name);
    const double range = slack * json_number_value(json_object_get(golden, "logit_range"));
    print_message("%s, %s cache\n", name, k_dtype_info(kv_dtype)->name);
    open_model(&rig, name, kv_dtype);
    for (size_t j = 0; j < SEQUENCES; j++) {
        check_sequence(&rig, json_array_get(json_object_get(golden, "sequences"), j), range);
    }
    executor_rig_close(&rig);
    json_decref(golden);
}

static void tiny_models_compute_what_the_reference_does(void **state)
{
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(models); i++) {
        check_model(models[i], K_BF16, 1);
    }
}

static void tiny_models_do_with_caches_of_bytes(void **state)
{
    (void)state;
    check_model("mistral", K_F8, BYTES); /* with a window */
    check_model("qwen3", K_I8, 1);
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_models_compute_what_the_reference_does),
        cmocka_unit_test(tiny_models_do_with_caches_of_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
