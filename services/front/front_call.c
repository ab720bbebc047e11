/* SPDX-License-Identifier: Apache-2.0 */
#include "services/front/front_call.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/http_relay.h"
#include "kvstore/transfer/kv_transfer_legs.h"
#include "services/front/front_priv.h"

#define WEFT_LOG_MODULE "front"
#include "base/log.h"

#define MAX_HEADERS        8
#define MAX_ANSWER_HEADERS 2 /* of a worker's */

struct front_call {
    front_call_t *previous; /* in the front's list of open calls */
    front_call_t *next;
    front_t *front;
    weft_http_exchange_t *exchange; /* NULL once answered, or its client is gone */
    weft_arena_t arena;
    json_t *request; /* of a request to generate, as it came; else NULL */
    const char *headers[MAX_HEADERS];
    size_t n_headers;

    weft_http_call_t *leg; /* under way, or NULL */
    front_worker_t *worker;
    uint64_t tried;          /* set of workers that were asked */
    json_t *to_decode;       /* the decode leg's request; NULL: it is passed on as it came */
    weft_http_relay_t relay; /* the decode leg's answer */
    weft_http_header_t answer_headers[MAX_ANSWER_HEADERS + 1]; /* the leg's, and room for ours */
    size_t n_answer_headers;
};

static void send_prefill(front_call_t *call);
static void send_decode(front_call_t *call);

/* ---- beginning and ending -------------------------------------------------------------------- */

static void link_call(front_call_t *call)
{
    front_t *front = call->front;
    call->next = front->calls;
    if (call->next != NULL) {
        call->next->previous = call;
    }
    front->calls = call;
    front->n_calls++;
}

static void end_call(front_call_t *call)
{
    front_t *front = call->front;
    if (call->leg != NULL) {
        weft_http_client_cancel(call->leg);
    }
    *(call->previous == NULL ? &front->calls : &call->previous->next) = call->next;
    if (call->next != NULL) {
        call->next->previous = call->previous;
    }
    front->n_calls--;
    json_decref(call->request);
    json_decref(call->to_decode);
    weft_http_relay_fini(&call->relay);
    weft_arena_free(&call->arena);
    weft_free(call);
}

void front_call_drop(front_call_t *call)
{
    end_call(call);
}

static void on_hangup(weft_http_exchange_t *exchange, void *user)
{
    front_call_t *call = user;
    (void)exchange;
    call->exchange = NULL;
    end_call(call); /* hangs up on the worker, which ends the leg there */
}

static void fail(front_call_t *call, uint32_t http_status, const char *type, const char *message)
{
    front_answer_error(call->exchange, http_status, type, message);
    call->exchange = NULL;
    end_call(call);
}

static void fail_without_memory(front_call_t *call)
{
    fail(call, 503, "ServiceUnavailableError", "The front is out of memory.");
}

static void add_answer_header(front_call_t *call, const char *name, const char *value)
{
    call->answer_headers[call->n_answer_headers++] = (weft_http_header_t){name, value};
}

static void respond(front_call_t *call, uint32_t http_status, const char *content_type,
                    const void *body, size_t length)
{
    if (http_status == 503) {
        add_answer_header(call, "Retry-After", "1");
    }
    weft_http_respond(call->exchange, http_status, content_type, call->answer_headers,
                      call->n_answer_headers, body, length);
    call->exchange = NULL;
    end_call(call);
}

/* ---- a leg ----------------------------------------------------------------------------------- */

static void count_leg(const front_call_t *call, const weft_http_answer_t *answer)
{
    char group[8];
    snprintf(group, sizeof(group), "%uxx", answer->http_status / 100 % 10);
    weft_series_add(
        front_series(call->front, METRIC_legs, (const char *[]){call->worker->name, group}), 1);
}

/* Sends body to a worker; false: it could not be sent, and the call is answered. */
static bool send_leg(front_call_t *call, front_worker_t *worker, const void *body, size_t length,
                     weft_http_piece_fn on_piece, weft_http_answer_fn on_answer)
{
    const char *url =
        weft_arena_printf(&call->arena, "%s%s", worker->url, weft_http_path(call->exchange));
    const weft_http_request_t request = {
        .method = weft_http_method(call->exchange),
        .url = url,
        .headers = call->headers,
        .n_headers = call->n_headers,
        .body = length > 0 ? body : NULL,
        .length = length,
        .max_answer_bytes = WEFT_HTTP_RELAY_MAX_BYTES,
        .on_piece = on_piece,
    };
    call->worker = worker;
    if (url == NULL ||
        weft_http_client_send(call->front->client, &request, on_answer, call, &call->leg) < 0) {
        fail_without_memory(call);
        return false;
    }
    return true;
}

/* What the client gets of the leg's headers, besides the type and length of its body. */
static void take_headers(front_call_t *call)
{
    static const char *const names[MAX_ANSWER_HEADERS] = {"Allow", "X-Request-Id"};
    call->n_answer_headers = 0;
    for (size_t i = 0; i < MAX_ANSWER_HEADERS; i++) {
        const char *value = weft_http_call_header(call->leg, names[i]);
        if (value != NULL) {
            add_answer_header(call, names[i], weft_arena_strdup(&call->arena, value));
        }
    }
}

/* It has ended, and this is what came. */
static void end_leg(front_call_t *call, const weft_http_answer_t *answer)
{
    take_headers(call);
    call->leg = NULL;
    count_leg(call, answer);
}

/* It is no fault of the request: another worker may take it. */
static bool may_try_another(const weft_http_answer_t *answer)
{
    return answer->status < 0 || answer->http_status == 502 || answer->http_status == 503 ||
           answer->http_status == 504;
}

static void note_failed_leg(front_call_t *call, const weft_http_answer_t *answer)
{
    static const char *const roles[] = {"prefill", "decode"};
    const char *role = roles[call->worker->role];
    weft_log_warn("a %s leg failed worker=%s status=%u reason=\"%s\"", role, call->worker->name,
                  answer->http_status, answer->error);
    if (answer->status == WEFT_ERR_PEER_GONE) {
        front_worker_is_gone(call->worker, answer->error);
    }
    weft_series_add(front_series(call->front, METRIC_retries, &role), 1);
}

/* ---- prefill --------------------------------------------------------------------------------- */

static void take_prefill(front_call_t *call, const weft_http_answer_t *answer)
{
    json_t *body = json_loadb(answer->body, answer->length, 0, NULL);
    if (!json_is_object(json_object_get(body, "kv_transfer_params"))) {
        weft_log_warn("no kv_transfer_params came from worker=%s: its blocks are not used",
                      call->worker->name);
    }
    call->to_decode = kv_transfer_decode_leg(call->request, body);
    json_decref(body);
    if (call->to_decode == NULL) {
        fail_without_memory(call);
        return;
    }
    send_decode(call);
}

static void on_prefilled(void *user, const weft_http_answer_t *answer)
{
    front_call_t *call = user;
    end_leg(call, answer);
    if (may_try_another(answer)) {
        note_failed_leg(call, answer);
        send_prefill(call);
    } else if (answer->http_status / 100 != 2) {
        respond(call, answer->http_status, "application/json", answer->body, answer->length);
    } else {
        take_prefill(call, answer);
    }
}

/* The decode worker asks this one itself. */
static void send_overlapped(front_call_t *call, const front_worker_t *prefill)
{
    json_t *params = json_pack("{s:{s:b, s:s}}", "kv_transfer_params", "do_remote_prefill", 1,
                               "prefill_url", prefill->url);
    call->to_decode = params == NULL ? NULL : kv_transfer_decode_leg(call->request, params);
    json_decref(params);
    if (call->to_decode == NULL) {
        fail_without_memory(call);
        return;
    }
    send_decode(call);
}

static void send_prefill(front_call_t *call)
{
    front_worker_t *worker = front_workers_take(&call->front->workers, FRONT_PREFILL, &call->tried);
    if (worker == NULL) {
        weft_series_add(front_series(call->front, METRIC_unsplit, NULL), 1);
        send_decode(call);
        return;
    }
    if (call->front->is_overlapped) {
        send_overlapped(call, worker);
        return;
    }
    json_t *leg = kv_transfer_prefill_leg(call->request, NULL);
    char *text = leg == NULL ? NULL : json_dumps(leg, JSON_COMPACT);
    json_decref(leg);
    if (text == NULL) {
        fail_without_memory(call);
        return;
    }
    (void)send_leg(call, worker, text, strlen(text), NULL, on_prefilled);
    free(text);
}

/* ---- decode ---------------------------------------------------------------------------------- */

static bool take_piece(void *user, const weft_http_piece_t *piece)
{
    front_call_t *call = user;
    if (!call->relay.is_streaming) {
        take_headers(call);
        add_answer_header(call, "Cache-Control", "no-cache");
    }
    return weft_http_relay_take(&call->relay, call->exchange, call->answer_headers,
                                call->n_answer_headers, piece);
}

static void end_stream(front_call_t *call, const weft_http_answer_t *answer)
{
    if (answer->status < 0) {
        weft_log_warn("a stream broke off worker=%s reason=\"%s\"", call->worker->name,
                      answer->error);
        weft_http_relay_break_off(call->exchange);
    }
    weft_http_stream_end(call->exchange);
    call->exchange = NULL;
    end_call(call);
}

static void on_decoded(void *user, const weft_http_answer_t *answer)
{
    front_call_t *call = user;
    end_leg(call, answer);
    if (call->relay.is_streaming) {
        end_stream(call, answer);
    } else if (may_try_another(answer)) {
        note_failed_leg(call, answer);
        if (answer->status < 0) {
            weft_buffer_clear(&call->relay.answer);
        }
        send_decode(call);
    } else {
        respond(call, answer->http_status,
                call->relay.answer.length > 0 ? call->relay.content_type : "application/json",
                call->relay.answer.length > 0 ? call->relay.answer.data : "",
                call->relay.answer.length);
    }
}

static void send_decode(front_call_t *call)
{
    front_worker_t *worker = front_workers_take(&call->front->workers, FRONT_DECODE, &call->tried);
    size_t length = 0;
    const char *body = weft_http_body(call->exchange, &length);
    char *text = NULL;
    if (worker == NULL &&
        call->relay.answer.length > 0) { /* all are full, and the last one said so */
        respond(call, call->relay.http_status, call->relay.content_type, call->relay.answer.data,
                call->relay.answer.length);
        return;
    }
    if (worker == NULL) {
        fail(call, 503, "ServiceUnavailableError", "No decode worker answers.");
        return;
    }
    weft_buffer_clear(&call->relay.answer);
    if (call->to_decode != NULL) {
        text = json_dumps(call->to_decode, JSON_COMPACT);
        if (text == NULL) {
            fail_without_memory(call);
            return;
        }
        body = text;
        length = strlen(text);
    }
    (void)send_leg(call, worker, body, length, take_piece, on_decoded);
    free(text);
}

/* ---- starting -------------------------------------------------------------------------------- */

static bool is_generation(const weft_http_exchange_t *exchange)
{
    static const char *const paths[] = {"/v1/completions", "/v1/chat/completions",
                                        "/inference/v1/generate"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(paths); i++) {
        if (strcmp(weft_http_path(exchange), paths[i]) == 0) {
            return strcmp(weft_http_method(exchange), "POST") == 0;
        }
    }
    return false;
}

/* Read as workers read it, or they could find in it what is refused here. NULL: not to be split. */
static json_t *read_request(weft_http_exchange_t *exchange)
{
    size_t length = 0;
    const char *body = weft_http_body(exchange, &length);
    return is_generation(exchange) && length > 0 ? json_loadb(body, length, JSON_ALLOW_NUL, NULL)
                                                 : NULL;
}

/* What somebody else has split already, or is wrong, is the decode worker's as it is. */
static void begin(front_call_t *call)
{
    const json_t *params = json_object_get(call->request, "kv_transfer_params");
    if (json_is_string(json_object_get(params, "prefill_url"))) {
        fail(call, 400, "BadRequestError",
             "kv_transfer_params.prefill_url: the prefill worker is chosen here.");
    } else if (json_is_object(call->request) && (params == NULL || json_is_null(params))) {
        send_prefill(call);
    } else {
        send_decode(call);
    }
}

/* Both legs carry the same id, so that the workers' logs can be read side by side. */
static const char *request_id(front_call_t *call)
{
    static uint64_t n;
    const char *given = weft_http_header(call->exchange, "x-request-id");
    return given != NULL && given[0] != '\0'
               ? weft_arena_printf(&call->arena, "X-Request-Id: %s", given)
               : weft_arena_printf(&call->arena, "X-Request-Id: front-%llx-%llx",
                                   (unsigned long long)weft_http_arrival_ns(call->exchange),
                                   (unsigned long long)++n);
}

static bool keep_headers(front_call_t *call)
{
    static const char *const names[] = {"Content-Type", "Authorization",   "traceparent",
                                        "tracestate",   "X-Vllm-Priority", "X-Session-ID"};
    call->headers[call->n_headers++] = request_id(call);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        const char *value = weft_http_header(call->exchange, names[i]);
        if (value != NULL) {
            call->headers[call->n_headers++] =
                weft_arena_printf(&call->arena, "%s: %s", names[i], value);
        }
    }
    for (size_t i = 0; i < call->n_headers; i++) {
        if (call->headers[i] == NULL) {
            return false;
        }
    }
    return true;
}

void front_call_start(front_t *front, weft_http_exchange_t *exchange)
{
    front_call_t *call = weft_zalloc(sizeof(*call), "front.call");
    if (call == NULL) {
        front_answer_error(exchange, 503, "ServiceUnavailableError", "The front is out of memory.");
        return;
    }
    call->front = front;
    call->exchange = exchange;
    link_call(call);
    weft_http_on_hangup(exchange, on_hangup, call);
    if (!keep_headers(call)) {
        fail_without_memory(call);
        return;
    }
    call->request = read_request(exchange);
    begin(call);
}
