/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_greeting.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "tests/support/check.h"
#include "tests/support/zmq_tsan.h"

/* It waits for a second, which a busy machine may take. */
enum { MAX_TRIES = 60 };

static void check_mechanism(bool is_curve, const char *expected)
{
    char public_key[41];
    char secret_key[41];
    char endpoint[64];
    char mechanism[LAUNCH_MECHANISM_BYTES];
    size_t length = sizeof(endpoint);
    const int one = 1;
    void *context = zmq_ctx_new();
    void *router = zmq_socket(context, ZMQ_ROUTER);
    if (is_curve) {
        assert_int_equal(zmq_curve_keypair(public_key, secret_key), 0);
        zmq_setsockopt(router, ZMQ_CURVE_SERVER, &one, sizeof(one));
        zmq_setsockopt(router, ZMQ_CURVE_SECRETKEY, secret_key, sizeof(secret_key));
    }
    assert_int_equal(zmq_bind(router, "tcp://127.0.0.1:*"), 0);
    zmq_getsockopt(router, ZMQ_LAST_ENDPOINT, endpoint, &length);
    const uint16_t port = (uint16_t)strtoul(strrchr(endpoint, ':') + 1, NULL, 10);
    for (int tries = 1; !launch_greeting_mechanism("127.0.0.1", port, mechanism); tries++) {
        assert_true(tries < MAX_TRIES);
    }
    assert_string_equal(mechanism, expected);
    zmq_close(router);
    zmq_ctx_term(context);
}

static void a_socket_says_whether_it_wants_a_secret(void **state)
{
    (void)state;
    check_mechanism(false, "NULL");
    check_mechanism(true, "CURVE");
}

typedef struct answerer {
    int listener;
    const char *answer;
    size_t bytes;
} answerer_t;

static void *answer_one(void *user)
{
    const answerer_t *answerer = user;
    const int fd = accept(answerer->listener, NULL, NULL);
    (void)!send(fd, answerer->answer, answerer->bytes, MSG_NOSIGNAL);
    close(fd);
    return NULL;
}

/* Nobody; an old ZeroMQ (version 1 has no mechanisms), a web server, one who hangs up at once. */
static void what_is_no_such_socket_has_no_mechanism(void **state)
{
    static const char old[64] = "\xff\0\0\0\0\0\0\0\x01\x7f\x01";
    static const char web[] =
        "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    const struct {
        const char *answer;
        size_t bytes;
    } rows[] = {{old, sizeof(old)}, {web, sizeof(web)}, {"", 0}};
    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct sockaddr_in address = {.sin_family = AF_INET,
                                      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t length = sizeof(address);
        char mechanism[LAUNCH_MECHANISM_BYTES];
        pthread_t thread;
        answerer_t answerer = {socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), rows[i].answer,
                               rows[i].bytes};
        assert_int_equal(bind(answerer.listener, (struct sockaddr *)&address, length), 0);
        assert_int_equal(getsockname(answerer.listener, (struct sockaddr *)&address, &length), 0);
        assert_false(launch_greeting_mechanism("127.0.0.1", ntohs(address.sin_port), mechanism));
        assert_int_equal(listen(answerer.listener, 1), 0);
        assert_int_equal(pthread_create(&thread, NULL, answer_one, &answerer), 0);
        assert_false(launch_greeting_mechanism("127.0.0.1", ntohs(address.sin_port), mechanism));
        pthread_join(thread, NULL);
        close(answerer.listener);
    }
    char mechanism[LAUNCH_MECHANISM_BYTES];
    assert_false(launch_greeting_mechanism("no address", 1, mechanism));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_socket_says_whether_it_wants_a_secret),
        cmocka_unit_test(what_is_no_such_socket_has_no_mechanism),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
