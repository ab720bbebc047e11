/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_model: `weft model inspect PATH`. */
#include <stdio.h>
#include <string.h>

#include "base/option.h"
#include "cli/commands.h"
#include "cli/model_inspect.h"

static const weft_option_t rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(model_inspect_options_t, __VA_ARGS__)
#include "cli/model_inspect.def"
#undef OPTION
};

static weft_status_t print(const model_inspect_options_t *options, const char *path,
                           weft_diag_t *diag)
{
    model_inspect_t *inspect = NULL;
    weft_status_t status = model_inspect_create(path, options->max_model_len, diag, &inspect);
    if (status < 0) {
        return status;
    }
    if (options->json) {
        status = model_inspect_print_json(inspect, stdout);
    } else {
        model_inspect_print(inspect, stdout);
    }
    model_inspect_destroy(inspect);
    return status;
}

static int inspect(int argc, char **argv)
{
    model_inspect_options_t options;
    const weft_option_group_t group = {
        .title = "inspect", .rows = rows, .n_rows = WEFT_ARRAY_LEN(rows), .config = &options};
    const weft_option_spec_t spec = {
        .usage = "weft model inspect PATH [options]",
        .about = "Checks a model (a .gguf or .safetensors file, or a folder) and prints what it is "
                 "and the memory it will need; exit code 2 when it cannot be served.",
        .groups = &group,
        .n_groups = 1,
        .max_positional = 1,
    };
    weft_diag_t diag = {0};
    weft_option_set_t *set = NULL;
    weft_status_t status = weft_option_set_parse(&spec, argc, argv, &diag, &set);
    if (status == WEFT_ERR_CANCELLED) {
        return CLI_EXIT_OK;
    }
    if (status >= 0 && weft_option_positional_count(set) != 1) {
        status = weft_diag(&diag, WEFT_ERR_INVALID, "name one model: weft model inspect PATH");
    }
    if (status >= 0) {
        status = print(&options, weft_option_positional(set, 0), &diag);
    }
    weft_option_set_destroy(set);
    return status < 0 ? cli_fail(status, &diag) : CLI_EXIT_OK;
}

int cmd_model(int argc, char **argv)
{
    static const char usage[] = "usage: weft model inspect PATH [options]\n\n"
                                "`weft model inspect --help` explains it.\n";
    if (argc > 1 && strcmp(argv[1], "inspect") == 0) {
        return inspect(argc - 1, argv + 1);
    }
    const bool wants_help =
        argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    fputs(usage, wants_help ? stdout : stderr);
    return wants_help ? CLI_EXIT_OK : CLI_EXIT_INVALID;
}
