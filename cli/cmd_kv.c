/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_kv: `weft kv NAME`, a table of commands about KV blocks: a row of kv_commands.def each. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"

typedef struct kv_command {
    const char *name;
    const char *about;
    int (*run)(int argc, char **argv);
} kv_command_t;

static const kv_command_t commands[] = {
#define KV_COMMAND(name, about) {#name, about, cmd_kv_##name},
#include "cli/kv_commands.def"
#undef KV_COMMAND
};

static void print_commands(FILE *file)
{
    fputs("usage: weft kv NAME [options]\n\ncommands:\n", file);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(commands); i++) {
        fprintf(file, "  %-12s %s\n", commands[i].name, commands[i].about);
    }
    fputs("\n`weft kv NAME --help` explains one of them.\n", file);
}

int cmd_kv(int argc, char **argv)
{
    if (argc < 2) {
        print_commands(stderr);
        return CLI_EXIT_INVALID;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_commands(stdout);
        return CLI_EXIT_OK;
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(commands); i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    fprintf(stderr, "weft: error: no command \"kv %s\"\n\n", argv[1]);
    print_commands(stderr);
    return CLI_EXIT_INVALID;
}
