/* SPDX-License-Identifier: Apache-2.0 */
/* gemma3: Gemma 2 with q and k norms for soft caps, and a rotation of the sliding layers. Gemma Team 2025. */
#include <math.h>

#include "runtime/model/families/graph.h"

static void init(model_config_t *config)
{
    config->has_post_norms = true;
    config->activation = MODEL_GELU_TANH;
    config->qk_norm = MODEL_QK_NORM_HEAD;
}

/* One full layer after five that slide, which rotate fast and unscaled. */
enum { PERIOD = 6, LOCAL_THETA = 10000 };

static void set_local_rope(model_config_t *config, double theta)
{
    if (!config->has_local_rope) {
        config->has_local_rope = true;
        config->local_rope = (model_rope_t){
            .theta = (float)theta, .dim = config->head_dim, .factor = 1, .mscale = 1};
    }
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
    /* Already what the scaled rotation reaches, unlike other models' with a linear one. */
    config->max_context = json_reader_need_u32(root, "max_position_embeddings");
    set_local_rope(config, json_reader_f64(root, "rope_local_base_freq", LOCAL_THETA));
    if (json_reader_get(root, "layer_types") == NULL) {
        model_config_slide_all_but(config, json_reader_u32(root, "sliding_window_pattern", PERIOD));
    }
}

/* The 27B model scales by its hidden size over its heads. */
static void from_gguf(model_gguf_reader_t *reader, model_config_t *config)
{
    enum { LAYERS_27B = 62 };
    if (config->attention_scale == 0 && config->layers == LAYERS_27B && config->heads > 0) {
        config->attention_scale = 1.0f / sqrtf((float)config->hidden / (float)config->heads);
    }
    config->embedding_scale = sqrtf((float)config->hidden);
    set_local_rope(config, model_gguf_f64(reader, "rope.freq_base_swa", LOCAL_THETA));
    model_config_slide_all_but(config,
                               model_gguf_u32(reader, "attention.sliding_window_pattern", PERIOD));
}

static void add_layer(const graph_t *graph, uint32_t index)
{
    const model_layer_t *layer = &graph->model->layers[index];

    graph_norm(graph, layer->attn_norm);
    graph_project_qkv(graph, layer);
    graph_norm_qk(graph, layer);
    graph_attend(graph, index);
    graph_add_attention(graph, layer);

    graph_norm(graph, layer->ffn_norm);
    graph_add_ffn(graph, index);
}

const model_family_t model_family_gemma3 = {.name = "gemma3", .add_layer = add_layer};
const model_family_config_t model_family_config_gemma3 = {
    .init = init, .from_json = from_json, .from_gguf = from_gguf};
