/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_port.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "tests/support/check.h"

/* As whoever else wants that port, without SO_REUSEADDR. */
static int bind_to(uint16_t number)
{
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                        .sin_port = htons(number)};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int error = bind(fd, (const struct sockaddr *)&address, sizeof(address)) == 0 ? 0 : errno;
    close(fd);
    return error;
}

static void a_held_port_is_nobody_elses(void **state)
{
    launch_port_t port;
    (void)state;
    for (int is_loopback = 0; is_loopback < 2; is_loopback++) {
        assert_status(launch_port_hold(is_loopback != 0, &port), WEFT_OK);
        assert_int_not_equal(port.number, 0);
        assert_int_equal(bind_to(port.number), EADDRINUSE);
        launch_port_let_go(&port);
        assert_int_equal(port.fd, -1);
        launch_port_let_go(&port); /* nothing is left to let go */
    }
}

/* Twice: a rank that is started again listens where it did. */
static void a_rank_listens_on_the_held_port(void **state)
{
    char endpoint[64];
    launch_port_t port;
    (void)state;
    for (int is_loopback = 0; is_loopback < 2; is_loopback++) {
        assert_status(launch_port_hold(is_loopback != 0, &port), WEFT_OK);
        snprintf(endpoint, sizeof(endpoint), is_loopback != 0 ? "tcp://127.0.0.1:%u" : "tcp://*:%u",
                 port.number);
        for (int i = 0; i < 2; i++) {
            void *context = zmq_ctx_new();
            void *router = zmq_socket(context, ZMQ_ROUTER);
            assert_int_equal(zmq_bind(router, endpoint), 0);
            zmq_close(router);
            zmq_ctx_term(context);
        }
        launch_port_let_go(&port);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_held_port_is_nobody_elses),
        cmocka_unit_test(a_rank_listens_on_the_held_port),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
