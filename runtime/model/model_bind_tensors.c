/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors found and brought to where they are computed with: vectors, matrices. */
#include <assert.h>
#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

#include "base/alloc.h"
#include "runtime/model/model_bind_priv.h"

/* ---- finding ------------------------------------------------------------------------------- */

static weft_status_t find_whole(model_binder_t *binder, const model_tensor_share_t *share,
                                model_tensor_t *tensor_out)
{
    const weft_status_t status =
        model_source_find(binder->source, share->key, binder->diag, tensor_out);
    if (status < 0) {
        return status;
    }
    if (tensor_out->rows != share->rows || tensor_out->columns != share->columns) {
        return weft_diag(binder->diag, WEFT_ERR_MALFORMED,
                         "%s: tensor %s: is [%" PRIu64 ", %" PRIu64 "], should be [%" PRIu64
                         ", %" PRIu64 "]",
                         model_source_path(binder->source), tensor_out->name, tensor_out->rows,
                         tensor_out->columns, share->rows, share->columns);
    }
    return WEFT_OK;
}

static weft_status_t check_blocks(model_binder_t *binder, const model_tensor_t *tensor,
                                  const model_range_t *columns)
{
    const uint32_t block = k_dtype_info(tensor->dtype)->block_elements;
    if (columns->first % block == 0 && columns->n % block == 0) {
        return WEFT_OK;
    }
    return weft_diag(binder->diag, WEFT_ERR_UNSUPPORTED,
                     "%s: tensor %s: columns %u to %u, a rank's, begin or end within a block of %u",
                     model_source_path(binder->source), tensor->name, columns->first,
                     columns->first + columns->n, block);
}

/* One tensor's parts, a run of rows each. tensors [at most MODEL_TENSOR_RUNS] */
static weft_status_t find_runs(model_binder_t *binder, model_tensor_key_t key,
                               model_tensor_t *tensors, uint32_t *n_out)
{
    const model_config_t *config = model_source_config(binder->source);
    const model_tensor_share_t share = model_tensor_share_of(config, binder->cut, key);
    model_tensor_t whole;
    weft_status_t status = find_whole(binder, &share, &whole);
    if (status >= 0) {
        status = check_blocks(binder, &whole, &share.column_run);
    }
    for (uint32_t i = 0; status >= 0 && i < share.n_row_runs; i++) {
        tensors[i] = whole;
        model_tensor_take_rows(&tensors[i], share.row_runs[i].first, share.row_runs[i].n);
        model_tensor_take_columns(&tensors[i], share.column_run.first, share.column_run.n);
    }
    *n_out = share.n_row_runs;
    return status;
}

weft_status_t model_bind_find_key(model_binder_t *binder, model_tensor_key_t key,
                                  model_tensor_t *tensor_out)
{
    model_tensor_t runs[MODEL_TENSOR_RUNS];
    uint32_t n = 0;
    const weft_status_t status = find_runs(binder, key, runs, &n);
    if (status >= 0) {
        assert(n == 1);
        *tensor_out = runs[0];
    }
    return status;
}

weft_status_t model_bind_find(model_binder_t *binder, model_tensor_id_t id, uint32_t layer,
                              model_tensor_t *tensor_out)
{
    const model_tensor_key_t key = {.id = id, .layer = layer};
    return model_bind_find_key(binder, key, tensor_out);
}

/* ---- vectors ------------------------------------------------------------------------------- */

model_place_t model_bind_take_vector(model_binder_t *binder, size_t n)
{
    const size_t at = binder->vectors.used;
    float *host = carve_take(&binder->vectors, n, sizeof(float));
    return (model_place_t){host, host == NULL ? NULL : (float *)(binder->device_vectors + at)};
}

/* (tensor + offset) · scale */
static void fill(const model_binder_t *binder, const model_tensor_t *tensor, float offset,
                 float scale, float *host)
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

weft_status_t model_bind_scaled(model_binder_t *binder, model_tensor_id_t id, uint32_t layer,
                                float offset, float scale, const float **vector_out)
{
    model_tensor_t tensor;
    const weft_status_t status = model_bind_find(binder, id, layer, &tensor);
    if (status < 0) {
        return status;
    }
    const model_place_t place = model_bind_take_vector(binder, tensor.columns);
    *vector_out = place.device;
    fill(binder, &tensor, offset, scale, place.host);
    return WEFT_OK;
}

weft_status_t model_bind_vector(model_binder_t *binder, model_tensor_id_t id, uint32_t layer,
                                const float **vector_out)
{
    return model_bind_scaled(binder, id, layer, 0, 1, vector_out);
}

weft_status_t model_bind_norm(model_binder_t *binder, const model_config_t *config, bool is_there,
                              model_tensor_id_t id, uint32_t layer, const float **vector_out)
{
    return is_there ? model_bind_scaled(binder, id, layer, config->norm_offset, 1, vector_out)
                    : WEFT_OK;
}

weft_status_t model_bind_bias(model_binder_t *binder, const model_tensor_id_t *ids, uint32_t n,
                              uint32_t layer, model_linear_t *linear)
{
    const model_place_t place = model_bind_take_vector(binder, linear->rows);
    uint64_t at = 0;
    linear->bias = place.device;
    for (uint32_t i = 0; i < n; i++) {
        model_tensor_t tensor;
        const weft_status_t status = model_bind_find(binder, ids[i], layer, &tensor);
        if (status < 0) {
            return status;
        }
        fill(binder, &tensor, 0, 1, place.host == NULL ? NULL : place.host + at);
        at += tensor.columns;
    }
    assert(at == linear->rows);
    return WEFT_OK;
}

/* ---- matrices ------------------------------------------------------------------------------ */

/* Scales of E4M3 are those of 8 rows together, from the first of the slice on. */
static bool shares_scales(const model_tensor_t *tensor)
{
    return tensor->form == MODEL_FORM_F8 && tensor->rows % 8 == 0 && tensor->first_row % 8 == 0 &&
           (tensor->tile_rows == UINT32_MAX || tensor->tile_rows % 8 == 0);
}

/* The type that the tensors have as one weight. */
static k_dtype_t weight_dtype(const model_binder_t *binder, const model_tensor_t *tensors,
                              uint32_t n)
{
    bool all_share = binder->ops->has_f8_8x32;
    for (uint32_t i = 0; i < n; i++) {
        all_share = all_share && shares_scales(&tensors[i]);
    }
    return all_share ? K_F8_8X32 : tensors[0].dtype;
}

size_t model_bind_weight_bytes(const model_binder_t *binder, const model_tensor_t *tensors,
                               uint32_t n, k_weight_form_t form)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < n; i++) {
        rows += (uint32_t)tensors[i].rows;
    }
    return binder->ops->weight_bytes(weight_dtype(binder, tensors, n), form, rows,
                                     (uint32_t)tensors[0].columns);
}

weft_status_t model_bind_check_supported(model_binder_t *binder, const model_tensor_t *tensor)
{
    if (model_bind_weight_bytes(binder, tensor, 1, K_WEIGHT_ROWS) != SIZE_MAX) {
        return WEFT_OK;
    }
    return weft_diag(binder->diag, WEFT_ERR_UNSUPPORTED,
                     "%s: tensor %s: kernels \"%s\" have no weights of type %s",
                     model_source_path(binder->source), tensor->name, binder->ops->name,
                     k_dtype_info(tensor->dtype)->name);
}

/* The tensors' rows as a backend packs them: in the file, or in buffers [n] made for them. */
static weft_status_t read_parts(const k_ops_t *ops, const model_tensor_t *tensors, uint32_t n,
                                void **buffers, k_weight_part_t *parts)
{
    for (uint32_t i = 0; i < n; i++) {
        size_t row_bytes = 0;
        parts[i] = (k_weight_part_t){.data = tensors[i].data, .rows = (uint32_t)tensors[i].rows};
        if (tensors[i].form == MODEL_FORM_SLICE && ops->packs_slices) {
            k_dtype_row_bytes(tensors[i].dtype, tensors[i].stride, &parts[i].stride);
            continue;
        }
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

static weft_status_t pack_weight(model_binder_t *binder, const model_tensor_t *tensors, uint32_t n,
                                 const k_weight_t *weight, void *device)
{
    k_weight_part_t parts[MODEL_LINEAR_PARTS];
    void *buffers[MODEL_LINEAR_PARTS] = {NULL};
    weft_status_t status = read_parts(binder->ops, tensors, n, buffers, parts);
    if (status >= 0) {
        binder->ops->weight_pack(binder->stream, weight->dtype, weight->form, weight->columns,
                                 parts, n, device);
    }
    bool is_formed = false;
    for (uint32_t i = 0; i < n; i++) {
        is_formed = is_formed || buffers[i] != NULL;
    }
    if (is_formed && status >= 0) {
        status = k_stream_sync(binder->stream); /* once: a second one lets its readers go */
    }
    for (uint32_t i = 0; i < n; i++) {
        weft_free(buffers[i]);
    }
    return status;
}

/* All that packing heeds but the files' contents. */
static void add_to_digest(XXH3_state_t *digest, const model_tensor_t *tensors, uint32_t n,
                          const k_weight_t *weight)
{
    for (uint32_t i = 0; i < n; i++) {
        const model_tensor_t *tensor = &tensors[i];
        const uint64_t numbers[] = {(uint64_t)weight->dtype,
                                    (uint64_t)weight->form,
                                    tensor->rows,
                                    tensor->columns,
                                    (uint64_t)tensor->form,
                                    tensor->start,
                                    tensor->step,
                                    tensor->stride,
                                    tensor->first_row,
                                    tensor->first_column,
                                    (uint64_t)tensor->scales_dtype,
                                    tensor->tile_rows,
                                    tensor->tile_columns,
                                    (uint64_t)tensor->packing};
        XXH3_128bits_update(digest, numbers, sizeof(numbers));
        XXH3_128bits_update(digest, tensor->name, strlen(tensor->name) + 1);
    }
}

weft_status_t model_bind_weight(model_binder_t *binder, const model_tensor_t *tensors, uint32_t n,
                                k_weight_form_t form, k_weight_t *weight_out)
{
    k_weight_t weight = {.dtype = weight_dtype(binder, tensors, n),
                         .form = form,
                         .columns = (uint32_t)tensors[0].columns,
                         .data = tensors[0].data};
    for (uint32_t i = 0; i < n; i++) {
        weight.rows += (uint32_t)tensors[i].rows;
    }
    weft_status_t status = WEFT_OK;
    const size_t bytes = model_bind_weight_bytes(binder, tensors, n, form);
    if (bytes > 0) {
        void *device = carve_take(&binder->weights->matrices, bytes, 1);
        weight.data = device;
        if (binder->weights->digest != NULL) {
            add_to_digest(binder->weights->digest, tensors, n, &weight);
        }
        if (binder->stream != NULL && !binder->weights->are_packed) {
            status = pack_weight(binder, tensors, n, &weight, device);
        }
    }
    *weight_out = weight;
    return status;
}

/* How many of the tensors, from the first on, one weight can hold. */
static uint32_t fusable(const model_binder_t *binder, const model_tensor_t *tensors, uint32_t n)
{
    if (model_bind_weight_bytes(binder, tensors, 1, K_WEIGHT_ROWS) == 0) {
        return 1; /* used where it is mapped */
    }
    uint32_t count = 1;
    while (count < n && tensors[count].dtype == tensors[0].dtype) {
        count++;
    }
    return count;
}

weft_status_t model_bind_find_parts(model_binder_t *binder, const model_tensor_id_t *ids,
                                    uint32_t n, uint32_t layer,
                                    model_tensor_t tensors[MODEL_LINEAR_PARTS], uint32_t *n_out)
{
    weft_status_t status = WEFT_OK;
    *n_out = 0;
    for (uint32_t i = 0; status >= 0 && i < n; i++) {
        const model_tensor_key_t key = {.id = ids[i], .layer = layer};
        model_tensor_t runs[MODEL_TENSOR_RUNS];
        uint32_t n_runs = 0;
        status = find_runs(binder, key, runs, &n_runs);
        if (status >= 0) {
            status = model_bind_check_supported(binder, &runs[0]);
        }
        for (uint32_t r = 0; status >= 0 && r < n_runs; r++) {
            assert(*n_out < MODEL_LINEAR_PARTS);
            tensors[(*n_out)++] = runs[r];
        }
    }
    return status;
}

weft_status_t model_bind_parts(model_binder_t *binder, const model_tensor_t *tensors, uint32_t n,
                               model_linear_t *linear)
{
    weft_status_t status = WEFT_OK;
    *linear = (model_linear_t){0};
    for (uint32_t i = 0; status >= 0 && i < n;) {
        const uint32_t count = fusable(binder, &tensors[i], n - i);
        k_weight_t *part = &linear->parts[linear->n_parts++];
        status = model_bind_weight(binder, &tensors[i], count, K_WEIGHT_ROWS, part);
        linear->rows += part->rows;
        i += count;
    }
    return status;
}

weft_status_t model_bind_linear(model_binder_t *binder, const model_tensor_id_t *ids, uint32_t n,
                                uint32_t layer, model_linear_t *linear)
{
    model_tensor_t tensors[MODEL_LINEAR_PARTS];
    uint32_t parts;
    const weft_status_t status = model_bind_find_parts(binder, ids, n, layer, tensors, &parts);
    return status < 0 ? status : model_bind_parts(binder, tensors, parts, linear);
}

weft_status_t model_bind_matrix(model_binder_t *binder, model_tensor_id_t id, uint32_t layer,
                                model_linear_t *linear)
{
    return model_bind_linear(binder, &id, 1, layer, linear);
}
