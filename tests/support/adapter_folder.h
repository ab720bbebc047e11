/* SPDX-License-Identifier: Apache-2.0 */
/* adapter_folder: LoRA adapters as PEFT saves them, with random weights, for a model at hand. */
#pragma once

#include <stdio.h>
#include <string.h>

#include "runtime/model_config.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

typedef struct adapter_folder_module {
    const char *name;
    uint32_t out;
    uint32_t in;
} adapter_folder_module_t;

enum { ADAPTER_FOLDER_MODULES = 7 };

static inline void adapter_folder_modules(const model_config_t *config,
                                          adapter_folder_module_t *modules)
{
    const uint32_t q = config->heads * config->head_dim;
    const uint32_t kv = config->kv_heads * config->head_dim;
    const adapter_folder_module_t all[ADAPTER_FOLDER_MODULES] = {
        {"self_attn.q_proj", q, config->hidden},
        {"self_attn.k_proj", kv, config->hidden},
        {"self_attn.v_proj", kv, config->hidden},
        {"self_attn.o_proj", config->hidden, q},
        {"mlp.gate_proj", config->intermediate, config->hidden},
        {"mlp.up_proj", config->intermediate, config->hidden},
        {"mlp.down_proj", config->hidden, config->intermediate},
    };
    memcpy(modules, all, sizeof(all));
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

static inline size_t adapter_folder_header(FILE *header, const model_config_t *config,
                                           uint32_t rank)
{
    adapter_folder_module_t modules[ADAPTER_FOLDER_MODULES];
    size_t at = 0;
    adapter_folder_modules(config, modules);
    for (uint32_t i = 0; i < config->layers; i++) {
        for (uint32_t j = 0; j < ADAPTER_FOLDER_MODULES; j++) {
            const adapter_folder_module_t *m = &modules[j];
            at = adapter_folder_entry(header, i, m->name, 'A', rank, m->in, at);
            at = adapter_folder_entry(header, i, m->name, 'B', m->out, rank, at);
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

/* Weights within ±size; the folder is there. What is added has scale 2. */
static inline void adapter_folder_write(const char *folder, const model_config_t *config,
                                        uint32_t rank, float size, uint64_t seed)
{
    test_random_t random = {seed};
    char *text = NULL;
    size_t length = 0;
    FILE *header = open_memstream(&text, &length);
    const size_t bytes = adapter_folder_header(header, config, rank);
    fclose(header);
    FILE *json = adapter_folder_open(folder, "adapter_config.json");
    fprintf(json, "{\"peft_type\": \"LORA\", \"r\": %u, \"lora_alpha\": %u, \"bias\": \"none\"}",
            rank, 2 * rank);
    fclose(json);
    FILE *file = adapter_folder_open(folder, "adapter_model.safetensors");
    const uint64_t header_bytes = length;
    fwrite(&header_bytes, sizeof(header_bytes), 1, file);
    fwrite(text, 1, length, file);
    for (size_t i = 0; i < bytes / sizeof(float); i++) {
        const float weight = size * (float)((double)(int64_t)test_random_u64(&random) * 0x1p-63);
        fwrite(&weight, sizeof(weight), 1, file);
    }
    fclose(file);
    free(text);
}
