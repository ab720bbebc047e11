/* SPDX-License-Identifier: Apache-2.0 */
/* bench_samples: measurements of one kind, and how they are distributed. */
#pragma once

#include <stddef.h>

#include "base/status.h"

/* Zeroed memory is no samples. */
typedef struct bench_samples {
    double *values;
    size_t n;
    size_t capacity;
} bench_samples_t;

typedef struct bench_distribution {
    double mean;
    double min;
    double p50; /* between the two nearest ranks, linearly; so for each */
    double p90;
    double p99;
    double max;
} bench_distribution_t;

weft_status_t bench_samples_add(bench_samples_t *samples, double value);
void bench_samples_fini(bench_samples_t *samples); /* no samples again */

/* All zero when there are none. Sorts the samples. */
bench_distribution_t bench_samples_distribute(bench_samples_t *samples);
