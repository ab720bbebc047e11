/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_coll: the parts of `weft bench coll`: processes that are ranks (bench_coll_ranks.c) or that
 * somebody else started (bench_coll_join.c), what they measure (bench_coll_sweep.c) and how rank 0 prints it (bench_coll_report.c).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/option.h"
#include "launcher/launch_place.h"
#include "transport/coll/coll.h"

typedef struct bench_coll_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/bench/bench_coll.def"
#undef OPTION
} bench_coll_options_t;

typedef struct bench_coll_rank {
    uint32_t rank;
    uint32_t local_rank; /* among those on this host */
    coll_exchange_t exchange;
} bench_coll_rank_t;

/* Of one size, one way; the slowest rank's time. */
typedef struct bench_coll_figure {
    double seconds; /* of an operation: median of the rounds */
    double min_seconds;
    double max_seconds;
    uint64_t n_wrong; /* elements, of all ranks; not counted without --check */
} bench_coll_figure_t;

typedef struct bench_coll_row {
    uint64_t bytes;
    uint64_t count; /* elements that a rank gives */
    uint32_t iterations;
    bool has_in_place;
    bench_coll_figure_t out_of_place;
    bench_coll_figure_t in_place;
} bench_coll_row_t;

/* As one of options->ranks; rank 0 prints. */
weft_status_t bench_coll_run(const bench_coll_options_t *options, const bench_coll_rank_t *rank,
                             weft_diag_t *diag);

/* In options->ranks processes, this one among them as rank 0. */
weft_status_t bench_coll_fork(const bench_coll_options_t *options, weft_diag_t *diag);

/* With the other ranks of place, which are options->ranks. */
weft_status_t bench_coll_join(const bench_coll_options_t *options, const launch_place_t *place,
                              weft_diag_t *diag);

/* Collective. on_row is called on rank 0. */
typedef void bench_coll_row_fn(void *user, const char *backend, const bench_coll_row_t *row);
weft_status_t bench_coll_sweep(const bench_coll_options_t *options, const bench_coll_rank_t *rank,
                               bench_coll_row_fn *on_row, void *user, weft_diag_t *diag);

typedef struct bench_coll_report bench_coll_report_t;

weft_status_t bench_coll_report_create(const bench_coll_options_t *options,
                                       bench_coll_report_t **report_out);
void bench_coll_report_row(void *report, const char *backend, const bench_coll_row_t *row);
weft_status_t bench_coll_report_finish(bench_coll_report_t *report);
void bench_coll_report_destroy(bench_coll_report_t *report);

/* What a bus carries for each byte of an operation's size, as nccl-tests counts it. */
double bench_coll_bus_factor(const bench_coll_options_t *options);
bool bench_coll_has_root(const bench_coll_options_t *options);
bool bench_coll_is_sum(const bench_coll_options_t *options);
