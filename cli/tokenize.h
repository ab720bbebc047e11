/* SPDX-License-Identifier: Apache-2.0 */
/* tokenize: what `weft tokenize` and `weft detokenize` share. */
#pragma once

#include "base/option.h"
#include "cli/run.h"

typedef struct tokenize_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/tokenize.def"
#undef OPTION
} tokenize_options_t;

/* Writes to out what the command answers for the ids in prompt. */
typedef weft_status_t (*tokenize_fn)(const tokenize_options_t *options,
                                     const text_tokenizer_t *tokenizer, const run_prompt_t *prompt,
                                     weft_buffer_t *out, weft_diag_t *diag);

/*
 * Parses the command line, makes ids of its one argument (a text, or ids when takes_ids), and
 * prints what `write` makes of them. Returns the exit code.
 */
int tokenize_main(int argc, char **argv, const char *usage, const char *about, bool takes_ids,
                  tokenize_fn write);
