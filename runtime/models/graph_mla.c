/* SPDX-License-Identifier: Apache-2.0 */
/* The steps of multi-head latent attention. DeepSeek-AI 2024, "DeepSeek-V2", section 2.1. */
#include "runtime/models/graph_priv.h"

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
static void project_heads(const graph_t *graph, const k_weight_t *heads, const void *x,
                          size_t x_stride, uint32_t x_dim, void *y, size_t y_stride, uint32_t y_dim)
{
    const k_head_linear_args_t args = {
        .heads = heads,
        .x = x,
        .y = y,
        .n_heads = graph->model->config.heads,
        .x_dim = x_dim,
        .y_dim = y_dim,
        .rows = graph->batch->rows,
        .x_stride = x_stride,
        .y_stride = y_stride,
    };
    graph->stream->ops->head_linear(graph->stream, &args);
}

/* Where qkv keeps what is cached. */
static void *cached_part(const graph_t *graph)
{
    const model_t *model = graph->model;
    const model_mla_t *mla = &model->config.mla;
    const uint32_t q_dim = model->config.heads * (mla->plain + mla->rotary);
    return graph_activation(graph, model->act.qkv, mla->q_latent > 0 ? mla->q_latent : q_dim);
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
        graph_add_adapters(graph, &layer->mla_q, act->qkv, act->qkv_stride, &out);
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
        .rows = graph->batch->rows,
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
    graph_add_head_adapters(graph, index,
                            &(graph_head_t){q, q_stride, mla->plain + mla->rotary, mla->plain},
                            &(graph_head_t){act->mla_latent, act->mla_latent_stride,
                                            mla->kv_latent + mla->rotary, mla->kv_latent},
                            false);
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
        .max_rows = graph->batch->max_rows,
    };
    graph->stream->ops->mla_attention(graph->stream, &args);
    project_heads(graph, layer->mla_value, act->mla_attended, act->mla_attended_stride,
                  mla->kv_latent, act->attended, act->attended_stride, mla->value);
    graph_add_head_adapters(
        graph, index,
        &(graph_head_t){act->mla_attended, act->mla_attended_stride, mla->kv_latent,
                        mla->kv_latent},
        &(graph_head_t){act->attended, act->attended_stride, mla->value, mla->value}, true);
}
