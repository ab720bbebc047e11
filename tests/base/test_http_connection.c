/* SPDX-License-Identifier: Apache-2.0 */
/* Peers that hang up, trickle, wait, and come in thousands. test_http_server.c has their requests. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/support/http_rig.h"

static http_rig_t rig = HTTP_RIG_INIT;

static int start(void **state)
{
    (void)state;
    const weft_http_server_config_t config = http_rig_config(&rig);
    http_rig_start(&rig, &config);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    http_rig_stop(&rig);
    return 0;
}

static void a_peer_that_hangs_up_is_noticed_unanswered_and_streaming(void **state)
{
    (void)state;
    const int unanswered = http_rig_dial(&rig);
    const int streaming = http_rig_dial(&rig);
    const int stays = http_rig_dial(&rig);
    http_rig_say(unanswered, "GET /park HTTP/1.1\r\nHost: h\r\n\r\n");
    http_rig_say(streaming, "GET /park?stream=1 HTTP/1.1\r\nHost: h\r\n\r\n");
    http_rig_say(stays, "GET /park HTTP/1.1\r\nHost: h\r\n\r\n");
    tally_wait(&rig.parked, 3);
    http_rig_hear(&rig, streaming, "first\n\r\n");
    close(unanswered);
    tally_wait(&rig.hung_up, 1);
    close(streaming);
    tally_wait(&rig.hung_up, 2);

    const int half = http_rig_dial(&rig); /* stops sending only */
    http_rig_say(half, "GET /park HTTP/1.1\r\nHost: h\r\n\r\n");
    shutdown(half, SHUT_WR);
    tally_wait(&rig.hung_up, 3);
    assert_int_equal(recv(half, rig.answer, 1, 0), 0);
    close(half);
    close(stays);
    tally_wait(&rig.hung_up, 4);
}

static void a_peer_that_does_not_read_is_noticed_too(void **state)
{
    (void)state;
    const int fd = http_rig_dial(&rig);
    http_rig_say(fd, "GET /flood HTTP/1.1\r\nHost: h\r\n\r\n");
    tally_wait(&rig.parked, 1);
    assert_int_equal(atomic_load(&rig.pending), HTTP_RIG_FLOOD_BYTES);
    close(fd);
    tally_wait(&rig.hung_up, 1);
}

static void a_peer_that_ends_with_its_request_is_answered_or_closed(void **state)
{
    (void)state;
    static const struct {
        const char *request;
        const char *answer; /* in what comes before the server closes */
    } cases[] = {
        {"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n", "200 OK"},
        {"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf", ""},
        {"GET /echo HTTP/1.1\r\nHos", ""},
        {"GET", ""},
        {"", ""},
        {"GET /park HTTP/1.1\r\nHost: h\r\n\r\n", ""},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const int fd = http_rig_dial(&rig);
        const int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof(on)); /* bytes and end in one packet */
        http_rig_say(fd, cases[i].request);
        shutdown(fd, SHUT_WR);
        http_rig_contains(http_rig_hear(&rig, fd, NULL), cases[i].answer);
        const ssize_t n = recv(fd, rig.answer, 1, 0); /* closed before our patience ended? */
        assert_true(n == 0 || errno == ECONNRESET);
        close(fd);
    }
    tally_wait(&rig.hung_up, 1);
}

static void a_connection_that_trickles_is_closed(void **state)
{
    (void)state;
    weft_http_server_config_t config = http_rig_config(&rig);
    config.idle_timeout_s = 1;
    http_rig_start(&rig, &config);
    const int idle = http_rig_dial(&rig);
    const int head = http_rig_dial(&rig);
    const int body = http_rig_dial(&rig);
    http_rig_say(head, "GET /echo HTTP/1.1\r\nHost: h\r\nX: ");
    http_rig_say(body, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n");
    struct pollfd open[] = {{.fd = head, .events = POLLRDHUP}, {.fd = body, .events = POLLRDHUP}};
    const uint64_t deadline = weft_clock_ns() + 60 * WEFT_NS_PER_SECOND;
    while (open[0].fd >= 0 || open[1].fd >= 0) {
        assert_true(weft_clock_ns() < deadline);
        assert_true(poll(open, 2, 50) >= 0); /* until it is closed, or time for the next drop */
        for (int i = 0; i < 2; i++) {
            if (open[i].revents != 0) {
                open[i].fd = -1;
            } else if (open[i].fd >= 0) {
                http_rig_say(open[i].fd, "x");
            }
        }
    }
    assert_true(recv(idle, rig.answer, 1, 0) <= 0);
    close(idle);
    close(head);
    close(body);
    http_rig_stop(&rig);
}

static void connections_over_the_limit_wait_until_one_closes(void **state)
{
    (void)state;
    weft_http_server_config_t config = http_rig_config(&rig);
    config.max_connections = 2;
    http_rig_start(&rig, &config);
    int fds[6];
    for (int i = 0; i < 6; i++) {
        fds[i] = http_rig_dial(&rig);
        http_rig_say(fds[i], "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    for (int i = 0; i < 6; i++) {
        http_rig_contains(http_rig_hear(&rig, fds[i], "\r\n\r\n"), "200 OK");
        close(fds[i]);
    }
    http_rig_stop(&rig);
}

static void a_thousand_idle_and_a_thousand_streams_fit_on_the_loop(void **state)
{
    (void)state;
    static int fds[2000];
    struct rlimit limit = {0};
    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_max < 5000) {
        print_message("skipped: RLIMIT_NOFILE of %llu\n", (unsigned long long)limit.rlim_max);
        skip();
    }
    limit.rlim_cur = limit.rlim_max < 20000 ? limit.rlim_max : 20000;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (int i = 0; i < 2000; i++) {
        fds[i] = http_rig_dial(&rig);
        if (i % 2 == 0) {
            http_rig_say(fds[i], "GET /park?stream=1 HTTP/1.1\r\nHost: h\r\n\r\n");
        }
    }
    tally_wait(&rig.parked, 1000);
    const int fd = http_rig_dial(&rig);
    http_rig_say(fd, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    http_rig_contains(http_rig_hear(&rig, fd, "\r\n\r\n"), "200 OK");
    close(fd);
    for (int i = 0; i < 2000; i++) {
        if (i % 2 == 0) {
            http_rig_contains(http_rig_hear(&rig, fds[i], "first\n\r\n"), "200 OK");
        }
        close(fds[i]);
    }
    tally_wait(&rig.hung_up, 1000);
}

static void stop_listening_refuses_new_peers_and_closes_after_answers(void **state)
{
    (void)state;
    const int fd = http_rig_dial(&rig);
    const int parked = http_rig_dial(&rig);
    http_rig_say(parked, "GET /park HTTP/1.1\r\nHost: h\r\n\r\n");
    tally_wait(&rig.parked, 1);
    http_rig_say(fd, "GET /stop HTTP/1.1\r\nHost: h\r\n\r\n");
    http_rig_contains(http_rig_hear(&rig, fd, NULL), "Connection: close\r\n");
    close(fd);
    const struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(rig.port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int late = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(late, (const struct sockaddr *)&address, sizeof(address)), -1);
    assert_int_equal(errno, ECONNREFUSED);
    close(late);
    assert_int_equal(tally_count(&rig.hung_up), 0);
    close(parked);
    tally_wait(&rig.hung_up, 1);
}

static void destroy_hangs_up_on_those_who_wait(void **state)
{
    (void)state;
    start(NULL);
    const int a = http_rig_dial(&rig);
    const int b = http_rig_dial(&rig);
    http_rig_say(a, "GET /park HTTP/1.1\r\nHost: h\r\n\r\n");
    http_rig_say(b, "GET /park?stream=1 HTTP/1.1\r\nHost: h\r\n\r\n");
    tally_wait(&rig.parked, 2);
    http_rig_stop(&rig);
    assert_int_equal(tally_count(&rig.hung_up), 2);
    close(a);
    close(b);
}

#define SERVER_TEST(test) cmocka_unit_test_setup_teardown(test, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SERVER_TEST(a_peer_that_hangs_up_is_noticed_unanswered_and_streaming),
        SERVER_TEST(a_peer_that_does_not_read_is_noticed_too),
        SERVER_TEST(a_peer_that_ends_with_its_request_is_answered_or_closed),
        cmocka_unit_test(a_connection_that_trickles_is_closed),
        cmocka_unit_test(connections_over_the_limit_wait_until_one_closes),
        SERVER_TEST(a_thousand_idle_and_a_thousand_streams_fit_on_the_loop),
        SERVER_TEST(stop_listening_refuses_new_peers_and_closes_after_answers),
        cmocka_unit_test(destroy_hangs_up_on_those_who_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
