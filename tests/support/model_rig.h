/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_rig: a loaded model with room for keys and values, and what the reference said about it.
 * Everything asserts; a test only closes what it opened.
 */
#pragma once

#include <jansson.h>
#include <math.h>
#include <string.h>

#include "base/device.h"
#include "kernels/kernels.h"
#include "kvstore/kv_layout.h"
#include "runtime/model/model.h"
#include "tests/support/check.h"
#include "tests/support/sanitizer.h"

#define TINY_MODELS WEFT_TEST_VECTORS "/tiny-models/"

/* Every architecture and file kind with golden outputs. */
static const char *const tiny_models[] = {
    "llama",
    "llama-sharded",
    "llama-rope-llama3",
    "llama-rope-linear",
    "llama-rope-yarn",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "mixtral",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-longrope",
    "granite",
    "olmo2",
    "gpt-oss",
    "gpt-oss-mxfp4",
    "deepseek-v2",
    "deepseek-v3",
    "llama-fp8-block",
    "llama-fp8-tensor",
    "llama-gguf-f32",
    "llama-gguf-q8_0",
    "qwen2-gguf-f32",
    "qwen2-gguf-q8_0",
    "qwen3-gguf-f32",
    "qwen3-gguf-q8_0",
    "gemma2-gguf",
    "gemma3-gguf",
    "phi3-longrope-gguf",
    "granite-gguf",
    "olmo2-gguf",
    "mixtral-gguf",
    "gpt-oss-mxfp4-gguf",
    "deepseek-v2-gguf",
    "deepseek-v3-gguf",
};

typedef struct model_rig_config {
    const char *path;
    const char *device; /* NULL: cpu */
    const char *isa;    /* of the cpu */
    uint32_t threads;   /* 0: one */
    k_dtype_t kv_dtype;
    uint32_t block_tokens;
    uint32_t n_blocks;
    model_limits_t limits;
    const model_shard_t *shard; /* NULL: the whole model */
} model_rig_config_t;

typedef struct model_rig {
    weft_device_t *device;
    k_stream_t *stream;
    model_source_t *source;
    model_t *model;
    kv_layout_t layout;
    weft_mem_t kv;
} model_rig_t;

static inline weft_status_t model_rig_check(weft_status_t status, const weft_diag_t *diag)
{
    if (status < 0) {
        print_error("%s: %s\n", weft_status_name(status), diag->text);
    }
    assert_true(status >= 0);
    return status;
}

static inline void model_rig_open_source(model_rig_t *rig, const model_rig_config_t *config)
{
    weft_diag_t diag = {0};
    *rig = (model_rig_t){0};
    model_rig_check(
        weft_device_open(config->device == NULL ? "cpu" : config->device, 0, &diag, &rig->device),
        &diag);
    model_rig_check(k_stream_create(rig->device, config->isa,
                                    config->threads > 0 ? config->threads : 1, &diag, &rig->stream),
                    &diag);
    model_rig_check(model_source_open(config->path, &diag, &rig->source), &diag);
}

static inline void model_rig_open_kv(model_rig_t *rig, const model_rig_config_t *config)
{
    model_config_t local;
    weft_diag_t diag = {0};
    model_rig_check(model_local_config_of(rig->source, config->shard, &diag, &local), &diag);
    const model_config_t *shape = &local;
    rig->layout = (kv_layout_t){
        .order = KV_ORDER_BHLNC,
        .block_tokens = config->block_tokens,
        .element_bytes = k_dtype_info(config->kv_dtype)->block_bytes,
        .scale_bytes = k_kv_scale_bytes(config->kv_dtype),
        .n_groups = 1,
        .groups = {{shape->layers, shape->kv_heads, shape->head_dim, model_kv_window(shape)}},
    };
    model_rig_check(kv_layout_init(&rig->layout, config->n_blocks, &diag), &diag);
    assert_status(rig->device->ops->alloc(
                      rig->device, config->n_blocks * rig->layout.block_bytes[0], 0, &rig->kv),
                  WEFT_OK);
}

static inline void model_rig_open(model_rig_t *rig, const model_rig_config_t *config)
{
    weft_diag_t diag = {0};
    model_rig_open_source(rig, config);
    model_rig_check(
        model_create(rig->source, config->shard, &config->limits, rig->stream, &diag, &rig->model),
        &diag);
    model_rig_open_kv(rig, config);
}

/* Where each layer's keys and values lie; kv_out [max]. */
static inline void model_rig_kv(const model_rig_t *rig, k_dtype_t kv_dtype, k_kv_view_t *kv_out,
                                uint32_t max)
{
    const model_config_t *config = model_local_config(rig->model);
    const kv_strides_t *strides = &rig->layout.strides[0];
    assert_true(config->layers <= max);
    for (uint32_t i = 0; i < config->layers; i++) {
        kv_out[i] = (k_kv_view_t){
            .base = (char *)rig->kv.addr + i * strides->layer,
            .dtype = kv_dtype,
            .block_tokens = rig->layout.block_tokens,
            .heads = config->kv_heads,
            .head_dim = config->head_dim,
            .block_stride = strides->block,
            .head_stride = strides->head,
            .token_stride = strides->token,
            .part_stride = strides->part,
            .scale_offset = strides->scales,
        };
    }
}

/*
 * model_logits of whole rows: logits [n, vocab], of a cut model all ranks' parts put together. On the
 * host, done when it returns.
 */
static inline void model_rig_logits(const model_rig_t *rig, const uint32_t *rows, uint32_t n,
                                    float *logits)
{
    const uint32_t vocab = model_config(rig->model)->vocab;
    const model_shard_t *shard = model_shard(rig->model);
    const model_range_t own = model_shard_vocab(shard, model_config(rig->model));
    if (!model_shard_is_cut(shard)) {
        model_logits(rig->model, rig->stream, rows, n, logits);
        return;
    }
    float *part = test_malloc((size_t)n * own.n * sizeof(*part));
    model_logits(rig->model, rig->stream, rows, n, part);
    memset(logits, 0, (size_t)n * vocab * sizeof(*logits));
    for (uint32_t i = 0; i < n; i++) {
        memcpy(logits + (size_t)i * vocab + own.first, part + (size_t)i * own.n,
               own.n * sizeof(*part));
    }
    coll_all_reduce(shard->tensor, rig->stream->queue, logits, logits, (size_t)n * vocab, COLL_F32);
    test_free(part);
}

static inline void model_rig_close(model_rig_t *rig)
{
    model_destroy(rig->model);
    if (rig->kv.addr != NULL) {
        rig->device->ops->free(rig->device, &rig->kv);
    }
    model_source_close(rig->source);
    k_stream_destroy(rig->stream);
    weft_device_close(rig->device);
}

/*
 * Calls fn with the name of every instruction set this machine has. With a sanitizer, of the best
 * one alone: the kernels' own tests run all of them there.
 */
static inline void for_each_isa(void (*fn)(const char *isa))
{
    for (const k_ops_t *const *ops = k_ops_all(); *ops != NULL; ops++) {
        if ((*ops)->is_supported()) {
            fn((*ops)->name);
            if (TEST_IS_SANITIZED) {
                return;
            }
        }
    }
}

/* ---- golden data --------------------------------------------------------------------------- */

static inline const char *tiny_model_path(const char *name)
{
    static char path[512];
    const bool is_gguf = strstr(name, "gguf") != NULL;
    snprintf(path, sizeof(path), TINY_MODELS "%s%s", name, is_gguf ? "/model.gguf" : "");
    return path;
}

static inline json_t *load_json(const char *path)
{
    json_error_t error;
    json_t *json = json_load_file(path, 0, &error);
    if (json == NULL) {
        print_error("%s: %s\n", path, error.text);
    }
    assert_non_null(json);
    return json;
}

static inline json_t *load_golden(const char *name)
{
    char path[512];
    snprintf(path, sizeof(path), TINY_MODELS "%s/golden.json", name);
    return load_json(path);
}

/* ints_out [max]; how many the array has. */
static inline uint32_t json_ids(const json_t *array, int32_t *ids_out, uint32_t max)
{
    const uint32_t n = (uint32_t)json_array_size(array);
    assert_true(n <= max);
    for (uint32_t i = 0; i < n; i++) {
        ids_out[i] = (int32_t)json_integer_value(json_array_get(array, i));
    }
    return n;
}

static inline uint32_t argmax(const float *x, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++) {
        best = x[i] > x[best] ? i : best;
    }
    return best;
}

/* ln softmax(logits)[target], in double. */
static inline double log_probability(const float *logits, uint32_t vocab, int32_t target)
{
    const double max = logits[argmax(logits, vocab)];
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        sum += exp(logits[i] - max);
    }
    return logits[target] - max - log(sum);
}
