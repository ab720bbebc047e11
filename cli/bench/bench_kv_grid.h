/* SPDX-License-Identifier: Apache-2.0 */
/* bench_kv_grid: one trace with one store after another, and what each of them gave. */
#pragma once

#include "cli/bench/bench_kv.h"
#include "cli/bench/bench_kv_trace.h"
#include "kvstore/kv_layout.h"

#define BENCH_KV_MAX_RUNS 64

typedef struct bench_kv_store {
    const char *name;
    bool has_host;
    bool has_disk;
    bool is_cold; /* no prefix caching at all */
} bench_kv_store_t;

/* A replay's engine, and what came of it. */
typedef struct bench_kv_run {
    const bench_kv_store_t *store;
    const char *policy; /* of a disk, else NULL */
    double size;        /* of the store, in working sets; 0: it has none */
    size_t bytes;
    bench_kv_replay_t replay; /* of all rounds */
    bench_distribution_t ttft;
    bench_distribution_t e2e;
    char digest[17];      /* of all answers: the first 64 bits of their SHA-256 */
    uint64_t n_different; /* turns whose tokens are not those of the first run */
} bench_kv_run_t;

typedef struct bench_kv_grid {
    const bench_kv_options_t *options;
    const model_config_t *model;
    bench_kv_trace_t trace;
    kv_layout_t layout;
    uint64_t working_set; /* blocks, so below */
    uint32_t device_blocks;
    uint32_t threads;
    bench_kv_run_t runs[BENCH_KV_MAX_RUNS];
    uint32_t n_runs;
} bench_kv_grid_t;

/* What can be said of the options before a model is there. */
weft_status_t bench_kv_grid_check(const bench_kv_options_t *options, weft_diag_t *diag);

/* The runs that options ask for, the cold one first. model and options are borrowed. */
weft_status_t bench_kv_grid_init(bench_kv_grid_t *grid, const bench_kv_options_t *options,
                                 const engine_options_t *engine, const model_config_t *model,
                                 weft_diag_t *diag);

weft_status_t bench_kv_grid_print_text(const bench_kv_grid_t *grid);
weft_status_t bench_kv_grid_print_json(const bench_kv_grid_t *grid);
