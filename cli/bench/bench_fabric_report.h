/* SPDX-License-Identifier: Apache-2.0 */
/* bench_fabric_report: what a sweep found: a table for people, an object for programs. */
#pragma once

#include "cli/bench/bench_fabric_contender.h"
#include "cli/bench/bench_samples.h"

#define BENCH_FABRIC_CONTENDERS 4 /* transfers, then the floors that were asked for */

typedef struct bench_fabric_series {
    const char *name;      /* of the contender */
    bench_samples_t rates; /* bytes a second, one a round */
    bench_samples_t times; /* seconds of each transfer, all rounds */
    bench_distribution_t rate;
    bench_distribution_t time;
} bench_fabric_series_t;

/* What one size came to. */
typedef struct bench_fabric_result {
    bench_fabric_size_t size;
    char backend[32];
    uint64_t extents;
    bench_fabric_series_t series[BENCH_FABRIC_CONTENDERS];
} bench_fabric_result_t;

typedef struct bench_fabric_report {
    const bench_fabric_options_t *options;
    const bench_fabric_geometry_t *geometry;
    const bench_fabric_result_t *results; /* [n_results] */
    size_t n_results;
    size_t n_series; /* of each */
} bench_fabric_report_t;

weft_status_t bench_fabric_report_print(const bench_fabric_report_t *report);
