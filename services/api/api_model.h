/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api_model: what parsing a request has to know about the served model.
 *
 * Threads  immutable once filled; read by the loop and the workers
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/engine/engine.h"
#include "services/api/api_error.h"
#include "text/text.h"

typedef struct api_model {
    const char *const *names; /* [n_names] as clients may call it; answers carry the first */
    uint32_t n_names;
    const char *root; /* the path it was loaded from */
    uint64_t created; /* seconds since 1970 */

    engine_t *engine; /* whose adapters are models too; NULL: none are */
    const text_tokenizer_t *tokenizer;
    text_grammar_factory_t *grammars; /* NULL: no constraints */
    uint32_t vocab;
    uint32_t hidden;    /* numbers of an embedding */
    const int32_t *eos; /* [n_eos] end tokens */
    uint32_t n_eos;
    uint32_t max_context;
    uint32_t max_samples; /* largest n */
    uint32_t max_logprobs;
    bool has_priorities; /* else a priority other than 0 is refused */

    text_template_t *chat_template; /* NULL: no chat */
    const char *template_error;     /* why, when there is a template that does not compile */
    bool is_template_overridable; /* a request may bring its own (--trust-request-chat-template) */
    bool template_takes_parts;    /* it loops over a message's content */
    bool template_knows_developer;
    const json_t *template_kwargs; /* variables of requests that do not set them; NULL: none */
    const char *template_bos;
    const char *template_eos;
    const char *tool_parser;      /* NULL: none */
    const char *reasoning_parser; /* NULL: none */
    bool excludes_tools_when_none;

    /* Used where a request says nothing. */
    double temperature;
    double top_p;
    int64_t top_k;
    double min_p;
    double repetition_penalty;
    int64_t max_tokens; /* JSON_UNSET: none */
} api_model_t;

/*
 * WEFT_OK when name is NULL, empty, one of the model's, or that of an adapter, which is the caller's
 * then (engine_release_adapter); *adapter_out is NULL for the others.
 */
weft_status_t api_model_find(const api_model_t *model, const char *name, api_error_t *error,
                             engine_adapter_t **adapter_out);
/* The same of the name alone. */
weft_status_t api_model_check_name(const api_model_t *model, const char *name, api_error_t *error);

/* Token id for an answer: "token_id:17" or its text, appended to out. */
void api_model_append_token(const api_model_t *model, int32_t id, bool as_id, weft_buffer_t *out);
