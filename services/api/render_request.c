/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The render endpoints: what a request would send to the engine, as requests to
 * /inference/v1/generate. Routers ask for it to see the prompt's token ids. Left out is what is
 * compiled from text on the way: bad_words, response_format and structured_outputs.
 */
#include <stdio.h>

#include "services/api/request_common.h"
#include "services/api/response_common.h"

static void write_bias(const engine_sampling_t *sampling, weft_json_t *json)
{
    char token[16];

    weft_json_begin_object(json);
    for (uint32_t i = 0; i < sampling->n_logit_bias; i++) {
        snprintf(token, sizeof(token), "%d", sampling->logit_bias[i].token);
        weft_json_key(json, token);
        weft_json_f32(json, sampling->logit_bias[i].value);
    }
    weft_json_end_object(json);
}

/* What a request may leave unsaid. */
static void write_extras(const engine_sampling_t *sampling, weft_json_t *json)
{
    if (sampling->seed != ENGINE_NO_SEED) {
        weft_json_put_i64(json, "seed", (int64_t)sampling->seed);
    }
    if (sampling->wants_logprobs) {
        weft_json_put_u64(json, "logprobs", sampling->n_top_logprobs);
    }
    if (sampling->wants_prompt_logprobs) {
        weft_json_put_u64(json, "prompt_logprobs", sampling->n_prompt_top_logprobs);
    }
    if (sampling->n_logit_bias > 0) {
        weft_json_key(json, "logit_bias");
        write_bias(sampling, json);
    }
    if (sampling->allowed_token_ids != NULL) {
        weft_json_key(json, "allowed_token_ids");
        response_common_ids(sampling->allowed_token_ids, sampling->n_allowed_token_ids, json);
    }
}

static void write_sampling(const generation_prompt_t *prompt, weft_json_t *json)
{
    const generation_t *generation = prompt->generation;
    const engine_sampling_t *sampling = &generation->sampling;

    weft_json_begin_object(json);
    weft_json_put_u64(json, "n", generation->n);
    weft_json_put_u64(json, "max_tokens", prompt->max_tokens);
    weft_json_put_u64(json, "min_tokens", sampling->min_tokens);
    weft_json_key(json, "temperature");
    weft_json_f32(json, sampling->temperature);
    weft_json_key(json, "top_p");
    weft_json_f32(json, sampling->top_p);
    weft_json_put_i64(json, "top_k", sampling->top_k);
    weft_json_key(json, "min_p");
    weft_json_f32(json, sampling->min_p);
    weft_json_key(json, "presence_penalty");
    weft_json_f32(json, sampling->presence_penalty);
    weft_json_key(json, "frequency_penalty");
    weft_json_f32(json, sampling->frequency_penalty);
    weft_json_key(json, "repetition_penalty");
    weft_json_f32(json, sampling->repetition_penalty);
    weft_json_put_bool(json, "ignore_eos", sampling->ignore_eos);
    weft_json_put_bool(json, "skip_special_tokens", generation->skips_special);
    weft_json_put_bool(json, "include_stop_str_in_output", generation->includes_stop);
    write_extras(sampling, json);
    weft_json_key(json, "stop");
    weft_json_begin_array(json);
    for (size_t i = 0; i < generation->stops.count; i++) {
        weft_json_string(json, generation->stops.texts[i]);
    }
    weft_json_end_array(json);
    weft_json_key(json, "stop_token_ids");
    response_common_ids(sampling->stop_token_ids, sampling->n_stop_token_ids, json);
    weft_json_end_object(json);
}

static void write_prompt(const generation_prompt_t *prompt, weft_json_t *json)
{
    const generation_t *generation = prompt->generation;

    weft_json_begin_object(json);
    weft_json_put_string(json, "request_id", generation->id);
    weft_json_key(json, "token_ids");
    response_common_ids(prompt->ids, prompt->n_ids, json);
    weft_json_put_null(json, "features");
    weft_json_key(json, "sampling_params");
    write_sampling(prompt, json);
    weft_json_put_string(json, "model", generation_model_name(generation));
    weft_json_put_bool(json, "stream", generation->is_stream);
    weft_json_put_null(json, "stream_options");
    weft_json_put_string(json, "cache_salt", generation->cache_salt);
    weft_json_put_i64(json, "priority", generation->priority);
    weft_json_put_null(json, "kv_transfer_params");
    weft_json_end_object(json);
}

void completion_render_prepare(api_call_t *call)
{
    weft_json_t json;

    completion_prepare(call);
    if (call->error.kind != API_ERROR_NONE) {
        return;
    }
    weft_json_init(&json, &call->answer);
    weft_json_begin_array(&json);
    for (uint32_t i = 0; i < call->generation->n_prompts; i++) {
        write_prompt(&call->generation->prompts[i], &json);
    }
    weft_json_end_array(&json);
}

void chat_render_prepare(api_call_t *call)
{
    weft_json_t json;

    chat_prepare(call);
    if (call->error.kind == API_ERROR_NONE) {
        weft_json_init(&json, &call->answer);
        write_prompt(&call->generation->prompts[0], &json);
    }
}
