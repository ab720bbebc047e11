/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_greeting.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

#define WAIT_NS (1 * WEFT_NS_PER_SECOND)

enum { GREETING_BYTES = 64, MECHANISM_AT = 12 };

/* The first part of a greeting, which makes the other side send all of its own. */
static const uint8_t signature_and_version[] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1};

static bool wait_for(int fd, short events, uint64_t deadline_ns)
{
    struct pollfd one = {.fd = fd, .events = events};
    const uint64_t now = weft_clock_ns();
    const int ms = now < deadline_ns ? (int)((deadline_ns - now) / WEFT_NS_PER_MS) + 1 : 0;
    return poll(&one, 1, ms) == 1;
}

/* -1: none. */
static int connect_to(const char *address, uint16_t port, uint64_t deadline_ns)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    char service[8];
    snprintf(service, sizeof(service), "%u", port);
    if (getaddrinfo(address, service, &hints, &list) != 0) {
        return -1;
    }
    const int fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    const bool is_begun =
        fd >= 0 && (connect(fd, list->ai_addr, list->ai_addrlen) == 0 || errno == EINPROGRESS);
    freeaddrinfo(list);
    if (is_begun && wait_for(fd, POLLOUT, deadline_ns)) {
        return fd;
    }
    if (fd >= 0) {
        close(fd);
    }
    return -1;
}

static bool read_greeting(int fd, uint64_t deadline_ns, uint8_t greeting[GREETING_BYTES])
{
    size_t n = 0;
    while (n < GREETING_BYTES && wait_for(fd, POLLIN, deadline_ns)) {
        const ssize_t got = recv(fd, greeting + n, GREETING_BYTES - n, 0);
        if (got <= 0) {
            return false;
        }
        n += (size_t)got;
    }
    return n == GREETING_BYTES && greeting[0] == 0xff && greeting[9] == 0x7f && greeting[10] >= 3;
}

bool launch_greeting_mechanism(const char *address, uint16_t port,
                               char mechanism_out[LAUNCH_MECHANISM_BYTES])
{
    const uint64_t deadline_ns = weft_clock_ns() + WAIT_NS;
    uint8_t greeting[GREETING_BYTES];
    const int fd = connect_to(address, port, deadline_ns);
    if (fd < 0) {
        return false;
    }
    const bool is_read = send(fd, signature_and_version, sizeof(signature_and_version),
                              MSG_NOSIGNAL) == (ssize_t)sizeof(signature_and_version) &&
                         read_greeting(fd, deadline_ns, greeting);
    close(fd);
    if (is_read) {
        memcpy(mechanism_out, greeting + MECHANISM_AT, LAUNCH_MECHANISM_BYTES - 1);
        mechanism_out[LAUNCH_MECHANISM_BYTES - 1] = '\0';
    }
    return is_read;
}
