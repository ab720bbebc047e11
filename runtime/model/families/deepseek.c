/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/families/deepseek.h"

#include <math.h>

/* ---- configuration ------------------------------------------------------------------------- */

/* What latent attention says about heads, cache, rotation and scale. */
static void finish_mla(model_config_t *config, double mscale_all)
{
    const model_mla_t *mla = &config->mla;
    const double scale = model_yarn_mscale((double)config->rope.factor, mscale_all);
    config->kv_heads = 1;
    config->head_dim = mla->kv_latent / 2 + mla->rotary / 2;
    config->rope.dim = mla->rotary;
    config->rope.interleaved = true;
    if (mla->plain + mla->rotary > 0) {
        config->attention_scale =
            (float)(scale * scale / sqrt((double)mla->plain + (double)mla->rotary));
    }
}

static void leave_dense(model_config_t *config, uint32_t first, uint32_t step)
{
    for (uint32_t i = 0; i < config->layers && i < MODEL_MAX_LAYERS; i++) {
        if (i < first || step == 0 || i % step != 0) {
            model_layers_add(&config->dense_layers, i);
        }
    }
}

void deepseek_from_json(json_reader_t *root, model_config_t *config)
{
    model_mla_t *mla = &config->mla;
    model_experts_t *experts = &config->experts;
    const json_t *parameters = json_reader_get(root, "rope_parameters");
    const json_t *scaling = parameters != NULL ? parameters : json_reader_get(root, "rope_scaling");
    const json_t *mscale_all = json_object_get(scaling, "mscale_all_dim");
    mla->q_latent = json_reader_u32(root, "q_lora_rank", 0);
    mla->kv_latent = json_reader_need_u32(root, "kv_lora_rank");
    mla->plain = json_reader_need_u32(root, "qk_nope_head_dim");
    mla->rotary = json_reader_need_u32(root, "qk_rope_head_dim");
    mla->value = json_reader_need_u32(root, "v_head_dim");
    if (mla->kv_latent == 0) { /* elsewhere it means that there is no latent attention */
        json_reader_refuse(root, WEFT_ERR_INVALID, "kv_lora_rank", "must be above 0");
    }
    finish_mla(config, json_is_number(mscale_all) ? json_number_value(mscale_all) : 0);

    model_config_read_experts(root, config);
    const uint64_t shared =
        (uint64_t)json_reader_u32(root, "n_shared_experts", 0) * experts->intermediate;
    experts->shared_intermediate = shared > UINT32_MAX ? UINT32_MAX : (uint32_t)shared;
    experts->renormalizes = json_reader_bool(root, "norm_topk_prob", false);
    experts->scale = (float)json_reader_f64(root, "routed_scaling_factor", 1);
    config->spare_layers = json_reader_u32(root, "num_nextn_predict_layers", 0);
    leave_dense(config, json_reader_u32(root, "first_k_dense_replace", 0),
                json_reader_u32(root, "moe_layer_freq", 1));
}

void deepseek_read_groups(json_reader_t *root, model_config_t *config)
{
    config->experts.n_groups = json_reader_u32(root, "n_group", 1);
    config->experts.groups_used = json_reader_u32(root, "topk_group", 1);
}

/* Converters stretch mscale and mscale_all_dim alike, as all models do: cos and sin stay 1. */
void deepseek_from_gguf(model_gguf_reader_t *reader, model_config_t *config)
{
    enum { SIGMOID = 2 };
    model_mla_t *mla = &config->mla;
    model_experts_t *experts = &config->experts;
    const uint32_t key = model_gguf_need_u32(reader, "attention.key_length_mla");
    mla->q_latent = model_gguf_u32(reader, "attention.q_lora_rank", 0);
    mla->kv_latent = model_gguf_need_u32(reader, "attention.kv_lora_rank");
    mla->rotary = model_gguf_need_u32(reader, "rope.dimension_count");
    mla->plain = key > mla->rotary ? key - mla->rotary : 0;
    mla->value = model_gguf_need_u32(reader, "attention.value_length_mla");
    if (mla->kv_latent == 0) {
        model_gguf_refuse(reader, WEFT_ERR_INVALID, "attention.kv_lora_rank", "must be above 0");
    }
    config->rope.mscale = 1;
    config->attention_scale = 0;
    finish_mla(config, 10 * model_gguf_f64(reader, "rope.scaling.yarn_log_multiplier", 0));

    const uint64_t shared =
        (uint64_t)model_gguf_u32(reader, "expert_shared_count", 0) * experts->intermediate;
    experts->shared_intermediate = shared > UINT32_MAX ? UINT32_MAX : (uint32_t)shared;
    experts->renormalizes = model_gguf_flag(reader, "expert_weights_norm", false);
    experts->scale = (float)model_gguf_f64(reader, "expert_weights_scale", 1);
    experts->is_sigmoid = model_gguf_u32(reader, "expert_gating_func", 1) == SIGMOID;
    experts->has_bias = experts->is_sigmoid;
    experts->n_groups = model_gguf_u32(reader, "expert_group_count", 1);
    experts->groups_used = model_gguf_u32(reader, "expert_group_used_count", 1);
    leave_dense(config, model_gguf_u32(reader, "leading_dense_block_count", 0), 1);
}

/* ---- graph --------------------------------------------------------------------------------- */

void deepseek_add_layer(const graph_t *graph, uint32_t index)
{
    const model_layer_t *layer = &graph->model->layers[index];

    graph_norm(graph, layer->attn_norm);
    graph_project_mla(graph, layer);
    graph_attend_mla(graph, index);
    graph_add_attention(graph, layer);

    graph_norm(graph, layer->ffn_norm);
    graph_add_ffn(graph, index);
}
