/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/models/graph.h"

/* The array from element `at` on. */
static void *element(void *array, k_dtype_t dtype, size_t at)
{
    return (char *)array + at * k_dtype_info(dtype)->block_bytes;
}

static void *activation(const graph_t *graph, void *array, size_t at)
{
    return element(array, graph->stream->ops->act, at);
}

void graph_linear(k_stream_t *stream, const model_linear_t *linear, const void *x, size_t x_stride,
                  const graph_out_t *out, uint32_t rows)
{
    uint32_t column = 0;
    for (uint32_t i = 0; i < linear->n_parts; i++) {
        const k_linear_args_t args = {
            .w = &linear->parts[i],
            .bias = linear->bias == NULL ? NULL : linear->bias + column,
            .x = x,
            .y = element(out->y, out->dtype, column),
            .y_dtype = out->dtype,
            .out = out->how,
            .rows = rows,
            .x_stride = x_stride,
            .y_stride = out->stride,
        };
        stream->ops->linear(stream, &args);
        column += linear->parts[i].rows;
    }
}

void graph_embed(const graph_t *graph)
{
    const model_t *model = graph->model;
    const k_embed_args_t args = {
        .table = &model->embedding,
        .ids = graph->batch->ids,
        .y = model->act.hidden,
        .rows = graph->batch->rows,
        .y_stride = model->act.hidden_stride,
        .scale = model->config.embedding_scale,
    };
    graph->stream->ops->embed(graph->stream, &args);
}

void graph_norm(const graph_t *graph, const float *w)
{
    const model_t *model = graph->model;
    const k_rms_norm_args_t args = {
        .x = model->act.hidden,
        .x_dtype = K_F32,
        .w = w,
        .y = model->act.normed,
        .rows = graph->batch->rows,
        .groups = 1,
        .dim = model->config.hidden,
        .x_stride = model->act.hidden_stride,
        .y_stride = model->act.hidden_stride,
        .eps = model->config.norm_eps,
    };
    graph->stream->ops->rms_norm(graph->stream, &args);
}

void graph_project_qkv(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    const graph_out_t out = {act->qkv, graph->stream->ops->act, act->qkv_stride, K_OUT_STORE};
    graph_linear(graph->stream, &layer->qkv, act->normed, act->hidden_stride, &out,
                 graph->batch->rows);
}

void graph_take_hidden(const graph_t *graph)
{
    const model_activations_t *act = &graph->model->act;
    const k_narrow_args_t args = {
        .x = act->hidden,
        .y = act->normed,
        .rows = graph->batch->rows,
        .dim = graph->model->config.hidden,
        .x_stride = act->hidden_stride,
        .y_stride = act->hidden_stride,
    };
    graph->stream->ops->narrow(graph->stream, &args);
}

static void norm_heads(const graph_t *graph, void *x, uint32_t heads, const float *w)
{
    const model_t *model = graph->model;
    const uint32_t dim = model->config.head_dim;
    const bool is_whole = model->config.qk_norm == MODEL_QK_NORM_WHOLE;
    const k_rms_norm_args_t args = {
        .x = x,
        .x_dtype = graph->stream->ops->act,
        .w = w,
        .y = x,
        .rows = graph->batch->rows,
        .groups = is_whole ? 1 : heads,
        .dim = is_whole ? heads * dim : dim,
        .x_stride = model->act.qkv_stride,
        .y_stride = model->act.qkv_stride,
        .eps = model->config.norm_eps,
    };
    graph->stream->ops->rms_norm(graph->stream, &args);
}

void graph_norm_qk(const graph_t *graph, const model_layer_t *layer)
{
    const model_config_t *config = &graph->model->config;
    void *qkv = graph->model->act.qkv;
    norm_heads(graph, qkv, config->heads, layer->q_norm);
    norm_heads(graph, activation(graph, qkv, model_q_dim(config)), config->kv_heads, layer->k_norm);
}

static void rope_and_write(const graph_t *graph, uint32_t index)
{
    const model_t *model = graph->model;
    const model_config_t *config = &model->config;
    const bool is_local = config->has_local_rope && model_layers_has(&config->sliding, index);
    const model_rope_t *rope = is_local ? &config->local_rope : &config->rope;
    void *q = model->act.qkv;
    void *k = activation(graph, q, model_q_dim(config));
    const k_rope_kv_write_args_t args = {
        .q = q,
        .k = k,
        .v = activation(graph, k, model_kv_dim(config)),
        .q_stride = model->act.qkv_stride,
        .k_stride = model->act.qkv_stride,
        .v_stride = model->act.qkv_stride,
        .q_heads = config->heads,
        .rotary = rope->dim,
        .inv_freq = is_local ? model->local_inv_freq : model->inv_freq,
        .mscale = rope->mscale,
        .interleaved = rope->interleaved,
        .kv = graph->batch->kv[index],
        .seqs = graph->batch->seqs,
        .n_seqs = graph->batch->n_seqs,
        .rows = graph->batch->rows,
    };
    graph->stream->ops->rope_kv_write(graph->stream, &args);
}

void graph_attend(const graph_t *graph, uint32_t index)
{
    const model_t *model = graph->model;
    const model_config_t *config = &model->config;
    rope_and_write(graph, index);
    const k_attention_args_t args = {
        .q = model->act.qkv,
        .o = model->act.attended,
        .q_stride = model->act.qkv_stride,
        .o_stride = model->act.attended_stride,
        .q_heads = config->heads,
        .scale = config->attention_scale,
        .window = model_layer_window(config, index),
        .softcap = config->attention_softcap,
        .sinks = model->layers[index].sinks,
        .kv = graph->batch->kv[index],
        .seqs = graph->batch->seqs,
        .n_seqs = graph->batch->n_seqs,
        .max_tokens = graph->batch->max_tokens,
        .max_rows = graph->batch->max_rows,
    };
    graph->stream->ops->attention(graph->stream, &args);
}

/* ---- latent attention ---------------------------------------------------------------------- */

/* DeepSeek's own, whatever the model's. */
#define LATENT_EPS 1e-6f

static void norm_latent(const graph_t *graph, void *x, uint32_t dim, const float *w)
{
    const size_t stride = graph->model->act.qkv_stride;
    const k_rms_norm_args_t args = {
        .x = x,
        .x_dtype = graph->stream->ops->act,
        .w = w,
        .y = x,
        .rows = graph->batch->rows,
        .groups = 1,
        .dim = dim,
        .x_stride = stride,
        .y_stride = stride,
        .eps = LATENT_EPS,
    };
    graph->stream->ops->rms_norm(graph->stream, &args);
}

/* A matrix a head: x [rows, heads, x_dim] from its first columns to y [rows, heads, y_dim]. */
static void project_heads(const graph_t *graph, const k_weight_t *heads, void *x, size_t x_stride,
                          uint32_t x_dim, void *y, size_t y_stride, uint32_t y_dim)
{
    for (uint32_t h = 0; h < graph->model->config.heads; h++) {
        const k_linear_args_t args = {
            .w = &heads[h],
            .x = activation(graph, x, (size_t)h * x_dim),
            .y = activation(graph, y, (size_t)h * y_dim),
            .y_dtype = graph->stream->ops->act,
            .out = K_OUT_STORE,
            .rows = graph->batch->rows,
            .x_stride = x_stride,
            .y_stride = y_stride,
        };
        graph->stream->ops->linear(graph->stream, &args);
    }
}

/* Where qkv keeps what is cached. */
static void *cached_part(const graph_t *graph)
{
    const model_t *model = graph->model;
    const model_mla_t *mla = &model->config.mla;
    const uint32_t q_dim = model->config.heads * (mla->plain + mla->rotary);
    return activation(graph, model->act.qkv, mla->q_latent > 0 ? mla->q_latent : q_dim);
}

void graph_project_mla(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    const model_mla_t *mla = &graph->model->config.mla;
    graph_project_qkv(graph, layer);
    if (mla->q_latent > 0) {
        const graph_out_t out = {act->mla_q, graph->stream->ops->act, act->mla_q_stride,
                                 K_OUT_STORE};
        norm_latent(graph, act->qkv, mla->q_latent, layer->mla_q_norm);
        graph_linear(graph->stream, &layer->mla_q, act->qkv, act->qkv_stride, &out,
                     graph->batch->rows);
    }
    norm_latent(graph, cached_part(graph), mla->kv_latent, layer->mla_kv_norm);
}

static void write_latents(const graph_t *graph, uint32_t index, const void *q, size_t q_stride)
{
    const model_t *model = graph->model;
    const model_config_t *config = &model->config;
    const k_mla_write_args_t args = {
        .q = q,
        .q_out = model->act.mla_latent,
        .c = cached_part(graph),
        .q_stride = q_stride,
        .q_out_stride = model->act.mla_latent_stride,
        .c_stride = model->act.qkv_stride,
        .q_heads = config->heads,
        .q_dim = config->mla.plain + config->mla.rotary,
        .latent = config->mla.kv_latent,
        .rotary = config->mla.rotary,
        .inv_freq = model->inv_freq,
        .mscale = config->rope.mscale,
        .interleaved = config->rope.interleaved,
        .kv = graph->batch->kv[index],
        .seqs = graph->batch->seqs,
        .n_seqs = graph->batch->n_seqs,
    };
    graph->stream->ops->mla_write(graph->stream, &args);
}

void graph_attend_mla(const graph_t *graph, uint32_t index)
{
    const model_t *model = graph->model;
    const model_activations_t *act = &model->act;
    const model_config_t *config = &model->config;
    const model_mla_t *mla = &config->mla;
    const model_layer_t *layer = &model->layers[index];
    const bool is_direct = mla->q_latent == 0;
    void *q = is_direct ? act->qkv : act->mla_q;
    const size_t q_stride = is_direct ? act->qkv_stride : act->mla_q_stride;

    project_heads(graph, layer->mla_key, q, q_stride, mla->plain + mla->rotary, act->mla_latent,
                  act->mla_latent_stride, mla->kv_latent + mla->rotary);
    write_latents(graph, index, q, q_stride);
    const k_mla_attention_args_t args = {
        .q = act->mla_latent,
        .o = act->mla_attended,
        .q_stride = act->mla_latent_stride,
        .o_stride = act->mla_attended_stride,
        .q_heads = config->heads,
        .latent = mla->kv_latent,
        .scale = config->attention_scale,
        .kv = graph->batch->kv[index],
        .seqs = graph->batch->seqs,
        .n_seqs = graph->batch->n_seqs,
        .max_tokens = graph->batch->max_tokens,
    };
    graph->stream->ops->mla_attention(graph->stream, &args);
    project_heads(graph, layer->mla_value, act->mla_attended, act->mla_attended_stride,
                  mla->kv_latent, act->attended, act->attended_stride, mla->value);
}

/* ---- what a layer adds --------------------------------------------------------------------- */

static void add_scaled(const graph_t *graph)
{
    const model_activations_t *act = &graph->model->act;
    const k_add_args_t args = {
        .x = act->normed,
        .y = act->hidden,
        .rows = graph->batch->rows,
        .dim = graph->model->config.hidden,
        .x_stride = act->hidden_stride,
        .y_stride = act->hidden_stride,
        .scale = graph->model->config.residual_scale,
    };
    graph->stream->ops->add(graph->stream, &args);
}

static void norm_branch(const graph_t *graph, const float *w)
{
    const model_activations_t *act = &graph->model->act;
    const k_rms_norm_args_t args = {
        .x = act->branch,
        .x_dtype = K_F32,
        .w = w,
        .y = act->normed,
        .rows = graph->batch->rows,
        .groups = 1,
        .dim = graph->model->config.hidden,
        .x_stride = act->hidden_stride,
        .y_stride = act->hidden_stride,
        .eps = graph->model->config.norm_eps,
    };
    graph->stream->ops->rms_norm(graph->stream, &args);
}

/* hidden += scale · norm(linear(x)), at once where there is neither. normed is overwritten. */
static void add_branch(const graph_t *graph, const model_linear_t *linear, const void *x,
                       size_t x_stride, const float *post_norm)
{
    const model_activations_t *act = &graph->model->act;
    const k_dtype_t dtype = graph->stream->ops->act;
    const size_t stride = act->hidden_stride;
    const graph_out_t sum = {act->hidden, K_F32, stride, K_OUT_ADD};
    const graph_out_t branch = {act->branch, K_F32, stride, K_OUT_STORE};
    const graph_out_t normed = {act->normed, dtype, stride, K_OUT_STORE};
    const bool is_plain = post_norm == NULL && graph->model->config.residual_scale == 1;
    const graph_out_t *out = is_plain ? &sum : post_norm != NULL ? &branch : &normed;

    graph_linear(graph->stream, linear, x, x_stride, out, graph->batch->rows);
    if (post_norm != NULL) {
        norm_branch(graph, post_norm);
    }
    if (!is_plain) {
        add_scaled(graph);
    }
}

void graph_add_attention(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    add_branch(graph, &layer->attn_output, act->attended, act->attended_stride,
               layer->attn_post_norm);
}

/* ---- feed-forward -------------------------------------------------------------------------- */

/* x [rows, 2 · dim], gate and up side by side: their product in the first half. */
static void activate(const graph_t *graph, void *x, uint32_t rows, uint32_t dim, size_t stride)
{
    const k_ops_t *ops = graph->stream->ops;
    const model_config_t *config = &graph->model->config;
    const k_silu_mul_args_t args = {
        .gate = x,
        .up = activation(graph, x, dim),
        .y = x,
        .rows = rows,
        .dim = dim,
        .gate_stride = stride,
        .up_stride = stride,
        .y_stride = stride,
    };
    const k_clamped_mul_args_t clamped = {
        .gate = x,
        .up = args.up,
        .y = x,
        .rows = rows,
        .dim = dim,
        .gate_stride = stride,
        .up_stride = stride,
        .y_stride = stride,
        .limit = config->activation_limit,
    };
    switch (config->activation) {
    case MODEL_SILU:
        ops->silu_mul(graph->stream, &args);
        break;
    case MODEL_GELU_TANH:
        ops->gelu_mul(graph->stream, &args);
        break;
    case MODEL_CLAMPED_SWIGLU:
        ops->clamped_mul(graph->stream, &clamped);
        break;
    }
}

/* ffn = activation(gate(normed)) · up(normed) */
static void project_gated(const graph_t *graph, const model_linear_t *gate_up)
{
    const model_activations_t *act = &graph->model->act;
    const uint32_t rows = graph->batch->rows;
    const bool is_fused = gate_up->parts[0].form == K_WEIGHT_GATE_UP;
    const graph_out_t out = {act->ffn, graph->stream->ops->act, act->ffn_stride,
                             is_fused ? K_OUT_SWIGLU : K_OUT_STORE};

    graph_linear(graph->stream, gate_up, act->normed, act->hidden_stride, &out, rows);
    if (!is_fused) {
        activate(graph, act->ffn, rows, gate_up->rows / 2, act->ffn_stride);
    }
}

static void add_gated(const graph_t *graph, const model_linear_t *gate_up,
                      const model_linear_t *down, const float *post_norm)
{
    const model_activations_t *act = &graph->model->act;
    project_gated(graph, gate_up);
    add_branch(graph, down, act->ffn, act->ffn_stride, post_norm);
}

static void route(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    const model_experts_t *experts = &graph->model->config.experts;
    const uint32_t rows = graph->batch->rows;
    const graph_out_t out = {act->expert.logits, K_F32, experts->count, K_OUT_STORE};
    graph_linear(graph->stream, &layer->router, act->normed, act->hidden_stride, &out, rows);
    const k_route_args_t args = {
        .logits = act->expert.logits,
        .bias = layer->score_bias,
        .logits_stride = experts->count,
        .kind = experts->is_sigmoid ? K_ROUTE_SIGMOID : K_ROUTE_SOFTMAX,
        .rows = rows,
        .experts = experts->count,
        .used = experts->used,
        .n_groups = experts->n_groups,
        .groups_used = experts->groups_used,
        .renormalizes = experts->renormalizes,
        .scale = experts->scale,
        .weights = act->expert.weights,
        .slot_of = act->expert.slot_of,
        .row_of_slot = act->expert.row_of_slot,
        .offsets = act->expert.offsets,
    };
    graph->stream->ops->route(graph->stream, &args);
}

/* expert.rows = every slot's expert of its row of normed */
static void compute_experts(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    const model_experts_t *experts = &graph->model->config.experts;
    const model_expert_act_t *expert = &act->expert;
    const uint32_t slots = graph->batch->rows * experts->used;
    const k_expert_linear_args_t gate_up = {
        .experts = layer->expert_gate_up,
        .bias = layer->expert_gate_up_bias,
        .offsets = expert->offsets,
        .row_of_slot = expert->row_of_slot,
        .x = act->normed,
        .gathered = expert->rows,
        .y = expert->ffn,
        .n_experts = experts->count,
        .slots = slots,
        .x_stride = act->hidden_stride,
        .y_stride = expert->ffn_stride,
    };
    const k_expert_linear_args_t down = {
        .experts = layer->expert_down,
        .bias = layer->expert_down_bias,
        .offsets = expert->offsets,
        .x = expert->ffn,
        .y = expert->rows,
        .n_experts = experts->count,
        .slots = slots,
        .x_stride = expert->ffn_stride,
        .y_stride = act->hidden_stride,
    };
    graph->stream->ops->expert_linear(graph->stream, &gate_up);
    activate(graph, expert->ffn, slots, experts->intermediate, expert->ffn_stride);
    graph->stream->ops->expert_linear(graph->stream, &down);
}

static void add_experts(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    route(graph, layer);
    compute_experts(graph, layer);
    const k_combine_args_t args = {
        .x = act->expert.rows,
        .weights = act->expert.weights,
        .slot_of = act->expert.slot_of,
        .y = act->hidden,
        .rows = graph->batch->rows,
        .used = graph->model->config.experts.used,
        .dim = graph->model->config.hidden,
        .x_stride = act->hidden_stride,
        .y_stride = act->hidden_stride,
    };
    graph->stream->ops->combine(graph->stream, &args);
    if (layer->shared_down.n_parts > 0) { /* last: add_branch may overwrite normed */
        add_gated(graph, &layer->shared_gate_up, &layer->shared_down, NULL);
    }
}

void graph_add_ffn(const graph_t *graph, uint32_t index)
{
    const model_layer_t *layer = &graph->model->layers[index];
    if (model_layer_has_experts(&graph->model->config, index)) {
        add_experts(graph, layer);
    } else {
        add_gated(graph, &layer->gate_up, &layer->down, layer->ffn_post_norm);
    }
}

/* ---- ops ----------------------------------------------------------------------------------- */

uint32_t graph_ops_of(const model_config_t *config)
{
    static const uint32_t activations[] = {
        [MODEL_SILU] = 1U << K_OP_silu_mul,
        [MODEL_GELU_TANH] = 1U << K_OP_gelu_mul,
        [MODEL_CLAMPED_SWIGLU] = 1U << K_OP_clamped_mul,
    };
    const uint32_t attention = config->mla.kv_latent > 0
                                   ? 1U << K_OP_mla_write | 1U << K_OP_mla_attention
                                   : 1U << K_OP_rope_kv_write | 1U << K_OP_attention;
    uint32_t ops = GRAPH_OPS | attention | activations[config->activation];
    if (config->has_post_norms || config->residual_scale != 1) {
        ops |= 1U << K_OP_add;
    }
    if (!config->has_pre_norms) {
        ops |= 1U << K_OP_narrow;
    }
    if (config->logit_softcap > 0) {
        ops |= 1U << K_OP_softcap;
    }
    if (config->experts.count > 0) {
        ops |= 1U << K_OP_route | 1U << K_OP_expert_linear | 1U << K_OP_combine;
    }
    return ops;
}
