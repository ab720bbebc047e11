/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KV blocks of a GPU between workers: two GPUs, a GPU and a CPU, of the same and of unlike elements and
 * block sizes; and two engines on the GPU, of which one prefills and the other decodes.
 */
#include "base/log.h"
#include "tests/cuda_emu/cuda_check.h"
#include "tests/support/engine_rig.h"
#include "tests/support/transfer_pair.h"

typedef struct worker_kind {
    const char *device;
    const char *dtype;
    uint32_t block_tokens;
} worker_kind_t;

/* ---- blocks ---------------------------------------------------------------------------------- */

static void pull_a_prompt(const worker_kind_t *from, const worker_kind_t *to)
{
    const bool is_rough = strcmp(from->dtype, "int8") == 0 || strcmp(to->dtype, "int8") == 0;
    const transfer_worker_config_t p = {
        .device = from->device, .dtype = from->dtype, .block_tokens = from->block_tokens};
    const transfer_worker_config_t d = {.device = to->device,
                                        .dtype = to->dtype,
                                        .block_tokens = to->block_tokens,
                                        .tolerance = is_rough ? 0.1f : 0};
    kv_block_id_t blocks[TRANSFER_RIG_BLOCKS];
    kv_transfer_params_t params;
    transfer_worker_open(&prefill, &p);
    transfer_worker_open(&decode, &d);
    params = prefill_whole(&prefill, "request-1", PROMPT, 7);
    kv_pull_t *pull = expect(&decode, &params, PROMPT);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    assert_pulled(pull);
    assert_true(transfer_worker_has(&decode, blocks, 0, PROMPT, 7));
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    kv_transfer_params_fini(&params);
    assert_all_free(&prefill);
    assert_all_free(&decode);
    assert_int_equal(transfer_worker_stats(&decode).pulls, 1);
    transfer_worker_close(&decode);
    transfer_worker_close(&prefill);
}

static void a_gpu_takes_blocks_of_a_gpu(void **state)
{
    static const worker_kind_t pairs[][2] = {
        {{"cuda", "bf16", 16}, {"cuda", "bf16", 16}},
        {{"cuda", "bf16", 16}, {"cuda", "bf16", 64}},
        {{"cuda", "f32", 64}, {"cuda", "bf16", 16}},
        {{"cuda", "bf16", 16}, {"cuda", "int8", 16}},
        {{"cuda", "int8", 16}, {"cuda", "int8", 64}},
        {{"cuda", "f16", 16}, {"cuda", "f8_e4m3", 32}},
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(pairs); i++) {
        pull_a_prompt(&pairs[i][0], &pairs[i][1]);
    }
}

static void a_gpu_takes_blocks_of_a_cpu(void **state)
{
    static const worker_kind_t pairs[][2] = {
        {{"cpu", "bf16", 16}, {"cuda", "bf16", 16}},
        {{"cpu", "f16", 64}, {"cuda", "bf16", 16}},
        {{"cpu", "bf16", 16}, {"cuda", "int8", 16}},
        {{"cpu", "int8", 16}, {"cuda", "int8", 16}},
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(pairs); i++) {
        pull_a_prompt(&pairs[i][0], &pairs[i][1]);
    }
}

static void a_cpu_takes_blocks_of_a_gpu(void **state)
{
    static const worker_kind_t pairs[][2] = {
        {{"cuda", "bf16", 16}, {"cpu", "bf16", 64}},
        {{"cuda", "bf16", 16}, {"cpu", "f16", 16}},
        {{"cuda", "int8", 16}, {"cpu", "f8_e4m3", 32}},
    };
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(pairs); i++) {
        pull_a_prompt(&pairs[i][0], &pairs[i][1]);
    }
}

/* Its blocks may be given to others only when the device no longer writes to them. */
static void a_pull_that_is_ended_early_lands_first(void **state)
{
    const transfer_worker_config_t p = {.device = "cuda", .dtype = "f32"};
    const transfer_worker_config_t d = {.device = "cuda", .dtype = "bf16"};
    kv_block_id_t blocks[TRANSFER_RIG_BLOCKS];
    (void)state;
    transfer_worker_open(&prefill, &p);
    transfer_worker_open(&decode, &d);
    for (uint64_t round = 0; round < 8; round++) {
        char id[16];
        snprintf(id, sizeof(id), "request-%u", (unsigned)round);
        kv_transfer_params_t params = prefill_whole(&prefill, id, PROMPT, round);
        kv_pull_t *pull = expect(&decode, &params, PROMPT);
        const uint32_t n = alloc(&decode, PROMPT, blocks);
        assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
        for (uint64_t i = 0; i < round; i++) {
            transfer_rig_poll();
        }
        kv_pull_end(pull);
        kv_pool_release(decode.pool, blocks, n);
        kv_transfer_params_fini(&params);
        assert_true(transfer_rig_until(has_landed, &decode));
        assert_all_free(&prefill);
    }
    transfer_worker_close(&decode);
    transfer_worker_close(&prefill);
}

/* ---- engines --------------------------------------------------------------------------------- */

static engine_options_t options_of(const char *device, const char *role, uint32_t block_size)
{
    static char configs[2][128];
    engine_options_t options = engine_rig_options();
    char *config = configs[strcmp(role, "kv_consumer") == 0];
    snprintf(config, sizeof(configs[0]), "{\"kv_connector\":\"WeftConnector\",\"kv_role\":\"%s\"}",
             role);
    options.device = device;
    options.max_model_len = 96;
    options.kv_transfer_config = config;
    options.block_size = block_size;
    options.num_gpu_blocks = 64 * 16 / block_size;
    return options;
}

static void prefill_leg(engine_rig_t *rig, const engine_submit_t *submit,
                        kv_transfer_params_t *params_out)
{
    const kv_transfer_params_t asked = {
        .do_remote_decode = true, .tp_size = 1, .dcp_size = 1, .pp_size = 1};
    engine_submit_t leg = *submit;
    leg.sampling.max_tokens = 1;
    leg.transfer = &asked;
    engine_request_t *request = engine_rig_send(rig, &leg);
    engine_rig_wait(rig, request);
    assert_non_null(engine_request_transfer(request));
    assert_status(kv_transfer_params_copy(engine_request_transfer(request), params_out), WEFT_OK);
    engine_request_release(request);
}

/* The answer's tokens, [12]. */
static void split_answer(const char *prefiller, uint32_t p_block, uint32_t d_block,
                         int32_t *tokens_out)
{
    engine_rig_t p_rig;
    engine_rig_t d_rig;
    kv_transfer_params_t params;
    const engine_options_t p = options_of(prefiller, "kv_producer", p_block);
    const engine_options_t d = options_of("cuda", "kv_consumer", d_block);
    engine_rig_open(&p_rig, ENGINE_RIG_MODEL, &p);
    engine_rig_open(&d_rig, ENGINE_RIG_MODEL, &d);
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 12);
    prefill_leg(&p_rig, &submit, &params);
    submit.transfer = &params;
    engine_request_t *request = engine_rig_send(&d_rig, &submit);
    engine_rig_wait(&d_rig, request);
    const engine_answer_t answer = engine_request_answer(request, 0);
    assert_int_equal(answer.n_tokens, 12);
    memcpy(tokens_out, answer.tokens, 12 * sizeof(*tokens_out));
    assert_int_equal(engine_request_timings(request).pulled_tokens, 39);
    engine_request_release(request);
    kv_transfer_params_fini(&params);
    (void)engine_rig_wait_idle(&p_rig);
    (void)engine_rig_wait_idle(&d_rig);
    engine_rig_close(&p_rig);
    engine_rig_close(&d_rig);
}

static void answer_alone(int32_t *tokens_out)
{
    engine_rig_t rig;
    engine_options_t options = engine_rig_options();
    options.device = "cuda";
    options.max_model_len = 96;
    engine_rig_open(&rig, ENGINE_RIG_MODEL, &options);
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 40, 12);
    engine_request_t *request = engine_rig_send(&rig, &submit);
    engine_rig_wait(&rig, request);
    memcpy(tokens_out, engine_request_answer(request, 0).tokens, 12 * sizeof(*tokens_out));
    engine_request_release(request);
    engine_rig_close(&rig);
}

static void a_split_answers_as_one_worker(void **state)
{
    int32_t alone[12];
    int32_t split[12];
    (void)state;
    answer_alone(alone);
    split_answer("cuda", 16, 16, split);
    assert_memory_equal(split, alone, sizeof(alone));
    split_answer("cuda", 16, 64, split);
    assert_memory_equal(split, alone, sizeof(alone));
}

/* In another precision: its own tokens may be others, but it takes all 39 from the CPU. */
static void a_gpu_decodes_what_a_cpu_prefilled(void **state)
{
    int32_t split[12];
    (void)state;
    split_answer("cpu", 16, 16, split);
}

int main(void)
{
    cuda_skip_without_device();
    setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1", 1);
    setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", "0", 1);
    weft_log_set_level(WEFT_LOG_WARN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_gpu_takes_blocks_of_a_gpu),
        cmocka_unit_test(a_gpu_takes_blocks_of_a_cpu),
        cmocka_unit_test(a_cpu_takes_blocks_of_a_gpu),
        cmocka_unit_test(a_pull_that_is_ended_early_lands_first),
        cmocka_unit_test(a_split_answers_as_one_worker),
        cmocka_unit_test(a_gpu_decodes_what_a_cpu_prefilled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
