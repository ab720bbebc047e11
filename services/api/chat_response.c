/* SPDX-License-Identifier: Apache-2.0 */
/* Answers of POST /v1/chat/completions. */
#include "services/api/api_transfer.h"
#include "services/api/logprobs_json.h"
#include "services/api/response_common.h"

static void write_buffer(const weft_buffer_t *buffer, size_t from, weft_json_t *json)
{
    weft_json_text(json, buffer->data != NULL ? buffer->data + from : "", buffer->length - from);
}

static void write_logprobs(const generation_choice_t *choice, uint32_t from, weft_json_t *json)
{
    weft_json_key(json, "logprobs");
    if (choice->generation->wants_logprobs) {
        logprobs_json_chat(choice, from, choice->n_tokens, json);
    } else {
        weft_json_null(json);
    }
}

static void write_calls(const generation_choice_t *choice, weft_json_t *json)
{
    weft_json_key(json, "tool_calls");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < choice->n_calls; i++) {
        const generation_call_t *call = &choice->calls[i];
        weft_json_begin_object(json);
        weft_json_put_string(json, "id", call->id);
        weft_json_put_string(json, "type", "function");
        weft_json_key(json, "function");
        weft_json_begin_object(json);
        weft_json_put_string(json, "name", call->name);
        weft_json_key(json, "arguments");
        write_buffer(&call->arguments, 0, json);
        weft_json_end_object(json);
        weft_json_end_object(json);
    }
    weft_json_end_array(json);
}

static void write_message(const generation_choice_t *choice, weft_json_t *json)
{
    const generation_t *generation = choice->generation;
    bool has_content =
        choice->text.length > 0 || (choice->n_calls == 0 && choice->reasoning.length == 0);

    weft_json_key(json, "message");
    weft_json_begin_object(json);
    weft_json_put_string(json, "role", "assistant");
    weft_json_key(json, "content");
    if (has_content) {
        write_buffer(&choice->text, 0, json);
    } else {
        weft_json_null(json);
    }
    weft_json_put_null(json, "refusal");
    weft_json_put_null(json, "annotations");
    weft_json_put_null(json, "audio");
    weft_json_put_null(json, "function_call");
    write_calls(choice, json);
    weft_json_key(json, "reasoning");
    if (generation->includes_reasoning && choice->reasoning.length > 0) {
        write_buffer(&choice->reasoning, 0, json);
    } else {
        weft_json_null(json);
    }
    weft_json_end_object(json);
}

static void write_choice(const generation_choice_t *choice, weft_json_t *json)
{
    weft_json_begin_object(json);
    weft_json_put_u64(json, "index", choice->index);
    write_message(choice, json);
    write_logprobs(choice, 0, json);
    weft_json_put_string(json, "finish_reason", choice->finish_reason);
    response_common_stop_reason(choice, json);
    weft_json_key(json, "token_ids");
    if (choice->generation->returns_token_ids) {
        response_common_answer_ids(choice, 0, choice->n_tokens, json);
    } else {
        weft_json_null(json);
    }
    weft_json_put_null(json, "routed_experts");
    weft_json_end_object(json);
}

static void write_prompt(const generation_t *generation, weft_json_t *json)
{
    const generation_prompt_t *prompt = &generation->prompts[0];

    weft_json_key(json, "prompt_logprobs");
    logprobs_json_prompt(prompt, json);
    weft_json_key(json, "prompt_token_ids");
    if (generation->returns_token_ids) {
        response_common_ids(prompt->ids, prompt->n_ids, json);
    } else {
        weft_json_null(json);
    }
    weft_json_key(json, "prompt_text");
    if (generation->returns_prompt_text) {
        weft_json_text(json, prompt->text, prompt->text_length);
    } else {
        weft_json_null(json);
    }
}

static void write_answer(const generation_t *generation, weft_json_t *json)
{
    weft_json_begin_object(json);
    response_common_head(generation, "chat.completion", json);
    weft_json_key(json, "choices");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < generation->n_choices; i++) {
        write_choice(&generation->choices[i], json);
    }
    weft_json_end_array(json);
    weft_json_put_null(json, "service_tier");
    weft_json_put_null(json, "system_fingerprint");
    response_common_usage(generation, json);
    write_prompt(generation, json);
    api_transfer_write(generation, json);
    weft_json_end_object(json);
}

/* ---- chunks ---------------------------------------------------------------------------------- */

static void write_new_calls(const generation_choice_t *choice, weft_json_t *json)
{
    bool is_first = true;

    for (uint32_t i = 0; i < choice->n_calls; i++) {
        const generation_call_t *call = &choice->calls[i];
        if (call->is_begin_sent && call->n_sent == call->arguments.length) {
            continue;
        }
        if (is_first) {
            weft_json_key(json, "tool_calls");
            weft_json_begin_array(json);
            is_first = false;
        }
        weft_json_begin_object(json);
        weft_json_put_u64(json, "index", i);
        if (!call->is_begin_sent) {
            weft_json_put_string(json, "id", call->id);
            weft_json_put_string(json, "type", "function");
        }
        weft_json_key(json, "function");
        weft_json_begin_object(json);
        if (!call->is_begin_sent) {
            weft_json_put_string(json, "name", call->name);
        }
        weft_json_key(json, "arguments");
        write_buffer(&call->arguments, call->n_sent, json);
        weft_json_end_object(json);
        weft_json_end_object(json);
    }
    if (!is_first) {
        weft_json_end_array(json);
    }
}

static void write_delta(const generation_choice_t *choice, weft_json_t *json)
{
    weft_json_key(json, "delta");
    weft_json_begin_object(json);
    if (choice->generation->includes_reasoning &&
        choice->reasoning.length > choice->n_reasoning_sent) {
        weft_json_key(json, "reasoning");
        write_buffer(&choice->reasoning, choice->n_reasoning_sent, json);
    }
    if (choice->text.length > choice->n_text_sent) {
        weft_json_key(json, "content");
        write_buffer(&choice->text, choice->n_text_sent, json);
    }
    write_new_calls(choice, json);
    weft_json_end_object(json);
}

static void begin_chunk(const generation_choice_t *choice, weft_json_t *json)
{
    weft_json_begin_object(json);
    response_common_head(choice->generation, "chat.completion.chunk", json);
    weft_json_key(json, "choices");
    weft_json_begin_array(json);
    weft_json_begin_object(json);
    weft_json_put_u64(json, "index", choice->index);
}

static void end_chunk(const generation_choice_t *choice, weft_json_t *json)
{
    weft_json_end_object(json);
    weft_json_end_array(json);
    response_common_chunk_usage(choice->generation, json);
    weft_json_end_object(json);
}

static void write_first(generation_choice_t *choice, weft_json_t *json)
{
    begin_chunk(choice, json);
    weft_json_key(json, "delta");
    weft_json_begin_object(json);
    weft_json_put_string(json, "role", "assistant");
    weft_json_put_string(json, "content", "");
    weft_json_end_object(json);
    weft_json_put_null(json, "logprobs");
    weft_json_put_null(json, "finish_reason");
    if (choice->generation->returns_token_ids) {
        weft_json_key(json, "prompt_token_ids");
        response_common_ids(choice->prompt->ids, choice->prompt->n_ids, json);
    }
    end_chunk(choice, json);
    choice->is_begun = true;
}

static void write_chunk(generation_choice_t *choice, weft_json_t *json)
{
    begin_chunk(choice, json);
    write_delta(choice, json);
    write_logprobs(choice, choice->n_tokens_sent, json);
    weft_json_put_string(json, "finish_reason", choice->finish_reason);
    if (choice->finish_reason != NULL) {
        response_common_stop_reason(choice, json);
    }
    if (choice->generation->returns_token_ids) {
        weft_json_key(json, "token_ids");
        response_common_answer_ids(choice, choice->n_tokens_sent, choice->n_tokens, json);
    }
    end_chunk(choice, json);
}

static void write_usage(const generation_t *generation, weft_json_t *json)
{
    weft_json_begin_object(json);
    response_common_head(generation, "chat.completion.chunk", json);
    weft_json_key(json, "choices");
    weft_json_begin_array(json);
    weft_json_end_array(json);
    response_common_usage(generation, json);
    weft_json_end_object(json);
}

const generation_format_t chat_format = {
    .id_prefix = "chatcmpl-",
    .write_answer = write_answer,
    .write_chunk = write_chunk,
    .write_first = write_first,
    .write_usage = write_usage,
};
