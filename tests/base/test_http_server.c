/* SPDX-License-Identifier: Apache-2.0 */
/* What is asked and what is answered. test_http_connection.c has the peers. */
#include "base/http_server.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

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

static void what_was_asked_reaches_the_handler(void **state)
{
    (void)state;
    const int fd = http_rig_dial(&rig);
    http_rig_say(fd, "POST /a%20b%2Fc%00d?q=x+y%26z&r HTTP/1.1\r\nHost: h\r\nx-ask: me\r\n"
                     "Content-Length: 5\r\n\r\nhello");
    http_rig_hear(&rig, fd, "hello");
    http_rig_contains(rig.answer, "HTTP/1.1 200 OK\r\n");
    http_rig_contains(rig.answer, "X-Method: POST\r\n");
    http_rig_contains(rig.answer, "X-Path: /a b/c%00d\r\n");
    http_rig_contains(rig.answer, "X-Query: x y&z\r\n");
    http_rig_contains(rig.answer, "X-Answer: me\r\n");
    http_rig_contains(rig.answer, "Content-Type: text/plain\r\n");
    http_rig_contains(rig.answer, "Content-Length: 5\r\n");
    close(fd);
}

static void a_connection_serves_many_requests_also_pipelined(void **state)
{
    (void)state;
    const int fd = http_rig_dial(&rig);
    for (int i = 0; i < 5; i++) {
        http_rig_say(fd, "POST /later HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok");
        http_rig_hear(&rig, fd, "ok");
        http_rig_contains(rig.answer, "200 OK");
    }
    http_rig_say(fd, "POST /later HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\na"
                     "POST /stream?n=2 HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
                     "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nend");
    http_rig_hear(&rig, fd, "\r\n\r\nend");
    http_rig_contains(rig.answer, "piece\n");
    close(fd);
}

static void chunked_bodies_are_put_together(void **state)
{
    (void)state;
    const int fd = http_rig_dial(&rig);
    http_rig_say(fd, "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                     "4\r\nwea");
    http_rig_say(fd, "v\r\n3\r\ning\r\n0\r\n\r\n");
    http_rig_hear(&rig, fd, "weaving");
    http_rig_contains(rig.answer, "Content-Length: 7\r\n");
    close(fd);
}

static void a_stream_arrives_in_pieces_and_ends(void **state)
{
    (void)state;
    int fd = http_rig_dial(&rig);
    http_rig_say(fd, "GET /stream?n=100 HTTP/1.1\r\nHost: h\r\n\r\n");
    http_rig_hear(&rig, fd, "0\r\n\r\n");
    http_rig_contains(rig.answer, "Transfer-Encoding: chunked\r\n");
    int pieces = 0;
    for (const char *at = rig.answer; (at = strstr(at, "piece\n")) != NULL; at++) {
        pieces++;
    }
    assert_int_equal(pieces, 100);
    http_rig_say(fd, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"); /* the connection lives on */
    http_rig_contains(http_rig_hear(&rig, fd, "\r\n\r\n"), "200 OK");
    close(fd);

    fd = http_rig_dial(&rig); /* 1.0 knows no chunks: the end is the end of the connection */
    http_rig_say(fd, "GET /stream?n=2 HTTP/1.0\r\n\r\n");
    http_rig_contains(http_rig_hear(&rig, fd, NULL), "\r\n\r\npiece\npiece\n");
    close(fd);
}

static void a_body_over_the_limit_gets_a_413_and_is_not_kept(void **state)
{
    (void)state;
    static const char block[65536];
    char head[128];
    snprintf(head, sizeof(head), "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %zu\r\n\r\n",
             4 * HTTP_RIG_MAX_BODY);
    int fd = http_rig_dial(&rig);
    http_rig_say(fd, head);
    for (size_t sent = 0; sent < 4 * HTTP_RIG_MAX_BODY; sent += sizeof(block)) {
        http_rig_send(fd, block, sizeof(block));
    }
    http_rig_hear(&rig, fd, "rejected 413");
    http_rig_contains(rig.answer, "HTTP/1.1 413 ");
    http_rig_say(fd, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"); /* and goes on */
    http_rig_contains(http_rig_hear(&rig, fd, "\r\n\r\n"), "200 OK");
    close(fd);

    fd = http_rig_dial(&rig); /* of unknown length */
    http_rig_say(fd, "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (size_t sent = 0; sent < 2 * HTTP_RIG_MAX_BODY; sent += sizeof(block)) {
        http_rig_say(fd, "10000\r\n");
        http_rig_send(fd, block, sizeof(block));
        http_rig_say(fd, "\r\n");
    }
    http_rig_say(fd, "0\r\n\r\n");
    http_rig_hear(&rig, fd, "rejected 413");
    close(fd);

    fd = http_rig_dial(&rig); /* who asks first is told at once */
    snprintf(
        head, sizeof(head),
        "POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %zu\r\n\r\n",
        4 * HTTP_RIG_MAX_BODY);
    http_rig_say(fd, head);
    http_rig_contains(http_rig_hear(&rig, fd, "rejected 413"), "HTTP/1.1 413 ");
    close(fd);

    fd = http_rig_dial(&rig); /* so is who would send for ever */
    http_rig_say(fd, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999999\r\n\r\n");
    http_rig_contains(http_rig_hear(&rig, fd, "rejected 413"), "HTTP/1.1 413 ");
    close(fd);
}

static void a_body_at_the_limit_is_taken(void **state)
{
    (void)state;
    char *body = calloc(1, HTTP_RIG_MAX_BODY);
    memset(body, 'b', HTTP_RIG_MAX_BODY);
    const int fd = http_rig_dial(&rig);
    http_rig_say(fd, "POST /echo HTTP/1.0\r\nContent-Length: 1048576\r\n\r\n");
    http_rig_send(fd, body, HTTP_RIG_MAX_BODY);
    size_t total = 0;
    ssize_t n;
    while ((n = recv(fd, rig.answer, sizeof(rig.answer), 0)) > 0) {
        total += (size_t)n;
    }
    assert_true(total > HTTP_RIG_MAX_BODY && total < HTTP_RIG_MAX_BODY + 1000);
    close(fd);
    free(body);
}

static void headers_over_the_limit_get_a_431(void **state)
{
    (void)state;
    static char big[200000];
    const size_t sizes[] = {40000, 150000}; /* seen by us, seen by libmicrohttpd */
    for (size_t i = 0; i < 2; i++) {
        const int fd = http_rig_dial(&rig);
        memset(big, 'h', sizes[i]);
        big[sizes[i]] = '\0';
        http_rig_say(fd, "GET /echo HTTP/1.1\r\nHost: h\r\nX-Big: ");
        http_rig_say(fd, big);
        http_rig_say(fd, "\r\n\r\n");
        http_rig_contains(http_rig_hear(&rig, fd, i == 0 ? "rejected 431" : NULL), "HTTP/1.1 431 ");
        close(fd);
    }
}

static void what_is_not_http_is_refused(void **state)
{
    (void)state;
    static const char *const requests[] = {
        "\x16\x03\x01\x02garbage\r\n\r\n",
        "GET\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: many\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "GET / HTTP/9.9\r\nHost: h\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
        const int fd = http_rig_dial(&rig);
        http_rig_say(fd, requests[i]);
        shutdown(fd, SHUT_WR);
        http_rig_hear(&rig, fd, NULL);
        if (strstr(rig.answer, " 200 ") != NULL) {
            fail_msg("%s got %s", requests[i], rig.answer);
        }
        close(fd);
    }
    const int fd = http_rig_dial(&rig); /* and the server lives */
    http_rig_say(fd, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    http_rig_contains(http_rig_hear(&rig, fd, "\r\n\r\n"), "200 OK");
    close(fd);
}

static void a_taken_port_and_a_strange_host_are_named(void **state)
{
    (void)state;
    weft_http_server_config_t config = http_rig_config(&rig);
    weft_http_server_t *second = NULL;
    weft_diag_t diag = {0};
    char expected[96];
    config.port = rig.port;
    assert_status(weft_http_server_start(rig.loop, &config, &diag, &second), WEFT_ERR_IN_USE);
    snprintf(expected, sizeof(expected), "port %u of 127.0.0.1 is taken by another program",
             rig.port);
    assert_string_equal(diag.text, expected);
    config.host = "no such host";
    assert_status(weft_http_server_start(rig.loop, &config, &diag, &second), WEFT_ERR_NOT_FOUND);
    http_rig_contains(diag.text, "host \"no such host\": ");
    config.host = "192.0.2.1"; /* TEST-NET-1, nobody's */
    config.port = 0;
    assert_status(weft_http_server_start(rig.loop, &config, &diag, &second), WEFT_ERR_NOT_FOUND);
    assert_string_equal(diag.text, "192.0.2.1 is not an address of this machine");
    config.tls_cert = "/nowhere";
    assert_status(weft_http_server_start(rig.loop, &config, &diag, &second), WEFT_ERR_INVALID);
    config.tls_key = "/nowhere";
    assert_status(weft_http_server_start(rig.loop, &config, &diag, &second), WEFT_ERR_NOT_FOUND);
    assert_string_equal(diag.text, "/nowhere: No such file or directory");
    assert_null(second);
}

static void names_and_ipv6_are_listened_on(void **state)
{
    (void)state;
    static const char *const hosts[] = {"localhost", "::", "::1", "0.0.0.0"};
    weft_loop_t *other = NULL;
    assert_status(weft_loop_create(&other), WEFT_OK);
    for (size_t i = 0; i < sizeof(hosts) / sizeof(hosts[0]); i++) {
        weft_http_server_config_t config = http_rig_config(&rig);
        weft_http_server_t *second = NULL;
        weft_diag_t diag = {0};
        config.host = hosts[i];
        const weft_status_t status = weft_http_server_start(other, &config, &diag, &second);
        if (status < 0 && strchr(hosts[i], ':') != NULL) {
            print_message("skipped %s: %s\n", hosts[i], diag.text); /* no IPv6 here */
            continue;
        }
        assert_status(status, WEFT_OK);
        assert_true(weft_http_server_port(second) > 0);
        weft_http_server_destroy(second);
    }
    weft_loop_destroy(other);
}

static void a_socket_that_listens_already_is_taken_over(void **state)
{
    (void)state;
    weft_http_server_config_t config = http_rig_config(&rig);
    weft_http_server_t *second = NULL;
    weft_loop_t *other = NULL;
    weft_diag_t diag = {0};
    uint16_t port = 0;
    assert_status(weft_loop_create(&other), WEFT_OK);
    assert_status(weft_http_listen("127.0.0.1", 0, &diag, &config.listen_fd, &port), WEFT_OK);
    config.host = "no such host"; /* is not used */
    assert_status(weft_http_server_start(other, &config, &diag, &second), WEFT_OK);
    assert_int_equal(weft_http_server_port(second), port);
    weft_http_server_destroy(second);
    config.listen_fd = open("/dev/null", O_RDONLY);
    assert_status(weft_http_server_start(other, &config, &diag, &second), WEFT_ERR_INVALID);
    http_rig_contains(diag.text, "no listening socket");
    close(config.listen_fd);
    weft_loop_destroy(other);
}

static void every_allocation_of_a_request_may_fail(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        bool is_through = false;
        for (uint64_t n = 1; !is_through; n++) {
            weft_alloc_fail_nth(n);
            const int fd = http_rig_dial(&rig);
            http_rig_say(fd, kind == 0 ? "POST /later HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
                                         "Content-Length: 5\r\n\r\nhello"
                                       : "GET /stream?n=3 HTTP/1.1\r\nHost: h\r\n"
                                         "Connection: close\r\n\r\n");
            http_rig_hear(&rig, fd, NULL);
            is_through = weft_alloc_fail_nth(0) < n;
            if (is_through) {
                http_rig_contains(rig.answer, kind == 0 ? "\r\n\r\nhello" : "piece\n");
            }
            close(fd);
            assert_true(n < 100);
        }
    }
}

static void every_allocation_of_a_start_may_fail(void **state)
{
    (void)state;
    const weft_http_server_config_t config = http_rig_config(&rig);
    weft_loop_t *other = NULL;
    assert_status(weft_loop_create(&other), WEFT_OK);
    const size_t before = weft_alloc_live_bytes();
    uint64_t n = 1;
    for (bool is_through = false; !is_through; n++) {
        weft_http_server_t *second = NULL;
        weft_diag_t diag = {0};
        weft_alloc_fail_nth(n);
        const weft_status_t status = weft_http_server_start(other, &config, &diag, &second);
        is_through = weft_alloc_fail_nth(0) < n;
        assert_status(status, is_through ? WEFT_OK : WEFT_ERR_NO_MEMORY);
        weft_http_server_destroy(second);
        if (!is_through) {
            assert_true(weft_alloc_live_bytes() <= before + 4096); /* the loop's own heap */
        }
    }
    assert_true(n > 3);
    weft_loop_destroy(other);
}

#define SERVER_TEST(test) cmocka_unit_test_setup_teardown(test, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SERVER_TEST(what_was_asked_reaches_the_handler),
        SERVER_TEST(a_connection_serves_many_requests_also_pipelined),
        SERVER_TEST(chunked_bodies_are_put_together),
        SERVER_TEST(a_stream_arrives_in_pieces_and_ends),
        SERVER_TEST(a_body_over_the_limit_gets_a_413_and_is_not_kept),
        SERVER_TEST(a_body_at_the_limit_is_taken),
        SERVER_TEST(headers_over_the_limit_get_a_431),
        SERVER_TEST(what_is_not_http_is_refused),
        SERVER_TEST(a_taken_port_and_a_strange_host_are_named),
        SERVER_TEST(names_and_ipv6_are_listened_on),
        SERVER_TEST(a_socket_that_listens_already_is_taken_over),
        SERVER_TEST(every_allocation_of_a_request_may_fail),
        cmocka_unit_test(every_allocation_of_a_start_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
