/* SPDX-License-Identifier: Apache-2.0 */
/* llama: Llama 1 to 3.1 and what was built alike (SmolLM2). Touvron et al. 2023. */
#include "runtime/models/graph.h"

/* GGUF calls Mixtral "llama" too: it has experts. */
static void from_gguf(model_gguf_reader_t *reader, model_config_t *config)
{
    (void)reader;
    if (config->experts.count > 0) {
        config->family = "mixtral";
    }
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

const model_family_t model_family_llama = {.name = "llama", .forward = forward};
const model_family_config_t model_family_config_llama = {.from_gguf = from_gguf};
