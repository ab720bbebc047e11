/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/models/graph_priv.h"

/* norm: what makes x, NULL where it is there. The first part makes it for all. */
static void linear_of(k_stream_t *stream, const model_linear_t *linear, const void *x,
                      size_t x_stride, const k_rms_norm_args_t *norm, const graph_out_t *out,
                      uint32_t rows)
{
    uint32_t column = 0;
    for (uint32_t i = 0; i < linear->n_parts; i++) {
        const k_linear_args_t args = {
            .w = &linear->parts[i],
            .bias = linear->bias == NULL ? NULL : linear->bias + column,
            .x = x,
            .norm = i == 0 ? norm : NULL,
            .y = graph_element(out->y, out->dtype, column),
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

void graph_linear(k_stream_t *stream, const model_linear_t *linear, const void *x, size_t x_stride,
                  const graph_out_t *out, uint32_t rows)
{
    linear_of(stream, linear, x, x_stride, NULL, out, rows);
}

/* hidden = embedding of the batch's ids */
static void embed(const graph_t *graph)
{
    const model_t *model = graph->model;
    const k_embed_args_t args = {
        .table = &model->embedding,
        .ids = graph->batch->ids,
        .first_id = model->cut.vocab.first,
        .y = model->act.hidden,
        .rows = graph->batch->rows,
        .y_stride = model->act.hidden_stride,
        .scale = model->config.embedding_scale,
    };
    graph->stream->ops->embed(graph->stream, &args);
    graph_sum_parts(graph, model->act.hidden); /* of zeros and a row */
}

static size_t hidden_bytes(const graph_t *graph)
{
    return graph->batch->rows * graph->model->act.hidden_stride * sizeof(float);
}

void graph_begin(const graph_t *graph)
{
    const model_t *model = graph->model;
    const model_shard_t *shard = &model->shard;
    if (model_shard_is_first(shard)) {
        embed(graph);
    } else {
        coll_receive(shard->world, graph->stream->queue, model_shard_rank(shard, shard->stage - 1),
                     model->act.hidden, hidden_bytes(graph));
        (void)model_shard_holds(shard); /* what did not come adds nothing to the stage's sums */
    }
}

void graph_end(const graph_t *graph)
{
    const model_t *model = graph->model;
    const model_shard_t *shard = &model->shard;
    graph_settle(graph);
    if (!model_shard_is_last(shard) && model_shard_holds(shard)) {
        coll_send(shard->world, graph->stream->queue, model_shard_rank(shard, shard->stage + 1),
                  model->act.hidden, hidden_bytes(graph));
    }
}

/* The sum that hidden owes and its norm as one op, where there is such a one; the same bits. */
static bool settle_and_norm(const graph_t *graph, const k_rms_norm_args_t *args)
{
    const coll_norm_t norm = {
        .x = graph->model->act.hidden,
        .w = args->w,
        .y = args->y,
        .rows = args->rows,
        .dim = args->dim,
        .x_stride = args->x_stride,
        .y_stride = args->y_stride,
        .eps = args->eps,
    };
    const bool is_done =
        graph->debts->sum && graph->stream->ops->act == K_BF16 &&
        coll_all_reduce_norm(graph->model->shard.tensor, graph->stream->queue, &norm);
    graph->debts->sum = graph->debts->sum && !is_done;
    return is_done;
}

/* normed of hidden */
static k_rms_norm_args_t hidden_norm(const graph_t *graph, const float *w)
{
    const model_t *model = graph->model;
    return (k_rms_norm_args_t){
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
}

void graph_norm(const graph_t *graph, const float *w)
{
    const k_rms_norm_args_t args = hidden_norm(graph, w);
    if (settle_and_norm(graph, &args)) {
        return;
    }
    graph_settle(graph);
    if (graph->stream->ops->norms_in_linear) {
        graph->debts->norm = w;
    } else {
        graph->stream->ops->rms_norm(graph->stream, &args);
    }
}

void graph_linear_of_normed(const graph_t *graph, const model_linear_t *linear,
                            const graph_out_t *out)
{
    const model_activations_t *act = &graph->model->act;
    const k_rms_norm_args_t norm = hidden_norm(graph, graph->debts->norm);
    linear_of(graph->stream, linear, act->normed, act->hidden_stride,
              graph->debts->norm == NULL ? NULL : &norm, out, graph->batch->rows);
    graph->debts->norm = NULL;
}

static void narrow(const graph_t *graph, const float *x)
{
    const model_activations_t *act = &graph->model->act;
    const k_narrow_args_t args = {
        .x = x,
        .y = act->normed,
        .rows = graph->batch->rows,
        .dim = graph->model->config.hidden,
        .x_stride = act->hidden_stride,
        .y_stride = act->hidden_stride,
    };
    graph->stream->ops->narrow(graph->stream, &args);
}

void graph_take_hidden(const graph_t *graph)
{
    graph_settle(graph);
    narrow(graph, graph->model->act.hidden);
}

/* ---- what a layer adds --------------------------------------------------------------------- */

/* Rows are padded, and lie one behind the other: one sum of all. */
static void sum_parts(const graph_t *graph, float *x)
{
    const model_t *model = graph->model;
    coll_all_reduce(model->shard.tensor, graph->stream->queue, x, x,
                    graph->batch->rows * model->act.hidden_stride, COLL_F32);
}

void graph_sum_parts(const graph_t *graph, float *x)
{
    if (!graph_is_cut(graph)) {
        return;
    }
    if (x == graph->model->act.hidden) {
        graph->debts->sum = true;
    } else {
        sum_parts(graph, x);
    }
}

void graph_settle(const graph_t *graph)
{
    if (graph->debts->sum) {
        sum_parts(graph, graph->model->act.hidden);
        graph->debts->sum = false;
    }
}

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

/* hidden += linear(x) */
static void add_plain(const graph_t *graph, const model_linear_t *linear, const void *x,
                      size_t x_stride, bool is_second)
{
    const model_activations_t *act = &graph->model->act;
    const bool replaces = graph_replaces_hidden(graph) && !is_second;
    const graph_out_t out = {act->hidden, K_F32, act->hidden_stride,
                             replaces ? K_OUT_STORE : K_OUT_ADD};
    graph_settle(graph); /* two branches are two sums */
    graph_linear(graph->stream, linear, x, x_stride, &out, graph->batch->rows);
    graph_add_adapters(graph, linear, x, x_stride, &out);
    graph_sum_parts(graph, act->hidden);
}

void graph_add_branch(const graph_t *graph, const model_linear_t *linear, const void *x,
                      size_t x_stride, const float *post_norm, bool is_second)
{
    const model_activations_t *act = &graph->model->act;
    const size_t stride = act->hidden_stride;
    const graph_out_t branch = {act->branch, K_F32, stride, K_OUT_STORE};
    const graph_out_t normed = {act->normed, graph->stream->ops->act, stride, K_OUT_STORE};
    if (post_norm == NULL && graph->model->config.residual_scale == 1) {
        add_plain(graph, linear, x, x_stride, is_second);
        return;
    }
    const bool has_branch = post_norm != NULL || graph_is_cut(graph);
    const graph_out_t *out = has_branch ? &branch : &normed;
    graph_linear(graph->stream, linear, x, x_stride, out, graph->batch->rows);
    graph_add_adapters(graph, linear, x, x_stride, out);
    if (has_branch) {
        graph_sum_parts(graph, act->branch);
    }
    if (post_norm != NULL) {
        norm_branch(graph, post_norm);
    } else if (has_branch) {
        narrow(graph, act->branch);
    }
    add_scaled(graph);
}

/* ---- ops ----------------------------------------------------------------------------------- */

#define BIT(op) (UINT64_C(1) << K_OP_##op)

#define ALWAYS        (BIT(embed) | BIT(rms_norm) | BIT(linear) | BIT(gather_rows) | BIT(gather_tokens))
#define OF_WHOLE_ROWS (BIT(logprobs) | BIT(sample))
#define OF_SLICES                                                                                  \
    (BIT(slice_max) | BIT(merge_max) | BIT(slice_candidates) | BIT(merge_candidates) |             \
     BIT(slice_masses) | BIT(merge_masses) | BIT(slice_logprobs) | BIT(merge_logprobs))

uint64_t graph_ops_of(const model_t *model)
{
    static const uint64_t activations[] = {
        [MODEL_SILU] = BIT(silu_mul),
        [MODEL_GELU_TANH] = BIT(gelu_mul),
        [MODEL_CLAMPED_SWIGLU] = BIT(clamped_mul),
    };
    const model_config_t *config = &model->config;
    const bool is_cut = model_shard_is_cut(&model->shard);
    const bool scales_sums = is_cut && config->residual_scale != 1 && !config->has_post_norms;
    const uint64_t attention = config->mla.kv_latent > 0
                                   ? BIT(head_linear) | BIT(mla_write) | BIT(mla_attention)
                                   : BIT(rope_kv_write) | BIT(attention);
    uint64_t ops = ALWAYS | attention | activations[config->activation];
    if (model->limits.max_lora_rank > 0) {
        ops |= BIT(lora_shrink) | BIT(lora_expand);
    }
    ops |= is_cut ? OF_SLICES : OF_WHOLE_ROWS;
    if (config->has_post_norms || config->residual_scale != 1) {
        ops |= BIT(add);
    }
    if (!config->has_pre_norms || scales_sums) {
        ops |= BIT(narrow);
    }
    if (config->logit_softcap > 0) {
        ops |= BIT(softcap);
    }
    if (graph_adds_square_sums(model)) {
        ops |= BIT(square_sums);
    }
    if (config->experts.count > 0) {
        ops |= BIT(route) | BIT(expert_linear) | BIT(combine);
        ops |= model->limits.max_lora_rank > 0 ? BIT(lora_experts) : 0;
    }
    return ops;
}
