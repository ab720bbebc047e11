/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "api"
#include "services/api/api_call.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "services/api/api_answers.h"
#include "services/api/api_id.h"
#include "services/api/api_relay.h"
#include "services/api/api_routes.h"
#include "services/api/api_server_priv.h"
#include "services/api/api_transfer.h"
#include "services/api/generation_run.h"

generation_t *api_call_new_generation(api_call_t *call, const generation_format_t *format)
{
    generation_t *generation = weft_arena_alloc(&call->arena, sizeof(*generation));

    if (generation == NULL) {
        api_error_no_memory(&call->error);
        return NULL;
    }
    generation->call = call;
    generation->format = format;
    generation->arena = &call->arena;
    call->generation = generation;
    return generation;
}

/* ---- beginning ------------------------------------------------------------------------------- */

static int64_t read_priority(const char *text)
{
    char *end;

    if (text == NULL) {
        return JSON_UNSET;
    }
    errno = 0;
    long long value = strtoll(text, &end, 10);
    return end == text || *end != '\0' || errno != 0 ? JSON_UNSET : value;
}

static void take_request_id(api_call_t *call)
{
    const char *given = weft_http_header(call->exchange, "x-request-id");

    if (given != NULL && given[0] != '\0' && api_id_is_usable(given)) {
        call->has_request_id_header = true;
        call->request_id = weft_arena_strdup(&call->arena, given);
        return;
    }
    char *id = weft_arena_alloc(&call->arena, API_ID_LENGTH + 1);
    if (id != NULL) {
        api_id_random(id);
    }
    call->request_id = id;
}

static void link_call(api_server_t *server, api_call_t *call)
{
    call->next = server->calls;
    if (server->calls != NULL) {
        server->calls->previous = call;
    }
    server->calls = call;
    server->n_calls++;
    if ((call->route->flags & ROUTE_LOAD) != 0 && call->options->enable_server_load_tracking) {
        call->is_counted = true;
        server->load++;
    }
}

static void unlink_call(api_call_t *call)
{
    api_server_t *server = call->server;

    if (call->previous != NULL) {
        call->previous->next = call->next;
    } else {
        server->calls = call->next;
    }
    if (call->next != NULL) {
        call->next->previous = call->previous;
    }
    server->n_calls--;
    server->load -= call->is_counted;
}

static void on_hangup(weft_http_exchange_t *exchange, void *user)
{
    api_call_t *call = user;

    (void)exchange;
    weft_log_debug("%s the client went away", call->request_id);
    call->exchange = NULL;
    if (call->is_at_worker) {
        atomic_store_explicit(&call->is_cancelled, true, memory_order_relaxed);
        return; /* ends when it comes back */
    }
    api_call_drop(call);
}

api_call_t *api_call_create(api_server_t *server, weft_http_exchange_t *exchange,
                            const api_route_t *route)
{
    api_call_t *call = weft_zalloc(sizeof(*call), "api.call");

    if (call == NULL) {
        return NULL;
    }
    call->server = server;
    call->route = route;
    call->model = &server->model.api;
    call->options = server->options;
    call->exchange = exchange;
    call->arrival_ns = weft_http_arrival_ns(exchange);
    call->priority_header = read_priority(weft_http_header(exchange, "x-vllm-priority"));
    atomic_init(&call->is_cancelled, false);
    api_trace_init(&call->trace, weft_http_header(exchange, "traceparent"));
    take_request_id(call);
    if (call->request_id == NULL) {
        weft_arena_free(&call->arena);
        weft_free(call);
        return NULL;
    }
    link_call(server, call);
    weft_http_set_user(exchange, call);
    weft_http_on_hangup(exchange, on_hangup, call);
    return call;
}

/* ---- ending ---------------------------------------------------------------------------------- */

static void end_call(api_call_t *call, uint32_t http_status)
{
    api_server_t *server = call->server;
    uint64_t now = weft_clock_ns();

    weft_log_debug("%s %s %s status=%u ms=%" PRIu64, call->request_id, call->route->method,
                   call->route->path, http_status, (now - call->arrival_ns) / WEFT_NS_PER_MS);
    if ((call->route->flags & ROUTE_QUIET) == 0) {
        api_metrics_http(server->metrics, call->route->path, call->route->method, http_status,
                         now - call->arrival_ns);
    }
    generation_run_release(call);
    api_transfer_end(call);
    api_relay_end(call);
    span_export_call(server->spans, call, http_status, now);
    generation_fini(call->generation);
    unlink_call(call);
    weft_buffer_free(&call->answer);
    weft_free(call->body);
    weft_arena_free(&call->arena);
    weft_free(call);
    api_server_call_ended(server);
}

void api_call_drop(api_call_t *call)
{
    end_call(call, 499); /* nginx's name for a client that closed first */
}

size_t api_call_headers(const api_call_t *call, uint32_t http_status,
                        weft_http_header_t headers[API_CALL_MAX_HEADERS])
{
    size_t n = 0;

    if (call->options->enable_request_id_headers) {
        headers[n++] = (weft_http_header_t){"X-Request-Id", call->request_id};
    }
    if (weft_http_header(call->exchange, "origin") != NULL) {
        headers[n++] = (weft_http_header_t){"Access-Control-Allow-Origin", "*"};
    }
    if (http_status == 503) {
        headers[n++] = (weft_http_header_t){"Retry-After", "1"};
    }
    return n;
}

void api_call_send(api_call_t *call, uint32_t http_status, const char *content_type,
                   const void *body, size_t length)
{
    weft_http_header_t headers[API_CALL_MAX_HEADERS];
    size_t n = api_call_headers(call, http_status, headers);

    weft_http_respond(call->exchange, http_status, content_type, headers, n, body, length);
    call->exchange = NULL;
    end_call(call, http_status);
}

void api_call_fail(api_call_t *call)
{
    weft_buffer_t *body = &call->server->scratch;
    weft_json_t json;

    weft_log_debug("%s refused: %s", call->request_id, call->error.message.text);
    weft_buffer_clear(body);
    weft_json_init(&json, body);
    api_error_write(&call->error, &json);
    api_call_send(call, api_error_http_status(&call->error), "application/json",
                  body->data != NULL ? body->data : "", body->length);
}

void api_call_respond(api_call_t *call)
{
    if (call->answer.is_failed) {
        api_error_no_memory(&call->error);
        api_call_fail(call);
        return;
    }
    api_call_send(call, 200, "application/json", call->answer.data, call->answer.length);
}

void api_call_begin_stream(api_call_t *call)
{
    weft_http_header_t headers[API_CALL_MAX_HEADERS + 1];
    size_t n = api_call_headers(call, 200, headers);

    headers[n++] = (weft_http_header_t){"Cache-Control", "no-cache"};
    call->is_streaming = true;
    weft_http_stream_begin(call->exchange, 200, "text/event-stream; charset=utf-8", headers, n);
}

void api_call_end_stream(api_call_t *call)
{
    weft_http_stream_end(call->exchange);
    call->exchange = NULL;
    end_call(call, 200);
}
