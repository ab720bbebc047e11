/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shm: processes of one host. Memory with a memfd is mapped by the peer, which then copies without
 * either kernel's help; other memory is copied by the kernel (process_vm_readv, many pieces a
 * call). A GPU's memory, if it can be exported, is mapped as well and copied by the poster's GPU. Only
 * the side that posted moves bytes. A Unix socket between the two carries descriptors
 * and notifications, and its end is the peer's death.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/xfer/shm/xfer_shm_priv.h"

#define MAX_EVENTS 32
#define BACKLOG    4096

static weft_status_t watch(xfer_shm_port_t *port, int fd, xfer_shm_watch_t *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    return epoll_ctl(port->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? WEFT_OK : WEFT_ERR_IO;
}

static void on_guest_waits(xfer_shm_watch_t *what, uint32_t events)
{
    const struct itimerspec later = {.it_value = {.tv_nsec = 50 * (long)WEFT_NS_PER_MS}};
    xfer_shm_port_t *port = WEFT_CONTAINER(what, xfer_shm_port_t, listen_watch);
    (void)events;
    xfer_shm_accept(port);
    if (!port->is_listening) {
        (void)epoll_ctl(port->epoll_fd, EPOLL_CTL_DEL, port->listen_fd, NULL);
        (void)timerfd_settime(port->timer_fd, 0, &later, NULL);
    }
}

static void on_timer(xfer_shm_watch_t *what, uint32_t events)
{
    xfer_shm_port_t *port = WEFT_CONTAINER(what, xfer_shm_port_t, timer_watch);
    uint64_t times;
    ssize_t ignored = read(port->timer_fd, &times, sizeof(times));
    (void)ignored;
    (void)events;
    if (!port->is_listening) {
        port->is_listening = watch(port, port->listen_fd, &port->listen_watch) == WEFT_OK;
    }
    xfer_shm_link_retry(port);
}

static void shm_close(xfer_port_t *base)
{
    xfer_shm_port_t *port = (xfer_shm_port_t *)base;
    while (port->guests != NULL) {
        xfer_shm_guest_close(port->guests);
    }
    xfer_shm_guest_free_dead(port);
    xfer_shm_link_free_dead(port);
    xfer_shm_vram_close(port);
    const int fds[] = {port->listen_fd, port->timer_fd, port->epoll_fd};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fds); i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    weft_free(port);
}

static weft_status_t listen_to_peers(xfer_shm_port_t *port)
{
    struct sockaddr_un name;
    const socklen_t length = xfer_shm_host_name(&port->address, &name);
    port->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (port->listen_fd < 0 || bind(port->listen_fd, (const struct sockaddr *)&name, length) != 0 ||
        listen(port->listen_fd, BACKLOG) != 0) {
        return WEFT_ERR_IO;
    }
    port->is_listening = true;
    return watch(port, port->listen_fd, &port->listen_watch);
}

static weft_status_t open_fds(xfer_shm_port_t *port)
{
    port->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    port->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (port->epoll_fd < 0 || port->timer_fd < 0) {
        return WEFT_ERR_IO;
    }
    const weft_status_t status = watch(port, port->timer_fd, &port->timer_watch);
    return status < 0 ? status : listen_to_peers(port);
}

static weft_status_t shm_open_port(const xfer_port_config_t *config, weft_diag_t *diag,
                                   xfer_port_t **port_out)
{
    xfer_shm_port_t *port = weft_zalloc(sizeof(*port), "xfer.shm.port");
    if (port == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    port->base = (xfer_port_t){.backend = &xfer_backend_shm, .config = *config};
    port->listen_watch.on_events = on_guest_waits;
    port->timer_watch.on_events = on_timer;
    port->epoll_fd = -1;
    port->listen_fd = -1;
    port->timer_fd = -1;
    weft_status_t status = xfer_shm_host_address(&port->address);
    if (status == WEFT_ERR_UNSUPPORTED) {
        (void)weft_diag(diag, status, "shm: /proc does not say which host this is");
    } else if (status == WEFT_OK) {
        status = open_fds(port);
        if (status < 0) {
            (void)weft_diag(diag, status, "shm: no Unix socket to listen on: %s", strerror(errno));
        }
    }
    if (status < 0) {
        shm_close(&port->base);
        return status;
    }
    *port_out = &port->base;
    return WEFT_OK;
}

static weft_status_t shm_address(xfer_port_t *base, weft_buffer_t *out)
{
    const xfer_shm_port_t *port = (const xfer_shm_port_t *)base;
    weft_buffer_append(out, &port->address, sizeof(port->address));
    return WEFT_OK;
}

static bool take_events(xfer_shm_port_t *port)
{
    struct epoll_event events[MAX_EVENTS];
    const int n = epoll_wait(port->epoll_fd, events, MAX_EVENTS, 0);
    for (int i = 0; i < n; i++) {
        xfer_shm_watch_t *what = events[i].data.ptr;
        what->on_events(what, events[i].events);
    }
    return n > 0;
}

static bool shm_progress(xfer_port_t *base)
{
    xfer_shm_port_t *port = (xfer_shm_port_t *)base;
    const uint64_t now = weft_clock_ns();
    const bool has_ops = xfer_op_queue_first(&port->ready) != NULL;
    bool did_something = false;
    if (!has_ops || now - port->looked_ns > XFER_SHM_SLICE_NS) {
        port->looked_ns = now;
        did_something = take_events(port);
        xfer_shm_guest_free_dead(port);
        xfer_shm_link_free_dead(port);
    }
    did_something |= xfer_shm_vram_progress(port);
    return xfer_shm_move(port, now + XFER_SHM_SLICE_NS) ||
           xfer_shm_import_warm(port, now + XFER_SHM_SLICE_NS) || did_something;
}

static bool shm_arm(xfer_port_t *base, int *fd_out)
{
    const xfer_shm_port_t *port = (const xfer_shm_port_t *)base;
    *fd_out = port->epoll_fd;
    return port->cold == NULL && xfer_op_queue_first(&port->ready) == NULL &&
           (port->vram == NULL || xfer_vram_arm(port->vram));
}

const xfer_backend_t xfer_backend_shm = {
    .name = "shm",
    .wire_name = "WEFT_SHM",
    .caps = XFER_CAP_DRAM | XFER_CAP_VRAM | XFER_CAP_GUARD | XFER_CAP_NOTIFY | XFER_CAP_REVOKE,
    .open = shm_open_port,
    .close = shm_close,
    .address = shm_address,
    .connect = xfer_shm_connect,
    .disconnect = xfer_shm_disconnect,
    .map = xfer_shm_map,
    .unmap = xfer_shm_unmap,
    .import = xfer_shm_import,
    .release = xfer_shm_release,
    .post = xfer_shm_post,
    .cancel = xfer_shm_cancel,
    .notify = xfer_shm_notify,
    .progress = shm_progress,
    .arm = shm_arm,
};
