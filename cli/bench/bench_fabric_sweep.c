/* SPDX-License-Identifier: Apache-2.0 */
/* All sizes: at each, the bytes are compared once, then the contenders are measured by turns. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/compiler.h"
#include "cli/bench/bench_fabric_contender.h"
#include "cli/bench/bench_fabric_report.h"
#include "cli/bench/bench_progress.h"

#define SALT           17
#define MIN_ITERATIONS 3
#define MAX_ITERATIONS 2000

typedef struct sweep {
    const bench_fabric_options_t *options;
    bench_fabric_rig_t rig;
    const bench_fabric_contender_ops_t *contenders[BENCH_FABRIC_CONTENDERS];
    size_t n_contenders;
    bench_fabric_size_t *sizes;
    bench_fabric_result_t *results; /* [n_sizes] */
    size_t n_sizes;
    bool is_write;
} sweep_t;

/* ---- options --------------------------------------------------------------------------------- */

static bool has_floor(const bench_fabric_options_t *options, const char *name)
{
    const size_t length = strlen(name);
    const char *at = options->floors;
    while (at != NULL &&
           (strncmp(at, name, length) != 0 || (at[length] != ',' && at[length] != '\0'))) {
        at = strchr(at, ',');
        at = at == NULL ? NULL : at + 1;
    }
    return at != NULL;
}

static weft_status_t check_options(const bench_fabric_options_t *options, weft_diag_t *diag)
{
    if (strcmp(options->op, "read") != 0 && strcmp(options->op, "write") != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--op %s: read or write", options->op);
    }
    if (strcmp(options->progress, "caller") != 0 && strcmp(options->progress, "thread") != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--progress %s: caller or thread",
                         options->progress);
    }
    if (options->guard && strcmp(options->op, "write") == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--guard: writes have none");
    }
    if (options->rounds == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--rounds: 1 or more");
    }
    return WEFT_OK;
}

static weft_status_t choose_contenders(sweep_t *sweep, weft_diag_t *diag)
{
    static const bench_fabric_contender_ops_t *const floors[] = {
        &bench_fabric_memcpy, &bench_fabric_readv, &bench_fabric_copy};
    const bench_fabric_options_t *options = sweep->options;
    const bool has_host_floor = has_floor(options, "memcpy") || has_floor(options, "readv");
    size_t named = 0;
    if (has_host_floor && (strcmp(options->initiator_segment, "dram") != 0 ||
                           strcmp(options->target_segment, "dram") != 0)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--floors memcpy, readv: for DRAM on both sides");
    }
    sweep->contenders[sweep->n_contenders++] = &bench_fabric_transfers;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(floors); i++) {
        if (has_floor(options, floors[i]->name)) {
            sweep->contenders[sweep->n_contenders++] = floors[i];
            named += strlen(floors[i]->name) + (named > 0);
        }
    }
    return named == strlen(options->floors)
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID, "--floors %s: memcpy, readv, copy",
                           options->floors);
}

/* ---- one size -------------------------------------------------------------------------------- */

static void put_geometry(const bench_fabric_geometry_t *geometry, uint64_t *words)
{
    words[0] = geometry->layout;
    words[1] = geometry->pool_bytes;
    words[2] = geometry->block_bytes;
    words[3] = geometry->n_blocks;
    words[4] = geometry->lanes;
    words[5] = geometry->seed;
    words[6] = SALT;
}

/* Every lane's transfer once, into blocks that were cleared before. */
static weft_status_t check_bytes(sweep_t *sweep, bench_fabric_contender_t *contender,
                                 weft_diag_t *diag)
{
    bench_fabric_rig_t *rig = &sweep->rig;
    const bench_fabric_geometry_t *geometry = &rig->geometry;
    uint64_t words[BENCH_FABRIC_WORDS] = {0};
    uint64_t wrong = 0;
    bench_samples_t times = {0};
    put_geometry(geometry, words);
    weft_status_t status =
        sweep->is_write
            ? bench_fabric_target_ask(&rig->target, BENCH_FABRIC_CLEAR, words, diag, NULL)
            : bench_fabric_end_clear(&rig->end, BENCH_FABRIC_INITIATOR, geometry);
    if (status >= 0) {
        status = contender->ops->run(contender, geometry->lanes, &times, diag);
    }
    if (status >= 0) {
        status = sweep->is_write ? bench_fabric_target_ask(&rig->target, BENCH_FABRIC_COMPARE,
                                                           words, diag, &wrong)
                                 : bench_fabric_end_compare(&rig->end, BENCH_FABRIC_INITIATOR,
                                                            geometry, SALT, &wrong);
    }
    bench_samples_fini(&times);
    return status < 0 || wrong == 0
               ? status
               : weft_diag(diag, WEFT_ERR_CORRUPT, "%llu words of %llu are wrong, %s",
                           (unsigned long long)wrong,
                           (unsigned long long)(geometry->lanes * geometry->n_blocks *
                                                geometry->block_bytes / sizeof(uint64_t)),
                           contender->ops->name);
}

/* How many transfers a round has, by the time of a few. */
static weft_status_t count_iterations(const sweep_t *sweep, bench_fabric_contender_t *contender,
                                      weft_diag_t *diag, uint64_t *n_out)
{
    const bench_fabric_options_t *options = sweep->options;
    const uint64_t lanes = sweep->rig.geometry.lanes;
    bench_samples_t times = {0};
    *n_out = options->iterations;
    if (options->iterations > 0) {
        return WEFT_OK;
    }
    const weft_status_t status = contender->ops->run(contender, 2 * lanes, &times, diag);
    const double each = bench_samples_distribute(&times).min / (double)lanes;
    double n = each > 0 ? options->seconds / options->rounds / each : MAX_ITERATIONS;
    n = n < MIN_ITERATIONS * (double)lanes ? MIN_ITERATIONS * (double)lanes : n;
    *n_out = n > MAX_ITERATIONS ? MAX_ITERATIONS : (uint64_t)n;
    bench_samples_fini(&times);
    return status;
}

/*
 * The rate of a round: bytes over the median time of a transfer; with several in flight, which
 * overlap, bytes over the time of the round.
 */
static weft_status_t run_round(const sweep_t *sweep, bench_fabric_contender_t *contender,
                               uint64_t n, bench_fabric_series_t *series, weft_diag_t *diag)
{
    const bench_fabric_geometry_t *geometry = &sweep->rig.geometry;
    const double bytes = (double)(geometry->block_bytes * geometry->n_blocks);
    const bool is_alone = geometry->lanes == 1 || contender->ops != &bench_fabric_transfers;
    bench_samples_t times = {0};
    weft_status_t status = contender->ops->run(contender, sweep->options->warmup, &times, diag);
    times.n = 0;
    const uint64_t start = weft_clock_ns();
    if (status >= 0) {
        status = contender->ops->run(contender, n, &times, diag);
    }
    const double seconds = (double)(weft_clock_ns() - start) / (double)WEFT_NS_PER_SECOND;
    for (size_t i = 0; status >= 0 && i < times.n; i++) {
        status = bench_samples_add(&series->times, times.values[i]);
    }
    if (status >= 0) {
        const double rate =
            is_alone ? bytes / bench_samples_distribute(&times).p50 : bytes * (double)n / seconds;
        status = bench_samples_add(&series->rates, rate);
    }
    bench_samples_fini(&times);
    return status;
}

static weft_status_t run_rounds(sweep_t *sweep, bench_fabric_contender_t **contenders,
                                bench_fabric_result_t *result, weft_diag_t *diag)
{
    uint64_t n[BENCH_FABRIC_CONTENDERS];
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; status >= 0 && i < sweep->n_contenders; i++) {
        status = count_iterations(sweep, contenders[i], diag, &n[i]);
    }
    for (uint32_t r = 0; status >= 0 && r < sweep->options->rounds; r++) {
        for (size_t i = 0; status >= 0 && i < sweep->n_contenders; i++) {
            status = run_round(sweep, contenders[i], n[i], &result->series[i], diag);
        }
    }
    for (size_t i = 0; status >= 0 && i < sweep->n_contenders; i++) {
        bench_fabric_series_t *series = &result->series[i];
        series->rate = bench_samples_distribute(&series->rates);
        series->time = bench_samples_distribute(&series->times);
    }
    return status;
}

static weft_status_t measure_size(sweep_t *sweep, bench_fabric_result_t *result, weft_diag_t *diag)
{
    bench_fabric_contender_t *contenders[BENCH_FABRIC_CONTENDERS] = {NULL};
    weft_status_t status = WEFT_OK;
    sweep->rig.geometry.block_bytes = result->size.block_bytes;
    sweep->rig.geometry.n_blocks = result->size.n_blocks;
    for (size_t i = 0; status >= 0 && i < sweep->n_contenders; i++) {
        result->series[i].name = sweep->contenders[i]->name;
        status = sweep->contenders[i]->create(&sweep->rig, diag, &contenders[i]);
    }
    /* Floors move the blocks of one lane only. */
    const size_t n_checked = sweep->rig.geometry.lanes == 1 ? sweep->n_contenders : 1;
    for (size_t i = 0; status >= 0 && sweep->options->check && i < n_checked; i++) {
        if (!sweep->contenders[i]->moves_no_blocks) {
            status = check_bytes(sweep, contenders[i], diag);
        }
    }
    if (status >= 0) {
        status = run_rounds(sweep, contenders, result, diag);
    }
    if (status >= 0) {
        const xfer_request_stats_t stats = bench_fabric_transfers_stats(contenders[0]);
        snprintf(result->backend, sizeof(result->backend), "%s", stats.backend);
        result->extents = stats.extents;
    }
    for (size_t i = 0; i < sweep->n_contenders; i++) {
        sweep->contenders[i]->destroy(contenders[i]);
    }
    return status;
}

/* ---- all sizes ------------------------------------------------------------------------------- */

static weft_status_t measure_sizes(sweep_t *sweep, weft_diag_t *diag)
{
    bench_progress_t progress = {0};
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; status >= 0 && i < sweep->n_sizes; i++) {
        const bench_fabric_size_t *size = &sweep->sizes[i];
        bench_progress_show(&progress, "%llu blocks of %llu bytes, %zu of %zu",
                            (unsigned long long)size->n_blocks,
                            (unsigned long long)size->block_bytes, i + 1, sweep->n_sizes);
        sweep->results[i].size = *size;
        status = measure_size(sweep, &sweep->results[i], diag);
        if (status < 0) {
            weft_diag_prefix(diag, "%llu blocks of %llu bytes", (unsigned long long)size->n_blocks,
                             (unsigned long long)size->block_bytes);
        }
    }
    bench_progress_end(&progress);
    return status;
}

static weft_status_t fill(sweep_t *sweep, weft_diag_t *diag)
{
    const uint64_t words[BENCH_FABRIC_WORDS] = {SALT};
    const weft_status_t status = bench_fabric_segment_fill(&sweep->rig.end.segment, SALT);
    return status < 0
               ? status
               : bench_fabric_target_ask(&sweep->rig.target, BENCH_FABRIC_FILL, words, diag, NULL);
}

static weft_status_t prepare(sweep_t *sweep, weft_diag_t *diag)
{
    const bench_fabric_options_t *options = sweep->options;
    weft_status_t status = check_options(options, diag);
    if (status >= 0) {
        status = choose_contenders(sweep, diag);
    }
    if (status >= 0) {
        status = bench_fabric_sizes(options, diag, &sweep->sizes, &sweep->n_sizes);
    }
    if (status >= 0) {
        status = bench_fabric_geometry(options, sweep->sizes, sweep->n_sizes, diag,
                                       &sweep->rig.geometry);
    }
    if (status >= 0) {
        sweep->results =
            weft_calloc(sweep->n_sizes, sizeof(*sweep->results), "bench_fabric.results");
        status = sweep->results == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    return status;
}

static void sweep_fini(sweep_t *sweep)
{
    bench_fabric_rig_close(&sweep->rig);
    for (size_t i = 0; sweep->results != NULL && i < sweep->n_sizes; i++) {
        for (size_t j = 0; j < BENCH_FABRIC_CONTENDERS; j++) {
            bench_samples_fini(&sweep->results[i].series[j].rates);
            bench_samples_fini(&sweep->results[i].series[j].times);
        }
    }
    weft_free(sweep->results);
    weft_free(sweep->sizes);
}

weft_status_t bench_fabric_sweep(const bench_fabric_options_t *options, weft_diag_t *diag)
{
    sweep_t sweep = {
        .options = options, .rig.options = options, .is_write = strcmp(options->op, "write") == 0};
    weft_status_t status = prepare(&sweep, diag);
    if (status >= 0) {
        const bench_fabric_rig_config_t config = {
            .has_thread = strcmp(options->progress, "thread") == 0,
            .maps_target = has_floor(options, "memcpy"),
        };
        status = bench_fabric_rig_open(&sweep.rig, &config, diag);
    }
    if (status >= 0) {
        status = fill(&sweep, diag);
    }
    if (status >= 0) {
        status = measure_sizes(&sweep, diag);
    }
    if (status >= 0) {
        const bench_fabric_report_t report = {
            .options = options,
            .geometry = &sweep.rig.geometry,
            .results = sweep.results,
            .n_results = sweep.n_sizes,
            .n_series = sweep.n_contenders,
        };
        status = bench_fabric_report_print(&report);
    }
    sweep_fini(&sweep);
    return status;
}
