/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/logprobs_json.h"

#include <stdio.h>

#include "base/utf8.h"

/* -inf has no JSON; vLLM writes this. */
#define LOWEST_LOGPROB -9999.0f

static void write_logprob(weft_json_t *json, float logprob)
{
    weft_json_f32(json, logprob < LOWEST_LOGPROB ? LOWEST_LOGPROB : logprob);
}

static void write_token(const generation_t *generation, int32_t id, weft_json_t *json)
{
    weft_buffer_t text = {0};

    api_model_append_token(generation->model, id, generation->tokens_as_ids, &text);
    weft_json_text(json, text.data != NULL ? text.data : "", text.length);
    weft_buffer_free(&text);
}

/* In characters: offsets count those, as the strings of most clients do. */
static size_t token_length(const generation_t *generation, int32_t id)
{
    weft_buffer_t text = {0};

    api_model_append_token(generation->model, id, false, &text);
    size_t length = weft_utf8_count(text.data, text.length);
    weft_buffer_free(&text);
    return length;
}

/* ---- completions ----------------------------------------------------------------------------- */

/* A row of the answer's table: token and what the model thought of it, NULL for the first. */
typedef struct token_row {
    int32_t id;
    const k_sampled_t *sampled;
} token_row_t;

typedef struct token_rows {
    const generation_prompt_t *prompt; /* its tokens come first; NULL: none */
    const k_sampled_t *prompt_logprobs;
    engine_answer_t answer;
    uint32_t from;
    uint32_t count; /* all rows */
} token_rows_t;

static token_row_t row_at(const token_rows_t *rows, uint32_t i)
{
    uint32_t n_prompt = rows->prompt != NULL ? rows->prompt->n_ids : 0;

    if (i < n_prompt) {
        const k_sampled_t *sampled =
            i > 0 && rows->prompt_logprobs != NULL ? &rows->prompt_logprobs[i] : NULL;
        return (token_row_t){rows->prompt->ids[i], sampled};
    }
    uint32_t at = rows->from + i - n_prompt;
    return (token_row_t){rows->answer.tokens[at],
                         rows->answer.logprobs != NULL ? &rows->answer.logprobs[at] : NULL};
}

/* The chosen token, then the most likely ones. */
static void write_top_map(const generation_t *generation, const k_sampled_t *sampled,
                          weft_json_t *json)
{
    weft_json_begin_object(json);
    for (uint32_t i = 0; i <= sampled->n_top; i++) {
        const k_logprob_t *entry = i == 0 ? &sampled->chosen : &sampled->top[i - 1];
        if (i == 0 || entry->token != sampled->chosen.token) {
            weft_buffer_t text = {0};
            api_model_append_token(generation->model, entry->token, generation->tokens_as_ids,
                                   &text);
            weft_json_text(json, text.data != NULL ? text.data : "", text.length);
            weft_buffer_free(&text);
            weft_buffer_append(json->out, ":", 1);
            json->needs_comma = false;
            write_logprob(json, entry->logprob);
        }
    }
    weft_json_end_object(json);
}

static void write_offsets(generation_choice_t *choice, const token_rows_t *rows, weft_json_t *json)
{
    weft_json_key(json, "text_offset");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < rows->count; i++) {
        weft_json_u64(json, choice->text_offset);
        choice->text_offset += token_length(choice->generation, row_at(rows, i).id);
    }
    weft_json_end_array(json);
}

static void write_token_logprobs(const token_rows_t *rows, weft_json_t *json)
{
    weft_json_key(json, "token_logprobs");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < rows->count; i++) {
        token_row_t row = row_at(rows, i);
        if (row.sampled == NULL) {
            weft_json_null(json);
        } else {
            write_logprob(json, row.sampled->chosen.logprob);
        }
    }
    weft_json_end_array(json);
}

void logprobs_json_completion(generation_choice_t *choice, uint32_t from, uint32_t to,
                              bool with_prompt, weft_json_t *json)
{
    const generation_t *generation = choice->generation;
    engine_request_t *request = choice->prompt->request;
    token_rows_t rows = {
        .prompt = with_prompt ? choice->prompt : NULL,
        .prompt_logprobs = with_prompt ? engine_request_prompt_logprobs(request) : NULL,
        .answer = engine_request_answer(request, choice->sample),
        .from = from,
        .count = to - from + (with_prompt ? choice->prompt->n_ids : 0),
    };

    weft_json_begin_object(json);
    write_offsets(choice, &rows, json);
    write_token_logprobs(&rows, json);
    weft_json_key(json, "tokens");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < rows.count; i++) {
        write_token(generation, row_at(&rows, i).id, json);
    }
    weft_json_end_array(json);
    weft_json_key(json, "top_logprobs");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < rows.count; i++) {
        token_row_t row = row_at(&rows, i);
        if (row.sampled == NULL) {
            weft_json_null(json);
        } else {
            write_top_map(generation, row.sampled, json);
        }
    }
    weft_json_end_array(json);
    weft_json_end_object(json);
}

/* ---- chat ------------------------------------------------------------------------------------ */

static void write_entry(const generation_t *generation, const k_logprob_t *entry, weft_json_t *json)
{
    weft_buffer_t bytes = {0};

    weft_json_key(json, "token");
    write_token(generation, entry->token, json);
    weft_json_key(json, "logprob");
    write_logprob(json, entry->logprob);
    weft_json_key(json, "bytes");
    weft_json_begin_array(json);
    api_model_append_token(generation->model, entry->token, generation->tokens_as_ids, &bytes);
    for (size_t i = 0; i < bytes.length; i++) {
        weft_json_u64(json, (unsigned char)bytes.data[i]);
    }
    weft_buffer_free(&bytes);
    weft_json_end_array(json);
}

void logprobs_json_chat(const generation_choice_t *choice, uint32_t from, uint32_t to,
                        weft_json_t *json)
{
    const generation_t *generation = choice->generation;
    engine_answer_t answer = engine_request_answer(choice->prompt->request, choice->sample);

    weft_json_begin_object(json);
    weft_json_key(json, "content");
    weft_json_begin_array(json);
    for (uint32_t i = from; i < to && answer.logprobs != NULL; i++) {
        const k_sampled_t *sampled = &answer.logprobs[i];
        weft_json_begin_object(json);
        write_entry(generation, &sampled->chosen, json);
        weft_json_key(json, "top_logprobs");
        weft_json_begin_array(json);
        for (uint32_t k = 0; k < sampled->n_top; k++) {
            weft_json_begin_object(json);
            write_entry(generation, &sampled->top[k], json);
            weft_json_end_object(json);
        }
        weft_json_end_array(json);
        weft_json_end_object(json);
    }
    weft_json_end_array(json);
    weft_json_end_object(json);
}

/* ---- prompt ---------------------------------------------------------------------------------- */

static void write_ranked(const generation_t *generation, const k_logprob_t *entry,
                         weft_json_t *json)
{
    char id[16];

    snprintf(id, sizeof(id), "%d", (int)entry->token);
    weft_json_key(json, id);
    weft_json_begin_object(json);
    weft_json_key(json, "logprob");
    write_logprob(json, entry->logprob);
    weft_json_put_u64(json, "rank", entry->rank);
    weft_json_key(json, "decoded_token");
    write_token(generation, entry->token, json);
    weft_json_end_object(json);
}

void logprobs_json_prompt(const generation_prompt_t *prompt, weft_json_t *json)
{
    const generation_t *generation = prompt->generation;
    const k_sampled_t *logprobs = NULL;

    if (generation->sampling.wants_prompt_logprobs && prompt->request != NULL) {
        logprobs = engine_request_prompt_logprobs(prompt->request);
    }
    if (logprobs == NULL) {
        weft_json_null(json);
        return;
    }
    weft_json_begin_array(json);
    weft_json_null(json); /* nothing precedes the first */
    for (uint32_t i = 1; i < prompt->n_ids; i++) {
        const k_sampled_t *sampled = &logprobs[i];
        weft_json_begin_object(json);
        write_ranked(generation, &sampled->chosen, json);
        for (uint32_t k = 0; k < sampled->n_top; k++) {
            if (sampled->top[k].token != sampled->chosen.token) {
                write_ranked(generation, &sampled->top[k], json);
            }
        }
        weft_json_end_object(json);
    }
    weft_json_end_array(json);
}
