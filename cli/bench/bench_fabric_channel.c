/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_fabric_channel.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_MS (120 * 1000) /* filling and comparing gigabytes takes a while */

typedef struct head {
    uint32_t type;
    uint32_t n;
    uint64_t words[BENCH_FABRIC_WORDS];
} head_t;
static_assert(sizeof(head_t) == 72, "the wire's head");

/* ---- sockets --------------------------------------------------------------------------------- */

static weft_status_t find_address(const char *where, bool is_passive, weft_diag_t *diag,
                                  struct addrinfo **list_out)
{
    char host[256];
    const char *colon = strrchr(where, ':');
    if (colon == NULL || (size_t)(colon - where) >= sizeof(host)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s: should be HOST:PORT", where);
    }
    snprintf(host, sizeof(host), "%.*s", (int)(colon - where), where);
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
        .ai_flags = is_passive ? AI_PASSIVE : 0,
    };
    const int failed = getaddrinfo(host[0] == '\0' ? NULL : host, colon + 1, &hints, list_out);
    return failed == 0 ? WEFT_OK
                       : weft_diag(diag, WEFT_ERR_NOT_FOUND, "%s: %s", where, gai_strerror(failed));
}

static weft_status_t fail_at(const char *where, int fd, weft_diag_t *diag)
{
    const weft_status_t status = weft_diag(diag, WEFT_ERR_IO, "%s: %s", where, strerror(errno));
    if (fd >= 0) {
        close(fd);
    }
    return status;
}

static void say_listening(int fd, const char *where)
{
    struct sockaddr_storage name;
    socklen_t length = sizeof(name);
    char port[NI_MAXSERV] = "?";
    if (getsockname(fd, (struct sockaddr *)&name, &length) == 0) {
        getnameinfo((struct sockaddr *)&name, length, NULL, 0, port, sizeof(port), NI_NUMERICSERV);
    }
    fprintf(stderr, "listening at %.*s:%s\n", (int)(strrchr(where, ':') - where), where, port);
}

weft_status_t bench_fabric_channel_listen(const char *where, weft_diag_t *diag, int *fd_out)
{
    struct addrinfo *list;
    const weft_status_t status = find_address(where, true, diag, &list);
    if (status < 0) {
        return status;
    }
    const int yes = 1;
    const int fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool is_bound = fd >= 0 &&
                          setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) == 0 &&
                          bind(fd, list->ai_addr, list->ai_addrlen) == 0 && listen(fd, 1) == 0;
    freeaddrinfo(list);
    if (!is_bound) {
        return fail_at(where, fd, diag);
    }
    say_listening(fd, where);
    const int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    if (accepted < 0) {
        return fail_at(where, fd, diag);
    }
    close(fd);
    *fd_out = accepted;
    return WEFT_OK;
}

weft_status_t bench_fabric_channel_connect(const char *where, weft_diag_t *diag, int *fd_out)
{
    struct addrinfo *list;
    const weft_status_t status = find_address(where, false, diag, &list);
    if (status < 0) {
        return status;
    }
    const int fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool is_connected = fd >= 0 && connect(fd, list->ai_addr, list->ai_addrlen) == 0;
    freeaddrinfo(list);
    if (!is_connected) {
        return fail_at(where, fd, diag);
    }
    *fd_out = fd;
    return WEFT_OK;
}

void bench_fabric_channel_host(int fd, char *host, size_t size)
{
    struct sockaddr_storage name;
    socklen_t length = sizeof(name);
    host[0] = '\0';
    if (getsockname(fd, (struct sockaddr *)&name, &length) == 0 && name.ss_family != AF_UNIX) {
        getnameinfo((struct sockaddr *)&name, length, host, (socklen_t)size, NULL, 0,
                    NI_NUMERICHOST);
    }
}

/* ---- messages -------------------------------------------------------------------------------- */

static weft_status_t write_all(int fd, const void *data, size_t n)
{
    const char *at = data;
    while (n > 0) {
        const ssize_t sent = send(fd, at, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent <= 0) {
            return WEFT_ERR_PEER_GONE;
        }
        at += sent;
        n -= (size_t)sent;
    }
    return WEFT_OK;
}

static weft_status_t read_all(int fd, int timeout_ms, void *data, size_t n)
{
    char *at = data;
    while (n > 0) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        const int ready = poll(&wait, 1, timeout_ms);
        if (ready == 0) {
            return WEFT_ERR_TIMEOUT;
        }
        const ssize_t got = ready < 0 ? ready : recv(fd, at, n, 0);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return WEFT_ERR_PEER_GONE;
        }
        at += got;
        n -= (size_t)got;
    }
    return WEFT_OK;
}

weft_status_t bench_fabric_channel_send(int fd, bench_fabric_message_type_t type,
                                        const uint64_t *words, const void *bytes, size_t n)
{
    if (n > BENCH_FABRIC_MAX_BYTES) {
        return WEFT_ERR_TOO_LARGE;
    }
    head_t head = {.type = htole32(type), .n = htole32((uint32_t)n)};
    for (size_t i = 0; words != NULL && i < BENCH_FABRIC_WORDS; i++) {
        head.words[i] = htole64(words[i]);
    }
    const weft_status_t status = write_all(fd, &head, sizeof(head));
    return status < 0 ? status : write_all(fd, bytes, n);
}

weft_status_t bench_fabric_channel_receive(int fd, int timeout_ms, bench_fabric_message_t *message)
{
    head_t head;
    weft_status_t status = read_all(fd, timeout_ms, &head, sizeof(head));
    weft_buffer_clear(&message->bytes);
    if (status < 0) {
        return status;
    }
    message->type = le32toh(head.type);
    for (size_t i = 0; i < BENCH_FABRIC_WORDS; i++) {
        message->words[i] = le64toh(head.words[i]);
    }
    size_t left = le32toh(head.n);
    status = left > BENCH_FABRIC_MAX_BYTES ? WEFT_ERR_MALFORMED : WEFT_OK;
    while (status >= 0 && left > 0) {
        char chunk[4096];
        const size_t n = left < sizeof(chunk) ? left : sizeof(chunk);
        status = read_all(fd, ANSWER_MS, chunk, n);
        if (status >= 0) {
            weft_buffer_append(&message->bytes, chunk, n);
            left -= n;
        }
    }
    return status < 0 ? status : message->bytes.is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

/* The target's words, which come over a socket, are not trusted to be a status. */
static weft_status_t take_failure(const bench_fabric_message_t *answer, weft_diag_t *diag)
{
    const int64_t value = (int64_t)answer->words[0];
    const weft_status_t status =
        value < 0 && value > -100 ? (weft_status_t)value : WEFT_ERR_MALFORMED;
    return weft_diag(diag, status, "target: %.*s", (int)answer->bytes.length,
                     answer->bytes.length > 0 ? answer->bytes.data : "");
}

weft_status_t bench_fabric_channel_ask(int fd, bench_fabric_message_type_t type,
                                       const uint64_t *words, const void *bytes, size_t n,
                                       weft_diag_t *diag, bench_fabric_message_t *answer)
{
    weft_status_t status = bench_fabric_channel_send(fd, type, words, bytes, n);
    if (status >= 0) {
        status = bench_fabric_channel_receive(fd, ANSWER_MS, answer);
    }
    if (status < 0) {
        return weft_diag(diag, status, "the target's process: %s", weft_strerror(status));
    }
    if (answer->type == BENCH_FABRIC_FAILED) {
        return take_failure(answer, diag);
    }
    return answer->type == BENCH_FABRIC_DONE
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_MALFORMED, "target: unknown answer %u", answer->type);
}
