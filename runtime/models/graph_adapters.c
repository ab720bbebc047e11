/* SPDX-License-Identifier: Apache-2.0 */
/* What adapters add to the linears of a layer. */
#include "runtime/models/graph_priv.h"

/* Outputs of a linear that belong to the target. */
static uint32_t width_of(const model_config_t *config, const model_linear_t *linear,
                         adapter_target_t target)
{
    switch (target) {
    case ADAPTER_Q:
        return model_q_dim(config);
    case ADAPTER_K:
    case ADAPTER_V:
        return model_kv_dim(config);
    case ADAPTER_GATE:
    case ADAPTER_UP:
    case ADAPTER_SHARED_GATE:
    case ADAPTER_SHARED_UP:
        return linear->rows / 2;
    case ADAPTER_MLA_KV_A:
        return config->mla.kv_latent + config->mla.rotary;
    case ADAPTER_MLA_Q:
        return linear->rows - config->mla.kv_latent - config->mla.rotary;
    default:
        return linear->rows;
    }
}

static void add_one(const graph_t *graph, const k_lora_t *table, const void *x, size_t x_stride,
                    uint32_t in, void *y, const graph_out_t *out, uint32_t width)
{
    const model_t *model = graph->model;
    const k_lora_shrink_args_t shrink = {
        .table = table,
        .seqs = graph->batch->seqs,
        .n_seqs = graph->batch->n_seqs,
        .rows = graph->batch->rows,
        .x = x,
        .x_stride = x_stride,
        .in = in,
        .low = model->act.lora_low,
        .max_rank = model->limits.max_lora_rank,
    };
    const k_lora_expand_args_t expand = {
        .table = table,
        .seqs = graph->batch->seqs,
        .n_seqs = graph->batch->n_seqs,
        .rows = graph->batch->rows,
        .low = model->act.lora_low,
        .max_rank = model->limits.max_lora_rank,
        .y = y,
        .y_dtype = out->dtype,
        .y_stride = out->stride,
        .out = width,
    };
    graph->stream->ops->lora_shrink(graph->stream, &shrink);
    graph->stream->ops->lora_expand(graph->stream, &expand);
}

void graph_add_adapters(const graph_t *graph, const model_linear_t *linear, const void *x,
                        size_t x_stride, const graph_out_t *out)
{
    const model_t *model = graph->model;
    uint32_t column = 0;
    if (model->adapters == NULL || !graph->batch->has_adapters) {
        return;
    }
    for (uint32_t i = 0; i < linear->n_targets; i++) {
        const adapter_target_t target = linear->first_target + i;
        const uint32_t width = width_of(&model->config, linear, target);
        add_one(graph, adapter_table_of(model->adapters, linear->layer, target), x, x_stride,
                linear->parts[0].columns, graph_element(out->y, out->dtype, column), out, width);
        column += width;
    }
}

void graph_add_head_adapters(const graph_t *graph, uint32_t index, const graph_head_t *x,
                             const graph_head_t *y, bool is_value)
{
    const model_t *model = graph->model;
    const k_dtype_t act = graph->stream->ops->act;
    const graph_out_t out = {y->at, act, y->stride, K_OUT_ADD};
    if (model->adapters == NULL || !graph->batch->has_adapters ||
        !adapter_table_has(model->adapters, ADAPTER_MLA_KV_B)) {
        return;
    }
    for (uint32_t h = 0; h < model->config.heads; h++) {
        add_one(graph, adapter_table_of_head(model->adapters, index, h, is_value),
                graph_element(x->at, act, (size_t)h * x->step), x->stride, x->dim,
                graph_element(y->at, act, (size_t)h * y->step), &out, y->dim);
    }
}

void graph_add_expert_adapters(const graph_t *graph, uint32_t index, adapter_target_t target,
                               const graph_slots_t *x, const graph_slots_t *y)
{
    const model_t *model = graph->model;
    const model_expert_act_t *expert = &model->act.expert;
    if (model->adapters == NULL || !graph->batch->has_adapters ||
        !adapter_table_has(model->adapters, target)) {
        return;
    }
    const k_lora_experts_args_t args = {
        .table = adapter_table_of(model->adapters, index, target),
        .places = adapter_table_places(model->adapters),
        .seqs = graph->batch->seqs,
        .n_seqs = graph->batch->n_seqs,
        .offsets = expert->offsets + model->cut.experts.first,
        .row_of_slot = expert->row_of_slot,
        .n_experts = model->cut.experts.n,
        .slots = graph->batch->rows * model->config.experts.used,
        .x = x->at,
        .x_stride = x->stride,
        .has_rows = x->are_rows,
        .in = x->dim,
        .y = y->at,
        .y_stride = y->stride,
        .out = y->dim,
    };
    graph->stream->ops->lora_experts(graph->stream, &args);
}
