/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/shm/xfer_shm_conn.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"

struct xfer_shm_unsent {
    xfer_shm_unsent_t *next;
    int fd; /* to be sent along, or -1 */
    xfer_shm_frame_t frame;
    char payload[]; /* [frame.bytes] */
};

/* Room for the one descriptor of a message, aligned as the kernel wants it. */
typedef union descriptor_room {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
} descriptor_room_t;

weft_status_t xfer_shm_conn_open(xfer_shm_conn_t *conn, int epoll_fd, int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = &conn->watch};
    conn->fd = fd;
    conn->epoll_fd = epoll_fd;
    conn->wants_write = false;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        xfer_shm_conn_close(conn);
        return WEFT_ERR_IO;
    }
    return WEFT_OK;
}

static void drop_first(xfer_shm_conn_t *conn)
{
    xfer_shm_unsent_t *unsent = conn->unsent;
    conn->unsent = unsent->next;
    if (conn->unsent == NULL) {
        conn->last_unsent = NULL;
    }
    conn->unsent_bytes -= sizeof(*unsent) + unsent->frame.bytes;
    if (unsent->fd >= 0) {
        close(unsent->fd);
    }
    weft_free(unsent);
}

void xfer_shm_conn_close(xfer_shm_conn_t *conn)
{
    while (conn->unsent != NULL) {
        drop_first(conn);
    }
    if (conn->fd >= 0) {
        /* Closing alone would leave it in the set while a forked child still has it open. */
        (void)epoll_ctl(conn->epoll_fd, EPOLL_CTL_DEL, conn->fd, NULL);
        close(conn->fd);
        conn->fd = -1;
    }
}

static void want_write(xfer_shm_conn_t *conn, bool wants_write)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (wants_write ? EPOLLOUT : 0u),
                                .data.ptr = &conn->watch};
    if (conn->wants_write != wants_write) {
        conn->wants_write = wants_write;
        /* Cannot fail for a descriptor that is in the set. */
        (void)epoll_ctl(conn->epoll_fd, EPOLL_CTL_MOD, conn->fd, &event);
    }
}

static void attach(struct msghdr *message, descriptor_room_t *room, int fd)
{
    memset(room, 0, sizeof(*room));
    message->msg_control = room->bytes;
    message->msg_controllen = sizeof(room->bytes);
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
}

static weft_status_t send_now(xfer_shm_conn_t *conn, const xfer_shm_frame_t *frame,
                              const void *payload, int fd)
{
    descriptor_room_t room;
    struct iovec parts[2] = {{.iov_base = (void *)(uintptr_t)frame, .iov_len = sizeof(*frame)},
                             {.iov_base = (void *)(uintptr_t)payload, .iov_len = frame->bytes}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = frame->bytes > 0 ? 2 : 1};
    if (fd >= 0) {
        attach(&message, &room, fd);
    }
    for (;;) {
        if (sendmsg(conn->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) {
            return WEFT_OK;
        }
        if (errno != EINTR) {
            const bool is_full = errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM;
            return is_full ? WEFT_PENDING : WEFT_ERR_PEER_GONE;
        }
    }
}

weft_status_t xfer_shm_conn_try(xfer_shm_conn_t *conn, const xfer_shm_frame_t *frame,
                                const void *payload, int fd)
{
    if (conn->fd < 0) {
        return WEFT_ERR_PEER_GONE;
    }
    const weft_status_t status =
        conn->unsent != NULL ? WEFT_PENDING : send_now(conn, frame, payload, fd);
    if (status == WEFT_PENDING) {
        want_write(conn, true);
    }
    return status;
}

static weft_status_t enqueue(xfer_shm_conn_t *conn, const xfer_shm_frame_t *frame,
                             const void *payload, int fd)
{
    xfer_shm_unsent_t *unsent;
    const size_t bytes = sizeof(*unsent) + frame->bytes;
    if (bytes > XFER_SHM_QUEUE_BYTES - conn->unsent_bytes) {
        return WEFT_ERR_QUEUE_FULL;
    }
    unsent = weft_alloc(bytes, "xfer.shm.unsent");
    if (unsent == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *unsent = (xfer_shm_unsent_t){.fd = -1, .frame = *frame};
    if (frame->bytes > 0) {
        memcpy(unsent->payload, payload, frame->bytes);
    }
    if (fd >= 0) {
        unsent->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (unsent->fd < 0) {
            weft_free(unsent);
            return WEFT_ERR_NO_MEMORY;
        }
    }
    if (conn->last_unsent != NULL) {
        conn->last_unsent->next = unsent;
    } else {
        conn->unsent = unsent;
    }
    conn->last_unsent = unsent;
    conn->unsent_bytes += bytes;
    return WEFT_OK;
}

weft_status_t xfer_shm_conn_send(xfer_shm_conn_t *conn, const xfer_shm_frame_t *frame,
                                 const void *payload, int fd)
{
    const weft_status_t status = xfer_shm_conn_try(conn, frame, payload, fd);
    return status == WEFT_PENDING ? enqueue(conn, frame, payload, fd) : status;
}

weft_status_t xfer_shm_conn_flush(xfer_shm_conn_t *conn)
{
    while (conn->unsent != NULL) {
        const xfer_shm_unsent_t *unsent = conn->unsent;
        const weft_status_t status = send_now(conn, &unsent->frame, unsent->payload, unsent->fd);
        if (status != WEFT_OK) {
            return status;
        }
        drop_first(conn);
    }
    want_write(conn, false);
    return WEFT_OK;
}

static int take_descriptor(struct msghdr *message)
{
    int fd = -1;
    const struct cmsghdr *header = CMSG_FIRSTHDR(message);
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof(int))) {
        memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    }
    return fd;
}

weft_status_t xfer_shm_conn_receive(xfer_shm_conn_t *conn, char *room, xfer_shm_frame_t *frame_out,
                                    const char **payload_out, int *fd_out)
{
    descriptor_room_t descriptor = {.bytes = {0}};
    struct iovec part = {.iov_base = room, .iov_len = XFER_SHM_MAX_FRAME + 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = descriptor.bytes,
                             /* Not a second one: the kernel closes what finds no room. */
                             .msg_controllen = CMSG_LEN(sizeof(int))};
    ssize_t n;
    do {
        n = recvmsg(conn->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        /* A reset is said once, before what the peer had sent until it closed. */
    } while (n < 0 && (errno == EINTR || errno == ECONNRESET));
    if (n <= 0) {
        return n < 0 && errno == EAGAIN ? WEFT_PENDING : WEFT_ERR_PEER_GONE;
    }
    const int fd = take_descriptor(&message);
    const weft_status_t status =
        (message.msg_flags & MSG_TRUNC) != 0
            ? WEFT_ERR_MALFORMED
            : xfer_shm_decode_frame(room, (size_t)n, frame_out, payload_out);
    if (status < 0 && fd >= 0) {
        close(fd);
    }
    *fd_out = status < 0 ? -1 : fd;
    return status;
}
