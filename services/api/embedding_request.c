/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's half of POST /v1/embeddings. */
#include <inttypes.h>
#include <string.h>

#include "services/api/prompt_list.h"

typedef struct embedding_fields {
#define FIELD JSON_FIELD_MEMBER
#include "services/api/embedding_fields.def"
#undef FIELD
} embedding_fields_t;

static const json_field_t rows[] = {
#define FIELD(...) JSON_FIELD_ROW(embedding_fields_t, __VA_ARGS__)
#include "services/api/embedding_fields.def"
#undef FIELD
};

/* A field that only one value of is served. */
static weft_status_t check_only(api_call_t *call, const char *field, const char *value,
                                const char *only)
{
    return value == NULL || strcmp(value, only) == 0
               ? WEFT_OK
               : api_error_set(&call->error, API_ERROR_BAD_REQUEST, field,
                               "%s \"%s\" is not supported: only \"%s\".", field, value, only);
}

static weft_status_t read_shape(api_call_t *call, const embedding_fields_t *fields,
                                generation_t *generation)
{
    const char *format = fields->encoding_format;

    generation->is_base64 = format != NULL && strcmp(format, "base64") == 0;
    if (format != NULL && !generation->is_base64 && strcmp(format, "float") != 0) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "encoding_format",
                             "encoding_format \"%s\" is not supported: \"float\" or \"base64\".",
                             format);
    }
    if (fields->dimensions != JSON_UNSET && fields->dimensions > call->model->hidden) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "dimensions",
                             "dimensions %" PRId64 " is more than the %u that the model has.",
                             fields->dimensions, call->model->hidden);
    }
    generation->dimensions =
        fields->dimensions != JSON_UNSET ? (uint32_t)fields->dimensions : call->model->hidden;
    generation->normalizes = fields->use_activation && fields->normalize;
    return WEFT_OK;
}

static weft_status_t check_fields(api_call_t *call, const embedding_fields_t *fields,
                                  const request_common_t *common)
{
    if (fields->messages != NULL) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "messages",
                             "messages are not supported: give the text as input.");
    }
    if (common->stream) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "stream",
                             "Embeddings are not streamed.");
    }
    if (fields->input == NULL) {
        api_error_violation(&call->error, "input", "Field required");
        return WEFT_ERR_INVALID;
    }
    return check_only(call, "embed_dtype", fields->embed_dtype, "float32") == WEFT_OK &&
                   check_only(call, "endianness", fields->endianness, "native") == WEFT_OK
               ? WEFT_OK
               : WEFT_ERR_INVALID;
}

static weft_status_t plan(api_call_t *call, const json_t *json)
{
    embedding_fields_t fields = {
        .dimensions = JSON_UNSET, .use_activation = true, .normalize = true};
    request_common_t common = request_common_default();
    const sampling_params_t params = sampling_params_default(call->model);
    generation_t *generation = api_call_new_generation(call, &embedding_format);

    if (generation == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    request_common_read(json, &common, &call->error);
    json_fields_read(json, rows, WEFT_ARRAY_LEN(rows), "", &fields, &call->error);
    prompt_list_check(fields.input, "input", &call->error);
    if (api_error_status(&call->error) != WEFT_OK ||
        check_fields(call, &fields, &common) != WEFT_OK ||
        request_common_apply(call, &common, &params, generation) != WEFT_OK ||
        read_shape(call, &fields, generation) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    generation->embeds = true;
    generation->detokenizes = false;
    const prompt_list_t list = {
        .field = "input", .value = fields.input, .max_tokens = 0, .default_max_tokens = 0};
    return prompt_list_add(call, &common, &list, generation) == WEFT_OK
               ? generation_make_choices(generation, &call->error)
               : WEFT_ERR_INVALID;
}

void embedding_prepare(api_call_t *call)
{
    json_t *json = NULL;

    if (request_common_parse_body(call, &json) == WEFT_OK) {
        plan(call, json);
    }
    json_decref(json);
}
