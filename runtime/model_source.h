/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_source: a model on disk, opened: its configuration, its tensors, its tokenizer's data.
 *
 * Path is a .gguf file, a .safetensors file with config.json beside it, or a folder that holds
 * either (safetensors with or without an index of shards). Files are mapped read-only; every
 * length, offset, count, dtype and shape is checked against the file before it is used, and no
 * memory is taken in proportion to a number the file merely claims. After open every tensor of
 * model_tensors.def that the configuration asks for is there, in its shape, and no other: a model
 * with more is a variant that the graphs would get wrong.
 *
 * Limits   files must not shrink while they are mapped (base/mapped_file.h)
 * Owns     the mappings; everything handed out is borrowed until close
 * Threads  immutable after open
 * Errors   one line in diag: file, tensor or field, reason
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/dtypes.h"
#include "runtime/model_config.h"
#include "runtime/model_tensors.h"
#include "text/text.h"

typedef struct model_source model_source_t;

/* Row-major; a vector has rows 1. columns are contiguous. */
typedef struct model_tensor {
    const char *name; /* as in the file */
    k_dtype_t dtype;
    uint64_t rows;
    uint64_t columns;
    const void *data; /* in the mapping, not aligned beyond what the file gives */
    size_t bytes;
} model_tensor_t;

weft_status_t model_source_open(const char *path, weft_diag_t *diag, model_source_t **source_out);
void model_source_close(model_source_t *source); /* NULL is fine */

const char *model_source_path(const model_source_t *source);
const char *model_source_format(const model_source_t *source); /* "gguf" or "safetensors" */
const model_config_t *model_source_config(const model_source_t *source);

/* WEFT_ERR_NOT_FOUND, without a diag line when diag is NULL (an optional tensor). */
weft_status_t model_source_find(const model_source_t *source, model_tensor_id_t id, uint32_t layer,
                                weft_diag_t *diag, model_tensor_t *tensor_out);

/*
 * Finds a tensor that the model cannot do without, of exactly this shape.
 * WEFT_ERR_MALFORMED: missing, or of another shape.
 */
weft_status_t model_source_require(const model_source_t *source, model_tensor_id_t id,
                                   uint32_t layer, uint64_t rows, uint64_t columns,
                                   weft_diag_t *diag, model_tensor_t *tensor_out);

/* For inspection: all tensors, in file order. */
size_t model_source_tensor_count(const model_source_t *source);
model_tensor_t model_source_tensor_at(const model_source_t *source, size_t index);

/* Builds the tokenizer the file describes. */
weft_status_t model_source_tokenizer(const model_source_t *source, weft_diag_t *diag,
                                     text_tokenizer_t **tokenizer_out);

/* The file's chat template, NULL when it has none; not terminated. */
const char *model_source_chat_template(const model_source_t *source, size_t *length_out);
