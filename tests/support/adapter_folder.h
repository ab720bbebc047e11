/* SPDX-License-Identifier: Apache-2.0 */
/* adapter_folder: LoRA adapters as PEFT saves them, with random weights, for a model at hand. */
#pragma once

#include <stdio.h>
#include <string.h>

#include "runtime/model/model_config.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

typedef struct adapter_folder_module {
    char name[96];
    uint32_t out;
    uint32_t in;
    uint32_t pairs; /* that its two matrices hold: of all experts, where they are one parameter */
} adapter_folder_module_t;

enum { ADAPTER_FOLDER_MODULES = 64 }; /* of a layer, at most */

typedef struct adapter_folder_layer {
    adapter_folder_module_t modules[ADAPTER_FOLDER_MODULES];
    uint32_t n;
} adapter_folder_layer_t;

static inline void adapter_folder_add(adapter_folder_layer_t *layer, const char *where,
                                      const char *name, uint32_t out, uint32_t in)
{
    assert_true(layer->n < ADAPTER_FOLDER_MODULES);
    adapter_folder_module_t *module = &layer->modules[layer->n++];
    snprintf(module->name, sizeof(module->name), "%s.%s", where, name);
    module->out = out;
    module->in = in;
    module->pairs = 1;
}

static inline void adapter_folder_attention(const model_config_t *config,
                                            adapter_folder_layer_t *layer)
{
    const model_mla_t *mla = &config->mla;
    const uint32_t hidden = config->hidden;
    const uint32_t q = config->heads * config->head_dim;
    const uint32_t kv = config->kv_heads * config->head_dim;
    const uint32_t latent_q = config->heads * (mla->plain + mla->rotary);
    const char *at = "self_attn";
    if (config->is_fused) {
        adapter_folder_add(layer, at, "qkv_proj", q + 2 * kv, hidden);
        adapter_folder_add(layer, at, "o_proj", hidden, q);
        return;
    }
    if (mla->kv_latent == 0) {
        adapter_folder_add(layer, at, "q_proj", q, hidden);
        adapter_folder_add(layer, at, "k_proj", kv, hidden);
        adapter_folder_add(layer, at, "v_proj", kv, hidden);
        adapter_folder_add(layer, at, "o_proj", hidden, q);
        return;
    }
    if (mla->q_latent > 0) {
        adapter_folder_add(layer, at, "q_a_proj", mla->q_latent, hidden);
        adapter_folder_add(layer, at, "q_b_proj", latent_q, mla->q_latent);
    } else {
        adapter_folder_add(layer, at, "q_proj", latent_q, hidden);
    }
    adapter_folder_add(layer, at, "kv_a_proj_with_mqa", mla->kv_latent + mla->rotary, hidden);
    adapter_folder_add(layer, at, "kv_b_proj", config->heads * (mla->plain + mla->value),
                       mla->kv_latent);
    adapter_folder_add(layer, at, "o_proj", hidden, config->heads * mla->value);
}

static inline void adapter_folder_gated(const model_config_t *config, const char *at,
                                        const char *const names[3], uint32_t wide,
                                        adapter_folder_layer_t *layer)
{
    adapter_folder_add(layer, at, names[0], wide, config->hidden);
    adapter_folder_add(layer, at, names[1], wide, config->hidden);
    adapter_folder_add(layer, at, names[2], config->hidden, wide);
}

static inline void adapter_folder_experts(const model_config_t *config,
                                          adapter_folder_layer_t *layer)
{
    static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};
    static const char *const of_mixtral[] = {"w1", "w3", "w2"};
    const model_experts_t *experts = &config->experts;
    const bool is_mixtral = strcmp(config->family, "mixtral") == 0;
    const char *at = is_mixtral ? "block_sparse_moe" : "mlp";
    char expert[64];
    adapter_folder_add(layer, at, "gate", experts->count, config->hidden);
    for (uint32_t i = 0; i < experts->count; i++) {
        snprintf(expert, sizeof(expert), "%s.experts.%u", at, i);
        adapter_folder_gated(config, expert, is_mixtral ? of_mixtral : names, experts->intermediate,
                             layer);
    }
    if (experts->shared_intermediate > 0) {
        adapter_folder_gated(config, "mlp.shared_experts", names, experts->shared_intermediate,
                             layer);
    }
}

/* GPT-OSS. */
static inline bool adapter_folder_is_of_parameters(const model_config_t *config)
{
    return config->experts.has_linear_bias;
}

/* As PEFT wraps two parameters of one module: the first one's matrices are the inner wrapper's. */
static inline void adapter_folder_parameters(const model_config_t *config,
                                             adapter_folder_layer_t *layer)
{
    const model_experts_t *experts = &config->experts;
    const uint32_t first = layer->n;
    adapter_folder_add(layer, "mlp", "experts.base_layer", 2 * experts->intermediate,
                       config->hidden);
    adapter_folder_add(layer, "mlp", "experts", config->hidden, experts->intermediate);
    for (uint32_t i = first; i < layer->n; i++) {
        layer->modules[i].pairs = experts->count;
    }
}

static inline void adapter_folder_modules(const model_config_t *config, uint32_t index,
                                          adapter_folder_layer_t *layer)
{
    static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};
    layer->n = 0;
    adapter_folder_attention(config, layer);
    if (adapter_folder_is_of_parameters(config)) {
        adapter_folder_parameters(config, layer);
    } else if (model_layer_has_experts(config, index)) {
        adapter_folder_experts(config, layer);
    } else if (config->is_fused) {
        adapter_folder_add(layer, "mlp", "gate_up_proj", 2 * config->intermediate, config->hidden);
        adapter_folder_add(layer, "mlp", "down_proj", config->hidden, config->intermediate);
    } else {
        adapter_folder_gated(config, "mlp", names, config->intermediate, layer);
    }
}

/* The header's entry of one matrix, and behind it its place in the data. */
static inline size_t adapter_folder_entry(FILE *header, uint32_t layer, const char *module,
                                          char side, uint32_t rows, uint32_t columns, size_t at)
{
    const size_t end = at + (size_t)rows * columns * sizeof(float);
    fprintf(header,
            "%s\"base_model.model.model.layers.%u.%s.lora_%c.weight\": {\"dtype\": \"F32\", "
            "\"shape\": [%u, %u], \"data_offsets\": [%zu, %zu]}",
            at == 0 ? "{" : ", ", layer, module, side, rows, columns, at, end);
    return end;
}

/* only: a part of the names of the modules that are written. */
static inline size_t adapter_folder_header(FILE *header, const model_config_t *config,
                                           const char *only, uint32_t rank)
{
    adapter_folder_layer_t layer;
    size_t at = 0;
    for (uint32_t i = 0; i < config->layers; i++) {
        adapter_folder_modules(config, i, &layer);
        for (uint32_t j = 0; j < layer.n; j++) {
            const adapter_folder_module_t *m = &layer.modules[j];
            if (strstr(m->name, only) != NULL) {
                const uint32_t ranks = rank * m->pairs;
                at = adapter_folder_entry(header, i, m->name, 'A', ranks, m->in, at);
                at = adapter_folder_entry(header, i, m->name, 'B', m->out, ranks, at);
            }
        }
    }
    fputc('}', header);
    return at;
}

static inline FILE *adapter_folder_open(const char *folder, const char *name)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    return file;
}

static inline void adapter_folder_write_config(const char *folder, const model_config_t *config,
                                               uint32_t rank)
{
    FILE *json = adapter_folder_open(folder, "adapter_config.json");
    fprintf(json, "{\"peft_type\": \"LORA\", \"r\": %u, \"lora_alpha\": %u, \"bias\": \"none\"%s}",
            rank, 2 * rank,
            adapter_folder_is_of_parameters(config)
                ? ", \"target_parameters\": [\"mlp.experts.gate_up_proj\", "
                  "\"mlp.experts.down_proj\"]"
                : "");
    fclose(json);
}

/* Config, and the file of the matrices with this header: they come next. */
static inline FILE *adapter_folder_begin(const char *folder, const model_config_t *config,
                                         uint32_t rank, const char *header, size_t length)
{
    const uint64_t header_bytes = length;
    adapter_folder_write_config(folder, config, rank);
    FILE *file = adapter_folder_open(folder, "adapter_model.safetensors");
    fwrite(&header_bytes, sizeof(header_bytes), 1, file);
    fwrite(header, 1, length, file);
    return file;
}

/*
 * Adds to the modules whose names contain `only`: "" is all of them, experts and latents as well. Weights
 * within ±size; the folder is there. What is added has scale 2.
 */
static inline void adapter_folder_write(const char *folder, const model_config_t *config,
                                        const char *only, uint32_t rank, float size, uint64_t seed)
{
    test_random_t random = {seed};
    char *text = NULL;
    size_t length = 0;
    FILE *header = open_memstream(&text, &length);
    const size_t bytes = adapter_folder_header(header, config, only, rank);
    fclose(header);
    FILE *file = adapter_folder_begin(folder, config, rank, text, length);
    for (size_t i = 0; i < bytes / sizeof(float); i++) {
        const float weight = size * (float)((double)(int64_t)test_random_u64(&random) * 0x1p-63);
        fwrite(&weight, sizeof(weight), 1, file);
    }
    fclose(file);
    free(text);
}
