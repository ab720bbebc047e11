/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "xfer"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"
#include "transport/xfer/shm/xfer_shm_priv.h"

#define MAX_GUESTS 1024
#define MAX_FRAMES 64 /* of one guest in one turn */

/* Someone who connected to us. */
struct xfer_shm_guest {
    xfer_shm_conn_t conn;
    xfer_shm_port_t *port;
    xfer_shm_guest_t *next;
    char name[XFER_MAX_NAME + 1]; /* "": has not said it yet */
};

/* Whether a peer can map the memory and never gets SIGBUS from it. */
static bool is_mappable(const xfer_memory_t *memory)
{
    struct stat file;
    if (memory->fd < 0 || fstat(memory->fd, &file) != 0) {
        return false;
    }
    const int seals = fcntl(memory->fd, F_GET_SEALS);
    return seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && file.st_size > 0 &&
           memory->fd_offset <= (uint64_t)file.st_size &&
           memory->bytes <= (uint64_t)file.st_size - memory->fd_offset;
}

/* One that has closed hears nothing, but what it said before still counts: its end is read behind that. */
static weft_status_t tell(xfer_shm_guest_t *guest, const xfer_shm_frame_t *frame, int fd)
{
    const weft_status_t status = xfer_shm_conn_send(&guest->conn, frame, NULL, fd);
    return status == WEFT_ERR_PEER_GONE ? WEFT_OK : status;
}

weft_status_t xfer_shm_map(xfer_port_t *base, const xfer_memory_t *memory, weft_buffer_t *out,
                           void **handle_out)
{
    xfer_shm_port_t *port = (xfer_shm_port_t *)base;
    const bool is_vram = memory->space == XFER_VRAM;
    weft_status_t status = WEFT_OK;
    if (is_vram) {
        status = xfer_shm_vram_open(port, memory->device);
    } else if (memory->space != XFER_DRAM) {
        status = WEFT_ERR_UNSUPPORTED;
    }
    if (status < 0) {
        return status;
    }
    xfer_shm_region_t *region = weft_alloc(sizeof(*region), "xfer.shm.region");
    if (region == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *region = (xfer_shm_region_t){.next = port->regions,
                                  .number = ++port->regions_made,
                                  .fd = -1,
                                  .fd_offset = memory->fd_offset,
                                  .is_vram = is_vram};
    if (is_vram ? memory->fd >= 0 : is_mappable(memory)) {
        region->fd = fcntl(memory->fd, F_DUPFD_CLOEXEC, 0); /* failed: it goes by the kernel */
    }
    const xfer_shm_key_t key = {
        .version = XFER_SHM_VERSION, .is_mappable = region->fd >= 0, .region = region->number};
    weft_buffer_append(out, &key, sizeof(key));
    port->regions = region;
    *handle_out = region;
    return WEFT_OK;
}

void xfer_shm_unmap(xfer_port_t *base, void *handle)
{
    xfer_shm_port_t *port = (xfer_shm_port_t *)base;
    xfer_shm_region_t *region = handle;
    const xfer_shm_frame_t gone = xfer_shm_frame(XFER_SHM_GONE, region->number, 0);
    xfer_shm_region_t **at = &port->regions;
    while (*at != region) {
        at = &(*at)->next;
    }
    *at = region->next;
    xfer_shm_accept(port); /* who waits at the door may have begun to use it already */
    for (xfer_shm_guest_t *guest = port->guests, *next; guest != NULL; guest = next) {
        next = guest->next;
        if (tell(guest, &gone, -1) < 0) {
            xfer_shm_guest_close(guest); /* so that it stops using the region */
        }
    }
    if (region->fd >= 0) {
        close(region->fd);
    }
    weft_free(region);
}

void xfer_shm_guest_close(xfer_shm_guest_t *guest)
{
    xfer_shm_port_t *port = guest->port;
    xfer_shm_guest_t **at = &port->guests;
    if (guest->conn.fd < 0) {
        return; /* closed already, from within a notification */
    }
    while (*at != guest) {
        at = &(*at)->next;
    }
    *at = guest->next;
    port->n_guests--;
    xfer_shm_conn_close(&guest->conn);
    guest->next = port->dead_guests;
    port->dead_guests = guest;
}

void xfer_shm_guest_free_dead(xfer_shm_port_t *port)
{
    while (port->dead_guests != NULL) {
        xfer_shm_guest_t *guest = port->dead_guests;
        port->dead_guests = guest->next;
        weft_free(guest);
    }
}

static weft_status_t answer_ask(xfer_shm_guest_t *guest, uint64_t number)
{
    xfer_shm_frame_t answer = xfer_shm_frame(XFER_SHM_REGION, number, 0);
    const xfer_shm_region_t *region = guest->port->regions;
    while (region != NULL && region->number != number) {
        region = region->next;
    }
    if (region == NULL) {
        return tell(guest, &answer, -1);
    }
    answer.offset = region->fd_offset;
    return tell(guest, &answer, region->fd);
}

/* Below zero: it is not worth keeping. */
static weft_status_t take_frame(xfer_shm_guest_t *guest, const xfer_shm_frame_t *frame,
                                const char *payload)
{
    const xfer_port_config_t *config = &guest->port->base.config;
    const bool is_known = guest->name[0] != '\0';
    if (frame->kind == XFER_SHM_HELLO && !is_known) {
        const xfer_shm_frame_t answer = xfer_shm_frame(XFER_SHM_WELCOME, 0, 0);
        memcpy(guest->name, payload, frame->bytes);
        return tell(guest, &answer, -1);
    }
    if (frame->kind == XFER_SHM_ASK && is_known) {
        return answer_ask(guest, frame->region);
    }
    if (frame->kind == XFER_SHM_NOTE && is_known) {
        config->on_notification(config->user, guest->name, payload, frame->bytes);
        return WEFT_OK;
    }
    return WEFT_ERR_MALFORMED;
}

static weft_status_t take_frames(xfer_shm_guest_t *guest)
{
    for (int i = 0; i < MAX_FRAMES; i++) {
        xfer_shm_frame_t frame;
        const char *payload;
        int fd;
        weft_status_t status =
            xfer_shm_conn_receive(&guest->conn, guest->port->room, &frame, &payload, &fd);
        if (status != WEFT_OK) {
            return status;
        }
        if (fd >= 0) {
            close(fd); /* we asked for none */
        }
        status = take_frame(guest, &frame, payload);
        if (status < 0) {
            return status;
        }
    }
    return WEFT_PENDING;
}

static void on_guest_events(xfer_shm_watch_t *watch, uint32_t events)
{
    xfer_shm_guest_t *guest = WEFT_CONTAINER(watch, xfer_shm_guest_t, conn.watch);
    if (guest->conn.fd < 0) {
        return;
    }
    if ((events & EPOLLOUT) != 0) {
        (void)xfer_shm_conn_flush(&guest->conn); /* a guest that is gone is seen in reading */
    }
    const weft_status_t status = take_frames(guest);
    if (status < 0) {
        if (status != WEFT_ERR_PEER_GONE) {
            weft_log_warn("shm peer=%s dropped: %s", guest->name, weft_strerror(status));
        }
        xfer_shm_guest_close(guest);
    }
}

static weft_status_t admit(xfer_shm_port_t *port, int fd)
{
    pid_t pid;
    xfer_shm_guest_t *guest = NULL;
    weft_status_t status = xfer_shm_host_check(fd, &pid);
    if (status == WEFT_OK && port->n_guests == MAX_GUESTS) {
        status = WEFT_ERR_QUEUE_FULL;
    }
    if (status == WEFT_OK) {
        guest = weft_zalloc(sizeof(*guest), "xfer.shm.guest");
        status = guest == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    if (status < 0) {
        close(fd);
        return status;
    }
    guest->conn.watch.on_events = on_guest_events;
    guest->port = port;
    status = xfer_shm_conn_open(&guest->conn, port->epoll_fd, fd);
    if (status < 0) {
        weft_free(guest);
        return status;
    }
    guest->next = port->guests;
    port->guests = guest;
    port->n_guests++;
    return WEFT_OK;
}

void xfer_shm_accept(xfer_shm_port_t *port)
{
    for (int i = 0; i < MAX_FRAMES; i++) {
        const int fd = accept4(port->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            const bool is_short = errno == EMFILE || errno == ENFILE || errno == ENOMEM;
            port->is_listening = !is_short; /* it stays readable: look again by the timer */
            return;
        }
        const weft_status_t status = admit(port, fd);
        if (status < 0) {
            weft_log_warn("shm peer refused: %s", weft_strerror(status));
        }
    }
}
