/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_http: the bytes of one connection to the HTTP server, which must close it in the end and
 * keep nothing of it. The first byte says where they are cut in two sends.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/http_server.h"

#define MAX_ROUNDS 100000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static weft_loop_t *loop;
static weft_http_server_t *server;
static weft_loop_timer_t *timer;
static int fd;
static int rounds;

static void answer(void *user)
{
    weft_http_exchange_t *exchange = user;
    size_t length = 0;
    const char *body = weft_http_body(exchange, &length);
    weft_http_respond(exchange, 200, "text/plain", NULL, 0, body, length);
}

static void on_hangup(weft_http_exchange_t *exchange, void *user)
{
    (void)exchange;
    (void)user;
}

static void handle(void *user, weft_http_exchange_t *exchange)
{
    (void)user;
    const char *path = weft_http_path(exchange);
    const char *query = weft_http_query(exchange, "q");
    (void)weft_http_header(exchange, "Authorization");
    if (query != NULL) { /* left waiting until the peer is seen to be gone */
        weft_http_on_hangup(exchange, on_hangup, NULL);
    } else if (strchr(path, 's') != NULL) {
        weft_http_stream_begin(exchange, 200, "text/plain", NULL, 0);
        weft_http_stream_write(exchange, path, strlen(path));
        weft_http_stream_end(exchange);
    } else if (strchr(path, 'l') != NULL) {
        weft_loop_post(loop, answer, exchange);
    } else {
        answer(exchange);
    }
}

/* Reads what comes; the loop runs until the server has closed. */
static void on_round(void *user)
{
    char bytes[4096];
    (void)user;
    const ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
        weft_loop_stop(loop);
    } else if (++rounds > MAX_ROUNDS) {
        abort();
    } else {
        weft_loop_timer_set(timer, 0);
    }
}

static void start(void)
{
    const weft_http_server_config_t config = {.host = "127.0.0.1",
                                              .max_body_bytes = 1000,
                                              .max_connections = 10,
                                              .idle_timeout_s = 30,
                                              .handle = handle};
    if (weft_loop_create(&loop) < 0 || weft_loop_timer_create(loop, on_round, NULL, &timer) < 0 ||
        weft_http_server_start(loop, &config, NULL, &server) < 0) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > 100000) {
        return 0;
    }
    if (server == NULL) {
        start();
    }
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_port = htons(weft_http_server_port(server)),
                                        .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const size_t cut = (size - 1) * data[0] / 256;
    rounds = 0;
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0) {
        abort();
    }
    (void)send(fd, data + 1, cut, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)send(fd, data + 1 + cut, size - 1 - cut, MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(fd, SHUT_WR);
    weft_loop_timer_set(timer, 0);
    weft_loop_run(loop);
    close(fd);
    return 0;
}
