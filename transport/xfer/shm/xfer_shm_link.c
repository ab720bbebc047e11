/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "xfer"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "transport/xfer/shm/xfer_shm_priv.h"

#define MAX_FRAMES  64                        /* of one link in one turn */
#define GIVE_UP_NS  (10 * WEFT_NS_PER_SECOND) /* a backlog that is full for longer never moves */
#define SEND_BUFFER (1 << 20) /* asked for; a frame has to fit, and some more are good */

static void unlink_link(xfer_shm_link_t *link)
{
    xfer_shm_port_t *port = (xfer_shm_port_t *)link->base.port;
    xfer_shm_link_t **at = &port->links;
    while (*at != link) {
        at = &(*at)->next;
    }
    *at = link->next;
}

/* For good: the peer is dead or talks nonsense. */
static void lose(xfer_shm_link_t *link)
{
    const xfer_port_config_t *config = &link->base.port->config;
    if (link->state == XFER_SHM_CLOSED) {
        return;
    }
    link->state = XFER_SHM_CLOSED;
    xfer_shm_conn_close(&link->conn);
    xfer_shm_move_end_all(link, WEFT_ERR_PEER_GONE);
    config->on_link_lost(config->user, &link->base);
}

static weft_status_t take_frame(xfer_shm_link_t *link, const xfer_shm_frame_t *frame, int fd)
{
    const xfer_port_config_t *config = &link->base.port->config;
    switch (frame->kind) {
    case XFER_SHM_WELCOME:
        if (config->on_link_up != NULL) {
            config->on_link_up(config->user, &link->base);
        }
        return WEFT_OK;
    case XFER_SHM_REGION:
        xfer_shm_import_answer(link, frame, fd);
        return WEFT_OK;
    case XFER_SHM_GONE:
        xfer_shm_import_gone(link, frame->region);
        return WEFT_OK;
    default:
        return WEFT_ERR_MALFORMED;
    }
}

static weft_status_t take_frames(xfer_shm_link_t *link)
{
    xfer_shm_port_t *port = (xfer_shm_port_t *)link->base.port;
    for (int i = 0; i < MAX_FRAMES; i++) {
        xfer_shm_frame_t frame;
        const char *payload;
        int fd;
        weft_status_t status =
            xfer_shm_conn_receive(&link->conn, port->room, &frame, &payload, &fd);
        if (status != WEFT_OK) {
            return status;
        }
        status = take_frame(link, &frame, fd);
        if (fd >= 0) {
            close(fd);
        }
        if (status < 0) {
            return status;
        }
    }
    return WEFT_PENDING;
}

static void on_link_events(xfer_shm_watch_t *watch, uint32_t events)
{
    xfer_shm_link_t *link = WEFT_CONTAINER(watch, xfer_shm_link_t, conn.watch);
    if (link->conn.fd < 0) {
        return;
    }
    weft_status_t status = take_frames(link);
    if (status >= 0 && (events & EPOLLOUT) != 0) {
        status = xfer_shm_conn_flush(&link->conn);
        if (status == WEFT_OK) {
            xfer_shm_move_unsent(link);
        }
    }
    if (status < 0) {
        weft_log_debug("shm link to pid=%d lost: %s", (int)link->pid, weft_strerror(status));
        lose(link);
    }
}

/* WEFT_PENDING: try again later. */
static weft_status_t try_connect(xfer_shm_link_t *link, int fd)
{
    struct sockaddr_un name;
    const socklen_t length = xfer_shm_host_name(&link->address, &name);
    int result;
    do {
        result = connect(fd, (const struct sockaddr *)&name, length);
    } while (result != 0 && errno == EINTR);
    if (result != 0) {
        return errno == EAGAIN ? WEFT_PENDING : WEFT_ERR_PEER_GONE;
    }
    return xfer_shm_host_check(fd, &link->pid);
}

static weft_status_t say_hello(xfer_shm_link_t *link)
{
    const char *name = link->base.port->config.agent;
    const xfer_shm_frame_t hello = xfer_shm_frame(XFER_SHM_HELLO, 0, strlen(name));
    return xfer_shm_conn_send(&link->conn, &hello, name, -1);
}

/* fd becomes the link's when it is connected, and is closed when it never will be. */
static weft_status_t begin(xfer_shm_link_t *link)
{
    xfer_shm_port_t *port = (xfer_shm_port_t *)link->base.port;
    const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const int send_buffer = SEND_BUFFER;
    if (fd < 0) {
        return WEFT_ERR_IO;
    }
    weft_status_t status = try_connect(link, fd);
    if (status != WEFT_OK) {
        close(fd);
        return status;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof(send_buffer));
    status = xfer_shm_conn_open(&link->conn, port->epoll_fd, fd);
    return status < 0 ? status : say_hello(link);
}

static void retry_soon(xfer_shm_port_t *port)
{
    const struct itimerspec soon = {.it_value = {.tv_nsec = (long)WEFT_NS_PER_MS}};
    (void)timerfd_settime(port->timer_fd, 0, &soon, NULL);
}

weft_status_t xfer_shm_connect(xfer_port_t *base, const char *peer, const void *address,
                               size_t bytes, xfer_link_t **link_out)
{
    xfer_shm_port_t *port = (xfer_shm_port_t *)base;
    xfer_shm_address_t theirs;
    weft_status_t status = xfer_shm_decode_address(address, bytes, &theirs);
    if (status < 0) {
        return status;
    }
    if (!xfer_shm_host_is_shared(&port->address, &theirs)) {
        return WEFT_ERR_UNSUPPORTED;
    }
    xfer_shm_link_t *link = weft_zalloc(sizeof(*link), "xfer.shm.link");
    if (link == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    link->base.port = base;
    link->conn.watch.on_events = on_link_events;
    link->conn.fd = -1;
    link->address = theirs;
    status = begin(link);
    if (status < 0) {
        xfer_shm_conn_close(&link->conn);
        weft_free(link);
        weft_log_debug("shm peer=%s not reached: %s", peer, weft_strerror(status));
        return status == WEFT_ERR_DENIED ? WEFT_ERR_UNSUPPORTED : status;
    }
    link->state = status == WEFT_OK ? XFER_SHM_OPEN : XFER_SHM_CONNECTING;
    if (link->state == XFER_SHM_CONNECTING) {
        link->give_up_ns = weft_clock_ns() + GIVE_UP_NS;
        retry_soon(port);
    }
    link->next = port->links;
    port->links = link;
    *link_out = &link->base;
    return WEFT_OK;
}

static void opened(xfer_shm_link_t *link)
{
    link->state = XFER_SHM_OPEN;
    for (xfer_shm_import_t *import = link->imports; import != NULL; import = import->next) {
        const weft_status_t status = xfer_shm_import_begin(import);
        if (status < 0) {
            import->state = XFER_SHM_LOST;
            import->status = status;
        }
    }
    xfer_shm_move_waiting(link);
}

void xfer_shm_link_retry(xfer_shm_port_t *port)
{
    const uint64_t now = weft_clock_ns();
    for (xfer_shm_link_t *link = port->links, *next; link != NULL; link = next) {
        next = link->next;
        if (link->state != XFER_SHM_CONNECTING) {
            continue;
        }
        const weft_status_t status = begin(link);
        if (status == WEFT_OK) {
            opened(link);
        } else if (status < 0 || now > link->give_up_ns) {
            lose(link); /* which may disconnect others: look from the start the next time */
            retry_soon(port);
            return;
        } else {
            retry_soon(port);
        }
    }
}

void xfer_shm_disconnect(xfer_link_t *base)
{
    xfer_shm_link_t *link = (xfer_shm_link_t *)base;
    xfer_shm_port_t *port = (xfer_shm_port_t *)base->port;
    link->state = XFER_SHM_CLOSED;
    xfer_shm_move_end_all(link, WEFT_ERR_CANCELLED);
    xfer_shm_conn_close(&link->conn);
    xfer_shm_import_detach(link);
    unlink_link(link);
    link->next = port->dead_links;
    port->dead_links = link;
}

void xfer_shm_link_free_dead(xfer_shm_port_t *port)
{
    while (port->dead_links != NULL) {
        xfer_shm_link_t *link = port->dead_links;
        port->dead_links = link->next;
        weft_free(link);
    }
}

weft_status_t xfer_shm_notify(xfer_link_t *base, const void *data, size_t bytes)
{
    xfer_shm_link_t *link = (xfer_shm_link_t *)base;
    if (link->state == XFER_SHM_CLOSED) {
        return WEFT_ERR_PEER_GONE;
    }
    if (bytes > XFER_MAX_NOTIFICATION) {
        return WEFT_ERR_TOO_LARGE;
    }
    if (link->state == XFER_SHM_CONNECTING) {
        return WEFT_ERR_QUEUE_FULL;
    }
    const xfer_shm_frame_t note = xfer_shm_frame(XFER_SHM_NOTE, 0, bytes);
    return xfer_shm_conn_send(&link->conn, &note, data, -1);
}
