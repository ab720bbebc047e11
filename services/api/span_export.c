/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "trace"
#include "services/api/span_export.h"

#include <curl/curl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "services/api/api_routes.h"

#define MAX_PENDING_BYTES ((size_t)4 << 20)
#define SEND_TIMEOUT_MS   2000L
#define SPAN_KIND_SERVER  2
#define STATUS_ERROR      2

struct span_export {
    char *url;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t stirred;
    weft_buffer_t pending; /* span objects with commas between; guarded by lock, so for the rest */
    uint64_t n_dropped;
    bool is_stopping;
};

/* ---- sending --------------------------------------------------------------------------------- */

static size_t drop_answer(char *data, size_t size, size_t n, void *user)
{
    (void)data;
    (void)user;
    return size * n;
}

static void post(const span_export_t *export, const weft_buffer_t *body)
{
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    CURL *curl = curl_easy_init();

    if (curl != NULL && headers != NULL) {
        curl_easy_setopt(curl, CURLOPT_URL, export->url);
        curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body->data);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)body->length);
        curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, SEND_TIMEOUT_MS);
        curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(curl, CURLOPT_FAILONERROR, 1L);
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, drop_answer);
        CURLcode code = curl_easy_perform(curl);
        if (code != CURLE_OK) {
            weft_log_warn("spans were lost url=%s: %s", export->url, curl_easy_strerror(code));
        }
    }
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
}

/* The envelope: one resource, one scope, its spans. */
static void send_spans(const span_export_t *export, const weft_buffer_t *spans)
{
    weft_buffer_t body = {0};

    weft_buffer_puts(&body,
                     "{\"resourceSpans\":[{\"resource\":{\"attributes\":[{\"key\":"
                     "\"service.name\",\"value\":{\"stringValue\":\"weft\"}}]},"
                     "\"scopeSpans\":[{\"scope\":{\"name\":\"weft.api\",\"version\":\"" WEFT_VERSION
                     "\"},\"spans\":[");
    weft_buffer_append(&body, spans->data, spans->length);
    weft_buffer_puts(&body, "]}]}]}");
    if (!body.is_failed) {
        post(export, &body);
    }
    weft_buffer_free(&body);
}

static void wait_a_second_locked(span_export_t *export)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++;
    pthread_cond_timedwait(&export->stirred, &export->lock, &until);
}

static void *run(void *argument)
{
    span_export_t *export = argument;
    bool is_last = false;

    while (!is_last) {
        pthread_mutex_lock(&export->lock);
        if (!export->is_stopping) {
            wait_a_second_locked(export);
        }
        is_last = export->is_stopping;
        weft_buffer_t spans = export->pending;
        uint64_t n_dropped = export->n_dropped;
        export->pending = (weft_buffer_t){0};
        export->n_dropped = 0;
        pthread_mutex_unlock(&export->lock);
        if (n_dropped > 0) {
            weft_log_warn("spans were dropped n=%" PRIu64, n_dropped);
        }
        if (spans.length > 0) {
            send_spans(export, &spans);
        }
        weft_buffer_free(&spans);
    }
    return NULL;
}

/* ---- spans ----------------------------------------------------------------------------------- */

static void put_hex(weft_json_t *json, const char *name, const uint8_t *bytes, size_t length)
{
    char text[2 * API_TRACE_ID_BYTES + 1] = "";

    for (size_t i = 0; i < length; i++) {
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    }
    weft_json_put_string(json, name, text);
}

/* OTLP writes 64-bit numbers as strings. */
static void put_time(weft_json_t *json, const char *name, uint64_t clock_ns)
{
    char text[24];
    uint64_t wall = weft_wallclock_ns() - (weft_clock_ns() - clock_ns);

    snprintf(text, sizeof(text), "%" PRIu64, wall);
    weft_json_put_string(json, name, text);
}

static void begin_attribute(weft_json_t *json, const char *key)
{
    weft_json_begin_object(json);
    weft_json_put_string(json, "key", key);
    weft_json_key(json, "value");
    weft_json_begin_object(json);
}

static void end_attribute(weft_json_t *json)
{
    weft_json_end_object(json);
    weft_json_end_object(json);
}

static void attribute_text(weft_json_t *json, const char *key, const char *text)
{
    begin_attribute(json, key);
    weft_json_put_string(json, "stringValue", text);
    end_attribute(json);
}

static void attribute_int(weft_json_t *json, const char *key, uint64_t value)
{
    char text[24];

    snprintf(text, sizeof(text), "%" PRIu64, value);
    begin_attribute(json, key);
    weft_json_put_string(json, "intValue", text);
    end_attribute(json);
}

static void attribute_seconds(weft_json_t *json, const char *key, uint64_t from_ns, uint64_t to_ns)
{
    if (from_ns != 0 && to_ns >= from_ns) {
        begin_attribute(json, key);
        weft_json_put_f64(json, "doubleValue",
                          (double)(to_ns - from_ns) / (double)WEFT_NS_PER_SECOND);
        end_attribute(json);
    }
}

/* The names are vLLM's, which follow OpenTelemetry's for generative AI. */
static void write_generation(weft_json_t *json, const generation_t *generation)
{
    generation_usage_t usage = generation_usage(generation);
    const engine_timings_t *timings = &generation->prompts[0].timings;

    attribute_text(json, "gen_ai.request.id", generation->id);
    attribute_text(json, "gen_ai.response.model", generation->model->names[0]);
    attribute_int(json, "gen_ai.request.n", generation->n);
    attribute_int(json, "gen_ai.request.max_tokens", generation->prompts[0].max_tokens);
    attribute_int(json, "gen_ai.usage.prompt_tokens", usage.prompt_tokens);
    attribute_int(json, "gen_ai.usage.completion_tokens", usage.completion_tokens);
    attribute_seconds(json, "gen_ai.latency.time_in_queue", timings->arrival_ns,
                      timings->scheduled_ns);
    attribute_seconds(json, "gen_ai.latency.time_to_first_token", timings->arrival_ns,
                      timings->first_token_ns);
    attribute_seconds(json, "gen_ai.latency.e2e", timings->arrival_ns, timings->finished_ns);
}

static void write_span(weft_json_t *json, const api_call_t *call, uint32_t http_status,
                       uint64_t now_ns)
{
    static const uint8_t none[API_SPAN_ID_BYTES];

    weft_json_begin_object(json);
    put_hex(json, "traceId", call->trace.trace_id, API_TRACE_ID_BYTES);
    put_hex(json, "spanId", call->trace.span_id, API_SPAN_ID_BYTES);
    if (memcmp(call->trace.parent_id, none, sizeof(none)) != 0) {
        put_hex(json, "parentSpanId", call->trace.parent_id, API_SPAN_ID_BYTES);
    }
    weft_json_put_string(json, "name",
                         call->generation != NULL ? "llm_request" : call->route->path);
    weft_json_put_u64(json, "kind", SPAN_KIND_SERVER);
    put_time(json, "startTimeUnixNano", call->arrival_ns);
    put_time(json, "endTimeUnixNano", now_ns);
    weft_json_key(json, "attributes");
    weft_json_begin_array(json);
    attribute_text(json, "http.request.method", call->route->method);
    attribute_text(json, "url.path", call->route->path);
    attribute_int(json, "http.response.status_code", http_status);
    if (call->generation != NULL && call->generation->n_prompts > 0 &&
        call->generation->id != NULL) {
        write_generation(json, call->generation);
    }
    weft_json_end_array(json);
    weft_json_key(json, "status");
    weft_json_begin_object(json);
    if (http_status >= 500) {
        weft_json_put_u64(json, "code", STATUS_ERROR);
        weft_json_put_string(json, "message", call->error.message.text);
    }
    weft_json_end_object(json);
    weft_json_end_object(json);
}

void span_export_call(span_export_t *export, const api_call_t *call, uint32_t http_status,
                      uint64_t now_ns)
{
    weft_json_t json;

    if (export == NULL || !call->trace.is_sampled || (call->route->flags & ROUTE_QUIET) != 0) {
        return;
    }
    pthread_mutex_lock(&export->lock);
    if (export->pending.length > MAX_PENDING_BYTES) {
        export->n_dropped++;
    } else {
        weft_json_init(&json, &export->pending);
        json.needs_comma = export->pending.length > 0;
        write_span(&json, call, http_status, now_ns);
    }
    pthread_mutex_unlock(&export->lock);
}

/* ---- life ------------------------------------------------------------------------------------ */

static char *complete_url(const char *endpoint)
{
    const char *host = strstr(endpoint, "://");
    const char *path = host == NULL ? NULL : strchr(host + 3, '/');
    weft_buffer_t url = {0};

    weft_buffer_puts(&url, endpoint);
    if (path == NULL) {
        weft_buffer_puts(&url, "/v1/traces");
    } else if (path[1] == '\0') {
        weft_buffer_puts(&url, "v1/traces");
    }
    weft_buffer_append(&url, "", 1);
    return url.is_failed ? NULL : url.data;
}

weft_status_t span_export_create(const char *endpoint, weft_diag_t *diag, span_export_t **out)
{
    if (strncmp(endpoint, "http://", 7) != 0 && strncmp(endpoint, "https://", 8) != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--otlp-traces-endpoint %s: not an http:// or https:// address", endpoint);
    }
    span_export_t *export = weft_zalloc(sizeof(*export), "api.spans");
    if (export == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    pthread_mutex_init(&export->lock, NULL);
    pthread_cond_init(&export->stirred, NULL);
    export->url = complete_url(endpoint);
    if (export->url == NULL || pthread_create(&export->thread, NULL, run, export) != 0) {
        weft_free(export->url);
        weft_free(export);
        return WEFT_ERR_NO_MEMORY;
    }
    *out = export;
    return WEFT_OK;
}

void span_export_destroy(span_export_t *export)
{
    if (export == NULL) {
        return;
    }
    pthread_mutex_lock(&export->lock);
    export->is_stopping = true;
    pthread_cond_signal(&export->stirred);
    pthread_mutex_unlock(&export->lock);
    pthread_join(export->thread, NULL);
    pthread_cond_destroy(&export->stirred);
    pthread_mutex_destroy(&export->lock);
    weft_buffer_free(&export->pending);
    weft_free(export->url);
    weft_free(export);
}
