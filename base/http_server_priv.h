/* SPDX-License-Identifier: Apache-2.0 */
/* http_server_priv: what the files of the HTTP server share. */
#pragma once

#include <microhttpd.h>

#include "base/buffer.h"
#include "base/http_server.h"
#include "base/http_tls.h"

/* One accepted socket, from libmicrohttpd's "started" to its "closed"; http_connection.c. */
typedef struct http_connection {
    struct http_connection *previous;
    struct http_connection *next;
    weft_http_server_t *server;
    int fd;
    weft_loop_watch_t *watch; /* for the hang-up; NULL once it came */
    bool is_gone;             /* the peer sends no more */
    uint32_t nudges;
    uint64_t quiet_since_ns;        /* accepted, or its last answer was sent */
    weft_http_exchange_t *exchange; /* NULL between requests */
} http_connection_t;

struct weft_http_server {
    weft_loop_t *loop;
    weft_http_server_config_t config; /* host and paths are not used after start */
    struct MHD_Daemon *daemon;
    http_tls_t *tls; /* NULL: plain HTTP */
    int listen_fd;
    uint16_t port;
    bool is_stopping; /* answers say "Connection: close" */
    weft_loop_watch_t *watch;
    weft_loop_timer_t *timer; /* libmicrohttpd's next deadline */
    bool should_run;          /* something was resumed since its last run */
    weft_loop_timer_t *sweep; /* looks for connections that trickle */
    http_connection_t *connections;
    uint32_t n_connections;
    uint32_t n_gone;
    weft_http_exchange_t *exchanges;
};

/* Lets libmicrohttpd see what was resumed, once in this round of the loop for all of them. */
void http_server_run_soon(weft_http_server_t *server);

/* libmicrohttpd's callback for connections that come and go. */
void http_connection_on_change(void *server, struct MHD_Connection *connection, void **context,
                               enum MHD_ConnectionNotificationCode code);

/* Makes libmicrohttpd read from peers that are gone; after each of its runs. */
void http_connections_nudge(weft_http_server_t *server);

/* Closes those that have had no whole request head for two idle timeouts. */
void http_connections_sweep(weft_http_server_t *server);

/* libmicrohttpd's callbacks for one request; http_exchange.c. */
enum MHD_Result http_exchange_on_request(void *server, struct MHD_Connection *connection,
                                         const char *path, const char *method, const char *version,
                                         const char *data, size_t *data_length, void **exchange);
void http_exchange_on_completed(void *server, struct MHD_Connection *connection, void **exchange,
                                enum MHD_RequestTerminationCode code);

/* Its peer sends no more: an answer that is not made yet will not be. */
void http_exchange_peer_gone(weft_http_exchange_t *exchange);

/* Whether its request is whole, so that nothing more of it will be read. */
bool http_exchange_is_dispatched(const weft_http_exchange_t *exchange);

/* Hangs up on every exchange, so that the daemon can be stopped; then frees those left over. */
void http_exchanges_abandon(weft_http_server_t *server);
void http_exchanges_free(weft_http_server_t *server);

/* Where a socket is bound; http_listen.c. 0: nowhere. */
uint16_t http_port_of(int fd);
