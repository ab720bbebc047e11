/* SPDX-License-Identifier: Apache-2.0 */
/* mistral: Llama's block that sees a sliding window of positions. Jiang et al. 2023. */
#include "runtime/model/families/graph.h"

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

const model_family_t model_family_mistral = {.name = "mistral", .add_layer = add_layer};
const model_family_config_t model_family_config_mistral = {0};
