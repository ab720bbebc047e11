/* SPDX-License-Identifier: Apache-2.0 */
/*
 * served_model: opens a model with its tokenizer and chat template, and fills what requests are
 * checked against.
 */
#pragma once

#include "runtime/engine/engine.h"
#include "services/api/api_model.h"
#include "services/api/api_options.h"

typedef struct served_model {
    model_source_t *source;
    text_tokenizer_t *tokenizer;
    api_model_t api;
    const char *name; /* when --served-model-name is not given */
    char *bos;        /* texts that templates print; weft_alloc */
    char *eos;
    json_t *template_kwargs;
    weft_diag_t template_diag;
} served_model_t;

/* model is zeroed memory. */
weft_status_t served_model_open(const api_options_t *options, const char *path, weft_diag_t *diag,
                                served_model_t *model);
void served_model_close(served_model_t *model);

/* What only the engine knows: limits and the grammar factory. */
void served_model_attach(served_model_t *model, const engine_options_t *engine_options,
                         engine_t *engine);
