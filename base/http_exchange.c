/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/http_server_priv.h"

#define WEFT_LOG_MODULE "http"
#include "base/log.h"

/*
 * An exchange has two owners. libmicrohttpd lets go in on_completed (connection is NULL then); the
 * user by respond, stream_end, or by having been told of the hang-up (is_released). The last one
 * frees it.
 *
 * libmicrohttpd asks again and again for an answer or for more of a stream unless the connection is
 * suspended, so it is whenever there is nothing to do; is_suspended says so, for resuming one that
 * is not would confuse it.
 */
#define MAX_HEADER_BYTES   ((size_t)32 << 10) /* of the 64 KiB that a connection may use */
#define MAX_DROPPED_FACTOR 16                 /* bodies larger than this × max are cut off */
#define MIN_PROGRESS_BYTES 1024               /* a body must bring this in every idle timeout */
#define STREAM_BLOCK_BYTES ((size_t)16 << 10)

struct weft_http_exchange {
    weft_http_exchange_t *previous;
    weft_http_exchange_t *next;
    weft_http_server_t *server;
    struct MHD_Connection *connection; /* NULL: libmicrohttpd is done with it */
    http_connection_t *socket;
    const char *method; /* these two are libmicrohttpd's */
    const char *path;
    uint64_t arrival_ns;

    weft_buffer_t body;
    uint64_t body_bytes; /* that came, kept or not */
    uint64_t window_start_ns;
    uint64_t window_bytes;  /* of the body since then */
    uint32_t reject_status; /* 0: none; else what reject() is to answer */

    void *user;
    void (*on_hangup)(weft_http_exchange_t *exchange, void *user);
    void *on_hangup_user;

    struct MHD_Response *response; /* made but not yet handed over */
    uint32_t http_status;
    bool is_dispatched; /* handle or reject was called */
    bool is_suspended;
    bool is_streaming;
    bool is_released; /* the user's pointer is dead */
    bool is_hung_up;
    bool is_ended;        /* stream_end was called */
    weft_buffer_t stream; /* what was written; */
    size_t stream_sent;   /* its first bytes are gone already */
};

static void unlink_and_free(weft_http_exchange_t *exchange)
{
    if (exchange->previous != NULL) {
        exchange->previous->next = exchange->next;
    } else {
        exchange->server->exchanges = exchange->next;
    }
    if (exchange->next != NULL) {
        exchange->next->previous = exchange->previous;
    }
    if (exchange->response != NULL) {
        MHD_destroy_response(exchange->response);
    }
    weft_buffer_free(&exchange->body);
    weft_buffer_free(&exchange->stream);
    weft_free(exchange);
}

static void suspend(weft_http_exchange_t *exchange)
{
    if (!exchange->is_suspended) {
        MHD_suspend_connection(exchange->connection);
        exchange->is_suspended = true;
    }
}

static void resume(weft_http_exchange_t *exchange)
{
    if (exchange->is_suspended && exchange->connection != NULL) {
        exchange->is_suspended = false;
        MHD_resume_connection(exchange->connection);
        http_server_run_soon(exchange->server);
    }
}

/* The user's pointer is dead from now on. */
static void release(weft_http_exchange_t *exchange)
{
    exchange->is_released = true;
    if (exchange->connection == NULL) {
        unlink_and_free(exchange);
    } else {
        resume(exchange);
    }
}

/* The peer is gone; tells the user unless it is done or does not want to know. */
static void hang_up(weft_http_exchange_t *exchange)
{
    exchange->is_hung_up = true;
    if (exchange->is_dispatched && !exchange->is_released && exchange->on_hangup != NULL) {
        exchange->is_released = true; /* a respond from within the callback finds it so */
        exchange->on_hangup(exchange, exchange->on_hangup_user);
    }
}

void http_exchange_peer_gone(weft_http_exchange_t *exchange)
{
    if (!exchange->is_dispatched || exchange->is_released) {
        return; /* its request is read on; what is left of its answer may still be read */
    }
    weft_log_debug("peer hung up path=%s", exchange->path);
    /* libmicrohttpd, waiting to write, would not notice a peer that only stopped sending. */
    (void)shutdown(exchange->socket->fd, SHUT_RDWR);
    hang_up(exchange);
    if (exchange->is_released) {
        resume(exchange);
    }
}

bool http_exchange_is_dispatched(const weft_http_exchange_t *exchange)
{
    return exchange->is_dispatched;
}

/* The request. */

static enum MHD_Result add_header_bytes(void *user, enum MHD_ValueKind kind, const char *name,
                                        const char *value)
{
    size_t *total = user;
    (void)kind;
    *total += strlen(name) + (value == NULL ? 0 : strlen(value));
    return MHD_YES;
}

static uint32_t judge_headers(const weft_http_exchange_t *exchange, uint64_t *length_out)
{
    size_t total = strlen(exchange->path);
    MHD_get_connection_values(exchange->connection, MHD_HEADER_KIND, add_header_bytes, &total);
    MHD_get_connection_values(exchange->connection, MHD_GET_ARGUMENT_KIND, add_header_bytes,
                              &total);
    if (total > MAX_HEADER_BYTES) {
        return MHD_HTTP_REQUEST_HEADER_FIELDS_TOO_LARGE;
    }
    const char *length = weft_http_header(exchange, "Content-Length");
    *length_out = length == NULL ? 0 : strtoull(length, NULL, 10); /* libmicrohttpd checked it */
    return *length_out > exchange->server->config.max_body_bytes ? MHD_HTTP_CONTENT_TOO_LARGE : 0;
}

static enum MHD_Result hand_over(weft_http_exchange_t *exchange)
{
    struct MHD_Response *response = exchange->response;
    exchange->response = NULL;
    const enum MHD_Result result =
        MHD_queue_response(exchange->connection, exchange->http_status, response);
    MHD_destroy_response(response); /* libmicrohttpd has its own reference */
    return result;
}

static enum MHD_Result reject_now(weft_http_exchange_t *exchange)
{
    const weft_http_server_config_t *config = &exchange->server->config;
    exchange->is_dispatched = true;
    if (config->reject != NULL) {
        config->reject(config->user, exchange, exchange->reject_status);
    }
    if (exchange->response == NULL && !exchange->is_released) {
        static const char text[] = "request is too large\n";
        weft_http_respond(exchange, exchange->reject_status, "text/plain", NULL, 0, text,
                          sizeof(text) - 1);
    }
    return exchange->response == NULL ? MHD_NO : hand_over(exchange);
}

static uint64_t drop_limit(const weft_http_exchange_t *exchange)
{
    const uint64_t max = exchange->server->config.max_body_bytes;
    return max > UINT64_MAX / MAX_DROPPED_FACTOR ? UINT64_MAX : max * MAX_DROPPED_FACTOR;
}

/* The headers are in. A body that is too large is read to its end, kept nowhere, so that the peer
 * gets to read the answer; unless it waits for our word, or would take too long. */
static enum MHD_Result begin(weft_http_server_t *server, struct MHD_Connection *connection,
                             const char *path, const char *method, void **exchange_out)
{
    weft_http_exchange_t *exchange = weft_zalloc(sizeof(*exchange), "http.exchange");
    if (exchange == NULL) {
        return MHD_NO;
    }
    exchange->server = server;
    exchange->connection = connection;
    exchange->socket =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    exchange->path = path;
    exchange->method = method;
    exchange->arrival_ns = exchange->window_start_ns = weft_clock_ns();
    exchange->next = server->exchanges;
    if (exchange->next != NULL) {
        exchange->next->previous = exchange;
    }
    server->exchanges = exchange;
    if (exchange->socket != NULL) {
        exchange->socket->exchange = exchange;
    }
    *exchange_out = exchange;

    uint64_t length = 0;
    exchange->reject_status = judge_headers(exchange, &length);
    const bool waits = weft_http_header(exchange, "Expect") != NULL;
    if (exchange->reject_status != 0 && (waits || length > drop_limit(exchange))) {
        return reject_now(exchange);
    }
    return MHD_YES;
}

/* False for a peer that brings too little too slowly. */
static bool makes_progress(weft_http_exchange_t *exchange, size_t length)
{
    const uint64_t now = weft_clock_ns();
    const uint64_t window = exchange->server->config.idle_timeout_s * WEFT_NS_PER_SECOND;
    exchange->window_bytes += length;
    if (window == 0 || now - exchange->window_start_ns <= window) {
        return true;
    }
    const bool was_enough = exchange->window_bytes >= MIN_PROGRESS_BYTES;
    exchange->window_start_ns = now;
    exchange->window_bytes = 0;
    return was_enough;
}

static enum MHD_Result take_body(weft_http_exchange_t *exchange, const char *data, size_t *length)
{
    if (!makes_progress(exchange, *length)) {
        return MHD_NO;
    }
    exchange->body_bytes += *length;
    if (exchange->body_bytes > drop_limit(exchange)) {
        return MHD_NO;
    }
    if (exchange->body_bytes > exchange->server->config.max_body_bytes) {
        exchange->reject_status = MHD_HTTP_CONTENT_TOO_LARGE;
        weft_buffer_free(&exchange->body);
    }
    if (exchange->reject_status == 0) {
        weft_buffer_append(&exchange->body, data, *length);
    }
    *length = 0;
    return exchange->body.is_failed ? MHD_NO : MHD_YES;
}

static enum MHD_Result answer_or_wait(weft_http_exchange_t *exchange)
{
    if (exchange->response != NULL) {
        return hand_over(exchange);
    }
    if (exchange->is_hung_up) {
        return MHD_NO;
    }
    suspend(exchange);
    return MHD_YES;
}

static enum MHD_Result dispatch(weft_http_exchange_t *exchange)
{
    weft_http_server_t *server = exchange->server;
    if (exchange->reject_status != 0) {
        return reject_now(exchange);
    }
    weft_buffer_append(&exchange->body, "", 1); /* for those who read it as a string */
    if (exchange->body.is_failed || exchange->socket == NULL) {
        return MHD_NO;
    }
    exchange->is_dispatched = true;
    server->config.handle(server->config.user, exchange);
    if (exchange->socket->is_gone) { /* it was, before its request was whole */
        http_exchange_peer_gone(exchange);
    }
    return answer_or_wait(exchange);
}

enum MHD_Result http_exchange_on_request(void *server, struct MHD_Connection *connection,
                                         const char *path, const char *method, const char *version,
                                         const char *data, size_t *data_length, void **exchange_at)
{
    (void)version;
    weft_http_exchange_t *exchange = *exchange_at;
    if (exchange == NULL) {
        return begin(server, connection, path, method, exchange_at);
    }
    if (*data_length > 0) {
        return take_body(exchange, data, data_length);
    }
    if (!exchange->is_dispatched) {
        return dispatch(exchange);
    }
    return answer_or_wait(exchange);
}

void http_exchange_on_completed(void *server, struct MHD_Connection *connection, void **exchange_at,
                                enum MHD_RequestTerminationCode code)
{
    weft_http_exchange_t *exchange = *exchange_at;
    (void)server;
    (void)connection;
    (void)code;
    if (exchange == NULL) {
        return;
    }
    *exchange_at = NULL;
    if (exchange->socket != NULL) {
        exchange->socket->exchange = NULL;
        exchange->socket->quiet_since_ns = weft_clock_ns();
    }
    if (exchange->is_dispatched && !exchange->is_released) {
        hang_up(exchange); /* the socket broke; the strings are still there for the callback */
    }
    exchange->connection = NULL;
    exchange->method = "";
    exchange->path = "";
    if (exchange->is_released || !exchange->is_dispatched) {
        unlink_and_free(exchange);
    }
}

void http_exchanges_abandon(weft_http_server_t *server)
{
    weft_http_exchange_t *next = NULL;
    for (weft_http_exchange_t *exchange = server->exchanges; exchange != NULL; exchange = next) {
        next = exchange->next;
        if (!exchange->is_hung_up) {
            hang_up(exchange);
        }
        resume(exchange);
    }
}

void http_exchanges_free(weft_http_server_t *server)
{
    while (server->exchanges != NULL) {
        unlink_and_free(server->exchanges);
    }
}

/* What was asked. */

const char *weft_http_method(const weft_http_exchange_t *exchange)
{
    return exchange->method;
}

const char *weft_http_path(const weft_http_exchange_t *exchange)
{
    return exchange->path;
}

static const char *lookup(const weft_http_exchange_t *exchange, enum MHD_ValueKind kind,
                          const char *name)
{
    return exchange->connection == NULL
               ? NULL
               : MHD_lookup_connection_value(exchange->connection, kind, name);
}

const char *weft_http_query(const weft_http_exchange_t *exchange, const char *name)
{
    return lookup(exchange, MHD_GET_ARGUMENT_KIND, name);
}

const char *weft_http_header(const weft_http_exchange_t *exchange, const char *name)
{
    return lookup(exchange, MHD_HEADER_KIND, name);
}

const char *weft_http_body(const weft_http_exchange_t *exchange, size_t *length_out)
{
    const size_t with_end = exchange->body.length;
    if (length_out != NULL) {
        *length_out = with_end == 0 ? 0 : with_end - 1;
    }
    return with_end == 0 ? "" : exchange->body.data;
}

uint64_t weft_http_arrival_ns(const weft_http_exchange_t *exchange)
{
    return exchange->arrival_ns;
}

void weft_http_set_user(weft_http_exchange_t *exchange, void *user)
{
    exchange->user = user;
}

void *weft_http_user(const weft_http_exchange_t *exchange)
{
    return exchange->user;
}

void weft_http_on_hangup(weft_http_exchange_t *exchange,
                         void (*fn)(weft_http_exchange_t *exchange, void *user), void *user)
{
    exchange->on_hangup = fn;
    exchange->on_hangup_user = user;
}

/* The answer. */

static void add_header(struct MHD_Response *response, const char *name, const char *value)
{
    if (value != NULL && MHD_add_response_header(response, name, value) == MHD_NO) {
        weft_log_warn("header left out of an answer name=%s", name);
    }
}

/* Takes response; NULL is a lack of memory, and the connection is closed. */
static void set_response(weft_http_exchange_t *exchange, struct MHD_Response *response,
                         uint32_t http_status, const char *content_type,
                         const weft_http_header_t *headers, size_t n)
{
    assert(exchange->response == NULL && !exchange->is_streaming);
    exchange->http_status = http_status;
    exchange->response = response;
    if (response == NULL) {
        exchange->is_hung_up = true;
        return;
    }
    add_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
    for (size_t i = 0; i < n; i++) {
        add_header(response, headers[i].name, headers[i].value);
    }
    if (exchange->server->is_stopping) {
        add_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    }
}

void weft_http_respond(weft_http_exchange_t *exchange, uint32_t http_status,
                       const char *content_type, const weft_http_header_t *headers, size_t n,
                       const void *body, size_t length)
{
    /* libmicrohttpd copies and does not write to it. */
    void *bytes = length == 0 ? (void *)(uintptr_t)"" : (void *)(uintptr_t)body;
    struct MHD_Response *response =
        MHD_create_response_from_buffer(length, bytes, MHD_RESPMEM_MUST_COPY);
    set_response(exchange, response, http_status, content_type, headers, n);
    release(exchange);
}

/* libmicrohttpd wants up to max more bytes. */
static ssize_t read_stream(void *user, uint64_t position, char *out, size_t max)
{
    weft_http_exchange_t *exchange = user;
    (void)position;
    if (exchange->is_hung_up) {
        return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    const size_t waiting = exchange->stream.length - exchange->stream_sent;
    if (waiting == 0 && exchange->is_ended) {
        return MHD_CONTENT_READER_END_OF_STREAM;
    }
    if (waiting == 0) {
        suspend(exchange);
        return 0;
    }
    const size_t n = waiting < max ? waiting : max;
    memcpy(out, exchange->stream.data + exchange->stream_sent, n);
    exchange->stream_sent += n;
    /* Moving the rest down only when it is the smaller half keeps the work linear. */
    if (exchange->stream_sent >= exchange->stream.length - exchange->stream_sent) {
        weft_buffer_drop_front(&exchange->stream, exchange->stream_sent);
        exchange->stream_sent = 0;
    }
    return (ssize_t)n;
}

void weft_http_stream_begin(weft_http_exchange_t *exchange, uint32_t http_status,
                            const char *content_type, const weft_http_header_t *headers, size_t n)
{
    struct MHD_Response *response = MHD_create_response_from_callback(
        MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, read_stream, exchange, NULL);
    set_response(exchange, response, http_status, content_type, headers, n);
    exchange->is_streaming = true;
    resume(exchange);
}

weft_status_t weft_http_stream_write(weft_http_exchange_t *exchange, const void *data,
                                     size_t length)
{
    assert(exchange->is_streaming && !exchange->is_ended);
    if (exchange->is_hung_up || exchange->connection == NULL) {
        return WEFT_ERR_PEER_GONE;
    }
    weft_buffer_append(&exchange->stream, data, length);
    if (exchange->stream.is_failed) {
        return WEFT_ERR_NO_MEMORY;
    }
    resume(exchange);
    return WEFT_OK;
}

size_t weft_http_stream_pending(const weft_http_exchange_t *exchange)
{
    return exchange->stream.length - exchange->stream_sent;
}

void weft_http_stream_end(weft_http_exchange_t *exchange)
{
    assert(exchange->is_streaming && !exchange->is_ended);
    exchange->is_ended = true;
    release(exchange);
}
