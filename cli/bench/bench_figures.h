/* SPDX-License-Identifier: Apache-2.0 */
/* bench_figures: what a benchmark of many parts found: named figures of a few samples each. */
#pragma once

#include "base/json_writer.h"
#include "base/status.h"
#include "cli/bench/bench_samples.h"

#define BENCH_FIGURES_MAX 64

typedef struct bench_figure {
    const char *name;
    const char *unit;
    bench_samples_t samples;
} bench_figure_t;

/* Zeroed memory is no figures. */
typedef struct bench_figures {
    bench_figure_t items[BENCH_FIGURES_MAX];
    uint32_t n;
} bench_figures_t;

/* One more sample. name and unit: literals. Units are SI ones: s, B/s, blocks/s. */
weft_status_t bench_figures_note(bench_figures_t *figures, const char *name, const char *unit,
                                 double value);
void bench_figures_print(bench_figures_t *figures); /* a line each: median, minimum, maximum */
void bench_figures_put(bench_figures_t *figures, weft_json_t *json); /* as key "figures" */
void bench_figures_fini(bench_figures_t *figures);
