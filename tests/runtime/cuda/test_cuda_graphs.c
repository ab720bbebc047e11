/* SPDX-License-Identifier: Apache-2.0 */
/* Which steps run as graphs: those with guessed tokens and with adapters as well. */
#include "base/log.h"
#include "runtime/engine/engine_priv.h"
#include "runtime/executor/executor_priv.h"
#include "tests/cuda_emu/cuda_check.h"
#include "tests/support/adapter_folder.h"
#include "tests/support/engine_rig.h"
#include "tests/support/scratch_folder.h"

enum { PROMPT = 18, ANSWER = 16 };

#define NGRAM "{\"method\": \"ngram\", \"num_speculative_tokens\": 3, \"prompt_lookup_min\": 1}"

/* What stood there once is guessed to come again. */
static const int32_t prompt[PROMPT] = {1,  70, 71, 72, 73, 70, 71, 72, 73,
                                       70, 71, 72, 73, 70, 71, 72, 73, 70};

static engine_options_t graph_options(const char *drafts)
{
    engine_options_t options = engine_rig_options();
    options.device = "cuda";
    options.max_model_len = 64;
    options.num_gpu_blocks = 16;
    options.max_num_seqs = 2;
    options.speculative_config = drafts;
    options.enable_lora = true;
    options.max_lora_rank = 4;
    options.max_loras = 1;
    return options;
}

static uint32_t count_graphs(const engine_rig_t *rig, uint32_t kind)
{
    const graphs_t *graphs = &rig->engine->executor->graphs;
    uint32_t n = 0;
    for (uint32_t i = 0; i < graphs->n_batches; i++) {
        for (uint32_t j = 0; j < graphs->n_contexts; j++) {
            n += graphs->made[i][j][kind] != NULL;
        }
    }
    return n;
}

/* One token is favoured so much that the answer repeats it, which drafts guess. */
static void answer(engine_rig_t *rig, const char *adapter, int32_t tokens[ANSWER])
{
    const k_bias_t bias = {70, 12};
    engine_submit_t submit = engine_rig_submit(prompt, PROMPT, ANSWER);
    engine_adapter_t *found = adapter == NULL ? NULL : engine_find_adapter(rig->engine, adapter);
    submit.adapter = found;
    submit.sampling.logit_bias = &bias;
    submit.sampling.n_logit_bias = 1;
    engine_request_t *request = engine_rig_send(rig, &submit);
    engine_rig_wait(rig, request);
    const engine_answer_t got = engine_request_answer(request, 0);
    assert_int_equal(got.n_tokens, ANSWER);
    memcpy(tokens, got.tokens, ANSWER * sizeof(int32_t));
    engine_request_release(request);
    engine_release_adapter(found);
}

static void open_with_adapter(engine_rig_t *rig, const char *drafts)
{
    const engine_options_t options = graph_options(drafts);
    char folder[64];
    weft_diag_t diag = {0};
    engine_rig_open(rig, "llama", &options);
    scratch_folder_make(folder, sizeof(folder));
    adapter_folder_write(folder, model_source_config(rig->source), "", 4, 0.15f, 5);
    assert_status(engine_load_adapter(rig->engine, "a", folder, &diag), WEFT_OK);
    scratch_folder_remove(folder);
}

static void guesses_and_adapters_run_as_graphs(void **state)
{
    (void)state;
    engine_rig_t plain;
    engine_rig_t guessing;
    open_with_adapter(&plain, "");
    open_with_adapter(&guessing, NGRAM);
    for (int has_adapter = 0; has_adapter < 2; has_adapter++) {
        int32_t expected[ANSWER];
        int32_t tokens[ANSWER];
        const char *adapter = has_adapter != 0 ? "a" : NULL;
        const uint32_t kind = has_adapter != 0 ? GRAPH_HAS_ADAPTERS : 0;
        assert_int_equal(count_graphs(&plain, kind), 0);
        assert_int_equal(count_graphs(&guessing, kind | GRAPH_HAS_DRAFTS), 0);
        answer(&plain, adapter, expected);
        answer(&guessing, adapter, tokens);
        assert_memory_equal(tokens, expected, sizeof(expected));
        assert_int_equal(count_graphs(&plain, kind), 1); /* of one row, of one context */
        assert_int_equal(count_graphs(&plain, kind | GRAPH_HAS_DRAFTS), 0);
        assert_true(count_graphs(&guessing, kind | GRAPH_HAS_DRAFTS) > 0);
    }
    const engine_stats_t stats = engine_stats(guessing.engine);
    assert_true(stats.draft_tokens > 0 && stats.accepted[0] > 0);
    engine_rig_close(&guessing);
    engine_rig_close(&plain);
}

int main(void)
{
    cuda_skip_without_device();
    weft_log_set_level(WEFT_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guesses_and_adapters_run_as_graphs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
