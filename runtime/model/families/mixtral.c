/* SPDX-License-Identifier: Apache-2.0 */
/* mixtral: Mistral's block with experts in place of the feed-forward. Jiang et al. 2024. */
#include "runtime/model/families/graph.h"

static void from_json(json_reader_t *root, model_config_t *config)
{
    model_config_read_experts(root, config);
    config->experts.renormalizes = true;
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

const model_family_t model_family_mixtral = {.name = "mixtral", .add_layer = add_layer};
const model_family_config_t model_family_config_mixtral = {.from_json = from_json};
