/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "cli/bench/bench_serve.h"

#define MS 1e3 /* in a second */

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

static double per_second(uint64_t count, const bench_result_t *result)
{
    return result->seconds > 0 ? (double)count / result->seconds : 0;
}

/* ---- for people ------------------------------------------------------------------------------ */

static void print_row(FILE *file, const char *name, bench_samples_t *samples)
{
    const bench_distribution_t d = bench_samples_distribute(samples);
    fprintf(file, "%-6s %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, d.mean * MS, d.p50 * MS,
            d.p90 * MS, d.p99 * MS, d.max * MS);
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
    const bench_distribution_t d = bench_samples_distribute(samples);
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:I}", "mean", d.mean * MS, "p50", d.p50 * MS,
                     "p90", d.p90 * MS, "p99", d.p99 * MS, "max", d.max * MS, "n",
                     (json_int_t)samples->n);
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
