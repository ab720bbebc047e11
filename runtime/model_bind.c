/* SPDX-License-Identifier: Apache-2.0 */
/* model_bind: from the tensors of a file to the weights of a graph. */
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "runtime/model_priv.h"
#include "runtime/rope_table.h"

typedef struct binder {
    const model_source_t *source;
    const k_ops_t *ops;
    k_stream_t *stream; /* NULL: measuring */
    carve_t *carve;     /* of matrices */
    carve_t vectors;    /* all together, on the host: sent in one go */
    char *device_vectors;
    float *factors; /* of a rotation: a table, then divisors; host */
    void *raw;      /* a row as its dtype has it; no longer than as f32 */
    weft_diag_t *diag;
} binder_t;

/* A vector's place on the host, and where it will be on the device; NULLs while measuring. */
typedef struct place {
    float *host;
    float *device;
} place_t;

static weft_status_t find_key(binder_t *binder, model_tensor_key_t key, uint32_t rows,
                              uint32_t columns, model_tensor_t *tensor_out)
{
    const weft_status_t status = model_source_find(binder->source, key, binder->diag, tensor_out);
    if (status < 0) {
        return status;
    }
    if (tensor_out->rows != rows || tensor_out->columns != columns) {
        return weft_diag(binder->diag, WEFT_ERR_MALFORMED,
                         "%s: tensor %s: is [%" PRIu64 ", %" PRIu64 "], should be [%u, %u]",
                         model_source_path(binder->source), tensor_out->name, tensor_out->rows,
                         tensor_out->columns, rows, columns);
    }
    return WEFT_OK;
}

static weft_status_t find(binder_t *binder, model_tensor_id_t id, uint32_t layer, uint32_t rows,
                          uint32_t columns, model_tensor_t *tensor_out)
{
    const model_tensor_key_t key = {.id = id, .layer = layer};
    return find_key(binder, key, rows, columns, tensor_out);
}

/* ---- vectors ------------------------------------------------------------------------------- */

static place_t take_vector(binder_t *binder, size_t n)
{
    const size_t at = binder->vectors.used;
    float *host = carve_take(&binder->vectors, n, sizeof(float));
    return (place_t){host, host == NULL ? NULL : (float *)(binder->device_vectors + at)};
}

/* (tensor + offset) · scale */
static void fill(const binder_t *binder, const model_tensor_t *tensor, float offset, float scale,
                 float *host)
{
    if (binder->stream == NULL) {
        return;
    }
    model_tensor_read(tensor, 0, 1, binder->raw);
    k_dequantize(tensor->dtype, binder->raw, host, tensor->columns);
    for (size_t i = 0; i < tensor->columns; i++) {
        host[i] = (host[i] + offset) * scale;
    }
}

static weft_status_t bind_scaled(binder_t *binder, model_tensor_id_t id, uint32_t layer, uint32_t n,
                                 float offset, float scale, const float **vector_out)
{
    model_tensor_t tensor;
    const weft_status_t status = find(binder, id, layer, 1, n, &tensor);
    if (status < 0) {
        return status;
    }
    const place_t place = take_vector(binder, n);
    *vector_out = place.device;
    fill(binder, &tensor, offset, scale, place.host);
    return WEFT_OK;
}

static weft_status_t bind_vector(binder_t *binder, model_tensor_id_t id, uint32_t layer, uint32_t n,
                                 const float **vector_out)
{
    return bind_scaled(binder, id, layer, n, 0, 1, vector_out);
}

/* The weights of a norm, where the model has it. */
static weft_status_t bind_norm(binder_t *binder, const model_config_t *config, bool is_there,
                               model_tensor_id_t id, uint32_t layer, uint32_t n,
                               const float **vector_out)
{
    return is_there ? bind_scaled(binder, id, layer, n, config->norm_offset, 1, vector_out)
                    : WEFT_OK;
}

/* The biases of a linear's parts, one after another. */
static weft_status_t bind_bias(binder_t *binder, const model_tensor_id_t *ids, const uint32_t *rows,
                               uint32_t n, uint32_t layer, model_linear_t *linear)
{
    const place_t place = take_vector(binder, linear->rows);
    uint32_t at = 0;
    linear->bias = place.device;
    for (uint32_t i = 0; i < n; i++) {
        model_tensor_t tensor;
        const weft_status_t status = find(binder, ids[i], layer, 1, rows[i], &tensor);
        if (status < 0) {
            return status;
        }
        fill(binder, &tensor, 0, 1, place.host == NULL ? NULL : place.host + at);
        at += rows[i];
    }
    return WEFT_OK;
}

/* ---- matrices ------------------------------------------------------------------------------ */

/* Bytes of all rows of the tensors as one weight. */
static size_t weight_bytes(const binder_t *binder, const model_tensor_t *tensors, uint32_t n,
                           k_weight_form_t form)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < n; i++) {
        rows += (uint32_t)tensors[i].rows;
    }
    return binder->ops->weight_bytes(tensors[0].dtype, form, rows, (uint32_t)tensors[0].columns);
}

static weft_status_t check_supported(binder_t *binder, const model_tensor_t *tensor)
{
    if (weight_bytes(binder, tensor, 1, K_WEIGHT_ROWS) != SIZE_MAX) {
        return WEFT_OK;
    }
    return weft_diag(binder->diag, WEFT_ERR_UNSUPPORTED,
                     "%s: tensor %s: kernels \"%s\" have no weights of type %s",
                     model_source_path(binder->source), tensor->name, binder->ops->name,
                     k_dtype_info(tensor->dtype)->name);
}

/* The tensors' rows as a backend packs them: in the file, or in buffers [n] made for them. */
static weft_status_t read_parts(const model_tensor_t *tensors, uint32_t n, void **buffers,
                                k_weight_part_t *parts)
{
    for (uint32_t i = 0; i < n; i++) {
        size_t row_bytes = 0;
        parts[i] = (k_weight_part_t){tensors[i].data, (uint32_t)tensors[i].rows};
        if (tensors[i].form == MODEL_FORM_ROWS) {
            continue;
        }
        k_dtype_row_bytes(tensors[i].dtype, tensors[i].columns, &row_bytes);
        buffers[i] = weft_calloc(tensors[i].rows, row_bytes, "model.formed");
        if (buffers[i] == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
        model_tensor_read(&tensors[i], 0, tensors[i].rows, buffers[i]);
        parts[i].data = buffers[i];
    }
    return WEFT_OK;
}

static weft_status_t pack_weight(binder_t *binder, const model_tensor_t *tensors, uint32_t n,
                                 const k_weight_t *weight, void *device)
{
    k_weight_part_t parts[MODEL_LINEAR_PARTS];
    void *buffers[MODEL_LINEAR_PARTS] = {NULL};
    weft_status_t status = read_parts(tensors, n, buffers, parts);
    if (status >= 0) {
        binder->ops->weight_pack(binder->stream, weight->dtype, weight->form, weight->columns,
                                 parts, n, device);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (buffers[i] != NULL && status >= 0) {
            status = k_stream_sync(binder->stream);
        }
        weft_free(buffers[i]);
    }
    return status;
}

/* Makes one weight of n tensors, or points at the file where the backend computes from it. */
static weft_status_t bind_weight(binder_t *binder, const model_tensor_t *tensors, uint32_t n,
                                 k_weight_form_t form, k_weight_t *weight_out)
{
    k_weight_t weight = {.dtype = tensors[0].dtype,
                         .form = form,
                         .columns = (uint32_t)tensors[0].columns,
                         .data = tensors[0].data};
    for (uint32_t i = 0; i < n; i++) {
        weight.rows += (uint32_t)tensors[i].rows;
    }
    weft_status_t status = WEFT_OK;
    const size_t bytes = weight_bytes(binder, tensors, n, form);
    if (bytes > 0) {
        void *device = carve_take(binder->carve, bytes, 1);
        weight.data = device;
        if (binder->stream != NULL) {
            status = pack_weight(binder, tensors, n, &weight, device);
        }
    }
    *weight_out = weight;
    return status;
}

/* How many of the tensors, from the first on, one weight can hold. */
static uint32_t fusable(const binder_t *binder, const model_tensor_t *tensors, uint32_t n)
{
    if (weight_bytes(binder, tensors, 1, K_WEIGHT_ROWS) == 0) {
        return 1; /* used where it is mapped */
    }
    uint32_t count = 1;
    while (count < n && tensors[count].dtype == tensors[0].dtype) {
        count++;
    }
    return count;
}

static weft_status_t find_parts(binder_t *binder, const model_tensor_id_t *ids,
                                const uint32_t *rows, uint32_t n, uint32_t layer, uint32_t columns,
                                model_tensor_t tensors[MODEL_LINEAR_PARTS])
{
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; status >= 0 && i < n; i++) {
        status = find(binder, ids[i], layer, rows[i], columns, &tensors[i]);
        if (status >= 0) {
            status = check_supported(binder, &tensors[i]);
        }
    }
    return status;
}

static weft_status_t bind_parts(binder_t *binder, const model_tensor_t *tensors, uint32_t n,
                                model_linear_t *linear)
{
    weft_status_t status = WEFT_OK;
    *linear = (model_linear_t){0};
    for (uint32_t i = 0; status >= 0 && i < n;) {
        const uint32_t count = fusable(binder, &tensors[i], n - i);
        k_weight_t *part = &linear->parts[linear->n_parts++];
        status = bind_weight(binder, &tensors[i], count, K_WEIGHT_ROWS, part);
        linear->rows += part->rows;
        i += count;
    }
    return status;
}

static weft_status_t bind_linear(binder_t *binder, const model_tensor_id_t *ids,
                                 const uint32_t *rows, uint32_t n, uint32_t layer, uint32_t columns,
                                 model_linear_t *linear)
{
    model_tensor_t tensors[MODEL_LINEAR_PARTS];
    const weft_status_t status = find_parts(binder, ids, rows, n, layer, columns, tensors);
    return status < 0 ? status : bind_parts(binder, tensors, n, linear);
}

static weft_status_t bind_matrix(binder_t *binder, model_tensor_id_t id, uint32_t layer,
                                 uint32_t rows, uint32_t columns, model_linear_t *linear)
{
    return bind_linear(binder, &id, &rows, 1, layer, columns, linear);
}

/* ---- parts of a transformer ---------------------------------------------------------------- */

static weft_status_t bind_qkv(binder_t *binder, const model_config_t *config, uint32_t layer,
                              model_linear_t *linear)
{
    static const model_tensor_id_t weights[] = {MODEL_TENSOR_ATTN_Q, MODEL_TENSOR_ATTN_K,
                                                MODEL_TENSOR_ATTN_V};
    static const model_tensor_id_t biases[] = {MODEL_TENSOR_ATTN_Q_BIAS, MODEL_TENSOR_ATTN_K_BIAS,
                                               MODEL_TENSOR_ATTN_V_BIAS};
    const uint32_t rows[] = {model_q_dim(config), model_kv_dim(config), model_kv_dim(config)};

    if (config->is_fused) {
        return bind_matrix(binder, MODEL_TENSOR_ATTN_QKV, layer, rows[0] + rows[1] + rows[2],
                           config->hidden, linear);
    }
    weft_status_t status = bind_linear(binder, weights, rows, 3, layer, config->hidden, linear);
    if (status >= 0 && config->has_qkv_bias) {
        status = bind_bias(binder, biases, rows, 3, layer, linear);
    }
    return status;
}

static weft_status_t bind_qk_norms(binder_t *binder, const model_config_t *config, uint32_t index,
                                   model_layer_t *layer)
{
    const bool is_whole = config->qk_norm == MODEL_QK_NORM_WHOLE;
    const bool is_there = config->qk_norm != MODEL_QK_NORM_NONE;
    const uint32_t q = is_whole ? model_q_dim(config) : config->head_dim;
    const uint32_t k = is_whole ? model_kv_dim(config) : config->head_dim;
    const weft_status_t status =
        bind_norm(binder, config, is_there, MODEL_TENSOR_ATTN_Q_NORM, index, q, &layer->q_norm);
    return status < 0 ? status
                      : bind_norm(binder, config, is_there, MODEL_TENSOR_ATTN_K_NORM, index, k,
                                  &layer->k_norm);
}

static weft_status_t bind_attn_output(binder_t *binder, const model_config_t *config,
                                      uint32_t index, model_linear_t *linear)
{
    static const model_tensor_id_t bias[] = {MODEL_TENSOR_ATTN_OUT_BIAS};
    const weft_status_t status = bind_matrix(binder, MODEL_TENSOR_ATTN_OUTPUT, index,
                                             config->hidden, model_attended_dim(config), linear);
    if (status < 0 || !config->has_output_bias) {
        return status;
    }
    return bind_bias(binder, bias, &config->hidden, 1, index, linear);
}

/* One matrix of an expert or head. */
static weft_status_t bind_one(binder_t *binder, model_tensor_key_t key, uint32_t rows,
                              uint32_t columns, k_weight_t *weight)
{
    model_tensor_t tensor;
    weft_status_t status = find_key(binder, key, rows, columns, &tensor);
    if (status >= 0) {
        status = check_supported(binder, &tensor);
    }
    return status < 0 ? status : bind_weight(binder, &tensor, 1, K_WEIGHT_ROWS, weight);
}

static weft_status_t bind_mla_heads(binder_t *binder, const model_config_t *config, uint32_t index,
                                    model_layer_t *layer)
{
    const model_mla_t *mla = &config->mla;
    weft_status_t status = WEFT_OK;
    for (uint32_t h = 0; status >= 0 && h < config->heads; h++) {
        const model_tensor_key_t key = {MODEL_TENSOR_MLA_K_B, index, h};
        const model_tensor_key_t value = {MODEL_TENSOR_MLA_V_B, index, h};
        status = bind_one(binder, key, mla->kv_latent, mla->plain, &layer->mla_key[h]);
        if (status >= 0) {
            status = bind_one(binder, value, mla->value, mla->kv_latent, &layer->mla_value[h]);
        }
    }
    return status;
}

static weft_status_t bind_mla(binder_t *binder, const model_config_t *config, uint32_t index,
                              model_layer_t *layer)
{
    const model_mla_t *mla = &config->mla;
    const bool is_direct = mla->q_latent == 0;
    const uint32_t q_dim = config->heads * (mla->plain + mla->rotary);
    const model_tensor_id_t ids[] = {is_direct ? MODEL_TENSOR_MLA_Q : MODEL_TENSOR_MLA_Q_A,
                                     MODEL_TENSOR_MLA_KV_A};
    const uint32_t rows[] = {is_direct ? q_dim : mla->q_latent, mla->kv_latent + mla->rotary};
    weft_status_t status = bind_linear(binder, ids, rows, 2, index, config->hidden, &layer->qkv);
    if (status >= 0 && !is_direct) {
        status =
            bind_vector(binder, MODEL_TENSOR_MLA_Q_NORM, index, mla->q_latent, &layer->mla_q_norm);
    }
    if (status >= 0 && !is_direct) {
        status =
            bind_matrix(binder, MODEL_TENSOR_MLA_Q_B, index, q_dim, mla->q_latent, &layer->mla_q);
    }
    if (status >= 0) {
        status = bind_vector(binder, MODEL_TENSOR_MLA_KV_NORM, index, mla->kv_latent,
                             &layer->mla_kv_norm);
    }
    return status < 0 ? status : bind_mla_heads(binder, config, index, layer);
}

static weft_status_t bind_attention(binder_t *binder, const model_config_t *config, uint32_t index,
                                    model_layer_t *layer)
{
    weft_status_t status = bind_norm(binder, config, config->has_pre_norms, MODEL_TENSOR_ATTN_NORM,
                                     index, config->hidden, &layer->attn_norm);
    if (status >= 0 && config->mla.kv_latent > 0) {
        status = bind_mla(binder, config, index, layer);
    } else if (status >= 0) {
        status = bind_qkv(binder, config, index, &layer->qkv);
    }
    if (status >= 0) {
        status = bind_qk_norms(binder, config, index, layer);
    }
    if (status >= 0 && config->has_sinks) {
        status = bind_vector(binder, MODEL_TENSOR_ATTN_SINKS, index, config->heads, &layer->sinks);
    }
    if (status >= 0) {
        status = bind_attn_output(binder, config, index, &layer->attn_output);
    }
    if (status >= 0) {
        status = bind_norm(binder, config, config->has_post_norms, MODEL_TENSOR_ATTN_POST_NORM,
                           index, config->hidden, &layer->attn_post_norm);
    }
    return status;
}

/* One weight for the fused SwiGLU where the backend has it, else as any other linear. */
static weft_status_t bind_gate_up(binder_t *binder, const model_config_t *config, uint32_t layer,
                                  model_linear_t *linear)
{
    static const model_tensor_id_t ids[] = {MODEL_TENSOR_FFN_GATE, MODEL_TENSOR_FFN_UP};
    const uint32_t rows[] = {config->intermediate, config->intermediate};
    model_tensor_t tensors[MODEL_LINEAR_PARTS];
    if (config->is_fused) {
        return bind_matrix(binder, MODEL_TENSOR_FFN_GATE_UP, layer, rows[0] + rows[1],
                           config->hidden, linear);
    }
    const weft_status_t status = find_parts(binder, ids, rows, 2, layer, config->hidden, tensors);
    if (status < 0) {
        return status;
    }
    if (config->activation != MODEL_SILU || tensors[0].dtype != tensors[1].dtype ||
        weight_bytes(binder, tensors, 2, K_WEIGHT_GATE_UP) == SIZE_MAX) {
        return bind_parts(binder, tensors, 2, linear);
    }
    *linear = (model_linear_t){.n_parts = 1};
    const weft_status_t packed =
        bind_weight(binder, tensors, 2, K_WEIGHT_GATE_UP, &linear->parts[0]);
    linear->rows = linear->parts[0].rows;
    return packed;
}

static weft_status_t bind_dense(binder_t *binder, const model_config_t *config, uint32_t index,
                                model_layer_t *layer)
{
    const weft_status_t status = bind_gate_up(binder, config, index, &layer->gate_up);
    return status < 0 ? status
                      : bind_matrix(binder, MODEL_TENSOR_FFN_DOWN, index, config->hidden,
                                    config->intermediate, &layer->down);
}

/* One weight of the n matrices of an expert; all of one type. */
static weft_status_t bind_expert(binder_t *binder, const model_tensor_id_t *ids, uint32_t n,
                                 uint32_t layer, uint32_t expert, uint32_t rows, uint32_t columns,
                                 k_weight_t *weight)
{
    model_tensor_t tensors[MODEL_LINEAR_PARTS];
    for (uint32_t i = 0; i < n; i++) {
        const model_tensor_key_t key = {.id = ids[i], .layer = layer, .expert = expert};
        weft_status_t status = find_key(binder, key, rows, columns, &tensors[i]);
        if (status >= 0) {
            status = check_supported(binder, &tensors[i]);
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
    return bind_weight(binder, tensors, n, K_WEIGHT_ROWS, weight);
}

/* [experts, the rows of all n tensors]: each expert's biases one after another. */
static weft_status_t bind_expert_bias(binder_t *binder, const model_config_t *config,
                                      const model_tensor_id_t *ids, uint32_t n, uint32_t layer,
                                      uint32_t columns, const float **bias_out)
{
    const uint32_t experts = config->experts.count;
    const place_t place = take_vector(binder, (size_t)experts * n * columns);
    *bias_out = place.device;
    for (uint32_t i = 0; i < n; i++) {
        model_tensor_t tensor;
        const weft_status_t status = find(binder, ids[i], layer, experts, columns, &tensor);
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

static weft_status_t bind_expert_biases(binder_t *binder, const model_config_t *config,
                                        uint32_t index, model_layer_t *layer)
{
    static const model_tensor_id_t router[] = {MODEL_TENSOR_ROUTER_BIAS};
    static const model_tensor_id_t gate_up[] = {MODEL_TENSOR_EXPERT_GATE_BIAS,
                                                MODEL_TENSOR_EXPERT_UP_BIAS};
    static const model_tensor_id_t down[] = {MODEL_TENSOR_EXPERT_DOWN_BIAS};
    const model_experts_t *experts = &config->experts;
    weft_status_t status = bind_bias(binder, router, &experts->count, 1, index, &layer->router);
    if (status >= 0) {
        status = bind_expert_bias(binder, config, gate_up, 2, index, experts->intermediate,
                                  &layer->expert_gate_up_bias);
    }
    if (status >= 0) {
        status = bind_expert_bias(binder, config, down, 1, index, config->hidden,
                                  &layer->expert_down_bias);
    }
    return status;
}

/* What every token uses besides its experts. */
static weft_status_t bind_shared(binder_t *binder, const model_config_t *config, uint32_t index,
                                 model_layer_t *layer)
{
    static const model_tensor_id_t gate_up[] = {MODEL_TENSOR_SHARED_GATE, MODEL_TENSOR_SHARED_UP};
    const uint32_t size = config->experts.shared_intermediate;
    const uint32_t rows[] = {size, size};
    if (size == 0) {
        return WEFT_OK;
    }
    const weft_status_t status =
        bind_linear(binder, gate_up, rows, 2, index, config->hidden, &layer->shared_gate_up);
    return status < 0 ? status
                      : bind_matrix(binder, MODEL_TENSOR_SHARED_DOWN, index, config->hidden, size,
                                    &layer->shared_down);
}

static weft_status_t bind_experts(binder_t *binder, const model_config_t *config, uint32_t index,
                                  model_layer_t *layer)
{
    static const model_tensor_id_t gate_up[] = {MODEL_TENSOR_EXPERT_GATE, MODEL_TENSOR_EXPERT_UP};
    static const model_tensor_id_t down[] = {MODEL_TENSOR_EXPERT_DOWN};
    const model_experts_t *experts = &config->experts;
    weft_status_t status = bind_matrix(binder, MODEL_TENSOR_ROUTER, index, experts->count,
                                       config->hidden, &layer->router);
    if (status >= 0 && experts->has_linear_bias) {
        status = bind_expert_biases(binder, config, index, layer);
    }
    if (status >= 0 && experts->has_bias) {
        status =
            bind_vector(binder, MODEL_TENSOR_SCORE_BIAS, index, experts->count, &layer->score_bias);
    }
    if (status >= 0) {
        status = bind_shared(binder, config, index, layer);
    }
    for (uint32_t e = 0; status >= 0 && e < experts->count; e++) {
        status = bind_expert(binder, gate_up, 2, index, e, experts->intermediate, config->hidden,
                             &layer->expert_gate_up[e]);
        if (status >= 0) {
            status = bind_expert(binder, down, 1, index, e, config->hidden, experts->intermediate,
                                 &layer->expert_down[e]);
        }
    }
    return status;
}

static weft_status_t bind_ffn(binder_t *binder, const model_config_t *config, uint32_t index,
                              model_layer_t *layer)
{
    weft_status_t status = bind_norm(binder, config, config->has_pre_norms, MODEL_TENSOR_FFN_NORM,
                                     index, config->hidden, &layer->ffn_norm);
    if (status >= 0) {
        status = model_layer_has_experts(config, index) ? bind_experts(binder, config, index, layer)
                                                        : bind_dense(binder, config, index, layer);
    }
    if (status >= 0) {
        status = bind_norm(binder, config, config->has_post_norms, MODEL_TENSOR_FFN_POST_NORM,
                           index, config->hidden, &layer->ffn_post_norm);
    }
    return status;
}

/* The embedding, and the output matrix, which may be the same. */
static weft_status_t bind_vocabulary(binder_t *binder, const model_config_t *config, model_t *model)
{
    model_tensor_t table;
    weft_status_t status =
        find(binder, MODEL_TENSOR_EMBEDDING, 0, config->vocab, config->hidden, &table);
    if (status >= 0) {
        status = check_supported(binder, &table);
    }
    if (status < 0) {
        return status;
    }
    status = bind_weight(binder, &table, 1, K_WEIGHT_ROWS, &model->embedding);
    if (status < 0) {
        return status;
    }
    if (config->is_embedding_tied) {
        model->output =
            (model_linear_t){.parts = {model->embedding}, .n_parts = 1, .rows = config->vocab};
        return WEFT_OK;
    }
    return bind_matrix(binder, MODEL_TENSOR_OUTPUT, 0, config->vocab, config->hidden,
                       &model->output);
}

/* Divisors of the rotation's frequencies, in the second half of staging; NULL: none. */
static weft_status_t read_factors(binder_t *binder, const model_rope_t *rope, uint32_t context,
                                  const float **factors_out)
{
    const uint32_t pairs = rope->dim / 2;
    float *factors = binder->factors + pairs;
    const bool is_long = context > rope->original_context;
    const bool is_gguf = strcmp(model_source_format(binder->source), "gguf") == 0;
    model_tensor_t tensor;
    *factors_out = NULL;
    if (rope->kind == MODEL_ROPE_LONG && !is_gguf) {
        *factors_out = is_long ? rope->long_factors : rope->short_factors;
        return WEFT_OK;
    }
    if (rope->kind != MODEL_ROPE_FACTORS && rope->kind != MODEL_ROPE_LONG) {
        return WEFT_OK;
    }
    const model_tensor_id_t id = rope->kind == MODEL_ROPE_FACTORS ? MODEL_TENSOR_ROPE_FREQS
                                 : is_long                        ? MODEL_TENSOR_ROPE_LONG
                                                                  : MODEL_TENSOR_ROPE_SHORT;
    const weft_status_t status = find(binder, id, 0, 1, pairs, &tensor);
    if (status >= 0) {
        k_dequantize(tensor.dtype, tensor.data, factors, pairs);
        *factors_out = factors;
    }
    return status;
}

static weft_status_t bind_rotation(binder_t *binder, const model_rope_t *rope, uint32_t context,
                                   const float **inv_freq_out)
{
    const place_t place = take_vector(binder, rope->dim / 2);
    const float *factors;
    *inv_freq_out = place.device;
    const weft_status_t status = read_factors(binder, rope, context, &factors);
    /* Also while measuring: it checks the configuration. */
    return status < 0 ? status
                      : rope_table_fill(rope, factors, binder->diag,
                                        place.host == NULL ? binder->factors : place.host);
}

static weft_status_t bind_rope(binder_t *binder, const model_config_t *config, model_t *model)
{
    const uint32_t context = model->limits.max_context;
    const weft_status_t status = bind_rotation(binder, &config->rope, context, &model->inv_freq);
    if (status < 0 || !config->has_local_rope) {
        return status;
    }
    return bind_rotation(binder, &config->local_rope, context, &model->local_inv_freq);
}

static weft_status_t bind_all(binder_t *binder, model_t *model)
{
    const model_config_t *config = &model->config;
    weft_status_t status = bind_rope(binder, config, model);
    if (status >= 0) {
        status = bind_vocabulary(binder, config, model);
    }
    for (uint32_t i = 0; status >= 0 && i < config->layers; i++) {
        status = bind_attention(binder, config, i, &model->layers[i]);
        if (status >= 0) {
            status = bind_ffn(binder, config, i, &model->layers[i]);
        }
    }
    if (status >= 0) {
        status = bind_scaled(binder, MODEL_TENSOR_OUTPUT_NORM, 0, config->hidden,
                             config->norm_offset, config->logit_scale, &model->output_norm);
    }
    return status;
}

/* The vectors' bytes, counted by binding a model that is thrown away. */
static weft_status_t measure_vectors(const binder_t *binder, const model_t *model,
                                     size_t *bytes_out)
{
    model_t scratch = *model;
    carve_t matrices = {.base = NULL};
    binder_t measuring = *binder;
    measuring.stream = NULL;
    measuring.carve = &matrices;
    const weft_status_t status = bind_all(&measuring, &scratch);
    *bytes_out = measuring.vectors.used;
    return status;
}

static weft_status_t bind_to_memory(binder_t *binder, model_t *model)
{
    size_t bytes = 0;
    weft_status_t status = measure_vectors(binder, model, &bytes);
    if (status < 0) {
        return status;
    }
    binder->vectors.base = weft_alloc_aligned(CARVE_ALIGNMENT, bytes, "model.vectors");
    if (binder->vectors.base == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    binder->device_vectors = carve_take(binder->carve, bytes, 1);
    status = bind_all(binder, model);
    if (status >= 0) {
        binder->stream->device->ops->copy(binder->stream->queue, binder->device_vectors,
                                          binder->vectors.base, bytes);
    }
    const weft_status_t synced = k_stream_sync(binder->stream); /* base goes */
    weft_free(binder->vectors.base);
    return status < 0 ? status : synced;
}

weft_status_t model_bind(model_t *model, const model_source_t *source, const k_ops_t *ops,
                         k_stream_t *stream, carve_t *carve, weft_diag_t *diag)
{
    const model_config_t *config = &model->config;
    const size_t factors = (size_t)config->rope.dim + config->local_rope.dim + 1;
    const size_t longest = (size_t)config->hidden + model_q_dim(config) + config->intermediate +
                           config->experts.intermediate + config->experts.count +
                           config->mla.q_latent + config->mla.kv_latent;
    binder_t binder = {
        .source = source,
        .ops = ops,
        .stream = stream,
        .carve = carve,
        .factors = weft_calloc(factors, sizeof(float), "model.rope_factors"),
        .diag = diag,
    };
    binder.raw = weft_calloc(longest, sizeof(float), "model.raw");
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    if (binder.factors != NULL && binder.raw != NULL && stream != NULL) {
        status = bind_to_memory(&binder, model);
    } else if (binder.factors != NULL && binder.raw != NULL) {
        status = bind_all(&binder, model);
        (void)carve_take(carve, binder.vectors.used, 1);
    }
    weft_free(binder.raw);
    weft_free(binder.factors);
    return status;
}
