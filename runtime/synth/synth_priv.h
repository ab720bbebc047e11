/* SPDX-License-Identifier: Apache-2.0 */
/* synth_priv: a model being synthesized, as the writers of its parts see it. */
#pragma once

#include "base/buffer.h"
#include "runtime/model_config.h"
#include "runtime/model_tensors.h"
#include "runtime/synth/model_synth.h"
#include "runtime/synth/synth_values.h"

#define SYNTH_NAME_BYTES 128

/* One tensor of the file. */
typedef struct synth_tensor {
    model_tensor_want_t want;
    k_dtype_t dtype;
    uint64_t blocks; /* elements for types without blocks */
    uint64_t bytes;
    uint64_t offset; /* from the first tensor's data */
    uint64_t items;  /* pieces of it that are filled at once: the sum up to its end */
} synth_tensor_t;

typedef struct synth {
    const model_synth_options_t *options;
    model_config_t config;
    model_file_kind_t kind;
    k_dtype_t dtype;
    synth_tensor_t *tensors; /* [n_tensors] */
    uint32_t n_tensors;
    uint64_t data_bytes;
} synth_t;

/* What comes before the tensors' data. A failed allocation shows in out. */
void synth_gguf_header(const synth_t *synth, weft_buffer_t *out);
void synth_safetensors_header(const synth_t *synth, weft_buffer_t *out);

/* config.json and the other files beside safetensors, in folder. */
weft_status_t synth_write_side_files(const synth_t *synth, const char *folder, weft_diag_t *diag);

/* Writes a whole file. */
weft_status_t synth_write_file(const char *path, const weft_buffer_t *bytes, weft_diag_t *diag);
