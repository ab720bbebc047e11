/* SPDX-License-Identifier: Apache-2.0 */
/*
 * http_server: HTTP/1.1 (and TLS) on a loop, over libmicrohttpd with an external epoll.
 *
 * A handler gets an exchange once its whole body is in; it answers at once or later, whole or as a
 * stream. A peer that hangs up while its answer is being made (also one that only shuts down its
 * sending side) is noticed at once, since its socket is watched, and told to on_hangup.
 *
 * Threads   everything on the loop's thread
 * Lifetime  an exchange is valid from its handler's call until respond, stream_end or, if the peer
 *           went first, the end of its on_hangup callback. Without such a callback it stays valid
 *           and the answer goes nowhere
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/loop.h"
#include "base/status.h"

typedef struct weft_http_server weft_http_server_t;
typedef struct weft_http_exchange weft_http_exchange_t;

typedef struct weft_http_header {
    const char *name;
    const char *value;
} weft_http_header_t;

typedef struct weft_http_server_config {
    const char *host; /* "0.0.0.0", "::", "127.0.0.1", a name */
    uint16_t port;    /* 0: the system's choice, see weft_http_server_port */
    int listen_fd;    /* above 0: one of weft_http_listen's, the server's from a start that succeeds
                      on; host and port are not used */
    const char *tls_cert; /* PEM paths; NULL: plain HTTP. Reread when the files change */
    const char *tls_key;
    size_t max_body_bytes; /* larger bodies are dropped as they come; then reject() for the 413 */
    uint32_t max_connections; /* more wait in the listen queue */
    uint32_t idle_timeout_s;  /* a connection without progress is closed; slow bodies count as idle
                                 when they bring under 1 KiB in that time */
    void (*handle)(void *user, weft_http_exchange_t *exchange);
    /*
     * Makes the whole answer, before it returns, to what never reaches handle: 413, 431. NULL:
     * plain text. What libmicrohttpd cannot parse at all it answers itself, with a page of HTML
     * (400, 414, 431, 505), or closes unanswered: its options (0.9.75) have no hook there. The
     * head of the one to a Content-Length that is no number it sends twice.
     */
    void (*reject)(void *user, weft_http_exchange_t *exchange, uint32_t http_status);
    void *user;
} weft_http_server_config_t;

/*
 * A socket that listens on host:port, for a server that starts later or in another process (it is
 * closed on exec). Errors as of start.
 */
weft_status_t weft_http_listen(const char *host, uint16_t port, weft_diag_t *diag, int *fd_out,
                               uint16_t *port_out);

/* Serves from the next round of the loop on. WEFT_ERR_IN_USE, _DENIED, _NOT_FOUND (host), _MALFORMED (certificate): diag says which. */
weft_status_t weft_http_server_start(weft_loop_t *loop, const weft_http_server_config_t *config,
                                     weft_diag_t *diag, weft_http_server_t **server_out);
void weft_http_server_stop_listening(weft_http_server_t *server); /* open exchanges go on */
/* Hangs up on who is still waiting (their on_hangup is called), then frees. NULL is fine. */
void weft_http_server_destroy(weft_http_server_t *server);
uint16_t weft_http_server_port(const weft_http_server_t *server);
uint32_t weft_http_server_connections(const weft_http_server_t *server);
/* Requests begun whose answers are not wholly handed to the system. */
uint32_t weft_http_server_exchanges(const weft_http_server_t *server);

/* What was asked. Strings live as long as the exchange; NULL: no such query or header. */
const char *weft_http_method(const weft_http_exchange_t *exchange);
const char *weft_http_path(const weft_http_exchange_t *exchange); /* decoded, without the query */
const char *weft_http_query(const weft_http_exchange_t *exchange, const char *name);
const char *weft_http_header(const weft_http_exchange_t *exchange, const char *name);
const char *weft_http_body(const weft_http_exchange_t *exchange, size_t *length_out);
uint64_t weft_http_arrival_ns(const weft_http_exchange_t *exchange);

void weft_http_set_user(weft_http_exchange_t *exchange, void *user);
void *weft_http_user(const weft_http_exchange_t *exchange);
void weft_http_on_hangup(weft_http_exchange_t *exchange,
                         void (*fn)(weft_http_exchange_t *exchange, void *user), void *user);

/* The whole answer; body is copied. headers [n] besides content-type and length. */
void weft_http_respond(weft_http_exchange_t *exchange, uint32_t http_status,
                       const char *content_type, const weft_http_header_t *headers, size_t n,
                       const void *body, size_t length);

/* An answer in pieces: begin, write as often as needed, end. */
void weft_http_stream_begin(weft_http_exchange_t *exchange, uint32_t http_status,
                            const char *content_type, const weft_http_header_t *headers, size_t n);
/* Copies into the exchange's buffer. Never blocks. */
weft_status_t weft_http_stream_write(weft_http_exchange_t *exchange, const void *data,
                                     size_t length);
/* Bytes written but not yet handed to the system: what a slow reader makes us hold. */
size_t weft_http_stream_pending(const weft_http_exchange_t *exchange);
void weft_http_stream_end(weft_http_exchange_t *exchange);
