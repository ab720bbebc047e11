/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_serve: the parts of `weft bench serve`: prompts (bench_prompts.c), the server's
 * side of the wire (bench_http.c), the load (bench_load.c), what came of it (bench_report.c).
 * One thread.
 *
 * Times  seconds. ttft: from a request's arrival (open loop: the planned one, so that a client that
 *        falls behind hides nothing) to the first event with text; itl: between such events;
 *        tpot: (last - first) / (tokens - 1) of a request; e2e: arrival to the end of the stream
 */
#pragma once

#include <curl/curl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/diag.h"
#include "base/option.h"
#include "cli/bench/bench_random.h"
#include "cli/bench/bench_samples.h"

typedef struct bench_serve_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/bench/bench_serve.def"
#undef OPTION
} bench_serve_options_t;

/* ---- prompts ------------------------------------------------------------------------------- */

/*
 * Words of prompt number index: the first shared of them are those of every prompt of this seed.
 * NULL when there is no memory; free with weft_free.
 */
char *bench_prompt_create(uint64_t seed, uint64_t index, uint32_t shared, uint32_t words);

/* ---- measurements -------------------------------------------------------------------------- */

#define BENCH_ERROR_KINDS 16
#define BENCH_ERROR_BYTES 160

typedef struct bench_error {
    char kind[BENCH_ERROR_BYTES]; /* "HTTP 503: ..." as first seen; counted by what is before ':' */
    uint64_t count;
} bench_error_t;

typedef struct bench_result {
    bench_samples_t ttft;
    bench_samples_t itl;
    bench_samples_t tpot;
    bench_samples_t e2e;
    uint64_t started;
    uint64_t succeeded;
    uint64_t failed;
    uint64_t prompt_tokens; /* of those that succeeded, so for each */
    uint64_t cached_tokens;
    uint64_t output_tokens;
    double seconds; /* first arrival to last end */
    bench_error_t errors[BENCH_ERROR_KINDS];
    uint32_t n_errors;
} bench_result_t;

void bench_result_add_error(bench_result_t *result, const char *kind);
void bench_result_fini(bench_result_t *result);
void bench_result_print(const bench_serve_options_t *options, bench_result_t *result, FILE *file);
weft_status_t bench_result_print_json(const bench_serve_options_t *options, bench_result_t *result,
                                      FILE *file);

/* ---- talking to the server ----------------------------------------------------------------- */

#define BENCH_COMPLETIONS "/v1/completions"

/*
 * A request of this server, not sent yet: URL, key, deadline. headers_out: what it points to, freed
 * with curl_slist_free_all after it. NULL when there is no memory.
 */
CURL *bench_http_open(const bench_serve_options_t *options, const char *path,
                      struct curl_slist **headers_out);

/* The JSON of a completion request; allocated by malloc (jansson's), NULL when there is no memory. */
char *bench_http_body(const bench_serve_options_t *options, const char *model, const char *prompt,
                      bool is_stream);

/* Adds usage figures of a completion or its last event; false when it has none. */
typedef struct bench_usage {
    uint64_t prompt_tokens;
    uint64_t cached_tokens;
    uint64_t output_tokens;
} bench_usage_t;

bool bench_http_usage(const json_t *answer, bench_usage_t *usage);

/*
 * Asks the server for its model's name when options->model is "" (*model_out, free with weft_free)
 * and how many tokens its prompts take: *words_out words come to about options->input_len.
 */
weft_status_t bench_http_prepare(const bench_serve_options_t *options, weft_diag_t *diag,
                                 char **model_out, uint32_t *words_out);

/* ---- load ---------------------------------------------------------------------------------- */

/* Sends it all. A request that fails is an error of the result, not of this call. */
weft_status_t bench_load_run(const bench_serve_options_t *options, const char *model,
                             uint32_t words, weft_diag_t *diag, bench_result_t *result);
