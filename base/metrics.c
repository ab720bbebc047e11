/* SPDX-License-Identifier: Apache-2.0 */
#include "base/metrics.h"

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buffer.h"
#include "base/utf8.h"

struct weft_series {
    weft_series_t *next;
    char *labels;         /* as printed, without braces: `model_name="m",reason="length"` */
    _Atomic double value; /* counter, gauge; histogram: the sum */
    size_t n_bounds;
    double *bounds;               /* [n_bounds] */
    atomic_uint_fast64_t *counts; /* [n_bounds + 1], not cumulated */
};

typedef struct family {
    const weft_metric_t *metric;
    weft_series_t *first;
    weft_series_t *last;
    struct family *next;
} family_t;

struct weft_metrics {
    pthread_mutex_t lock;
    char *base_labels;
    family_t *first; /* guarded by lock, and so is everything below it but the values */
    family_t *last;
};

weft_status_t weft_metrics_create(const char *base_labels, weft_metrics_t **metrics_out)
{
    weft_metrics_t *metrics = weft_zalloc(sizeof(*metrics), "metrics");
    if (metrics == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    metrics->base_labels = weft_strdup(base_labels == NULL ? "" : base_labels, "metrics.labels");
    if (metrics->base_labels == NULL) {
        weft_free(metrics);
        return WEFT_ERR_NO_MEMORY;
    }
    pthread_mutex_init(&metrics->lock, NULL);
    *metrics_out = metrics;
    return WEFT_OK;
}

static void series_destroy(weft_series_t *series)
{
    weft_free(series->labels);
    weft_free(series->bounds);
    weft_free(series->counts);
    weft_free(series);
}

void weft_metrics_destroy(weft_metrics_t *metrics)
{
    if (metrics == NULL) {
        return;
    }
    for (family_t *family = metrics->first; family != NULL;) {
        for (weft_series_t *series = family->first; series != NULL;) {
            weft_series_t *after = series->next;
            series_destroy(series);
            series = after;
        }
        family_t *after = family->next;
        weft_free(family);
        family = after;
    }
    pthread_mutex_destroy(&metrics->lock);
    weft_free(metrics->base_labels);
    weft_free(metrics);
}

/* A backslash before what would end the value or the line; bytes that are no UTF-8 become '?'. */
static void append_escaped(weft_buffer_t *out, const char *text, bool is_quoted)
{
    const size_t length = strlen(text);
    for (size_t i = 0; i < length;) {
        const size_t n = weft_utf8_length(text + i, length - i);
        if (n == 0) {
            weft_buffer_puts(out, "?");
        } else if (text[i] == '\n') {
            weft_buffer_puts(out, "\\n");
        } else {
            if (text[i] == '\\' || (is_quoted && text[i] == '"')) {
                weft_buffer_puts(out, "\\");
            }
            weft_buffer_append(out, text + i, n);
        }
        i += n == 0 ? 1 : n;
    }
}

/* `a="1",b="2"` of names "a,b" and values {"1", "2"}, behind the base labels. */
static char *make_labels(const char *base, const char *names, const char *const *values)
{
    weft_buffer_t out = {0};
    weft_buffer_puts(&out, base);
    for (size_t i = 0; *names != '\0'; i++) {
        const size_t length = strcspn(names, ",");
        weft_buffer_printf(&out, "%s%.*s=\"", out.length > 0 ? "," : "", (int)length, names);
        append_escaped(&out, values[i], true);
        weft_buffer_puts(&out, "\"");
        names += length + (names[length] == ',');
    }
    return weft_buffer_take(&out, NULL);
}

static weft_series_t *series_create(char *labels, const double *bounds, size_t n_bounds,
                                    bool is_histogram)
{
    weft_series_t *series = weft_zalloc(sizeof(*series), "metrics.series");
    if (series == NULL) {
        weft_free(labels);
        return NULL;
    }
    series->labels = labels;
    atomic_init(&series->value, 0.0);
    if (!is_histogram) {
        return series;
    }
    series->n_bounds = n_bounds;
    series->bounds = weft_calloc(n_bounds + 1, sizeof(*bounds), "metrics.bounds");
    series->counts = weft_calloc(n_bounds + 1, sizeof(series->counts[0]), "metrics.counts");
    if (series->bounds == NULL || series->counts == NULL) {
        series_destroy(series);
        return NULL;
    }
    if (n_bounds > 0) {
        memcpy(series->bounds, bounds, n_bounds * sizeof(*bounds));
    }
    return series;
}

static family_t *family_get_locked(weft_metrics_t *metrics, const weft_metric_t *metric)
{
    for (family_t *family = metrics->first; family != NULL; family = family->next) {
        if (family->metric == metric || strcmp(family->metric->name, metric->name) == 0) {
            assert(family->metric->kind == metric->kind);
            return family;
        }
    }
    family_t *family = weft_zalloc(sizeof(*family), "metrics.family");
    if (family == NULL) {
        return NULL;
    }
    family->metric = metric;
    if (metrics->last == NULL) {
        metrics->first = family;
    } else {
        metrics->last->next = family;
    }
    metrics->last = family;
    return family;
}

/* Takes labels. */
static weft_series_t *series_get_locked(weft_metrics_t *metrics, const weft_metric_t *metric,
                                        char *labels, const double *bounds, size_t n_bounds)
{
    family_t *family = family_get_locked(metrics, metric);
    weft_series_t *series = family == NULL ? NULL : family->first;
    while (series != NULL && strcmp(series->labels, labels) != 0) {
        series = series->next;
    }
    if (series != NULL || family == NULL) {
        weft_free(labels);
        return series;
    }
    series = series_create(labels, bounds, n_bounds, metric->kind == WEFT_METRIC_HISTOGRAM);
    if (series == NULL) {
        return NULL;
    }
    if (family->last == NULL) {
        family->first = series;
    } else {
        family->last->next = series;
    }
    family->last = series;
    return series;
}

weft_series_t *weft_metrics_series(weft_metrics_t *metrics, const weft_metric_t *metric,
                                   const char *const *label_values, const double *bounds,
                                   size_t n_bounds, int has_base_labels)
{
    char *labels =
        make_labels(has_base_labels ? metrics->base_labels : "", metric->labels, label_values);
    if (labels == NULL) {
        return NULL;
    }
    pthread_mutex_lock(&metrics->lock);
    weft_series_t *series = series_get_locked(metrics, metric, labels, bounds, n_bounds);
    pthread_mutex_unlock(&metrics->lock);
    return series;
}

void weft_series_add(weft_series_t *series, double amount)
{
    if (series == NULL) {
        return;
    }
    double old = atomic_load_explicit(&series->value, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&series->value, &old, old + amount,
                                                  memory_order_relaxed, memory_order_relaxed)) {
    }
}

void weft_series_set(weft_series_t *series, double value)
{
    if (series != NULL) {
        atomic_store_explicit(&series->value, value, memory_order_relaxed);
    }
}

void weft_series_observe(weft_series_t *series, double value)
{
    if (series == NULL) {
        return;
    }
    size_t bucket = 0;
    while (bucket < series->n_bounds && value > series->bounds[bucket]) {
        bucket++;
    }
    atomic_fetch_add_explicit(&series->counts[bucket], 1, memory_order_relaxed);
    weft_series_add(series, value);
}

/*
 * The shortest text that reads back as value, in the form of the Python client, whose output
 * vLLM's dashboards were written against: 1.0, 0.25, 1e+06.
 */
static void append_number(weft_buffer_t *out, double value)
{
    char text[40];
    const double size = fabs(value);
    if (isnan(value)) {
        weft_buffer_puts(out, "NaN");
    } else if (isinf(value)) {
        weft_buffer_puts(out, value > 0 ? "+Inf" : "-Inf");
    } else if (size < 1e6 && value == floor(value)) {
        weft_buffer_printf(out, "%.1f", value);
    } else {
        for (int digits = 1; digits <= 17; digits++) {
            snprintf(text, sizeof(text), size >= 1e6 ? "%.*e" : "%.*g",
                     size >= 1e6 ? digits - 1 : digits, value);
            if (strtod(text, NULL) == value) {
                break;
            }
        }
        weft_buffer_puts(out, text);
    }
}

static void append_sample(weft_buffer_t *out, const char *name, const char *suffix,
                          const char *labels, double value)
{
    weft_buffer_printf(out, labels[0] == '\0' ? "%s%s%s " : "%s%s{%s} ", name, suffix, labels);
    append_number(out, value);
    weft_buffer_puts(out, "\n");
}

static void append_histogram(weft_buffer_t *out, const char *name, weft_series_t *series)
{
    uint64_t count = 0;
    for (size_t i = 0; i <= series->n_bounds; i++) {
        count += atomic_load_explicit(&series->counts[i], memory_order_relaxed);
        weft_buffer_printf(out, "%s_bucket{%s%sle=\"", name, series->labels,
                           series->labels[0] == '\0' ? "" : ",");
        append_number(out, i < series->n_bounds ? series->bounds[i] : INFINITY);
        weft_buffer_puts(out, "\"} ");
        append_number(out, (double)count);
        weft_buffer_puts(out, "\n");
    }
    append_sample(out, name, "_sum", series->labels, atomic_load(&series->value));
    append_sample(out, name, "_count", series->labels, (double)count);
}

static const char *kind_name(weft_metric_kind_t kind)
{
    static const char *const names[] = {"counter", "gauge", "histogram"};
    return names[kind];
}

static void append_family(weft_buffer_t *out, const family_t *family)
{
    const weft_metric_t *metric = family->metric;
    weft_buffer_printf(out, "# HELP %s ", metric->name);
    append_escaped(out, metric->help, false);
    weft_buffer_printf(out, "\n# TYPE %s %s\n", metric->name, kind_name(metric->kind));
    for (weft_series_t *series = family->first; series != NULL; series = series->next) {
        if (metric->kind == WEFT_METRIC_HISTOGRAM) {
            append_histogram(out, metric->name, series);
        } else {
            append_sample(out, metric->name, "", series->labels, atomic_load(&series->value));
        }
    }
}

char *weft_metrics_text(weft_metrics_t *metrics, size_t *length_out)
{
    weft_buffer_t out = {0};
    pthread_mutex_lock(&metrics->lock);
    for (const family_t *family = metrics->first; family != NULL; family = family->next) {
        append_family(&out, family);
    }
    pthread_mutex_unlock(&metrics->lock);
    return weft_buffer_take(&out, length_out);
}

/* A '|' would end the cell. */
static void print_cell(const char *text, FILE *file)
{
    for (; *text != '\0'; text++) {
        if (*text == '|') {
            fputc('\\', file);
        }
        fputc(*text, file);
    }
}

void weft_metrics_print_markdown(const char *title, const weft_metric_t *rows, size_t n_rows,
                                 FILE *file)
{
    fprintf(file, "## %s\n\n| name | kind | labels | meaning |\n|---|---|---|---|\n", title);
    for (size_t i = 0; i < n_rows; i++) {
        fprintf(file, "| `%s` | %s | %s | ", rows[i].name, kind_name(rows[i].kind), rows[i].labels);
        print_cell(rows[i].help, file);
        fputs(" |\n", file);
    }
    fputc('\n', file);
}
