/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's half of POST /tokenize and /detokenize, which is all there is. */
#include <string.h>

#include "services/api/chat_request.h"
#include "services/api/response_common.h"

typedef struct tokenize_fields {
    const char *model;
    json_t *prompt;
    bool add_special_tokens;
    bool return_token_strs;
} tokenize_fields_t;

static const json_field_t rows[] = {
    {"model", JSON_FIELD_STR, offsetof(tokenize_fields_t, model), 0, 0, ""},
    {"prompt", JSON_FIELD_ANY, offsetof(tokenize_fields_t, prompt), 0, 0, ""},
    {"add_special_tokens", JSON_FIELD_BOOL, offsetof(tokenize_fields_t, add_special_tokens), 0, 0,
     ""},
    {"return_token_strs", JSON_FIELD_BOOL, offsetof(tokenize_fields_t, return_token_strs), 0, 0,
     ""},
};

static void write_strings(const api_call_t *call, text_ids_t ids, weft_json_t *json)
{
    weft_json_begin_array(json);
    for (size_t i = 0; i < ids.length; i++) {
        text_bytes_t text = {0};
        text_tokenizer_token_string(call->model->tokenizer, ids.data[i], &text);
        weft_json_text(json, text.data != NULL ? text.data : "", text.length);
        text_bytes_free(text);
    }
    weft_json_end_array(json);
}

static void write_tokens(api_call_t *call, text_ids_t ids, bool with_strings)
{
    weft_json_t json;

    weft_json_init(&json, &call->answer);
    weft_json_begin_object(&json);
    weft_json_put_u64(&json, "count", ids.length);
    weft_json_put_u64(&json, "max_model_len", call->model->max_context);
    weft_json_key(&json, "tokens");
    response_common_ids(ids.data, (uint32_t)ids.length, &json);
    weft_json_key(&json, "token_strs");
    if (with_strings) {
        write_strings(call, ids, &json);
    } else {
        weft_json_null(&json);
    }
    weft_json_end_object(&json);
}

/* Of any length: who counts tokens may learn that they are too many. */
static void tokenize_text(api_call_t *call, const tokenize_fields_t *fields, const char *text,
                          size_t length)
{
    text_ids_t ids = {0};
    weft_diag_t diag = {0};
    weft_status_t status = text_tokenizer_encode(call->model->tokenizer, text, length,
                                                 fields->add_special_tokens, true, &diag, &ids);

    if (status < 0) {
        api_error_from(&call->error, status, &diag, "prompt");
        return;
    }
    write_tokens(call, ids, fields->return_token_strs);
    text_ids_free(ids);
}

static void tokenize_chat(api_call_t *call, const chat_fields_t *chat,
                          const tokenize_fields_t *fields)
{
    text_bytes_t text = {0};

    if (chat_request_render(call, chat, &text) == WEFT_OK) {
        tokenize_text(call, fields, text.data, text.length);
        text_bytes_free(text);
    }
}

static void tokenize(api_call_t *call, const json_t *json)
{
    tokenize_fields_t fields = {.add_special_tokens = json_object_get(json, "messages") == NULL};
    chat_fields_t chat = chat_fields_default();

    json_fields_read(json, rows, WEFT_ARRAY_LEN(rows), "", &fields, &call->error);
    bool is_chat = fields.prompt == NULL && json_object_get(json, "messages") != NULL;
    if (is_chat) {
        chat_fields_read(json, &chat, &call->error);
    } else if (!json_is_string(fields.prompt)) {
        api_error_violation(&call->error, "prompt", "Input should be a valid string");
    }
    if (api_error_status(&call->error) != WEFT_OK ||
        api_model_check_name(call->model, fields.model, &call->error) != WEFT_OK) {
        return;
    }
    if (is_chat) {
        tokenize_chat(call, &chat, &fields);
    } else {
        tokenize_text(call, &fields, json_string_value(fields.prompt),
                      json_string_length(fields.prompt));
    }
}

void tokenize_prepare(api_call_t *call)
{
    json_t *json = NULL;

    if (request_common_parse_body(call, &json) == WEFT_OK) {
        tokenize(call, json);
    }
    json_decref(json);
}

typedef struct detokenize_fields {
    const char *model;
    json_t *tokens;
} detokenize_fields_t;

static weft_status_t read_detokenize(const json_t *json, detokenize_fields_t *fields,
                                     api_error_t *error)
{
    static const json_field_t detokenize_rows[] = {
        {"model", JSON_FIELD_STR, offsetof(detokenize_fields_t, model), 0, 0, ""},
        {"tokens", JSON_FIELD_ARRAY, offsetof(detokenize_fields_t, tokens), 0, 0, ""},
    };
    const json_t *tokens = json_object_get(json, "tokens");

    json_fields_read(json, detokenize_rows, WEFT_ARRAY_LEN(detokenize_rows), "", fields, error);
    if (tokens == NULL || json_is_null(tokens)) {
        api_error_violation(error, "tokens", "Field required");
    }
    json_fields_check_items(fields->tokens, JSON_FIELD_I64, "tokens", error);
    return api_error_status(error);
}

static void detokenize(api_call_t *call, const json_t *json)
{
    detokenize_fields_t fields = {0};
    int32_t *ids = NULL;
    uint32_t n = 0;
    text_bytes_t text = {0};
    weft_diag_t diag = {0};
    weft_json_t out;

    if (read_detokenize(json, &fields, &call->error) != WEFT_OK ||
        api_model_check_name(call->model, fields.model, &call->error) != WEFT_OK ||
        sampling_params_read_ids(fields.tokens, "tokens", call->model, &call->arena, &ids, &n,
                                 &call->error) != WEFT_OK) {
        return;
    }
    weft_status_t status =
        text_tokenizer_decode(call->model->tokenizer, ids, n, false, &diag, &text);
    if (status < 0) {
        api_error_from(&call->error, status, &diag, "tokens");
        return;
    }
    weft_json_init(&out, &call->answer);
    weft_json_begin_object(&out);
    weft_json_key(&out, "prompt");
    weft_json_text(&out, text.data != NULL ? text.data : "", text.length);
    weft_json_end_object(&out);
    text_bytes_free(text);
}

void detokenize_prepare(api_call_t *call)
{
    json_t *json = NULL;

    if (request_common_parse_body(call, &json) == WEFT_OK) {
        detokenize(call, json);
    }
    json_decref(json);
}
