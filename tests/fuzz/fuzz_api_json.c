/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_api_json: the first byte picks an endpoint, the rest is a request's body. What comes of it
 * is an error object or an answer, both JSON.
 */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>

#include "tests/support/api_rig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void (*const prepares[])(api_call_t *call) = {
    completion_prepare,  chat_prepare,     generate_prepare,   completion_render_prepare,
    chat_render_prepare, tokenize_prepare, detokenize_prepare, abort_prepare,
};

static void require_json(const weft_buffer_t *text)
{
    json_t *json = json_loadb(text->data, text->length, JSON_ALLOW_NUL, NULL);
    if (text->is_failed || json == NULL) {
        abort();
    }
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static api_rig_t rig;
    api_call_t call;
    weft_buffer_t text = {0};
    weft_json_t json;

    if (rig.tokenizer == NULL) {
        api_rig_open(&rig);
    }
    if (size == 0 || !api_rig_begin(&rig, (const char *)data + 1, size - 1, &call)) {
        return 0;
    }
    prepares[data[0] % WEFT_ARRAY_LEN(prepares)](&call);
    if (call.error.kind != API_ERROR_NONE) {
        weft_json_init(&json, &text);
        api_error_write(&call.error, &json);
        require_json(&text);
    } else if (call.answer.length > 0) {
        require_json(&call.answer);
    } else if (call.generation != NULL && call.generation->n_choices == 0) {
        abort();
    }
    weft_buffer_free(&text);
    api_rig_end(&call);
    return 0;
}
