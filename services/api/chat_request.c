/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's half of POST /v1/chat/completions. */
#include "services/api/chat_request.h"

#include <string.h>

#include "services/api/chat_messages.h"
#include "services/api/json_text.h"

static const json_field_t rows[] = {
#define FIELD(...) JSON_FIELD_ROW(chat_fields_t, __VA_ARGS__)
#include "services/api/chat_fields.def"
#undef FIELD
};

typedef struct chat_request {
    request_common_t common;
    sampling_params_t params;
    chat_fields_t fields;
} chat_request_t;

chat_fields_t chat_fields_default(void)
{
    return (chat_fields_t){
        .max_completion_tokens = JSON_UNSET,
        .top_logprobs = JSON_UNSET,
        .parallel_tool_calls = true,
        .include_reasoning = true,
        .add_generation_prompt = true,
    };
}

void chat_fields_read(const json_t *json, chat_fields_t *fields, api_error_t *error)
{
    const json_t *messages = json_object_get(json, "messages");

    json_fields_read(json, rows, WEFT_ARRAY_LEN(rows), "", fields, error);
    if (messages == NULL || json_is_null(messages)) {
        api_error_violation(error, "messages", "Field required");
    } else if (fields->messages != NULL) {
        chat_messages_check(fields->messages, error);
    }
    chat_tools_check(fields->tools, fields->tool_choice, error);
}

/* ---- template -------------------------------------------------------------------------------- */

/* The template's variables; a new tree. */
static weft_status_t template_variables(api_call_t *call, const chat_fields_t *fields,
                                        json_t **variables_out)
{
    json_t *messages = NULL;
    const char *word = json_string_value(fields->tool_choice);
    bool hides_tools =
        call->model->excludes_tools_when_none && word != NULL && strcmp(word, "none") == 0;

    if (chat_messages_normalize(fields->messages, call->model, &messages, &call->error) !=
        WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    json_t *variables = json_pack("{s:o,s:b,s:b}", "messages", messages, "add_generation_prompt",
                                  (int)fields->add_generation_prompt, "continue_final_message",
                                  (int)fields->continue_final_message);
    int failed = variables == NULL;
    if (json_array_size(fields->tools) > 0 && !hides_tools) {
        failed |= json_object_set(variables, "tools", fields->tools);
    }
    if (fields->documents != NULL) {
        failed |= json_object_set(variables, "documents", fields->documents);
    }
    if (fields->reasoning_effort != NULL) {
        failed |= json_object_set_new(variables, "reasoning_effort",
                                      json_string(fields->reasoning_effort));
    }
    if (fields->chat_template_kwargs != NULL) {
        failed |= json_object_update(variables, fields->chat_template_kwargs);
    }
    if (call->model->template_kwargs != NULL) { /* copied: workers share them */
        failed |=
            json_object_update_missing_new(variables, json_deep_copy(call->model->template_kwargs));
    }
    if (failed != 0) {
        json_decref(variables);
        return api_error_no_memory(&call->error);
    }
    *variables_out = variables;
    return WEFT_OK;
}

static weft_status_t check_template(api_call_t *call, const chat_fields_t *fields)
{
    const api_model_t *model = call->model;

    if (fields->continue_final_message && fields->add_generation_prompt) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "continue_final_message",
                             "Cannot set both `continue_final_message` and "
                             "`add_generation_prompt` to True.");
    }
    if (fields->chat_template != NULL && !model->is_template_overridable) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "chat_template",
                             "Chat template is passed with request, but "
                             "--trust-request-chat-template is not set. Refused request with "
                             "untrusted chat template.");
    }
    if (fields->chat_template == NULL && model->chat_template == NULL) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, NULL,
                             "This model has no usable chat template%s%s; give one with "
                             "--chat-template.",
                             model->template_error != NULL ? ": " : "",
                             model->template_error != NULL ? model->template_error : "");
    }
    return WEFT_OK;
}

static weft_status_t render(api_call_t *call, const chat_fields_t *fields,
                            const weft_buffer_t *variables, text_bytes_t *text_out)
{
    const api_model_t *model = call->model;
    text_template_t *own = NULL;
    weft_diag_t diag = {0};
    weft_status_t status = WEFT_OK;

    if (fields->chat_template != NULL) {
        status = text_template_create(fields->chat_template, strlen(fields->chat_template),
                                      model->template_bos, model->template_eos, &diag, &own);
    }
    if (status == WEFT_OK) {
        status = text_template_render(own != NULL ? own : model->chat_template, variables->data,
                                      variables->length, &diag, text_out);
    }
    text_template_destroy(own);
    return status < 0 ? api_error_from(&call->error, status, &diag, "messages") : WEFT_OK;
}

weft_status_t chat_request_render(api_call_t *call, const chat_fields_t *fields,
                                  text_bytes_t *text_out)
{
    json_t *variables = NULL;
    weft_buffer_t text = {0};

    if (check_template(call, fields) != WEFT_OK ||
        template_variables(call, fields, &variables) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    json_text_append(variables, &text);
    json_decref(variables);
    weft_status_t status =
        text.is_failed ? api_error_no_memory(&call->error) : render(call, fields, &text, text_out);
    weft_buffer_free(&text);
    return status;
}

/* ---- plan ------------------------------------------------------------------------------------ */

static weft_status_t read_request(api_call_t *call, const json_t *json, chat_request_t *request)
{
    *request = (chat_request_t){
        .common = request_common_default(),
        .params = sampling_params_default(call->model),
        .fields = chat_fields_default(),
    };
    request->common.add_special_tokens = false;
    request_common_read(json, &request->common, &call->error);
    request->common.echo = false; /* a completion's field */
    sampling_params_read(json, "", &request->params, &call->error);
    structured_output_check_format(request->common.response_format, &call->error);
    chat_fields_read(json, &request->fields, &call->error);
    return api_error_status(&call->error);
}

static weft_status_t apply_logprobs(api_call_t *call, const chat_request_t *request,
                                    generation_t *generation)
{
    int64_t k = request->fields.top_logprobs;

    if (k != JSON_UNSET && k != 0 && !request->fields.logprobs) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "top_logprobs",
                             "when using `top_logprobs`, `logprobs` must be set to true.");
    }
    if (!request->fields.logprobs) {
        return WEFT_OK;
    }
    k = k == JSON_UNSET ? 0 : k;
    generation->wants_logprobs = true;
    generation->sampling.wants_logprobs = true;
    generation->sampling.n_top_logprobs = (uint32_t)k;
    return sampling_params_check_logprobs(k, "top_logprobs", call->model, &call->error);
}

static bool ends_with_open_thinking(const char *text, size_t length)
{
    static const char tag[] = "<think>";
    size_t tag_length = sizeof(tag) - 1;

    while (length > 0 && (text[length - 1] == '\n' || text[length - 1] == ' ')) {
        length--;
    }
    return length >= tag_length && memcmp(text + length - tag_length, tag, tag_length) == 0;
}

static weft_status_t add_rendered(api_call_t *call, const chat_request_t *request,
                                  generation_t *generation, text_bytes_t text)
{
    int64_t max_tokens = request->fields.max_completion_tokens != JSON_UNSET
                             ? request->fields.max_completion_tokens
                             : request->params.max_tokens;
    text_ids_t encoded = {0};

    generation->starts_in_reasoning = ends_with_open_thinking(text.data, text.length);
    if (request_common_encode(call, &request->common, text.data, text.length, &encoded) !=
        WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    const int32_t *ids = encoded.data;
    size_t n = encoded.length;
    weft_status_t status = request_common_truncate(call, &request->common, max_tokens, &ids, &n);
    if (status == WEFT_OK) {
        status = generation_add_prompt(generation, ids, (uint32_t)n, max_tokens,
                                       call->model->max_tokens, &call->error);
    }
    text_ids_free(encoded);
    if (status == WEFT_OK && request->fields.return_prompt_text) {
        generation->prompts[0].text = weft_arena_strndup(&call->arena, text.data, text.length);
        generation->prompts[0].text_length = text.length;
        generation->returns_prompt_text = generation->prompts[0].text != NULL;
    }
    return status;
}

static weft_status_t add_prompt(api_call_t *call, const chat_request_t *request,
                                generation_t *generation)
{
    text_bytes_t text = {0};

    generation->prompts = weft_arena_calloc(&call->arena, 1, sizeof(*generation->prompts));
    if (generation->prompts == NULL) {
        return api_error_no_memory(&call->error);
    }
    if (chat_request_render(call, &request->fields, &text) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    weft_status_t status = add_rendered(call, request, generation, text);
    text_bytes_free(text);
    return status;
}

/* Forced tools bring their own constraint; a response_format beside them is not asked. */
static weft_status_t constrain(api_call_t *call, const chat_request_t *request,
                               generation_t *generation)
{
    const chat_fields_t *fields = &request->fields;
    structured_output_t output;
    weft_status_t status;

    if (generation->tools.mode == CHAT_TOOLS_NAMED ||
        generation->tools.mode == CHAT_TOOLS_REQUIRED) {
        status =
            chat_tools_constrain(&generation->tools, fields->tools, fields->parallel_tool_calls,
                                 &call->arena, &output, &call->error);
    } else {
        status = structured_output_read(request->common.response_format,
                                        request->params.structured_outputs, &call->arena, &output,
                                        &call->error);
    }
    return status == WEFT_OK ? request_common_constrain(call, &output, generation) : status;
}

static weft_status_t plan(api_call_t *call, const json_t *json)
{
    chat_request_t request;
    generation_t *generation = api_call_new_generation(call, &chat_format);

    if (generation == NULL || read_request(call, json, &request) != WEFT_OK ||
        request_common_apply(call, &request.common, &request.params, generation) != WEFT_OK ||
        chat_tools_read(request.fields.tools, request.fields.tool_choice, &call->arena,
                        &generation->tools, &call->error) != WEFT_OK ||
        apply_logprobs(call, &request, generation) != WEFT_OK ||
        add_prompt(call, &request, generation) != WEFT_OK ||
        constrain(call, &request, generation) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    generation->tool_parser = call->model->tool_parser;
    generation->includes_reasoning = request.fields.include_reasoning;
    /* A constrained answer has its shape from the first token on: no thinking comes before it. */
    generation->reasoning_parser =
        generation->grammar == NULL ? call->model->reasoning_parser : NULL;
    return generation_make_choices(generation, &call->error);
}

void chat_prepare(api_call_t *call)
{
    json_t *json = NULL;

    if (request_common_parse_body(call, &json) == WEFT_OK) {
        plan(call, json);
    }
    json_decref(json);
}
