/* SPDX-License-Identifier: Apache-2.0 */
#include "base/http_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "tests/support/check.h"

#define MAX_BODY ((size_t)1 << 20)
#define PARKED   2048

/*
 * The server under test runs on its own thread. Its paths: /echo answers with the body, /later the
 * same from a timer, /stream sends n pieces, /park keeps the exchange until the peer hangs up.
 */
static weft_loop_t *loop;
static weft_http_server_t *server;
static pthread_t thread;
static uint16_t port;
static atomic_int n_parked;
static atomic_int n_hung_up;
static atomic_size_t pending;

typedef struct later {
    weft_http_exchange_t *exchange;
    weft_loop_timer_t *timer;
    int pieces; /* left; 0: a whole answer */
    bool is_stream;
} later_t;

static void on_hangup(weft_http_exchange_t *exchange, void *user)
{
    later_t *later = user;
    (void)exchange;
    atomic_fetch_add(&n_hung_up, 1);
    if (later != NULL) {
        weft_loop_timer_destroy(later->timer);
        free(later);
    }
}

static void echo(weft_http_exchange_t *exchange)
{
    size_t length = 0;
    const char *body = weft_http_body(exchange, &length);
    const char *query = weft_http_query(exchange, "q");
    const char *header = weft_http_header(exchange, "X-Ask");
    const weft_http_header_t headers[] = {
        {"X-Method", weft_http_method(exchange)},
        {"X-Path", weft_http_path(exchange)},
        {"X-Query", query == NULL ? "none" : query},
        {"X-Answer", header == NULL ? "none" : header},
    };
    weft_http_respond(exchange, 200, "text/plain", headers, 4, body, length);
}

static void on_later(void *user)
{
    later_t *later = user;
    if (later->pieces > 0) {
        later->pieces--;
        weft_http_stream_write(later->exchange, "piece\n", 6);
        weft_loop_timer_set(later->timer, 0);
        return;
    }
    if (later->is_stream) {
        weft_http_stream_end(later->exchange);
    } else {
        echo(later->exchange);
    }
    weft_loop_timer_destroy(later->timer);
    free(later);
}

static void answer_later(weft_http_exchange_t *exchange, int pieces)
{
    later_t *later = calloc(1, sizeof(*later));
    *later = (later_t){.exchange = exchange, .pieces = pieces, .is_stream = pieces > 0};
    if (weft_loop_timer_create(loop, on_later, later, &later->timer) < 0) {
        free(later);
        weft_http_respond(exchange, 503, "text/plain", NULL, 0, "", 0);
        return;
    }
    weft_loop_timer_set(later->timer, 0);
    weft_http_on_hangup(exchange, on_hangup, later);
    if (later->is_stream) {
        weft_http_stream_begin(exchange, 200, "text/event-stream", NULL, 0);
    }
}

static void park(weft_http_exchange_t *exchange)
{
    if (weft_http_query(exchange, "stream") != NULL) {
        weft_http_stream_begin(exchange, 200, "text/event-stream", NULL, 0);
        weft_http_stream_write(exchange, "first\n", 6);
    }
    weft_http_on_hangup(exchange, on_hangup, NULL);
    atomic_fetch_add(&n_parked, 1);
}

/* Fills what the system will take and then our memory, until the peer hangs up. */
static void flood(weft_http_exchange_t *exchange)
{
    static const char block[65536] = {'x'};
    weft_http_on_hangup(exchange, on_hangup, NULL);
    weft_http_stream_begin(exchange, 200, "text/plain", NULL, 0);
    for (int i = 0; i < 256; i++) {
        weft_http_stream_write(exchange, block, sizeof(block));
    }
    atomic_store(&pending, weft_http_stream_pending(exchange));
    atomic_fetch_add(&n_parked, 1);
}

static void handle(void *user, weft_http_exchange_t *exchange)
{
    const char *path = weft_http_path(exchange);
    (void)user;
    if (strcmp(path, "/later") == 0) {
        answer_later(exchange, 0);
    } else if (strcmp(path, "/stream") == 0) {
        answer_later(exchange, atoi(weft_http_query(exchange, "n")));
    } else if (strcmp(path, "/park") == 0) {
        park(exchange);
    } else if (strcmp(path, "/flood") == 0) {
        flood(exchange);
    } else if (strcmp(path, "/stop") == 0) {
        weft_http_server_stop_listening(server);
        echo(exchange);
    } else {
        echo(exchange);
    }
}

static void reject(void *user, weft_http_exchange_t *exchange, uint32_t http_status)
{
    char body[64];
    (void)user;
    const int n = snprintf(body, sizeof(body), "rejected %u", http_status);
    weft_http_respond(exchange, http_status, "text/plain", NULL, 0, body, (size_t)n);
}

static void *run_loop(void *user)
{
    weft_loop_run(user);
    return NULL;
}

static weft_http_server_config_t base_config(void)
{
    return (weft_http_server_config_t){.host = "127.0.0.1",
                                       .max_body_bytes = MAX_BODY,
                                       .max_connections = PARKED,
                                       .idle_timeout_s = 60,
                                       .handle = handle,
                                       .reject = reject};
}

static void start_server(const weft_http_server_config_t *config)
{
    weft_diag_t diag = {0};
    atomic_store(&n_parked, 0);
    atomic_store(&n_hung_up, 0);
    assert_status(weft_loop_create(&loop), WEFT_OK);
    assert_status(weft_http_server_start(loop, config, &diag, &server), WEFT_OK);
    port = weft_http_server_port(server);
    assert_true(port > 0);
    assert_int_equal(pthread_create(&thread, NULL, run_loop, loop), 0);
}

static int start_default(void **state)
{
    (void)state;
    const weft_http_server_config_t config = base_config();
    start_server(&config);
    return 0;
}

static int stop_server(void **state)
{
    (void)state;
    weft_loop_stop(loop);
    pthread_join(thread, NULL);
    weft_http_server_destroy(server);
    weft_loop_destroy(loop);
    assert_int_equal(weft_alloc_live_bytes(), 0);
    return 0;
}

/* Its reads fail in the end instead of hanging the test, before the server's timeout would help. */
static int dial(void)
{
    const struct timeval patience = {.tv_sec = 20};
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void send_bytes(int fd, const void *bytes, size_t length)
{
    for (size_t sent = 0; sent < length;) {
        const ssize_t n = send(fd, (const char *)bytes + sent, length - sent, MSG_NOSIGNAL);
        if (n <= 0) {
            return; /* the peer closed; what it said is for the reader to judge */
        }
        sent += (size_t)n;
    }
}

static void send_text(int fd, const char *text)
{
    send_bytes(fd, text, strlen(text));
}

static char answer[1 << 18];

/* Reads into answer until it ends with tail (NULL: until the peer closes). */
static const char *read_until(int fd, const char *tail)
{
    size_t length = 0;
    answer[0] = '\0';
    while (length + 1 < sizeof(answer)) {
        const ssize_t n = recv(fd, answer + length, sizeof(answer) - 1 - length, 0);
        if (n <= 0) {
            break;
        }
        length += (size_t)n;
        answer[length] = '\0';
        const size_t end = tail == NULL ? 0 : strlen(tail);
        if (tail != NULL && length >= end && strcmp(answer + length - end, tail) == 0) {
            break;
        }
    }
    return answer;
}

/* Waits for a counter of the server's thread; a deadline instead of a hang. */
static void wait_for(atomic_int *counter, int value)
{
    const uint64_t deadline = weft_clock_ns() + 60 * WEFT_NS_PER_SECOND;
    while (atomic_load(counter) < value) {
        assert_true(weft_clock_ns() < deadline);
        const struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
    }
    assert_int_equal(atomic_load(counter), value);
}

static void assert_contains(const char *text, const char *part)
{
    if (strstr(text, part) == NULL) {
        fail_msg("\"%s\" is not in \"%.2000s\"", part, text);
    }
}

static void what_was_asked_reaches_the_handler(void **state)
{
    (void)state;
    const int fd = dial();
    send_text(fd, "POST /a%20b%2Fc%00d?q=x+y%26z&r HTTP/1.1\r\nHost: h\r\nx-ask: me\r\n"
                  "Content-Length: 5\r\n\r\nhello");
    read_until(fd, "hello");
    assert_contains(answer, "HTTP/1.1 200 OK\r\n");
    assert_contains(answer, "X-Method: POST\r\n");
    assert_contains(answer, "X-Path: /a b/c%00d\r\n");
    assert_contains(answer, "X-Query: x y&z\r\n");
    assert_contains(answer, "X-Answer: me\r\n");
    assert_contains(answer, "Content-Type: text/plain\r\n");
    assert_contains(answer, "Content-Length: 5\r\n");
    close(fd);
}

static void a_connection_serves_many_requests_also_pipelined(void **state)
{
    (void)state;
    const int fd = dial();
    for (int i = 0; i < 5; i++) {
        send_text(fd, "POST /later HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok");
        read_until(fd, "ok");
        assert_contains(answer, "200 OK");
    }
    send_text(fd, "POST /later HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\na"
                  "POST /stream?n=2 HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
                  "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nend");
    read_until(fd, "\r\n\r\nend");
    assert_contains(answer, "piece\n");
    close(fd);
}

static void chunked_bodies_are_put_together(void **state)
{
    (void)state;
    const int fd = dial();
    send_text(fd, "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                  "4\r\nwea");
    send_text(fd, "v\r\n3\r\ning\r\n0\r\n\r\n");
    read_until(fd, "weaving");
    assert_contains(answer, "Content-Length: 7\r\n");
    close(fd);
}

static void a_stream_arrives_in_pieces_and_ends(void **state)
{
    (void)state;
    int fd = dial();
    send_text(fd, "GET /stream?n=100 HTTP/1.1\r\nHost: h\r\n\r\n");
    read_until(fd, "0\r\n\r\n");
    assert_contains(answer, "Transfer-Encoding: chunked\r\n");
    int pieces = 0;
    for (const char *at = answer; (at = strstr(at, "piece\n")) != NULL; at++) {
        pieces++;
    }
    assert_int_equal(pieces, 100);
    send_text(fd, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"); /* the connection lives on */
    assert_contains(read_until(fd, "\r\n\r\n"), "200 OK");
    close(fd);

    fd = dial(); /* 1.0 knows no chunks: the end is the end of the connection */
    send_text(fd, "GET /stream?n=2 HTTP/1.0\r\n\r\n");
    assert_contains(read_until(fd, NULL), "\r\n\r\npiece\npiece\n");
    close(fd);
}

static void a_peer_that_hangs_up_is_noticed_unanswered_and_streaming(void **state)
{
    (void)state;
    const int unanswered = dial();
    const int streaming = dial();
    const int stays = dial();
    send_text(unanswered, "GET /park HTTP/1.1\r\nHost: h\r\n\r\n");
    send_text(streaming, "GET /park?stream=1 HTTP/1.1\r\nHost: h\r\n\r\n");
    send_text(stays, "GET /park HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_for(&n_parked, 3);
    read_until(streaming, "first\n\r\n");
    close(unanswered);
    wait_for(&n_hung_up, 1);
    close(streaming);
    wait_for(&n_hung_up, 2);

    const int half = dial(); /* stops sending only */
    send_text(half, "GET /park HTTP/1.1\r\nHost: h\r\n\r\n");
    shutdown(half, SHUT_WR);
    wait_for(&n_hung_up, 3);
    assert_int_equal(recv(half, answer, 1, 0), 0);
    close(half);
    close(stays);
    wait_for(&n_hung_up, 4);
}

static void a_peer_that_does_not_read_is_noticed_too(void **state)
{
    (void)state;
    const int fd = dial();
    send_text(fd, "GET /flood HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_for(&n_parked, 1);
    assert_int_equal(atomic_load(&pending), 256 * 65536);
    close(fd);
    wait_for(&n_hung_up, 1);
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
        const int fd = dial();
        const int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof(on)); /* bytes and end in one packet */
        send_text(fd, cases[i].request);
        shutdown(fd, SHUT_WR);
        assert_contains(read_until(fd, NULL), cases[i].answer);
        const ssize_t n = recv(fd, answer, 1, 0); /* closed before our patience ended? */
        assert_true(n == 0 || errno == ECONNRESET);
        close(fd);
    }
    wait_for(&n_hung_up, 1);
}

static void a_body_over_the_limit_gets_a_413_and_is_not_kept(void **state)
{
    (void)state;
    static const char block[65536];
    char head[128];
    snprintf(head, sizeof(head), "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %zu\r\n\r\n",
             4 * MAX_BODY);
    int fd = dial();
    send_text(fd, head);
    for (size_t sent = 0; sent < 4 * MAX_BODY; sent += sizeof(block)) {
        send_bytes(fd, block, sizeof(block));
    }
    read_until(fd, "rejected 413");
    assert_contains(answer, "HTTP/1.1 413 ");
    send_text(fd, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"); /* and goes on */
    assert_contains(read_until(fd, "\r\n\r\n"), "200 OK");
    close(fd);

    fd = dial(); /* of unknown length */
    send_text(fd, "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (size_t sent = 0; sent < 2 * MAX_BODY; sent += sizeof(block)) {
        send_text(fd, "10000\r\n");
        send_bytes(fd, block, sizeof(block));
        send_text(fd, "\r\n");
    }
    send_text(fd, "0\r\n\r\n");
    read_until(fd, "rejected 413");
    close(fd);

    fd = dial(); /* who asks first is told at once */
    snprintf(
        head, sizeof(head),
        "POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %zu\r\n\r\n",
        4 * MAX_BODY);
    send_text(fd, head);
    assert_contains(read_until(fd, "rejected 413"), "HTTP/1.1 413 ");
    close(fd);

    fd = dial(); /* so is who would send for ever */
    send_text(fd, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999999\r\n\r\n");
    assert_contains(read_until(fd, "rejected 413"), "HTTP/1.1 413 ");
    close(fd);
}

static void a_body_at_the_limit_is_taken(void **state)
{
    (void)state;
    char *body = calloc(1, MAX_BODY);
    memset(body, 'b', MAX_BODY);
    const int fd = dial();
    send_text(fd, "POST /echo HTTP/1.0\r\nContent-Length: 1048576\r\n\r\n");
    send_bytes(fd, body, MAX_BODY);
    size_t total = 0;
    ssize_t n;
    while ((n = recv(fd, answer, sizeof(answer), 0)) > 0) {
        total += (size_t)n;
    }
    assert_true(total > MAX_BODY && total < MAX_BODY + 1000);
    close(fd);
    free(body);
}

static void headers_over_the_limit_get_a_431(void **state)
{
    (void)state;
    static char big[200000];
    const size_t sizes[] = {40000, 150000}; /* seen by us, seen by libmicrohttpd */
    for (size_t i = 0; i < 2; i++) {
        const int fd = dial();
        memset(big, 'h', sizes[i]);
        big[sizes[i]] = '\0';
        send_text(fd, "GET /echo HTTP/1.1\r\nHost: h\r\nX-Big: ");
        send_text(fd, big);
        send_text(fd, "\r\n\r\n");
        assert_contains(read_until(fd, i == 0 ? "rejected 431" : NULL), "HTTP/1.1 431 ");
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
        const int fd = dial();
        send_text(fd, requests[i]);
        shutdown(fd, SHUT_WR);
        read_until(fd, NULL);
        if (strstr(answer, " 200 ") != NULL) {
            fail_msg("%s got %s", requests[i], answer);
        }
        close(fd);
    }
    const int fd = dial(); /* and the server lives */
    send_text(fd, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_contains(read_until(fd, "\r\n\r\n"), "200 OK");
    close(fd);
}

static void a_connection_that_trickles_is_closed(void **state)
{
    (void)state;
    weft_http_server_config_t config = base_config();
    config.idle_timeout_s = 1;
    start_server(&config);
    const int idle = dial();
    const int head = dial();
    const int body = dial();
    send_text(head, "GET /echo HTTP/1.1\r\nHost: h\r\nX: ");
    send_text(body, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n");
    const uint64_t deadline = weft_clock_ns() + 60 * WEFT_NS_PER_SECOND;
    bool is_head_open = true;
    bool is_body_open = true;
    while (is_head_open || is_body_open) {
        assert_true(weft_clock_ns() < deadline);
        const struct timespec pause = {.tv_nsec = 50000000};
        nanosleep(&pause, NULL); /* the trickle */
        is_head_open = is_head_open && send(head, "x", 1, MSG_NOSIGNAL) == 1;
        is_body_open = is_body_open && send(body, "x", 1, MSG_NOSIGNAL) == 1;
    }
    assert_true(recv(idle, answer, 1, 0) <= 0);
    close(idle);
    close(head);
    close(body);
    stop_server(NULL);
}

static void connections_over_the_limit_wait_until_one_closes(void **state)
{
    (void)state;
    weft_http_server_config_t config = base_config();
    config.max_connections = 2;
    start_server(&config);
    int fds[6];
    for (int i = 0; i < 6; i++) {
        fds[i] = dial();
        send_text(fds[i], "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    for (int i = 0; i < 6; i++) {
        assert_contains(read_until(fds[i], "\r\n\r\n"), "200 OK");
        close(fds[i]);
    }
    stop_server(NULL);
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
        fds[i] = dial();
        if (i % 2 == 0) {
            send_text(fds[i], "GET /park?stream=1 HTTP/1.1\r\nHost: h\r\n\r\n");
        }
    }
    wait_for(&n_parked, 1000);
    const int fd = dial();
    send_text(fd, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_contains(read_until(fd, "\r\n\r\n"), "200 OK");
    close(fd);
    for (int i = 0; i < 2000; i++) {
        if (i % 2 == 0) {
            assert_contains(read_until(fds[i], "first\n\r\n"), "200 OK");
        }
        close(fds[i]);
    }
    wait_for(&n_hung_up, 1000);
}

static void stop_listening_refuses_new_peers_and_closes_after_answers(void **state)
{
    (void)state;
    const int fd = dial();
    const int parked = dial();
    send_text(parked, "GET /park HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_for(&n_parked, 1);
    send_text(fd, "GET /stop HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_contains(read_until(fd, NULL), "Connection: close\r\n");
    close(fd);
    const struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int late = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(late, (const struct sockaddr *)&address, sizeof(address)), -1);
    assert_int_equal(errno, ECONNREFUSED);
    close(late);
    assert_int_equal(atomic_load(&n_hung_up), 0);
    close(parked);
    wait_for(&n_hung_up, 1);
}

static void destroy_hangs_up_on_those_who_wait(void **state)
{
    (void)state;
    start_default(NULL);
    const int a = dial();
    const int b = dial();
    send_text(a, "GET /park HTTP/1.1\r\nHost: h\r\n\r\n");
    send_text(b, "GET /park?stream=1 HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_for(&n_parked, 2);
    stop_server(NULL);
    assert_int_equal(atomic_load(&n_hung_up), 2);
    close(a);
    close(b);
}

static void a_taken_port_and_a_strange_host_are_named(void **state)
{
    (void)state;
    weft_http_server_config_t config = base_config();
    weft_http_server_t *second = NULL;
    weft_diag_t diag = {0};
    char expected[96];
    config.port = port;
    assert_status(weft_http_server_start(loop, &config, &diag, &second), WEFT_ERR_IN_USE);
    snprintf(expected, sizeof(expected), "port %u of 127.0.0.1 is taken by another program", port);
    assert_string_equal(diag.text, expected);
    config.host = "no such host";
    assert_status(weft_http_server_start(loop, &config, &diag, &second), WEFT_ERR_NOT_FOUND);
    assert_contains(diag.text, "host \"no such host\": ");
    config.host = "192.0.2.1"; /* TEST-NET-1, nobody's */
    config.port = 0;
    assert_status(weft_http_server_start(loop, &config, &diag, &second), WEFT_ERR_NOT_FOUND);
    assert_string_equal(diag.text, "192.0.2.1 is not an address of this machine");
    config.tls_cert = "/nowhere";
    assert_status(weft_http_server_start(loop, &config, &diag, &second), WEFT_ERR_INVALID);
    config.tls_key = "/nowhere";
    assert_status(weft_http_server_start(loop, &config, &diag, &second), WEFT_ERR_NOT_FOUND);
    assert_string_equal(diag.text, "/nowhere: No such file or directory");
    assert_null(second);
}

static void every_allocation_of_a_request_may_fail(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        bool is_through = false;
        for (uint64_t n = 1; !is_through; n++) {
            weft_alloc_fail_nth(n);
            const int fd = dial();
            send_text(fd, kind == 0 ? "POST /later HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
                                      "Content-Length: 5\r\n\r\nhello"
                                    : "GET /stream?n=3 HTTP/1.1\r\nHost: h\r\n"
                                      "Connection: close\r\n\r\n");
            read_until(fd, NULL);
            is_through = weft_alloc_fail_nth(0) < n;
            if (is_through) {
                assert_contains(answer, kind == 0 ? "\r\n\r\nhello" : "piece\n");
            }
            close(fd);
            assert_true(n < 100);
        }
    }
}

static void every_allocation_of_a_start_may_fail(void **state)
{
    (void)state;
    const weft_http_server_config_t config = base_config();
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

static void names_and_ipv6_are_listened_on(void **state)
{
    (void)state;
    static const char *const hosts[] = {"localhost", "::", "::1", "0.0.0.0"};
    weft_loop_t *other = NULL;
    assert_status(weft_loop_create(&other), WEFT_OK);
    for (size_t i = 0; i < sizeof(hosts) / sizeof(hosts[0]); i++) {
        weft_http_server_config_t config = base_config();
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

#define SERVER_TEST(test) cmocka_unit_test_setup_teardown(test, start_default, stop_server)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SERVER_TEST(what_was_asked_reaches_the_handler),
        SERVER_TEST(a_connection_serves_many_requests_also_pipelined),
        SERVER_TEST(chunked_bodies_are_put_together),
        SERVER_TEST(a_stream_arrives_in_pieces_and_ends),
        SERVER_TEST(a_peer_that_hangs_up_is_noticed_unanswered_and_streaming),
        SERVER_TEST(a_peer_that_does_not_read_is_noticed_too),
        SERVER_TEST(a_peer_that_ends_with_its_request_is_answered_or_closed),
        SERVER_TEST(a_body_over_the_limit_gets_a_413_and_is_not_kept),
        SERVER_TEST(a_body_at_the_limit_is_taken),
        SERVER_TEST(headers_over_the_limit_get_a_431),
        SERVER_TEST(what_is_not_http_is_refused),
        cmocka_unit_test(a_connection_that_trickles_is_closed),
        cmocka_unit_test(connections_over_the_limit_wait_until_one_closes),
        SERVER_TEST(a_thousand_idle_and_a_thousand_streams_fit_on_the_loop),
        SERVER_TEST(stop_listening_refuses_new_peers_and_closes_after_answers),
        cmocka_unit_test(destroy_hangs_up_on_those_who_wait),
        SERVER_TEST(a_taken_port_and_a_strange_host_are_named),
        SERVER_TEST(names_and_ipv6_are_listened_on),
        SERVER_TEST(every_allocation_of_a_request_may_fail),
        cmocka_unit_test(every_allocation_of_a_start_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
