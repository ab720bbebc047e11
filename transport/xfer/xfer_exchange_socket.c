/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "transport/xfer/xfer_exchange_priv.h"

#define READ_BYTES ((size_t)64 * 1024)

weft_status_t xfer_exchange_resolve(const char *host, uint16_t port, int flags, weft_diag_t *diag,
                                    struct addrinfo **list_out)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | flags};
    char service[8];

    snprintf(service, sizeof(service), "%u", port);
    const int error = getaddrinfo(host, service, &hints, list_out);
    if (error != 0) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "%s: %s", host, gai_strerror(error));
    }
    return WEFT_OK;
}

int xfer_exchange_left_ms(uint64_t deadline_ns)
{
    const uint64_t now = weft_clock_ns();
    return now >= deadline_ns ? 0 : (int)((deadline_ns - now) / WEFT_NS_PER_MS) + 1;
}

weft_status_t xfer_exchange_wait_for(int fd, short events, uint64_t deadline_ns)
{
    struct pollfd poller = {.fd = fd, .events = events};
    int n;

    do {
        n = poll(&poller, 1, xfer_exchange_left_ms(deadline_ns));
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return WEFT_ERR_IO;
    }
    return n > 0 ? WEFT_OK : WEFT_ERR_TIMEOUT;
}

weft_status_t xfer_exchange_connect_to(const struct addrinfo *address, uint64_t deadline_ns,
                                       int *fd_out)
{
    int error = 0;
    socklen_t length = sizeof(error);
    const int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        return WEFT_ERR_IO;
    }
    weft_status_t status = WEFT_OK;
    if (connect(fd, address->ai_addr, address->ai_addrlen) != 0) {
        status = errno == EINPROGRESS ? xfer_exchange_wait_for(fd, POLLOUT, deadline_ns)
                                      : WEFT_ERR_PEER_GONE;
    }
    if (status == WEFT_OK &&
        (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error != 0)) {
        status = WEFT_ERR_PEER_GONE;
    }
    if (status < 0) {
        close(fd);
        return status;
    }
    *fd_out = fd;
    return WEFT_OK;
}

weft_status_t xfer_exchange_read_some(int fd, weft_buffer_t *in)
{
    char bytes[READ_BYTES];
    const ssize_t n = recv(fd, bytes, sizeof(bytes), 0);

    if (n > 0) {
        weft_buffer_append(in, bytes, (size_t)n);
        return in->is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return WEFT_PENDING;
    }
    return WEFT_ERR_PEER_GONE;
}

weft_status_t xfer_exchange_write_some(int fd, weft_buffer_t *out)
{
    while (out->length > 0) {
        const ssize_t n = send(fd, out->data, out->length, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno == EAGAIN ? WEFT_PENDING : WEFT_ERR_PEER_GONE;
        }
        weft_buffer_drop_front(out, (size_t)n);
    }
    return WEFT_OK;
}
