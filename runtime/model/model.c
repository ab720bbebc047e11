/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/model.h"

#include <string.h>

#include "base/alloc.h"
#include "runtime/model/families/graph.h"
#include "runtime/model/model_priv.h"

#define MIB (1024.0 * 1024.0)

#define MODEL(family, hf, gguf) extern const model_family_t model_family_##family;
#include "runtime/model/models.def"
#undef MODEL

static const model_family_t *const families[] = {
#define MODEL(family, hf, gguf) &model_family_##family,
#include "runtime/model/models.def"
#undef MODEL
};

static const model_family_t *find_family(const char *name)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(families); i++) {
        if (strcmp(families[i]->name, name) == 0) {
            return families[i];
        }
    }
    return NULL;
}

/* Rows begin at a multiple of the carve's alignment. */
static size_t padded(size_t elements)
{
    const size_t step = CARVE_ALIGNMENT / sizeof(float);
    return (elements + step - 1) / step * step;
}

static void lay_out_experts(const model_config_t *config, size_t rows, size_t bytes, carve_t *carve,
                            model_activations_t *act)
{
    const model_experts_t *experts = &config->experts;
    model_expert_act_t *expert = &act->expert;
    const size_t slots = rows * experts->used;
    expert->ffn_stride = padded(2 * (size_t)experts->intermediate);
    expert->logits = carve_take(carve, rows * experts->count, sizeof(float));
    expert->weights = carve_take(carve, slots, sizeof(float));
    expert->slot_of = carve_take(carve, slots, sizeof(uint32_t));
    expert->row_of_slot = carve_take(carve, slots, sizeof(uint32_t));
    expert->offsets = carve_take(carve, (size_t)experts->count + 1, sizeof(uint32_t));
    expert->rows = carve_take(carve, slots * act->hidden_stride, bytes);
    expert->ffn = carve_take(carve, slots * expert->ffn_stride, bytes);
}

static void lay_out_mla(const model_config_t *config, size_t rows, size_t bytes, carve_t *carve,
                        model_activations_t *act)
{
    const model_mla_t *mla = &config->mla;
    const size_t heads = config->heads;
    const size_t q = heads * (mla->plain + mla->rotary);
    const size_t cached = mla->kv_latent + mla->rotary;
    act->qkv_stride = padded((mla->q_latent > 0 ? mla->q_latent : q) + cached);
    act->mla_q_stride = padded(q);
    act->mla_latent_stride = padded(heads * cached);
    act->mla_attended_stride = padded(heads * mla->kv_latent);
    act->mla_q = mla->q_latent > 0 ? carve_take(carve, rows * act->mla_q_stride, bytes) : NULL;
    act->mla_latent = carve_take(carve, rows * act->mla_latent_stride, bytes);
    act->mla_attended = carve_take(carve, rows * act->mla_attended_stride, bytes);
}

/* Whether a layer's branch is something to keep before it meets the residual stream. */
static bool has_branch(const model_t *model)
{
    return model->config.has_post_norms ||
           (model_shard_is_cut(&model->shard) && model->config.residual_scale != 1);
}

/* The most that adapters' sums take at once: of the rows of a linear, of all heads, of experts' slots. */
static size_t lora_low_floats(const model_t *model)
{
    const model_config_t *config = &model->config;
    size_t most = 0;
    for (adapter_target_t t = 0; model->limits.max_lora_rank > 0 && t < ADAPTER_TARGETS; t++) {
        const adapter_width_t width = adapter_width(config, t);
        const size_t floats = k_lora_low_floats(
            width.in, (size_t)model->limits.max_rows * width.at_once, model->limits.max_lora_rank);
        most = most < floats ? floats : most;
    }
    return most;
}

static void lay_out_activations(const model_t *model, k_dtype_t dtype, carve_t *carve,
                                model_activations_t *act)
{
    const model_config_t *config = &model->config;
    const size_t outputs = model->limits.max_outputs;
    const size_t rows = model->limits.max_rows;
    const size_t bytes = k_dtype_info(dtype)->block_bytes;
    act->hidden_stride = padded(config->hidden);
    act->qkv_stride = padded((size_t)model_q_dim(config) + 2 * (size_t)model_kv_dim(config));
    act->attended_stride = padded(model_attended_dim(config));
    act->ffn_stride = padded(2 * (size_t)(config->intermediate > config->experts.shared_intermediate
                                              ? config->intermediate
                                              : config->experts.shared_intermediate));
    if (config->mla.kv_latent > 0) {
        lay_out_mla(config, rows, bytes, carve, act);
    }
    act->hidden = carve_take(carve, rows * act->hidden_stride, sizeof(float));
    act->normed = carve_take(carve, rows * act->hidden_stride, bytes);
    act->qkv = carve_take(carve, rows * act->qkv_stride, bytes);
    act->attended = carve_take(carve, rows * act->attended_stride, bytes);
    act->ffn = carve_take(carve, rows * act->ffn_stride, bytes);
    act->lora_low = carve_take(carve, lora_low_floats(model), sizeof(float));
    act->branch =
        has_branch(model) ? carve_take(carve, rows * act->hidden_stride, sizeof(float)) : NULL;
    act->square_sums =
        graph_adds_square_sums(model) ? carve_take(carve, rows * 2, sizeof(float)) : NULL;
    if (config->experts.count > 0) {
        lay_out_experts(config, rows, bytes, carve, act);
    }
    act->chosen = carve_take(carve, outputs * act->hidden_stride, sizeof(float));
    act->chosen_normed = carve_take(carve, outputs * act->hidden_stride, bytes);
}

/* Every op and kind of attention that the model takes, or the first one missing by name. */
static weft_status_t check_ops(const model_t *model, const model_source_t *source,
                               const k_ops_t *ops, weft_diag_t *diag)
{
    const model_config_t *config = &model->config;
    const uint64_t needed = graph_ops_of(model);
    for (uint32_t op = 0; op < K_OP_COUNT; op++) {
        if ((needed >> op & 1) != 0 && !k_ops_has(ops, (k_op_id_t)op)) {
            return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                             "%s: models of family %s take op %s, which kernels \"%s\" do not have",
                             model_source_path(source), config->family, k_op_name((k_op_id_t)op),
                             ops->name);
        }
    }
    const char *missing = NULL;
    if (config->attention_softcap > 0 && (ops->attention_features & K_ATTENTION_SOFTCAP) == 0) {
        missing = "soft caps";
    } else if (config->has_sinks && (ops->attention_features & K_ATTENTION_SINKS) == 0) {
        missing = "sinks";
    }
    if (missing != NULL) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "%s: models of family %s take attention with %s, which kernels \"%s\" do "
                         "not have",
                         model_source_path(source), config->family, missing, ops->name);
    }
    return WEFT_OK;
}

/* The weights of all experts and heads, and each layer's share of them. */
static weft_status_t prepare_weights(model_t *model)
{
    const size_t layers = model->config.layers;
    const size_t experts = model->cut.experts.n;
    const size_t heads = model->config.mla.kv_latent > 0 ? model->config.heads : 0;
    if (experts > 0) {
        model->expert_weights =
            weft_calloc(layers * experts * 2, sizeof(k_weight_t), "model.experts");
    }
    if (heads > 0) {
        model->head_weights = weft_calloc(layers * heads * 2, sizeof(k_weight_t), "model.heads");
    }
    if ((experts > 0 && model->expert_weights == NULL) ||
        (heads > 0 && model->head_weights == NULL)) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (size_t i = 0; i < layers; i++) {
        model_layer_t *layer = &model->layers[i];
        if (experts > 0) {
            layer->expert_gate_up = model->expert_weights + i * 2 * experts;
            layer->expert_down = layer->expert_gate_up + experts;
        }
        if (heads > 0) {
            layer->mla_key = model->head_weights + i * 2 * heads;
            layer->mla_value = layer->mla_key + heads;
        }
    }
    return WEFT_OK;
}

/* A model without memory: its family found, its layers ready to be bound. */
static weft_status_t prepare(const model_source_t *source, const model_shard_t *shard,
                             const model_limits_t *limits, const k_ops_t *ops, weft_diag_t *diag,
                             model_t *model)
{
    weft_status_t status = model_source_cut(source, shard, diag, &model->cut);
    if (status < 0) {
        return status;
    }
    model->whole = model_source_config(source);
    model->shard = shard == NULL ? (model_shard_t){0} : *shard;
    model_shard_config(model->whole, &model->cut, &model->config);
    model->limits = *limits;
    model->family = find_family(model->config.family);
    if (model->family == NULL) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "%s: no graph for family \"%s\"",
                         model_source_path(source), model->config.family);
    }
    const model_mla_t *mla = &model->config.mla;
    const bool is_mla = mla->kv_latent > 0;
    const uint32_t size = is_mla ? mla->kv_latent + mla->rotary : model->config.head_dim;
    const uint32_t most = is_mla ? K_MAX_LATENT : K_MAX_HEAD_DIM;
    if (size > most) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "%s: %s of %u elements, at most %u",
                         model_source_path(source), is_mla ? "latents" : "heads", size, most);
    }
    status = check_ops(model, source, ops, diag);
    if (status < 0) {
        return status;
    }
    model->layers = weft_calloc(model->config.layers, sizeof(model_layer_t), "model.layers");
    return model->layers == NULL ? WEFT_ERR_NO_MEMORY : prepare_weights(model);
}

static weft_status_t measure(model_t *model, const model_source_t *source, const k_ops_t *ops,
                             weft_diag_t *diag, model_weights_t *weights, size_t *activations_out)
{
    carve_t activations = {.base = NULL};
    const weft_status_t status = model_bind(model, source, ops, NULL, weights, diag);
    if (status < 0) {
        return status;
    }
    lay_out_activations(model, ops->act, &activations, &model->act);
    *activations_out = activations.used;
    return WEFT_OK;
}

/* Where the matrices begin behind the vectors. */
static size_t matrices_at(const model_weights_t *weights)
{
    return (weights->vectors.used + CARVE_ALIGNMENT - 1) / CARVE_ALIGNMENT * CARVE_ALIGNMENT;
}

/* What prepare took. */
static void free_parts(model_t *model)
{
    weft_free(model->head_weights);
    weft_free(model->expert_weights);
    weft_free(model->layers);
}

weft_status_t model_memory(const model_source_t *source, const model_shard_t *shard,
                           const model_limits_t *limits, const k_ops_t *ops, weft_diag_t *diag,
                           size_t *weights_bytes_out, size_t *activation_bytes_out)
{
    model_t model = {0};
    weft_status_t status = prepare(source, shard, limits, ops, diag, &model);
    model_weights_t weights = {0};
    if (status >= 0) {
        status = measure(&model, source, ops, diag, &weights, activation_bytes_out);
        *weights_bytes_out = matrices_at(&weights) + weights.matrices.used;
    }
    free_parts(&model);
    return status;
}

static weft_status_t take_memory(model_t *model, size_t weights, size_t activations,
                                 weft_diag_t *diag)
{
    const weft_device_ops_t *ops = model->device->ops;
    weft_status_t status = ops->alloc(model->device, weights, 0, &model->weights_memory);
    if (status >= 0) {
        status = ops->alloc(model->device, activations, 0, &model->activations_memory);
    }
    if (status == WEFT_ERR_NO_MEMORY) {
        return weft_diag(diag, status,
                         "not enough memory: the model takes %.0f MiB for weights and %.0f MiB for "
                         "activations; lower --max-num-batched-tokens or take a smaller model",
                         (double)weights / MIB, (double)activations / MIB);
    }
    return status;
}

/* Elements of the widest row of the graph. */
static uint32_t widest(const model_activations_t *act)
{
    size_t width = act->ffn_stride;
    width = width < act->qkv_stride ? act->qkv_stride : width;
    width = width < act->hidden_stride ? act->hidden_stride : width;
    width = width < act->attended_stride ? act->attended_stride : width;
    width = width < act->mla_q_stride ? act->mla_q_stride : width;
    width = width < act->expert.ffn_stride ? act->expert.ffn_stride : width;
    return (uint32_t)width;
}

weft_status_t model_scratch(const model_source_t *source, const model_shard_t *shard,
                            const model_limits_t *limits, const k_ops_t *ops, uint32_t threads,
                            weft_diag_t *diag, size_t *bytes_out)
{
    model_t model = {0};
    carve_t activations = {.base = NULL};
    const weft_status_t status = prepare(source, shard, limits, ops, diag, &model);
    if (status >= 0) {
        lay_out_activations(&model, ops->act, &activations, &model.act);
        *bytes_out = ops->scratch_bytes(limits->max_rows, widest(&model.act), threads);
    }
    free_parts(&model);
    return status;
}

static void set_targets(model_linear_t *linear, uint32_t layer, adapter_target_t first, uint32_t n)
{
    linear->layer = layer;
    linear->first_target = first;
    linear->n_targets = n;
}

/* What adapters add to which linear. */
static void name_targets(model_t *model)
{
    for (uint32_t i = 0; model->limits.max_lora_rank > 0 && i < model->config.layers; i++) {
        model_layer_t *layer = &model->layers[i];
        if (model->config.mla.kv_latent > 0) {
            set_targets(&layer->qkv, i, ADAPTER_MLA_Q, 2);
            set_targets(&layer->mla_q, i, ADAPTER_MLA_Q_B, 1);
        } else {
            set_targets(&layer->qkv, i, ADAPTER_Q, 3);
        }
        set_targets(&layer->attn_output, i, ADAPTER_O, 1);
        set_targets(&layer->gate_up, i, ADAPTER_GATE, 2);
        set_targets(&layer->down, i, ADAPTER_DOWN, 1);
        set_targets(&layer->router, i, ADAPTER_ROUTER, 1);
        set_targets(&layer->shared_gate_up, i, ADAPTER_SHARED_GATE, 2);
        set_targets(&layer->shared_down, i, ADAPTER_SHARED_DOWN, 1);
    }
}

/* Memory for all of it, and the weights in their places; packed: the matrices, NULL: to be made. */
static weft_status_t load_weights(model_t *model, const model_source_t *source,
                                  const model_weights_t *measured, size_t activations,
                                  const void *packed, k_stream_t *stream, weft_diag_t *diag)
{
    const size_t vectors = matrices_at(measured);
    const size_t bytes = vectors + (packed == NULL ? measured->matrices.used : 0);
    weft_status_t status = take_memory(model, bytes, activations, diag);
    if (status >= 0) {
        carve_t carve = {.base = model->activations_memory.addr};
        lay_out_activations(model, stream->ops->act, &carve, &model->act);
        status = k_stream_reserve(stream, model->limits.max_rows, widest(&model->act));
    }
    if (status >= 0) {
        char *base = model->weights_memory.addr;
        model_weights_t weights = {
            .vectors.base = base,
            .matrices.base = packed == NULL ? base + vectors : (char *)(uintptr_t)packed,
            .are_packed = packed != NULL,
        };
        status = model_bind(model, source, stream->ops, stream, &weights, diag);
        name_targets(model);
    }
    return status < 0 ? status : k_stream_sync(stream);
}

static weft_status_t load(model_t *model, const model_source_t *source, k_stream_t *stream,
                          weft_diag_t *diag)
{
    const k_ops_t *ops = stream->ops;
    size_t activations;
    model_weights_t measured = {0};
    weft_status_t status = model_packed_begin(model, &measured);
    if (status >= 0) {
        status = measure(model, source, ops, diag, &measured, &activations);
    }
    const void *packed = NULL;
    if (status >= 0 && measured.digest != NULL) {
        packed = model_packed_open(model, source, ops, &measured);
    }
    if (status >= 0) {
        status = load_weights(model, source, &measured, activations, packed, stream, diag);
    }
    if (status >= 0 && measured.digest != NULL && packed == NULL) {
        const char *base = model->weights_memory.addr;
        model_packed_save(model, source, ops, &measured, base + matrices_at(&measured));
    }
    model_packed_end(&measured);
    return status;
}

weft_status_t model_create(const model_source_t *source, const model_shard_t *shard,
                           const model_limits_t *limits, k_stream_t *stream, weft_diag_t *diag,
                           model_t **model_out)
{
    model_t *model = weft_zalloc(sizeof(*model), "model.model");
    if (model == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    model->device = stream->device;

    weft_status_t status = prepare(source, shard, limits, stream->ops, diag, model);
    if (status >= 0) {
        status = load(model, source, stream, diag);
    }
    if (status < 0) {
        model_destroy(model);
        return status;
    }
    *model_out = model;
    return WEFT_OK;
}

static void free_memory(weft_device_t *device, weft_mem_t *memory)
{
    if (memory->addr != NULL) {
        device->ops->free(device, memory);
    }
}

void model_destroy(model_t *model)
{
    if (model == NULL) {
        return;
    }
    free_memory(model->device, &model->weights_memory);
    free_memory(model->device, &model->activations_memory);
    weft_mapped_file_close(&model->packed);
    weft_free(model->head_weights);
    weft_free(model->expert_weights);
    weft_free(model->layers);
    weft_free(model);
}

void model_set_adapters(model_t *model, const adapter_table_t *adapters)
{
    model->adapters = adapters;
}

uint32_t model_adapter_targets(const model_t *model)
{
    return model->adapters == NULL ? 0 : adapter_table_targets(model->adapters);
}

void model_set_groups(model_t *model, const model_shard_t *shard)
{
    model->shard.tensor = shard->tensor;
    model->shard.world = shard->world;
    model->shard.results = shard->results;
}

const model_shard_t *model_shard(const model_t *model)
{
    return &model->shard;
}

const model_config_t *model_config(const model_t *model)
{
    return model->whole;
}

const model_cut_t *model_cut(const model_t *model)
{
    return &model->cut;
}

const model_config_t *model_local_config(const model_t *model)
{
    return &model->config;
}

weft_status_t model_local_config_of(const model_source_t *source, const model_shard_t *shard,
                                    weft_diag_t *diag, model_config_t *config_out)
{
    model_cut_t cut;
    const weft_status_t status = model_source_cut(source, shard, diag, &cut);
    if (status >= 0) {
        model_shard_config(model_source_config(source), &cut, config_out);
    }
    return status;
}

const model_limits_t *model_limits(const model_t *model)
{
    return &model->limits;
}

void model_forward(model_t *model, k_stream_t *stream, const model_batch_t *batch)
{
    graph_debts_t debts = {0};
    const graph_t graph = {model, stream, batch, &debts};

    graph_begin(&graph);
    for (uint32_t i = 0; i < model->config.layers; i++) {
        model->family->add_layer(&graph, i);
    }
    graph_end(&graph);
}

const void *model_hidden(model_t *model, k_stream_t *stream, const uint32_t *rows, uint32_t n,
                         size_t *stride_out)
{
    const model_activations_t *act = &model->act;
    const k_gather_rows_args_t gather = {
        .x = act->hidden,
        .index = rows,
        .y = act->chosen,
        .rows = n,
        .dim = model->config.hidden,
        .x_stride = act->hidden_stride,
        .y_stride = act->hidden_stride,
    };
    const k_rms_norm_args_t norm = {
        .x = act->chosen,
        .x_dtype = K_F32,
        .w = model->output_norm,
        .y = act->chosen_normed,
        .rows = n,
        .groups = 1,
        .dim = model->config.hidden,
        .x_stride = act->hidden_stride,
        .y_stride = act->hidden_stride,
        .eps = model->config.norm_eps,
    };
    stream->ops->gather_rows(stream, &gather);
    stream->ops->rms_norm(stream, &norm);
    *stride_out = act->hidden_stride;
    return act->chosen_normed;
}

void model_logits(model_t *model, k_stream_t *stream, const uint32_t *rows, uint32_t n,
                  float *logits)
{
    const uint32_t tokens = model->output.rows;
    size_t stride;
    const void *hidden = model_hidden(model, stream, rows, n, &stride);
    const graph_out_t out = {logits, K_F32, tokens, K_OUT_STORE};
    graph_linear(stream, &model->output, hidden, stride, &out, n);
    if (model->config.logit_softcap > 0) {
        const k_softcap_args_t cap = {
            .x = logits,
            .rows = n,
            .dim = tokens,
            .x_stride = tokens,
            .cap = model->config.logit_softcap,
        };
        stream->ops->softcap(stream, &cap);
    }
}
