/* SPDX-License-Identifier: Apache-2.0 */
/* llama: Llama 1 to 3.1 and what was built alike (SmolLM2). Touvron et al. 2023. */
#include "runtime/model/families/graph.h"

/* GGUF calls Mixtral "llama" too: it has experts. */
static void from_gguf(model_gguf_reader_t *reader, model_config_t *config)
{
    (void)reader;
    if (config->experts.count > 0) {
        config->family = "mixtral";
    }
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

const model_family_t model_family_llama = {.name = "llama", .add_layer = add_layer};
const model_family_config_t model_family_config_llama = {.from_gguf = from_gguf};
