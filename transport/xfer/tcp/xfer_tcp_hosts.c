/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport/xfer/tcp/xfer_tcp_priv.h"

typedef union any_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} any_address_t;

/* False: not an IP address that a peer could use. */
static bool host_from(const struct sockaddr *from, xfer_tcp_host_t *host_out)
{
    xfer_tcp_host_t host = {0};
    if (from != NULL && from->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)from;
        host.family = 4;
        memcpy(host.bytes, &v4->sin_addr, sizeof(v4->sin_addr));
        host.is_loopback = host.bytes[0] == 127;
    } else if (from != NULL && from->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const void *)from;
        host.family = 6;
        memcpy(host.bytes, &v6->sin6_addr, sizeof(v6->sin6_addr));
        host.is_loopback = IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr) != 0;
        if (IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr)) { /* means something else on each machine */
            return false;
        }
    } else {
        return false;
    }
    *host_out = host;
    return true;
}

static socklen_t host_to(const xfer_tcp_host_t *host, uint16_t number, any_address_t *to)
{
    memset(to, 0, sizeof(*to));
    if (host->family == 4) {
        to->v4.sin_family = AF_INET;
        to->v4.sin_port = htons(number);
        memcpy(&to->v4.sin_addr, host->bytes, sizeof(to->v4.sin_addr));
        return sizeof(to->v4);
    }
    to->v6.sin6_family = AF_INET6;
    to->v6.sin6_port = htons(number);
    memcpy(&to->v6.sin6_addr, host->bytes, sizeof(to->v6.sin6_addr));
    return sizeof(to->v6);
}

const char *xfer_tcp_host_text(const xfer_tcp_host_t *host, char text[64])
{
    const char *written = inet_ntop(host->family == 4 ? AF_INET : AF_INET6, host->bytes, text, 64);
    return written != NULL ? written : "?";
}

/* Peers elsewhere reach us by the addresses of interfaces, those here by loopback too. */
static void list_hosts(xfer_tcp_port_t *port, bool with_v6)
{
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all) != 0) {
        all = NULL;
    }
    for (int loopbacks = 0; loopbacks < 2; loopbacks++) {
        for (const struct ifaddrs *one = all; one != NULL; one = one->ifa_next) {
            xfer_tcp_host_t host;
            if ((one->ifa_flags & IFF_UP) != 0 && port->n_hosts < XFER_TCP_MAX_HOSTS &&
                host_from(one->ifa_addr, &host) && host.is_loopback == loopbacks &&
                (host.family == 4 || with_v6)) {
                port->hosts[port->n_hosts++] = host;
            }
        }
    }
    freeifaddrs(all);
}

/*
 * Two that agree in it reach each other by loopback addresses: of the same boot of the same kernel,
 * and in the same network namespace.
 */
static void name_machine(uint8_t machine[16])
{
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    struct stat space = {0};
    unsigned byte;
    for (int i = 0; file != NULL && i < 16 && fscanf(file, "%2x%*[-]", &byte) >= 1; i++) {
        machine[i] = (uint8_t)byte;
    }
    if (file != NULL) {
        fclose(file);
    }
    (void)stat("/proc/self/ns/net", &space);
    for (int i = 0; i < 8; i++) {
        machine[8 + i] ^= (uint8_t)((uint64_t)space.st_ino >> (8 * i));
    }
}

static int open_listener(const any_address_t *address, socklen_t length)
{
    const int on = 1;
    const int off = 0;
    const int family = address->any.sa_family;
    const int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -1;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (family == AF_INET6) {
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    }
    if (bind(fd, &address->any, length) == 0 && listen(fd, SOMAXCONN) == 0) {
        return fd;
    }
    const int error = errno;
    close(fd);
    errno = error;
    return -1;
}

static weft_status_t listen_anywhere(xfer_tcp_port_t *port)
{
    const xfer_tcp_host_t any_v6 = {.family = 6};
    const xfer_tcp_host_t any_v4 = {.family = 4};
    any_address_t address;
    socklen_t length = host_to(&any_v6, port->settings.port, &address);
    port->listener = open_listener(&address, length);
    const bool with_v6 = port->listener >= 0;
    if (!with_v6) {
        length = host_to(&any_v4, port->settings.port, &address);
        port->listener = open_listener(&address, length);
    }
    list_hosts(port, with_v6);
    return port->listener >= 0 && port->n_hosts > 0 ? WEFT_OK : WEFT_ERR_UNSUPPORTED;
}

static weft_status_t listen_at(xfer_tcp_port_t *port, weft_diag_t *diag)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    const int error = getaddrinfo(port->settings.host, NULL, &hints, &found);
    if (error != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "tcp.host: %s: %s", port->settings.host,
                         gai_strerror(error));
    }
    const bool is_usable = host_from(found->ai_addr, &port->hosts[0]);
    freeaddrinfo(found);
    if (!is_usable) {
        return weft_diag(diag, WEFT_ERR_INVALID, "tcp.host: %s: peers cannot use this address",
                         port->settings.host);
    }
    any_address_t address;
    const socklen_t length = host_to(&port->hosts[0], port->settings.port, &address);
    port->n_hosts = 1;
    port->listener = open_listener(&address, length);
    return port->listener >= 0 ? WEFT_OK : WEFT_ERR_UNSUPPORTED;
}

weft_status_t xfer_tcp_listen(xfer_tcp_port_t *port, weft_diag_t *diag)
{
    any_address_t bound = {0};
    socklen_t length = sizeof(bound);
    const weft_status_t status =
        port->settings.host != NULL ? listen_at(port, diag) : listen_anywhere(port);
    if (status == WEFT_ERR_INVALID) {
        return status;
    }
    if (status < 0 || getsockname(port->listener, &bound.any, &length) != 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "tcp: cannot listen at %s port %u: %s",
                         port->settings.host != NULL ? port->settings.host : "any address",
                         port->settings.port, strerror(errno));
    }
    port->number = ntohs(bound.any.sa_family == AF_INET ? bound.v4.sin_port : bound.v6.sin6_port);
    name_machine(port->machine);
    return WEFT_OK;
}

/*
 * A peer whose machine or network is gone sends nothing at all: its kernel's silence is noticed while
 * we send (user timeout) and while we only wait (keepalive).
 */
void xfer_tcp_set_options(int fd, uint32_t silence_ms)
{
    const int on = 1;
    const int interval_s = silence_ms < 6000 ? 1 : (int)(silence_ms / 5000);
    const unsigned silence = silence_ms;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &silence, sizeof(silence));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &interval_s, sizeof(interval_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
}

int xfer_tcp_connect_to(const xfer_tcp_host_t *host, uint16_t port_number, uint32_t silence_ms)
{
    any_address_t address;
    const socklen_t length = host_to(host, port_number, &address);
    const int fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -1;
    }
    xfer_tcp_set_options(fd, silence_ms);
    if (connect(fd, &address.any, length) == 0 || errno == EINPROGRESS) {
        return fd;
    }
    const int error = errno;
    close(fd);
    errno = error;
    return -1;
}
