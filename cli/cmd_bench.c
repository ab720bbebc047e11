/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench: `weft bench NAME`, a table of benchmarks: a file and a row of benches.def each. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"

typedef struct bench {
    const char *name;
    const char *about;
    int (*run)(int argc, char **argv);
} bench_t;

static const bench_t benches[] = {
#define BENCH(name, about) {#name, about, bench_##name},
#include "cli/bench/benches.def"
#undef BENCH
    {NULL, NULL, NULL},
};

static void print_benches(FILE *file)
{
    fputs("usage: weft bench NAME [options]\n\nbenchmarks:\n", file);
    for (const bench_t *bench = benches; bench->name != NULL; bench++) {
        fprintf(file, "  %-12s %s\n", bench->name, bench->about);
    }
    fputs("\n`weft bench NAME --help` explains one of them.\n", file);
}

int cmd_bench(int argc, char **argv)
{
    if (argc < 2) {
        print_benches(stderr);
        return CLI_EXIT_INVALID;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_benches(stdout);
        return CLI_EXIT_OK;
    }
    for (const bench_t *bench = benches; bench->name != NULL; bench++) {
        if (strcmp(argv[1], bench->name) == 0) {
            return bench->run(argc - 1, argv + 1);
        }
    }
    fprintf(stderr, "weft: error: no benchmark \"%s\"\n\n", argv[1]);
    print_benches(stderr);
    return CLI_EXIT_INVALID;
}
