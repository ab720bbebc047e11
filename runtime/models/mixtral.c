/* SPDX-License-Identifier: Apache-2.0 */
/* mixtral: Mistral's block with experts in place of the feed-forward. Jiang et al. 2024. */
#include "runtime/models/graph.h"

static void from_json(json_reader_t *root, model_config_t *config)
{
    model_config_read_experts(root, config);
    config->experts.renormalizes = true;
}

static void forward(model_t *model, k_stream_t *stream, const model_batch_t *batch)
{
    const graph_t graph = {model, stream, batch};

    graph_embed(&graph);
    for (uint32_t i = 0; i < model->config.layers; i++) {
        const model_layer_t *layer = &model->layers[i];

        graph_norm(&graph, layer->attn_norm);
        graph_project_qkv(&graph, layer);
        graph_attend(&graph, i);
        graph_add_attention(&graph, layer);

        graph_norm(&graph, layer->ffn_norm);
        graph_add_ffn(&graph, i);
    }
}

const model_family_t model_family_mixtral = {.name = "mixtral", .forward = forward};
const model_family_config_t model_family_config_mixtral = {.from_json = from_json};
