/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_xfer_tcp: what a peer sends to the tcp backend's port, which must end the connection and go on.
 * The first byte says how the rest is meant:
 *     0  as it is
 *     1  behind a good hello
 *     2  behind a good hello, as frames whose sums are right: see put_frames
 *     3  a blob, to connect to
 *     4  answers: a link has connected to us and gets a good welcome, then frames
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "transport/xfer/tcp/xfer_tcp_wire.h"
#include "transport/xfer/xfer_backend.h"

#define MAX_ROUNDS   100000
#define MEMORY_BYTES 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static xfer_port_t *port;
static void *region;
static uint8_t memory[MEMORY_BYTES];
static xfer_tcp_address_t address;

static void on_notification(void *user, const char *peer, const void *data, size_t bytes)
{
    (void)user;
    (void)peer;
    if (bytes > XFER_MAX_NOTIFICATION || (bytes > 0 && data == NULL)) {
        abort();
    }
}

static void on_end(xfer_op_t *op, weft_status_t status)
{
    (void)status;
    op->words[0] = 1;
}

static void start(void)
{
    const xfer_port_config_t config = {.agent = "fuzz", .on_notification = on_notification};
    const xfer_memory_t all = {.addr = (uintptr_t)memory, .bytes = MEMORY_BYTES, .fd = -1};
    xfer_tcp_host_t hosts[XFER_TCP_MAX_HOSTS];
    weft_buffer_t out = {0};
    weft_log_set_level(WEFT_LOG_ERROR);
    if (xfer_backend_tcp.open(&config, NULL, &port) < 0 ||
        xfer_backend_tcp.map(port, &all, &out, &region) < 0) {
        abort();
    }
    weft_buffer_clear(&out);
    if (xfer_backend_tcp.address(port, &out) < 0 ||
        xfer_tcp_wire_get_address(out.data, out.length, &address, hosts) < 0) {
        abort();
    }
    weft_buffer_free(&out);
}

static void put_hello(weft_buffer_t *out)
{
    static uint64_t n;
    xfer_tcp_hello_t hello = {.attempt = 1, .flags = XFER_TCP_WANTS_SUMS, .agent = "guest"};
    n++;
    memcpy(hello.session, &n, sizeof(n));
    memcpy(hello.token, address.token, sizeof(hello.token));
    xfer_tcp_wire_put_hello(&hello);
    weft_buffer_append(out, &hello, sizeof(hello));
}

/* kind flags priority slice sequence status, 2 bytes length of body, 2 of payload; body; payload. */
static void put_frames(weft_buffer_t *out, const uint8_t *data, size_t size)
{
    while (size >= 10) {
        const size_t left = size - 10;
        const size_t body_bytes = (size_t)(data[6] | data[7] << 8) % (left + 1);
        const size_t payload_bytes = (size_t)(data[8] | data[9] << 8) % (left - body_bytes + 1);
        const bool has_payload = data[0] == XFER_TCP_WRITE || data[0] == XFER_TCP_DATA;
        const uint8_t *payload = data + 10 + body_bytes;
        xfer_tcp_frame_t frame = {.kind = data[0],
                                  .flags = data[1],
                                  .priority = data[2],
                                  .status = (int8_t)data[5],
                                  .slice = data[3],
                                  .body_bytes = (uint32_t)body_bytes,
                                  .payload_bytes = (uint32_t)payload_bytes,
                                  .sequence = data[4]};
        xfer_tcp_trailer_t trailer = {.payload_sum = weft_crc32c(0, payload, payload_bytes),
                                      .slice = data[3],
                                      .status = (int8_t)data[5]};
        xfer_tcp_wire_put_frame(&frame, data + 10);
        xfer_tcp_wire_put_trailer(&trailer);
        weft_buffer_append(out, &frame, sizeof(frame));
        weft_buffer_append(out, data + 10, body_bytes);
        if (has_payload) {
            weft_buffer_append(out, payload, payload_bytes);
            weft_buffer_append(out, &trailer, sizeof(trailer));
        }
        const size_t used = 10 + body_bytes + (has_payload ? payload_bytes : 0);
        data += used;
        size -= used;
    }
}

static int open_socket(struct sockaddr_in *to)
{
    to->sin_family = AF_INET;
    to->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        abort();
    }
    return fd;
}

/* Sends all, then reads until the port has closed. */
static void talk(const weft_buffer_t *out)
{
    struct sockaddr_in to = {.sin_port = htons(address.port)};
    const int fd = open_socket(&to);
    uint8_t answer[4096];
    size_t sent = 0;
    ssize_t n = 1;
    if (connect(fd, (const struct sockaddr *)&to, sizeof(to)) != 0) {
        abort();
    }
    for (int round = 0; n > 0 || (n < 0 && errno == EAGAIN); round++) {
        if (round > MAX_ROUNDS) {
            abort();
        }
        if (sent < out->length) {
            const ssize_t s =
                send(fd, out->data + sent, out->length - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
            sent += s > 0 ? (size_t)s : 0;
            sent = s < 0 && errno != EAGAIN ? out->length : sent;
        } else {
            shutdown(fd, SHUT_WR);
        }
        (void)xfer_backend_tcp.progress(port);
        n = recv(fd, answer, sizeof(answer), MSG_DONTWAIT);
    }
    close(fd);
}

static void connect_to_blob(const uint8_t *data, size_t size)
{
    xfer_link_t *link = NULL;
    if (xfer_backend_tcp.connect(port, "peer", data, size, &link) == WEFT_OK) {
        xfer_backend_tcp.disconnect(link);
    }
}

/* A link of the port connects to us. */
static void answer_link(const uint8_t *data, size_t size)
{
    struct sockaddr_in here = {0};
    const int listener = open_socket(&here);
    socklen_t length = sizeof(here);
    if (bind(listener, (const struct sockaddr *)&here, sizeof(here)) != 0 ||
        listen(listener, 1) != 0 || getsockname(listener, (struct sockaddr *)&here, &length) != 0) {
        abort();
    }
    const xfer_tcp_host_t host = {.family = 4, .is_loopback = 1, .bytes = {127, 0, 0, 1}};
    xfer_tcp_address_t to = address;
    weft_buffer_t blob = {0};
    weft_buffer_t out = {0};
    to.port = ntohs(here.sin_port);
    to.n_hosts = 1;
    xfer_tcp_wire_put_address(&to);
    weft_buffer_append(&blob, &to, sizeof(to));
    weft_buffer_append(&blob, &host, sizeof(host));

    xfer_tcp_welcome_t welcome = {.flags = XFER_TCP_WANTS_SUMS};
    xfer_tcp_wire_put_welcome(&welcome);
    weft_buffer_append(&out, &welcome, sizeof(welcome));
    put_frames(&out, data, size);

    xfer_link_t *link = NULL;
    void *import = NULL;
    uint8_t local[256];
    xfer_tcp_region_blob_t described = {.region = 0};
    const xfer_memory_t theirs = {.addr = 0, .bytes = 1 << 20, .fd = -1};
    const xfer_memory_t ours = {.addr = (uintptr_t)local, .bytes = sizeof(local), .fd = -1};
    weft_buffer_t told = {0};
    void *map = NULL;
    xfer_tcp_wire_put_region(&described);
    if (xfer_backend_tcp.map(port, &ours, &told, &map) < 0 ||
        xfer_backend_tcp.connect(port, "peer", blob.data, blob.length, &link) < 0 ||
        xfer_backend_tcp.import(link, &theirs, &described, sizeof(described), &import) < 0) {
        abort();
    }
    const xfer_extent_t extents[2] = {{.local = (uintptr_t)local, .peer = 0, .bytes = 100},
                                      {.local = (uintptr_t)local + 100, .peer = 500, .bytes = 8}};
    void *maps[1] = {map};
    void *handles[1] = {import};
    xfer_op_t ops[2] = {{.direction = XFER_READ, .end = on_end},
                        {.direction = XFER_WRITE, .end = on_end}};
    memset(local, 0, sizeof(local));
    for (int i = 0; i < 2; i++) {
        ops[i].extents = extents;
        ops[i].n_extents = 2;
        ops[i].bytes = 108;
        ops[i].local_handles = maps;
        ops[i].peer_handles = handles;
        ops[i].notification = "end";
        ops[i].notification_bytes = 3;
        xfer_backend_tcp.post(link, &ops[i]);
    }
    (void)xfer_backend_tcp.progress(port);
    const int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    (void)send(fd, out.data, out.length, MSG_NOSIGNAL | MSG_DONTWAIT);
    for (int i = 0; i < 20; i++) {
        (void)xfer_backend_tcp.progress(port);
    }
    close(fd);
    close(listener);
    (void)xfer_backend_tcp.progress(port);
    xfer_backend_tcp.disconnect(link);
    xfer_backend_tcp.release(port, import);
    xfer_backend_tcp.unmap(port, map);
    weft_buffer_free(&told);
    weft_buffer_free(&blob);
    weft_buffer_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    weft_buffer_t out = {0};
    if (port == NULL) {
        start();
    }
    if (size == 0 || size > 100000) {
        return 0;
    }
    const unsigned mode = data[0] % 5;
    if (mode == 3) {
        connect_to_blob(data + 1, size - 1);
    } else if (mode == 4) {
        answer_link(data + 1, size - 1);
    } else {
        if (mode > 0) {
            put_hello(&out);
        }
        if (mode == 2) {
            put_frames(&out, data + 1, size - 1);
        } else {
            weft_buffer_append(&out, data + 1, size - 1);
        }
        talk(&out);
    }
    weft_buffer_free(&out);
    return 0;
}
