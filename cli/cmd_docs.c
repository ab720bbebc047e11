/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_docs: `weft docs options|metrics`: the reference pages, made from the tables of docs.def. */
#include <stdio.h>
#include <string.h>

#include "base/compiler.h"
#include "base/metrics.h"
#include "cli/commands.h"

#define MAX_WORDS 3

static const char *const option_pages[][MAX_WORDS] = {
#define OPTIONS_OF(...) {__VA_ARGS__},
#include "cli/docs.def"
#undef OPTIONS_OF
};

#define METRICS(name, title)                                                                       \
    extern const weft_metric_t name##_metric_rows[];                                               \
    extern const size_t name##_metric_count;
#include "cli/docs.def"
#undef METRICS

typedef struct metric_page {
    const char *title;
    const weft_metric_t *rows;
    const size_t *n_rows;
} metric_page_t;

static const metric_page_t metric_pages[] = {
#define METRICS(name, title) {title, name##_metric_rows, &name##_metric_count},
#include "cli/docs.def"
#undef METRICS
    {NULL, NULL, NULL},
};

/* Each command prints its own table. */
static int print_options(void)
{
    puts("# Options\n\n"
         "Printed by `weft docs options` from the tables in the code.\n\n"
         "Flag `--some-flag` is also the variable `WEFT_SOME_FLAG` and, where there is `--config`, "
         "the YAML key `some-flag`.\nThe command line wins over the environment, the environment "
         "over the file, the file over the default.\n\n"
         "Exit codes: 0 done; 1 it failed; 2 the input was wrong (a flag, a file). 128 + N: signal "
         "N "
         "came before it was\ndone, so 130 after Ctrl-C and 143 after SIGTERM: an answer of `weft "
         "run` was cut, or a service did not serve yet.\nA service that serves ends with 0 at "
         "either.\n");
    for (size_t i = 0; i < WEFT_ARRAY_LEN(option_pages); i++) {
        char words[MAX_WORDS + 1][32];
        char *argv[MAX_WORDS + 2] = {NULL};
        int argc = 0;
        for (; argc < MAX_WORDS && option_pages[i][argc] != NULL; argc++) {
            snprintf(words[argc], sizeof(words[argc]), "%s", option_pages[i][argc]);
            argv[argc] = words[argc];
        }
        snprintf(words[argc], sizeof(words[argc]), "--help=markdown");
        argv[argc] = words[argc];
        const int code = cli_dispatch(argc + 1, argv);
        if (code != CLI_EXIT_OK) {
            return code;
        }
    }
    return CLI_EXIT_OK;
}

static int print_metrics(void)
{
    puts("# Metrics\n\n"
         "Printed by `weft docs metrics` from the tables in the code; served at `/metrics`.\n");
    for (const metric_page_t *page = metric_pages; page->title != NULL; page++) {
        weft_metrics_print_markdown(page->title, page->rows, *page->n_rows, stdout);
    }
    return CLI_EXIT_OK;
}

int cmd_docs(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "options") == 0) {
        return print_options();
    }
    if (argc == 2 && strcmp(argv[1], "metrics") == 0) {
        return print_metrics();
    }
    fputs("usage: weft docs options|metrics\n",
          argc == 2 && strcmp(argv[1], "--help") == 0 ? stdout : stderr);
    return argc == 2 && strcmp(argv[1], "--help") == 0 ? CLI_EXIT_OK : CLI_EXIT_INVALID;
}
