/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_samples.h"

#include <stdlib.h>

#include "base/alloc.h"

weft_status_t bench_samples_add(bench_samples_t *samples, double value)
{
    if (samples->n == samples->capacity) {
        const size_t capacity = samples->capacity > 0 ? 2 * samples->capacity : 256;
        double *values = weft_realloc(samples->values, capacity * sizeof(*values), "bench.samples");
        if (values == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
        samples->values = values;
        samples->capacity = capacity;
    }
    samples->values[samples->n++] = value;
    return WEFT_OK;
}

void bench_samples_fini(bench_samples_t *samples)
{
    weft_free(samples->values);
    *samples = (bench_samples_t){0};
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const bench_samples_t *sorted, double p)
{
    const double at = (double)(sorted->n - 1) * p / 100;
    const size_t low = (size_t)at;
    const size_t high = low + 1 < sorted->n ? low + 1 : low;
    return sorted->values[low] + (sorted->values[high] - sorted->values[low]) * (at - (double)low);
}

bench_distribution_t bench_samples_distribute(bench_samples_t *samples)
{
    if (samples->n == 0) {
        return (bench_distribution_t){0};
    }
    qsort(samples->values, samples->n, sizeof(*samples->values), compare_doubles);
    double sum = 0;
    for (size_t i = 0; i < samples->n; i++) {
        sum += samples->values[i];
    }
    return (bench_distribution_t){
        .mean = sum / (double)samples->n,
        .min = samples->values[0],
        .p50 = percentile(samples, 50),
        .p90 = percentile(samples, 90),
        .p99 = percentile(samples, 99),
        .max = samples->values[samples->n - 1],
    };
}
