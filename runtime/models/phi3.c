/* SPDX-License-Identifier: Apache-2.0 */
/* phi3: Llama's block with fused projections; Phi-3, 3.5 and 4. Abdin et al. 2024. */
#include "runtime/models/graph.h"

static void init(model_config_t *config)
{
    config->is_fused = true;
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

const model_family_t model_family_phi3 = {.name = "phi3", .forward = forward};
const model_family_config_t model_family_config_phi3 = {.init = init};
