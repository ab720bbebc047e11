/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api_rig: the worker's half of the API without server or engine: a small tokenizer, a chat
 * template, grammars, and calls that prepare one body.
 */
#pragma once

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "services/api/api_call.h"
#include "services/api/api_routes.h"
#include "services/api/api_transfer.h"
#include "services/api/json_fields.h"
#include "tests/support/api_rig_tokenizer.h"

typedef struct api_rig {
    text_tokenizer_t *tokenizer;
    text_template_t *chat_template;
    text_grammar_factory_t *grammars;
    api_model_t model;
    api_options_t options;
} api_rig_t;

#define API_RIG_CONTEXT 256

static const char api_rig_template[] =
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}[{{ call.function.arguments.city }}]{% endfor %}"
    "{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}";

/* Aborts when it cannot be made: tests and fuzzers alike need it. */
static inline void api_rig_open(api_rig_t *rig)
{
    static const char *const names[] = {"rig"};
    static const int32_t eos[] = {0};
    weft_diag_t diag = {0};

    *rig = (api_rig_t){.tokenizer = api_rig_tokenizer()};
    const uint32_t vocab = text_tokenizer_size(rig->tokenizer);
    if (text_template_create(api_rig_template, sizeof(api_rig_template) - 1, "", "", &diag,
                             &rig->chat_template) < 0 ||
        text_grammar_factory_create(rig->tokenizer, vocab, eos, 1, &diag, &rig->grammars) < 0) {
        abort();
    }
    rig->model = (api_model_t){
        .names = names,
        .n_names = 1,
        .tokenizer = rig->tokenizer,
        .grammars = rig->grammars,
        .vocab = vocab,
        .eos = eos,
        .n_eos = 1,
        .max_context = API_RIG_CONTEXT,
        .max_samples = 16,
        .max_logprobs = 20,
        .chat_template = rig->chat_template,
        .template_bos = "",
        .template_eos = "",
        .temperature = 1,
        .top_p = 1,
        .repetition_penalty = 1,
        .max_tokens = JSON_UNSET,
    };
}

static inline void api_rig_close(api_rig_t *rig)
{
    text_grammar_factory_destroy(rig->grammars);
    text_template_destroy(rig->chat_template);
    text_tokenizer_destroy(rig->tokenizer);
}

/* One that generates. */
static const api_route_t api_rig_route = {.method = "POST", .path = "/rig", .flags = ROUTE_LOAD};

/* A call with a copy of body; false: no memory (call needs no end). */
static inline bool api_rig_begin(const api_rig_t *rig, const char *body, size_t length,
                                 api_call_t *call)
{
    memset(call, 0, sizeof(*call));
    call->model = &rig->model;
    call->options = &rig->options;
    call->route = &api_rig_route;
    call->priority_header = JSON_UNSET;
    call->request_id = "id";
    call->body_length = length;
    call->body = weft_alloc(length + 1, "api.body");
    if (call->body != NULL && length > 0) {
        memcpy(call->body, body, length);
    }
    return call->body != NULL;
}

static inline void api_rig_end(api_call_t *call)
{
    api_transfer_free(call);
    generation_fini(call->generation);
    weft_buffer_free(&call->answer);
    weft_free(call->body);
    weft_arena_free(&call->arena);
}
