/* SPDX-License-Identifier: Apache-2.0 */
/*
 * structured_output: what shape an answer must have, from response_format, structured_outputs or
 * forced tools, to a grammar.
 */
#pragma once

#include <jansson.h>

#include "base/arena.h"
#include "services/api/api_model.h"

typedef struct structured_output {
    bool is_set;
    text_grammar_kind_t kind;
    const char *source; /* [length], arena memory */
    size_t length;
    const char *field;              /* of the request, for errors */
    text_grammar_options_t options; /* its pattern is borrowed from the request's tree */
} structured_output_t;

/*
 * What the schema of a request says of its response_format and structured_outputs; NULL is fine.
 * path: of the object that options is a member of.
 */
void structured_output_check_format(const json_t *format, api_error_t *error);
void structured_output_check(const json_t *options, const char *path, api_error_t *error);

/*
 * format, options: checked; NULL when the request has none. At most one of them may ask for
 * something.
 */
weft_status_t structured_output_read(const json_t *format, const json_t *options,
                                     weft_arena_t *arena, structured_output_t *output_out,
                                     api_error_t *error);

/* A JSON schema as the constraint. */
weft_status_t structured_output_set_schema(const json_t *schema, const char *field,
                                           weft_arena_t *arena, structured_output_t *output_out,
                                           api_error_t *error);

/* NULL in *grammar_out when output is not set. The grammar is the caller's. */
weft_status_t structured_output_compile(const structured_output_t *output, const api_model_t *model,
                                        text_grammar_t **grammar_out, api_error_t *error);
