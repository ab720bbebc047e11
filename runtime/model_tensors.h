/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_tensors: which tensors a configured model is made of, what they are called and how large
 * they are: model_tensors.def, read for one configuration.
 *
 * Who loads a model holds its file against this list, who synthesizes one writes it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "runtime/model_config.h"

typedef enum model_tensor_id {
#define TENSOR(name, scope, rows, columns, condition, gguf, hf) MODEL_TENSOR_##name,
#include "runtime/model_tensors.def"
#undef TENSOR
    MODEL_TENSOR_COUNT
} model_tensor_id_t;

typedef enum model_file_kind { MODEL_FILE_GGUF, MODEL_FILE_HF } model_file_kind_t;

/* A vector has rows 1. */
typedef struct model_tensor_want {
    model_tensor_id_t id;
    uint32_t layer; /* 0 for those of the whole model */
    uint64_t rows;
    uint64_t columns;
} model_tensor_want_t;

/* Ends the walk, and is returned by it, when not WEFT_OK. */
typedef weft_status_t (*model_tensor_visit_fn)(void *context, const model_tensor_want_t *want);

/* Every tensor of the model, those of the whole model first, then layer by layer. */
weft_status_t model_tensors_visit(const model_config_t *config, model_tensor_visit_fn visit,
                                  void *context);

/* The name that files of this kind give it. */
void model_tensor_name(model_file_kind_t kind, model_tensor_id_t id, uint32_t layer, char *name,
                       size_t size);

/* Whether it multiplies what is normed: a vector near 1. */
bool model_tensor_is_scale(model_tensor_id_t id);

/* Whether a tensor of the configured model has this name. */
bool model_tensors_has(const model_config_t *config, model_file_kind_t kind, const char *name);
