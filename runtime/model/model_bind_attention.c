/* SPDX-License-Identifier: Apache-2.0 */
/* The weights of a layer's attention, plain or latent. */
#include "runtime/model/model_bind_priv.h"

static weft_status_t bind_qkv(model_binder_t *binder, const model_config_t *config, uint32_t layer,
                              model_linear_t *linear)
{
    static const model_tensor_id_t weights[] = {MODEL_TENSOR_ATTN_Q, MODEL_TENSOR_ATTN_K,
                                                MODEL_TENSOR_ATTN_V};
    static const model_tensor_id_t biases[] = {MODEL_TENSOR_ATTN_Q_BIAS, MODEL_TENSOR_ATTN_K_BIAS,
                                               MODEL_TENSOR_ATTN_V_BIAS};

    if (config->is_fused) {
        return model_bind_matrix(binder, MODEL_TENSOR_ATTN_QKV, layer, linear);
    }
    weft_status_t status = model_bind_linear(binder, weights, 3, layer, linear);
    if (status >= 0 && config->has_qkv_bias) {
        status = model_bind_bias(binder, biases, 3, layer, linear);
    }
    return status;
}

static weft_status_t bind_qk_norms(model_binder_t *binder, const model_config_t *config,
                                   uint32_t index, model_layer_t *layer)
{
    const bool is_there = config->qk_norm != MODEL_QK_NORM_NONE;
    const weft_status_t status =
        model_bind_norm(binder, config, is_there, MODEL_TENSOR_ATTN_Q_NORM, index, &layer->q_norm);
    return status < 0 ? status
                      : model_bind_norm(binder, config, is_there, MODEL_TENSOR_ATTN_K_NORM, index,
                                        &layer->k_norm);
}

static weft_status_t bind_attn_output(model_binder_t *binder, const model_config_t *config,
                                      uint32_t index, model_linear_t *linear)
{
    static const model_tensor_id_t bias[] = {MODEL_TENSOR_ATTN_OUT_BIAS};
    const weft_status_t status = model_bind_matrix(binder, MODEL_TENSOR_ATTN_OUTPUT, index, linear);
    if (status < 0 || !config->has_output_bias || !binder->cut->is_first) {
        return status;
    }
    return model_bind_bias(binder, bias, 1, index, linear);
}

/* One matrix of an expert or head. */
static weft_status_t bind_one(model_binder_t *binder, model_tensor_key_t key, k_weight_t *weight)
{
    model_tensor_t tensor;
    weft_status_t status = model_bind_find_key(binder, key, &tensor);
    if (status >= 0) {
        status = model_bind_check_supported(binder, &tensor);
    }
    return status < 0 ? status : model_bind_weight(binder, &tensor, 1, K_WEIGHT_ROWS, weight);
}

static weft_status_t bind_mla_heads(model_binder_t *binder, const model_config_t *config,
                                    uint32_t index, model_layer_t *layer)
{
    weft_status_t status = WEFT_OK;
    for (uint32_t h = 0; status >= 0 && h < config->heads; h++) {
        const model_tensor_key_t key = {MODEL_TENSOR_MLA_K_B, index, h};
        const model_tensor_key_t value = {MODEL_TENSOR_MLA_V_B, index, h};
        status = bind_one(binder, key, &layer->mla_key[h]);
        if (status >= 0) {
            status = bind_one(binder, value, &layer->mla_value[h]);
        }
    }
    return status;
}

static weft_status_t bind_mla(model_binder_t *binder, const model_config_t *config, uint32_t index,
                              model_layer_t *layer)
{
    const bool is_direct = config->mla.q_latent == 0;
    const model_tensor_id_t ids[] = {is_direct ? MODEL_TENSOR_MLA_Q : MODEL_TENSOR_MLA_Q_A,
                                     MODEL_TENSOR_MLA_KV_A};
    weft_status_t status = model_bind_linear(binder, ids, 2, index, &layer->qkv);
    if (status >= 0 && !is_direct) {
        status = model_bind_vector(binder, MODEL_TENSOR_MLA_Q_NORM, index, &layer->mla_q_norm);
    }
    if (status >= 0 && !is_direct) {
        status = model_bind_matrix(binder, MODEL_TENSOR_MLA_Q_B, index, &layer->mla_q);
    }
    if (status >= 0) {
        status = model_bind_vector(binder, MODEL_TENSOR_MLA_KV_NORM, index, &layer->mla_kv_norm);
    }
    return status < 0 ? status : bind_mla_heads(binder, config, index, layer);
}

weft_status_t model_bind_attention(model_binder_t *binder, const model_config_t *config,
                                   uint32_t index, model_layer_t *layer)
{
    weft_status_t status = model_bind_norm(binder, config, config->has_pre_norms,
                                           MODEL_TENSOR_ATTN_NORM, index, &layer->attn_norm);
    if (status >= 0 && config->mla.kv_latent > 0) {
        status = bind_mla(binder, config, index, layer);
    } else if (status >= 0) {
        status = bind_qkv(binder, config, index, &layer->qkv);
    }
    if (status >= 0) {
        status = bind_qk_norms(binder, config, index, layer);
    }
    if (status >= 0 && config->has_sinks) {
        status = model_bind_vector(binder, MODEL_TENSOR_ATTN_SINKS, index, &layer->sinks);
    }
    if (status >= 0) {
        status = bind_attn_output(binder, config, index, &layer->attn_output);
    }
    if (status >= 0) {
        status = model_bind_norm(binder, config, config->has_post_norms,
                                 MODEL_TENSOR_ATTN_POST_NORM, index, &layer->attn_post_norm);
    }
    return status;
}
