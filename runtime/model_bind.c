/* SPDX-License-Identifier: Apache-2.0 */
/* model_bind: from the tensors of a file to the weights of a graph. */
#include <string.h>

#include "base/alloc.h"
#include "runtime/model_bind_priv.h"
#include "runtime/rope_table.h"

static weft_status_t bind_embedding(model_binder_t *binder, model_t *model)
{
    model_tensor_t table;
    weft_status_t status = model_bind_find(binder, MODEL_TENSOR_EMBEDDING, 0, &table);
    if (status >= 0) {
        status = model_bind_check_supported(binder, &table);
    }
    return status < 0 ? status
                      : model_bind_weight(binder, &table, 1, K_WEIGHT_ROWS, &model->embedding);
}

static weft_status_t bind_output(model_binder_t *binder, const model_config_t *config,
                                 model_t *model)
{
    const weft_status_t status =
        model_bind_scaled(binder, MODEL_TENSOR_OUTPUT_NORM, 0, config->norm_offset,
                          config->logit_scale, &model->output_norm);
    if (status < 0 || !config->is_embedding_tied) {
        return status < 0 ? status
                          : model_bind_matrix(binder, MODEL_TENSOR_OUTPUT, 0, &model->output);
    }
    model->output =
        (model_linear_t){.parts = {model->embedding}, .n_parts = 1, .rows = model->embedding.rows};
    return WEFT_OK;
}

/* The embedding is the first stage's and the output the last's; they may be the same matrix. */
static weft_status_t bind_vocabulary(model_binder_t *binder, const model_config_t *config,
                                     model_t *model)
{
    const bool is_last = model_shard_is_last(&model->shard);
    weft_status_t status = WEFT_OK;
    if (model_shard_is_first(&model->shard) || (is_last && config->is_embedding_tied)) {
        status = bind_embedding(binder, model);
    }
    return status < 0 || !is_last ? status : bind_output(binder, config, model);
}

/* Divisors of the rotation's frequencies, in the second half of staging; NULL: none. */
static weft_status_t read_factors(model_binder_t *binder, const model_rope_t *rope,
                                  uint32_t context, const float **factors_out)
{
    const uint32_t pairs = rope->dim / 2;
    float *factors = binder->factors + pairs;
    const bool is_long = model_rope_is_long(rope, context);
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
    const weft_status_t status = model_bind_find(binder, id, 0, &tensor);
    if (status >= 0) {
        k_dequantize(tensor.dtype, tensor.data, factors, pairs);
        *factors_out = factors;
    }
    return status;
}

static weft_status_t bind_rotation(model_binder_t *binder, const model_rope_t *rope,
                                   uint32_t context, const float **inv_freq_out)
{
    const model_place_t place = model_bind_take_vector(binder, rope->dim / 2);
    const float *factors;
    *inv_freq_out = place.device;
    const weft_status_t status = read_factors(binder, rope, context, &factors);
    /* Also while measuring: it checks the configuration. */
    return status < 0 ? status
                      : rope_table_fill(rope, factors, binder->diag,
                                        place.host == NULL ? binder->factors : place.host);
}

static weft_status_t bind_rope(model_binder_t *binder, const model_config_t *config, model_t *model)
{
    const uint32_t context = model->limits.max_context;
    const weft_status_t status = bind_rotation(binder, &config->rope, context, &model->inv_freq);
    if (status < 0 || !config->has_local_rope) {
        return status;
    }
    return bind_rotation(binder, &config->local_rope, context, &model->local_inv_freq);
}

static weft_status_t bind_all(model_binder_t *binder, model_t *model)
{
    const model_config_t *config = &model->config;
    weft_status_t status = bind_rope(binder, config, model);
    if (status >= 0) {
        status = bind_vocabulary(binder, config, model);
    }
    for (uint32_t i = 0; status >= 0 && i < config->layers; i++) {
        status = model_bind_attention(binder, config, i, &model->layers[i]);
        if (status >= 0) {
            status = model_bind_ffn(binder, config, i, &model->layers[i]);
        }
    }
    return status;
}

/* The vectors' bytes, counted by binding a model that is thrown away. */
static weft_status_t measure_vectors(const model_binder_t *binder, const model_t *model,
                                     size_t *bytes_out)
{
    model_t scratch = *model;
    model_weights_t weights = {0};
    model_binder_t measuring = *binder;
    measuring.stream = NULL;
    measuring.weights = &weights;
    const weft_status_t status = bind_all(&measuring, &scratch);
    *bytes_out = measuring.vectors.used;
    return status;
}

static weft_status_t bind_to_memory(model_binder_t *binder, model_t *model)
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
    binder->device_vectors = carve_take(&binder->weights->vectors, bytes, 1);
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
                         k_stream_t *stream, model_weights_t *weights, weft_diag_t *diag)
{
    const model_config_t *config = model_source_config(source);
    const size_t factors = (size_t)config->rope.dim + config->local_rope.dim + 1;
    const size_t longest = (size_t)config->hidden + model_q_dim(config) + config->intermediate +
                           config->experts.intermediate + config->experts.count +
                           config->mla.q_latent + config->mla.kv_latent;
    model_binder_t binder = {
        .source = source,
        .cut = &model->cut,
        .ops = ops,
        .has_adapters = model->limits.max_lora_rank > 0,
        .stream = stream,
        .weights = weights,
        .factors = weft_calloc(factors, sizeof(float), "model.rope_factors"),
        .diag = diag,
    };
    binder.raw = weft_calloc(longest, sizeof(float), "model.raw");
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    if (binder.factors != NULL && binder.raw != NULL && stream != NULL) {
        status = bind_to_memory(&binder, model);
    } else if (binder.factors != NULL && binder.raw != NULL) {
        status = bind_all(&binder, model);
        (void)carve_take(&weights->vectors, binder.vectors.used, 1);
    }
    weft_free(binder.raw);
    weft_free(binder.factors);
    return status;
}
