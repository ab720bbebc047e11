/* SPDX-License-Identifier: Apache-2.0 */
/*
 * metrics: counters, gauges and histograms, and their Prometheus text (exposition format 0.0.4).
 *
 * A folder writes its rows in <folder>/metrics.def:
 *
 *   METRIC(sent_bytes, COUNTER, "weft:kv_sent_bytes_total", "backend", "KV bytes the peer confirmed.")
 *          field       kind     name with unit              labels     help
 *
 * Rows make the table (WEFT_METRIC_ROW in one .c file), from it the series and docs/metrics.md. A
 * label list is comma-separated; series exist once asked for.
 * Threads  updates are atomic, from any thread, and take no lock; asking for a series takes one
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

typedef enum weft_metric_kind {
    WEFT_METRIC_COUNTER,
    WEFT_METRIC_GAUGE,
    WEFT_METRIC_HISTOGRAM,
} weft_metric_kind_t;

typedef struct weft_metric {
    const char *name;
    weft_metric_kind_t kind;
    const char *labels; /* "reason" or "handler,method,status"; "" for none */
    const char *help;
} weft_metric_t;

#define WEFT_METRIC_ROW(field, kind, name, labels, help) {name, WEFT_METRIC_##kind, labels, help},

typedef struct weft_metrics weft_metrics_t; /* a registry */
typedef struct weft_series weft_series_t; /* one label combination; lives as long as the registry */

/* base_labels: printed first in every sample unless the metric opted out, `model_name="m",engine="0"`. */
weft_status_t weft_metrics_create(const char *base_labels, weft_metrics_t **metrics_out);
void weft_metrics_destroy(weft_metrics_t *metrics); /* NULL is fine */

/*
 * The series of metric with these label values, in the order of metric->labels; made on first use.
 * bounds [n_bounds] ascending, for histograms. has_base_labels false: the base labels are left out.
 * NULL when there is no memory. metric is borrowed for ever (a static row).
 */
weft_series_t *weft_metrics_series(weft_metrics_t *metrics, const weft_metric_t *metric,
                                   const char *const *label_values, const double *bounds,
                                   size_t n_bounds, int has_base_labels);

void weft_series_add(weft_series_t *series, double amount); /* counter; NULL is fine, so for each */
void weft_series_set(weft_series_t *series, double value);  /* gauge */
void weft_series_observe(weft_series_t *series, double value); /* histogram */

/* The text of all series, allocated, NUL behind it; free with weft_free. NULL: no memory. */
char *weft_metrics_text(weft_metrics_t *metrics, size_t *length_out);

/* A section of docs/metrics.md: the rows as a table under title. */
void weft_metrics_print_markdown(const char *title, const weft_metric_t *rows, size_t n_rows,
                                 FILE *file);
