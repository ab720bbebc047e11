/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/model_tensors.h"

#include <stdio.h>
#include <string.h>

#include "base/compiler.h"

typedef enum scope { MODEL, LAYER, EXPERT, HEAD } scope_t;

typedef enum extent {
    ONE,
    HIDDEN,
    QUERIES, /* heads × head_dim */
    KEYS,    /* kv_heads × head_dim */
    QKV,     /* queries, keys and values */
    HEADS,
    Q_NORM, /* head_dim, or all queries */
    K_NORM,
    FFN,     /* intermediate */
    FFN_TWO, /* gate and up */
    VOCAB,
    ROPE_PAIRS, /* rope.dim / 2 */
    VALUES,     /* what attention gives: queries, or heads × mla.value */
    EXPERTS,    /* that a token is routed among */
    EACH,       /* a row an expert */
    EXPERT_FFN,
    SHARED_FFN,
    MLA_QUERIES, /* heads × (mla.plain + mla.rotary) */
    Q_LATENT,
    KV_LATENT,
    CACHED, /* mla.kv_latent + mla.rotary */
    PLAIN,
    VALUE
} extent_t;

typedef enum condition {
    ALWAYS,
    UNTIED,
    PRE_NORM,
    POST_NORM,
    SPLIT,
    FUSED,
    QKV_BIAS,
    QK_NORM,
    SINKS,
    OUTPUT_BIAS,
    DENSE, /* a layer without experts */
    DENSE_SPLIT,
    DENSE_FUSED,
    EXPERT_LAYER,
    EXPERT_BIAS,
    SHARED,
    SCORE_BIAS,
    MLA,
    MLA_DIRECT,
    MLA_TWO, /* q by way of a latent */
    ROPE_FACTORS,
    ROPE_LONG
} condition_t;

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
#include "runtime/model/model_tensors.def"
#undef TENSOR
};

/* Names that a family has of its own. */
typedef struct named {
    const char *family;
    model_tensor_id_t id;
    const char *gguf;
    const char *hf;
} named_t;

static const named_t names[] = {
#define NAMED(family, tensor, gguf, hf) {#family, MODEL_TENSOR_##tensor, gguf, hf},
#include "runtime/model/model_tensor_names.def"
#undef NAMED
};

static uint64_t extent_of(const model_config_t *config, extent_t extent)
{
    const uint64_t queries = (uint64_t)config->heads * config->head_dim;
    const uint64_t keys = (uint64_t)config->kv_heads * config->head_dim;
    const bool is_whole = config->qk_norm == MODEL_QK_NORM_WHOLE;
    const model_mla_t *mla = &config->mla;
    switch (extent) {
    case ONE:
        return 1;
    case HIDDEN:
        return config->hidden;
    case QUERIES:
        return queries;
    case KEYS:
        return keys;
    case QKV:
        return queries + 2 * keys;
    case HEADS:
        return config->heads;
    case Q_NORM:
        return is_whole ? queries : config->head_dim;
    case K_NORM:
        return is_whole ? keys : config->head_dim;
    case FFN:
        return config->intermediate;
    case FFN_TWO:
        return 2 * (uint64_t)config->intermediate;
    case VOCAB:
        return config->vocab;
    case ROPE_PAIRS:
        return config->rope.dim / 2;
    case EXPERTS:
    case EACH:
        return config->experts.count;
    case EXPERT_FFN:
        return config->experts.intermediate;
    case SHARED_FFN:
        return config->experts.shared_intermediate;
    case VALUES:
        return mla->kv_latent > 0 ? (uint64_t)config->heads * mla->value : queries;
    case MLA_QUERIES:
        return (uint64_t)config->heads * (mla->plain + mla->rotary);
    case Q_LATENT:
        return mla->q_latent;
    case KV_LATENT:
        return mla->kv_latent;
    case CACHED:
        return mla->kv_latent + mla->rotary;
    case PLAIN:
        return mla->plain;
    case VALUE:
        return mla->value;
    }
    return 0;
}

static bool is_met(const model_config_t *config, condition_t condition, uint32_t layer)
{
    const bool has_experts = model_layer_has_experts(config, layer);
    const bool is_mla = config->mla.kv_latent > 0;
    switch (condition) {
    case ALWAYS:
        return true;
    case UNTIED:
        return !config->is_embedding_tied;
    case PRE_NORM:
        return config->has_pre_norms;
    case POST_NORM:
        return config->has_post_norms;
    case SPLIT:
        return !config->is_fused && !is_mla;
    case FUSED:
        return config->is_fused;
    case QKV_BIAS:
        return config->has_qkv_bias;
    case QK_NORM:
        return config->qk_norm != MODEL_QK_NORM_NONE;
    case SINKS:
        return config->has_sinks;
    case OUTPUT_BIAS:
        return config->has_output_bias;
    case DENSE:
        return !has_experts;
    case DENSE_SPLIT:
        return !has_experts && !config->is_fused;
    case DENSE_FUSED:
        return !has_experts && config->is_fused;
    case EXPERT_LAYER:
        return has_experts;
    case SHARED:
        return has_experts && config->experts.shared_intermediate > 0;
    case SCORE_BIAS:
        return has_experts && config->experts.has_bias;
    case MLA:
        return is_mla;
    case MLA_DIRECT:
        return is_mla && config->mla.q_latent == 0;
    case MLA_TWO:
        return is_mla && config->mla.q_latent > 0;
    case EXPERT_BIAS:
        return has_experts && config->experts.has_linear_bias;
    case ROPE_FACTORS:
        return config->rope.kind == MODEL_ROPE_FACTORS;
    case ROPE_LONG:
        return config->rope.kind == MODEL_ROPE_LONG;
    }
    return false;
}

static const char *name_of(const model_config_t *config, model_file_kind_t kind,
                           model_tensor_id_t id)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        if (names[i].id == id && strcmp(names[i].family, config->family) == 0) {
            const char *own = kind == MODEL_FILE_GGUF ? names[i].gguf : names[i].hf;
            if (own != NULL) {
                return own;
            }
        }
    }
    return kind == MODEL_FILE_GGUF ? table[id].gguf : table[id].hf;
}

uint32_t model_tensor_copies(const model_config_t *config, model_tensor_id_t id)
{
    const scope_t scope = table[id].scope;
    return scope == EXPERT ? config->experts.count : scope == HEAD ? config->heads : 1;
}

/* One tensor, or in files of Hugging Face one an expert. */
static weft_status_t visit_row(const model_config_t *config, model_file_kind_t kind,
                               const row_t *row, uint32_t layer, model_tensor_visit_fn visit,
                               void *context)
{
    const uint32_t experts = model_tensor_copies(config, row->id);
    const bool is_stacked = kind == MODEL_FILE_GGUF;
    model_tensor_want_t want = {
        .key = {.id = row->id, .layer = layer},
        .rows = extent_of(config, row->rows),
        .columns = extent_of(config, row->columns),
        .stacked = is_stacked ? experts : 1,
    };
    want.rows *= want.stacked;
    weft_status_t status = WEFT_OK;
    for (uint32_t e = 0; status == WEFT_OK && e < experts / want.stacked; e++) {
        want.key.expert = e;
        status = visit(context, &want);
    }
    return status;
}

static weft_status_t visit_layer(const model_config_t *config, model_file_kind_t kind,
                                 bool is_layer, uint32_t layer, model_tensor_visit_fn visit,
                                 void *context)
{
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; status == WEFT_OK && i < MODEL_TENSOR_COUNT; i++) {
        const row_t *row = &table[i];
        if ((row->scope != MODEL) == is_layer && is_met(config, row->condition, layer) &&
            name_of(config, kind, row->id)[0] != '\0') {
            status = visit_row(config, kind, row, layer, visit, context);
        }
    }
    return status;
}

weft_status_t model_tensors_visit(const model_config_t *config, model_file_kind_t kind,
                                  model_tensor_visit_fn visit, void *context)
{
    weft_status_t status = visit_layer(config, kind, false, 0, visit, context);
    for (uint32_t layer = 0; status == WEFT_OK && layer < config->layers; layer++) {
        status = visit_layer(config, kind, true, layer, visit, context);
    }
    return status;
}

void model_tensor_name(const model_config_t *config, model_file_kind_t kind, model_tensor_key_t key,
                       char *name, size_t size)
{
    const char *form = name_of(config, kind, key.id);
    const bool is_bare = config->has_bare_names && strncmp(form, "model.", 6) == 0;
    snprintf(name, size, is_bare ? form + 6 : form, key.layer, key.expert);
}

/* ---- what a rank takes --------------------------------------------------------------------- */

static model_range_t scaled(const model_range_t *range, uint32_t unit, uint32_t offset)
{
    return (model_range_t){offset + range->first * unit, range->n * unit};
}

/* runs_out [MODEL_TENSOR_RUNS]; how many. */
static uint32_t runs_of(const model_config_t *config, const model_cut_t *cut, extent_t extent,
                        model_range_t *runs_out)
{
    const bool is_whole_norm = config->qk_norm == MODEL_QK_NORM_WHOLE;
    const uint32_t dim = config->head_dim;
    const uint32_t keys_at = config->heads * dim;
    const model_mla_t *mla = &config->mla;
    switch (extent) {
    case VOCAB:
        runs_out[0] = cut->vocab;
        return 1;
    case QKV:
        runs_out[0] = scaled(&cut->heads, dim, 0);
        runs_out[1] = scaled(&cut->kv_heads, dim, keys_at);
        runs_out[2] = scaled(&cut->kv_heads, dim, keys_at + config->kv_heads * dim);
        return 3;
    case FFN_TWO:
        runs_out[0] = cut->ffn;
        runs_out[1] = scaled(&cut->ffn, 1, config->intermediate);
        return 2;
    case QUERIES:
        runs_out[0] = scaled(&cut->heads, dim, 0);
        return 1;
    case KEYS:
        runs_out[0] = scaled(&cut->kv_heads, dim, 0);
        return 1;
    case Q_NORM:
        runs_out[0] = is_whole_norm ? scaled(&cut->heads, dim, 0) : (model_range_t){0, dim};
        return 1;
    case K_NORM:
        runs_out[0] = is_whole_norm ? scaled(&cut->kv_heads, dim, 0) : (model_range_t){0, dim};
        return 1;
    case VALUES:
        runs_out[0] = scaled(&cut->heads, mla->kv_latent > 0 ? mla->value : dim, 0);
        return 1;
    case MLA_QUERIES:
        runs_out[0] = scaled(&cut->heads, mla->plain + mla->rotary, 0);
        return 1;
    case HEADS:
        runs_out[0] = cut->heads;
        return 1;
    case FFN:
        runs_out[0] = cut->ffn;
        return 1;
    case SHARED_FFN:
        runs_out[0] = cut->shared_ffn;
        return 1;
    case EXPERT_FFN:
        runs_out[0] = cut->expert_ffn;
        return 1;
    case EACH:
        runs_out[0] = cut->experts;
        return 1;
    default:
        runs_out[0] = (model_range_t){0, (uint32_t)extent_of(config, extent)};
        return 1;
    }
}

/* Neighbours become one: a tensor that is not cut is one run. */
static uint32_t join_runs(model_range_t *runs, uint32_t n)
{
    uint32_t last = 0;
    for (uint32_t i = 1; i < n; i++) {
        if (runs[last].first + runs[last].n == runs[i].first) {
            runs[last].n += runs[i].n;
        } else {
            runs[++last] = runs[i];
        }
    }
    return last + 1;
}

static model_tensor_key_t key_in_file(const model_cut_t *cut, model_tensor_key_t key)
{
    const scope_t scope = table[key.id].scope;
    key.layer += scope == MODEL ? 0 : cut->layers.first;
    key.expert += scope == EXPERT ? cut->experts.first : scope == HEAD ? cut->heads.first : 0;
    return key;
}

model_tensor_share_t model_tensor_share_of(const model_config_t *config, const model_cut_t *cut,
                                           model_tensor_key_t key)
{
    const row_t *row = &table[key.id];
    model_range_t columns[MODEL_TENSOR_RUNS];
    model_tensor_share_t share = {
        .key = key_in_file(cut, key),
        .rows = extent_of(config, row->rows),
        .columns = extent_of(config, row->columns),
    };
    share.n_row_runs = runs_of(config, cut, row->rows, share.row_runs);
    share.n_row_runs = join_runs(share.row_runs, share.n_row_runs);
    (void)runs_of(config, cut, row->columns, columns);
    share.column_run = columns[0]; /* no side of several runs is one of columns */
    return share;
}

model_block_t *model_tensor_block(model_tensor_id_t id, model_blocks_t *blocks)
{
    switch (table[id].columns) {
    case VALUES:
        return &blocks->values;
    case FFN:
        return &blocks->ffn;
    case SHARED_FFN:
        return &blocks->shared_ffn;
    case EXPERT_FFN:
        return &blocks->expert_ffn;
    default:
        return NULL;
    }
}

bool model_tensor_is_scale(model_tensor_id_t id)
{
    return strstr(table[id].gguf, "norm.weight") != NULL || strncmp(table[id].gguf, "rope", 4) == 0;
}
