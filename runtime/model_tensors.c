/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model_tensors.h"

#include <stdio.h>
#include <string.h>

#include "base/compiler.h"

typedef enum scope { MODEL, LAYER } scope_t;

typedef enum extent {
    ONE,
    HIDDEN,
    QUERIES, /* heads × head_dim */
    KEYS,    /* kv_heads × head_dim */
    HEAD,    /* head_dim */
    FFN,     /* intermediate */
    VOCAB,
    ROPE_PAIRS /* rope.dim / 2 */
} extent_t;

typedef enum condition { ALWAYS, UNTIED, QKV_BIAS, QK_NORM, ROPE_FACTORS } condition_t;

typedef struct row {
    model_tensor_id_t id;
    scope_t scope;
    extent_t rows;
    extent_t columns;
    condition_t condition;
    const char *gguf;
    const char *hf;
} row_t;

static const row_t table[MODEL_TENSOR_COUNT] = {
#define TENSOR(name, scope, rows, columns, condition, gguf, hf)                                    \
    {MODEL_TENSOR_##name, scope, rows, columns, condition, gguf, hf},
#include "runtime/model_tensors.def"
#undef TENSOR
};

static uint64_t extent_of(const model_config_t *config, extent_t extent)
{
    switch (extent) {
    case ONE:
        return 1;
    case HIDDEN:
        return config->hidden;
    case QUERIES:
        return (uint64_t)config->heads * config->head_dim;
    case KEYS:
        return (uint64_t)config->kv_heads * config->head_dim;
    case HEAD:
        return config->head_dim;
    case FFN:
        return config->intermediate;
    case VOCAB:
        return config->vocab;
    case ROPE_PAIRS:
        return config->rope.dim / 2;
    }
    return 0;
}

static bool is_met(const model_config_t *config, condition_t condition)
{
    switch (condition) {
    case ALWAYS:
        return true;
    case UNTIED:
        return !config->is_embedding_tied;
    case QKV_BIAS:
        return config->has_qkv_bias;
    case QK_NORM:
        return config->has_qk_norm;
    case ROPE_FACTORS:
        return config->rope.kind == MODEL_ROPE_FACTORS;
    }
    return false;
}

static weft_status_t visit_scope(const model_config_t *config, scope_t scope, uint32_t layer,
                                 model_tensor_visit_fn visit, void *context)
{
    for (size_t i = 0; i < MODEL_TENSOR_COUNT; i++) {
        const row_t *row = &table[i];
        if (row->scope != scope || !is_met(config, row->condition)) {
            continue;
        }
        const model_tensor_want_t want = {
            .id = row->id,
            .layer = layer,
            .rows = extent_of(config, row->rows),
            .columns = extent_of(config, row->columns),
        };
        const weft_status_t status = visit(context, &want);
        if (status != WEFT_OK) {
            return status;
        }
    }
    return WEFT_OK;
}

weft_status_t model_tensors_visit(const model_config_t *config, model_tensor_visit_fn visit,
                                  void *context)
{
    weft_status_t status = visit_scope(config, MODEL, 0, visit, context);
    for (uint32_t layer = 0; status == WEFT_OK && layer < config->layers; layer++) {
        status = visit_scope(config, LAYER, layer, visit, context);
    }
    return status;
}

void model_tensor_name(model_file_kind_t kind, model_tensor_id_t id, uint32_t layer, char *name,
                       size_t size)
{
    snprintf(name, size, kind == MODEL_FILE_GGUF ? table[id].gguf : table[id].hf, layer);
}

bool model_tensor_is_scale(model_tensor_id_t id)
{
    const char *norm = strstr(table[id].gguf, "norm.weight");
    return norm != NULL || id == MODEL_TENSOR_ROPE_FREQS;
}

bool model_tensors_has(const model_config_t *config, model_file_kind_t kind, const char *name)
{
    char known[128];
    unsigned layer = 0;
    const char *prefix = kind == MODEL_FILE_GGUF ? "blk.%u." : "model.layers.%u.";
    const bool is_layer = sscanf(name, prefix, &layer) == 1 && layer < config->layers;
    const scope_t scope = is_layer ? LAYER : MODEL;
    for (size_t i = 0; i < MODEL_TENSOR_COUNT; i++) {
        if (table[i].scope == scope && is_met(config, table[i].condition)) {
            model_tensor_name(kind, table[i].id, layer, known, sizeof(known));
            if (strcmp(known, name) == 0) {
                return true;
            }
        }
    }
    return false;
}
