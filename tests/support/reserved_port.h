/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reserved_port: a port for who is yet to listen, or to listen again. The socket stays: bound, it keeps the
 * system from giving its port to anybody else, and as long as it does not listen it lets those listen there
 * who set SO_REUSEADDR as well, as servers do. (ports.py does the same.)
 */
#pragma once

#include <arpa/inet.h>
#include <sys/socket.h>

#include "tests/support/check.h"

/* On 127.0.0.1, until the process ends. */
static inline uint16_t reserve_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    const int on = 1;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    return ntohs(address.sin_port);
}
