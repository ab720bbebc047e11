/* SPDX-License-Identifier: Apache-2.0 */
/* qwen3: Llama's block with each head of q and k normed before rotation. Yang et al. 2025. */
#include "runtime/models/graph.h"

static void init(model_config_t *config)
{
    config->qk_norm = MODEL_QK_NORM_HEAD;
}

static void forward(model_t *model, k_stream_t *stream, const model_batch_t *batch)
{
    const graph_t graph = {model, stream, batch};

    graph_embed(&graph);
    for (uint32_t i = 0; i < model->config.layers; i++) {
        const model_layer_t *layer = &model->layers[i];

        graph_norm(&graph, layer->attn_norm);
        graph_project_qkv(&graph, layer);
        graph_norm_qk(&graph, layer);
        graph_attend(&graph, i);
        graph_add_attention(&graph, layer);

        graph_norm(&graph, layer->ffn_norm);
        graph_add_ffn(&graph, i);
    }
}

const model_family_t model_family_qwen3 = {.name = "qwen3", .forward = forward};
const model_family_config_t model_family_config_qwen3 = {.init = init};
