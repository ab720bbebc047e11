/* SPDX-License-Identifier: Apache-2.0 */
/* api_metrics_priv: the series, for the files that make, feed and show them. */
#pragma once

#include "base/compiler.h"
#include "services/api/api_metrics.h"

enum {
#define METRIC(field, kind, name, labels, help) METRIC_##field,
#include "services/api/metrics.def"
#undef METRIC
    METRIC_COUNT
};

#define MAX_TOKEN_BOUNDS 40

#define FINISH_REASONS 5
#define TIER_ROWS      18

/* What the store counts for each tier. Counters show what was added since the last look. */
typedef struct api_metrics_tier_row {
    int field;
    size_t offset; /* of a uint64_t in kv_store_tier_stats_t */
} api_metrics_tier_row_t;

extern const api_metrics_tier_row_t api_metrics_tier_rows[TIER_ROWS];

/* api_metrics_transfer.c: what the transfer of blocks counted since the last look. */
void api_metrics_add_transfer(api_metrics_t *metrics, const engine_t *engine);

/* The series of field for the values of its labels, made on first use. */
weft_series_t *api_metrics_labelled(api_metrics_t *metrics, int field, const char *const *values);

/* A label's value as the exposition writes it. */
void api_metrics_append_label(weft_buffer_t *out, const char *text);

/* api_metrics_adapters.c: text, with what adapters do behind it; NULL: no memory, text is freed. */
char *api_metrics_add_adapters(const api_metrics_t *metrics, engine_t *engine, char *text,
                               size_t *length);

struct api_metrics {
    weft_metrics_t *registry;
    weft_series_t *series[METRIC_COUNT]; /* those without labels of their own */
    weft_series_t *finished[FINISH_REASONS];
    weft_series_t *computed; /* prompt tokens by source */
    weft_series_t *from_cache;
    weft_series_t *from_tiers[KV_TIER_COUNT]; /* cached ones */
    weft_series_t *tiers[KV_TIER_COUNT][TIER_ROWS];
    weft_series_t *tier_read_time[KV_TIER_COUNT];
    weft_series_t *waiting_for_capacity;
    weft_series_t *accepted[ENGINE_MAX_DRAFTS]; /* made with the first look, as many as guessed */
    weft_series_t *ranks_gone;
    weft_series_t *ranks_timed_out;
    weft_series_t *rejected;
    weft_series_t *device_busy[ENGINE_STEP_KINDS];
    weft_series_t *device_gap[ENGINE_STEP_KINDS];
    weft_series_t *device_gaps[ENGINE_STEP_KINDS];
    double token_bounds[MAX_TOKEN_BOUNDS];
    size_t n_token_bounds;
    weft_series_t *from_pulls;
    weft_series_t *cached_from_pulls;
    kv_transfer_stats_t transfer; /* shown so far, so for the next */
    uint32_t max_loras;
    double cpu_seconds;
    engine_stats_t stats;
};
