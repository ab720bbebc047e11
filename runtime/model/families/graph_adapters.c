/* SPDX-License-Identifier: Apache-2.0 */
/* What adapters add to the linears of a layer. */
#include "runtime/model/families/graph_priv.h"

static bool may_add(const graph_t *graph, adapter_target_t target)
{
    return (graph->batch->adapter_targets & ADAPTER_BIT(target)) != 0;
}

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

/* Linears of one shape, and the entries from the table of one to that of the next. */
typedef struct heads {
    uint32_t n;
    uint32_t table_step;
} heads_t;

static void add(const graph_t *graph, const k_lora_t *table, heads_t heads, const graph_head_t *x,
                const graph_head_t *y, k_dtype_t y_dtype)
{
    const model_t *model = graph->model;
    const k_lora_rows_t rows = {
        .table = table,
        .n_heads = heads.n,
        .table_step = heads.table_step,
        .seqs = graph->batch->seqs,
        .n_seqs = graph->batch->n_seqs,
        .rows = graph->batch->rows,
    };
    const k_lora_shrink_args_t shrink = {
        .of = rows,
        .x = x->at,
        .x_stride = x->stride,
        .x_step = x->step,
        .in = x->dim,
        .low = model->act.lora_low,
        .max_rank = model->limits.max_lora_rank,
    };
    const k_lora_expand_args_t expand = {
        .of = rows,
        .low = model->act.lora_low,
        .in = x->dim,
        .max_rank = model->limits.max_lora_rank,
        .y = y->at,
        .y_dtype = y_dtype,
        .y_stride = y->stride,
        .y_step = y->step,
        .out = y->dim,
    };
    graph->stream->ops->lora_shrink(graph->stream, &shrink);
    graph->stream->ops->lora_expand(graph->stream, &expand);
}

void graph_add_adapters(const graph_t *graph, const model_linear_t *linear, const void *x,
                        size_t x_stride, const graph_out_t *out)
{
    const model_t *model = graph->model;
    const heads_t one = {.n = 1};
    const graph_head_t from = {(void *)(uintptr_t)x, x_stride, 0, linear->parts[0].columns};
    uint32_t column = 0;
    for (uint32_t i = 0; i < linear->n_targets; i++) {
        const adapter_target_t target = linear->first_target + i;
        const uint32_t width = width_of(&model->config, linear, target);
        if (may_add(graph, target)) {
            const graph_head_t to = {graph_element(out->y, out->dtype, column), out->stride, 0,
                                     width};
            add(graph, adapter_table_of(model->adapters, linear->layer, target), one, &from, &to,
                out->dtype);
        }
        column += width;
    }
}

void graph_add_head_adapters(const graph_t *graph, uint32_t index, const graph_head_t *x,
                             const graph_head_t *y, bool is_value)
{
    const model_t *model = graph->model;
    if (may_add(graph, ADAPTER_MLA_KV_B)) {
        const heads_t heads = {model->config.heads, adapter_table_head_step(model->adapters)};
        add(graph, adapter_table_of_heads(model->adapters, index, is_value), heads, x, y,
            graph->stream->ops->act);
    }
}

void graph_add_expert_adapters(const graph_t *graph, uint32_t index, adapter_target_t target,
                               const graph_slots_t *x, const graph_slots_t *y)
{
    const model_t *model = graph->model;
    const model_expert_act_t *expert = &model->act.expert;
    if (!may_add(graph, target)) {
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
        .low = model->act.lora_low,
        .max_rank = model->limits.max_lora_rank,
        .y = y->at,
        .y_stride = y->stride,
        .out = y->dim,
    };
    graph->stream->ops->lora_experts(graph->stream, &args);
}
