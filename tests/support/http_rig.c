/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/http_rig.h"

#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>

/* ---- the server's thread --------------------------------------------------------------------- */

typedef struct later {
    http_rig_t *rig;
    weft_http_exchange_t *exchange;
    weft_loop_timer_t *timer;
    int pieces; /* left; 0: a whole answer */
    bool is_stream;
} later_t;

static void free_later(later_t *later)
{
    weft_loop_timer_destroy(later->timer);
    free(later);
}

static void on_hangup(weft_http_exchange_t *exchange, void *user)
{
    http_rig_t *rig = user;
    (void)exchange;
    tally_add(&rig->hung_up);
}

static void on_hangup_later(weft_http_exchange_t *exchange, void *user)
{
    later_t *later = user;
    on_hangup(exchange, later->rig);
    free_later(later);
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
    free_later(later);
}

static void answer_later(http_rig_t *rig, weft_http_exchange_t *exchange, int pieces)
{
    later_t *later = calloc(1, sizeof(*later));
    *later = (later_t){.rig = rig, .exchange = exchange, .pieces = pieces, .is_stream = pieces > 0};
    if (weft_loop_timer_create(rig->loop, on_later, later, &later->timer) < 0) {
        free(later);
        weft_http_respond(exchange, 503, "text/plain", NULL, 0, "", 0);
        return;
    }
    weft_loop_timer_set(later->timer, 0);
    weft_http_on_hangup(exchange, on_hangup_later, later);
    if (later->is_stream) {
        weft_http_stream_begin(exchange, 200, "text/event-stream", NULL, 0);
    }
}

static void park(http_rig_t *rig, weft_http_exchange_t *exchange)
{
    if (weft_http_query(exchange, "stream") != NULL) {
        weft_http_stream_begin(exchange, 200, "text/event-stream", NULL, 0);
        weft_http_stream_write(exchange, "first\n", 6);
    }
    weft_http_on_hangup(exchange, on_hangup, rig);
    tally_add(&rig->parked);
}

/* Fills what the system will take and then our memory, until the peer hangs up. */
static void flood(http_rig_t *rig, weft_http_exchange_t *exchange)
{
    static const char block[65536] = {'x'};
    weft_http_on_hangup(exchange, on_hangup, rig);
    weft_http_stream_begin(exchange, 200, "text/plain", NULL, 0);
    for (size_t sent = 0; sent < HTTP_RIG_FLOOD_BYTES; sent += sizeof(block)) {
        weft_http_stream_write(exchange, block, sizeof(block));
    }
    atomic_store(&rig->pending, weft_http_stream_pending(exchange));
    tally_add(&rig->parked);
}

static void handle(void *user, weft_http_exchange_t *exchange)
{
    const char *path = weft_http_path(exchange);
    http_rig_t *rig = user;
    if (strcmp(path, "/later") == 0) {
        answer_later(rig, exchange, 0);
    } else if (strcmp(path, "/stream") == 0) {
        answer_later(rig, exchange, atoi(weft_http_query(exchange, "n")));
    } else if (strcmp(path, "/park") == 0) {
        park(rig, exchange);
    } else if (strcmp(path, "/flood") == 0) {
        flood(rig, exchange);
    } else if (strcmp(path, "/stop") == 0) {
        weft_http_server_stop_listening(rig->server);
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

/* ---- life ------------------------------------------------------------------------------------ */

weft_http_server_config_t http_rig_config(http_rig_t *rig)
{
    return (weft_http_server_config_t){.host = "127.0.0.1",
                                       .max_body_bytes = HTTP_RIG_MAX_BODY,
                                       .max_connections = HTTP_RIG_MAX_CONNECTIONS,
                                       .idle_timeout_s = 60,
                                       .handle = handle,
                                       .reject = reject,
                                       .user = rig};
}

void http_rig_start(http_rig_t *rig, const weft_http_server_config_t *config)
{
    weft_diag_t diag = {0};
    tally_reset(&rig->parked);
    tally_reset(&rig->hung_up);
    assert_status(weft_loop_create(&rig->loop), WEFT_OK);
    assert_status(weft_http_server_start(rig->loop, config, &diag, &rig->server), WEFT_OK);
    rig->port = weft_http_server_port(rig->server);
    assert_true(rig->port > 0);
    assert_int_equal(pthread_create(&rig->thread, NULL, run_loop, rig->loop), 0);
}

void http_rig_stop(http_rig_t *rig)
{
    weft_loop_stop(rig->loop);
    pthread_join(rig->thread, NULL);
    weft_http_server_destroy(rig->server);
    weft_loop_destroy(rig->loop);
    assert_int_equal(weft_alloc_live_bytes(), 0);
}

/* ---- peers ----------------------------------------------------------------------------------- */

int http_rig_dial(const http_rig_t *rig)
{
    const struct timeval patience = {.tv_sec = 20}; /* less than the server's */
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(rig->port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

void http_rig_send(int fd, const void *bytes, size_t length)
{
    for (size_t sent = 0; sent < length;) {
        const ssize_t n = send(fd, (const char *)bytes + sent, length - sent, MSG_NOSIGNAL);
        if (n <= 0) {
            return;
        }
        sent += (size_t)n;
    }
}

void http_rig_say(int fd, const char *text)
{
    http_rig_send(fd, text, strlen(text));
}

const char *http_rig_hear(http_rig_t *rig, int fd, const char *tail)
{
    char *answer = rig->answer;
    size_t length = 0;
    answer[0] = '\0';
    while (length + 1 < sizeof(rig->answer)) {
        const ssize_t n = recv(fd, answer + length, sizeof(rig->answer) - 1 - length, 0);
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

void http_rig_contains(const char *text, const char *part)
{
    if (strstr(text, part) == NULL) {
        fail_msg("\"%s\" is not in \"%.2000s\"", part, text);
    }
}
