/* SPDX-License-Identifier: Apache-2.0 */
/* synth_priv: a model being synthesized, as the writers of its parts see it. */
#pragma once

#include "base/buffer.h"
#include "runtime/model_config.h"
#include "runtime/model_tensors.h"
#include "runtime/synth/model_synth.h"
#include "runtime/synth/synth_values.h"

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

/* One tensor of the file. */
typedef struct synth_tensor {
    model_tensor_want_t want;
    k_dtype_t dtype;
    bool is_scales;  /* of the E4M3 matrix before it, whose name it has with an end of its own */
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
    uint32_t f8_tile;        /* rows and columns that share a scale; 0: the whole matrix */
    synth_tensor_t *tensors; /* [n_tensors] */
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
