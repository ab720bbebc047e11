/* SPDX-License-Identifier: Apache-2.0 */
/* The steps of attention over keys and values. */
#include "runtime/models/graph_priv.h"

void graph_project_qkv(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    const graph_out_t out = {act->qkv, graph->stream->ops->act, act->qkv_stride, K_OUT_STORE};
    graph_linear_of_normed(graph, &layer->qkv, &out);
    graph_add_adapters(graph, &layer->qkv, act->normed, act->hidden_stride, &out);
}

/* ---- norms of q and k ---------------------------------------------------------------------- */

static k_rms_norm_args_t norm_args(const graph_t *graph, void *x, uint32_t groups, uint32_t dim,
                                   const float *w)
{
    const model_t *model = graph->model;
    return (k_rms_norm_args_t){
        .x = x,
        .x_dtype = graph->stream->ops->act,
        .w = w,
        .y = x,
        .rows = graph->batch->rows,
        .groups = groups,
        .dim = dim,
        .x_stride = model->act.qkv_stride,
        .y_stride = model->act.qkv_stride,
        .eps = model->config.norm_eps,
    };
}

static void norm_heads(const graph_t *graph, void *x, uint32_t heads, const float *w)
{
    const uint32_t dim = graph->model->config.head_dim;
    const bool is_whole = graph->model->config.qk_norm == MODEL_QK_NORM_WHOLE;
    const k_rms_norm_args_t args =
        norm_args(graph, x, is_whole ? 1 : heads, is_whole ? heads * dim : dim, w);
    graph->stream->ops->rms_norm(graph->stream, &args);
}

bool graph_adds_square_sums(const model_t *model)
{
    return model_shard_is_cut(&model->shard) && model->config.qk_norm == MODEL_QK_NORM_WHOLE;
}

static void square_sums(const graph_t *graph, const void *x, uint32_t dim, float *sums)
{
    const k_square_sums_args_t args = {
        .x = x,
        .sums = sums,
        .rows = graph->batch->rows,
        .dim = dim,
        .x_stride = graph->model->act.qkv_stride,
        .sums_stride = 2,
    };
    graph->stream->ops->square_sums(graph->stream, &args);
}

/* Part of a row, by the squares of all of it. */
static void norm_part(const graph_t *graph, void *x, uint32_t dim, const float *w,
                      const float *sums, uint32_t whole)
{
    k_rms_norm_args_t args = norm_args(graph, x, 1, dim, w);
    args.sums = sums;
    args.sums_stride = 2;
    args.sums_dim = whole;
    graph->stream->ops->rms_norm(graph->stream, &args);
}

/* All heads of a row as one, of which the ranks have some each; keys that several have count once. */
static void norm_qk_over_ranks(const graph_t *graph, const model_layer_t *layer, void *q, void *k)
{
    const model_t *model = graph->model;
    const uint32_t q_dim = model_q_dim(&model->config);
    const uint32_t k_dim = model_kv_dim(&model->config);
    float *sums = model->act.square_sums;
    square_sums(graph, q, q_dim, sums);
    square_sums(graph, k, model->cut.has_first_heads ? k_dim : 0, sums + 1);
    coll_all_reduce(model->shard.tensor, graph->stream->queue, sums, sums,
                    (size_t)graph->batch->rows * 2, COLL_F32);
    norm_part(graph, q, q_dim, layer->q_norm, sums, model_q_dim(model->whole));
    norm_part(graph, k, k_dim, layer->k_norm, sums + 1, model_kv_dim(model->whole));
}

void graph_norm_qk(const graph_t *graph, const model_layer_t *layer)
{
    const model_config_t *config = &graph->model->config;
    void *q = graph->model->act.qkv;
    void *k = graph_activation(graph, q, model_q_dim(config));
    if (graph_adds_square_sums(graph->model)) {
        norm_qk_over_ranks(graph, layer, q, k);
        return;
    }
    norm_heads(graph, q, config->heads, layer->q_norm);
    norm_heads(graph, k, config->kv_heads, layer->k_norm);
}

/* ---- attention ----------------------------------------------------------------------------- */

static void rope_and_write(const graph_t *graph, uint32_t index)
{
    const model_t *model = graph->model;
    const model_config_t *config = &model->config;
    const bool is_local = config->has_local_rope && model_layers_has(&config->sliding, index);
    const model_rope_t *rope = is_local ? &config->local_rope : &config->rope;
    void *q = model->act.qkv;
    void *k = graph_activation(graph, q, model_q_dim(config));
    const k_rope_kv_write_args_t args = {
        .q = q,
        .k = k,
        .v = graph_activation(graph, k, model_kv_dim(config)),
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

void graph_add_attention(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    graph_add_branch(graph, &layer->attn_output, act->attended, act->attended_stride,
                     layer->attn_post_norm, false);
}
