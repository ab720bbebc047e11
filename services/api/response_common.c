/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/response_common.h"

void response_common_head(const generation_t *generation, const char *object, weft_json_t *json)
{
    weft_json_put_string(json, "id", generation->id);
    weft_json_put_string(json, "object", object);
    weft_json_put_u64(json, "created", generation->created);
    weft_json_put_string(json, "model", generation_model_name(generation));
}

void response_common_usage(const generation_t *generation, weft_json_t *json)
{
    generation_usage_t usage = generation_usage(generation);

    weft_json_key(json, "usage");
    weft_json_begin_object(json);
    weft_json_put_u64(json, "prompt_tokens", usage.prompt_tokens);
    weft_json_put_u64(json, "completion_tokens", usage.completion_tokens);
    weft_json_put_u64(json, "total_tokens",
                      (uint64_t)usage.prompt_tokens + usage.completion_tokens);
    weft_json_key(json, "prompt_tokens_details");
    if (generation->details_usage) {
        weft_json_begin_object(json);
        weft_json_put_u64(json, "cached_tokens", usage.cached_tokens);
        weft_json_key(json, "created_cache_tokens");
        weft_json_null(json);
        weft_json_key(json, "multimodal_tokens");
        weft_json_null(json);
        weft_json_end_object(json);
    } else {
        weft_json_null(json);
    }
    weft_json_key(json, "completion_tokens_details");
    if (generation->reasoning_parser != NULL) {
        weft_json_begin_object(json);
        weft_json_put_u64(json, "reasoning_tokens", usage.reasoning_tokens);
        weft_json_end_object(json);
    } else {
        weft_json_null(json);
    }
    weft_json_end_object(json);
}

void response_common_chunk_usage(const generation_t *generation, weft_json_t *json)
{
    if (generation->has_continuous_usage) {
        response_common_usage(generation, json);
    }
}

void response_common_stop_reason(const generation_choice_t *choice, weft_json_t *json)
{
    weft_json_key(json, "stop_reason");
    if (choice->stop_string >= 0) {
        weft_json_string(json, choice->generation->stops.texts[choice->stop_string]);
    } else if (choice->stop_token >= 0) {
        weft_json_i64(json, choice->stop_token);
    } else {
        weft_json_null(json);
    }
}

void response_common_ids(const int32_t *ids, uint32_t n, weft_json_t *json)
{
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < n; i++) {
        weft_json_i64(json, ids[i]);
    }
    weft_json_end_array(json);
}

void response_common_answer_ids(const generation_choice_t *choice, uint32_t from, uint32_t to,
                                weft_json_t *json)
{
    engine_answer_t answer = engine_request_answer(choice->prompt->request, choice->sample);

    response_common_ids(answer.tokens + from, to - from, json);
}
