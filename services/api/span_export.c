/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "trace"
#include "services/api/span_export.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/http_client.h"
#include "base/log.h"
#include "services/api/api_routes.h"

#define MAX_PENDING_BYTES ((size_t)4 << 20)
#define MAX_ANSWER_BYTES  ((size_t)1 << 20)
#define GATHER_NS         WEFT_NS_PER_SECOND
#define SEND_TIMEOUT_MS   2000
#define SPAN_KIND_SERVER  2
#define STATUS_ERROR      2

struct span_export {
    char *url;
    weft_http_client_t *client;
    weft_loop_timer_t *timer; /* on while spans gather and none are on their way */
    weft_buffer_t pending;    /* span objects with commas between */
    uint64_t n_dropped;
    bool is_sending; /* one batch at a time: a slow collector makes spans gather, not connections */
    bool is_flushing;
};

/* ---- sending --------------------------------------------------------------------------------- */

static bool has_pending(const span_export_t *export)
{
    return export->pending.length > 0 || export->pending.is_failed;
}

static void wait_for_more(span_export_t *export)
{
    if (!export->is_sending && has_pending(export)) {
        weft_loop_timer_set(export->timer, export->is_flushing ? 0 : GATHER_NS);
    }
}

static void on_answer(void *user, const weft_http_answer_t *answer)
{
    span_export_t *export = user;

    if (answer->status < 0) {
        weft_log_warn("spans were lost url=%s: %s", export->url, answer->error);
    } else if (answer->http_status >= 400) {
        weft_log_warn("spans were lost url=%s: status %u", export->url, answer->http_status);
    }
    export->is_sending = false;
    wait_for_more(export);
}

static weft_status_t post(span_export_t *export, const weft_buffer_t *body)
{
    static const char *const headers[] = {"Content-Type: application/json"};
    const weft_http_request_t request = {
        .method = "POST",
        .url = export->url,
        .headers = headers,
        .n_headers = 1,
        .body = body->data,
        .length = body->length,
        .timeout_ms = SEND_TIMEOUT_MS,
        .max_answer_bytes = MAX_ANSWER_BYTES,
    };

    if (body->is_failed) {
        return WEFT_ERR_NO_MEMORY;
    }
    return weft_http_client_send(export->client, &request, on_answer, export, NULL);
}

/* The envelope: one resource, one scope, its spans. */
static weft_status_t send_spans(span_export_t *export, const weft_buffer_t *spans)
{
    weft_buffer_t body = {0};

    weft_buffer_puts(&body,
                     "{\"resourceSpans\":[{\"resource\":{\"attributes\":[{\"key\":"
                     "\"service.name\",\"value\":{\"stringValue\":\"weft\"}}]},"
                     "\"scopeSpans\":[{\"scope\":{\"name\":\"weft.api\",\"version\":\"" WEFT_VERSION
                     "\"},\"spans\":[");
    weft_buffer_append(&body, spans->data, spans->length);
    weft_buffer_puts(&body, "]}]}]}");
    weft_status_t status = post(export, &body);
    weft_buffer_free(&body);
    return status;
}

static void on_due(void *user)
{
    span_export_t *export = user;
    weft_buffer_t spans = export->pending;

    if (export->n_dropped > 0) {
        weft_log_warn("spans were dropped n=%" PRIu64, export->n_dropped);
    }
    export->pending = (weft_buffer_t){0};
    export->n_dropped = 0;
    weft_status_t status = spans.is_failed ? WEFT_ERR_NO_MEMORY : send_spans(export, &spans);
    export->is_sending = status == WEFT_OK;
    if (status < 0) {
        weft_log_warn("spans were lost: %s", weft_strerror(status));
    }
    weft_buffer_free(&spans);
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
    attribute_text(json, "gen_ai.response.model", generation_model_name(generation));
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
    if (export->pending.length > MAX_PENDING_BYTES) {
        export->n_dropped++;
        return;
    }
    const bool is_first = !has_pending(export);
    weft_json_init(&json, &export->pending);
    json.needs_comma = !is_first;
    write_span(&json, call, http_status, now_ns);
    if (is_first) {
        wait_for_more(export);
    }
}

bool span_export_flush(span_export_t *export)
{
    if (export == NULL) {
        return true;
    }
    export->is_flushing = true;
    wait_for_more(export);
    return !export->is_sending && !has_pending(export);
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

weft_status_t span_export_create(weft_loop_t *loop, const char *endpoint, weft_diag_t *diag,
                                 span_export_t **out)
{
    if (strncmp(endpoint, "http://", 7) != 0 && strncmp(endpoint, "https://", 8) != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--otlp-traces-endpoint %s: not an http:// or https:// address", endpoint);
    }
    span_export_t *export = weft_zalloc(sizeof(*export), "api.spans");
    if (export == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    export->url = complete_url(endpoint);
    weft_status_t status = export->url == NULL
                               ? WEFT_ERR_NO_MEMORY
                               : weft_loop_timer_create(loop, on_due, export, &export->timer);
    if (status == WEFT_OK) {
        status = weft_http_client_create(loop, &export->client);
    }
    if (status < 0) {
        span_export_destroy(export);
        return status;
    }
    *out = export;
    return WEFT_OK;
}

void span_export_destroy(span_export_t *export)
{
    if (export == NULL) {
        return;
    }
    weft_http_client_destroy(export->client); /* says what was on its way */
    weft_loop_timer_destroy(export->timer);
    weft_buffer_free(&export->pending);
    weft_free(export->url);
    weft_free(export);
}
