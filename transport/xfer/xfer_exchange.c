/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_exchange.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/xfer/xfer_commands.h"
#include "transport/xfer/xfer_exchange_priv.h"

#define WEFT_LOG_MODULE "xfer.exchange"
#include "base/log.h"

#define MAX_CONNECTIONS 64
#define FRAME_NS        (5 * WEFT_NS_PER_SECOND) /* that a frame may take to come, or to leave */
#define REST_NS         (WEFT_NS_PER_SECOND / 10)

typedef struct connection {
    int fd;
    weft_buffer_t in;
    weft_buffer_t out;
    uint64_t since_ns; /* when the frame that is half here began; 0: none is */
    uint64_t used_ns;  /* when anything last came or went */
} connection_t;

struct xfer_exchange {
    xfer_exchange_config_t config;
    int listener;
    int stopper; /* eventfd: readable when the thread is to end */
    uint16_t port;
    bool has_thread;
    pthread_t thread;
    connection_t connections[MAX_CONNECTIONS]; /* [n], the thread's */
    size_t n;
    uint64_t rests_until_ns; /* the process was out of descriptors: nobody is let in before */
};

/* ---- listening ------------------------------------------------------------------------------- */

static weft_status_t status_of_errno(void)
{
    switch (errno) {
    case EADDRINUSE:
        return WEFT_ERR_IN_USE;
    case EACCES:
        return WEFT_ERR_DENIED;
    default:
        return WEFT_ERR_IO;
    }
}

static weft_status_t listen_at(xfer_exchange_t *exchange, const struct addrinfo *address)
{
    const int on = 1;
    struct sockaddr_storage bound;
    socklen_t length = sizeof(bound);

    exchange->listener = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (exchange->listener < 0) {
        return status_of_errno();
    }
    (void)setsockopt(exchange->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(exchange->listener, address->ai_addr, address->ai_addrlen) != 0 ||
        listen(exchange->listener, SOMAXCONN) != 0 ||
        getsockname(exchange->listener, (struct sockaddr *)&bound, &length) != 0) {
        return status_of_errno();
    }
    exchange->port = ntohs(bound.ss_family == AF_INET6
                               ? ((const struct sockaddr_in6 *)(const void *)&bound)->sin6_port
                               : ((const struct sockaddr_in *)(const void *)&bound)->sin_port);
    return WEFT_OK;
}

static weft_status_t open_listener(xfer_exchange_t *exchange, weft_diag_t *diag)
{
    const xfer_exchange_config_t *config = &exchange->config;
    struct addrinfo *addresses;
    weft_status_t status =
        xfer_exchange_resolve(config->host, config->port, AI_PASSIVE, diag, &addresses);

    if (status < 0) {
        return status;
    }
    status = listen_at(exchange, addresses);
    freeaddrinfo(addresses);
    if (status < 0) {
        return weft_diag(diag, status, "port %u of %s: %s", config->port, config->host,
                         strerror(errno));
    }
    return WEFT_OK;
}

/* ---- the listener's commands ----------------------------------------------------------------- */

typedef struct session {
    xfer_exchange_t *exchange;
    connection_t *connection;
} session_t;

static bool on_load(void *user, const void *metadata, size_t bytes)
{
    const session_t *session = user;
    const xfer_exchange_config_t *config = &session->exchange->config;
    xfer_peer_t *peer = NULL;
    weft_diag_t diag = {0};

    const weft_status_t status = xfer_import(config->agent, metadata, bytes, &diag, &peer);
    if (status == WEFT_ERR_MALFORMED) {
        return false;
    }
    if (status < 0) {
        weft_log_warn("refused metadata bytes=%zu: %s", bytes, diag.text);
        peer = NULL;
    }
    if (config->on_metadata != NULL) {
        config->on_metadata(config->user, peer);
    }
    return true;
}

static void on_send(void *user)
{
    const session_t *session = user;
    weft_buffer_t metadata = {0};

    if (xfer_export(session->exchange->config.agent, NULL, 0, true, &metadata) == WEFT_OK) {
        xfer_commands_encode("LOAD", metadata.data, metadata.length, &session->connection->out);
    }
    weft_buffer_free(&metadata);
}

static void on_invalidate(void *user, const void *name, size_t bytes)
{
    const session_t *session = user;
    const xfer_exchange_config_t *config = &session->exchange->config;
    char text[XFER_MAX_NAME + 1];

    if (bytes > XFER_MAX_NAME || config->on_gone == NULL) {
        return;
    }
    memcpy(text, name, bytes);
    text[bytes] = '\0';
    config->on_gone(config->user, text);
}

/* Every frame that is complete. */
static weft_status_t run_frames(xfer_exchange_t *exchange, connection_t *connection)
{
    session_t session = {.exchange = exchange, .connection = connection};
    const xfer_commands_t commands = {
        .load = on_load, .send = on_send, .invalidate = on_invalidate, .user = &session};
    weft_buffer_t *in = &connection->in;
    size_t bytes;

    for (;;) {
        weft_status_t status = xfer_commands_frame(in->data, in->length, &bytes);
        if (status != WEFT_OK) {
            return status;
        }
        status = xfer_commands_run(in->data + XFER_FRAME_HEAD, bytes, &commands);
        if (status < 0) {
            return status;
        }
        weft_buffer_drop_front(in, XFER_FRAME_HEAD + bytes);
    }
}

/* ---- the listener's thread ------------------------------------------------------------------- */

static void close_connection(xfer_exchange_t *exchange, size_t i)
{
    connection_t *connection = &exchange->connections[i];
    close(connection->fd);
    weft_buffer_free(&connection->in);
    weft_buffer_free(&connection->out);
    *connection = exchange->connections[--exchange->n];
}

/* The one between frames that has been for longest; n: none is. */
static size_t find_idle(const xfer_exchange_t *exchange)
{
    size_t found = exchange->n;
    for (size_t i = 0; i < exchange->n; i++) {
        const connection_t *connection = &exchange->connections[i];
        if (connection->since_ns == 0 &&
            (found == exchange->n || connection->used_ns < exchange->connections[found].used_ns)) {
            found = i;
        }
    }
    return found;
}

/* Who keeps a place without a word gives way to who comes. */
static bool has_place(const xfer_exchange_t *exchange)
{
    return exchange->n < MAX_CONNECTIONS || find_idle(exchange) < exchange->n;
}

static void accept_connection(xfer_exchange_t *exchange)
{
    const int fd = accept4(exchange->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        const bool is_empty = errno == EAGAIN || errno == EINTR || errno == ECONNABORTED;
        exchange->rests_until_ns = is_empty ? 0 : weft_clock_ns() + REST_NS;
        return;
    }
    if (exchange->n == MAX_CONNECTIONS) {
        close_connection(exchange, find_idle(exchange));
    }
    exchange->connections[exchange->n++] = (connection_t){.fd = fd, .used_ns = weft_clock_ns()};
}

/* Below 0: the connection is to be closed. */
static weft_status_t serve(xfer_exchange_t *exchange, connection_t *connection, short events)
{
    weft_status_t status = WEFT_PENDING;

    if ((events & (POLLIN | POLLHUP | POLLERR)) != 0) {
        status = xfer_exchange_read_some(connection->fd, &connection->in);
    }
    if (status == WEFT_OK) {
        status = run_frames(exchange, connection);
    }
    if (status >= 0) {
        status = xfer_exchange_write_some(connection->fd, &connection->out);
    }
    const bool is_between = connection->in.length == 0 && connection->out.length == 0;
    connection->used_ns = weft_clock_ns();
    if (is_between || connection->since_ns == 0) {
        connection->since_ns = is_between ? 0 : weft_clock_ns();
    }
    return status;
}

static bool is_late(const connection_t *connection)
{
    return connection->since_ns != 0 && weft_clock_ns() - connection->since_ns > FRAME_NS;
}

static int longest_wait_ms(const xfer_exchange_t *exchange)
{
    const uint64_t rests_until_ns = exchange->rests_until_ns;
    int wait = rests_until_ns != 0 ? xfer_exchange_left_ms(rests_until_ns) + 1 : -1;
    for (size_t i = 0; i < exchange->n; i++) {
        const uint64_t since = exchange->connections[i].since_ns;
        const int left = since != 0 ? xfer_exchange_left_ms(since + FRAME_NS) + 1 : -1;
        if (left >= 0 && (wait < 0 || left < wait)) {
            wait = left;
        }
    }
    return wait;
}

/* pollers [n + 2]: the stopper, the listener (none while nobody is let in), the connections. */
static void fill_pollers(xfer_exchange_t *exchange, struct pollfd *pollers)
{
    if (exchange->rests_until_ns <= weft_clock_ns()) {
        exchange->rests_until_ns = 0;
    }
    const bool lets_in = exchange->rests_until_ns == 0 && has_place(exchange);
    pollers[0] = (struct pollfd){.fd = exchange->stopper, .events = POLLIN};
    pollers[1] = (struct pollfd){.fd = lets_in ? exchange->listener : -1, .events = POLLIN};
    for (size_t i = 0; i < exchange->n; i++) {
        const bool has_output = exchange->connections[i].out.length > 0;
        pollers[i + 2] = (struct pollfd){.fd = exchange->connections[i].fd,
                                         .events = has_output ? POLLIN | POLLOUT : POLLIN};
    }
}

static void *run_listener(void *user)
{
    xfer_exchange_t *exchange = user;
    struct pollfd pollers[MAX_CONNECTIONS + 2];

    for (;;) {
        fill_pollers(exchange, pollers);
        if (poll(pollers, exchange->n + 2, longest_wait_ms(exchange)) < 0) {
            continue; /* EINTR */
        }
        if (pollers[0].revents != 0) {
            break;
        }
        /* From the last on, since the last takes the place of one that is closed. */
        for (size_t i = exchange->n; i-- > 0;) {
            connection_t *connection = &exchange->connections[i];
            const short events = pollers[i + 2].revents;
            if ((events != 0 && serve(exchange, connection, events) < 0) || is_late(connection)) {
                close_connection(exchange, i);
            }
        }
        if (pollers[1].revents != 0 && has_place(exchange)) {
            accept_connection(exchange);
        }
    }
    while (exchange->n > 0) {
        close_connection(exchange, exchange->n - 1);
    }
    return NULL;
}

weft_status_t xfer_exchange_start(const xfer_exchange_config_t *config, weft_diag_t *diag,
                                  xfer_exchange_t **exchange_out)
{
    xfer_exchange_t *exchange = weft_zalloc(sizeof(*exchange), "xfer.exchange");

    if (exchange == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    exchange->config = *config;
    exchange->listener = -1;
    exchange->stopper = eventfd(0, EFD_CLOEXEC);
    weft_status_t status = exchange->stopper >= 0 ? open_listener(exchange, diag) : WEFT_ERR_IO;
    if (status == WEFT_OK) {
        exchange->has_thread = pthread_create(&exchange->thread, NULL, run_listener, exchange) == 0;
        status = exchange->has_thread ? WEFT_OK : WEFT_ERR_NO_MEMORY;
    }
    if (status < 0) {
        xfer_exchange_stop(exchange);
        return status;
    }
    *exchange_out = exchange;
    return WEFT_OK;
}

uint16_t xfer_exchange_port(const xfer_exchange_t *exchange)
{
    return exchange->port;
}

void xfer_exchange_stop(xfer_exchange_t *exchange)
{
    if (exchange == NULL) {
        return;
    }
    if (exchange->has_thread) {
        (void)eventfd_write(exchange->stopper, 1);
        pthread_join(exchange->thread, NULL);
    }
    if (exchange->listener >= 0) {
        close(exchange->listener);
    }
    if (exchange->stopper >= 0) {
        close(exchange->stopper);
    }
    weft_free(exchange);
}
