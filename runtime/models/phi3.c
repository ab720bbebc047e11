/* SPDX-License-Identifier: Apache-2.0 */
/* phi3: Llama's block with fused projections; Phi-3, 3.5 and 4. Abdin et al. 2024. */
#include "runtime/models/graph.h"

static void init(model_config_t *config)
{
    config->is_fused = true;
}

/* Converters do not name longrope: the tensors of its divisors tell. */
static void from_gguf(model_gguf_reader_t *reader, model_config_t *config)
{
    config->rope.original_context =
        model_gguf_u32(reader, "rope.scaling.original_context_length", config->max_context);
    config->rope.mscale = (float)model_gguf_f64(reader, "rope.scaling.attn_factor", 1);
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
const model_family_config_t model_family_config_phi3 = {.init = init, .from_gguf = from_gguf};
