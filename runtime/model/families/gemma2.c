/* SPDX-License-Identifier: Apache-2.0 */
/* gemma2: norms before and after each branch, soft caps, every other layer slides. Gemma Team 2024. */
#include <math.h>

#include "runtime/model/families/graph.h"

static void init(model_config_t *config)
{
    config->has_post_norms = true;
    config->activation = MODEL_GELU_TANH;
}

static void from_json(json_reader_t *root, model_config_t *config)
{
    const double scalar = json_reader_f64(root, "query_pre_attn_scalar", config->head_dim);
    config->attention_scale = (float)(1 / sqrt(scalar));
    config->attention_softcap = (float)json_reader_f64(root, "attn_logit_softcapping", 0);
    config->logit_softcap = (float)json_reader_f64(root, "final_logit_softcapping", 0);
    config->embedding_scale = sqrtf((float)config->hidden);
    config->norm_offset = 1;
    config->is_embedding_tied = json_reader_bool(root, "tie_word_embeddings", true);
    if (json_reader_get(root, "layer_types") == NULL) {
        model_config_slide_all_but(config, 2);
    }
}

/* The 27B model scales by its hidden size over its heads. */
static void from_gguf(model_gguf_reader_t *reader, model_config_t *config)
{
    enum { LAYERS_27B = 46, WINDOW = 4096 }; /* old files leave the window to the reader */
    if (config->attention_scale == 0 && config->layers == LAYERS_27B && config->heads > 0) {
        config->attention_scale = 1.0f / sqrtf((float)config->hidden / (float)config->heads);
    }
    config->attention_softcap = (float)model_gguf_f64(reader, "attn_logit_softcapping", 50);
    config->logit_softcap = (float)model_gguf_f64(reader, "final_logit_softcapping", 30);
    config->embedding_scale = sqrtf((float)config->hidden);
    config->window = model_gguf_u32(reader, "attention.sliding_window", WINDOW);
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

const model_family_t model_family_gemma2 = {.name = "gemma2", .add_layer = add_layer};
const model_family_config_t model_family_config_gemma2 = {
    .init = init, .from_json = from_json, .from_gguf = from_gguf};
