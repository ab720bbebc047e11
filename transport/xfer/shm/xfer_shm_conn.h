/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_shm_conn: one end of the Unix socket between two processes: frames out, through a bounded
 * queue where the socket is full, and frames in, each perhaps with a descriptor.
 *
 * Threads  the port's
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "transport/xfer/shm/xfer_shm_wire.h"

#define XFER_SHM_QUEUE_BYTES ((size_t)1 << 20) /* that wait for a full socket */

/* Something the port's epoll descriptor watches; first in its owner's struct. */
typedef struct xfer_shm_watch xfer_shm_watch_t;
struct xfer_shm_watch {
    void (*on_events)(xfer_shm_watch_t *watch, uint32_t events); /* EPOLL*; also after a close */
};

typedef struct xfer_shm_unsent xfer_shm_unsent_t;

typedef struct xfer_shm_conn {
    xfer_shm_watch_t watch;
    int fd; /* -1: closed */
    int epoll_fd;
    bool wants_write;          /* EPOLLOUT is asked for */
    xfer_shm_unsent_t *unsent; /* oldest first */
    xfer_shm_unsent_t *last_unsent;
    size_t unsent_bytes;
} xfer_shm_conn_t;

/* Owns fd from now on, also after a failure. */
weft_status_t xfer_shm_conn_open(xfer_shm_conn_t *conn, int epoll_fd, int fd);
void xfer_shm_conn_close(xfer_shm_conn_t *conn); /* closed is fine */

/*
 * The whole frame or nothing, nothing kept. WEFT_PENDING: the socket is full; EPOLLOUT tells.
 * WEFT_ERR_PEER_GONE: so it is; EPOLLHUP tells too.
 */
weft_status_t xfer_shm_conn_try(xfer_shm_conn_t *conn, const xfer_shm_frame_t *frame,
                                const void *payload, int fd);
/* Sends, or copies into the queue (a dup of fd with it; -1: none). WEFT_ERR_QUEUE_FULL. */
weft_status_t xfer_shm_conn_send(xfer_shm_conn_t *conn, const xfer_shm_frame_t *frame,
                                 const void *payload, int fd);
/* After EPOLLOUT. OK: the queue is empty and EPOLLOUT off. */
weft_status_t xfer_shm_conn_flush(xfer_shm_conn_t *conn);

/*
 * One message: room [XFER_SHM_MAX_FRAME + 1], frame_out and payload_out as decoded from it, fd_out
 * what came along (the caller's to close) or -1. WEFT_PENDING: there is none now.
 * WEFT_ERR_PEER_GONE: closed. WEFT_ERR_MALFORMED.
 */
weft_status_t xfer_shm_conn_receive(xfer_shm_conn_t *conn, char *room, xfer_shm_frame_t *frame_out,
                                    const char **payload_out, int *fd_out);
