/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "api"
#include "services/api/api_server.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "services/api/api_answers.h"
#include "services/api/api_keys.h"
#include "services/api/api_relay.h"
#include "services/api/api_routes.h"
#include "services/api/api_server_priv.h"
#include "services/api/generation_run.h"
#include "services/api/start_guard.h"

#define MAX_QUEUED_BODY_BYTES ((size_t)256 << 20)
#define FLUSH_POLL_NS         (5 * WEFT_NS_PER_MS)
#define FLUSH_LIMIT_NS        (2 * WEFT_NS_PER_SECOND)
#define LOST_ANSWER_NS        (5 * WEFT_NS_PER_SECOND)
#define EXIT_SECOND_SIGNAL    1
#define LEASE_POLL_NS         (20 * WEFT_NS_PER_MS)

/* ---- requests -------------------------------------------------------------------------------- */

/* For what has no call: no memory, or no route. allow: methods that there are, "": none to tell. */
static void answer_error(weft_http_exchange_t *exchange, const api_error_t *error,
                         const char *allow)
{
    const weft_http_header_t header = {"Allow", allow};
    weft_buffer_t body = {0};
    weft_json_t json;

    weft_json_init(&json, &body);
    api_error_write(error, &json);
    weft_http_respond(exchange, api_error_http_status(error), "application/json", &header,
                      allow[0] != '\0' ? 1 : 0, body.data != NULL ? body.data : "",
                      body.is_failed ? 0 : body.length);
    weft_buffer_free(&body);
}

static void on_reject(void *user, weft_http_exchange_t *exchange, uint32_t http_status)
{
    const api_server_t *server = user;
    api_error_t error = {0};

    if (http_status == 413) {
        api_error_set(&error, API_ERROR_TOO_LARGE, NULL,
                      "The request body is over %llu bytes (--max-request-bytes).",
                      (unsigned long long)server->options->max_request_bytes);
    } else if (http_status == 431) {
        api_error_set(&error, API_ERROR_HEADERS, NULL, "The request's headers are too large.");
    } else {
        api_error_set(&error, API_ERROR_SCHEMA, NULL, "The request is not valid HTTP.");
    }
    answer_error(exchange, &error, "");
}

/* A browser asks first whether it may call. */
static void answer_preflight(weft_http_exchange_t *exchange)
{
    const char *headers = weft_http_header(exchange, "access-control-request-headers");
    const weft_http_header_t answer[] = {
        {"Access-Control-Allow-Origin", "*"},
        {"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
        {"Access-Control-Allow-Headers", headers != NULL ? headers : "*"},
        {"Access-Control-Max-Age", "600"},
    };

    weft_http_respond(exchange, 200, "text/plain", answer, WEFT_ARRAY_LEN(answer), "OK", 2);
}

static bool is_json(const char *content_type)
{
    static const char json[] = "application/json";
    size_t length = sizeof(json) - 1;

    return content_type != NULL && strncasecmp(content_type, json, length) == 0 &&
           (content_type[length] == '\0' || content_type[length] == ';' ||
            content_type[length] == ' ');
}

static weft_status_t copy_body(api_call_t *call)
{
    const char *body = weft_http_body(call->exchange, &call->body_length);

    call->body = weft_alloc(call->body_length + 1, "api.body");
    if (call->body == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    memcpy(call->body, body != NULL ? body : "", call->body_length);
    return WEFT_OK;
}

/* Hands the body to a worker; a refusal is answered at once. */
static void prepare_call(api_call_t *call)
{
    weft_status_t status = copy_body(call);

    if (status == WEFT_OK) {
        call->is_at_worker = true;
        status = request_workers_post(call->server->workers, call);
    }
    if (status < 0) {
        call->is_at_worker = false;
        api_error_from(&call->error, status, &(weft_diag_t){0}, NULL);
        api_metrics_rejected(call->server->metrics);
        api_call_fail(call);
    }
}

static void on_prepared(api_call_t *call)
{
    call->is_at_worker = false;
    if (call->exchange == NULL) {
        api_call_drop(call);
    } else if (call->error.kind != API_ERROR_NONE) {
        api_call_fail(call);
    } else {
        call->route->answer(call);
    }
}

static void serve_call(api_call_t *call)
{
    const api_route_t *route = call->route;

    if (call->server->is_draining && (route->flags & ROUTE_WHILE_DRAINING) == 0) {
        api_error_from(&call->error, WEFT_ERR_STOPPING, &(weft_diag_t){0}, NULL);
    } else if (api_routes_is_guarded(route->path) &&
               !api_keys_accept(&call->options->api_key,
                                weft_http_header(call->exchange, "authorization"))) {
        api_error_set(&call->error, API_ERROR_UNAUTHORIZED, NULL, "Unauthorized");
    } else if ((route->flags & ROUTE_JSON) != 0 &&
               !is_json(weft_http_header(call->exchange, "content-type"))) {
        api_error_set(&call->error, API_ERROR_SCHEMA, NULL,
                      "Unsupported Media Type: Only 'application/json' is allowed");
    }
    if (call->error.kind != API_ERROR_NONE) {
        api_call_fail(call);
    } else if (api_relay_take(call)) {
        return;
    } else if (route->prepare != NULL) {
        prepare_call(call);
    } else {
        route->answer(call);
    }
}

static uint32_t absent_routes(const api_server_t *server)
{
    return (server->options->server_dev_mode ? 0 : ROUTE_DEV) |
           (adapters_may_change(server->engine) ? 0 : ROUTE_ADAPTERS) |
           (engine_embeds(server->engine) ? ROUTE_GENERATE : ROUTE_EMBED);
}

static void on_request(void *user, weft_http_exchange_t *exchange)
{
    api_server_t *server = user;
    const char *method = weft_http_method(exchange);
    const char *path = weft_http_path(exchange);
    char allow[API_ROUTES_METHODS] = "";
    api_error_t error = {0};

    if (strcmp(method, "OPTIONS") == 0) {
        answer_preflight(exchange);
        return;
    }
    const api_route_t *route = api_routes_find(method, path, absent_routes(server), &error);
    api_call_t *call = route != NULL ? api_call_create(server, exchange, route) : NULL;
    if (call != NULL) {
        serve_call(call);
        return;
    }
    if (route != NULL) {
        api_error_from(&error, WEFT_ERR_NO_MEMORY, &(weft_diag_t){0}, NULL);
    } else if (api_routes_is_guarded(path) &&
               !api_keys_accept(&server->options->api_key,
                                weft_http_header(exchange, "authorization"))) {
        api_error_set(&error, API_ERROR_UNAUTHORIZED, NULL, "Unauthorized");
    } else {
        api_routes_methods(path, absent_routes(server), allow);
    }
    api_metrics_http(server->metrics, "none", method, api_error_http_status(&error), 0);
    answer_error(exchange, &error, allow);
}

static void on_engine_news(void *user, uint32_t events)
{
    api_server_t *server = user;
    engine_request_t *request;

    (void)events;
    while ((request = engine_client_next(server->client)) != NULL) {
        generation_run_news(request);
    }
}

/* ---- stopping -------------------------------------------------------------------------------- */

/* Ends every generation with an error; the calls end with it. */
static void cut_off_calls(api_server_t *server)
{
    api_error_t error = {0};
    api_call_t *next;

    api_error_set(&error, API_ERROR_UNAVAILABLE, NULL,
                  "The server is shutting down; the request was cut off.");
    for (api_call_t *call = server->calls; call != NULL; call = next) {
        next = call->next;
        if (!call->is_at_worker && call->generation != NULL && call->exchange != NULL) {
            generation_run_fail(call, &error);
        }
    }
}

static void stop_when_flushed(api_server_t *server)
{
    uint64_t now = weft_clock_ns();

    if (server->flush_deadline_ns == 0) {
        server->flush_deadline_ns = now + FLUSH_LIMIT_NS;
        weft_http_server_stop_listening(server->http);
    }
    bool are_spans_sent = span_export_flush(server->spans);
    if ((weft_http_server_exchanges(server->http) == 0 && are_spans_sent) ||
        now >= server->flush_deadline_ns) {
        weft_loop_stop(server->loop);
    } else {
        weft_loop_timer_set(server->drain_timer, FLUSH_POLL_NS);
    }
}

static uint64_t open_leases(const api_server_t *server)
{
    kv_transfer_t *transfer = engine_transfer(server->engine);
    kv_transfer_stats_t stats = {0};

    if (transfer != NULL) {
        kv_transfer_stats(transfer, &stats);
    }
    return stats.leases_open;
}

/* What decode workers were told is here stays until they have it, as long as there is time. */
static void wait_for_the_rest(api_server_t *server, uint64_t leases, uint64_t now)
{
    if (server->n_calls > 0) { /* the last one's end sets the timer */
        weft_loop_timer_set(server->drain_timer, server->drain_until_ns - now);
        return;
    }
    if (!server->is_waiting_for_readers) {
        server->is_waiting_for_readers = true;
        weft_log_info("blocks are kept for decode workers leases=%" PRIu64, leases);
    }
    weft_loop_timer_set(server->drain_timer, LEASE_POLL_NS);
}

static void on_drain_timer(void *user)
{
    api_server_t *server = user;
    const uint64_t now = weft_clock_ns();
    /* Of an engine that has ended nobody can read blocks any more. */
    const uint64_t leases = server->end_status < 0 ? 0 : open_leases(server);

    if (server->flush_deadline_ns == 0 && (server->n_calls > 0 || leases > 0)) {
        if (now < server->drain_until_ns) {
            wait_for_the_rest(server, leases, now);
            return;
        }
        weft_log_warn("the time to end is over requests=%u leases=%" PRIu64, server->n_calls,
                      leases);
        cut_off_calls(server);
    }
    stop_when_flushed(server);
}

void api_server_call_ended(api_server_t *server)
{
    if (server->is_draining && server->n_calls == 0 && server->flush_deadline_ns == 0) {
        weft_loop_timer_set(server->drain_timer, 0);
    }
}

static void drain(api_server_t *server, uint32_t number)
{
    weft_log_info("draining signal=%u requests=%u timeout=%us", number, server->n_calls,
                  server->options->shutdown_timeout);
    server->is_draining = true;
    if (server->end_status >= 0) { /* else LOST_ANSWER_NS from then */
        server->drain_until_ns =
            weft_clock_ns() + server->options->shutdown_timeout * WEFT_NS_PER_SECOND;
    }
    engine_drain(server->engine);
    weft_loop_timer_set(server->drain_timer, 0);
}

/* What runs has been answered, or is about to be; whoever placed the process has to place it anew. */
static void leave_service(void *user)
{
    api_server_t *server = user;
    const bool has_failed = engine_health(server->engine) == ENGINE_FAILED;

    server->end_status = has_failed ? WEFT_ERR_DEVICE : WEFT_ERR_PEER_GONE;
    if (server->is_draining) {
        return;
    }
    weft_log_error("%s: the server ends requests=%u",
                   has_failed ? "the engine has failed" : "a rank was lost", server->n_calls);
    server->is_draining = true;
    server->drain_until_ns = weft_clock_ns() + LOST_ANSWER_NS;
    weft_loop_timer_set(server->drain_timer, 0);
}

static void on_health(void *user, engine_health_t health)
{
    api_server_t *server = user;

    if (health == ENGINE_LOST || health == ENGINE_FAILED) {
        (void)weft_loop_post(server->loop, leave_service, server); /* no memory: /health says it */
    }
}

static void take_signal(api_server_t *server, uint32_t number, uint64_t now_ns)
{
    switch (weft_signal_take(&server->signals, (int)number, now_ns)) {
    case WEFT_SIGNAL_FIRST:
        drain(server, number);
        break;
    case WEFT_SIGNAL_ECHO:
        break;
    case WEFT_SIGNAL_SECOND:
        weft_log_warn("second signal: stopping at once");
        _exit(EXIT_SECOND_SIGNAL);
    }
}

static void on_signal(void *user, uint32_t events)
{
    api_server_t *server = user;
    const uint64_t now =
        weft_clock_ns(); /* of all that are there, however long the first one takes */
    struct signalfd_siginfo info;

    (void)events;
    while (read(server->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        take_signal(server, info.ssi_signo, now);
    }
}

/* Before any thread starts, so that all inherit the mask. */
static void block_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    pthread_sigmask(SIG_BLOCK, set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static weft_status_t watch_signals(api_server_t *server, const sigset_t *set)
{
    server->signal_fd = signalfd(-1, set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (server->signal_fd < 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = weft_loop_watch(server->loop, server->signal_fd, WEFT_LOOP_READ,
                                           on_signal, server, &server->signal_watch);
    return status < 0
               ? status
               : weft_loop_timer_create(server->loop, on_drain_timer, server, &server->drain_timer);
}

/* ---- starting -------------------------------------------------------------------------------- */

static weft_status_t start_prefill_client(api_server_t *server, weft_diag_t *diag)
{
    const kv_transfer_t *transfer = engine_transfer(server->engine);

    if (transfer == NULL || (kv_transfer_config(transfer)->role & KV_TRANSFER_CONSUMER) == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--prefill-urls: no blocks come from there without --kv-transfer-config "
                         "and kv_role kv_consumer or kv_both");
    }
    return weft_http_client_create(server->loop, &server->prefill_client);
}

static weft_status_t start_engine(api_server_t *server, const char *path, weft_diag_t *diag)
{
    weft_status_t status = served_model_open(server->options, path, diag, &server->model);

    if (status == WEFT_OK) {
        status =
            engine_create(server->engine_options, server->model.source, server->model.tokenizer,
                          server->engine_ranks, diag, &server->engine);
    }
    if (status < 0) {
        return status;
    }
    served_model_attach(&server->model, server->engine_options, server->engine);
    status = engine_client_create(server->engine, &server->client);
    if (status == WEFT_OK) {
        status = weft_loop_watch(server->loop, engine_client_fd(server->client), WEFT_LOOP_READ,
                                 on_engine_news, server, &server->client_watch);
    }
    if (status == WEFT_OK) {
        status = api_metrics_create(&server->model.api, server->engine_options, server->engine,
                                    &server->metrics);
    }
    if (status == WEFT_OK) {
        const engine_observer_t observer = api_metrics_observer(server->metrics);
        engine_observe(server->engine, &observer);
    }
    if (status == WEFT_OK) {
        engine_watch_health(server->engine, on_health, server);
    }
    if (status < 0 || server->options->prefill_urls.count == 0) {
        return status;
    }
    return start_prefill_client(server, diag);
}

static weft_status_t start_workers(api_server_t *server)
{
    const request_workers_config_t config = {
        .loop = server->loop,
        .n_threads = server->options->request_workers > 0 ? server->options->request_workers : 1,
        .max_queued = server->engine_options->max_num_queued_reqs,
        .max_queued_bytes = MAX_QUEUED_BODY_BYTES,
        .on_done = on_prepared,
    };

    return request_workers_create(&config, &server->workers);
}

static weft_status_t start_http(api_server_t *server, weft_diag_t *diag)
{
    const api_options_t *options = server->options;
    bool has_tls = options->ssl_certfile[0] != '\0';
    const weft_http_server_config_t config = {
        .host = options->host,
        .port = (uint16_t)options->port,
        .listen_fd = (int)options->listen_fd,
        .tls_cert = has_tls ? options->ssl_certfile : NULL,
        .tls_key = has_tls ? options->ssl_keyfile : NULL,
        .max_body_bytes = options->max_request_bytes,
        .max_connections = options->max_connections,
        .idle_timeout_s = options->idle_timeout,
        .handle = on_request,
        .reject = on_reject,
        .user = server,
    };
    return weft_http_server_start(server->loop, &config, diag, &server->http);
}

static void say_listening(const api_server_t *server)
{
    const api_options_t *options = server->options;
    weft_buffer_t url = {0};
    weft_buffer_t more = {0};

    weft_buffer_printf(&url, "%s://%s:%u", options->ssl_certfile[0] != '\0' ? "https" : "http",
                       options->host, weft_http_server_port(server->http));
    weft_buffer_printf(&more, "model=%s", server->model.api.names[0]);
    if (!url.is_failed && !more.is_failed) {
        weft_log_listening(WEFT_LOG_MODULE, url.data, more.data, options->port == 0);
    }
    weft_buffer_free(&url);
    weft_buffer_free(&more);
}

static weft_status_t start_ranks(api_server_t *server, weft_diag_t *diag)
{
    const weft_status_t status = api_ranks_init(&server->ranks, server->options,
                                                server->engine_options->data_parallel_rank, diag);

    return status < 0 || server->ranks.all == NULL
               ? status
               : weft_http_client_create(server->loop, &server->rank_client);
}

/* The port and the certificate come before the model: they are cheap to have wrong. */
static weft_status_t start_all(api_server_t *server, const char *path, weft_diag_t *diag)
{
    sigset_t signals;
    start_guard_t *guard = NULL;
    weft_status_t status = api_options_check(server->options, diag);

    if (status < 0) {
        return status;
    }
    block_signals(&signals);
    status = weft_loop_create(&server->loop);
    if (status == WEFT_OK) {
        status = watch_signals(server, &signals);
    }
    if (status == WEFT_OK && server->options->otlp_traces_endpoint[0] != '\0') {
        status = span_export_create(server->loop, server->options->otlp_traces_endpoint, diag,
                                    &server->spans);
    }
    if (status == WEFT_OK) {
        status = start_ranks(server, diag);
    }
    if (status == WEFT_OK) {
        status = start_http(server, diag);
    }
    if (status == WEFT_OK) {
        status = start_guard_begin(server->signal_fd, &guard);
    }
    if (status == WEFT_OK) {
        status = start_engine(server, path, diag);
    }
    start_guard_end(guard);
    if (status == WEFT_OK) {
        status = start_workers(server);
    }
    if (status == WEFT_OK) {
        say_listening(server);
    }
    return status;
}

weft_status_t api_server_create(const api_options_t *options,
                                const engine_options_t *engine_options, const char *path,
                                const engine_ranks_t *ranks, weft_diag_t *diag,
                                api_server_t **server_out)
{
    api_server_t *server = weft_zalloc(sizeof(*server), "api.server");

    if (server == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    server->options = options;
    server->engine_options = engine_options;
    server->engine_ranks = ranks;
    server->signal_fd = -1;
    weft_status_t status = start_all(server, path, diag);
    if (status < 0) {
        api_server_destroy(server);
        return status;
    }
    *server_out = server;
    return WEFT_OK;
}

weft_status_t api_server_run(api_server_t *server)
{
    weft_status_t status = weft_loop_run(server->loop);

    weft_log_info("stopped");
    return status < 0 ? status : server->end_status;
}

void api_server_destroy(api_server_t *server)
{
    if (server == NULL) {
        return;
    }
    request_workers_destroy(server->workers);
    for (api_call_t *call = server->calls; call != NULL; call = call->next) {
        call->is_at_worker = false; /* theirs no more: a hang-up ends it */
    }
    server->is_draining = false;
    weft_http_server_destroy(server->http); /* hangs up, which ends the calls */
    while (server->calls != NULL) {
        api_call_drop(server->calls);
    }
    weft_loop_unwatch(server->client_watch);
    engine_client_destroy(server->client);
    engine_destroy(server->engine);
    span_export_destroy(server->spans);
    weft_http_client_destroy(server->prefill_client);
    weft_http_client_destroy(server->rank_client);
    api_ranks_fini(&server->ranks);
    api_metrics_destroy(server->metrics);
    served_model_close(&server->model);
    weft_loop_unwatch(server->signal_watch);
    weft_loop_timer_destroy(server->drain_timer);
    if (server->signal_fd >= 0) {
        close(server->signal_fd);
    }
    weft_loop_destroy(server->loop);
    weft_buffer_free(&server->scratch);
    weft_free(server);
}
