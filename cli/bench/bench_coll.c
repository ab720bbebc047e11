/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_coll.h"

#include "base/log.h"
#include "cli/commands.h"
#include "cli/option_tables.h"

#define ALONE_RANKS 2

const weft_option_t bench_coll_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(bench_coll_options_t, __VA_ARGS__)
#include "cli/bench/bench_coll.def"
#undef OPTION
};
const size_t bench_coll_option_count = WEFT_ARRAY_LEN(bench_coll_option_rows);

/* As nccl-tests has them. */
static const weft_option_alias_t aliases[] = {
    {"b", "min-bytes"}, {"e", "max-bytes"}, {"f", "factor"}, {"n", "iters"},
    {"w", "warmup"},    {"r", "root"},      {"c", "check"},
};

static weft_status_t check_options(const bench_coll_options_t *options, weft_diag_t *diag)
{
    if (options->ranks == 0 || options->ranks > COLL_MAX_RANKS || options->root >= options->ranks) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--ranks %u --root %u: 1 to %d ranks, root below",
                         options->ranks, options->root, COLL_MAX_RANKS);
    }
    if (options->factor < 2 || options->min_bytes == 0 || options->rounds == 0 ||
        options->min_bytes > options->max_bytes) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--factor is 2 or more, --min-bytes 1 to --max-bytes, --rounds 1 or more");
    }
    if (!(options->seconds > 0) || !(options->timeout > 0)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--seconds and --timeout are above 0");
    }
    return WEFT_OK;
}

static weft_status_t run(bench_coll_options_t *options, weft_diag_t *diag)
{
    const launch_place_flags_t flags = {.rank = UINT32_MAX, .leader = ""};
    launch_place_t place = {.size = 1};
    weft_status_t status = WEFT_OK;
    if (options->ranks == 0) {
        status = launch_place_read(&flags, diag, &place);
        options->ranks = place.size > 1 ? place.size : ALONE_RANKS;
    }
    status = status < 0 ? status : check_options(options, diag);
    if (status < 0) {
        return status;
    }
    return place.size > 1 ? bench_coll_join(options, &place, diag) : bench_coll_fork(options, diag);
}

int bench_coll(int argc, char **argv)
{
    bench_coll_options_t options;
    const weft_option_group_t groups[] = {CLI_OPTION_GROUP(bench_coll, "Measurement", &options)};
    const weft_option_spec_t spec = {
        .usage = "weft bench coll [--op all_gather] [--ranks 4] [-b 8 -e 64M -f 2]",
        .about = "Measures collective operations of ranks, in nccl-tests' columns.",
        .groups = groups,
        .n_groups = WEFT_ARRAY_LEN(groups),
        .flags = aliases,
        .n_flags = WEFT_ARRAY_LEN(aliases),
    };
    weft_diag_t diag = {0};
    weft_option_set_t *set = NULL;
    weft_log_set_level(WEFT_LOG_WARN);

    weft_status_t status = weft_option_set_parse(&spec, argc, argv, &diag, &set);
    if (status == WEFT_ERR_CANCELLED) {
        return CLI_EXIT_OK;
    }
    if (status >= 0) {
        status = run(&options, &diag);
    }
    weft_option_set_destroy(set);
    return status < 0 ? cli_fail(status, &diag) : CLI_EXIT_OK;
}
