/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_detokenize: `weft detokenize`, the text that token ids stand for. */
#include "base/json_writer.h"
#include "cli/commands.h"
#include "cli/tokenize.h"

static weft_status_t write(const tokenize_options_t *options, const text_tokenizer_t *tokenizer,
                           const run_prompt_t *prompt, weft_buffer_t *out, weft_diag_t *diag)
{
    text_bytes_t text = {0};
    const weft_status_t status =
        text_tokenizer_decode(tokenizer, prompt->ids, prompt->n, false, diag, &text);
    if (status < 0) {
        return status;
    }
    if (options->json) {
        weft_json_t json;
        weft_json_init(&json, out);
        weft_json_begin_object(&json);
        weft_json_key(&json, "prompt");
        weft_json_text(&json, text.data, text.length);
        weft_json_end_object(&json);
    } else {
        weft_buffer_append(out, text.data, text.length);
    }
    text_bytes_free(text);
    return WEFT_OK;
}

int cmd_detokenize(int argc, char **argv)
{
    return tokenize_main(argc, argv, "weft detokenize --model PATH [--json] IDS",
                         "Prints the text of token ids: 1,2,3.", true, write);
}
