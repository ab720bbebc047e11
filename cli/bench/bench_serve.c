/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_serve.h"
#include "base/alloc.h"
#include "base/compiler.h"
#include "cli/commands.h"
#include "cli/option_tables.h"

const weft_option_t bench_serve_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(bench_serve_options_t, __VA_ARGS__)
#include "cli/bench/bench_serve.def"
#undef OPTION
};
const size_t bench_serve_option_count = WEFT_ARRAY_LEN(bench_serve_option_rows);

static weft_status_t check_options(const bench_serve_options_t *options, weft_diag_t *diag)
{
    if (options->requests == 0 || options->input_len == 0 || options->output_len == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--requests, --input-len and --output-len must be at least 1");
    }
    if (options->input_len > 10000000 || options->output_len > 10000000) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--input-len and --output-len must be at most 10000000");
    }
    if (!(options->shared_prefix >= 0 && options->shared_prefix <= 1)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--shared-prefix %g is not between 0 and 1",
                         options->shared_prefix);
    }
    if (!(options->rate >= 0)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--rate %g is negative", options->rate);
    }
    return WEFT_OK;
}

static weft_status_t measure(const bench_serve_options_t *options, weft_diag_t *diag,
                             bench_result_t *result)
{
    char *model = NULL;
    uint32_t words = 0;
    weft_status_t status = bench_http_prepare(options, diag, &model, &words);
    if (status >= 0) {
        status = bench_load_run(options, model, words, diag, result);
    }
    weft_free(model);
    if (status < 0) {
        return status;
    }
    if (options->json) {
        return bench_result_print_json(options, result, stdout);
    }
    bench_result_print(options, result, stdout);
    return WEFT_OK;
}

int bench_serve(int argc, char **argv)
{
    bench_serve_options_t options;
    const weft_option_group_t group = CLI_OPTION_GROUP(bench_serve, "load", &options);
    const weft_option_spec_t spec = {
        .usage = "weft bench serve [options]",
        .about = "Loads any OpenAI server with streamed completions and reports latencies and "
                 "throughput; exit code 1 when no request succeeded.",
        .groups = &group,
        .n_groups = 1,
    };
    weft_diag_t diag = {0};
    weft_option_set_t *set = NULL;
    bench_result_t result = {0};
    weft_status_t status = weft_option_set_parse(&spec, argc, argv, &diag, &set);
    if (status == WEFT_ERR_CANCELLED) {
        return CLI_EXIT_OK;
    }
    if (status >= 0) {
        status = check_options(&options, &diag);
    }
    if (status >= 0) {
        curl_global_init(CURL_GLOBAL_DEFAULT);
        status = measure(&options, &diag, &result);
        curl_global_cleanup();
    }
    const bool is_useless = result.succeeded == 0;
    bench_result_fini(&result);
    weft_option_set_destroy(set);
    if (status < 0) {
        return cli_fail(status, &diag);
    }
    return is_useless ? CLI_EXIT_FAILED : CLI_EXIT_OK;
}
