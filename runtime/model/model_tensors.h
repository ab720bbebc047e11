/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_tensors: which tensors a configured model is made of, what they are called and how large
 * they are: model_tensors.def, read for one configuration. And what of each a rank takes.
 *
 * Who loads a model holds its file against this list, who synthesizes one writes it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "runtime/model/model_config.h"
#include "runtime/model/model_shard.h"

typedef enum model_tensor_id {
#define TENSOR(name, scope, rows, columns, condition, gguf, hf) MODEL_TENSOR_##name,
#include "runtime/model/model_tensors.def"
#undef TENSOR
    MODEL_TENSOR_COUNT
} model_tensor_id_t;

typedef enum model_file_kind { MODEL_FILE_GGUF, MODEL_FILE_HF } model_file_kind_t;

/* Which tensor of a model. */
typedef struct model_tensor_key {
    model_tensor_id_t id;
    uint32_t layer;  /* 0 for those of the whole model */
    uint32_t expert; /* or head; 0 for those that are neither's */
} model_tensor_key_t;

/* A vector has rows 1. In GGUF the matrices of all experts or heads are one tensor. */
typedef struct model_tensor_want {
    model_tensor_key_t key;
    uint64_t rows;
    uint64_t columns;
    uint32_t stacked; /* matrices in this tensor, rows of each one after another; 1: not stacked */
} model_tensor_want_t;

/* Ends the walk, and is returned by it, when not WEFT_OK. */
typedef weft_status_t (*model_tensor_visit_fn)(void *context, const model_tensor_want_t *want);

/* Every tensor of a file of this model, those of the whole model first, then layer by layer. */
weft_status_t model_tensors_visit(const model_config_t *config, model_file_kind_t kind,
                                  model_tensor_visit_fn visit, void *context);

/* The name that files of this kind give it. */
void model_tensor_name(const model_config_t *config, model_file_kind_t kind, model_tensor_key_t key,
                       char *name, size_t size);

/* Whether it multiplies what is normed: a vector near 1. */
bool model_tensor_is_scale(model_tensor_id_t id);

/* Matrices of this kind in a layer: one for each expert or head, else 1. */
uint32_t model_tensor_copies(const model_config_t *config, model_tensor_id_t id);

#define MODEL_TENSOR_RUNS 3

/* One tensor, and what a rank takes of it: runs of its rows, and of these a run of the columns. */
typedef struct model_tensor_share {
    model_tensor_key_t key; /* in the file */
    uint64_t rows;          /* of the whole tensor */
    uint64_t columns;
    model_range_t row_runs[MODEL_TENSOR_RUNS]; /* q, k and v of a fused tensor are three */
    uint32_t n_row_runs;
    model_range_t column_run;
} model_tensor_share_t;

/* key: layer, expert and head counted from the rank's first. config: the whole model's. */
model_tensor_share_t model_tensor_share_of(const model_config_t *config, const model_cut_t *cut,
                                           model_tensor_key_t key);

/* That one of the blocks which the tensor's columns lie in; NULL: no rank takes some of them alone. */
model_block_t *model_tensor_block(model_tensor_id_t id, model_blocks_t *blocks);
