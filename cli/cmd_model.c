/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_model: `weft model inspect PATH`, `weft model synth OUT`. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/option.h"
#include "cli/commands.h"
#include "cli/model_inspect.h"
#include "runtime/model/synth/model_synth.h"

static const weft_option_t inspect_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(model_inspect_options_t, __VA_ARGS__)
#include "cli/model_inspect.def"
#undef OPTION
};

typedef struct synth_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/model_synth.def"
#undef OPTION
} synth_options_t;

static const weft_option_t synth_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(synth_options_t, __VA_ARGS__)
#include "cli/model_synth.def"
#undef OPTION
};

/* Parses argv, which names one path, and acts on it with the group's options. */
static int act_on_path(const weft_option_spec_t *spec, const char *missing, int argc, char **argv,
                       weft_status_t (*act)(const void *options, const char *path,
                                            weft_diag_t *diag))
{
    weft_diag_t diag = {0};
    weft_option_set_t *set = NULL;
    weft_status_t status = weft_option_set_parse(spec, argc, argv, &diag, &set);
    if (status == WEFT_ERR_CANCELLED) {
        return CLI_EXIT_OK;
    }
    if (status >= 0 && weft_option_positional_count(set) != 1) {
        status = weft_diag(&diag, WEFT_ERR_INVALID, "%s", missing);
    }
    if (status >= 0) {
        status = act(spec->groups[0].config, weft_option_positional(set, 0), &diag);
    }
    weft_option_set_destroy(set);
    return status < 0 ? cli_fail(status, &diag) : CLI_EXIT_OK;
}

/* ---- inspect ------------------------------------------------------------------------------- */

static weft_status_t print(const void *user, const char *path, weft_diag_t *diag)
{
    const model_inspect_options_t *options = user;
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
        .title = "inspect",
        .rows = inspect_rows,
        .n_rows = WEFT_ARRAY_LEN(inspect_rows),
        .config = &options,
    };
    const weft_option_spec_t spec = {
        .usage = "weft model inspect PATH [options]",
        .about = "Checks a model (a .gguf or .safetensors file, or a folder) and prints what it is "
                 "and the memory it will need; exit code 2 when it cannot be served.",
        .groups = &group,
        .n_groups = 1,
        .max_positional = 1,
    };
    return act_on_path(&spec, "name one model: weft model inspect PATH", argc, argv, print);
}

/* ---- synth --------------------------------------------------------------------------------- */

static weft_status_t write_model(const void *user, const char *path, weft_diag_t *diag)
{
    const synth_options_t *options = user;
    const model_synth_options_t synth = {
        .family = options->arch,
        .shape = options->shape,
        .dtype = options->dtype,
        .seed = options->seed,
        .threads = options->threads,
    };
    uint64_t bytes = 0;
    const uint64_t start = weft_clock_ns();
    const weft_status_t status = model_synth_write(&synth, path, diag, &bytes);
    if (status >= 0) {
        const double seconds = (double)(weft_clock_ns() - start) / WEFT_NS_PER_SECOND;
        printf("%s: %" PRIu64 " bytes of weights in %.1f s\n", path, bytes, seconds);
    }
    return status;
}

static int synth(int argc, char **argv)
{
    synth_options_t options;
    const weft_option_group_t group = {
        .title = "synth",
        .rows = synth_rows,
        .n_rows = WEFT_ARRAY_LEN(synth_rows),
        .config = &options,
    };
    const weft_option_spec_t spec = {
        .usage = "weft model synth --arch A --shape S --dtype T OUT",
        .about = "Writes a model of a real shape with random weights, for benchmarks: OUT.gguf is "
                 "one GGUF file, any other OUT a folder with safetensors, config and tokenizer.",
        .groups = &group,
        .n_groups = 1,
        .max_positional = 1,
    };
    return act_on_path(&spec, "name what to write: weft model synth OUT", argc, argv, write_model);
}

int cmd_model(int argc, char **argv)
{
    static const char usage[] = "usage: weft model inspect PATH [options]\n"
                                "       weft model synth OUT [options]\n\n"
                                "`weft model inspect --help` and `weft model synth --help` explain "
                                "them.\n";
    if (argc > 1 && strcmp(argv[1], "inspect") == 0) {
        return inspect(argc - 1, argv + 1);
    }
    if (argc > 1 && strcmp(argv[1], "synth") == 0) {
        return synth(argc - 1, argv + 1);
    }
    const bool wants_help =
        argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    if (argc > 1 && !wants_help) {
        fprintf(stderr, "weft: error: no command \"model %s\"\n\n", argv[1]);
    }
    fputs(usage, wants_help ? stdout : stderr);
    return wants_help ? CLI_EXIT_OK : CLI_EXIT_INVALID;
}
