/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_fabric.h"

#include "base/log.h"
#include "cli/bench/bench_fabric_target.h"
#include "cli/commands.h"
#include "cli/option_tables.h"

const weft_option_t bench_fabric_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(bench_fabric_options_t, __VA_ARGS__)
#include "cli/bench/bench_fabric.def"
#undef OPTION
};
const size_t bench_fabric_option_count = WEFT_ARRAY_LEN(bench_fabric_option_rows);

static weft_status_t run(const bench_fabric_options_t *options, const engine_options_t *engine,
                         weft_diag_t *diag)
{
    const bool has_child = options->listen[0] == '\0' && options->connect[0] == '\0';
    if (options->listen[0] != '\0' && options->connect[0] != '\0') {
        return weft_diag(diag, WEFT_ERR_INVALID, "--listen and --connect: one or the other");
    }
    if (options->netns && !has_child) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--netns: for both halves on this host");
    }
    if (options->rails == 0 || options->rails > BENCH_FABRIC_MAX_RAILS ||
        (options->rails > 1 && !options->netns)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--rails %u: 1 to %d, with --netns",
                         options->rails, BENCH_FABRIC_MAX_RAILS);
    }
    if (options->cost && options->interference) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--cost and --interference: one or the other");
    }
    if (options->listen[0] != '\0') {
        return bench_fabric_target_listen(options, diag);
    }
    if (options->interference) {
        return bench_fabric_interference(options, engine, diag);
    }
    return options->cost ? bench_fabric_cost(options, diag) : bench_fabric_sweep(options, diag);
}

int bench_fabric(int argc, char **argv)
{
    bench_fabric_options_t options;
    engine_options_t engine;
    const weft_option_group_t groups[] = {
        CLI_OPTION_GROUP(bench_fabric, "Measurement", &options),
        CLI_OPTION_GROUP(engine, "Engine (interference)", &engine),
    };
    const weft_option_spec_t spec = {
        .usage = "weft bench fabric [--op write] [--backend tcp] [--cost | --interference --model "
                 "PATH]",
        .about = "Measures the transfer fabric: blocks read or written between two processes, "
                 "beside plain copies of the same blocks.",
        .groups = groups,
        .n_groups = WEFT_ARRAY_LEN(groups),
    };
    weft_diag_t diag = {0};
    weft_option_set_t *set = NULL;
    weft_log_set_level(WEFT_LOG_WARN);

    weft_status_t status = weft_option_set_parse(&spec, argc, argv, &diag, &set);
    if (status == WEFT_ERR_CANCELLED) {
        return CLI_EXIT_OK;
    }
    if (status >= 0) {
        status = run(&options, &engine, &diag);
    }
    weft_option_set_destroy(set);
    return status < 0 ? cli_fail(status, &diag) : CLI_EXIT_OK;
}
