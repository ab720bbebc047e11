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
    carve_t *carve;
    float *staging; /* [longest vector], host */
    weft_diag_t *diag;
} binder_t;

static weft_status_t find(binder_t *binder, model_tensor_id_t id, uint32_t layer, uint32_t rows,
                          uint32_t columns, model_tensor_t *tensor_out)
{
    const weft_status_t status =
        model_source_find(binder->source, id, layer, binder->diag, tensor_out);
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

/* ---- vectors ------------------------------------------------------------------------------- */

/* A place of n floats on the device; while measuring, a NULL that is only counted. */
static float *take_vector(binder_t *binder, uint32_t n)
{
    return carve_take(binder->carve, n, sizeof(float));
}

/* host is read before the call returns. */
static weft_status_t upload(binder_t *binder, float *device, const float *host, uint32_t n)
{
    k_stream_t *stream = binder->stream;
    stream->device->ops->copy(stream->queue, device, host, n * sizeof(float));
    return k_stream_sync(stream);
}

static weft_status_t upload_tensor(binder_t *binder, const model_tensor_t *tensor, float *device)
{
    if (binder->stream == NULL) {
        return WEFT_OK;
    }
    k_dequantize(tensor->dtype, tensor->data, binder->staging, tensor->columns);
    return upload(binder, device, binder->staging, (uint32_t)tensor->columns);
}

static weft_status_t bind_vector(binder_t *binder, model_tensor_id_t id, uint32_t layer, uint32_t n,
                                 const float **vector_out)
{
    model_tensor_t tensor;
    const weft_status_t status = find(binder, id, layer, 1, n, &tensor);
    if (status < 0) {
        return status;
    }
    float *device = take_vector(binder, n);
    *vector_out = device;
    return upload_tensor(binder, &tensor, device);
}

/* The biases of a linear's parts, one after another. */
static weft_status_t bind_bias(binder_t *binder, const model_tensor_id_t *ids, const uint32_t *rows,
                               uint32_t n, uint32_t layer, model_linear_t *linear)
{
    float *device = take_vector(binder, linear->rows);
    linear->bias = device;
    for (uint32_t i = 0; i < n; i++) {
        model_tensor_t tensor;
        weft_status_t status = find(binder, ids[i], layer, 1, rows[i], &tensor);
        if (status >= 0) {
            status = upload_tensor(binder, &tensor, device);
        }
        if (status < 0) {
            return status;
        }
        device = device == NULL ? NULL : device + rows[i];
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

/* Makes one weight of n tensors, or points at the file where the backend computes from it. */
static k_weight_t bind_weight(binder_t *binder, const model_tensor_t *tensors, uint32_t n,
                              k_weight_form_t form)
{
    const uint32_t columns = (uint32_t)tensors[0].columns;
    k_weight_t weight = {
        .dtype = tensors[0].dtype, .form = form, .columns = columns, .data = tensors[0].data};
    k_weight_part_t parts[MODEL_LINEAR_PARTS];
    for (uint32_t i = 0; i < n; i++) {
        parts[i] = (k_weight_part_t){tensors[i].data, (uint32_t)tensors[i].rows};
        weight.rows += parts[i].rows;
    }
    const size_t bytes = weight_bytes(binder, tensors, n, form);
    if (bytes > 0) {
        void *device = carve_take(binder->carve, bytes, 1);
        weight.data = device;
        if (binder->stream != NULL) {
            binder->ops->weight_pack(binder->stream, weight.dtype, form, columns, parts, n, device);
        }
    }
    return weight;
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

static void bind_parts(binder_t *binder, const model_tensor_t *tensors, uint32_t n,
                       model_linear_t *linear)
{
    *linear = (model_linear_t){0};
    for (uint32_t i = 0; i < n;) {
        const uint32_t count = fusable(binder, &tensors[i], n - i);
        const k_weight_t part = bind_weight(binder, &tensors[i], count, K_WEIGHT_ROWS);
        linear->parts[linear->n_parts++] = part;
        linear->rows += part.rows;
        i += count;
    }
}

static weft_status_t bind_linear(binder_t *binder, const model_tensor_id_t *ids,
                                 const uint32_t *rows, uint32_t n, uint32_t layer, uint32_t columns,
                                 model_linear_t *linear)
{
    model_tensor_t tensors[MODEL_LINEAR_PARTS];
    const weft_status_t status = find_parts(binder, ids, rows, n, layer, columns, tensors);
    if (status >= 0) {
        bind_parts(binder, tensors, n, linear);
    }
    return status;
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

    weft_status_t status = bind_linear(binder, weights, rows, 3, layer, config->hidden, linear);
    if (status >= 0 && config->has_qkv_bias) {
        status = bind_bias(binder, biases, rows, 3, layer, linear);
    }
    return status;
}

static weft_status_t bind_attention(binder_t *binder, const model_config_t *config, uint32_t index,
                                    model_layer_t *layer)
{
    weft_status_t status =
        bind_vector(binder, MODEL_TENSOR_ATTN_NORM, index, config->hidden, &layer->attn_norm);
    if (status >= 0) {
        status = bind_qkv(binder, config, index, &layer->qkv);
    }
    if (status >= 0 && config->has_qk_norm) {
        status =
            bind_vector(binder, MODEL_TENSOR_ATTN_Q_NORM, index, config->head_dim, &layer->q_norm);
    }
    if (status >= 0 && config->has_qk_norm) {
        status =
            bind_vector(binder, MODEL_TENSOR_ATTN_K_NORM, index, config->head_dim, &layer->k_norm);
    }
    if (status >= 0) {
        status = bind_matrix(binder, MODEL_TENSOR_ATTN_OUTPUT, index, config->hidden,
                             model_q_dim(config), &layer->attn_output);
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
    const weft_status_t status = find_parts(binder, ids, rows, 2, layer, config->hidden, tensors);
    if (status < 0) {
        return status;
    }
    if (tensors[0].dtype != tensors[1].dtype ||
        weight_bytes(binder, tensors, 2, K_WEIGHT_GATE_UP) == SIZE_MAX) {
        bind_parts(binder, tensors, 2, linear);
        return WEFT_OK;
    }
    const k_weight_t weight = bind_weight(binder, tensors, 2, K_WEIGHT_GATE_UP);
    *linear = (model_linear_t){.parts = {weight}, .n_parts = 1, .rows = weight.rows};
    return WEFT_OK;
}

static weft_status_t bind_ffn(binder_t *binder, const model_config_t *config, uint32_t index,
                              model_layer_t *layer)
{
    weft_status_t status =
        bind_vector(binder, MODEL_TENSOR_FFN_NORM, index, config->hidden, &layer->ffn_norm);
    if (status >= 0) {
        status = bind_gate_up(binder, config, index, &layer->gate_up);
    }
    if (status >= 0) {
        status = bind_matrix(binder, MODEL_TENSOR_FFN_DOWN, index, config->hidden,
                             config->intermediate, &layer->down);
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
    model->embedding = bind_weight(binder, &table, 1, K_WEIGHT_ROWS);
    if (config->is_embedding_tied) {
        model->output =
            (model_linear_t){.parts = {model->embedding}, .n_parts = 1, .rows = config->vocab};
        return WEFT_OK;
    }
    return bind_matrix(binder, MODEL_TENSOR_OUTPUT, 0, config->vocab, config->hidden,
                       &model->output);
}

static weft_status_t bind_rope(binder_t *binder, const model_config_t *config, model_t *model)
{
    const uint32_t pairs = config->rope.dim / 2;
    float *device = take_vector(binder, pairs);
    float *factors = NULL;
    model->inv_freq = device;
    if (config->rope.kind == MODEL_ROPE_FACTORS) {
        model_tensor_t tensor;
        const weft_status_t status = find(binder, MODEL_TENSOR_ROPE_FREQS, 0, 1, pairs, &tensor);
        if (status < 0) {
            return status;
        }
        factors = binder->staging + pairs;
        k_dequantize(tensor.dtype, tensor.data, factors, pairs);
    }
    const weft_status_t status =
        rope_table_fill(&config->rope, factors, binder->diag, binder->staging);
    if (status < 0 || binder->stream == NULL) {
        return status;
    }
    return upload(binder, device, binder->staging, pairs);
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
        status =
            bind_vector(binder, MODEL_TENSOR_OUTPUT_NORM, 0, config->hidden, &model->output_norm);
    }
    return status;
}

weft_status_t model_bind(model_t *model, const model_source_t *source, const k_ops_t *ops,
                         k_stream_t *stream, carve_t *carve, weft_diag_t *diag)
{
    const model_config_t *config = &model->config;
    const size_t longest = (size_t)config->hidden + model_q_dim(config) + config->rope.dim;
    binder_t binder = {
        .source = source,
        .ops = ops,
        .stream = stream,
        .carve = carve,
        .staging = weft_calloc(longest, sizeof(float), "model.staging"),
        .diag = diag,
    };
    if (binder.staging == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const weft_status_t status = bind_all(&binder, model);
    weft_free(binder.staging);
    return status;
}
