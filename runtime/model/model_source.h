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
#include "runtime/model/model_config.h"
#include "runtime/model/model_tensors.h"
#include "text/text.h"

typedef struct model_source model_source_t;

/* How a tensor's rows lie in its file. */
typedef enum model_form {
    MODEL_FORM_ROWS,    /* as they are computed with */
    MODEL_FORM_F8,      /* E4M3, scales in a tensor beside it: dtype is K_F8_32 */
    MODEL_FORM_F8_WIDE, /* E4M3 with scales, brought to F32: rows or (step 1) columns from start */
    MODEL_FORM_MXFP4,   /* nibbles in one tensor, scales in another: dtype is K_MXFP4 */
    MODEL_FORM_INT4,    /* packed numbers, zeros and scales in three tensors: dtype is K_I4_32 */
    MODEL_FORM_SLICE,   /* as ROWS, but the next row begins a stride further */
    MODEL_FORM_STEPS,   /* element c of a row is number start + c · step there */
    MODEL_FORM_COLUMNS  /* rows are columns start + r · step of a matrix */
} model_form_t;

/* Row-major; a vector has rows 1. columns are contiguous. */
typedef struct model_tensor {
    const char *name; /* as in the file */
    k_dtype_t dtype;
    uint64_t rows;
    uint64_t columns;
    const void *data; /* in the mapping, not aligned beyond what the file gives */
    size_t bytes;
    model_form_t form; /* other than ROWS: read rows by model_tensor_read */
    uint32_t start;
    uint32_t step;
    uint64_t stride;    /* elements between the file's rows; INT4: its rows */
    uint64_t first_row; /* of a slice: where in the file's matrix it begins. F8, MXFP4, INT4 */
    uint64_t first_column;
    const char *scales_name; /* NULL: none */
    const void *scales;
    k_dtype_t scales_dtype;
    uint32_t tile_rows;    /* of a scale: F8 */
    uint32_t tile_columns; /* and INT4 */
    model_int4_t packing;
    const char *zeros_name; /* NULL: none */
    const void *zeros;
    const char *order_name; /* of INT4's tensor that says which column is in which group */
} model_tensor_t;

weft_status_t model_source_open(const char *path, weft_diag_t *diag, model_source_t **source_out);
void model_source_close(model_source_t *source); /* NULL is fine */

const char *model_source_path(const model_source_t *source);
const char *model_source_format(const model_source_t *source); /* "gguf" or "safetensors" */
const model_config_t *model_source_config(const model_source_t *source);

/*
 * WEFT_ERR_NOT_FOUND, without a diag line when diag is NULL (an optional tensor). An expert's matrix
 * is found alone, however the file keeps it.
 */
weft_status_t model_source_find(const model_source_t *source, model_tensor_key_t key,
                                weft_diag_t *diag, model_tensor_t *tensor_out);

/*
 * Finds a tensor that the model cannot do without, of exactly this shape.
 * WEFT_ERR_MALFORMED: missing, or of another shape.
 */
weft_status_t model_source_require(const model_source_t *source, model_tensor_key_t key,
                                   uint64_t rows, uint64_t columns, weft_diag_t *diag,
                                   model_tensor_t *tensor_out);

/* Narrows it to some of its rows, or of its columns: these are whole blocks of its dtype. */
void model_tensor_take_rows(model_tensor_t *tensor, uint64_t first, uint64_t n);
void model_tensor_take_columns(model_tensor_t *tensor, uint64_t first, uint64_t n);

/* What a rank holds of the model, given how the file's blocks lie: model_shard_cut. */
weft_status_t model_source_cut(const model_source_t *source, const model_shard_t *shard,
                               weft_diag_t *diag, model_cut_t *cut_out);

/* Rows [first, first + n) of any form, in rows of its dtype. */
void model_tensor_read(const model_tensor_t *tensor, uint64_t first, uint64_t n, void *rows_out);

/* For inspection: all tensors, in file order. */
size_t model_source_tensor_count(const model_source_t *source);
model_tensor_t model_source_tensor_at(const model_source_t *source, size_t index);

/* Builds the tokenizer the file describes. */
weft_status_t model_source_tokenizer(const model_source_t *source, weft_diag_t *diag,
                                     text_tokenizer_t **tokenizer_out);

/* The file's chat template, NULL when it has none; not terminated. */
const char *model_source_chat_template(const model_source_t *source, size_t *length_out);
