/* SPDX-License-Identifier: Apache-2.0 */
/* gpt_oss: attention with sinks, every other layer slides, experts with biases. OpenAI 2025. */
#include "runtime/model/families/graph.h"

static void init(model_config_t *config)
{
    config->has_qkv_bias = true;
    config->has_output_bias = true;
    config->has_sinks = true;
    config->activation = MODEL_CLAMPED_SWIGLU;
    config->activation_limit = 7;
    config->experts.has_linear_bias = true;
}

static void from_json(json_reader_t *root, model_config_t *config)
{
    model_config_read_experts(root, config);
    config->experts.renormalizes = true;
    config->activation_limit = (float)json_reader_f64(root, "swiglu_limit", 7);
    if (json_reader_get(root, "layer_types") == NULL) {
        model_config_slide_all_but(config, 2);
    }
}

/* The files' yarn is the model's, whose ramp has no whole ends. */
static void from_gguf(model_gguf_reader_t *reader, model_config_t *config)
{
    model_gguf_need_u32(reader, "expert_count");
    config->rope.keeps_ramp = true;
    model_config_slide_all_but(config, 2);
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

const model_family_t model_family_gpt_oss = {.name = "gpt_oss", .add_layer = add_layer};
const model_family_config_t model_family_config_gpt_oss = {
    .init = init, .from_json = from_json, .from_gguf = from_gguf};
