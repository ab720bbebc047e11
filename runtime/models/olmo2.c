/* SPDX-License-Identifier: Apache-2.0 */
/* olmo2: norms after the branches alone, and over all of q and k. OLMo Team 2025. */
#include "runtime/models/graph.h"

static void init(model_config_t *config)
{
    config->has_pre_norms = false;
    config->has_post_norms = true;
    config->qk_norm = MODEL_QK_NORM_WHOLE;
}

static void forward(model_t *model, k_stream_t *stream, const model_batch_t *batch)
{
    const graph_t graph = {model, stream, batch};

    graph_embed(&graph);
    for (uint32_t i = 0; i < model->config.layers; i++) {
        const model_layer_t *layer = &model->layers[i];

        graph_take_hidden(&graph);
        graph_project_qkv(&graph, layer);
        graph_norm_qk(&graph, layer);
        graph_attend(&graph, i);
        graph_add_attention(&graph, layer);

        graph_take_hidden(&graph);
        graph_add_ffn(&graph, i);
    }
}

const model_family_t model_family_olmo2 = {.name = "olmo2", .forward = forward};
const model_family_config_t model_family_config_olmo2 = {.init = init};
