/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_bind_priv: a model being bound, as the files of its parts share it. Every function runs
 * twice: with stream NULL it finds, checks and measures, then it fills what was measured. An index
 * is that of the layer, counted from the rank's first, as experts and heads are. What is found is the
 * rank's part of a tensor. Anything wrong with one: diag names file, tensor and reason.
 */
#pragma once

#include "runtime/model_priv.h"

typedef struct model_binder {
    const model_source_t *source;
    const model_cut_t *cut;
    const k_ops_t *ops;
    bool has_adapters;  /* they add to gate and up before these are multiplied */
    k_stream_t *stream; /* NULL: measuring */
    model_weights_t *weights;
    carve_t vectors; /* all together, on the host: sent in one go */
    char *device_vectors;
    float *factors; /* of a rotation: a table, then divisors; host */
    void *raw;      /* a row as its dtype has it; no longer than as f32 */
    weft_diag_t *diag;
} model_binder_t;

/* A vector's place on the host, and where it will be on the device; NULLs while measuring. */
typedef struct model_place {
    float *host;
    float *device;
} model_place_t;

/* ---- finding: WEFT_ERR_MALFORMED where the shape is another -------------------------------- */

weft_status_t model_bind_find_key(model_binder_t *binder, model_tensor_key_t key,
                                  model_tensor_t *tensor_out);
weft_status_t model_bind_find(model_binder_t *binder, model_tensor_id_t id, uint32_t layer,
                              model_tensor_t *tensor_out);

/* WEFT_ERR_UNSUPPORTED: the backend has no weights of the tensor's type. */
weft_status_t model_bind_check_supported(model_binder_t *binder, const model_tensor_t *tensor);

/*
 * Matrices with the same input, each found and supported; those of several runs of rows, as many
 * parts. n_out: how many, up to MODEL_LINEAR_PARTS.
 */
weft_status_t model_bind_find_parts(model_binder_t *binder, const model_tensor_id_t *ids,
                                    uint32_t n, uint32_t layer,
                                    model_tensor_t tensors[MODEL_LINEAR_PARTS], uint32_t *n_out);

/* ---- vectors ------------------------------------------------------------------------------- */

model_place_t model_bind_take_vector(model_binder_t *binder, size_t n);

weft_status_t model_bind_vector(model_binder_t *binder, model_tensor_id_t id, uint32_t layer,
                                const float **vector_out);

/* (tensor + offset) · scale */
weft_status_t model_bind_scaled(model_binder_t *binder, model_tensor_id_t id, uint32_t layer,
                                float offset, float scale, const float **vector_out);

/* The weights of a norm, where the model has it. */
weft_status_t model_bind_norm(model_binder_t *binder, const model_config_t *config, bool is_there,
                              model_tensor_id_t id, uint32_t layer, const float **vector_out);

/* The biases of a linear's parts, one after another. */
weft_status_t model_bind_bias(model_binder_t *binder, const model_tensor_id_t *ids, uint32_t n,
                              uint32_t layer, model_linear_t *linear);

/* ---- matrices ------------------------------------------------------------------------------ */

/* Bytes of all rows of the tensors as one weight; as k_ops.weight_bytes. */
size_t model_bind_weight_bytes(const model_binder_t *binder, const model_tensor_t *tensors,
                               uint32_t n, k_weight_form_t form);

/* Makes one weight of n tensors, or points at the file where the backend computes from it. */
weft_status_t model_bind_weight(model_binder_t *binder, const model_tensor_t *tensors, uint32_t n,
                                k_weight_form_t form, k_weight_t *weight_out);

/* As few weights as can be of tensors with the same input. */
weft_status_t model_bind_parts(model_binder_t *binder, const model_tensor_t *tensors, uint32_t n,
                               model_linear_t *linear);

weft_status_t model_bind_linear(model_binder_t *binder, const model_tensor_id_t *ids, uint32_t n,
                                uint32_t layer, model_linear_t *linear);
weft_status_t model_bind_matrix(model_binder_t *binder, model_tensor_id_t id, uint32_t layer,
                                model_linear_t *linear);

/* ---- the parts of a layer ------------------------------------------------------------------ */

weft_status_t model_bind_attention(model_binder_t *binder, const model_config_t *config,
                                   uint32_t index, model_layer_t *layer);
weft_status_t model_bind_ffn(model_binder_t *binder, const model_config_t *config, uint32_t index,
                             model_layer_t *layer);
