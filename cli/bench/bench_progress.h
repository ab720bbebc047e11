/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_progress: a line on standard error that says how far a long measurement is: on a terminal
 * rewritten as it changes, elsewhere a new one every 15 seconds.
 */
#pragma once

#include <stdint.h>

#include "base/compiler.h"

/* Zeroed memory has shown nothing. */
typedef struct bench_progress {
    uint64_t shown_ns;
} bench_progress_t;

void bench_progress_show(bench_progress_t *progress, const char *format, ...) WEFT_PRINTF(2, 3);
void bench_progress_end(const bench_progress_t *progress); /* a terminal's line is empty again */
