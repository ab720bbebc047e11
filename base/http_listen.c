/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/http_server_priv.h"

static weft_status_t report_bind(const char *host, uint16_t port, int error, weft_diag_t *diag)
{
    switch (error) {
    case EADDRINUSE:
        return weft_diag(diag, WEFT_ERR_IN_USE, "port %u of %s is taken by another program", port,
                         host);
    case EACCES:
        return weft_diag(diag, WEFT_ERR_DENIED, "port %u of %s: permission denied%s", port, host,
                         port < 1024 ? "; ports below 1024 are for root" : "");
    case EADDRNOTAVAIL:
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "%s is not an address of this machine", host);
    default:
        return weft_diag(diag, WEFT_ERR_IO, "cannot listen on port %u of %s: %s", port, host,
                         strerror(error));
    }
}

static int open_and_bind(const struct addrinfo *address)
{
    const int on = 1;
    const int off = 0;
    const int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -1;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (address->ai_family == AF_INET6) { /* "::" is every address, IPv4 too */
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    }
    if (bind(fd, address->ai_addr, address->ai_addrlen) != 0 || listen(fd, SOMAXCONN) != 0) {
        const int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

uint16_t http_port_of(int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof(address);
    if (getsockname(fd, (struct sockaddr *)&address, &length) != 0) {
        return 0;
    }
    return ntohs(address.ss_family == AF_INET6
                     ? ((const struct sockaddr_in6 *)(const void *)&address)->sin6_port
                     : ((const struct sockaddr_in *)(const void *)&address)->sin_port);
}

weft_status_t weft_http_listen(const char *host, uint16_t port, weft_diag_t *diag, int *fd_out,
                               uint16_t *port_out)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC,
                                   .ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *addresses = NULL;
    char service[8];
    snprintf(service, sizeof(service), "%u", port);
    const int error = getaddrinfo(host, service, &hints, &addresses);
    if (error != 0) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "host \"%s\": %s", host, gai_strerror(error));
    }
    int fd = -1;
    int bind_error = 0;
    for (const struct addrinfo *a = addresses; a != NULL && fd < 0; a = a->ai_next) {
        fd = open_and_bind(a);
        if (bind_error == 0) {
            bind_error = fd < 0 ? errno : 0; /* of the address that was preferred */
        }
    }
    freeaddrinfo(addresses);
    if (fd < 0) {
        return report_bind(host, port, bind_error, diag);
    }
    *fd_out = fd;
    *port_out = http_port_of(fd);
    return WEFT_OK;
}
