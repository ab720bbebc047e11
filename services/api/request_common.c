/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/request_common.h"

#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/utf8.h"
#include "services/api/api_id.h"
#include "services/api/api_transfer.h"

#define MAX_SALT_CHARACTERS 1024

static const json_field_t rows[] = {
#define FIELD(...) JSON_FIELD_ROW(request_common_t, __VA_ARGS__)
#include "services/api/request_fields.def"
#undef FIELD
};

static const json_field_t stream_rows[] = {
    {"include_usage", JSON_FIELD_BOOL, offsetof(request_common_t, include_usage), 0, 0, ""},
    {"continuous_usage_stats", JSON_FIELD_BOOL, offsetof(request_common_t, continuous_usage_stats),
     0, 0, ""},
};

request_common_t request_common_default(void)
{
    return (request_common_t){.truncate_prompt_tokens = JSON_UNSET, .add_special_tokens = true};
}

void request_common_read(const json_t *object, request_common_t *common, api_error_t *error)
{
    json_fields_read(object, rows, WEFT_ARRAY_LEN(rows), "", common, error);
    json_fields_read(common->stream_options, stream_rows, WEFT_ARRAY_LEN(stream_rows),
                     "stream_options", common, error);
    if (common->request_id != NULL && !api_id_is_usable(common->request_id)) {
        api_error_violation(error, "request_id",
                            "Input should have at most 256 bytes and no control characters");
    }
}

weft_status_t request_common_parse_body(api_call_t *call, json_t **json_out)
{
    weft_status_t status = json_fields_parse(call->body, call->body_length, json_out, &call->error);

    weft_free(call->body);
    call->body = NULL;
    if (status == WEFT_OK) {
        api_transfer_read(call, *json_out);
    }
    return status;
}

static weft_status_t apply_stream(api_call_t *call, const request_common_t *common,
                                  generation_t *generation)
{
    bool is_forced = call->options->enable_force_include_usage;

    if (common->stream_options != NULL && !common->stream) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "stream_options",
                             "Stream options can only be defined when `stream=True`.");
    }
    generation->is_stream = common->stream;
    generation->includes_usage = is_forced || common->include_usage;
    generation->has_continuous_usage =
        is_forced || (common->include_usage && common->continuous_usage_stats);
    return WEFT_OK;
}

static weft_status_t apply_priority(api_call_t *call, const request_common_t *common,
                                    generation_t *generation)
{
    int64_t priority =
        call->priority_header != JSON_UNSET ? call->priority_header : common->priority;

    if (priority != 0 && !call->model->has_priorities) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "priority",
                             "Got priority %" PRId64 " but priority scheduling is not enabled "
                             "(--scheduling-policy priority).",
                             priority);
    }
    generation->priority = priority;
    return WEFT_OK;
}

static weft_status_t apply_ids(api_call_t *call, const request_common_t *common,
                               generation_t *generation)
{
    const char *salt = common->cache_salt;

    if (salt != NULL &&
        (salt[0] == '\0' || weft_utf8_count(salt, strlen(salt)) > MAX_SALT_CHARACTERS)) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "cache_salt",
                             "Parameter 'cache_salt' must be a non-empty string of at most %d "
                             "characters if provided.",
                             MAX_SALT_CHARACTERS);
    }
    if (!call->has_request_id_header && common->request_id != NULL &&
        common->request_id[0] != '\0') {
        call->request_id = weft_arena_strdup(&call->arena, common->request_id);
    }
    generation->cache_salt = salt != NULL ? weft_arena_strdup(&call->arena, salt) : NULL;
    generation->request_id = call->request_id;
    generation->id = call->request_id == NULL
                         ? NULL
                         : weft_arena_printf(&call->arena, "%s%s", generation->format->id_prefix,
                                             call->request_id);
    if (generation->id == NULL || (salt != NULL && generation->cache_salt == NULL)) {
        return api_error_no_memory(&call->error);
    }
    return WEFT_OK;
}

static weft_status_t apply_prompt_logprobs(api_call_t *call, const request_common_t *common,
                                           const sampling_params_t *params)
{
    if (common->stream && params->prompt_logprobs != JSON_UNSET && params->prompt_logprobs != 0) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "prompt_logprobs",
                             "`prompt_logprobs` are not available when `stream=True`.");
    }
    return WEFT_OK;
}

weft_status_t request_common_apply(api_call_t *call, const request_common_t *common,
                                   const sampling_params_t *params, generation_t *generation)
{
    generation->model = call->model;
    generation->created = weft_wallclock_ns() / WEFT_NS_PER_SECOND;
    generation->n = (uint32_t)params->n;
    generation->echoes = common->echo;
    generation->detokenizes = true;
    generation->skips_special = params->skip_special_tokens;
    generation->includes_stop = params->include_stop_str_in_output;
    generation->returns_token_ids = common->return_token_ids;
    generation->pins_prompt = common->pin_prompt;
    generation->tokens_as_ids =
        common->return_tokens_as_token_ids || call->options->return_tokens_as_token_ids;
    generation->details_usage = call->options->enable_prompt_tokens_details;
    if (api_model_find(call->model, common->model, &call->error, &generation->adapter) != WEFT_OK ||
        apply_stream(call, common, generation) != WEFT_OK ||
        apply_priority(call, common, generation) != WEFT_OK ||
        apply_ids(call, common, generation) != WEFT_OK ||
        apply_prompt_logprobs(call, common, params) != WEFT_OK) {
        return WEFT_ERR_INVALID;
    }
    return sampling_params_resolve(params, call->model, &call->arena, &generation->sampling,
                                   &generation->stops, &call->error);
}

weft_status_t request_common_constrain(api_call_t *call, const structured_output_t *output,
                                       generation_t *generation)
{
    generation->grammar_field = output->field;
    return structured_output_compile(output, call->model, &generation->grammar, &call->error);
}

weft_status_t request_common_truncate(api_call_t *call, const request_common_t *common,
                                      int64_t max_tokens, const int32_t **ids, size_t *n)
{
    int64_t keep = common->truncate_prompt_tokens;
    int64_t room = (int64_t)call->model->max_context - (max_tokens > 1 ? max_tokens : 1);

    if (keep == JSON_UNSET) {
        return WEFT_OK;
    }
    if (keep > call->model->max_context) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "truncate_prompt_tokens",
                             "truncate_prompt_tokens value (%" PRId64
                             ") is greater than max_model_len (%u). Please request a smaller "
                             "truncation size.",
                             keep, call->model->max_context);
    }
    keep = keep < 0 ? (room > 1 ? room : 1) : keep;
    if (*n > (size_t)keep) {
        bool drops_right =
            common->truncation_side != NULL && strcmp(common->truncation_side, "right") == 0;
        *ids += drops_right ? 0 : *n - (size_t)keep;
        *n = (size_t)keep;
    }
    return WEFT_OK;
}

weft_status_t request_common_encode(api_call_t *call, const request_common_t *common,
                                    const char *text, size_t length, text_ids_t *ids_out)
{
    const api_model_t *model = call->model;
    size_t n_at_least = length / text_tokenizer_extent(model->tokenizer);
    weft_diag_t diag = {0};

    /* Told without the work, which would slow others. */
    if (common->truncate_prompt_tokens == JSON_UNSET && n_at_least > model->max_context) {
        return api_error_set(&call->error, API_ERROR_BAD_REQUEST, "input_tokens",
                             "This model's maximum context length is %u tokens. However, your "
                             "request has at least %zu input tokens. Please reduce the length of "
                             "the input.",
                             model->max_context, n_at_least);
    }
    weft_status_t status = text_tokenizer_encode(model->tokenizer, text, length,
                                                 common->add_special_tokens, true, &diag, ids_out);
    return status < 0 ? api_error_from(&call->error, status, &diag, "prompt") : WEFT_OK;
}
