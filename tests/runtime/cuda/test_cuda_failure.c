/* SPDX-License-Identifier: Apache-2.0 */
/* An engine whose GPU fails or has too little memory. */
#include "base/alloc.h"
#include "base/device_cuda.h"
#include "base/log.h"
#include "runtime/engine/engine_priv.h"
#include "tests/cuda_emu/cuda_check.h"
#include "tests/support/engine_rig.h"

static engine_options_t cuda_options(void)
{
    engine_options_t options = engine_rig_options();
    options.device = "cuda";
    options.max_model_len = 64;
    options.num_gpu_blocks = 8;
    return options;
}

/* What waits ends with an error, what comes is refused, and nobody hangs. */
static void a_failed_gpu_makes_the_engine_unhealthy(void **state)
{
    (void)state;
    engine_rig_t rig;
    weft_diag_t diag = {0};
    const engine_options_t options = cuda_options();
    engine_rig_open(&rig, "llama", &options);
    assert_true(engine_is_healthy(rig.engine));
    (void)weft_device_cuda_note(rig.engine->device, cudaErrorIllegalAddress, "a test");

    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, 10);
    engine_request_t *request = engine_rig_send(&rig, &submit);
    engine_rig_wait(&rig, request);
    assert_int_equal(engine_request_answer(request, 0).finish, ENGINE_FINISH_ERROR);
    assert_false(engine_is_healthy(rig.engine));
    engine_request_release(request);
    assert_true(engine_submit(rig.engine, rig.client, &submit, &diag, &request) < 0);
    engine_rig_close(&rig);
}

/* Every allocation of device memory in turn fails: a line says what to change, nothing leaks. */
static void too_little_memory_says_what_to_change(void **state)
{
    (void)state;
    const engine_options_t options = cuda_options();
    const size_t before = weft_alloc_live_bytes();
    model_source_t *source = NULL;
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    uint64_t failures = 0;
    if (!emu_is_emulated()) {
        skip();
    }
    while (status < 0) {
        weft_diag_t diag = {0};
        engine_t *engine = NULL;
        assert_status(model_source_open(WEFT_TEST_VECTORS "/tiny-models/llama", &diag, &source),
                      WEFT_OK);
        emu_fail_alloc(failures + 1);
        status = engine_create(&options, source, NULL, NULL, &diag, &engine);
        emu_fail_alloc(0);
        if (status < 0) {
            assert_status(status, WEFT_ERR_NO_MEMORY);
            if (strstr(diag.text, "lower --") == NULL ||
                strstr(diag.text, "--max-num-batched-tokens") == NULL) {
                fail_msg("no option that helps: %s", diag.text);
            }
            failures++;
        }
        engine_destroy(engine);
        model_source_close(source);
        assert_true(weft_alloc_live_bytes() == before);
    }
    assert_true(failures >= 4); /* weights, activations, cache, steps */
}

/* The tokens are those of an engine that has its graphs. */
static void steps_without_a_graph_answer_alike(void **state)
{
    (void)state;
    const engine_options_t options = cuda_options();
    int32_t tokens[2][10];
    if (!emu_is_emulated()) {
        skip();
    }
    for (int is_full = 0; is_full < 2; is_full++) {
        engine_rig_t rig;
        engine_rig_open(&rig, "llama", &options);
        emu_fail_alloc((uint64_t)is_full);
        const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, 10);
        engine_request_t *request = engine_rig_send(&rig, &submit);
        engine_rig_wait(&rig, request);
        const engine_answer_t answer = engine_request_answer(request, 0);
        assert_int_equal(answer.finish, ENGINE_FINISH_LENGTH);
        assert_int_equal(answer.n_tokens, 10);
        memcpy(tokens[is_full], answer.tokens, sizeof(tokens[is_full]));
        assert_true(engine_is_healthy(rig.engine));
        emu_fail_alloc(0);
        engine_request_release(request);
        engine_rig_close(&rig);
    }
    assert_memory_equal(tokens[0], tokens[1], sizeof(tokens[0]));
}

/* There is none: one of the table is taken out. */
static void a_model_of_ops_that_are_missing_is_refused_by_name(void **state)
{
    (void)state;
    const model_limits_t limits = {.max_rows = 8, .max_outputs = 1, .max_context = 64};
    weft_diag_t diag = {0};
    weft_device_t *device = NULL;
    k_stream_t *stream = NULL;
    model_source_t *source = NULL;
    model_t *model = NULL;
    assert_status(weft_device_open("cuda", 0, &diag, &device), WEFT_OK);
    assert_status(k_stream_create(device, "auto", 1, &diag, &stream), WEFT_OK);
    assert_status(model_source_open(WEFT_TEST_VECTORS "/tiny-models/llama", &diag, &source),
                  WEFT_OK);
    k_ops_t ops = *stream->ops;
    ops.silu_mul = NULL;
    stream->ops = &ops;
    assert_status(model_create(source, NULL, &limits, stream, &diag, &model), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "silu_mul"));
    assert_non_null(strstr(diag.text, "cuda"));
    model_source_close(source);
    k_stream_destroy(stream);
    weft_device_close(device);
}

/* Before anything is taken: more blocks than there is memory for are not what is complained about. */
static void a_cache_that_cannot_be_attended_is_refused(void **state)
{
    (void)state;
    engine_options_t options = cuda_options();
    weft_diag_t diag = {0};
    model_source_t *source = NULL;
    engine_t *engine = NULL;
    options.block_size = 4;
    assert_status(model_source_open(WEFT_TEST_VECTORS "/tiny-models/llama", &diag, &source),
                  WEFT_OK);
    options.num_gpu_blocks = 1 << 30;
    assert_status(engine_create(&options, source, NULL, NULL, &diag, &engine),
                  WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "heads of 16 elements"));
    assert_non_null(strstr(diag.text, "blocks of 4 tokens (--block-size)"));
    assert_non_null(strstr(diag.text, "bf16 (--kv-cache-dtype)"));
    model_source_close(source);
}

int main(void)
{
    cuda_skip_without_device();
    weft_log_set_level(WEFT_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failed_gpu_makes_the_engine_unhealthy),
        cmocka_unit_test(too_little_memory_says_what_to_change),
        cmocka_unit_test(steps_without_a_graph_answer_alike),
        cmocka_unit_test(a_model_of_ops_that_are_missing_is_refused_by_name),
        cmocka_unit_test(a_cache_that_cannot_be_attended_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
