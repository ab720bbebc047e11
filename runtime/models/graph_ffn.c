/* SPDX-License-Identifier: Apache-2.0 */
/* The steps of the feed-forward: gated units, alone or as experts. */
#include "runtime/models/graph_priv.h"

/* x [rows, 2 · dim], gate and up side by side: their product in the first half. */
static void activate(const graph_t *graph, void *x, uint32_t rows, uint32_t dim, size_t stride)
{
    const k_ops_t *ops = graph->stream->ops;
    const model_config_t *config = &graph->model->config;
    const k_silu_mul_args_t args = {
        .gate = x,
        .up = graph_activation(graph, x, dim),
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

    graph_linear_of_normed(graph, gate_up, &out);
    graph_add_adapters(graph, gate_up, act->normed, act->hidden_stride, &out);
    if (!is_fused) {
        activate(graph, act->ffn, rows, gate_up->rows / 2, act->ffn_stride);
    }
}

static void add_gated(const graph_t *graph, const model_linear_t *gate_up,
                      const model_linear_t *down, const float *post_norm, bool is_second)
{
    const model_activations_t *act = &graph->model->act;
    project_gated(graph, gate_up);
    graph_add_branch(graph, down, act->ffn, act->ffn_stride, post_norm, is_second);
}

static void route(const graph_t *graph, const model_layer_t *layer)
{
    const model_activations_t *act = &graph->model->act;
    const model_experts_t *experts = &graph->model->config.experts;
    const uint32_t rows = graph->batch->rows;
    const graph_out_t out = {act->expert.logits, K_F32, experts->count, K_OUT_STORE};
    graph_linear_of_normed(graph, &layer->router, &out);
    graph_add_adapters(graph, &layer->router, act->normed, act->hidden_stride, &out);
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

/* The slots of the experts that are here begin and end in these. */
static const uint32_t *own_offsets(const graph_t *graph)
{
    return graph->model->act.expert.offsets + graph->model->cut.experts.first;
}

static void add_to_gate_up(const graph_t *graph, uint32_t index)
{
    const model_activations_t *act = &graph->model->act;
    const model_expert_act_t *expert = &act->expert;
    const uint32_t dim = graph->model->config.experts.intermediate;
    const graph_slots_t x = {act->normed, act->hidden_stride, graph->model->config.hidden, true};
    const graph_slots_t gate = {expert->ffn, expert->ffn_stride, dim, false};
    const graph_slots_t up = {graph_activation(graph, expert->ffn, dim), expert->ffn_stride, dim,
                              false};
    graph_add_expert_adapters(graph, index, ADAPTER_EXPERT_GATE, &x, &gate);
    graph_add_expert_adapters(graph, index, ADAPTER_EXPERT_UP, &x, &up);
}

static void add_to_down(const graph_t *graph, uint32_t index)
{
    const model_config_t *config = &graph->model->config;
    const model_activations_t *act = &graph->model->act;
    const graph_slots_t x = {act->expert.ffn, act->expert.ffn_stride, config->experts.intermediate,
                             false};
    const graph_slots_t y = {act->expert.rows, act->hidden_stride, config->hidden, false};
    graph_add_expert_adapters(graph, index, ADAPTER_EXPERT_DOWN, &x, &y);
}

/* expert.rows = every slot's expert of its row of normed */
static void compute_experts(const graph_t *graph, uint32_t index)
{
    const model_layer_t *layer = &graph->model->layers[index];
    const model_activations_t *act = &graph->model->act;
    const model_experts_t *experts = &graph->model->config.experts;
    const uint32_t n_experts = graph->model->cut.experts.n;
    const model_expert_act_t *expert = &act->expert;
    const uint32_t slots = graph->batch->rows * experts->used;
    const k_expert_linear_args_t gate_up = {
        .experts = layer->expert_gate_up,
        .bias = layer->expert_gate_up_bias,
        .offsets = own_offsets(graph),
        .row_of_slot = expert->row_of_slot,
        .x = act->normed,
        .gathered = expert->rows,
        .y = expert->ffn,
        .n_experts = n_experts,
        .all_experts = experts->count,
        .slots = slots,
        .x_stride = act->hidden_stride,
        .y_stride = expert->ffn_stride,
    };
    const k_expert_linear_args_t down = {
        .experts = layer->expert_down,
        .bias = layer->expert_down_bias,
        .offsets = own_offsets(graph),
        .x = expert->ffn,
        .y = expert->rows,
        .n_experts = n_experts,
        .all_experts = experts->count,
        .slots = slots,
        .x_stride = expert->ffn_stride,
        .y_stride = act->hidden_stride,
    };
    graph->stream->ops->expert_linear(graph->stream, &gate_up);
    add_to_gate_up(graph, index);
    activate(graph, expert->ffn, slots, experts->intermediate, expert->ffn_stride);
    graph->stream->ops->expert_linear(graph->stream, &down);
    add_to_down(graph, index);
}

static void add_experts(const graph_t *graph, uint32_t index)
{
    const model_layer_t *layer = &graph->model->layers[index];
    const model_activations_t *act = &graph->model->act;
    const bool has_all = graph->model->cut.experts.n == graph->model->config.experts.count;
    route(graph, layer);
    compute_experts(graph, index);
    const k_combine_args_t args = {
        .x = act->expert.rows,
        .weights = act->expert.weights,
        .slot_of = act->expert.slot_of,
        .offsets = has_all ? NULL : own_offsets(graph),
        .n_experts = graph->model->cut.experts.n,
        .y = act->hidden,
        .rows = graph->batch->rows,
        .used = graph->model->config.experts.used,
        .dim = graph->model->config.hidden,
        .x_stride = act->hidden_stride,
        .y_stride = act->hidden_stride,
        .replaces = graph_replaces_hidden(graph),
    };
    graph_settle(graph);
    graph->stream->ops->combine(graph->stream, &args);
    if (layer->shared_down.n_parts > 0) { /* last: graph_add_branch may overwrite normed */
        add_gated(graph, &layer->shared_gate_up, &layer->shared_down, NULL, true);
    } else {
        graph_sum_parts(graph, act->hidden);
    }
}

void graph_add_ffn(const graph_t *graph, uint32_t index)
{
    const model_layer_t *layer = &graph->model->layers[index];
    if (model_layer_has_experts(&graph->model->config, index)) {
        add_experts(graph, index);
    } else {
        add_gated(graph, &layer->gate_up, &layer->down, layer->ffn_post_norm, false);
    }
}
