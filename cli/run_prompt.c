/* SPDX-License-Identifier: Apache-2.0 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/cli_input.h"
#include "cli/run.h"

/* ---- ids ----------------------------------------------------------------------------------- */

static weft_status_t copy_ids(const int32_t *ids, size_t n, run_prompt_t *prompt_out)
{
    int32_t *copy = weft_calloc(n + 1, sizeof(int32_t), "run.prompt");
    if (copy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (n > 0) {
        memcpy(copy, ids, n * sizeof(int32_t));
    }
    *prompt_out = (run_prompt_t){.ids = copy, .n = (uint32_t)n};
    return WEFT_OK;
}

/* ---- text ---------------------------------------------------------------------------------- */

static weft_status_t encode(const text_tokenizer_t *tokenizer, const char *text, size_t length,
                            bool add_special, weft_diag_t *diag, run_prompt_t *prompt_out)
{
    text_ids_t ids;
    weft_status_t status =
        text_tokenizer_encode(tokenizer, text, length, add_special, true, diag, &ids);
    if (status >= 0) {
        status = copy_ids(ids.data, ids.length, prompt_out);
        text_ids_free(ids);
    }
    return status;
}

/* ---- chat ---------------------------------------------------------------------------------- */

/* The text of a token as templates print it, terminated; "" when there is none. */
static weft_status_t token_text(const text_tokenizer_t *tokenizer, int32_t id, char **text_out)
{
    text_bytes_t bytes = {0};
    if (id >= 0 && text_tokenizer_token_string(tokenizer, id, &bytes) < 0) {
        bytes = (text_bytes_t){0};
    }
    *text_out = weft_strndup(bytes.length > 0 ? bytes.data : "", bytes.length, "run.token");
    text_bytes_free(bytes);
    return *text_out == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

static weft_status_t open_template(const model_source_t *source, const text_tokenizer_t *tokenizer,
                                   weft_diag_t *diag, text_template_t **template_out)
{
    size_t length;
    const char *text = model_source_chat_template(source, &length);
    if (text == NULL) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "%s: has no chat template; run without --chat",
                         model_source_path(source));
    }
    char *bos = NULL;
    char *eos = NULL;
    weft_status_t status = token_text(tokenizer, text_tokenizer_bos(tokenizer), &bos);
    if (status >= 0) {
        status = token_text(tokenizer, text_tokenizer_eos(tokenizer), &eos);
    }
    if (status >= 0) {
        status = text_template_create(text, length, bos, eos, diag, template_out);
    }
    weft_free(bos);
    weft_free(eos);
    return status;
}

/* One user's message, as the variables of a template. NULL: no memory, or not UTF-8. */
static char *chat_request(const char *message, size_t length)
{
    json_t *request = json_pack("{s:[{s:s,s:s%}],s:b}", "messages", "role", "user", "content",
                                message, length, "add_generation_prompt", 1);
    char *text = request == NULL ? NULL : json_dumps(request, JSON_COMPACT);
    json_decref(request);
    return text;
}

static weft_status_t encode_chat(const model_source_t *source, const text_tokenizer_t *tokenizer,
                                 const char *message, size_t length, weft_diag_t *diag,
                                 run_prompt_t *prompt_out)
{
    text_template_t *chat_template = NULL;
    text_bytes_t rendered = {0};
    weft_status_t status = open_template(source, tokenizer, diag, &chat_template);
    if (status < 0) {
        return status;
    }
    char *request = chat_request(message, length);
    if (request == NULL) {
        status = weft_diag(diag, WEFT_ERR_MALFORMED, "the prompt is not UTF-8");
        goto cleanup;
    }
    status = text_template_render(chat_template, request, strlen(request), diag, &rendered);
    if (status >= 0) {
        status = encode(tokenizer, rendered.data, rendered.length, false, diag, prompt_out);
    }

cleanup:
    text_bytes_free(rendered);
    free(request); /* jansson's */
    text_template_destroy(chat_template);
    return status;
}

/* ---- which of them ------------------------------------------------------------------------- */

weft_status_t run_prompt_make(const run_prompt_spec_t *spec, const model_source_t *source,
                              const text_tokenizer_t *tokenizer, weft_diag_t *diag,
                              run_prompt_t *prompt_out)
{
    if (spec->kind == RUN_PROMPT_IDS) {
        return cli_parse_ids(spec->given, spec->where, model_source_config(source)->vocab, diag,
                             &prompt_out->ids, &prompt_out->n);
    }
    weft_buffer_t text = {0};
    weft_status_t status = WEFT_OK;
    if (spec->kind == RUN_PROMPT_FILE) {
        status = cli_read_file(spec->given, &text, diag);
    } else {
        weft_buffer_puts(&text, spec->given);
        status = text.is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    const char *bytes = text.data != NULL ? text.data : "";
    if (status >= 0 && spec->is_chat) {
        status = encode_chat(source, tokenizer, bytes, text.length, diag, prompt_out);
    } else if (status >= 0) {
        status = encode(tokenizer, bytes, text.length, true, diag, prompt_out);
    }
    weft_buffer_free(&text);
    return status;
}
