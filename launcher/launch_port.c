/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_port.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

weft_status_t launch_port_hold(bool is_loopback, launch_port_t *port_out)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(is_loopback ? INADDR_LOOPBACK : INADDR_ANY),
    };
    socklen_t length = sizeof(address);
    const int on = 1;
    launch_port_t port = {.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    const bool is_held = port.fd >= 0 &&
                         setsockopt(port.fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
                         bind(port.fd, (const struct sockaddr *)&address, length) == 0 &&
                         getsockname(port.fd, (struct sockaddr *)&address, &length) == 0;
    if (!is_held) {
        launch_port_let_go(&port);
    }
    port.number = is_held ? ntohs(address.sin_port) : 0;
    *port_out = port;
    return is_held ? WEFT_OK : WEFT_ERR_IO;
}

void launch_port_let_go(launch_port_t *port)
{
    if (port->fd >= 0) {
        close(port->fd);
    }
    port->fd = -1;
}
