/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_rig: an engine over a tiny model, with one client, and requests that are easy to write.
 * Everything asserts.
 */
#pragma once

#include <string.h>

#include "runtime/engine/engine.h"
#include "tests/support/check.h"

typedef struct engine_rig {
    model_source_t *source;
    engine_t *engine;
    engine_client_t *client;
} engine_rig_t;

/* The defaults of the option table, small enough for a test; auto ISA, two threads. */
static inline engine_options_t engine_rig_options(void)
{
    return (engine_options_t){
        .device = "cpu",
        .runner = "auto",
        .cpu_isa = "auto",
        .threads = 2,
        .tensor_parallel_size = 1,
        .pipeline_parallel_size = 1,
        .max_num_seqs = 8,
        .max_num_batched_tokens = 64,
        .gpu_memory_utilization = 0.5,
        .deterministic = true,
        .max_num_queued_reqs = 64,
        .block_size = 16,
        .enable_prefix_caching = true,
        .hash_algo = "sha256_cbor",
        .speculative_config = "",
        .kv_cache_dtype = "auto",
        .kv_cache_layout = "BHLNC",
        .num_gpu_blocks = 64,
        .kv_disk_path = "",
        .kv_disk_admission = "reuse",
        .kv_remote_peers = "",
        .kv_remote_listen = "",
        .kv_remote_backends = "",
        .kv_remote_params = "",
        .kv_remote_wait = 0.25,
        .kv_pin_quota = 0.25,
        .kv_events_config = "",
        .kv_events_encoding = "map",
        .kv_transfer_config = "",
        .kv_load_failure_policy = "recompute",
    };
}

static inline void engine_rig_path(const char *model, char *path, size_t size)
{
    const bool is_gguf = strstr(model, "gguf") != NULL;
    snprintf(path, size, WEFT_TEST_VECTORS "/tiny-models/%s%s", model,
             is_gguf ? "/model.gguf" : "");
}

static inline void engine_rig_open(engine_rig_t *rig, const char *model,
                                   const engine_options_t *options)
{
    char path[512];
    weft_diag_t diag = {0};
    engine_rig_path(model, path, sizeof(path));
    *rig = (engine_rig_t){0};
    if (model_source_open(path, &diag, &rig->source) < 0 ||
        engine_create(options, rig->source, NULL, NULL, &diag, &rig->engine) < 0) {
        fail_msg("%s", diag.text);
    }
    assert_status(engine_client_create(rig->engine, &rig->client), WEFT_OK);
}

static inline void engine_rig_close(engine_rig_t *rig)
{
    engine_client_destroy(rig->client);
    engine_destroy(rig->engine);
    model_source_close(rig->source);
}

/* Greedy, no penalty, runs to max_tokens unless stopped. prompt is borrowed. */
static inline engine_submit_t engine_rig_submit(const int32_t *prompt, uint32_t n_prompt,
                                                uint32_t max_tokens)
{
    return (engine_submit_t){
        .id = "test",
        .prompt = prompt,
        .n_prompt = n_prompt,
        .n = 1,
        .sampling = {.top_p = 1,
                     .repetition_penalty = 1,
                     .max_tokens = max_tokens,
                     .ignore_eos = true},
    };
}

static inline engine_request_t *engine_rig_send(engine_rig_t *rig, const engine_submit_t *submit)
{
    weft_diag_t diag = {0};
    engine_request_t *request = NULL;
    if (engine_submit(rig->engine, rig->client, submit, &diag, &request) < 0) {
        fail_msg("%s", diag.text);
    }
    return request;
}

static inline bool engine_rig_is_done(const engine_request_t *request)
{
    for (uint32_t i = 0; i < engine_request_samples(request); i++) {
        if (engine_request_answer(request, i).finish == ENGINE_FINISH_NONE) {
            return false;
        }
    }
    return true;
}

/* News of other requests of the rig's client are dropped meanwhile. */
static inline void engine_rig_wait(engine_rig_t *rig, const engine_request_t *request)
{
    while (!engine_rig_is_done(request)) {
        assert_non_null(engine_client_wait(rig->client, 60000));
    }
}

/* It was written to its end, with the tokens of another. */
static inline void engine_rig_assert_whole_as(const engine_request_t *request,
                                              const engine_request_t *expected)
{
    const engine_answer_t got = engine_request_answer(request, 0);
    const engine_answer_t want = engine_request_answer(expected, 0);
    assert_int_equal(got.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(got.n_tokens, want.n_tokens);
    assert_memory_equal(got.tokens, want.tokens, want.n_tokens * sizeof(int32_t));
}

/* Waits for a state that another thread brings about, looking again and again. */
static inline engine_stats_t engine_rig_wait_idle(engine_rig_t *rig)
{
    engine_stats_t stats = engine_stats(rig->engine);
    while (stats.running + stats.waiting + stats.referenced_blocks > 0) {
        (void)engine_client_wait(rig->client, 1);
        stats = engine_stats(rig->engine);
    }
    return stats;
}

/* ---- one small engine, one prompt ---- */

#define ENGINE_RIG_MODEL "llama"

static const int32_t engine_rig_prompt[40] = {
    1,  70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88,
    89, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 60, 61, 62, 63, 64, 65, 66, 67, 68};

static inline void engine_rig_open_small(engine_rig_t *rig)
{
    const engine_options_t options = engine_rig_options();
    engine_rig_open(rig, ENGINE_RIG_MODEL, &options);
}

/* The greedy continuation of the prompt's first 20 tokens, to compare with. */
static inline engine_request_t *engine_rig_greedy(engine_rig_t *rig, uint32_t max_tokens)
{
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, max_tokens);
    engine_request_t *request = engine_rig_send(rig, &submit);
    engine_rig_wait(rig, request);
    return request;
}
