/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/socket.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/http_server_priv.h"

#define MAX_NUDGES 1000

static void on_event(void *user, uint32_t events)
{
    http_connection_t *c = user;
    if ((events & WEFT_LOOP_HANGUP) == 0) {
        return;
    }
    weft_loop_unwatch(c->watch);
    c->watch = NULL;
    c->is_gone = true;
    c->server->n_gone++;
    if (c->exchange != NULL) {
        http_exchange_peer_gone(c->exchange);
    }
    http_server_run_soon(c->server);
}

static void open_connection(weft_http_server_t *server, struct MHD_Connection *connection,
                            void **context)
{
    http_connection_t *c = weft_zalloc(sizeof(*c), "http.connection");
    if (c == NULL) {
        return; /* without a context its requests are refused */
    }
    c->server = server;
    c->fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    c->quiet_since_ns = weft_clock_ns();
    if (weft_loop_watch(server->loop, c->fd, WEFT_LOOP_HANGUP, on_event, c, &c->watch) < 0) {
        weft_free(c);
        return;
    }
    c->next = server->connections;
    if (c->next != NULL) {
        c->next->previous = c;
    }
    server->connections = c;
    server->n_connections++;
    *context = c;
}

static void close_connection(weft_http_server_t *server, http_connection_t *c)
{
    if (c->previous != NULL) {
        c->previous->next = c->next;
    } else {
        server->connections = c->next;
    }
    if (c->next != NULL) {
        c->next->previous = c->previous;
    }
    server->n_connections--;
    server->n_gone -= c->is_gone ? 1 : 0;
    weft_loop_unwatch(c->watch);
    weft_free(c);
}

void http_connection_on_change(void *server, struct MHD_Connection *connection, void **context,
                               enum MHD_ConnectionNotificationCode code)
{
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        open_connection(server, connection, context);
        return;
    }
    if (*context != NULL) {
        close_connection(server, *context);
        *context = NULL;
    }
    http_server_run_soon(server); /* at the limit, only another run listens again */
}

/*
 * libmicrohttpd's epoll tells it of a change once. A peer's last bytes and its end may come as one
 * change; it then reads the bytes and is never told of the end. Shutting down the side that ended
 * already changes nothing but says so again. Bytes that still wait to be read are not lost.
 */
void http_connections_nudge(weft_http_server_t *server)
{
    if (server->n_gone == 0) {
        return;
    }
    for (http_connection_t *c = server->connections; c != NULL; c = c->next) {
        const bool is_read_from = c->exchange == NULL || !http_exchange_is_dispatched(c->exchange);
        if (c->is_gone && is_read_from) {
            (void)shutdown(c->fd, ++c->nudges < MAX_NUDGES ? SHUT_RD : SHUT_RDWR);
        }
    }
}

/*
 * libmicrohttpd's timeout starts anew with every byte, so that a peer could keep a connection for
 * ever by sending its headers one by one.
 */
void http_connections_sweep(weft_http_server_t *server)
{
    const uint64_t timeout = server->config.idle_timeout_s * WEFT_NS_PER_SECOND;
    const uint64_t now = weft_clock_ns();
    for (http_connection_t *c = server->connections; c != NULL; c = c->next) {
        if (c->exchange == NULL && now - c->quiet_since_ns > 2 * timeout) {
            (void)shutdown(c->fd, SHUT_RDWR);
        }
    }
}
