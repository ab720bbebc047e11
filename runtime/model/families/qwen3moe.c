/* SPDX-License-Identifier: Apache-2.0 */
/* qwen3moe: Qwen3 with experts in most layers. Yang et al. 2025. */
#include "runtime/model/families/graph.h"

static void init(model_config_t *config)
{
    config->qk_norm = MODEL_QK_NORM_HEAD;
}

/* Every decoder_sparse_step-th layer has experts, but those of mlp_only_layers. */
static void from_json(json_reader_t *root, model_config_t *config)
{
    size_t i;
    json_t *layer;
    const uint32_t step = json_reader_u32(root, "decoder_sparse_step", 1);
    model_config_read_experts(root, config);
    config->experts.renormalizes = json_reader_bool(root, "norm_topk_prob", false);
    for (uint32_t index = 0; index < config->layers && index < MODEL_MAX_LAYERS; index++) {
        if (step == 0 || (index + 1) % step != 0) {
            model_layers_add(&config->dense_layers, index);
        }
    }
    json_array_foreach(json_reader_get(root, "mlp_only_layers"), i, layer)
    {
        const json_int_t index = json_integer_value(layer);
        if (index >= 0 && index < MODEL_MAX_LAYERS) {
            model_layers_add(&config->dense_layers, (uint32_t)index);
        }
    }
}

/* Converters know models with experts in every layer. */
static void from_gguf(model_gguf_reader_t *reader, model_config_t *config)
{
    model_gguf_need_u32(reader, "expert_count");
    (void)config;
}

static void add_layer(const graph_t *graph, uint32_t index)
{
    const model_layer_t *layer = &graph->model->layers[index];

    graph_norm(graph, layer->attn_norm);
    graph_project_qkv(graph, layer);
    graph_norm_qk(graph, layer);
    graph_attend(graph, index);
    graph_add_attention(graph, layer);

    graph_norm(graph, layer->ffn_norm);
    graph_add_ffn(graph, index);
}

const model_family_t model_family_qwen3moe = {.name = "qwen3moe", .add_layer = add_layer};
const model_family_config_t model_family_config_qwen3moe = {
    .init = init, .from_json = from_json, .from_gguf = from_gguf};
