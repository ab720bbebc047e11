/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_kv: the parts of `weft bench kv`: rates of the KV store's pieces (bench_kv_parts.h), and a
 * trace of conversations (bench_kv_trace.h) replayed with different stores (bench_kv_grid.h).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/option.h"
#include "runtime/engine/engine.h"

typedef struct bench_kv_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/bench/bench_kv.def"
#undef OPTION
} bench_kv_options_t;

/* Measures and prints. A mismatch that --check looks for is WEFT_ERR_INTERNAL. */
weft_status_t bench_kv_parts(const bench_kv_options_t *options, const engine_options_t *engine,
                             weft_diag_t *diag);
weft_status_t bench_kv_runs(const bench_kv_options_t *options, const engine_options_t *engine,
                            weft_diag_t *diag);
