/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Embeddings through the engine. The reference gives logits: they are the hidden state times the
 * output matrix, so a hidden state is held to them by that product.
 */
#include "kernels/dtypes.h"
#include "runtime/engine/engine_priv.h"
#include "tests/support/engine_rig.h"
#include "tests/support/model_rig.h"

/* Also built for CUDA, emulated and for a GPU. */
#ifndef TEST_DEVICE
#define TEST_DEVICE           "cpu"
#define skip_without_device() ((void)0)
#else
#include "tests/cuda_emu/cuda_check.h"
#define skip_without_device() cuda_skip_without_device()
#endif

enum { HIDDEN = 64, VOCAB = 320, MAX_TOKENS = 128 };

#define MODEL "qwen3"

static engine_options_t embedding_options(void)
{
    engine_options_t options = engine_rig_options();
    options.device = TEST_DEVICE;
    options.runner = "pooling";
    options.cpu_isa = "ref";
    options.kv_cache_dtype = "f32";
    return options;
}

static engine_submit_t embedding_submit(const int32_t *prompt, uint32_t n)
{
    engine_submit_t submit = engine_rig_submit(prompt, n, 0);
    submit.wants_embedding = true;
    return submit;
}

static engine_request_t *embed(engine_rig_t *rig, const int32_t *prompt, uint32_t n)
{
    const engine_submit_t submit = embedding_submit(prompt, n);
    engine_request_t *request = engine_rig_send(rig, &submit);
    engine_rig_wait(rig, request);
    assert_non_null(engine_request_embedding(request));
    return request;
}

/* Of a logit. On a GPU activations are bf16: shares of the logits' range, as in test_cuda_models. */
static double bound_of(const json_t *golden)
{
    return strcmp(TEST_DEVICE, "cpu") == 0
               ? json_number_value(json_object_get(golden, "tolerance_max_abs"))
               : 0.06 * json_number_value(json_object_get(golden, "logit_range"));
}

/* hidden · row of the output matrix, as the source has it */
static double logit_of(const model_source_t *source, const float *hidden, uint32_t token)
{
    const bool is_tied = model_source_config(source)->is_embedding_tied;
    const model_tensor_key_t key = {.id = is_tied ? MODEL_TENSOR_EMBEDDING : MODEL_TENSOR_OUTPUT};
    model_tensor_t tensor;
    char raw[4 * HIDDEN];
    float row[HIDDEN];
    double sum = 0;
    assert_status(model_source_find(source, key, NULL, &tensor), WEFT_OK);
    model_tensor_read(&tensor, token, 1, raw);
    k_dequantize(tensor.dtype, raw, row, HIDDEN);
    for (uint32_t i = 0; i < HIDDEN; i++) {
        sum += (double)hidden[i] * (double)row[i];
    }
    return sum;
}

static void a_hidden_state_gives_the_references_logits(void **state)
{
    (void)state;
    engine_rig_t rig;
    const engine_options_t options = embedding_options();
    json_t *golden = load_golden(MODEL);
    const double bound = bound_of(golden);
    const json_t *sequences = json_object_get(golden, "sequences");
    engine_rig_open(&rig, MODEL, &options);
    assert_true(engine_embeds(rig.engine));
    assert_int_equal(engine_model_config(rig.engine)->hidden, HIDDEN);
    for (size_t i = 0; i < json_array_size(sequences); i++) {
        const json_t *sequence = json_array_get(sequences, i);
        const json_t *expected = json_object_get(sequence, "logits_last");
        int32_t tokens[MAX_TOKENS];
        const uint32_t n = json_ids(json_object_get(sequence, "tokens"), tokens, MAX_TOKENS);
        engine_request_t *request = embed(&rig, tokens, n);
        const float *hidden = engine_request_embedding(request);
        for (uint32_t t = 0; t < VOCAB; t++) {
            const double logit = json_number_value(json_array_get(expected, t));
            assert_true(fabs(logit_of(rig.source, hidden, t) - logit) <= bound);
        }
        engine_request_release(request);
    }
    json_decref(golden);
    engine_rig_close(&rig);
}

static void an_embedding_is_the_same_in_any_company(void **state)
{
    (void)state;
    enum { REQUESTS = 12 };
    engine_rig_t rig;
    engine_options_t options = embedding_options();
    options.cpu_isa = "auto";
    engine_rig_open(&rig, MODEL, &options);
    float alone[REQUESTS][HIDDEN];
    engine_request_t *requests[REQUESTS];
    for (uint32_t i = 0; i < REQUESTS; i++) {
        engine_request_t *request = embed(&rig, engine_rig_prompt, 40 - i);
        memcpy(alone[i], engine_request_embedding(request), sizeof(alone[i]));
        engine_request_release(request);
        assert_status(engine_reset_prefix_cache(rig.engine, true, false), WEFT_OK);
    }
    engine_set_chaos(rig.engine, 7);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        const engine_submit_t submit = embedding_submit(engine_rig_prompt, 40 - i);
        requests[i] = engine_rig_send(&rig, &submit);
    }
    for (uint32_t i = 0; i < REQUESTS; i++) {
        engine_rig_wait(&rig, requests[i]);
        assert_memory_equal(engine_request_embedding(requests[i]), alone[i], sizeof(alone[i]));
        engine_request_release(requests[i]);
    }
    engine_rig_wait_idle(&rig);
    engine_rig_close(&rig);
}

static void a_model_does_what_it_was_loaded_for(void **state)
{
    (void)state;
    engine_rig_t rig;
    weft_diag_t diag = {0};
    engine_request_t *request;
    engine_options_t options = embedding_options();
    engine_submit_t answer = engine_rig_submit(engine_rig_prompt, 20, 4);
    engine_submit_t embedding = embedding_submit(engine_rig_prompt, 20);

    engine_rig_open(&rig, MODEL, &options);
    assert_status(engine_submit(rig.engine, rig.client, &answer, &diag, &request),
                  WEFT_ERR_UNSUPPORTED);
    embedding.sampling.max_tokens = 1;
    assert_status(engine_submit(rig.engine, rig.client, &embedding, &diag, &request),
                  WEFT_ERR_INVALID);
    engine_rig_close(&rig);

    options.runner = "auto"; /* nothing beside the model says otherwise */
    embedding.sampling.max_tokens = 0;
    engine_rig_open(&rig, MODEL, &options);
    assert_status(engine_submit(rig.engine, rig.client, &embedding, &diag, &request),
                  WEFT_ERR_UNSUPPORTED);
    engine_rig_close(&rig);
}

int main(void)
{
    skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hidden_state_gives_the_references_logits),
        cmocka_unit_test(an_embedding_is_the_same_in_any_company),
        cmocka_unit_test(a_model_does_what_it_was_loaded_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
