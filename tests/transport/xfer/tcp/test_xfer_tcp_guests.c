/* SPDX-License-Identifier: Apache-2.0 */
/* What the tcp backend takes from strangers, from blobs and from its own parameters. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/support/check.h"
#include "tests/support/tcp_rig.h"

static xfer_tcp_address_t address_of(const tcp_rig_side_t *side)
{
    xfer_tcp_address_t address;
    xfer_tcp_host_t hosts[XFER_TCP_MAX_HOSTS];
    assert_status(
        xfer_tcp_wire_get_address(side->address.data, side->address.length, &address, hosts),
        WEFT_OK);
    return address;
}

static int call_far(const tcp_rig_t *rig)
{
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons(address_of(&rig->far).port),
                                   .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof(to)), 0);
    return fd;
}

/* Of a session of its own each time; in the machine's order. */
static xfer_tcp_hello_t good_hello(const tcp_rig_t *rig)
{
    static uint8_t number;
    xfer_tcp_hello_t hello = {.attempt = 1, .agent = "near", .session = {9, ++number}};
    const xfer_tcp_address_t address = address_of(&rig->far);
    memcpy(hello.token, address.token, sizeof(hello.token));
    return hello;
}

/* Sends, then reads until the port has closed; how much it answered. */
static size_t talk(tcp_rig_t *rig, const void *bytes, size_t n, void *answer, size_t max)
{
    const int fd = call_far(rig);
    uint8_t more[256];
    size_t got = 0;
    (void)send(fd, bytes, n, MSG_NOSIGNAL);
    for (;;) {
        tcp_rig_step(rig);
        const bool is_full = got == max;
        const ssize_t r = recv(fd, is_full ? more : (uint8_t *)answer + got,
                               is_full ? sizeof(more) : max - got, MSG_DONTWAIT);
        if (r == 0 || (r < 0 && errno != EAGAIN)) {
            break;
        }
        got += r > 0 && !is_full ? (size_t)r : 0;
    }
    close(fd);
    return got;
}

static xfer_tcp_welcome_t ask(tcp_rig_t *rig, const xfer_tcp_hello_t *hello)
{
    uint8_t answer[sizeof(xfer_tcp_welcome_t)];
    xfer_tcp_welcome_t welcome;
    assert_int_equal(talk(rig, hello, sizeof(*hello), answer, sizeof(answer)), sizeof(answer));
    assert_status(xfer_tcp_wire_get_welcome(answer, &welcome), WEFT_OK);
    return welcome;
}

static void strangers_are_sent_away_and_told_why_if_they_are_polite(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    uint8_t garbage[4096];
    uint8_t answer[1];
    tcp_rig_open(&rig, 4096, false);
    tcp_rig_fill(garbage, sizeof(garbage), 3);
    assert_int_equal(talk(&rig, garbage, sizeof(garbage), answer, sizeof(answer)), 0);

    xfer_tcp_hello_t hello = good_hello(&rig);
    hello.token[3] ^= 1;
    xfer_tcp_wire_put_hello(&hello);
    assert_int_equal(ask(&rig, &hello).verdict, XFER_TCP_STRANGER);

    hello = good_hello(&rig);
    xfer_tcp_wire_put_hello(&hello);
    hello.version = XFER_TCP_VERSION + 1;
    assert_int_equal(ask(&rig, &hello).verdict, XFER_TCP_OTHER_VERSION);

    hello = good_hello(&rig);
    hello.flags = XFER_TCP_IS_RESUMED;
    xfer_tcp_wire_put_hello(&hello);
    assert_int_equal(ask(&rig, &hello).verdict, XFER_TCP_FORGOTTEN);

    hello = good_hello(&rig);
    xfer_tcp_wire_put_hello(&hello);
    hello.keep_ms++; /* damaged */
    assert_int_equal(talk(&rig, &hello, sizeof(hello), answer, sizeof(answer)), 0);
    tcp_rig_check(&rig);
    tcp_rig_close(&rig);
}

/* Behind a good hello a frame that claims body_bytes of body, of which n are there. */
static void send_frame(tcp_rig_t *rig, xfer_tcp_frame_t frame, const void *body, size_t n)
{
    uint8_t bytes[1024];
    uint8_t answer[sizeof(xfer_tcp_welcome_t)];
    uint8_t *claimed = weft_zalloc((size_t)frame.body_bytes + 1, "test.body");
    xfer_tcp_hello_t hello = good_hello(rig);
    assert_non_null(claimed);
    if (n > 0) {
        memcpy(claimed, body, n);
    }
    xfer_tcp_wire_put_hello(&hello);
    xfer_tcp_wire_put_frame(&frame, claimed);
    memcpy(bytes, &hello, sizeof(hello));
    memcpy(bytes + sizeof(hello), &frame, sizeof(frame));
    memcpy(bytes + sizeof(hello) + sizeof(frame), claimed, n);
    (void)talk(rig, bytes, sizeof(hello) + sizeof(frame) + n, answer, sizeof(answer));
    weft_free(claimed);
}

static void frames_that_claim_too_much_end_their_connection(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_open(&rig, 4096, false);
    const xfer_tcp_piece_t piece = {.bytes = 16};
    const xfer_tcp_frame_t wrong[] = {
        {.kind = 0},
        {.kind = 99},
        {.kind = XFER_TCP_READ, .slice = XFER_TCP_MAX_SLICES},
        {.kind = XFER_TCP_READ, .payload_bytes = XFER_TCP_MAX_SLICE + 1},
        {.kind = XFER_TCP_READ, .payload_bytes = 17, .body_bytes = sizeof(piece)},
        {.kind = XFER_TCP_READ, .flags = XFER_TCP_HAS_GUARD, .body_bytes = sizeof(piece)},
        {.kind = XFER_TCP_WRITE, .flags = XFER_TCP_HAS_GUARD, .body_bytes = sizeof(piece)},
        {.kind = XFER_TCP_READ, .body_bytes = (XFER_TCP_MAX_PIECES + 1) * sizeof(piece)},
        {.kind = XFER_TCP_NOTIFY, .body_bytes = XFER_TCP_MAX_BODY + 1},
        {.kind = XFER_TCP_NOTIFY, .sequence = 2},
        {.kind = XFER_TCP_DATA},
        {.kind = XFER_TCP_WRITTEN},
        {.kind = XFER_TCP_CANCEL, .payload_bytes = 1},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(wrong); i++) {
        const bool has_piece = wrong[i].body_bytes == sizeof(piece);
        send_frame(&rig, wrong[i], &piece, has_piece ? sizeof(piece) : 0);
    }
    assert_int_equal(rig.far.n_notes, 0);
    tcp_rig_check(&rig);
    tcp_rig_close(&rig);
}

static void many_that_say_nothing_do_no_harm(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    int fds[200];
    tcp_rig_open(&rig, 100000, false);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fds); i++) {
        fds[i] = call_far(&rig);
        if (i % 3 == 0) { /* the beginning of a hello */
            assert_int_equal(send(fds[i], XFER_TCP_MAGIC, 8, MSG_NOSIGNAL), 8);
        }
        tcp_rig_step(&rig);
    }
    tcp_rig_check(&rig);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fds); i++) {
        close(fds[i]);
    }
    tcp_rig_check(&rig);
    tcp_rig_close(&rig);
}

static void a_later_connection_of_a_link_ends_the_one_before(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    uint8_t byte;
    tcp_rig_open(&rig, 4096, false);
    xfer_tcp_hello_t first = good_hello(&rig);
    xfer_tcp_hello_t second = first;
    second.attempt = 2;
    xfer_tcp_wire_put_hello(&first);
    xfer_tcp_wire_put_hello(&second);
    const int fds[2] = {call_far(&rig), call_far(&rig)};
    assert_int_equal(send(fds[0], &first, sizeof(first), MSG_NOSIGNAL), sizeof(first));
    tcp_rig_steps(&rig, 100);
    assert_int_equal(send(fds[1], &second, sizeof(second), MSG_NOSIGNAL), sizeof(second));
    tcp_rig_steps(&rig, 100);
    while (recv(fds[0], &byte, 1, MSG_DONTWAIT) == 1) {
    }
    assert_int_equal(recv(fds[0], &byte, 1, MSG_DONTWAIT), 0); /* closed, the other is not */
    while (recv(fds[1], &byte, 1, MSG_DONTWAIT) == 1) {
    }
    assert_int_equal(recv(fds[1], &byte, 1, MSG_DONTWAIT), -1);
    assert_int_equal(ask(&rig, &first).verdict, XFER_TCP_FORGOTTEN); /* came too late */
    close(fds[0]);
    close(fds[1]);
    tcp_rig_close(&rig);
}

/* ---- blobs, parameters, memory ---------------------------------------------------------------- */

static void blobs_that_are_none_are_refused(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    xfer_link_t *link = NULL;
    void *import = NULL;
    uint8_t blob[512];
    tcp_rig_open(&rig, 4096, false);
    const size_t n = rig.far.address.length;
    assert_true(n < sizeof(blob));
    memcpy(blob, rig.far.address.data, n);
    for (size_t i = 0; i < n; i++) {
        assert_status(xfer_backend_tcp.connect(rig.near.port, "far", blob, i, &link),
                      WEFT_ERR_MALFORMED);
    }
    assert_status(xfer_backend_tcp.connect(rig.near.port, "far", blob, n + 1, &link),
                  WEFT_ERR_MALFORMED);
    blob[offsetof(xfer_tcp_address_t, version)]++;
    assert_status(xfer_backend_tcp.connect(rig.near.port, "far", blob, n, &link),
                  WEFT_ERR_UNSUPPORTED);
    const xfer_memory_t memory = {.addr = 4096, .bytes = 4096, .fd = -1};
    assert_status(xfer_backend_tcp.import(rig.link, &memory, blob, 7, &import), WEFT_ERR_MALFORMED);
    tcp_rig_close(&rig);
}

static void who_listens_to_its_own_machine_only_is_not_reached_from_another(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    xfer_link_t *link = NULL;
    uint8_t blob[512];
    tcp_rig_param(&rig.far, "host", "127.0.0.1");
    tcp_rig_open(&rig, 4096, false);
    tcp_rig_check(&rig);
    const size_t n = rig.far.address.length;
    memcpy(blob, rig.far.address.data, n);
    blob[offsetof(xfer_tcp_address_t, machine)]++;
    assert_status(xfer_backend_tcp.connect(rig.near.port, "far", blob, n, &link),
                  WEFT_ERR_UNSUPPORTED);
    tcp_rig_close(&rig);
}

static void parameters_that_make_no_sense_are_named(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"port", "65536"},      {"port", "x"},         {"checksum", "yes"},
        {"reconnect_ms", "0"},  {"slice_bytes", "-1"}, {"window_bytes", "1e6"},
        {"host", "not a host"},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(wrong); i++) {
        tcp_rig_t rig = {0};
        weft_diag_t diag = {0};
        xfer_port_t *port = NULL;
        tcp_rig_param(&rig.near, wrong[i][0], wrong[i][1]);
        const xfer_port_config_t config = tcp_rig_config(&rig.near, "near");
        assert_status(xfer_backend_tcp.open(&config, &diag, &port), WEFT_ERR_INVALID);
        assert_non_null(strstr(diag.text, wrong[i][0]));
    }
}

static void every_failed_allocation_is_survived(void **state)
{
    (void)state;
    xfer_extent_t extents[100];
    for (uint64_t n = 1;; n++) {
        tcp_rig_t rig = {0};
        tcp_rig_op_t op;
        tcp_rig_open(&rig, 200000, false);
        const size_t n_extents = tcp_rig_extents(&rig, 5, WEFT_ARRAY_LEN(extents), 900, extents);
        tcp_rig_op_init(&rig, &op, XFER_READ, extents, n_extents);
        op.op.notification = "note";
        op.op.notification_bytes = 4;
        (void)weft_alloc_fail_nth(n);
        const weft_status_t status = tcp_rig_run(&rig, &op);
        const uint64_t used = weft_alloc_fail_nth(0);
        assert_true(status == WEFT_OK || status == WEFT_ERR_NO_MEMORY);
        tcp_rig_close(&rig);
        if (used < n) {
            break;
        }
    }
}

static void a_port_that_cannot_be_had_leaves_nothing(void **state)
{
    (void)state;
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    for (uint64_t n = 1; status != WEFT_OK; n++) {
        tcp_rig_t rig = {0};
        weft_diag_t diag = {0};
        xfer_port_t *port = NULL;
        const size_t before = weft_alloc_live_bytes();
        const xfer_port_config_t config = tcp_rig_config(&rig.near, "near");
        (void)weft_alloc_fail_nth(n);
        status = xfer_backend_tcp.open(&config, &diag, &port);
        (void)weft_alloc_fail_nth(0);
        if (status == WEFT_OK) {
            xfer_backend_tcp.close(port);
        }
        assert_int_equal(weft_alloc_live_bytes(), before);
        assert_true(status == WEFT_OK || status == WEFT_ERR_NO_MEMORY);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strangers_are_sent_away_and_told_why_if_they_are_polite),
        cmocka_unit_test(frames_that_claim_too_much_end_their_connection),
        cmocka_unit_test(many_that_say_nothing_do_no_harm),
        cmocka_unit_test(a_later_connection_of_a_link_ends_the_one_before),
        cmocka_unit_test(blobs_that_are_none_are_refused),
        cmocka_unit_test(who_listens_to_its_own_machine_only_is_not_reached_from_another),
        cmocka_unit_test(parameters_that_make_no_sense_are_named),
        cmocka_unit_test(every_failed_allocation_is_survived),
        cmocka_unit_test(a_port_that_cannot_be_had_leaves_nothing),
    };
    weft_log_set_level(WEFT_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
