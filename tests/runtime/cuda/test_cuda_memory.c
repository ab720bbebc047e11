/* SPDX-License-Identifier: Apache-2.0 */
/* What an engine takes of a GPU's memory is what was planned, before the first step and after the widest. */
#include "base/log.h"
#include "runtime/engine/engine_priv.h"
#include "tests/cuda_emu/cuda_check.h"
#include "tests/support/adapter_folder.h"
#include "tests/support/engine_rig.h"
#include "tests/support/scratch_folder.h"

enum { SEQS = 4, STEP = 32, PROMPT = 40, ANSWER = 20, LORA_RANK = 8 };
enum { ROUNDED = 8 * 4096 }; /* eight allocations, each of whole pages of the host */

static size_t available(void)
{
    size_t bytes = 0;
    size_t total = 0;
    assert_cuda(cudaMemGetInfo(&bytes, &total));
    return bytes;
}

/*
 * The backend's own memory is left out: loading is over, and the emulator's graphs take none. The
 * driver's own ranges, as the KV cache is, are whole pages.
 */
static void assert_as_planned(const engine_rig_t *rig, size_t before)
{
    const engine_plan_t *plan = &rig->engine->plan;
    const weft_mem_t *kv = kv_pool_memory(kv_store_pool(rig->engine->store));
    const size_t own = rig->engine->stream->ops->own_bytes;
    const size_t planned = plan->needs_bytes - own + kv->mapped - kv->bytes;
    assert_in_range(before - available(), planned, planned + ROUNDED);
}

/* Prompts in chunks of whole steps, then as many decodes at once as there are slots. */
static void run_widest_steps(engine_rig_t *rig, const char *adapter)
{
    engine_request_t *requests[SEQS];
    engine_adapter_t *found = adapter == NULL ? NULL : engine_find_adapter(rig->engine, adapter);
    for (uint32_t i = 0; i < SEQS; i++) {
        engine_submit_t submit = engine_rig_submit(engine_rig_prompt, PROMPT, ANSWER);
        submit.adapter = found;
        submit.sampling.wants_logprobs = true;
        submit.sampling.wants_prompt_logprobs = true;
        requests[i] = engine_rig_send(rig, &submit);
    }
    for (uint32_t i = 0; i < SEQS; i++) {
        engine_rig_wait(rig, requests[i]);
        assert_int_equal(engine_request_answer(requests[i], 0).finish, ENGINE_FINISH_LENGTH);
        engine_request_release(requests[i]);
    }
    engine_release_adapter(found);
}

static engine_options_t memory_options(void)
{
    engine_options_t options = engine_rig_options();
    options.device = "cuda";
    options.max_num_seqs = SEQS;
    options.max_num_batched_tokens = STEP;
    options.max_model_len = 64;
    options.enable_prefix_caching = false;
    return options;
}

static void load_adapter(const engine_rig_t *rig)
{
    char folder[64];
    weft_diag_t diag = {0};
    scratch_folder_make(folder, sizeof(folder));
    adapter_folder_write(folder, model_source_config(rig->source), "", LORA_RANK, 0.1f, 3);
    if (engine_load_adapter(rig->engine, "a", folder, &diag) < 0) {
        fail_msg("%s", diag.text);
    }
    scratch_folder_remove(folder);
}

static void a_model_takes_what_is_planned(void **state)
{
    engine_rig_t rig;
    const engine_options_t options = memory_options();
    const size_t before = available();
    engine_rig_open(&rig, *state, &options);
    assert_as_planned(&rig, before);
    run_widest_steps(&rig, NULL);
    assert_as_planned(&rig, before);
    engine_rig_close(&rig);
    assert_int_equal(available(), before);
}

static void adapters_take_what_is_planned(void **state)
{
    engine_rig_t rig;
    engine_options_t options = memory_options();
    options.enable_lora = true;
    options.max_lora_rank = LORA_RANK;
    options.max_loras = 1;
    const size_t before = available();
    engine_rig_open(&rig, *state, &options);
    load_adapter(&rig);
    run_widest_steps(&rig, "a");
    assert_as_planned(&rig, before);
    engine_rig_close(&rig);
}

static void a_model_that_guesses_takes_what_is_planned(void **state)
{
    char path[512];
    char config[640];
    engine_rig_t rig;
    engine_options_t options = memory_options();
    engine_rig_path(*state, path, sizeof(path));
    snprintf(config, sizeof(config),
             "{\"method\": \"draft_model\", \"model\": \"%s\", \"num_speculative_tokens\": 3}",
             path);
    options.speculative_config = config;
    const size_t before = available();
    engine_rig_open(&rig, *state, &options);
    run_widest_steps(&rig, NULL);
    assert_as_planned(&rig, before);
    engine_rig_close(&rig);
}

#define OF(test, model) {#test " of " model, test, NULL, NULL, (void *)(uintptr_t)model}

int main(void)
{
    cuda_skip_without_device();
    weft_log_set_level(WEFT_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        OF(a_model_takes_what_is_planned, "llama"),
        OF(a_model_takes_what_is_planned, "mixtral"),
        OF(a_model_takes_what_is_planned, "deepseek-v3"),
        OF(adapters_take_what_is_planned, "llama"),
        OF(a_model_that_guesses_takes_what_is_planned, "llama"),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
