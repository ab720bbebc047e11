/* SPDX-License-Identifier: Apache-2.0 */
/* The series, and what requests tell them. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "services/api/api_metrics_priv.h"

const weft_metric_t api_metric_rows[] = {
#define METRIC(...) WEFT_METRIC_ROW(__VA_ARGS__)
#include "services/api/metrics.def"
#undef METRIC
};
const size_t api_metric_count = METRIC_COUNT;

static const char *const finish_reasons[FINISH_REASONS] = {"stop", "length", "abort", "error",
                                                           "repetition"};

typedef struct bounds {
    const double *values;
    size_t count;
} bounds_t;

/* Bucket bounds of a histogram; vLLM's families. */
static bounds_t bounds_of(const api_metrics_t *metrics, int field)
{
    static const double ttft[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                                  1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
    static const double itl[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                 0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
    static const double latency[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                     30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
    static const double iteration[] = {1,   8,    16,   32,   64,   128,  256,
                                       512, 1024, 2048, 4096, 8192, 16384};
    static const double read[] = {0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002,
                                  0.005,   0.01,    0.02,    0.05,   0.1,    0.2,    0.5,   1};
    static const double xfer[] = {0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,
                                  0.2,   0.3,   0.5,  0.75,  1,    5};
    static const double bytes[] = {0x1p11, 0x1p13, 0x1p15, 0x1p17, 0x1p19, 0x1p21,
                                   0x1p23, 0x1p25, 0x1p27, 0x1p29, 0x1p31, 0x1p33};
    static const double descriptors[] = {10,  20,   30,   50,   75,    100,   200,
                                         400, 1000, 2000, 4000, 10000, 20000, 50000};
    static const double n[] = {1, 2, 5, 10, 20};
    static const double preemptions[] = {1, 2, 3, 4, 5, 10, 20};

    switch (field) {
    case METRIC_time_to_first_token:
    case METRIC_http_duration:
        return (bounds_t){ttft, WEFT_ARRAY_LEN(ttft)};
    case METRIC_inter_token:
    case METRIC_per_token:
        return (bounds_t){itl, WEFT_ARRAY_LEN(itl)};
    case METRIC_e2e:
    case METRIC_queue_time:
    case METRIC_inference_time:
    case METRIC_prefill_time:
    case METRIC_decode_time:
        return (bounds_t){latency, WEFT_ARRAY_LEN(latency)};
    case METRIC_iteration_tokens:
        return (bounds_t){iteration, WEFT_ARRAY_LEN(iteration)};
    case METRIC_tier_read_time:
        return (bounds_t){read, WEFT_ARRAY_LEN(read)};
    case METRIC_nixl_post_time:
        return (bounds_t){xfer, WEFT_ARRAY_LEN(xfer)};
    case METRIC_nixl_xfer_time:
        return (bounds_t){xfer + 1, WEFT_ARRAY_LEN(xfer) - 1};
    case METRIC_nixl_bytes:
        return (bounds_t){bytes, WEFT_ARRAY_LEN(bytes)};
    case METRIC_nixl_descriptors:
        return (bounds_t){descriptors, WEFT_ARRAY_LEN(descriptors)};
    case METRIC_params_n:
        return (bounds_t){n, WEFT_ARRAY_LEN(n)};
    case METRIC_request_preemptions:
        return (bounds_t){preemptions, WEFT_ARRAY_LEN(preemptions)};
    default:
        return (bounds_t){metrics->token_bounds, metrics->n_token_bounds};
    }
}

/* 1 2 5 10 20 50 …, not above max_context. */
static void fill_token_bounds(api_metrics_t *metrics, uint32_t max_context)
{
    static const double steps[] = {1, 2, 5};

    for (double scale = 1; scale <= max_context; scale *= 10) {
        for (size_t i = 0; i < WEFT_ARRAY_LEN(steps); i++) {
            double bound = steps[i] * scale;
            if (bound <= max_context && metrics->n_token_bounds < MAX_TOKEN_BOUNDS) {
                metrics->token_bounds[metrics->n_token_bounds++] = bound;
            }
        }
    }
}

/* Named series of the library's own clients carry no model. */
static int has_base_labels(int field)
{
    const char *name = api_metric_rows[field].name;

    return strncmp(name, "vllm:", 5) == 0 && field != METRIC_cache_config &&
           field != METRIC_rejections;
}

weft_series_t *api_metrics_labelled(api_metrics_t *metrics, int field, const char *const *values)
{
    bounds_t bounds = {0};

    if (api_metric_rows[field].kind == WEFT_METRIC_HISTOGRAM) {
        bounds = bounds_of(metrics, field);
    }
    return weft_metrics_series(metrics->registry, &api_metric_rows[field], values, bounds.values,
                               bounds.count, has_base_labels(field));
}

static weft_series_t *with_label(api_metrics_t *metrics, int field, const char *value)
{
    return api_metrics_labelled(metrics, field, &value);
}

static void make_device(api_metrics_t *metrics)
{
    static const char *const kinds[ENGINE_STEP_KINDS] = {
        [ENGINE_STEP_DECODE] = "decode",
        [ENGINE_STEP_PROMPT] = "prompt",
    };

    for (uint32_t i = 0; i < ENGINE_STEP_KINDS; i++) {
        metrics->device_busy[i] = with_label(metrics, METRIC_device_busy, kinds[i]);
        metrics->device_gap[i] = with_label(metrics, METRIC_device_gap, kinds[i]);
        metrics->device_gaps[i] = with_label(metrics, METRIC_device_gaps, kinds[i]);
    }
}

static void make_labelled(api_metrics_t *metrics, const api_model_t *model)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(finish_reasons); i++) {
        metrics->finished[i] = with_label(metrics, METRIC_request_success, finish_reasons[i]);
    }
    metrics->computed = with_label(metrics, METRIC_prompt_by_source, "local_compute");
    metrics->from_cache = with_label(metrics, METRIC_prompt_by_source, "local_cache_hit");
    metrics->from_pulls = with_label(metrics, METRIC_prompt_by_source, "external_kv_transfer");
    metrics->cached_from_pulls = with_label(metrics, METRIC_cached_by_source, "p2p");
    with_label(metrics, METRIC_cached_by_source, "external_unspecified");
    for (kv_tier_id_t tier = 0; tier < KV_TIER_COUNT; tier++) {
        const char *name = kv_tier_name(tier);
        metrics->from_tiers[tier] = with_label(metrics, METRIC_cached_by_source, name);
        metrics->tier_read_time[tier] = with_label(metrics, METRIC_tier_read_time, name);
        for (size_t i = 0; i < TIER_ROWS; i++) {
            metrics->tiers[tier][i] = with_label(metrics, api_metrics_tier_rows[i].field, name);
        }
    }
    metrics->waiting_for_capacity = with_label(metrics, METRIC_waiting_by_reason, "capacity");
    with_label(metrics, METRIC_waiting_by_reason, "deferred");
    metrics->ranks_gone = with_label(metrics, METRIC_rank_failures, "gone");
    metrics->ranks_timed_out = with_label(metrics, METRIC_rank_failures, "timeout");
    make_device(metrics);
    weft_series_set(with_label(metrics, METRIC_sleep_state, "awake"), 1);
    with_label(metrics, METRIC_sleep_state, "weights_offloaded");
    with_label(metrics, METRIC_sleep_state, "discard_all");
    metrics->rejected = api_metrics_labelled(
        metrics, METRIC_rejections, (const char *[]){model->names[0], "max_num_queued_reqs"});
    api_metrics_labelled(metrics, METRIC_rejections,
                         (const char *[]){model->names[0], "max_num_queued_tokens"});
}

static void make_cache_config(api_metrics_t *metrics, const engine_options_t *options,
                              const engine_t *engine)
{
    char block_size[16];
    char blocks[16];
    char rank[16];

    snprintf(block_size, sizeof(block_size), "%u", options->block_size);
    snprintf(blocks, sizeof(blocks), "%u", engine_stats(engine).total_blocks);
    snprintf(rank, sizeof(rank), "%u", options->data_parallel_rank);
    weft_series_set(
        api_metrics_labelled(metrics, METRIC_cache_config,
                             (const char *[]){block_size, blocks, options->kv_cache_dtype,
                                              options->enable_prefix_caching ? "True" : "False",
                                              options->hash_algo, "0.9", rank}),
        1);
}

void api_metrics_append_label(weft_buffer_t *out, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '\n') {
            weft_buffer_puts(out, "\\n");
        } else {
            weft_buffer_append(out, "\\", *text == '"' || *text == '\\');
            weft_buffer_append(out, text, 1);
        }
    }
}

static weft_status_t make_registry(api_metrics_t *metrics, const api_model_t *model, uint32_t rank)
{
    weft_buffer_t labels = {0};

    weft_buffer_puts(&labels, "model_name=\"");
    api_metrics_append_label(&labels, model->names[0]);
    weft_buffer_printf(&labels, "\",engine=\"%u\"", rank);
    weft_buffer_append(&labels, "", 1);
    weft_status_t status = labels.is_failed ? WEFT_ERR_NO_MEMORY
                                            : weft_metrics_create(labels.data, &metrics->registry);
    weft_buffer_free(&labels);
    return status;
}

weft_status_t api_metrics_create(const api_model_t *model, const engine_options_t *options,
                                 const engine_t *engine, api_metrics_t **metrics_out)
{
    api_metrics_t *metrics = weft_zalloc(sizeof(*metrics), "api.metrics");

    if (metrics == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = make_registry(metrics, model, options->data_parallel_rank);
    if (status < 0) {
        api_metrics_destroy(metrics);
        return status;
    }
    fill_token_bounds(metrics, model->max_context);
    for (int field = 0; field < METRIC_COUNT; field++) {
        if (api_metric_rows[field].labels[0] == '\0') {
            metrics->series[field] = api_metrics_labelled(metrics, field, NULL);
        }
    }
    make_labelled(metrics, model);
    make_cache_config(metrics, options, engine);
    metrics->max_loras = options->max_loras;
    weft_series_set(metrics->series[METRIC_start_time],
                    (double)weft_wallclock_ns() / (double)WEFT_NS_PER_SECOND);
    *metrics_out = metrics;
    return WEFT_OK;
}

void api_metrics_destroy(api_metrics_t *metrics)
{
    if (metrics != NULL) {
        weft_metrics_destroy(metrics->registry);
        weft_free(metrics);
    }
}

/* ---- requests -------------------------------------------------------------------------------- */

static double seconds_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / (double)WEFT_NS_PER_SECOND : 0;
}

static void add(api_metrics_t *metrics, int field, double amount)
{
    weft_series_add(metrics->series[field], amount);
}

static void observe(api_metrics_t *metrics, int field, double value)
{
    weft_series_observe(metrics->series[field], value);
}

void api_metrics_prompt_done(api_metrics_t *metrics, generation_prompt_t *prompt)
{
    if (prompt->is_counted) {
        return;
    }
    engine_timings_t timings = engine_request_timings(prompt->request);
    double cached = timings.cached_tokens;

    prompt->is_counted = true;
    prompt->cached_tokens = timings.cached_tokens;
    add(metrics, METRIC_prompt_cached, cached);
    weft_series_add(metrics->computed, prompt->n_ids - cached);
    weft_series_add(metrics->from_cache, cached - timings.pulled_tokens);
    weft_series_add(metrics->from_pulls, timings.pulled_tokens);
    weft_series_add(metrics->cached_from_pulls, timings.pulled_tokens);
    for (kv_tier_id_t tier = 0; tier < KV_TIER_COUNT; tier++) {
        weft_series_add(metrics->from_tiers[tier], timings.cached_tokens_from[tier]);
    }
    observe(metrics, METRIC_queue_time, seconds_between(timings.arrival_ns, timings.scheduled_ns));
    if (timings.first_token_ns != 0) { /* an embedding has none, nor a prompt alone */
        observe(metrics, METRIC_time_to_first_token,
                seconds_between(timings.arrival_ns, timings.first_token_ns));
        observe(metrics, METRIC_prefill_time,
                seconds_between(timings.scheduled_ns, timings.first_token_ns));
    }
    observe(metrics, METRIC_prefill_computed, prompt->n_ids - cached);
}

void api_metrics_tokens(api_metrics_t *metrics, generation_choice_t *choice)
{
    uint64_t now = weft_clock_ns();

    if (choice->last_token_ns != 0) {
        observe(metrics, METRIC_inter_token, seconds_between(choice->last_token_ns, now));
    }
    choice->last_token_ns = now;
}

static void count_reason(api_metrics_t *metrics, const char *reason)
{
    /* A call of tools is a stop to the engine. */
    const char *name = strcmp(reason, "tool_calls") == 0 ? "stop" : reason;

    for (size_t i = 0; i < WEFT_ARRAY_LEN(finish_reasons); i++) {
        if (strcmp(finish_reasons[i], name) == 0) {
            weft_series_add(metrics->finished[i], 1);
        }
    }
}

static void observe_choice(api_metrics_t *metrics, const generation_choice_t *choice,
                           const engine_timings_t *timings, uint64_t now)
{
    double decode = seconds_between(timings->first_token_ns, choice->last_token_ns);

    observe(metrics, METRIC_e2e, seconds_between(timings->arrival_ns, now));
    observe(metrics, METRIC_decode_time, decode);
    observe(metrics, METRIC_inference_time,
            seconds_between(timings->scheduled_ns, choice->last_token_ns));
    observe(metrics, METRIC_request_generation, choice->n_tokens);
    if (choice->n_tokens > 1) {
        observe(metrics, METRIC_per_token, decode / (choice->n_tokens - 1));
    }
}

void api_metrics_prompt_finished(api_metrics_t *metrics, const generation_prompt_t *prompt,
                                 const char *reason)
{
    const generation_t *generation = prompt->generation;
    engine_timings_t timings = engine_request_timings(prompt->request);
    const generation_choice_t *choices =
        &generation->choices[(size_t)(prompt - generation->prompts) * generation->n];
    uint64_t now = weft_clock_ns();
    uint32_t longest = 0;

    for (uint32_t i = 0; i < generation->n; i++) {
        const char *own = choices[i].finish_reason;
        count_reason(metrics, reason != NULL ? reason : own != NULL ? own : "abort");
        longest = choices[i].n_tokens > longest ? choices[i].n_tokens : longest;
        if (timings.first_token_ns != 0) {
            observe_choice(metrics, &choices[i], &timings, now);
        }
    }
    observe(metrics, METRIC_request_preemptions, timings.preemptions);
    observe(metrics, METRIC_request_prompt, prompt->n_ids);
    observe(metrics, METRIC_request_max_generation, longest);
    observe(metrics, METRIC_params_max_tokens, prompt->max_tokens);
    observe(metrics, METRIC_params_n, generation->n);
}

/* On the engine's thread. */
static void on_step(void *user, uint32_t tokens)
{
    observe(user, METRIC_iteration_tokens, tokens);
}

static void on_read(void *user, kv_tier_id_t tier, uint64_t ns)
{
    api_metrics_t *metrics = user;

    weft_series_observe(metrics->tier_read_time[tier], (double)ns / (double)WEFT_NS_PER_SECOND);
}

static void on_pulled(void *user, const kv_pull_report_t *report)
{
    observe(user, METRIC_nixl_xfer_time, report->seconds);
    observe(user, METRIC_nixl_post_time, report->post_seconds);
    observe(user, METRIC_nixl_bytes, (double)report->bytes);
    observe(user, METRIC_nixl_descriptors, (double)report->descriptors);
}

engine_observer_t api_metrics_observer(api_metrics_t *metrics)
{
    return (engine_observer_t){
        .user = metrics, .on_step = on_step, .on_read = on_read, .on_pulled = on_pulled};
}

void api_metrics_rejected(api_metrics_t *metrics)
{
    weft_series_add(metrics->rejected, 1);
}

void api_metrics_http(api_metrics_t *metrics, const char *handler, const char *method,
                      uint32_t status, uint64_t duration_ns)
{
    char group[8];

    snprintf(group, sizeof(group), "%uxx", status / 100 % 10);
    weft_series_add(api_metrics_labelled(metrics, METRIC_http_requests,
                                         (const char *[]){handler, method, group}),
                    1);
    weft_series_observe(
        api_metrics_labelled(metrics, METRIC_http_duration, (const char *[]){handler, method}),
        (double)duration_ns / (double)WEFT_NS_PER_SECOND);
}
