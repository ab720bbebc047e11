/* SPDX-License-Identifier: Apache-2.0 */
/* olmo2: norms after the branches alone, and over all of q and k. OLMo Team 2025. */
#include "runtime/model/families/graph.h"

static void init(model_config_t *config)
{
    config->has_pre_norms = false;
    config->has_post_norms = true;
    config->qk_norm = MODEL_QK_NORM_WHOLE;
}

static void add_layer(const graph_t *graph, uint32_t index)
{
    const model_layer_t *layer = &graph->model->layers[index];

    graph_take_hidden(graph);
    graph_project_qkv(graph, layer);
    graph_norm_qk(graph, layer);
    graph_attend(graph, index);
    graph_add_attention(graph, layer);

    graph_take_hidden(graph);
    graph_add_ffn(graph, index);
}

const model_family_t model_family_olmo2 = {.name = "olmo2", .add_layer = add_layer};
const model_family_config_t model_family_config_olmo2 = {.init = init};
