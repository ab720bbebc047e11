/* SPDX-License-Identifier: Apache-2.0 */
#include "services/front/front.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/json_writer.h"
#include "services/front/front_priv.h"

#define IDLE_TIMEOUT_S 300

const weft_metric_t front_metric_rows[] = {
#define METRIC(...) WEFT_METRIC_ROW(__VA_ARGS__)
#include "services/front/metrics.def"
#undef METRIC
};
const size_t front_metric_count = METRIC_COUNT;

weft_series_t *front_series(const front_t *front, int field, const char *const *labels)
{
    return weft_metrics_series(front->metrics, &front_metric_rows[field], labels, NULL, 0, 0);
}

/* An error in OpenAI's shape, with one more header. */
static void answer_error(weft_http_exchange_t *exchange, uint32_t http_status, const char *type,
                         const char *message, const weft_http_header_t *header)
{
    weft_buffer_t body = {0};
    weft_json_t json;
    weft_json_init(&json, &body);
    weft_json_begin_object(&json);
    weft_json_key(&json, "error");
    weft_json_begin_object(&json);
    weft_json_put_string(&json, "message", message);
    weft_json_put_string(&json, "type", type);
    weft_json_put_null(&json, "param");
    weft_json_put_u64(&json, "code", http_status);
    weft_json_end_object(&json);
    weft_json_end_object(&json);
    weft_http_respond(exchange, http_status, "application/json", header, header != NULL,
                      body.data != NULL ? body.data : "", body.is_failed ? 0 : body.length);
    weft_buffer_free(&body);
}

void front_answer_error(weft_http_exchange_t *exchange, uint32_t http_status, const char *type,
                        const char *message)
{
    static const weft_http_header_t retry = {"Retry-After", "1"};
    answer_error(exchange, http_status, type, message, http_status == 503 ? &retry : NULL);
}

static void answer_health(const front_t *front, weft_http_exchange_t *exchange)
{
    const bool is_well = !front->is_draining && front_workers_up(front, FRONT_DECODE) > 0;
    weft_http_respond(exchange, is_well ? 200 : 503, "text/plain", NULL, 0, "", 0);
}

static void answer_metrics(const front_t *front, weft_http_exchange_t *exchange)
{
    static const char *const roles[] = {"prefill", "decode"};
    for (front_role_t role = 0; role < FRONT_ROLES; role++) {
        weft_series_set(front_series(front, METRIC_workers_up, &roles[role]),
                        front_workers_up(front, role));
    }
    weft_series_set(front_series(front, METRIC_open, NULL), front->n_calls);
    size_t length = 0;
    char *text = weft_metrics_text(front->metrics, &length);
    weft_http_respond(exchange, text != NULL ? 200 : 503,
                      "text/plain; version=0.0.4; charset=utf-8", NULL, 0, text != NULL ? text : "",
                      length);
    weft_free(text);
}

static void answer_preflight(weft_http_exchange_t *exchange)
{
    static const weft_http_header_t headers[] = {
        {"Access-Control-Allow-Origin", "*"},
        {"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
        {"Access-Control-Allow-Headers", "*"},
    };
    weft_http_respond(exchange, 200, "text/plain", headers, WEFT_ARRAY_LEN(headers), "OK", 2);
}

/* What the front answers itself. */
static const struct {
    const char *path;
    const char *methods[2]; /* the second may be NULL */
    void (*answer)(const front_t *front, weft_http_exchange_t *exchange);
} own_paths[] = {
    {"/health", {"GET"}, answer_health},
    {"/ping", {"GET", "POST"}, answer_health},
    {"/metrics", {"GET"}, answer_metrics},
};

static void answer_wrong_method(weft_http_exchange_t *exchange, const char *const methods[2])
{
    char list[32];
    snprintf(list, sizeof(list), methods[1] == NULL ? "%s" : "%s, %s", methods[0], methods[1]);
    const weft_http_header_t allow = {"Allow", list};
    answer_error(exchange, 405, "Method Not Allowed", "Method Not Allowed", &allow);
}

/* False: it is for the workers. */
static bool answer_own(const front_t *front, weft_http_exchange_t *exchange)
{
    const char *method = weft_http_method(exchange);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(own_paths); i++) {
        const char *const *methods = own_paths[i].methods;
        if (strcmp(weft_http_path(exchange), own_paths[i].path) != 0) {
            continue;
        }
        if (strcmp(method, methods[0]) == 0 ||
            (methods[1] != NULL && strcmp(method, methods[1]) == 0)) {
            own_paths[i].answer(front, exchange);
        } else {
            answer_wrong_method(exchange, methods);
        }
        return true;
    }
    return false;
}

static void on_request(void *user, weft_http_exchange_t *exchange)
{
    front_t *front = user;
    if (strcmp(weft_http_method(exchange), "OPTIONS") == 0) {
        answer_preflight(exchange);
    } else if (answer_own(front, exchange)) {
        return;
    } else if (front->is_draining) {
        front_answer_error(exchange, 503, "ServiceUnavailableError",
                           "The server is shutting down and takes no new requests.");
    } else {
        front_call_start(front, exchange);
    }
}

static weft_status_t start(front_t *front, const front_config_t *config, weft_diag_t *diag)
{
    const weft_http_server_config_t http = {
        .host = config->host,
        .port = config->port,
        .max_body_bytes = config->max_body_bytes,
        .max_connections = config->max_connections,
        .idle_timeout_s = IDLE_TIMEOUT_S,
        .handle = on_request,
        .user = front,
    };
    weft_status_t status = weft_metrics_create("", &front->metrics);
    if (status == WEFT_OK) {
        status = weft_http_client_create(front->loop, &front->client);
    }
    if (status == WEFT_OK) {
        status = front_workers_init(&front->workers, front->loop, front->client,
                                    config->check_interval_ms);
    }
    return status < 0 ? status : weft_http_server_start(front->loop, &http, diag, &front->http);
}

weft_status_t front_create(weft_loop_t *loop, const front_config_t *config, weft_diag_t *diag,
                           front_t **front_out)
{
    front_t *front = weft_zalloc(sizeof(*front), "front.front");
    if (front == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    front->loop = loop;
    front->is_overlapped = config->is_overlapped;
    const weft_status_t status = start(front, config, diag);
    if (status < 0) {
        front_destroy(front);
        return status;
    }
    *front_out = front;
    return WEFT_OK;
}

void front_destroy(front_t *front)
{
    if (front == NULL) {
        return;
    }
    weft_http_server_destroy(front->http); /* hangs up, which ends the calls */
    while (front->calls != NULL) {
        front_call_drop(front->calls);
    }
    front_workers_fini(&front->workers);
    weft_http_client_destroy(front->client);
    weft_metrics_destroy(front->metrics);
    weft_free(front);
}

weft_status_t front_add_worker(front_t *front, front_role_t role, const char *name, const char *url)
{
    return front_workers_add(&front->workers, role, name, url);
}

void front_lose_worker(front_t *front, const char *name)
{
    front_worker_t *worker = front_workers_find(&front->workers, name);
    if (worker != NULL) {
        front_worker_has_ended(worker);
    }
}

uint16_t front_port(const front_t *front)
{
    return weft_http_server_port(front->http);
}

uint32_t front_workers_up(const front_t *front, front_role_t role)
{
    return front_workers_up_count(&front->workers, role);
}

uint32_t front_open_calls(const front_t *front)
{
    return weft_http_server_exchanges(front->http);
}

void front_drain(front_t *front)
{
    front->is_draining = true;
}

void front_stop(front_t *front)
{
    front_workers_stop_checks(&front->workers);
    weft_http_server_stop_listening(front->http);
}
