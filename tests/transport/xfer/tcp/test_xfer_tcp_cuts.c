/* SPDX-License-Identifier: Apache-2.0 */
/* What the tcp backend does about connections that are cut, bytes that are damaged, peers that die. */
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "tests/support/check.h"
#include "tests/support/random.h"
#include "tests/support/tcp_rig.h"

#define MEMORY_BYTES ((size_t)8 << 20)
#define MAX_EXTENTS  4096

static xfer_extent_t extents[MAX_EXTENTS];

/* Another cut somewhere in the next `within` bytes of each way that has none before it. */
static void plan_cuts(tcp_rig_t *rig, test_random_t *random, uint32_t within, unsigned *left)
{
    for (int i = 0; i < 2; i++) {
        tcp_rig_way_t *way = &rig->relay.ways[i];
        if (way->cut_at == 0 && *left > 0) {
            --*left;
            way->cut_at = way->passed + 1 + test_random_below(random, within);
        }
    }
}

static void assert_moved(size_t n)
{
    for (size_t i = 0; i < n; i++) {
        assert_memory_equal((void *)(uintptr_t)extents[i].local, (void *)(uintptr_t)extents[i].peer,
                            extents[i].bytes);
    }
}

static void what_was_cut_goes_on_and_notifies_once(void **state)
{
    (void)state;
    const uint64_t seed = test_seed(weft_clock_ns());
    const uint32_t rounds = test_rounds(200);
    for (uint32_t round = 0; round < rounds; round++) {
        test_random_t random = {seed + round};
        tcp_rig_t rig = {0};
        tcp_rig_op_t op;
        unsigned cuts_left = 12;
        const uint32_t number = 77;
        tcp_rig_open(&rig, MEMORY_BYTES, true);
        const size_t n = tcp_rig_extents(&rig, seed + round, MAX_EXTENTS, 9000, extents);
        tcp_rig_op_init(&rig, &op, round % 2 == 0 ? XFER_READ : XFER_WRITE, extents, n);
        op.op.notification = &number;
        op.op.notification_bytes = sizeof(number);
        xfer_backend_tcp.post(rig.link, &op.op);
        while (op.n_ends == 0) {
            plan_cuts(&rig, &random, 1 << 20, &cuts_left);
            tcp_rig_step(&rig);
        }
        assert_int_equal(op.n_ends, 1);
        assert_status(op.status, WEFT_OK);
        assert_true(rig.relay.n_connections > 1);
        assert_moved(n);
        tcp_rig_wait_for_notes(&rig, 1);
        assert_int_equal(rig.near.n_lost, 0);
        tcp_rig_close(&rig);
    }
}

static void an_operation_goes_on_at_what_is_missing_and_counts_its_cuts(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t op;
    tcp_rig_param(&rig.near, "window_bytes", "524288");
    tcp_rig_open(&rig, MEMORY_BYTES, true);
    rig.relay.ways[1].cut_at = 6 << 20;
    const xfer_extent_t all = tcp_rig_all(&rig);
    tcp_rig_op_init(&rig, &op, XFER_READ, &all, 1);
    assert_status(tcp_rig_run(&rig, &op), WEFT_OK);
    assert_int_equal(op.op.resumed, 1);
    assert_memory_equal(rig.near.memory, rig.far.memory, MEMORY_BYTES);
    assert_true(rig.relay.ways[1].passed < MEMORY_BYTES + (1 << 20));
    tcp_rig_close(&rig);
}

static void notifications_survive_cuts_each_exactly_once(void **state)
{
    (void)state;
    test_random_t random = {test_seed(weft_clock_ns())};
    tcp_rig_t rig = {0};
    const uint32_t n = 2000;
    unsigned cuts_left = 40;
    tcp_rig_open(&rig, 4096, true);
    for (uint32_t sent = 0; rig.far.n_notes < n;) {
        if (sent < n && xfer_backend_tcp.notify(rig.link, &sent, sizeof(sent)) == WEFT_OK) {
            sent++;
        }
        plan_cuts(&rig, &random, 3000, &cuts_left);
        tcp_rig_step(&rig);
    }
    tcp_rig_wait_for_notes(&rig, n);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(rig.far.notes[i], i);
    }
    assert_true(rig.relay.n_connections > 10);
    tcp_rig_close(&rig);
}

static void damaged_bytes_are_noticed_and_sent_again(void **state)
{
    (void)state;
    const uint64_t seed = test_seed(weft_clock_ns());
    const uint32_t rounds = test_rounds(200);
    for (uint32_t round = 0; round < rounds; round++) {
        test_random_t random = {seed + round};
        tcp_rig_t rig = {0};
        tcp_rig_open(&rig, MEMORY_BYTES, true);
        for (int way = 0; way < 2; way++) {
            rig.relay.ways[way].damage_at = 1 + test_random_below(&random, 1 << 20);
            rig.relay.ways[way].damage_step = test_random_between(&random, 1800000, 2 << 20);
        }
        tcp_rig_move_and_check(&rig, seed + round, round % 2 == 0 ? XFER_READ : XFER_WRITE, 20000);
        assert_true(rig.near.n_damages + rig.far.n_damages > 0);
        tcp_rig_close(&rig);
    }
}

/* Frames too: whatever byte of a small conversation is damaged, it comes to a good end. */
static void any_damaged_byte_is_noticed(void **state)
{
    (void)state;
    for (uint64_t at = 1; at < 700; at++) {
        for (int way = 0; way < 2; way++) {
            tcp_rig_t rig = {0};
            tcp_rig_param(&rig.near, "reconnect_ms", "5000");
            tcp_rig_open(&rig, 256, true);
            rig.relay.ways[way].damage_at = at;
            assert_status(xfer_backend_tcp.notify(rig.link, "note", 4), WEFT_OK);
            tcp_rig_check(&rig);
            tcp_rig_op_t op;
            const xfer_extent_t all = tcp_rig_all(&rig);
            tcp_rig_op_init(&rig, &op, XFER_WRITE, &all, 1);
            tcp_rig_fill(rig.near.memory, rig.near.bytes, at);
            assert_status(tcp_rig_run(&rig, &op), WEFT_OK);
            assert_memory_equal(rig.near.memory, rig.far.memory, rig.near.bytes);
            assert_int_equal(rig.far.n_notes, 1);
            tcp_rig_close(&rig);
        }
        at += at > 330 ? 6 : 12; /* the hello is long and all the same */
    }
}

static void what_is_always_damaged_is_corrupt(void **state)
{
    (void)state;
    for (int direction = XFER_READ; direction <= XFER_WRITE; direction++) {
        tcp_rig_t rig = {0};
        tcp_rig_op_t op;
        tcp_rig_open(&rig, MEMORY_BYTES, true);
        tcp_rig_way_t *way = &rig.relay.ways[direction == XFER_READ ? 1 : 0];
        way->damage_at = 100000;
        way->damage_step = 190000; /* once in each of the first payloads, and in no frame */
        xfer_extent_t most = tcp_rig_all(&rig);
        most.bytes = 200000;
        tcp_rig_op_init(&rig, &op, (xfer_direction_t)direction, &most, 1);
        assert_status(tcp_rig_run(&rig, &op), WEFT_ERR_CORRUPT);
        assert_int_equal(rig.near.n_damages, 4);
        assert_int_equal(rig.far.n_damages, direction == XFER_WRITE ? 4 : 0);
        way->damage_at = 0;
        assert_status(tcp_rig_run(&rig, &op), WEFT_OK); /* the link is as good as before */
        assert_int_equal(rig.relay.n_connections, 1);
        tcp_rig_close(&rig);
    }
}

static void without_sums_damage_is_not_looked_for(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t op;
    tcp_rig_param(&rig.near, "checksum", "off");
    tcp_rig_open(&rig, 200000, true);
    rig.relay.ways[1].damage_at = 100000;
    const xfer_extent_t all = tcp_rig_all(&rig);
    tcp_rig_op_init(&rig, &op, XFER_READ, &all, 1);
    assert_status(tcp_rig_run(&rig, &op), WEFT_OK);
    assert_int_equal(rig.near.n_damages, 0);
    assert_memory_not_equal(rig.near.memory, rig.far.memory, rig.near.bytes);
    tcp_rig_close(&rig);
}

/* ---- peers that are gone --------------------------------------------------------------------- */

static void wait_until_lost(tcp_rig_t *rig)
{
    while (rig->near.n_lost == 0) {
        tcp_rig_step(rig);
    }
    assert_int_equal(rig->near.n_lost, 1);
}

static void a_peer_that_was_killed_is_gone_for_all_its_operations(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t ops[3];
    tcp_rig_open(&rig, MEMORY_BYTES, false);
    const xfer_extent_t all = tcp_rig_all(&rig);
    for (int i = 0; i < 3; i++) {
        tcp_rig_op_init(&rig, &ops[i], i == 1 ? XFER_WRITE : XFER_READ, &all, 1);
        ops[i].op.notification = "end";
        ops[i].op.notification_bytes = 3;
    }
    assert_status(tcp_rig_run(&rig, &ops[0]), WEFT_OK);
    ops[0].n_ends = 0;
    for (int i = 0; i < 3; i++) {
        xfer_backend_tcp.post(rig.link, &ops[i].op);
    }
    tcp_rig_steps(&rig, 2);
    tcp_rig_close_side(&rig.far);
    wait_until_lost(&rig);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ops[i].n_ends, 1);
        assert_status(ops[i].status, WEFT_ERR_PEER_GONE);
    }
    assert_status(tcp_rig_run(&rig, &ops[0]), WEFT_ERR_PEER_GONE);
    assert_status(xfer_backend_tcp.notify(rig.link, "x", 1), WEFT_ERR_PEER_GONE);
    assert_int_equal(rig.near.n_lost, 1);
    tcp_rig_close(&rig);
}

static void a_peer_that_dies_while_nothing_is_to_do_is_noticed(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_open(&rig, 4096, false);
    tcp_rig_check(&rig);
    tcp_rig_close_side(&rig.far);
    wait_until_lost(&rig);
    tcp_rig_close(&rig);
}

static void another_one_at_the_peers_port_is_not_the_peer(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_t other = {0};
    tcp_rig_open(&rig, 4096, true);
    tcp_rig_open(&other, 4096, false);
    tcp_rig_check(&rig);
    xfer_tcp_address_t address;
    xfer_tcp_host_t hosts[XFER_TCP_MAX_HOSTS];
    assert_status(xfer_tcp_wire_get_address(other.far.address.data, other.far.address.length,
                                            &address, hosts),
                  WEFT_OK);
    rig.relay.target = address.port;
    rig.relay.ways[0].cut_at = 1;
    assert_status(xfer_backend_tcp.notify(rig.link, "note", 4), WEFT_OK);
    while (rig.near.n_lost == 0) {
        tcp_rig_step(&rig);
        tcp_rig_step(&other);
    }
    assert_int_equal(other.far.n_notes, 0);
    tcp_rig_close(&other);
    tcp_rig_close(&rig);
}

static void a_peer_that_is_silent_is_gone_after_the_patience(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        tcp_rig_t rig = {0};
        tcp_rig_op_t op;
        tcp_rig_param(&rig.near, "reconnect_ms", "400");
        tcp_rig_open(&rig, MEMORY_BYTES, true);
        rig.relay.is_deaf = i == 0;                      /* takes no connection, */
        rig.relay.ways[1].hold_at = i == 1 ? 1 : 200000; /* sends no welcome, stops in the middle */
        const xfer_extent_t all = tcp_rig_all(&rig);
        tcp_rig_op_init(&rig, &op, XFER_READ, &all, 1);
        assert_status(tcp_rig_run(&rig, &op), WEFT_ERR_PEER_GONE);
        wait_until_lost(&rig);
        tcp_rig_close(&rig);
    }
}

/* No deadline of connecting is left that would have it looked at by chance. */
static void a_peer_that_falls_silent_later_is_gone_too(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t op;
    tcp_rig_param(&rig.near, "reconnect_ms", "400");
    tcp_rig_open(&rig, MEMORY_BYTES, true);
    tcp_rig_check(&rig);
    const uint64_t connected = weft_clock_ns();
    while (weft_clock_ns() - connected < 6 * WEFT_NS_PER_SECOND) {
        tcp_rig_step(&rig);
    }
    rig.relay.ways[1].hold_at = rig.relay.ways[1].passed + 1;
    const xfer_extent_t all = tcp_rig_all(&rig);
    tcp_rig_op_init(&rig, &op, XFER_READ, &all, 1);
    assert_status(tcp_rig_run(&rig, &op), WEFT_ERR_PEER_GONE);
    tcp_rig_close(&rig);
}

static void a_connection_may_be_cut_any_number_of_times_if_something_goes_on(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_open(&rig, 4096, true);
    for (unsigned i = 0; i < 120; i++) {
        rig.relay.ways[0].cut_at = rig.relay.ways[0].passed + 1;
        tcp_rig_check(&rig);
        assert_status(xfer_backend_tcp.notify(rig.link, &i, sizeof(i)), WEFT_OK);
    }
    tcp_rig_wait_for_notes(&rig, 120);
    assert_true(rig.relay.n_connections > 60);
    assert_int_equal(rig.near.n_lost, 0);
    tcp_rig_close(&rig);
}

static void post_again(tcp_rig_op_t *op)
{
    unsigned *left = op->user;
    if (*left > 0) {
        --*left;
        xfer_backend_tcp.post(op->op.link, &op->op);
    }
}

static void an_operation_may_be_posted_again_from_its_end(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t op;
    unsigned left = 100;
    tcp_rig_open(&rig, MEMORY_BYTES, false);
    const xfer_extent_t all = tcp_rig_all(&rig);
    tcp_rig_op_init(&rig, &op, XFER_READ, &all, 1);
    op.on_end = post_again;
    op.user = &left;
    xfer_backend_tcp.post(rig.link, &op.op);
    while (op.n_ends < 50) {
        tcp_rig_step(&rig);
    }
    tcp_rig_close_side(&rig.far);
    while (op.n_ends < 101) { /* also with a peer that is gone */
        tcp_rig_step(&rig);
    }
    tcp_rig_steps(&rig, 100);
    assert_int_equal(op.n_ends, 101);
    assert_status(op.status, WEFT_ERR_PEER_GONE);
    tcp_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_cut_goes_on_and_notifies_once),
        cmocka_unit_test(an_operation_goes_on_at_what_is_missing_and_counts_its_cuts),
        cmocka_unit_test(notifications_survive_cuts_each_exactly_once),
        cmocka_unit_test(damaged_bytes_are_noticed_and_sent_again),
        cmocka_unit_test(any_damaged_byte_is_noticed),
        cmocka_unit_test(what_is_always_damaged_is_corrupt),
        cmocka_unit_test(without_sums_damage_is_not_looked_for),
        cmocka_unit_test(a_peer_that_was_killed_is_gone_for_all_its_operations),
        cmocka_unit_test(a_peer_that_dies_while_nothing_is_to_do_is_noticed),
        cmocka_unit_test(another_one_at_the_peers_port_is_not_the_peer),
        cmocka_unit_test(a_peer_that_is_silent_is_gone_after_the_patience),
        cmocka_unit_test(a_peer_that_falls_silent_later_is_gone_too),
        cmocka_unit_test(a_connection_may_be_cut_any_number_of_times_if_something_goes_on),
        cmocka_unit_test(an_operation_may_be_posted_again_from_its_end),
    };
    weft_log_set_level(WEFT_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
