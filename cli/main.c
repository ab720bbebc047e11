/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"

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

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_commands(stderr);
        return CLI_EXIT_INVALID;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_commands(stdout);
        return CLI_EXIT_OK;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        name = "version";
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(commands); i++) {
        if (strcmp(name, commands[i].name) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    fprintf(stderr, "weft: error: no command \"%s\"\n\n", name);
    print_commands(stderr);
    return CLI_EXIT_INVALID;
}
