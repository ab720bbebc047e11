/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/tcp_rig.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

#define LIMIT_NS   (120 * WEFT_NS_PER_SECOND)
#define HELD_BYTES 65536

static const char *find_param(void *user, const char *key)
{
    const tcp_rig_side_t *side = user;
    for (int i = 0; i < TCP_RIG_MAX_PARAMS && side->params[i][0] != NULL; i++) {
        if (strcmp(side->params[i][0], key) == 0) {
            return side->params[i][1];
        }
    }
    return NULL;
}

static void on_notification(void *user, const char *peer, const void *data, size_t bytes)
{
    tcp_rig_side_t *side = user;
    uint32_t number = 0;
    assert_string_equal(peer, "near");
    assert_true(side->n_notes < TCP_RIG_MAX_NOTES);
    memcpy(&number, data, bytes < sizeof(number) ? bytes : sizeof(number));
    side->notes[side->n_notes++] = number;
    if (side->on_note != NULL) {
        side->on_note(side->note_user);
    }
}

static void on_link_lost(void *user, xfer_link_t *link)
{
    tcp_rig_side_t *side = user;
    (void)link;
    side->n_lost++;
}

static void on_checksum_error(void *user)
{
    tcp_rig_side_t *side = user;
    side->n_damages++;
}

void tcp_rig_param(tcp_rig_side_t *side, const char *key, const char *value)
{
    int i = 0;
    while (side->params[i][0] != NULL) {
        i++;
    }
    assert_true(i < TCP_RIG_MAX_PARAMS);
    side->params[i][0] = key;
    side->params[i][1] = value;
}

void tcp_rig_fill(uint8_t *memory, size_t bytes, uint64_t seed)
{
    test_random_t random = {seed};
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        const uint64_t word = test_random_u64(&random);
        memcpy(memory + i, &word, sizeof(word));
    }
}

xfer_port_config_t tcp_rig_config(tcp_rig_side_t *side, const char *name)
{
    return (xfer_port_config_t){.agent = name,
                                .param = find_param,
                                .on_notification = on_notification,
                                .on_link_lost = on_link_lost,
                                .on_checksum_error = on_checksum_error,
                                .user = side};
}

static void open_side(tcp_rig_side_t *side, const char *name, size_t bytes, uint64_t seed)
{
    const xfer_port_config_t config = tcp_rig_config(side, name);
    weft_diag_t diag = {0};
    assert_status(xfer_backend_tcp.open(&config, &diag, &side->port), WEFT_OK);
    side->bytes = bytes;
    side->memory = weft_alloc_aligned(4096, bytes, "test.memory");
    assert_non_null(side->memory);
    tcp_rig_fill(side->memory, bytes, seed);
    const xfer_memory_t memory = {.addr = (uintptr_t)side->memory, .bytes = bytes, .fd = -1};
    assert_status(xfer_backend_tcp.map(side->port, &memory, &side->region_blob, &side->region),
                  WEFT_OK);
    assert_status(xfer_backend_tcp.address(side->port, &side->address), WEFT_OK);
}

void tcp_rig_close_side(tcp_rig_side_t *side)
{
    if (side->port != NULL) {
        if (side->region != NULL) {
            xfer_backend_tcp.unmap(side->port, side->region);
        }
        xfer_backend_tcp.close(side->port);
    }
    weft_free(side->memory);
    weft_buffer_free(&side->region_blob);
    weft_buffer_free(&side->address);
    side->port = NULL;
    side->memory = NULL;
    side->region = NULL;
}

/* ---- relay ----------------------------------------------------------------------------------- */

static void relay_drop(tcp_rig_relay_t *relay)
{
    const struct linger hard = {1, 0};
    for (int i = 0; i < 2; i++) {
        if (relay->fds[i] >= 0) {
            (void)setsockopt(relay->fds[i], SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
            close(relay->fds[i]);
        }
        relay->fds[i] = -1;
        relay->n_held[i] = 0;
    }
}

static int loopback_socket(uint16_t number, bool listens)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(number), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    if (listens) {
        assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
        assert_int_equal(listen(fd, 16), 0);
    } else if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void relay_open(tcp_rig_relay_t *relay, uint16_t target)
{
    struct sockaddr_in address;
    socklen_t length = sizeof(address);
    relay->target = target;
    relay->fds[0] = relay->fds[1] = -1;
    relay->listener = loopback_socket(0, true);
    assert_int_equal(getsockname(relay->listener, (struct sockaddr *)&address, &length), 0);
    relay->number = ntohs(address.sin_port);
    for (int i = 0; i < 2; i++) {
        relay->held[i] = weft_alloc(HELD_BYTES, "test.relay");
        assert_non_null(relay->held[i]);
    }
}

static void relay_close(tcp_rig_relay_t *relay)
{
    relay_drop(relay);
    close(relay->listener);
    weft_free(relay->held[0]);
    weft_free(relay->held[1]);
}

/* A new connection replaces the one before: its other end is reset. */
static void relay_accept(tcp_rig_relay_t *relay)
{
    const int fd = relay->is_deaf ? -1 : accept4(relay->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
        return;
    }
    relay_drop(relay);
    relay->fds[0] = fd;
    relay->fds[1] = loopback_socket(relay->target, false);
    relay->n_connections++;
    if (relay->fds[1] < 0) {
        relay_drop(relay);
    }
}

static void damage(tcp_rig_way_t *way, uint8_t *bytes, size_t n)
{
    while (way->damage_at != 0 && way->damage_at < way->passed + n) {
        if (way->damage_at >= way->passed) {
            bytes[way->damage_at - way->passed] ^= 0x5a;
        }
        way->damage_at = way->damage_step != 0 ? way->damage_at + way->damage_step : 0;
    }
}

/* False: the connection is over. */
static bool relay_read(tcp_rig_relay_t *relay, int from)
{
    tcp_rig_way_t *way = &relay->ways[from];
    size_t max = HELD_BYTES - relay->n_held[from];
    if (way->hold_at != 0) {
        const uint64_t left = way->hold_at > way->passed ? way->hold_at - way->passed : 0;
        max = left < max ? (size_t)left : max;
    }
    if (max == 0) {
        return true;
    }
    uint8_t *to = relay->held[from] + relay->n_held[from];
    const ssize_t n = recv(relay->fds[from], to, max, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) {
        return true;
    }
    if (n <= 0) {
        return false;
    }
    damage(way, to, (size_t)n);
    relay->n_held[from] += (size_t)n;
    way->passed += (uint64_t)n;
    if (way->cut_at != 0 && way->passed >= way->cut_at) {
        way->cut_at = 0;
        return false;
    }
    return true;
}

static bool relay_write(tcp_rig_relay_t *relay, int from)
{
    if (relay->n_held[from] == 0) {
        return true;
    }
    const ssize_t n = send(relay->fds[1 - from], relay->held[from], relay->n_held[from],
                           MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0) {
        return errno == EAGAIN;
    }
    relay->n_held[from] -= (size_t)n;
    memmove(relay->held[from], relay->held[from] + n, relay->n_held[from]);
    return true;
}

static void relay_step(tcp_rig_relay_t *relay)
{
    struct timeval none = {0, 1};
    (void)setsockopt(relay->listener, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof(none));
    fd_set set;
    struct timeval zero = {0, 0};
    FD_ZERO(&set);
    FD_SET(relay->listener, &set);
    if (select(relay->listener + 1, &set, NULL, NULL, &zero) == 1) {
        relay_accept(relay);
    }
    for (int from = 0; from < 2 && relay->fds[0] >= 0; from++) {
        if (!relay_read(relay, from) || !relay_write(relay, from)) {
            relay_drop(relay);
        }
    }
}

/* ---- rig ------------------------------------------------------------------------------------- */

/* near shall know one way to far, through the relay or by loopback. */
static void rewrite_address(tcp_rig_t *rig, weft_buffer_t *out)
{
    xfer_tcp_host_t hosts[XFER_TCP_MAX_HOSTS];
    xfer_tcp_address_t address;
    assert_status(
        xfer_tcp_wire_get_address(rig->far.address.data, rig->far.address.length, &address, hosts),
        WEFT_OK);
    if (rig->has_relay) {
        relay_open(&rig->relay, address.port);
        address.port = rig->relay.number;
    }
    const xfer_tcp_host_t host = {.family = 4, .is_loopback = 1, .bytes = {127, 0, 0, 1}};
    address.n_hosts = 1;
    xfer_tcp_wire_put_address(&address);
    weft_buffer_append(out, &address, sizeof(address));
    weft_buffer_append(out, &host, sizeof(host));
}

void tcp_rig_open(tcp_rig_t *rig, size_t bytes, bool has_relay)
{
    weft_buffer_t address = {0};
    rig->has_relay = has_relay;
    open_side(&rig->near, "near", bytes, 1);
    if (rig->enter != NULL) {
        rig->enter(true);
    }
    open_side(&rig->far, "far", bytes, 2);
    if (rig->enter != NULL) {
        rig->enter(false);
        weft_buffer_append(&address, rig->far.address.data, rig->far.address.length);
    } else {
        rewrite_address(rig, &address);
    }
    assert_status(
        xfer_backend_tcp.connect(rig->near.port, "far", address.data, address.length, &rig->link),
        WEFT_OK);
    const xfer_memory_t memory = {.addr = (uintptr_t)rig->far.memory, .bytes = bytes, .fd = -1};
    assert_status(xfer_backend_tcp.import(rig->link, &memory, rig->far.region_blob.data,
                                          rig->far.region_blob.length, &rig->import),
                  WEFT_OK);
    weft_buffer_free(&address);
}

void tcp_rig_close(tcp_rig_t *rig)
{
    xfer_backend_tcp.disconnect(rig->link);
    xfer_backend_tcp.release(rig->near.port, rig->import);
    tcp_rig_close_side(&rig->near);
    tcp_rig_close_side(&rig->far);
    if (rig->has_relay) {
        relay_close(&rig->relay);
    }
}

void tcp_rig_step(tcp_rig_t *rig)
{
    (void)xfer_backend_tcp.progress(rig->near.port);
    if (rig->far.port != NULL) {
        (void)xfer_backend_tcp.progress(rig->far.port);
    }
    if (rig->has_relay) {
        relay_step(&rig->relay);
    }
}

void tcp_rig_until(tcp_rig_t *rig, bool (*is_done)(const void *user), const void *user)
{
    const uint64_t end = weft_clock_ns() + LIMIT_NS;
    while (!is_done(user)) {
        tcp_rig_step(rig);
        assert_true(weft_clock_ns() < end);
    }
}

static void on_op_end(xfer_op_t *base, weft_status_t status)
{
    tcp_rig_op_t *op = WEFT_CONTAINER(base, tcp_rig_op_t, op);
    op->n_ends++;
    op->status = status;
    if (op->on_end != NULL) {
        op->on_end(op);
    }
}

void tcp_rig_op_init(tcp_rig_t *rig, tcp_rig_op_t *op, xfer_direction_t direction,
                     const xfer_extent_t *extents, size_t n)
{
    *op = (tcp_rig_op_t){
        .status = WEFT_PENDING, .local_handles = {rig->near.region}, .peer_handles = {rig->import}};
    op->op.end = on_op_end;
    op->op.direction = direction;
    op->op.extents = extents;
    op->op.n_extents = n;
    op->op.local_handles = op->local_handles;
    op->op.peer_handles = op->peer_handles;
    op->op.guard_handle = rig->import;
    for (size_t i = 0; i < n; i++) {
        op->op.bytes += extents[i].bytes;
    }
}

void tcp_rig_steps(tcp_rig_t *rig, int n)
{
    for (int i = 0; i < n; i++) {
        tcp_rig_step(rig);
    }
}

typedef struct note_wait {
    const tcp_rig_t *rig;
    unsigned n;
} note_wait_t;

static bool has_notes(const void *user)
{
    const note_wait_t *wait = user;
    return wait->rig->far.n_notes >= wait->n;
}

void tcp_rig_wait_for_notes(tcp_rig_t *rig, unsigned n)
{
    const note_wait_t wait = {rig, n};
    tcp_rig_until(rig, has_notes, &wait);
    tcp_rig_steps(rig, 1000);
    assert_int_equal(rig->far.n_notes, n);
}

static bool has_ended(const void *user)
{
    return ((const tcp_rig_op_t *)user)->n_ends > 0;
}

void tcp_rig_wait_for_end(tcp_rig_t *rig, const tcp_rig_op_t *op)
{
    tcp_rig_until(rig, has_ended, op);
    assert_int_equal(op->n_ends, 1);
}

xfer_extent_t tcp_rig_all(const tcp_rig_t *rig)
{
    return (xfer_extent_t){.local = (uintptr_t)rig->near.memory,
                           .peer = (uintptr_t)rig->far.memory,
                           .bytes = rig->near.bytes};
}

weft_status_t tcp_rig_run(tcp_rig_t *rig, tcp_rig_op_t *op)
{
    op->n_ends = 0;
    xfer_backend_tcp.post(rig->link, &op->op);
    tcp_rig_wait_for_end(rig, op);
    return op->status;
}

size_t tcp_rig_extents(tcp_rig_t *rig, uint64_t seed, size_t max, uint32_t max_bytes,
                       xfer_extent_t *extents_out)
{
    test_random_t random = {seed};
    size_t n = 0;
    uint64_t local = test_random_below(&random, 100);
    uint64_t peer = test_random_below(&random, 100);
    while (n < max) {
        const uint64_t bytes = test_random_between(&random, 1, max_bytes);
        if (local + bytes > rig->near.bytes || peer + bytes > rig->far.bytes) {
            break;
        }
        extents_out[n++] = (xfer_extent_t){.local = (uintptr_t)rig->near.memory + local,
                                           .peer = (uintptr_t)rig->far.memory + peer,
                                           .bytes = bytes};
        /* Some touch on one side. */
        local += bytes +
                 (test_random_below(&random, 3) == 0 ? 0 : test_random_below(&random, max_bytes));
        peer += bytes +
                (test_random_below(&random, 3) == 0 ? 0 : test_random_below(&random, max_bytes));
    }
    /* In any order. */
    for (size_t i = n; i > 1; i--) {
        const size_t j = test_random_below(&random, (uint32_t)i);
        const xfer_extent_t swapped = extents_out[i - 1];
        extents_out[i - 1] = extents_out[j];
        extents_out[j] = swapped;
    }
    return n;
}

void tcp_rig_check(tcp_rig_t *rig)
{
    tcp_rig_op_t op;
    const xfer_extent_t all = tcp_rig_all(rig);
    tcp_rig_op_init(rig, &op, XFER_READ, &all, 1);
    assert_status(tcp_rig_run(rig, &op), WEFT_OK);
    assert_memory_equal(rig->near.memory, rig->far.memory, rig->near.bytes);
}

void tcp_rig_move_and_check(tcp_rig_t *rig, uint64_t seed, xfer_direction_t direction,
                            uint32_t max_bytes)
{
    tcp_rig_op_t op;
    const size_t max = 4096;
    xfer_extent_t *extents = weft_calloc(max, sizeof(*extents), "test.extents");
    tcp_rig_side_t *to = direction == XFER_READ ? &rig->near : &rig->far;
    uint8_t *expected = weft_alloc(to->bytes, "test.expected");
    assert_true(extents != NULL && expected != NULL);
    const size_t n = tcp_rig_extents(rig, seed, max, max_bytes, extents);
    memcpy(expected, to->memory, to->bytes);
    for (size_t i = 0; i < n; i++) {
        const uint64_t from = direction == XFER_READ ? extents[i].peer : extents[i].local;
        const uint64_t at = direction == XFER_READ ? extents[i].local : extents[i].peer;
        memcpy(expected + (at - (uintptr_t)to->memory), (const void *)(uintptr_t)from,
               extents[i].bytes);
    }
    tcp_rig_op_init(rig, &op, direction, extents, n);
    assert_status(tcp_rig_run(rig, &op), WEFT_OK);
    assert_memory_equal(expected, to->memory, to->bytes);
    weft_free(expected);
    weft_free(extents);
}
