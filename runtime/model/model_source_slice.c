/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of tensors, as ranks take them. */
#include <assert.h>
#include <stdio.h>

#include "runtime/model/model_source_priv.h"

/* ---- of one tensor ------------------------------------------------------------------------- */

static uint64_t bytes_of(const model_tensor_t *tensor, uint64_t elements)
{
    const k_dtype_info_t *info = k_dtype_info(tensor->dtype);
    assert(elements % info->block_elements == 0);
    return elements / info->block_elements * info->block_bytes;
}

static void skip(model_tensor_t *tensor, uint64_t elements)
{
    tensor->data = (const char *)tensor->data + bytes_of(tensor, elements);
}

void model_tensor_take_rows(model_tensor_t *tensor, uint64_t first, uint64_t n)
{
    assert(first <= tensor->rows && n <= tensor->rows - first);
    switch (tensor->form) {
    case MODEL_FORM_ROWS:
        skip(tensor, first * tensor->columns);
        tensor->bytes = bytes_of(tensor, n * tensor->columns);
        break;
    case MODEL_FORM_SLICE:
    case MODEL_FORM_STEPS:
        skip(tensor, first * tensor->stride);
        break;
    case MODEL_FORM_COLUMNS:
        tensor->start += (uint32_t)first * tensor->step;
        break;
    case MODEL_FORM_F8:
    case MODEL_FORM_MXFP4:
    case MODEL_FORM_INT4:
        tensor->first_row += first;
        break;
    case MODEL_FORM_F8_WIDE:
        assert(first == 0 && n == tensor->rows); /* a head's: taken whole */
        break;
    }
    tensor->rows = n;
}

void model_tensor_take_columns(model_tensor_t *tensor, uint64_t first, uint64_t n)
{
    assert(first <= tensor->columns && n <= tensor->columns - first);
    if (n == tensor->columns) {
        return;
    }
    switch (tensor->form) {
    case MODEL_FORM_ROWS:
        tensor->form = MODEL_FORM_SLICE;
        tensor->stride = tensor->columns;
        skip(tensor, first);
        break;
    case MODEL_FORM_SLICE:
        skip(tensor, first);
        break;
    case MODEL_FORM_STEPS:
        tensor->start += (uint32_t)first * tensor->step;
        break;
    case MODEL_FORM_COLUMNS:
        skip(tensor, first * tensor->stride);
        break;
    case MODEL_FORM_F8:
    case MODEL_FORM_MXFP4:
    case MODEL_FORM_INT4:
        tensor->first_column += first;
        break;
    case MODEL_FORM_F8_WIDE:
        assert(false); /* a head's: taken whole */
        break;
    }
    tensor->columns = n;
}

/* ---- of the model -------------------------------------------------------------------------- */

typedef struct scan {
    const model_source_t *source;
    weft_diag_t *diag;
    model_blocks_t blocks;
} scan_t;

/* Experts have one type: the first tells. */
static weft_status_t see_tensor(void *context, const model_tensor_want_t *want)
{
    scan_t *scan = context;
    model_block_t *block = model_tensor_block(want->key.id, &scan->blocks);
    if (block == NULL || want->key.expert > 0) {
        return WEFT_OK;
    }
    model_tensor_t tensor;
    const weft_status_t status = model_source_find(scan->source, want->key, scan->diag, &tensor);
    if (status < 0) {
        return status;
    }
    const uint32_t columns = k_dtype_info(tensor.dtype)->block_elements;
    if (columns > 1 && columns > block->columns) {
        block->columns = columns; /* all are powers of two: those of the widest suit every one */
        snprintf(block->tensor, sizeof(block->tensor), "%s", tensor.name);
    }
    return WEFT_OK;
}

weft_status_t model_source_cut(const model_source_t *source, const model_shard_t *shard,
                               weft_diag_t *diag, model_cut_t *cut_out)
{
    const model_config_t *config = &source->config;
    const model_file_kind_t kind = source->gguf != NULL ? MODEL_FILE_GGUF : MODEL_FILE_HF;
    scan_t scan = {.source = source, .diag = diag};
    weft_status_t status = WEFT_OK;
    if (shard != NULL && model_shard_is_cut(shard)) {
        status = model_tensors_visit(config, kind, see_tensor, &scan);
    }
    if (status < 0) {
        return status;
    }
    status = model_shard_cut(config, &scan.blocks, shard, diag, cut_out);
    if (status < 0) {
        weft_diag_prefix(diag, "%s", source->path);
    }
    return status;
}
