/* SPDX-License-Identifier: Apache-2.0 */
/* qwen2: Llama's block with biases on q, k and v. Yang et al. 2024. */
#include "runtime/model/families/graph.h"

static void init(model_config_t *config)
{
    config->has_qkv_bias = true;
}

static void add_layer(const graph_t *graph, uint32_t index)
{
    const model_layer_t *layer = &graph->model->layers[index];

    graph_norm(graph, layer->attn_norm);
    graph_project_qkv(graph, layer);
    graph_attend(graph, index);
    graph_add_attention(graph, layer);

    graph_norm(graph, layer->ffn_norm);
    graph_add_ffn(graph, index);
}

const model_family_t model_family_qwen2 = {.name = "qwen2", .add_layer = add_layer};
const model_family_config_t model_family_config_qwen2 = {.init = init};
