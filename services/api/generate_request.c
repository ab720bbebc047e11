/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's half of POST /inference/v1/generate: token ids in, token ids out. */
#include "services/api/request_common.h"

#include <string.h>

typedef struct generate_fields {
#define FIELD JSON_FIELD_MEMBER
#include "services/api/generate_fields.def"
#undef FIELD
} generate_fields_t;

static const json_field_t rows[] = {
#define FIELD(...) JSON_FIELD_ROW(generate_fields_t, __VA_ARGS__)
#include "services/api/generate_fields.def"
#undef FIELD
};

typedef struct generate_request {
    request_common_t common;
    sampling_params_t params;
    generate_fields_t fields;
    int64_t logprobs;
} generate_request_t;

static void check_ids(const json_t *json, const generate_fields_t *fields, api_error_t *error)
{
    bool is_list = fields->token_ids != NULL || json_object_get(json, "token_ids") == NULL;

    if (is_list && json_array_size(fields->token_ids) == 0) {
        api_error_violation(error, "token_ids", "List should have at least 1 item");
    }
    json_fields_check_items(fields->token_ids, JSON_FIELD_I64, "token_ids", error);
}

static void check_mode(const char *mode, api_error_t *error)
{
    if (mode != NULL && strcmp(mode, "tokens") != 0 && strcmp(mode, "text") != 0) {
        api_error_violation(error, "output_mode", "Input should be 'tokens' or 'text'");
    }
}

static weft_status_t read_request(api_call_t *call, const json_t *json, generate_request_t *request)
{
    static const json_field_t logprobs[] = {
        {"logprobs", JSON_FIELD_I64, 0, -1, INT32_MAX, "must be a non-negative value or -1"}};
    const generate_fields_t *fields = &request->fields;

    *request = (generate_request_t){.common = request_common_default(),
                                    .params = sampling_params_default(call->model),
                                    .logprobs = JSON_UNSET};
    request_common_read(json, &request->common, &call->error);
    json_fields_read(json, rows, WEFT_ARRAY_LEN(rows), "", &request->fields, &call->error);
    check_ids(json, fields, &call->error);
    check_mode(fields->output_mode, &call->error);
    json_fields_read(fields->sampling_params, logprobs, 1, "sampling_params", &request->logprobs,
                     &call->error);
    sampling_params_read(fields->sampling_params, "sampling_params", &request->params,
                         &call->error);
    return api_error_status(&call->error);
}

static weft_status_t apply_output(api_call_t *call, const generate_request_t *request,
                                  generation_t *generation)
{
    const char *mode = request->fields.output_mode;

    /* Stop strings are found in text, whoever reads it. */
    generation->detokenizes =
        (mode != NULL && strcmp(mode, "text") == 0) || generation->stops.count > 0;
    generation->returns_token_ids = true;
    if (request->logprobs == JSON_UNSET) {
        return WEFT_OK;
    }
    generation->wants_logprobs = true;
    generation->sampling.wants_logprobs = true;
    generation->sampling.n_top_logprobs = (uint32_t)request->logprobs;
    return sampling_params_check_logprobs(request->logprobs, "logprobs", call->model, &call->error);
}

static weft_status_t add_prompt(api_call_t *call, const generate_request_t *request,
                                generation_t *generation)
{
    int32_t *ids = NULL;
    uint32_t n = 0;

    generation->prompts = weft_arena_calloc(&call->arena, 1, sizeof(*generation->prompts));
    if (generation->prompts == NULL) {
        return api_error_no_memory(&call->error);
    }
    if (sampling_params_read_ids(request->fields.token_ids, "token_ids", call->model, &call->arena,
                                 &ids, &n, &call->error) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    return generation_add_prompt(generation, ids, n, request->params.max_tokens,
                                 call->model->max_tokens, &call->error);
}

static weft_status_t plan(api_call_t *call, const json_t *json)
{
    generate_request_t request;
    structured_output_t constraint;
    generation_t *generation = api_call_new_generation(call, &generate_format);

    if (generation == NULL || read_request(call, json, &request) != WEFT_OK ||
        request_common_apply(call, &request.common, &request.params, generation) != WEFT_OK ||
        apply_output(call, &request, generation) != WEFT_OK ||
        add_prompt(call, &request, generation) != WEFT_OK ||
        structured_output_read(NULL, request.params.structured_outputs, &call->arena, &constraint,
                               &call->error) != WEFT_OK ||
        request_common_constrain(call, &constraint, generation) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    return generation_make_choices(generation, &call->error);
}

void generate_prepare(api_call_t *call)
{
    json_t *json = NULL;

    if (request_common_parse_body(call, &json) == WEFT_OK) {
        plan(call, json);
    }
    json_decref(json);
}
