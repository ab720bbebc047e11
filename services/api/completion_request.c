/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's half of POST /v1/completions: prompts of text or ids, a list of either. */
#include "services/api/prompt_list.h"

#define DEFAULT_MAX_TOKENS 16

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
    prompt_list_check(request->fields.prompt, "prompt", &call->error);
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

static weft_status_t add_prompts(api_call_t *call, const completion_request_t *request,
                                 generation_t *generation)
{
    const prompt_list_t list = {
        .field = "prompt",
        .value = request->fields.prompt,
        .max_tokens = request->params.max_tokens,
        .default_max_tokens = DEFAULT_MAX_TOKENS,
        .keeps_text = request->common.echo,
    };
    return prompt_list_add(call, &request->common, &list, generation);
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
