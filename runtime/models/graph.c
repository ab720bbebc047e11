/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/models/graph.h"

#include <math.h>

void graph_linear(k_stream_t *stream, const model_linear_t *linear, const float *x, size_t x_stride,
                  float *y, size_t y_stride, uint32_t rows, bool accumulate)
{
    uint32_t column = 0;
    for (uint32_t i = 0; i < linear->n_parts; i++) {
        const k_linear_args_t args = {
            .w = &linear->parts[i],
            .bias = linear->bias == NULL ? NULL : linear->bias + column,
            .x = x,
            .y = y + column,
            .rows = rows,
            .x_stride = x_stride,
            .y_stride = y_stride,
            .accumulate = accumulate,
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
    graph_linear(graph->stream, &layer->qkv, act->normed, act->hidden_stride, act->qkv,
                 act->qkv_stride, graph->batch->rows, false);
}

static void norm_heads(const graph_t *graph, float *x, uint32_t heads, const float *w)
{
    const model_t *model = graph->model;
    const k_rms_norm_args_t args = {
        .x = x,
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
    float *qkv = graph->model->act.qkv;
    norm_heads(graph, qkv, config->heads, layer->q_norm);
    norm_heads(graph, qkv + model_q_dim(config), config->kv_heads, layer->k_norm);
}

static void rope_and_write(const graph_t *graph, uint32_t index)
{
    const model_t *model = graph->model;
    const model_config_t *config = &model->config;
    float *q = model->act.qkv;
    float *k = q + model_q_dim(config);
    const k_rope_kv_write_args_t args = {
        .q = q,
        .k = k,
        .v = k + model_kv_dim(config),
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
    };
    graph->stream->ops->attention(graph->stream, &args);
}

void graph_add_attention(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    graph_linear(graph->stream, &layer->attn_output, act->attended, act->attended_stride,
                 act->hidden, act->hidden_stride, graph->batch->rows, true);
}

void graph_add_swiglu(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    const uint32_t dim = graph->model->config.intermediate;
    const uint32_t rows = graph->batch->rows;

    graph_linear(graph->stream, &layer->gate_up, act->normed, act->hidden_stride, act->ffn,
                 act->ffn_stride, rows, false);
    const k_silu_mul_args_t args = {
        .gate = act->ffn,
        .up = act->ffn + dim,
        .y = act->ffn,
        .rows = rows,
        .dim = dim,
        .gate_stride = act->ffn_stride,
        .up_stride = act->ffn_stride,
        .y_stride = act->ffn_stride,
    };
    graph->stream->ops->silu_mul(graph->stream, &args);
    graph_linear(graph->stream, &layer->down, act->ffn, act->ffn_stride, act->hidden,
                 act->hidden_stride, rows, true);
}
