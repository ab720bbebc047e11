/* SPDX-License-Identifier: Apache-2.0 */
/* synth_priv: a model being synthesized, as the writers of its parts see it. */
#pragma once

#include "base/buffer.h"
#include "runtime/model/model_config.h"
#include "runtime/model/model_tensors.h"
#include "runtime/model/synth/model_synth.h"
#include "runtime/model/synth/synth_values.h"

#define SYNTH_NAME_BYTES 128

/* A row of synth_shapes.def. */
typedef struct synth_shape {
    const char *family;
    const char *name;
    uint32_t layers;
    uint32_t hidden;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t intermediate;
    uint32_t vocab;
    uint32_t context;
    uint32_t theta;
    bool is_tied;
    const char *more; /* members of config.json, without braces */
} synth_shape_t;

/* A form of matrices that checkpoints alone have: scales, and numbers that are packed. */
typedef struct synth_form {
    const char *name;   /* of the option */
    const char *method; /* quant_method */
    k_dtype_t dtype;
    k_dtype_t others; /* of tensors that are no such matrix */
    uint32_t tile;    /* rows and columns (int4: columns) that share a scale; 0: the whole matrix */
    model_int4_t int4; /* how four bits are packed */
} synth_form_t;

/* What a tensor is of its matrix. */
typedef enum synth_part {
    SYNTH_WHOLE,
    SYNTH_F8_SCALES,
    SYNTH_INT4_WORDS,
    SYNTH_INT4_ZEROS,
    SYNTH_INT4_SCALES
} synth_part_t;

/* One tensor of the file. */
typedef struct synth_tensor {
    model_tensor_want_t want; /* but for its shape the matrix's, whatever the part */
    k_dtype_t dtype;
    synth_part_t part;
    uint64_t fan_in; /* columns of the matrix */
    uint64_t blocks; /* elements for types without blocks */
    uint64_t bytes;
    uint64_t offset; /* from the first tensor's data */
    uint64_t items;  /* pieces of it that are filled at once: the sum up to its end */
} synth_tensor_t;

typedef struct synth {
    const model_synth_options_t *options;
    const synth_shape_t *shape;
    model_config_t config;
    model_file_kind_t kind;
    k_dtype_t dtype;
    const synth_form_t *form; /* NULL: matrices are dtype's numbers and nothing else */
    synth_tensor_t *tensors;  /* [n_tensors] */
    uint32_t n_tensors;
    uint64_t data_bytes;
} synth_t;

/* config.json of the shape. A failed allocation shows in out. */
void synth_config_json(const synth_t *synth, weft_buffer_t *out);

/* What comes before the tensors' data. A failed allocation shows in out. */
void synth_gguf_header(const synth_t *synth, weft_buffer_t *out);
void synth_safetensors_header(const synth_t *synth, weft_buffer_t *out);

/* config.json and the other files beside safetensors, in folder. */
weft_status_t synth_write_side_files(const synth_t *synth, const char *folder, weft_diag_t *diag);

/* Writes a whole file. */
weft_status_t synth_write_file(const char *path, const weft_buffer_t *bytes, weft_diag_t *diag);
