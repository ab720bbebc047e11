/* SPDX-License-Identifier: Apache-2.0 */
/* Answers of POST /inference/v1/generate. */
#include "services/api/api_transfer.h"
#include "services/api/logprobs_json.h"
#include "services/api/response_common.h"

static void write_choice(const generation_choice_t *choice, uint32_t from, size_t text_from,
                         weft_json_t *json)
{
    const generation_t *generation = choice->generation;

    weft_json_begin_object(json);
    weft_json_put_u64(json, "index", choice->index);
    weft_json_key(json, "token_ids");
    response_common_answer_ids(choice, from, choice->n_tokens, json);
    weft_json_key(json, "logprobs");
    if (generation->wants_logprobs) {
        logprobs_json_chat(choice, from, choice->n_tokens, json);
    } else {
        weft_json_null(json);
    }
    if (generation->detokenizes) {
        weft_json_key(json, "text");
        weft_json_text(json, choice->text.data != NULL ? choice->text.data + text_from : "",
                       choice->text.length - text_from);
    }
    weft_json_put_string(json, "finish_reason", choice->finish_reason);
    response_common_stop_reason(choice, json);
    weft_json_end_object(json);
}

static void write_answer(const generation_t *generation, weft_json_t *json)
{
    weft_json_begin_object(json);
    weft_json_put_string(json, "request_id", generation->request_id);
    weft_json_put_u64(json, "created", generation->created);
    weft_json_put_string(json, "model", generation_model_name(generation));
    weft_json_key(json, "choices");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < generation->n_choices; i++) {
        write_choice(&generation->choices[i], 0, 0, json);
    }
    weft_json_end_array(json);
    response_common_usage(generation, json);
    weft_json_key(json, "prompt_logprobs");
    logprobs_json_prompt(&generation->prompts[0], json);
    api_transfer_write(generation, json);
    weft_json_end_object(json);
}

static void write_chunk(generation_choice_t *choice, weft_json_t *json)
{
    weft_json_begin_object(json);
    weft_json_put_string(json, "request_id", choice->generation->request_id);
    weft_json_key(json, "choices");
    weft_json_begin_array(json);
    write_choice(choice, choice->n_tokens_sent, choice->n_text_sent, json);
    weft_json_end_array(json);
    response_common_chunk_usage(choice->generation, json);
    weft_json_end_object(json);
    choice->is_begun = true;
}

static void write_usage(const generation_t *generation, weft_json_t *json)
{
    weft_json_begin_object(json);
    weft_json_put_string(json, "request_id", generation->request_id);
    weft_json_key(json, "choices");
    weft_json_begin_array(json);
    weft_json_end_array(json);
    response_common_usage(generation, json);
    weft_json_end_object(json);
}

const generation_format_t generate_format = {
    .id_prefix = "generate-tokens-",
    .write_answer = write_answer,
    .write_chunk = write_chunk,
    .write_usage = write_usage,
};
