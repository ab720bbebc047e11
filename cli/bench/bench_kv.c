/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_kv.h"

#include "base/log.h"
#include "cli/commands.h"
#include "cli/option_tables.h"

const weft_option_t bench_kv_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(bench_kv_options_t, __VA_ARGS__)
#include "cli/bench/bench_kv.def"
#undef OPTION
};
const size_t bench_kv_option_count = WEFT_ARRAY_LEN(bench_kv_option_rows);

/* What the trace sets anew for each run. */
static weft_status_t check_engine_options(const weft_option_set_t *set, weft_diag_t *diag)
{
    static const char *const ours[] = {
        "enable-prefix-caching", "num-gpu-blocks-override",
        "kv-cache-memory-bytes", "kv-host-bytes",
        "kv-disk-path",          "kv-disk-bytes",
        "kv-disk-admission",
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(ours); i++) {
        if (weft_option_is_given(set, ours[i])) {
            return weft_diag(diag, WEFT_ERR_INVALID,
                             "--%s: set by the benchmark; see --device-fraction, --stores, "
                             "--sizes, --policies and --disk-path",
                             ours[i]);
        }
    }
    return WEFT_OK;
}

int bench_kv(int argc, char **argv)
{
    bench_kv_options_t options;
    engine_options_t engine;
    const weft_option_group_t groups[] = {
        CLI_OPTION_GROUP(bench_kv, "Measurement", &options),
        CLI_OPTION_GROUP(engine, "Engine", &engine),
    };
    const weft_option_spec_t spec = {
        .usage = "weft bench kv [--disk-path DIR] | weft bench kv --trace --model PATH",
        .about = "Measures the parts of the KV store, or with --trace what a store saves when "
                 "conversations go on.",
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
        status = check_engine_options(set, &diag);
    }
    if (status >= 0) {
        status = options.trace ? bench_kv_runs(&options, &engine, &diag)
                               : bench_kv_parts(&options, &engine, &diag);
    }
    weft_option_set_destroy(set);
    return status < 0 ? cli_fail(status, &diag) : CLI_EXIT_OK;
}
