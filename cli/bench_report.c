/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/bench_serve.h"

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

void bench_result_fini(bench_result_t *result)
{
    bench_samples_fini(&result->ttft);
    bench_samples_fini(&result->itl);
    bench_samples_fini(&result->tpot);
    bench_samples_fini(&result->e2e);
}

void bench_result_add_error(bench_result_t *result, const char *kind)
{
    const size_t length = strcspn(kind, ":");
    for (uint32_t i = 0; i < result->n_errors; i++) {
        bench_error_t *error = &result->errors[i];
        if (strncmp(error->kind, kind, length) == 0 && strcspn(error->kind, ":") == length) {
            error->count++;
            return;
        }
    }
    if (result->n_errors < BENCH_ERROR_KINDS) {
        bench_error_t *error = &result->errors[result->n_errors++];
        snprintf(error->kind, sizeof(error->kind), "%s", kind);
        error->count = 1;
    }
}

/* ---- distributions --------------------------------------------------------------------------- */

typedef struct distribution {
    double mean;
    double p50;
    double p90;
    double p99;
    double max;
} distribution_t;

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Between the two nearest ranks, linearly; values sorted. */
static double percentile(const bench_samples_t *samples, double p)
{
    const double at = (double)(samples->n - 1) * p / 100;
    const size_t low = (size_t)at;
    const size_t high = low + 1 < samples->n ? low + 1 : low;
    return samples->values[low] +
           (samples->values[high] - samples->values[low]) * (at - (double)low);
}

/* In milliseconds; all zero when there are none. Sorts the samples. */
static distribution_t distribute(bench_samples_t *samples)
{
    if (samples->n == 0) {
        return (distribution_t){0};
    }
    qsort(samples->values, samples->n, sizeof(*samples->values), compare_doubles);
    double sum = 0;
    for (size_t i = 0; i < samples->n; i++) {
        sum += samples->values[i];
    }
    return (distribution_t){
        .mean = sum / (double)samples->n * 1e3,
        .p50 = percentile(samples, 50) * 1e3,
        .p90 = percentile(samples, 90) * 1e3,
        .p99 = percentile(samples, 99) * 1e3,
        .max = samples->values[samples->n - 1] * 1e3,
    };
}

static double per_second(uint64_t count, const bench_result_t *result)
{
    return result->seconds > 0 ? (double)count / result->seconds : 0;
}

/* ---- for people ------------------------------------------------------------------------------ */

static void print_row(FILE *file, const char *name, bench_samples_t *samples)
{
    const distribution_t d = distribute(samples);
    fprintf(file, "%-6s %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, d.mean, d.p50, d.p90, d.p99,
            d.max);
}

void bench_result_print(const bench_serve_options_t *options, bench_result_t *result, FILE *file)
{
    fprintf(file, "%s: %llu of %u requests succeeded in %.2f s\n", options->url,
            (unsigned long long)result->succeeded, options->requests, result->seconds);
    fprintf(file,
            "%.2f requests/s, %.1f output tokens/s, %.1f prompt tokens/s (%llu, %llu cached)\n",
            per_second(result->succeeded, result), per_second(result->output_tokens, result),
            per_second(result->prompt_tokens, result), (unsigned long long)result->prompt_tokens,
            (unsigned long long)result->cached_tokens);
    fprintf(file, "%-6s %10s %10s %10s %10s %10s\n", "ms", "mean", "p50", "p90", "p99", "max");
    print_row(file, "ttft", &result->ttft);
    print_row(file, "tpot", &result->tpot);
    print_row(file, "itl", &result->itl);
    print_row(file, "e2e", &result->e2e);
    for (uint32_t i = 0; i < result->n_errors; i++) {
        fprintf(file, "failed %llu: %s\n", (unsigned long long)result->errors[i].count,
                result->errors[i].kind);
    }
}

/* ---- for programs ---------------------------------------------------------------------------- */

static json_t *distribution_json(bench_samples_t *samples)
{
    const distribution_t d = distribute(samples);
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:I}", "mean", d.mean, "p50", d.p50, "p90", d.p90,
                     "p99", d.p99, "max", d.max, "n", (json_int_t)samples->n);
}

static json_t *errors_json(const bench_result_t *result)
{
    json_t *errors = json_array();
    for (uint32_t i = 0; i < result->n_errors; i++) {
        json_array_append_new(errors, json_pack("{s:s, s:I}", "error", result->errors[i].kind,
                                                "count", (json_int_t)result->errors[i].count));
    }
    return errors;
}

weft_status_t bench_result_print_json(const bench_serve_options_t *options, bench_result_t *result,
                                      FILE *file)
{
    json_t *object = json_pack(
        "{s:s, s:I, s:I, s:f, s:I, s:I, s:f, s:I, s:f, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "url",
        options->url, "requests", (json_int_t)options->requests, "concurrency",
        (json_int_t)options->concurrency, "rate", options->rate, "input_len",
        (json_int_t)options->input_len, "output_len", (json_int_t)options->output_len,
        "shared_prefix", options->shared_prefix, "seed", (json_int_t)options->seed, "seconds",
        result->seconds, "succeeded", (json_int_t)result->succeeded, "failed",
        (json_int_t)result->failed, "prompt_tokens", (json_int_t)result->prompt_tokens,
        "cached_tokens", (json_int_t)result->cached_tokens, "output_tokens",
        (json_int_t)result->output_tokens, "request_s", per_second(result->succeeded, result),
        "output_tok_s", per_second(result->output_tokens, result));
    char *text = NULL;
    if (object != NULL &&
        json_object_set_new(object, "ttft_ms", distribution_json(&result->ttft)) == 0 &&
        json_object_set_new(object, "tpot_ms", distribution_json(&result->tpot)) == 0 &&
        json_object_set_new(object, "itl_ms", distribution_json(&result->itl)) == 0 &&
        json_object_set_new(object, "e2e_ms", distribution_json(&result->e2e)) == 0 &&
        json_object_set_new(object, "errors", errors_json(result)) == 0) {
        text = json_dumps(object, JSON_REAL_PRECISION(8));
    }
    json_decref(object);
    if (text == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    fprintf(file, "%s\n", text);
    free(text);
    return WEFT_OK;
}
