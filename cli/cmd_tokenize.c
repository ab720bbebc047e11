/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_tokenize: `weft tokenize`, a text as the model's token ids. */
#include <stdio.h>

#include "base/json_writer.h"
#include "cli/commands.h"
#include "cli/tokenize.h"

static void write_ids(weft_json_t *json, const run_prompt_t *prompt)
{
    weft_json_key(json, "tokens");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < prompt->n; i++) {
        weft_json_i64(json, prompt->ids[i]);
    }
    weft_json_end_array(json);
}

static weft_status_t write_strings(weft_json_t *json, const text_tokenizer_t *tokenizer,
                                   const run_prompt_t *prompt)
{
    weft_status_t status = WEFT_OK;
    weft_json_key(json, "token_strs");
    weft_json_begin_array(json);
    for (uint32_t i = 0; i < prompt->n && status >= 0; i++) {
        text_bytes_t text = {0};
        status = text_tokenizer_token_string(tokenizer, prompt->ids[i], &text);
        if (status >= 0) {
            weft_json_text(json, text.data, text.length);
            text_bytes_free(text);
        }
    }
    weft_json_end_array(json);
    return status;
}

static weft_status_t write(const tokenize_options_t *options, const text_tokenizer_t *tokenizer,
                           const run_prompt_t *prompt, weft_buffer_t *out, weft_diag_t *diag)
{
    (void)diag;
    if (!options->json) {
        for (uint32_t i = 0; i < prompt->n; i++) {
            char id[16];
            snprintf(id, sizeof(id), i == 0 ? "%d" : ",%d", prompt->ids[i]);
            weft_buffer_puts(out, id);
        }
        return WEFT_OK;
    }
    weft_json_t json;
    weft_json_init(&json, out);
    weft_json_begin_object(&json);
    weft_json_put_u64(&json, "count", prompt->n);
    write_ids(&json, prompt);
    weft_status_t status = write_strings(&json, tokenizer, prompt);
    weft_json_end_object(&json);
    return status;
}

int cmd_tokenize(int argc, char **argv)
{
    return tokenize_main(argc, argv, "weft tokenize --model PATH [--chat] [--json] TEXT",
                         "Prints the token ids of a text, special tokens in it recognised.", false,
                         write);
}
