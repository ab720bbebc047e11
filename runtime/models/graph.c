/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/models/graph.h"

#include <math.h>

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

static void norm_heads(const graph_t *graph, void *x, uint32_t heads, const float *w)
{
    const model_t *model = graph->model;
    const k_rms_norm_args_t args = {
        .x = x,
        .x_dtype = graph->stream->ops->act,
        .w = w,
        .y = x,
        .rows = graph->batch->rows,
        .groups = heads,
        .dim = model->config.head_dim,
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
        .rotary = config->rope.dim,
        .inv_freq = model->inv_freq,
        .mscale = config->rope.mscale,
        .interleaved = config->rope.interleaved,
        .kv = graph->batch->kv[index],
        .seqs = graph->batch->seqs,
        .n_seqs = graph->batch->n_seqs,
    };
    graph->stream->ops->rope_kv_write(graph->stream, &args);
}

void graph_attend(const graph_t *graph, uint32_t index, uint32_t window)
{
    const model_t *model = graph->model;
    rope_and_write(graph, index);
    const k_attention_args_t args = {
        .q = model->act.qkv,
        .o = model->act.attended,
        .q_stride = model->act.qkv_stride,
        .o_stride = model->act.attended_stride,
        .q_heads = model->config.heads,
        .scale = 1.0f / sqrtf((float)model->config.head_dim),
        .window = window,
        .kv = graph->batch->kv[index],
        .seqs = graph->batch->seqs,
        .n_seqs = graph->batch->n_seqs,
        .max_tokens = graph->batch->max_tokens,
    };
    graph->stream->ops->attention(graph->stream, &args);
}

void graph_add_attention(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    const graph_out_t out = {act->hidden, K_F32, act->hidden_stride, K_OUT_ADD};
    graph_linear(graph->stream, &layer->attn_output, act->attended, act->attended_stride, &out,
                 graph->batch->rows);
}

/* ffn = silu(gate(normed)) · up(normed) */
static void project_swiglu(const graph_t *graph, const model_linear_t *gate_up)
{
    const model_activations_t *act = &graph->model->act;
    const uint32_t dim = graph->model->config.intermediate;
    const uint32_t rows = graph->batch->rows;
    const bool is_fused = gate_up->parts[0].form == K_WEIGHT_GATE_UP;
    const graph_out_t out = {act->ffn, graph->stream->ops->act, act->ffn_stride,
                             is_fused ? K_OUT_SWIGLU : K_OUT_STORE};

    graph_linear(graph->stream, gate_up, act->normed, act->hidden_stride, &out, rows);
    if (is_fused) {
        return;
    }
    const k_silu_mul_args_t args = {
        .gate = act->ffn,
        .up = activation(graph, act->ffn, dim),
        .y = act->ffn,
        .rows = rows,
        .dim = dim,
        .gate_stride = act->ffn_stride,
        .up_stride = act->ffn_stride,
        .y_stride = act->ffn_stride,
    };
    graph->stream->ops->silu_mul(graph->stream, &args);
}

void graph_add_swiglu(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    project_swiglu(graph, &layer->gate_up);
    const graph_out_t out = {act->hidden, K_F32, act->hidden_stride, K_OUT_ADD};
    graph_linear(graph->stream, &layer->down, act->ffn, act->ffn_stride, &out, graph->batch->rows);
}
