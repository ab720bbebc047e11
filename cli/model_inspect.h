/* SPDX-License-Identifier: Apache-2.0 */
/* model_inspect: what a model is and the memory it will need, for people and as JSON. */
#pragma once

#include <stdio.h>

#include "base/diag.h"
#include "base/option.h"

typedef struct model_inspect_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/model_inspect.def"
#undef OPTION
} model_inspect_options_t;

typedef struct model_inspect model_inspect_t;

/*
 * Opens the model with its tokenizer and reckons. max_model_len 0: what the model allows.
 * A checkpoint without tokenizer.json can be inspected; a tokenizer that is broken cannot.
 */
weft_status_t model_inspect_create(const char *path, uint32_t max_model_len, weft_diag_t *diag,
                                   model_inspect_t **inspect_out);
void model_inspect_destroy(model_inspect_t *inspect); /* NULL is fine */

void model_inspect_print(const model_inspect_t *inspect, FILE *file);
weft_status_t model_inspect_print_json(const model_inspect_t *inspect, FILE *file);
