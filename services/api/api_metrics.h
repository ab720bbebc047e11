/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api_metrics: what GET /metrics shows: rows in metrics.def.
 *
 * Threads  the loop
 */
#pragma once

#include "base/metrics.h"
#include "runtime/engine/engine.h"
#include "services/api/generation.h"

typedef struct api_metrics api_metrics_t;

weft_status_t api_metrics_create(const api_model_t *model, const engine_options_t *options,
                                 const engine_t *engine, api_metrics_t **metrics_out);
void api_metrics_destroy(api_metrics_t *metrics); /* NULL is fine */

/* prompt's first token came: what its prefill took. Counts once. */
void api_metrics_prompt_done(api_metrics_t *metrics, generation_prompt_t *prompt);

/* choice got tokens just now. */
void api_metrics_tokens(api_metrics_t *metrics, generation_choice_t *choice);

/* What the engine reports as it happens. */
engine_observer_t api_metrics_observer(api_metrics_t *metrics);

/* All samples of prompt are finished, or given up (reason overrides theirs then; else NULL). */
void api_metrics_prompt_finished(api_metrics_t *metrics, const generation_prompt_t *prompt,
                                 const char *reason);

void api_metrics_rejected(api_metrics_t *metrics);
void api_metrics_http(api_metrics_t *metrics, const char *handler, const char *method,
                      uint32_t status, uint64_t duration_ns);

typedef struct api_metrics_gauges {
    uint32_t connections;
    uint32_t open_calls;
} api_metrics_gauges_t;

/* The exposition; free with weft_free. NULL: no memory. */
char *api_metrics_text(api_metrics_t *metrics, engine_t *engine, const api_metrics_gauges_t *gauges,
                       size_t *length_out);

extern const weft_metric_t api_metric_rows[];
extern const size_t api_metric_count;
