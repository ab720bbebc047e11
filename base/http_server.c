/* SPDX-License-Identifier: Apache-2.0 */
#include "base/http_server.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/http_server_priv.h"

#define WEFT_LOG_MODULE "http"
#include "base/log.h"

#define CONNECTION_BYTES ((size_t)64 << 10) /* headers and buffers of one connection, at most */

/* libmicrohttpd has its own epoll, which ours watches; whenever it stirs, and at its deadlines, it
 * does what there is to do. */
static void run(weft_http_server_t *server)
{
    MHD_UNSIGNED_LONG_LONG ms = 0;
    server->should_run = false;
    http_tls_set_current(server->tls);
    MHD_run(server->daemon);
    http_tls_set_current(NULL);
    http_connections_nudge(server);
    if (server->should_run) { /* resumed from within a callback */
        weft_loop_timer_set(server->timer, 0);
    } else if (MHD_get_timeout(server->daemon, &ms) == MHD_YES) {
        weft_loop_timer_set(server->timer, ms * WEFT_NS_PER_MS);
    } else {
        weft_loop_timer_clear(server->timer);
    }
}

void http_server_run_soon(weft_http_server_t *server)
{
    if (!server->should_run && server->timer != NULL) {
        server->should_run = true;
        weft_loop_timer_set(server->timer, 0);
    }
}

static void on_stir(void *user, uint32_t events)
{
    (void)events;
    run(user);
}

static void on_deadline(void *user)
{
    run(user);
}

static void on_sweep(void *user)
{
    weft_http_server_t *server = user;
    http_connections_sweep(server);
    weft_loop_timer_set(server->sweep, server->config.idle_timeout_s * WEFT_NS_PER_SECOND);
}

static void on_log(void *user, const char *format, va_list args) WEFT_PRINTF(2, 0);
static void on_log(void *user, const char *format, va_list args)
{
    char line[512];
    (void)user;
    vsnprintf(line, sizeof(line), format, args);
    line[strcspn(line, "\n")] = '\0';
    weft_log_debug("%s", line);
}

static int hex_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* %41 to A, in place. %00 stays as it is: it would cut the string short. */
static size_t on_unescape(void *user, struct MHD_Connection *connection, char *text)
{
    (void)user;
    (void)connection;
    char *out = text;
    for (const char *in = text; *in != '\0';) {
        const int high = in[0] == '%' ? hex_value(in[1]) : -1;
        const int low = high >= 0 ? hex_value(in[2]) : -1;
        if (low >= 0 && high + low > 0) {
            *out++ = (char)(high * 16 + low);
            in += 3;
        } else {
            *out++ = *in++;
        }
    }
    *out = '\0';
    return (size_t)(out - text);
}

static struct MHD_Daemon *start_daemon(weft_http_server_t *server)
{
    const weft_http_server_config_t *config = &server->config;
    /* Without TLS the options end here. */
    const enum MHD_OPTION tls =
        server->tls != NULL ? MHD_OPTION_HTTPS_CERT_CALLBACK2 : MHD_OPTION_END;
    const unsigned int flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG |
                               (server->tls != NULL ? (unsigned int)MHD_USE_TLS : 0u);
    return MHD_start_daemon(
        flags, 0, NULL, NULL, http_exchange_on_request, server, MHD_OPTION_EXTERNAL_LOGGER, on_log,
        NULL, MHD_OPTION_LISTEN_SOCKET, server->listen_fd, MHD_OPTION_NOTIFY_COMPLETED,
        http_exchange_on_completed, server, MHD_OPTION_NOTIFY_CONNECTION, http_connection_on_change,
        server, MHD_OPTION_UNESCAPE_CALLBACK, on_unescape, NULL, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned int)config->max_connections, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned int)config->idle_timeout_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_BYTES,
        tls, http_tls_retrieve, MHD_OPTION_END);
}

static weft_status_t take_socket(weft_http_server_t *server, weft_diag_t *diag)
{
    const weft_http_server_config_t *config = &server->config;
    if (config->listen_fd <= 0) {
        return weft_http_listen(config->host, config->port, diag, &server->listen_fd,
                                &server->port);
    }
    server->port = http_port_of(config->listen_fd);
    if (server->port == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "descriptor %d is no listening socket",
                         config->listen_fd);
    }
    (void)fcntl(config->listen_fd, F_SETFD, FD_CLOEXEC); /* it came over an exec, and ends here */
    server->listen_fd = config->listen_fd;
    return WEFT_OK;
}

static weft_status_t start(weft_http_server_t *server, weft_diag_t *diag)
{
    const weft_http_server_config_t *config = &server->config;
    weft_status_t status = WEFT_OK;
    if (config->tls_cert != NULL && config->tls_key != NULL) {
        status = http_tls_create(config->tls_cert, config->tls_key, diag, &server->tls);
    }
    if (status >= 0) {
        status = take_socket(server, diag);
    }
    if (status < 0) {
        return status;
    }
    server->daemon = start_daemon(server);
    if (server->daemon == NULL) {
        return weft_diag(diag, WEFT_ERR_IO, "cannot start the HTTP server on port %u of %s",
                         server->port, config->host);
    }
    const int fd = MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    status = weft_loop_watch(server->loop, fd, WEFT_LOOP_READ, on_stir, server, &server->watch);
    if (status >= 0) {
        status = weft_loop_timer_create(server->loop, on_deadline, server, &server->timer);
    }
    if (status >= 0) {
        status = weft_loop_timer_create(server->loop, on_sweep, server, &server->sweep);
    }
    if (status < 0) {
        return status;
    }
    weft_loop_timer_set(server->timer, 0); /* its first run puts the socket into its epoll */
    if (config->idle_timeout_s > 0) {
        weft_loop_timer_set(server->sweep, config->idle_timeout_s * WEFT_NS_PER_SECOND);
    }
    return WEFT_OK;
}

weft_status_t weft_http_server_start(weft_loop_t *loop, const weft_http_server_config_t *config,
                                     weft_diag_t *diag, weft_http_server_t **server_out)
{
    weft_http_server_t *server = weft_zalloc(sizeof(*server), "http.server");
    if (server == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    server->loop = loop;
    server->config = *config;
    server->listen_fd = -1;
    if ((config->tls_cert == NULL) != (config->tls_key == NULL)) {
        weft_http_server_destroy(server);
        return weft_diag(diag, WEFT_ERR_INVALID, "TLS needs both a certificate and a key");
    }
    const weft_status_t status = start(server, diag);
    if (status < 0) {
        weft_http_server_destroy(server);
        return status;
    }
    *server_out = server;
    return WEFT_OK;
}

void weft_http_server_stop_listening(weft_http_server_t *server)
{
    if (server->is_stopping) {
        return;
    }
    server->is_stopping = true;
    MHD_quiesce_daemon(server->daemon);
    close(server->listen_fd);
    server->listen_fd = -1;
}

void weft_http_server_destroy(weft_http_server_t *server)
{
    if (server == NULL) {
        return;
    }
    weft_loop_unwatch(server->watch);
    weft_loop_timer_destroy(server->timer);
    server->timer = NULL;
    weft_loop_timer_destroy(server->sweep);
    http_exchanges_abandon(server);
    if (server->daemon != NULL) {
        MHD_stop_daemon(server->daemon); /* closes the listening socket if it still has it */
    } else if (server->listen_fd >= 0) {
        close(server->listen_fd);
    }
    http_exchanges_free(server);
    http_tls_destroy(server->tls);
    weft_free(server);
}

uint16_t weft_http_server_port(const weft_http_server_t *server)
{
    return server->port;
}

uint32_t weft_http_server_connections(const weft_http_server_t *server)
{
    return server->n_connections;
}

uint32_t weft_http_server_exchanges(const weft_http_server_t *server)
{
    uint32_t n = 0;
    for (const http_connection_t *c = server->connections; c != NULL; c = c->next) {
        n += c->exchange != NULL ? 1 : 0;
    }
    return n;
}
