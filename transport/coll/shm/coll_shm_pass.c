/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/coll/shm/coll_shm_pass.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"

#define NAME_PREFIX "weft-coll-"

/* Room for the one descriptor of a message, aligned as the kernel wants it. */
typedef union descriptor_room {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
} descriptor_room_t;

static socklen_t make_address(const coll_shm_name_t *name, struct sockaddr_un *address_out)
{
    *address_out = (struct sockaddr_un){.sun_family = AF_UNIX};
    char *text = address_out->sun_path + 1; /* begins with NUL: nothing to clean up after a kill */
    size_t length = strlen(NAME_PREFIX);
    memcpy(text, NAME_PREFIX, length);
    for (size_t i = 0; i < sizeof(name->random); i++) {
        text[length++] = "0123456789abcdef"[name->random[i] >> 4];
        text[length++] = "0123456789abcdef"[name->random[i] & 15];
    }
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

weft_status_t coll_shm_door_open(coll_shm_door_t *door, coll_shm_name_t *name_out,
                                 weft_diag_t *diag)
{
    struct sockaddr_un address;
    if (getrandom(name_out, sizeof(*name_out), 0) != (ssize_t)sizeof(*name_out)) {
        return weft_diag(diag, WEFT_ERR_IO, "shm: no random name: %s", strerror(errno));
    }
    const socklen_t bytes = make_address(name_out, &address);
    door->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (door->fd < 0 || bind(door->fd, (const struct sockaddr *)&address, bytes) != 0 ||
        listen(door->fd, SOMAXCONN) != 0) {
        return weft_diag(diag, WEFT_ERR_IO, "shm: no socket to meet at: %s", strerror(errno));
    }
    return WEFT_OK;
}

void coll_shm_door_close(coll_shm_door_t *door)
{
    if (door->fd >= 0) {
        close(door->fd);
        door->fd = -1;
    }
}

static bool is_our_user(int fd)
{
    struct ucred who;
    socklen_t bytes = sizeof(who);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &bytes) == 0 &&
           (who.uid == geteuid() || who.uid == 0);
}

static bool send_descriptor(int socket_fd, int fd)
{
    descriptor_room_t room;
    char byte = 0;
    struct iovec part = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = room.bytes,
                             .msg_controllen = sizeof(room.bytes)};
    memset(&room, 0, sizeof(room));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    return sendmsg(socket_fd, &message, MSG_NOSIGNAL) == 1;
}

weft_status_t coll_shm_door_serve(coll_shm_door_t *door, int fd, uint32_t n, uint64_t timeout_ns,
                                  weft_diag_t *diag)
{
    const uint64_t deadline = weft_clock_ns() + timeout_ns;
    for (uint32_t n_served = 0; n_served < n;) {
        struct pollfd caller = {.fd = door->fd, .events = POLLIN};
        const uint64_t now = weft_clock_ns();
        if (now >= deadline) {
            return weft_diag(diag, WEFT_ERR_TIMEOUT, "shm: %u of %u ranks came", n_served, n);
        }
        (void)poll(&caller, 1, (int)((deadline - now) / WEFT_NS_PER_MS % INT32_MAX + 1));
        const int guest = accept4(door->fd, NULL, NULL, SOCK_CLOEXEC);
        if (guest >= 0) {
            n_served += is_our_user(guest) && send_descriptor(guest, fd);
            close(guest); /* what was sent stays to be read */
        }
    }
    return WEFT_OK;
}

static int receive_descriptor(int socket_fd)
{
    descriptor_room_t room;
    char byte;
    int fd = -1;
    struct iovec part = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = room.bytes,
                             .msg_controllen = sizeof(room.bytes)};
    ssize_t n;
    do {
        n = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    const struct cmsghdr *header = n == 1 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof(int))) {
        memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    }
    return fd;
}

static void limit_waits(int fd, uint64_t timeout_ns)
{
    const struct timeval limit = {.tv_sec = (time_t)(timeout_ns / WEFT_NS_PER_SECOND),
                                  .tv_usec =
                                      (suseconds_t)(timeout_ns % WEFT_NS_PER_SECOND / 1000 + 1)};
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)); /* of connect, too */
}

weft_status_t coll_shm_door_enter(const coll_shm_name_t *name, uint64_t timeout_ns,
                                  weft_diag_t *diag, int *fd_out)
{
    struct sockaddr_un address;
    const socklen_t bytes = make_address(name, &address);
    const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return weft_diag(diag, WEFT_ERR_IO, "shm: no socket: %s", strerror(errno));
    }
    limit_waits(fd, timeout_ns);
    int received = -1;
    if (connect(fd, (const struct sockaddr *)&address, bytes) == 0) {
        received = receive_descriptor(fd);
    }
    const int error = errno;
    close(fd);
    if (received < 0) {
        return weft_diag(diag, WEFT_ERR_PEER_GONE, "shm: rank 0 does not give its segment: %s",
                         strerror(error));
    }
    *fd_out = received;
    return WEFT_OK;
}
