/* SPDX-License-Identifier: Apache-2.0 */
/* phi3: Llama's block with fused projections; Phi-3, 3.5 and 4. Abdin et al. 2024. */
#include "runtime/model/families/graph.h"

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

const model_family_t model_family_phi3 = {.name = "phi3", .add_layer = add_layer};
const model_family_config_t model_family_config_phi3 = {.init = init, .from_gguf = from_gguf};
