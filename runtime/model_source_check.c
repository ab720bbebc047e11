/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "runtime/model_source_priv.h"

#define MAX_SHOWN 200 /* bytes of a name in an error line */

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

typedef struct expected {
    model_tensor_id_t id;
    extent_t rows;
    extent_t columns;
    condition_t condition;
    bool is_per_layer;
} expected_t;

#define ROW(name, rows, columns, condition, per_layer)                                             \
    {MODEL_TENSOR_##name, rows, columns, condition, per_layer}

static const expected_t expected[] = {
    ROW(EMBEDDING, VOCAB, HIDDEN, ALWAYS, false),
    ROW(OUTPUT_NORM, ONE, HIDDEN, ALWAYS, false),
    ROW(OUTPUT, VOCAB, HIDDEN, UNTIED, false),
    ROW(ROPE_FREQS, ONE, ROPE_PAIRS, ROPE_FACTORS, false),
    ROW(ATTN_NORM, ONE, HIDDEN, ALWAYS, true),
    ROW(ATTN_Q, QUERIES, HIDDEN, ALWAYS, true),
    ROW(ATTN_K, KEYS, HIDDEN, ALWAYS, true),
    ROW(ATTN_V, KEYS, HIDDEN, ALWAYS, true),
    ROW(ATTN_Q_BIAS, ONE, QUERIES, QKV_BIAS, true),
    ROW(ATTN_K_BIAS, ONE, KEYS, QKV_BIAS, true),
    ROW(ATTN_V_BIAS, ONE, KEYS, QKV_BIAS, true),
    ROW(ATTN_Q_NORM, ONE, HEAD, QK_NORM, true),
    ROW(ATTN_K_NORM, ONE, HEAD, QK_NORM, true),
    ROW(ATTN_OUTPUT, HIDDEN, QUERIES, ALWAYS, true),
    ROW(FFN_NORM, ONE, HIDDEN, ALWAYS, true),
    ROW(FFN_GATE, FFN, HIDDEN, ALWAYS, true),
    ROW(FFN_UP, FFN, HIDDEN, ALWAYS, true),
    ROW(FFN_DOWN, HIDDEN, FFN, ALWAYS, true),
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

static weft_status_t check_one(const model_source_t *source, const expected_t *row, uint32_t layer,
                               weft_diag_t *diag, size_t *found)
{
    model_tensor_t tensor;
    const model_config_t *config = &source->config;
    const weft_status_t status =
        model_source_require(source, row->id, layer, extent_of(config, row->rows),
                             extent_of(config, row->columns), diag, &tensor);
    *found += status == WEFT_OK;
    return status;
}

/* What a checkpoint may hold besides: buffers that are computed, and a head that is tied anyway. */
static bool is_ignored(const model_source_t *source, const char *name)
{
    const char *last = strrchr(name, '.');
    char head[64];
    model_source_tensor_name(source, MODEL_TENSOR_OUTPUT, 0, head, sizeof(head));
    return (last != NULL && strcmp(last, ".inv_freq") == 0) ||
           (source->config.is_embedding_tied && strcmp(name, head) == 0);
}

/* Whether a row of the table, at some layer, has this name. */
static bool is_expected(const model_source_t *source, const char *name)
{
    char known[128];
    unsigned layer = 0;
    const char *prefix = source->gguf != NULL ? "blk.%u." : "model.layers.%u.";
    const bool is_layer = sscanf(name, prefix, &layer) == 1 && layer < source->config.layers;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(expected); i++) {
        if (expected[i].is_per_layer == is_layer &&
            is_met(&source->config, expected[i].condition)) {
            model_source_tensor_name(source, expected[i].id, layer, known, sizeof(known));
            if (strcmp(known, name) == 0) {
                return true;
            }
        }
    }
    return false;
}

/*
 * A tensor that the graph does not use means that the model is a variant whose answers we would get
 * wrong.
 */
static weft_status_t refuse_unknown(const model_source_t *source, weft_diag_t *diag)
{
    for (size_t i = 0; i < source->n_tensors; i++) {
        const char *name = source->tensors[i].name;
        if (!is_expected(source, name) && !is_ignored(source, name)) {
            return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                             "%s: tensor %.*s: is not part of a %s model of %u layers; this "
                             "variant is not supported",
                             source->path, MAX_SHOWN, name, source->config.family,
                             source->config.layers);
        }
    }
    return WEFT_OK;
}

weft_status_t model_source_check_tensors(const model_source_t *source, weft_diag_t *diag)
{
    size_t found = 0;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(expected); i++) {
        const expected_t *row = &expected[i];
        const uint32_t layers = row->is_per_layer ? source->config.layers : 1;
        if (!is_met(&source->config, row->condition)) {
            continue;
        }
        for (uint32_t layer = 0; layer < layers; layer++) {
            const weft_status_t status = check_one(source, row, layer, diag, &found);
            if (status != WEFT_OK) {
                return status;
            }
        }
    }
    return found < source->n_tensors ? refuse_unknown(source, diag) : WEFT_OK;
}
