/* SPDX-License-Identifier: Apache-2.0 */
/* Answers of POST /v1/completions. */
#include "services/api/api_transfer.h"
#include "services/api/logprobs_json.h"
#include "services/api/response_common.h"

static void append_echo(const generation_prompt_t *prompt, weft_buffer_t *out)
{
    text_bytes_t decoded = {0};

    if (prompt->text != NULL) {
        weft_buffer_append(out, prompt->text, prompt->text_length);
    } else if (text_tokenizer_decode(prompt->generation->model->tokenizer, prompt->ids,
                                     prompt->n_ids, false, NULL, &decoded) == WEFT_OK) {
        weft_buffer_append(out, decoded.data, decoded.length);
        text_bytes_free(decoded);
    }
}

/* The text from byte `from` on, the prompt in front when it is echoed and not sent yet. */
static void write_text(const generation_choice_t *choice, size_t from, bool with_prompt,
                       weft_json_t *json)
{
    weft_buffer_t text = {0};

    if (with_prompt) {
        append_echo(choice->prompt, &text);
    }
    weft_buffer_append(&text, choice->text.data != NULL ? choice->text.data + from : "",
                       choice->text.length - from);
    weft_json_key(json, "text");
    weft_json_text(json, text.data != NULL ? text.data : "", text.length);
    json->out->is_failed = json->out->is_failed || text.is_failed;
    weft_buffer_free(&text);
}

static void write_logprobs(generation_choice_t *choice, uint32_t from, bool with_prompt,
                           weft_json_t *json)
{
    weft_json_key(json, "logprobs");
    if (choice->generation->wants_logprobs) {
        logprobs_json_completion(choice, from, choice->n_tokens, with_prompt, json);
    } else {
        weft_json_null(json);
    }
}

static void write_choice(generation_choice_t *choice, weft_json_t *json)
{
    const generation_t *generation = choice->generation;

    weft_json_begin_object(json);
    weft_json_put_u64(json, "index", choice->index);
    write_text(choice, 0, generation->echoes, json);
    write_logprobs(choice, 0, generation->echoes, json);
    weft_json_put_string(json, "finish_reason", choice->finish_reason);
    response_common_stop_reason(choice, json);
    weft_json_key(json, "token_ids");
    if (generation->returns_token_ids) {
        response_common_answer_ids(choice, 0, choice->n_tokens, json);
    } else {
        weft_json_null(json);
    }
    weft_json_key(json, "prompt_logprobs");
    logprobs_json_prompt(choice->prompt, json);
    weft_json_key(json, "prompt_token_ids");
    if (generation->returns_token_ids) {
        response_common_ids(choice->prompt->ids, choice->prompt->n_ids, json);
    } else {
        weft_json_null(json);
    }
    weft_json_put_null(json, "routed_experts");
    weft_json_end_object(json);
}

static void write_answer(const generation_t *generation, weft_json_t *json)
{
    weft_json_begin_object(json);
    response_common_head(generation, "text_completion", json);
    weft_json_key(json, "choices");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < generation->n_choices; i++) {
        write_choice(&generation->choices[i], json);
    }
    weft_json_end_array(json);
    weft_json_put_null(json, "service_tier");
    weft_json_put_null(json, "system_fingerprint");
    response_common_usage(generation, json);
    api_transfer_write(generation, json);
    weft_json_put_null(json, "ec_transfer_params");
    weft_json_put_null(json, "metrics");
    weft_json_end_object(json);
}

static void write_chunk(generation_choice_t *choice, weft_json_t *json)
{
    const generation_t *generation = choice->generation;
    bool with_prompt = generation->echoes && !choice->is_begun;

    weft_json_begin_object(json);
    response_common_head(generation, "text_completion", json);
    weft_json_key(json, "choices");
    weft_json_begin_array(json);
    weft_json_begin_object(json);
    weft_json_put_u64(json, "index", choice->index);
    write_text(choice, choice->n_text_sent, with_prompt, json);
    write_logprobs(choice, choice->n_tokens_sent, with_prompt, json);
    weft_json_put_string(json, "finish_reason", choice->finish_reason);
    response_common_stop_reason(choice, json);
    if (generation->returns_token_ids) {
        weft_json_key(json, "token_ids");
        response_common_answer_ids(choice, choice->n_tokens_sent, choice->n_tokens, json);
        if (!choice->is_begun) {
            weft_json_key(json, "prompt_token_ids");
            response_common_ids(choice->prompt->ids, choice->prompt->n_ids, json);
        }
    }
    weft_json_end_object(json);
    weft_json_end_array(json);
    response_common_chunk_usage(generation, json);
    weft_json_end_object(json);
    choice->is_begun = true;
}

static void write_usage(const generation_t *generation, weft_json_t *json)
{
    weft_json_begin_object(json);
    response_common_head(generation, "text_completion", json);
    weft_json_key(json, "choices");
    weft_json_begin_array(json);
    weft_json_end_array(json);
    response_common_usage(generation, json);
    weft_json_end_object(json);
}

const generation_format_t completion_format = {
    .id_prefix = "cmpl-",
    .write_answer = write_answer,
    .write_chunk = write_chunk,
    .write_usage = write_usage,
};
