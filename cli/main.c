/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/option_tables.h"

typedef struct command {
    const char *name;
    const char *about;
    int (*run)(int argc, char **argv);
} command_t;

static const command_t commands[] = {
#define COMMAND(name, about) {#name, about, cmd_##name},
#include "cli/commands.def"
#undef COMMAND
};

static void print_commands(FILE *file)
{
    fputs("usage: weft COMMAND [options]\n\ncommands:\n", file);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(commands); i++) {
        fprintf(file, "  %-12s %s\n", commands[i].name, commands[i].about);
    }
    fputs("\n`weft COMMAND --help` explains one of them.\n", file);
}

int cli_fail(weft_status_t status, const weft_diag_t *diag)
{
    const char *text = diag->text[0] != '\0' ? diag->text : weft_strerror(status);
    fprintf(stderr, "weft: error: %s\n", text);
    switch (status) {
    case WEFT_ERR_INVALID:
    case WEFT_ERR_NOT_FOUND:
    case WEFT_ERR_TOO_LARGE:
    case WEFT_ERR_UNSUPPORTED:
    case WEFT_ERR_MALFORMED:
        return CLI_EXIT_INVALID;
    default:
        return CLI_EXIT_FAILED;
    }
}

int cli_dispatch(int argc, char **argv)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(commands); i++) {
        if (strcmp(argv[0], commands[i].name) == 0) {
            return commands[i].run(argc, argv);
        }
    }
    fprintf(stderr, "weft: error: no command \"%s\"\n\n", argv[0]);
    print_commands(stderr);
    return CLI_EXIT_INVALID;
}

int main(int argc, char **argv)
{
    static char version[] = "version";
    if (argc < 2) {
        print_commands(stderr);
        return CLI_EXIT_INVALID;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_commands(stdout);
        return CLI_EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        argv[1] = version;
    }
    size_t n_tables = 0;
    const weft_option_group_t *tables = cli_option_tables(&n_tables);
    weft_option_register(tables, n_tables);
    return cli_dispatch(argc - 1, argv + 1);
}
