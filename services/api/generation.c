/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/generation.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "services/api/api_id.h"

#define MAX_CALLS 128 /* tool calls of one answer that are kept apart */

/* ---- plan ------------------------------------------------------------------------------------ */

static weft_status_t check_length(const generation_t *generation, uint32_t n_ids,
                                  int64_t max_tokens, api_error_t *error)
{
    uint32_t limit = generation->model->max_context;

    if (n_ids == 0) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "prompt",
                             "The prompt is empty: at least one token is needed.");
    }
    if (n_ids >= limit) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "input_tokens",
                             "This model's maximum context length is %u tokens. However, your "
                             "request has %u input tokens. Please reduce the length of the input.",
                             limit, n_ids);
    }
    if (max_tokens != JSON_UNSET && max_tokens > (int64_t)(limit - n_ids)) {
        return api_error_set(
            error, API_ERROR_BAD_REQUEST, "max_tokens",
            "'max_tokens' or 'max_completion_tokens' is too large: %" PRId64
            ". This model's maximum context length is %u tokens and your request has %u input "
            "tokens (%" PRId64 " > %u - %u).",
            max_tokens, limit, n_ids, max_tokens, limit, n_ids);
    }
    return WEFT_OK;
}

static weft_status_t check_max_tokens(const generation_t *generation, int64_t max_tokens,
                                      api_error_t *error)
{
    int64_t lowest = generation->echoes || generation->embeds ? 0 : 1;

    if (max_tokens != JSON_UNSET && max_tokens < lowest) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "max_tokens",
                             "max_tokens must be at least %" PRId64 ", got %" PRId64 ".", lowest,
                             max_tokens);
    }
    if (max_tokens != JSON_UNSET && generation->sampling.min_tokens > max_tokens) {
        return api_error_set(error, API_ERROR_BAD_REQUEST, "min_tokens",
                             "min_tokens must be less than or equal to max_tokens=%" PRId64
                             ", got %u.",
                             max_tokens, generation->sampling.min_tokens);
    }
    return WEFT_OK;
}

weft_status_t generation_add_prompt(generation_t *generation, const int32_t *ids, uint32_t n_ids,
                                    int64_t max_tokens, int64_t default_max_tokens,
                                    api_error_t *error)
{
    if (check_max_tokens(generation, max_tokens, error) != WEFT_OK ||
        check_length(generation, n_ids, max_tokens, error) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    int32_t *copy = weft_arena_calloc(generation->arena, n_ids, sizeof(*copy));
    if (copy == NULL) {
        return api_error_no_memory(error);
    }
    memcpy(copy, ids, n_ids * sizeof(*copy));

    uint32_t room = generation->model->max_context - n_ids;
    int64_t wanted = max_tokens != JSON_UNSET           ? max_tokens
                     : default_max_tokens != JSON_UNSET ? default_max_tokens
                                                        : room;
    generation->prompts[generation->n_prompts++] = (generation_prompt_t){
        .generation = generation,
        .ids = copy,
        .n_ids = n_ids,
        .max_tokens = wanted < room ? (uint32_t)wanted : room,
    };
    return WEFT_OK;
}

static weft_status_t make_parser(generation_choice_t *choice, api_error_t *error)
{
    const generation_t *generation = choice->generation;
    const char *tool_parser =
        generation->tools.mode == CHAT_TOOLS_AUTO ? generation->tool_parser : NULL;
    weft_diag_t diag = {0};

    forced_calls_init(&choice->forced, &generation->tools);
    if (tool_parser == NULL && generation->reasoning_parser == NULL) {
        return WEFT_OK;
    }
    choice->in_reasoning = generation->starts_in_reasoning;
    weft_status_t status =
        text_output_create(tool_parser, generation->reasoning_parser,
                           generation->starts_in_reasoning, &diag, &choice->output);
    return status < 0 ? api_error_from(error, status, &diag, NULL) : WEFT_OK;
}

static weft_status_t make_stream(generation_choice_t *choice, api_error_t *error)
{
    const generation_t *generation = choice->generation;
    text_stream_config_t config = {
        .skip_special = generation->skips_special,
        .include_stop = generation->includes_stop,
        .stops = generation->stop_table,
        .min_tokens = generation->sampling.min_tokens,
        .starts_text = false,
    };

    if (!generation->detokenizes) {
        return WEFT_OK;
    }
    weft_status_t status =
        text_stream_create(generation->model->tokenizer, &config, &choice->stream);
    return status < 0 ? api_error_from(error, status, &(weft_diag_t){0}, "stop") : WEFT_OK;
}

static weft_status_t make_stop_table(generation_t *generation, api_error_t *error)
{
    const sampling_stops_t *stops = &generation->stops;
    weft_diag_t diag = {0};

    if (!generation->detokenizes || stops->count == 0) {
        return WEFT_OK;
    }
    weft_status_t status =
        text_stops_create(stops->texts, stops->count, &diag, &generation->stop_table);
    return status < 0 ? api_error_from(error, status, &diag, "stop") : WEFT_OK;
}

weft_status_t generation_make_choices(generation_t *generation, api_error_t *error)
{
    size_t count = (size_t)generation->n_prompts * generation->n;

    generation->choices = weft_arena_calloc(generation->arena, count, sizeof(*generation->choices));
    if (generation->choices == NULL) {
        return api_error_no_memory(error);
    }
    if (make_stop_table(generation, error) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    for (size_t i = 0; i < count; i++) {
        generation_choice_t *choice = &generation->choices[i];
        *choice = (generation_choice_t){
            .generation = generation,
            .prompt = &generation->prompts[i / generation->n],
            .sample = (uint32_t)(i % generation->n),
            .index = (uint32_t)i,
            .stop_string = -1,
            .stop_token = -1,
        };
        generation->n_choices++;
        if (make_stream(choice, error) != WEFT_OK || make_parser(choice, error) != WEFT_OK) {
            return WEFT_ERR_INVALID;
        }
    }
    return WEFT_OK;
}

static void fini_choice(generation_choice_t *choice)
{
    text_stream_destroy(choice->stream);
    text_output_destroy(choice->output);
    forced_calls_fini(&choice->forced);
    weft_buffer_free(&choice->text);
    weft_buffer_free(&choice->reasoning);
    for (uint32_t i = 0; i < choice->n_calls; i++) {
        weft_buffer_free(&choice->calls[i].arguments);
    }
    weft_free(choice->calls);
}

void generation_fini(generation_t *generation)
{
    if (generation == NULL) {
        return;
    }
    for (uint32_t i = 0; i < generation->n_choices; i++) {
        fini_choice(&generation->choices[i]);
    }
    text_stops_destroy(generation->stop_table);
    generation->stop_table = NULL;
    text_grammar_destroy(generation->grammar);
    generation->grammar = NULL;
    engine_release_adapter(generation->adapter);
    generation->adapter = NULL;
    generation->n_choices = 0;
}

const char *generation_model_name(const generation_t *generation)
{
    return generation->adapter == NULL ? generation->model->names[0]
                                       : engine_adapter_name(generation->adapter);
}

/* ---- tokens to text -------------------------------------------------------------------------- */

static generation_call_t *begin_call(generation_choice_t *choice, const char *name, size_t length)
{
    generation_call_t *calls =
        weft_realloc(choice->calls, (choice->n_calls + 1) * sizeof(*calls), "api.tool_calls");

    if (calls == NULL) {
        return NULL;
    }
    choice->calls = calls;
    calls[choice->n_calls] = (generation_call_t){
        .id = weft_arena_alloc(choice->generation->arena, 48),
        .name = weft_arena_strndup(choice->generation->arena, name, length),
    };
    if (calls[choice->n_calls].id == NULL || calls[choice->n_calls].name == NULL) {
        return NULL;
    }
    memcpy(calls[choice->n_calls].id, "chatcmpl-tool-", 14);
    api_id_random(calls[choice->n_calls].id + 14);
    return &calls[choice->n_calls++];
}

static void on_delta(void *user, text_delta_kind_t kind, uint32_t tool_index, const char *text,
                     size_t length)
{
    generation_choice_t *choice = user;

    choice->in_reasoning = kind == TEXT_DELTA_REASONING;
    switch (kind) {
    case TEXT_DELTA_CONTENT:
        weft_buffer_append(&choice->text, text, length);
        break;
    case TEXT_DELTA_REASONING:
        weft_buffer_append(&choice->reasoning, text, length);
        break;
    case TEXT_DELTA_TOOL_BEGIN:
        if (choice->n_calls < MAX_CALLS && begin_call(choice, text, length) == NULL) {
            choice->text.is_failed = true;
        }
        break;
    case TEXT_DELTA_TOOL_ARGUMENTS:
        if (tool_index < choice->n_calls) {
            weft_buffer_append(&choice->calls[tool_index].arguments, text, length);
        }
        break;
    }
}

static void take_text(generation_choice_t *choice, const char *text, size_t length, bool is_last)
{
    chat_tool_mode_t mode = choice->generation->tools.mode;

    if (mode == CHAT_TOOLS_NAMED || mode == CHAT_TOOLS_REQUIRED) {
        forced_calls_push(&choice->forced, text, length, on_delta, choice);
    } else if (choice->output != NULL) {
        if (text_output_push(choice->output, text, length, is_last, on_delta, choice) < 0) {
            choice->text.is_failed = true;
        }
    } else {
        weft_buffer_append(&choice->text, text, length);
    }
}

static bool is_among(int32_t id, const int32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] == id) {
            return true;
        }
    }
    return false;
}

/*
 * An end token or stop token id is part of the answer's tokens, not of its text. Judged by the
 * token: it may be here a moment before the engine says that it was the last.
 */
static bool is_shown(const generation_t *generation, int32_t id)
{
    const engine_sampling_t *sampling = &generation->sampling;

    if (generation->includes_stop) {
        return true;
    }
    return !is_among(id, sampling->stop_token_ids, sampling->n_stop_token_ids) &&
           (sampling->ignore_eos ||
            !is_among(id, generation->model->eos, generation->model->n_eos));
}

static void take_token(generation_choice_t *choice, int32_t id)
{
    const char *text = NULL;
    size_t length = 0;

    choice->n_reasoning_tokens += choice->in_reasoning;
    if (choice->stream == NULL) {
        return;
    }
    if (text_stream_push(choice->stream, id, &text, &length, &choice->stop_string) < 0) {
        choice->text.is_failed = true;
    } else if (length > 0) {
        take_text(choice, text, length, false);
    }
}

static void finish_text(generation_choice_t *choice)
{
    const char *text = NULL;
    size_t length = 0;

    if (choice->stream != NULL && choice->stop_string < 0 &&
        text_stream_finish(choice->stream, &text, &length) < 0) {
        choice->text.is_failed = true;
    }
    take_text(choice, text != NULL ? text : "", length, true);
}

static const char *reason_of(const generation_choice_t *choice, engine_finish_t finish)
{
    bool is_stop = choice->stop_string >= 0 || finish == ENGINE_FINISH_STOP;

    if (is_stop && choice->n_calls > 0 && choice->generation->tools.mode != CHAT_TOOLS_NAMED) {
        return "tool_calls";
    }
    if (is_stop) {
        return "stop";
    }
    return finish == ENGINE_FINISH_LENGTH ? "length" : "abort";
}

static void finish_choice(generation_choice_t *choice, const engine_answer_t *answer)
{
    finish_text(choice);
    if (choice->stop_string < 0) {
        choice->stop_token = answer->stop_token;
    }
    choice->finish_reason = reason_of(choice, answer->finish);
    choice->generation->n_finished++;
}

/* The request asked for what cannot be: its fault, if found late. */
static void refuse_constraint(const generation_choice_t *choice, const engine_answer_t *answer,
                              api_error_t *error)
{
    const char *field = choice->generation->grammar_field;

    api_error_set(error, API_ERROR_BAD_REQUEST, field != NULL ? field : "allowed_token_ids",
                  "The answer cannot be continued after %u tokens: %s.", answer->n_tokens,
                  answer->reason);
}

uint32_t generation_take(generation_choice_t *choice, api_error_t *error)
{
    if (choice->finish_reason != NULL || choice->prompt->request == NULL) {
        return 0;
    }
    engine_answer_t answer = engine_request_answer(choice->prompt->request, choice->sample);
    uint32_t before = choice->n_tokens;

    while (choice->n_tokens < answer.n_tokens && choice->stop_string < 0) {
        int32_t id = answer.tokens[choice->n_tokens++];
        if (is_shown(choice->generation, id)) {
            take_token(choice, id);
        }
    }
    if (answer.finish == ENGINE_FINISH_ERROR) {
        api_error_set(error, API_ERROR_INTERNAL, NULL, "The engine failed on this request%s%s.",
                      answer.reason != NULL ? ": " : "",
                      answer.reason != NULL ? answer.reason : "");
    } else if (answer.finish == ENGINE_FINISH_LOST) {
        api_error_set(error, API_ERROR_RANK_LOST, NULL,
                      "The request was cut off, and may be sent again: %s.",
                      answer.reason != NULL ? answer.reason : "a rank was lost");
    } else if (answer.finish == ENGINE_FINISH_CONSTRAINT && choice->stop_string < 0) {
        refuse_constraint(choice, &answer, error);
    } else if (choice->stop_string >= 0 || answer.finish != ENGINE_FINISH_NONE) {
        finish_choice(choice, &answer);
    }
    if (choice->text.is_failed || choice->reasoning.is_failed) {
        api_error_no_memory(error);
    }
    return choice->n_tokens - before;
}

/* ---- what chunks carry ----------------------------------------------------------------------- */

static bool has_call_news(const generation_choice_t *choice)
{
    for (uint32_t i = 0; i < choice->n_calls; i++) {
        const generation_call_t *call = &choice->calls[i];
        if (!call->is_begin_sent || call->n_sent < call->arguments.length) {
            return true;
        }
    }
    return false;
}

bool generation_has_news(const generation_choice_t *choice)
{
    const generation_t *generation = choice->generation;
    bool shows_tokens =
        generation->wants_logprobs || generation->returns_token_ids || !generation->detokenizes;

    return !choice->is_ended && (choice->text.length > choice->n_text_sent ||
                                 (generation->includes_reasoning &&
                                  choice->reasoning.length > choice->n_reasoning_sent) ||
                                 has_call_news(choice) || choice->finish_reason != NULL ||
                                 (shows_tokens && choice->n_tokens > choice->n_tokens_sent));
}

void generation_mark_sent(generation_choice_t *choice)
{
    choice->n_text_sent = choice->text.length;
    choice->n_reasoning_sent = choice->reasoning.length;
    choice->n_tokens_sent = choice->n_tokens;
    choice->is_ended = choice->finish_reason != NULL;
    for (uint32_t i = 0; i < choice->n_calls; i++) {
        choice->calls[i].is_begin_sent = true;
        choice->calls[i].n_sent = choice->calls[i].arguments.length;
    }
}

generation_usage_t generation_usage(const generation_t *generation)
{
    generation_usage_t usage = {0};

    for (uint32_t i = 0; i < generation->n_prompts; i++) {
        usage.prompt_tokens += generation->prompts[i].n_ids;
        usage.cached_tokens += generation->prompts[i].cached_tokens;
    }
    for (uint32_t i = 0; i < generation->n_choices; i++) {
        usage.completion_tokens += generation->choices[i].n_tokens;
        usage.reasoning_tokens += generation->choices[i].n_reasoning_tokens;
    }
    return usage;
}
