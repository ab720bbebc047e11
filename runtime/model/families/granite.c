/* SPDX-License-Identifier: Apache-2.0 */
/* granite: Llama's block with scaled embedding, branches, attention and logits. IBM 2024. */
#include "runtime/model/families/graph.h"

static void from_json(json_reader_t *root, model_config_t *config)
{
    config->embedding_scale = (float)json_reader_f64(root, "embedding_multiplier", 1);
    config->residual_scale = (float)json_reader_f64(root, "residual_multiplier", 1);
    config->attention_scale = (float)json_reader_f64(root, "attention_multiplier", 1);
    config->logit_scale = (float)(1 / json_reader_f64(root, "logits_scaling", 1));
}

static void from_gguf(model_gguf_reader_t *reader, model_config_t *config)
{
    config->embedding_scale = (float)model_gguf_f64(reader, "embedding_scale", 1);
    config->residual_scale = (float)model_gguf_f64(reader, "residual_scale", 1);
    config->logit_scale = (float)(1 / model_gguf_f64(reader, "logit_scale", 1));
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

const model_family_t model_family_granite = {.name = "granite", .add_layer = add_layer};
const model_family_config_t model_family_config_granite = {.from_json = from_json,
                                                           .from_gguf = from_gguf};
