/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's half of POST /v1/completions: prompts of text or ids, a list of either. */
#include "services/api/request_common.h"

#include <stdio.h>
#include <string.h>

#define DEFAULT_MAX_TOKENS 16
#define MAX_PROMPTS        2048
#define MAX_CHOICES        16384

typedef struct completion_fields {
#define FIELD JSON_FIELD_MEMBER
#include "services/api/completion_fields.def"
#undef FIELD
} completion_fields_t;

static const json_field_t rows[] = {
#define FIELD(...) JSON_FIELD_ROW(completion_fields_t, __VA_ARGS__)
#include "services/api/completion_fields.def"
#undef FIELD
};

typedef struct completion_request {
    request_common_t common;
    sampling_params_t params;
    completion_fields_t fields;
} completion_request_t;

/* A text, token ids, or a list of either. */
static void check_prompt(const json_t *prompt, api_error_t *error)
{
    const json_t *first = json_array_get(prompt, 0);
    bool is_list = json_is_string(first) || json_is_array(first);
    char path[32];

    if (prompt != NULL && !json_is_string(prompt) && !json_is_array(prompt)) {
        api_error_violation(error, "prompt",
                            "Input should be a string, a list of strings or token ids");
    }
    if (!is_list) {
        json_fields_check_items(prompt, JSON_FIELD_I64, "prompt", error);
        return;
    }
    for (size_t i = 0; i < json_array_size(prompt); i++) {
        const json_t *item = json_array_get(prompt, i);
        snprintf(path, sizeof(path), "prompt.%zu", i);
        if (!json_is_string(item) && !json_is_array(item)) {
            api_error_violation(error, path, "Input should be a string or a list of token ids");
        }
        json_fields_check_items(item, JSON_FIELD_I64, path, error);
    }
}

static weft_status_t read_request(api_call_t *call, const json_t *json,
                                  completion_request_t *request)
{
    *request = (completion_request_t){
        .common = request_common_default(),
        .params = sampling_params_default(call->model),
        .fields = {.logprobs = JSON_UNSET},
    };
    request_common_read(json, &request->common, &call->error);
    sampling_params_read(json, "", &request->params, &call->error);
    structured_output_check_format(request->common.response_format, &call->error);
    json_fields_read(json, rows, WEFT_ARRAY_LEN(rows), "", &request->fields, &call->error);
    check_prompt(request->fields.prompt, &call->error);
    return api_error_status(&call->error);
}

static weft_status_t check_fields(api_call_t *call, const completion_request_t *request)
{
    if (request->fields.suffix != NULL && request->fields.suffix[0] != '\0') {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "suffix",
                             "suffix is not currently supported");
    }
    if (request->fields.prompt_embeds != NULL) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "prompt_embeds",
                             "You must set `--enable-prompt-embeds` to input `prompt_embeds`.");
    }
    if (request->fields.prompt == NULL) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "prompt",
                             "Either prompt or prompt_embeds must be provided and non-empty.");
    }
    return WEFT_OK;
}

static weft_status_t add_ids(api_call_t *call, const completion_request_t *request,
                             generation_t *generation, const int32_t *ids, size_t n)
{
    int64_t max_tokens = request->params.max_tokens;

    if (request_common_truncate(call, &request->common, max_tokens, &ids, &n) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    return generation_add_prompt(generation, ids, (uint32_t)n, max_tokens, DEFAULT_MAX_TOKENS,
                                 &call->error);
}

static weft_status_t add_text(api_call_t *call, const completion_request_t *request,
                              generation_t *generation, const json_t *text)
{
    text_ids_t ids = {0};

    if (request_common_encode(call, &request->common, json_string_value(text),
                              json_string_length(text), &ids) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    weft_status_t status = add_ids(call, request, generation, ids.data, ids.length);
    text_ids_free(ids);
    if (status == WEFT_OK && request->common.echo) {
        generation_prompt_t *prompt = &generation->prompts[generation->n_prompts - 1];
        prompt->text =
            weft_arena_strndup(&call->arena, json_string_value(text), json_string_length(text));
        prompt->text_length = prompt->text != NULL ? json_string_length(text) : 0;
    }
    return status;
}

static weft_status_t add_prompt(api_call_t *call, const completion_request_t *request,
                                generation_t *generation, const json_t *prompt)
{
    int32_t *ids = NULL;
    uint32_t n = 0;

    if (json_is_string(prompt)) {
        return add_text(call, request, generation, prompt);
    }
    if (json_array_size(prompt) > call->model->max_context &&
        request->common.truncate_prompt_tokens == JSON_UNSET) {
        return generation_add_prompt(generation, NULL, (uint32_t)json_array_size(prompt),
                                     request->params.max_tokens, DEFAULT_MAX_TOKENS, &call->error);
    }
    if (sampling_params_read_ids(prompt, "prompt", call->model, &call->arena, &ids, &n,
                                 &call->error) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    return add_ids(call, request, generation, ids, n);
}

static weft_status_t add_prompts(api_call_t *call, const completion_request_t *request,
                                 generation_t *generation)
{
    const json_t *prompt = request->fields.prompt;
    const json_t *first = json_array_get(prompt, 0);
    bool is_list = json_is_string(first) || json_is_array(first);
    size_t count = is_list ? json_array_size(prompt) : 1;

    if (count > MAX_PROMPTS || count * (size_t)request->params.n > MAX_CHOICES) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "prompt",
                             "At most %d prompts and %d choices in one request.", MAX_PROMPTS,
                             MAX_CHOICES);
    }
    generation->prompts = weft_arena_calloc(&call->arena, count, sizeof(*generation->prompts));
    if (generation->prompts == NULL) {
        return api_error_no_memory(&call->error);
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *item = is_list ? json_array_get(prompt, i) : prompt;
        if (add_prompt(call, request, generation, item) != WEFT_OK) {
            return WEFT_ERR_INVALID;
        }
    }
    return WEFT_OK;
}

static weft_status_t apply_logprobs(api_call_t *call, const completion_request_t *request,
                                    generation_t *generation)
{
    int64_t k = request->fields.logprobs;
    engine_sampling_t *sampling = &generation->sampling;

    if (k == JSON_UNSET) {
        return WEFT_OK;
    }
    if (sampling_params_check_logprobs(k, "logprobs", call->model, &call->error) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    generation->wants_logprobs = true;
    sampling->wants_logprobs = true;
    sampling->n_top_logprobs = (uint32_t)k;
    if (request->common.echo && !sampling->wants_prompt_logprobs) {
        sampling->wants_prompt_logprobs = true;
        sampling->n_prompt_top_logprobs = (uint32_t)k;
    }
    return WEFT_OK;
}

static weft_status_t plan(api_call_t *call, const json_t *json)
{
    completion_request_t request;
    structured_output_t constraint;
    generation_t *generation = api_call_new_generation(call, &completion_format);

    if (generation == NULL || read_request(call, json, &request) != WEFT_OK ||
        request_common_apply(call, &request.common, &request.params, generation) != WEFT_OK ||
        check_fields(call, &request) != WEFT_OK ||
        apply_logprobs(call, &request, generation) != WEFT_OK ||
        add_prompts(call, &request, generation) != WEFT_OK ||
        structured_output_read(request.common.response_format, request.params.structured_outputs,
                               &call->arena, &constraint, &call->error) != WEFT_OK ||
        request_common_constrain(call, &constraint, generation) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    return generation_make_choices(generation, &call->error);
}

void completion_prepare(api_call_t *call)
{
    json_t *json = NULL;

    if (request_common_parse_body(call, &json) == WEFT_OK) {
        plan(call, json);
    }
    json_decref(json);
}
