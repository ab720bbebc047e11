/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real model, SmolLM2-135M-Instruct in Q4_1, on the CUDA backend: the shortest prompt of
 * tests/vectors/smollm2 is continued as the float32 reference does, as far as its choice is clear.
 */
#include "tests/cuda_emu/cuda_check.h"
#include "tests/support/executor_rig.h"

#define VECTORS WEFT_TEST_VECTORS "/smollm2/"
#define CONTEXT 128
#define PROMPT  32
#define ANSWER  4   /* emulated, a token takes five seconds */
#define MARGIN  0.6 /* a smaller lead than this may turn: activations are rounded to bf16 */

static const step_limits_t limits = {.max_slots = 2,
                                     .max_tokens = 64,
                                     .max_context = CONTEXT,
                                     .max_blocks = CONTEXT / 16,
                                     .max_bind_tokens = CONTEXT,
                                     .max_biases = 1,
                                     .max_outputs = 2};

typedef struct answer {
    int32_t prompt[PROMPT];
    int32_t tokens[64];
    double margins[64];
    uint32_t n_prompt;
} answer_t;

/* The case with the shortest prompt. */
static void load_answer(answer_t *answer)
{
    json_t *json = load_json(VECTORS "greedy.json");
    const json_t *cases = json_object_get(json, "cases");
    const json_t *shortest = json_array_get(cases, 0);
    for (size_t i = 1; i < json_array_size(cases); i++) {
        const json_t *other = json_array_get(cases, i);
        if (json_array_size(json_object_get(other, "prompt_ids")) <
            json_array_size(json_object_get(shortest, "prompt_ids"))) {
            shortest = other;
        }
    }
    const json_t *f32 = json_object_get(shortest, "f32");
    answer->n_prompt = json_ids(json_object_get(shortest, "prompt_ids"), answer->prompt, PROMPT);
    (void)json_ids(json_object_get(f32, "greedy"), answer->tokens, 64);
    for (uint32_t i = 0; i < ANSWER; i++) {
        answer->margins[i] = json_number_value(json_array_get(json_object_get(f32, "margin"), i));
    }
    json_decref(json);
}

static void smollm2_answers_as_the_reference(void **state)
{
    (void)state;
    static answer_t answer;
    const char *path = getenv("WEFT_TEST_MODEL");
    if (path == NULL || path[0] == '\0') {
        print_message("WEFT_TEST_MODEL is not set: no SmolLM2 to test with\n");
        skip();
    }
    executor_rig_t rig;
    load_answer(&answer);
    executor_rig_open(&rig,
                      (model_rig_config_t){.path = path,
                                           .device = "cuda",
                                           .isa = "auto",
                                           .kv_dtype = K_BF16,
                                           .block_tokens = 16,
                                           .n_blocks = CONTEXT / 16},
                      &limits);
    plan_bind(rig.plan, 0, answer.prompt, answer.n_prompt, &greedy_sampling);
    for (uint32_t i = 0; i < CONTEXT / 16; i++) {
        plan_block(rig.plan, 0, i, i);
    }
    plan_row(rig.plan, 0, 0, answer.n_prompt, STEP_ROW_SAMPLE, 0);
    for (uint32_t i = 0; i < ANSWER; i++) {
        const int32_t token = executor_rig_step(&rig).rows[0].chosen.token;
        if (token != answer.tokens[i]) {
            print_message("token %u is %d, not %d\n", i, token, answer.tokens[i]);
            assert_true(answer.margins[i] <= MARGIN);
            break;
        }
        plan_row(rig.plan, 0, answer.n_prompt + i, 1, STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT, i + 1);
    }
    executor_rig_close(&rig);
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(smollm2_answers_as_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
