/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buffer.h"
#include "cli/bench/bench_serve.h"

#define ANSWER_BYTES_MAX ((size_t)4 << 20)

CURL *bench_http_open(const bench_serve_options_t *options, const char *path,
                      struct curl_slist **headers_out)
{
    char line[4096];
    CURL *easy = curl_easy_init();
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (easy == NULL || headers == NULL) {
        curl_easy_cleanup(easy);
        curl_slist_free_all(headers);
        return NULL;
    }
    if (options->api_key[0] != '\0') {
        snprintf(line, sizeof(line), "Authorization: Bearer %s", options->api_key);
        struct curl_slist *longer = curl_slist_append(headers, line);
        headers = longer != NULL ? longer : headers;
    }
    size_t length = strlen(options->url);
    while (length > 0 && options->url[length - 1] == '/') {
        length--;
    }
    snprintf(line, sizeof(line), "%.*s%s", (int)length, options->url, path);
    curl_easy_setopt(easy, CURLOPT_URL, line);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(easy, CURLOPT_TIMEOUT, (long)options->timeout);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    *headers_out = headers;
    return easy;
}

char *bench_http_body(const bench_serve_options_t *options, const char *model, const char *prompt,
                      bool is_stream)
{
    json_t *body = json_pack("{s:s, s:s, s:i, s:i, s:b, s:b}", "model", model, "prompt", prompt,
                             "max_tokens", is_stream ? (int)options->output_len : 1, "temperature",
                             0, "ignore_eos", 1, "stream", is_stream ? 1 : 0);
    if (is_stream && body != NULL) {
        json_object_set_new(body, "stream_options", json_pack("{s:b}", "include_usage", 1));
    }
    char *text = body == NULL ? NULL : json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}

bool bench_http_usage(const json_t *answer, bench_usage_t *usage)
{
    const json_t *object = json_object_get(answer, "usage");
    if (!json_is_object(object)) {
        return false;
    }
    const json_t *details = json_object_get(object, "prompt_tokens_details");
    usage->prompt_tokens = (uint64_t)json_integer_value(json_object_get(object, "prompt_tokens"));
    usage->output_tokens =
        (uint64_t)json_integer_value(json_object_get(object, "completion_tokens"));
    usage->cached_tokens = (uint64_t)json_integer_value(json_object_get(details, "cached_tokens"));
    return true;
}

/* ---- single calls ahead of the load --------------------------------------------------------- */

static size_t gather(char *data, size_t size, size_t n, void *user)
{
    weft_buffer_t *answer = user;
    weft_buffer_append(answer, data, size * n);
    return answer->is_failed || answer->length > ANSWER_BYTES_MAX ? 0 : size * n;
}

/* GET, or POST when body is not NULL; the answer must be 200 and JSON. */
static weft_status_t call(const bench_serve_options_t *options, const char *path, const char *body,
                          weft_diag_t *diag, json_t **json_out)
{
    weft_status_t status = WEFT_OK;
    struct curl_slist *headers = NULL;
    weft_buffer_t answer = {0};
    long http_status = 0;
    CURL *easy = bench_http_open(options, path, &headers);
    if (easy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, gather);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, &answer);
    if (body != NULL) {
        curl_easy_setopt(easy, CURLOPT_POSTFIELDS, body);
    }
    const CURLcode code = curl_easy_perform(easy);
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &http_status);
    const int shown = answer.length < 300 ? (int)answer.length : 300;
    if (code != CURLE_OK) {
        status = weft_diag(diag, WEFT_ERR_PEER_GONE, "%s%s: %s", options->url, path,
                           curl_easy_strerror(code));
    } else if (http_status != 200) {
        status = weft_diag(diag, WEFT_ERR_IO, "%s%s: HTTP %ld: %.*s", options->url, path,
                           http_status, shown, answer.data != NULL ? answer.data : "");
    } else {
        *json_out = json_loadb(answer.data != NULL ? answer.data : "", answer.length, 0, NULL);
        if (*json_out == NULL) {
            status =
                weft_diag(diag, WEFT_ERR_IO, "%s%s: the answer is not JSON", options->url, path);
        }
    }
    curl_easy_cleanup(easy);
    curl_slist_free_all(headers);
    weft_buffer_free(&answer);
    return status;
}

static weft_status_t find_model(const bench_serve_options_t *options, weft_diag_t *diag,
                                char **model_out)
{
    json_t *models = NULL;
    if (options->model[0] != '\0') {
        *model_out = weft_strdup(options->model, "bench.model");
        return *model_out == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    weft_status_t status = call(options, "/v1/models", NULL, diag, &models);
    if (status < 0) {
        return status;
    }
    const char *id = json_string_value(
        json_object_get(json_array_get(json_object_get(models, "data"), 0), "id"));
    if (id == NULL) {
        status = weft_diag(diag, WEFT_ERR_IO, "%s/v1/models: lists no model; name one with --model",
                           options->url);
    } else {
        *model_out = weft_strdup(id, "bench.model");
        status = *model_out == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    json_decref(models);
    return status;
}

/* Tokens of a prompt of n words; n when the server tells no usage. */
static weft_status_t measure_prompt(const bench_serve_options_t *options, const char *model,
                                    uint32_t n, weft_diag_t *diag, double *tokens_out)
{
    json_t *answer = NULL;
    char *prompt = bench_prompt_create(options->seed, UINT64_MAX, 0, n);
    char *body = prompt == NULL ? NULL : bench_http_body(options, model, prompt, false);
    const weft_status_t status =
        body == NULL ? WEFT_ERR_NO_MEMORY : call(options, BENCH_COMPLETIONS, body, diag, &answer);
    if (status >= 0) {
        bench_usage_t usage = {0};
        *tokens_out = bench_http_usage(answer, &usage) ? (double)usage.prompt_tokens : (double)n;
    }
    json_decref(answer);
    weft_free(prompt);
    free(body);
    return status;
}

/* Tokens are a line over words: what the server puts before a prompt, and tokens for each word. */
static weft_status_t fit_words(const bench_serve_options_t *options, const char *model,
                               weft_diag_t *diag, uint32_t *words_out)
{
    const uint32_t few = options->input_len / 4 + 1;
    const uint32_t more = options->input_len * 3 / 4 + 2;
    double few_tokens = 0;
    double more_tokens = 0;
    weft_status_t status = measure_prompt(options, model, few, diag, &few_tokens);
    if (status >= 0) {
        status = measure_prompt(options, model, more, diag, &more_tokens);
    }
    if (status < 0) {
        return status;
    }
    const double per_word = (more_tokens - few_tokens) / (more - few);
    const double words =
        per_word > 0 ? few + (options->input_len - few_tokens) / per_word : options->input_len;
    *words_out = words < 1 ? 1 : (uint32_t)(words + 0.5);
    return WEFT_OK;
}

weft_status_t bench_http_prepare(const bench_serve_options_t *options, weft_diag_t *diag,
                                 char **model_out, uint32_t *words_out)
{
    char *model = NULL;
    weft_status_t status = find_model(options, diag, &model);
    if (status >= 0) {
        status = fit_words(options, model, diag, words_out);
    }
    if (status < 0) {
        weft_free(model);
        return status;
    }
    *model_out = model;
    return WEFT_OK;
}
