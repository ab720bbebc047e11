/* SPDX-License-Identifier: Apache-2.0 */
/* The weights of a layer's feed-forward, or of its experts. */
#include "runtime/model/model_bind_priv.h"

/* One weight for the fused SwiGLU where the backend has it, else as any other linear. */
static weft_status_t bind_gate_up(model_binder_t *binder, const model_config_t *config,
                                  uint32_t layer, model_linear_t *linear)
{
    static const model_tensor_id_t ids[] = {MODEL_TENSOR_FFN_GATE, MODEL_TENSOR_FFN_UP};
    model_tensor_t tensors[MODEL_LINEAR_PARTS];
    uint32_t n;
    if (config->is_fused) {
        return model_bind_matrix(binder, MODEL_TENSOR_FFN_GATE_UP, layer, linear);
    }
    const weft_status_t status = model_bind_find_parts(binder, ids, 2, layer, tensors, &n);
    if (status < 0) {
        return status;
    }
    if (config->activation != MODEL_SILU || binder->has_adapters ||
        tensors[0].dtype != tensors[1].dtype ||
        model_bind_weight_bytes(binder, tensors, 2, K_WEIGHT_GATE_UP) == SIZE_MAX) {
        return model_bind_parts(binder, tensors, 2, linear);
    }
    *linear = (model_linear_t){.n_parts = 1};
    const weft_status_t packed =
        model_bind_weight(binder, tensors, 2, K_WEIGHT_GATE_UP, &linear->parts[0]);
    linear->rows = linear->parts[0].rows;
    return packed;
}

static weft_status_t bind_dense(model_binder_t *binder, const model_config_t *config,
                                uint32_t index, model_layer_t *layer)
{
    const weft_status_t status = bind_gate_up(binder, config, index, &layer->gate_up);
    return status < 0 ? status
                      : model_bind_matrix(binder, MODEL_TENSOR_FFN_DOWN, index, &layer->down);
}

/* One weight of the n matrices of an expert; all of one type. */
static weft_status_t bind_expert(model_binder_t *binder, const model_tensor_id_t *ids, uint32_t n,
                                 uint32_t layer, uint32_t expert, k_weight_t *weight)
{
    model_tensor_t tensors[MODEL_LINEAR_PARTS];
    for (uint32_t i = 0; i < n; i++) {
        const model_tensor_key_t key = {.id = ids[i], .layer = layer, .expert = expert};
        weft_status_t status = model_bind_find_key(binder, key, &tensors[i]);
        if (status >= 0) {
            status = model_bind_check_supported(binder, &tensors[i]);
        }
        if (status < 0) {
            return status;
        }
        if (tensors[i].dtype != tensors[0].dtype) {
            return weft_diag(binder->diag, WEFT_ERR_UNSUPPORTED,
                             "%s: tensor %s: of another type than the one before it",
                             model_source_path(binder->source), tensors[i].name);
        }
    }
    return model_bind_weight(binder, tensors, n, K_WEIGHT_ROWS, weight);
}

/* [experts, the rows of all n tensors]: each expert's biases one after another. */
static weft_status_t bind_expert_bias(model_binder_t *binder, const model_tensor_id_t *ids,
                                      uint32_t n, uint32_t layer, uint32_t columns,
                                      const float **bias_out)
{
    const uint32_t experts = binder->cut->experts.n;
    const model_place_t place = model_bind_take_vector(binder, (size_t)experts * n * columns);
    *bias_out = place.device;
    for (uint32_t i = 0; i < n; i++) {
        model_tensor_t tensor;
        const weft_status_t status = model_bind_find(binder, ids[i], layer, &tensor);
        if (status < 0) {
            return status;
        }
        for (uint32_t e = 0; binder->stream != NULL && e < experts; e++) {
            model_tensor_read(&tensor, e, 1, binder->raw);
            k_dequantize(tensor.dtype, binder->raw, place.host + ((size_t)e * n + i) * columns,
                         columns);
        }
    }
    return WEFT_OK;
}

static weft_status_t bind_expert_biases(model_binder_t *binder, const model_config_t *config,
                                        uint32_t index, model_layer_t *layer)
{
    static const model_tensor_id_t router[] = {MODEL_TENSOR_ROUTER_BIAS};
    static const model_tensor_id_t gate_up[] = {MODEL_TENSOR_EXPERT_GATE_BIAS,
                                                MODEL_TENSOR_EXPERT_UP_BIAS};
    static const model_tensor_id_t down[] = {MODEL_TENSOR_EXPERT_DOWN_BIAS};
    const model_experts_t *experts = &config->experts;
    const bool are_dealt_out = binder->cut->experts.n < experts->count;
    weft_status_t status = model_bind_bias(binder, router, 1, index, &layer->router);
    if (status >= 0) {
        status = bind_expert_bias(binder, gate_up, 2, index, experts->intermediate,
                                  &layer->expert_gate_up_bias);
    }
    /* Of an expert whose parts are added up, one part has it. */
    if (status >= 0 && (are_dealt_out || binder->cut->is_first)) {
        status = bind_expert_bias(binder, down, 1, index, config->hidden, &layer->expert_down_bias);
    }
    return status;
}

/* What every token uses besides its experts. */
static weft_status_t bind_shared(model_binder_t *binder, const model_config_t *config,
                                 uint32_t index, model_layer_t *layer)
{
    static const model_tensor_id_t gate_up[] = {MODEL_TENSOR_SHARED_GATE, MODEL_TENSOR_SHARED_UP};
    if (config->experts.shared_intermediate == 0) {
        return WEFT_OK;
    }
    const weft_status_t status =
        model_bind_linear(binder, gate_up, 2, index, &layer->shared_gate_up);
    return status < 0
               ? status
               : model_bind_matrix(binder, MODEL_TENSOR_SHARED_DOWN, index, &layer->shared_down);
}

static weft_status_t bind_experts(model_binder_t *binder, const model_config_t *config,
                                  uint32_t index, model_layer_t *layer)
{
    static const model_tensor_id_t gate_up[] = {MODEL_TENSOR_EXPERT_GATE, MODEL_TENSOR_EXPERT_UP};
    static const model_tensor_id_t down[] = {MODEL_TENSOR_EXPERT_DOWN};
    const model_experts_t *experts = &config->experts;
    weft_status_t status = model_bind_matrix(binder, MODEL_TENSOR_ROUTER, index, &layer->router);
    if (status >= 0 && experts->has_linear_bias) {
        status = bind_expert_biases(binder, config, index, layer);
    }
    if (status >= 0 && experts->has_bias) {
        status = model_bind_vector(binder, MODEL_TENSOR_SCORE_BIAS, index, &layer->score_bias);
    }
    if (status >= 0) {
        status = bind_shared(binder, config, index, layer);
    }
    for (uint32_t e = 0; status >= 0 && e < binder->cut->experts.n; e++) {
        status = bind_expert(binder, gate_up, 2, index, e, &layer->expert_gate_up[e]);
        if (status >= 0) {
            status = bind_expert(binder, down, 1, index, e, &layer->expert_down[e]);
        }
    }
    return status;
}

weft_status_t model_bind_ffn(model_binder_t *binder, const model_config_t *config, uint32_t index,
                             model_layer_t *layer)
{
    weft_status_t status = model_bind_norm(binder, config, config->has_pre_norms,
                                           MODEL_TENSOR_FFN_NORM, index, &layer->ffn_norm);
    if (status >= 0) {
        status = model_layer_has_experts(config, index) ? bind_experts(binder, config, index, layer)
                                                        : bind_dense(binder, config, index, layer);
    }
    if (status >= 0) {
        status = model_bind_norm(binder, config, config->has_post_norms, MODEL_TENSOR_FFN_POST_NORM,
                                 index, &layer->ffn_post_norm);
    }
    return status;
}
