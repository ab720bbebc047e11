/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/tokenize.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/commands.h"

static const weft_option_t rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(tokenize_options_t, __VA_ARGS__)
#include "cli/tokenize.def"
#undef OPTION
};

static weft_status_t print(weft_buffer_t *out, weft_diag_t *diag)
{
    weft_buffer_puts(out, "\n");
    if (out->is_failed) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (fwrite(out->data, 1, out->length, stdout) != out->length || fflush(stdout) != 0) {
        return weft_diag(diag, WEFT_ERR_IO, "standard output: %s", strerror(errno));
    }
    return WEFT_OK;
}

static weft_status_t answer(const tokenize_options_t *options, const run_prompt_spec_t *what,
                            tokenize_fn write, weft_diag_t *diag)
{
    model_source_t *source = NULL;
    text_tokenizer_t *tokenizer = NULL;
    run_prompt_t prompt = {0};
    weft_buffer_t out = {0};
    weft_status_t status = model_source_open(options->model, diag, &source);
    if (status >= 0) {
        status = model_source_tokenizer(source, diag, &tokenizer);
    }
    if (status >= 0) {
        status = run_prompt_make(what, source, tokenizer, diag, &prompt);
    }
    if (status >= 0) {
        status = write(options, tokenizer, &prompt, &out, diag);
    }
    if (status >= 0) {
        status = print(&out, diag);
    }
    weft_buffer_free(&out);
    weft_free(prompt.ids);
    text_tokenizer_destroy(tokenizer);
    model_source_close(source);
    return status;
}

int tokenize_main(int argc, char **argv, const char *usage, const char *about, bool takes_ids,
                  tokenize_fn write)
{
    tokenize_options_t options = {0};
    const weft_option_group_t group = {
        .title = argv[0],
        .rows = rows,
        .n_rows = WEFT_ARRAY_LEN(rows) - takes_ids, /* ids are in no template */
        .config = &options,
    };
    const weft_option_spec_t spec = {
        .usage = usage, .about = about, .groups = &group, .n_groups = 1, .max_positional = 1};
    weft_diag_t diag = {0};
    weft_option_set_t *set = NULL;
    weft_status_t status = weft_option_set_parse(&spec, argc, argv, &diag, &set);
    if (status == WEFT_ERR_CANCELLED) {
        return CLI_EXIT_OK;
    }
    if (status >= 0 && (options.model[0] == '\0' || weft_option_positional_count(set) != 1)) {
        status = weft_diag(&diag, WEFT_ERR_INVALID, "usage: %s", usage);
    }
    if (status >= 0) {
        const run_prompt_spec_t what = {.kind = takes_ids ? RUN_PROMPT_IDS : RUN_PROMPT_TEXT,
                                        .given = weft_option_positional(set, 0),
                                        .where = "IDS",
                                        .is_chat = options.chat};
        status = answer(&options, &what, write, &diag);
    }
    weft_option_set_destroy(set);
    return status < 0 ? cli_fail(status, &diag) : CLI_EXIT_OK;
}
