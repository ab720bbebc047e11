/* SPDX-License-Identifier: Apache-2.0 */
/* What the tcp backend moves when all goes well. */
#include <poll.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "tests/support/check.h"
#include "tests/support/random.h"
#include "tests/support/tcp_rig.h"
#include "transport/xfer/tcp/xfer_tcp_priv.h"

#define MEMORY_BYTES ((size_t)8 << 20)
#define MAX_EXTENTS  4096

static xfer_extent_t extents[MAX_EXTENTS];

static void scattered_bytes_arrive_where_they_belong(void **state)
{
    (void)state;
    static const uint32_t max_bytes[] = {1, 64, 4096, 300000, 3000000};
    const uint64_t seed = test_seed(weft_clock_ns());
    tcp_rig_t rig = {0};
    tcp_rig_open(&rig, MEMORY_BYTES, false);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(max_bytes); i++) {
        tcp_rig_move_and_check(&rig, seed + i, XFER_READ, max_bytes[i]);
        tcp_rig_move_and_check(&rig, seed + i, XFER_WRITE, max_bytes[i]);
    }
    tcp_rig_close(&rig);
}

static void slices_of_any_size_do(void **state)
{
    (void)state;
    static const char *const slices[] = {"1000", "4096", "1048576"};
    static const char *const windows[] = {"4096", "1000000", "20000"};
    const uint64_t seed = test_seed(weft_clock_ns());
    for (size_t i = 0; i < WEFT_ARRAY_LEN(slices); i++) {
        tcp_rig_t rig = {0};
        tcp_rig_param(&rig.near, "slice_bytes", slices[i]);
        tcp_rig_param(&rig.near, "window_bytes", windows[i]);
        tcp_rig_param(&rig.far, "checksum", i == 1 ? "off" : "on");
        tcp_rig_open(&rig, MEMORY_BYTES / 4, false);
        tcp_rig_move_and_check(&rig, seed + i, XFER_READ, 5000);
        tcp_rig_move_and_check(&rig, seed + i, XFER_WRITE, 5000);
        tcp_rig_close(&rig);
    }
}

static void what_is_large_is_in_two_slices_at_least(void **state)
{
    (void)state;
    static const struct {
        uint64_t bytes;
        uint64_t slices;
    } rows[] = {{4096, 1},    {262144, 1},        {262145, 2},
                {1 << 20, 2}, {(1 << 20) + 1, 3}, {3 << 20, 6}};
    tcp_rig_t rig = {0};
    tcp_rig_open(&rig, MEMORY_BYTES, false);
    tcp_rig_check(&rig); /* connects */
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        tcp_rig_op_t op;
        xfer_extent_t extent = tcp_rig_all(&rig);
        extent.bytes = rows[i].bytes;
        tcp_rig_op_init(&rig, &op, XFER_READ, &extent, 1);
        xfer_backend_tcp.post(rig.link, &op.op);
        (void)xfer_backend_tcp.progress(rig.near.port); /* asks; the other side does nothing yet */
        assert_int_equal(op.op.words[XFER_TCP_OP_FLYING], rows[i].slices);
        tcp_rig_wait_for_end(&rig, &op);
        assert_status(op.status, WEFT_OK);
    }
    tcp_rig_close(&rig);
}

static void a_hundred_thousand_blocks_are_one_operation(void **state)
{
    (void)state;
    const size_t n = 100000;
    const size_t bytes = 64;
    tcp_rig_t rig = {0};
    tcp_rig_op_t op;
    xfer_extent_t *many = weft_calloc(n, sizeof(*many), "test.extents");
    assert_non_null(many);
    tcp_rig_open(&rig, n * 2 * bytes, false);
    for (size_t i = 0; i < n; i++) { /* every other block, backwards at the peer */
        many[i] = (xfer_extent_t){.local = (uintptr_t)rig.near.memory + 2 * i * bytes,
                                  .peer = (uintptr_t)rig.far.memory + 2 * (n - 1 - i) * bytes,
                                  .bytes = bytes};
    }
    tcp_rig_op_init(&rig, &op, XFER_READ, many, n);
    assert_status(tcp_rig_run(&rig, &op), WEFT_OK);
    for (size_t i = 0; i < n; i++) {
        assert_memory_equal((void *)(uintptr_t)many[i].local, (void *)(uintptr_t)many[i].peer,
                            bytes);
    }
    weft_free(many);
    tcp_rig_close(&rig);
}

static void many_operations_at_once_all_end(void **state)
{
    (void)state;
    static tcp_rig_op_t ops[1000];
    static xfer_extent_t pieces[WEFT_ARRAY_LEN(ops)];
    tcp_rig_t rig = {0};
    tcp_rig_open(&rig, MEMORY_BYTES, false);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(ops); i++) {
        pieces[i] = (xfer_extent_t){.local = (uintptr_t)rig.near.memory + i * 8000,
                                    .peer = (uintptr_t)rig.far.memory + i * 8000,
                                    .bytes = 1 + i * 7};
        tcp_rig_op_init(&rig, &ops[i], XFER_READ, &pieces[i], 1);
        ops[i].op.priority = (uint8_t)(i * 5);
        xfer_backend_tcp.post(rig.link, &ops[i].op);
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(ops); i++) {
        tcp_rig_wait_for_end(&rig, &ops[i]);
        assert_status(ops[i].status, WEFT_OK);
        assert_memory_equal((void *)(uintptr_t)pieces[i].local, (void *)(uintptr_t)pieces[i].peer,
                            pieces[i].bytes);
    }
    tcp_rig_close(&rig);
}

static void posting_again_allocates_nothing(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t op;
    tcp_rig_open(&rig, MEMORY_BYTES, false);
    const size_t n = tcp_rig_extents(&rig, 7, 500, 4096, extents);
    tcp_rig_op_init(&rig, &op, XFER_READ, extents, n);
    op.op.notification = "123456789";
    op.op.notification_bytes = 9;
    for (int i = 0; i < 20; i++) { /* until notes are kept and the guest's tables have grown */
        assert_status(tcp_rig_run(&rig, &op), WEFT_OK);
    }
    (void)weft_alloc_fail_nth(0);
    for (int i = 0; i < 20; i++) {
        assert_status(tcp_rig_run(&rig, &op), WEFT_OK);
    }
    assert_int_equal(weft_alloc_fail_nth(0), 0);
    tcp_rig_close(&rig);
}

/* ---- notifications --------------------------------------------------------------------------- */

typedef struct note_check {
    tcp_rig_t *rig;
    bool was_there;
} note_check_t;

static void look_at_data(void *user)
{
    note_check_t *check = user;
    check->was_there =
        memcmp(check->rig->near.memory, check->rig->far.memory, check->rig->near.bytes) == 0;
}

static void notifications_come_once_in_order_and_after_the_data(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t op;
    tcp_rig_open(&rig, MEMORY_BYTES, false);
    for (uint32_t i = 0; i < 100; i++) {
        assert_status(xfer_backend_tcp.notify(rig.link, &i, sizeof(i)), WEFT_OK);
    }
    tcp_rig_wait_for_notes(&rig, 100);
    const uint32_t number = 100;
    const xfer_extent_t all = tcp_rig_all(&rig);
    note_check_t check = {&rig, false};
    rig.far.on_note = look_at_data;
    rig.far.note_user = &check;
    for (int direction = XFER_READ; direction <= XFER_WRITE; direction++) {
        tcp_rig_op_init(&rig, &op, (xfer_direction_t)direction, &all, 1);
        op.op.notification = &number;
        op.op.notification_bytes = sizeof(number);
        check.was_there = false;
        assert_status(tcp_rig_run(&rig, &op), WEFT_OK);
        tcp_rig_wait_for_notes(&rig, 101 + (unsigned)direction);
        assert_true(check.was_there);
        tcp_rig_fill(rig.near.memory, rig.near.bytes, 5);
    }
    tcp_rig_op_init(&rig, &op, XFER_READ, NULL, 0); /* only that */
    op.op.notification = &number;
    op.op.notification_bytes = sizeof(number);
    assert_status(tcp_rig_run(&rig, &op), WEFT_OK);
    tcp_rig_wait_for_notes(&rig, 103);
    for (uint32_t i = 0; i < 100; i++) {
        assert_int_equal(rig.far.notes[i], i);
    }
    tcp_rig_close(&rig);
}

static void a_large_notification_arrives_and_a_larger_one_is_refused(void **state)
{
    (void)state;
    static uint8_t data[XFER_MAX_NOTIFICATION + 1];
    tcp_rig_t rig = {0};
    tcp_rig_open(&rig, 4096, false);
    for (int i = 0; i < 20; i++) {
        assert_status(xfer_backend_tcp.notify(rig.link, data, XFER_MAX_NOTIFICATION), WEFT_OK);
    }
    assert_status(xfer_backend_tcp.notify(rig.link, data, sizeof(data)), WEFT_ERR_TOO_LARGE);
    tcp_rig_wait_for_notes(&rig, 20);
    tcp_rig_close(&rig);
}

static void too_many_notifications_wait_outside(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    unsigned n = 0;
    tcp_rig_open(&rig, 4096, false);
    while (xfer_backend_tcp.notify(rig.link, "note", 4) == WEFT_OK) {
        n++;
    }
    assert_status(xfer_backend_tcp.notify(rig.link, "note", 4), WEFT_ERR_QUEUE_FULL);
    tcp_rig_wait_for_notes(&rig, n);
    assert_status(xfer_backend_tcp.notify(rig.link, "note", 4), WEFT_OK);
    tcp_rig_close(&rig);
}

/* ---- priorities ------------------------------------------------------------------------------ */

static void what_is_urgent_overtakes_what_has_begun(void **state)
{
    (void)state;
    for (int direction = XFER_READ; direction <= XFER_WRITE; direction++) {
        tcp_rig_t rig = {0};
        tcp_rig_op_t bulk;
        tcp_rig_op_t urgent;
        tcp_rig_open(&rig, (size_t)64 << 20, false);
        xfer_extent_t most = tcp_rig_all(&rig);
        most.bytes -= 4096;
        const xfer_extent_t little = {
            .local = most.local + most.bytes, .peer = most.peer + most.bytes, .bytes = 4096};
        tcp_rig_op_init(&rig, &bulk, (xfer_direction_t)direction, &most, 1);
        tcp_rig_op_init(&rig, &urgent, (xfer_direction_t)direction, &little, 1);
        bulk.op.priority = 9;
        urgent.op.priority = 1;
        xfer_backend_tcp.post(rig.link, &bulk.op);
        while (bulk.op.offset < (8 << 20)) {
            tcp_rig_step(&rig);
        }
        const uint64_t before = bulk.op.offset;
        assert_status(tcp_rig_run(&rig, &urgent), WEFT_OK);
        assert_int_equal(bulk.n_ends, 0);
        assert_true(bulk.op.offset - before <= (16 << 20));
        tcp_rig_wait_for_end(&rig, &bulk);
        assert_status(bulk.status, WEFT_OK);
        tcp_rig_close(&rig);
    }
}

static void those_of_one_priority_share(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t first;
    tcp_rig_op_t second;
    tcp_rig_open(&rig, (size_t)32 << 20, false);
    xfer_extent_t large = tcp_rig_all(&rig);
    large.bytes -= 1 << 20;
    const xfer_extent_t small = {
        .local = large.local + large.bytes, .peer = large.peer + large.bytes, .bytes = 1 << 20};
    tcp_rig_op_init(&rig, &first, XFER_READ, &large, 1);
    tcp_rig_op_init(&rig, &second, XFER_READ, &small, 1);
    xfer_backend_tcp.post(rig.link, &first.op);
    assert_status(tcp_rig_run(&rig, &second), WEFT_OK);
    assert_int_equal(first.n_ends, 0);
    tcp_rig_close(&rig);
}

/* ---- guards and regions ---------------------------------------------------------------------- */

static void a_guard_is_read_before_and_after(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t op;
    tcp_rig_open(&rig, MEMORY_BYTES, true);
    _Atomic uint64_t *word = (void *)rig.far.memory;
    atomic_store(word, 5);
    const xfer_extent_t extent = {.local = (uintptr_t)rig.near.memory + 4096,
                                  .peer = (uintptr_t)rig.far.memory + 4096,
                                  .bytes = MEMORY_BYTES - 4096};
    tcp_rig_op_init(&rig, &op, XFER_READ, &extent, 1);
    op.op.has_guard = true;
    op.op.guard = (xfer_guard_t){(uintptr_t)word, 5};
    assert_status(tcp_rig_run(&rig, &op), WEFT_OK);
    op.op.guard.expected = 6;
    assert_status(tcp_rig_run(&rig, &op), WEFT_ERR_STALE);

    /* It changes while the data are on their way. */
    op.op.guard.expected = 5;
    rig.relay.ways[1].hold_at = rig.relay.ways[1].passed + 100000;
    op.n_ends = 0;
    xfer_backend_tcp.post(rig.link, &op.op);
    tcp_rig_steps(&rig, 500);
    atomic_store(word, 7);
    rig.relay.ways[1].hold_at = 0;
    tcp_rig_wait_for_end(&rig, &op);
    assert_status(op.status, WEFT_ERR_STALE);

    /* Of no pieces at all. */
    tcp_rig_op_init(&rig, &op, XFER_READ, NULL, 0);
    op.op.has_guard = true;
    op.op.guard = (xfer_guard_t){(uintptr_t)word, 7};
    assert_status(tcp_rig_run(&rig, &op), WEFT_OK);
    op.op.guard.expected = 8;
    assert_status(tcp_rig_run(&rig, &op), WEFT_ERR_STALE);
    assert_int_equal(rig.relay.n_connections, 1);
    tcp_rig_close(&rig);
}

static bool is_all_zero(const uint8_t *memory, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (memory[i] != 0) {
            return false;
        }
    }
    return true;
}

static void a_region_that_goes_is_neither_read_nor_written_any_more(void **state)
{
    (void)state;
    for (int direction = XFER_READ; direction <= XFER_WRITE; direction++) {
        tcp_rig_t rig = {0};
        tcp_rig_op_t op;
        tcp_rig_open(&rig, MEMORY_BYTES, true);
        rig.relay.ways[direction == XFER_WRITE ? 0 : 1].hold_at = 400000;
        const xfer_extent_t all = tcp_rig_all(&rig);
        tcp_rig_op_init(&rig, &op, (xfer_direction_t)direction, &all, 1);
        xfer_backend_tcp.post(rig.link, &op.op);
        tcp_rig_steps(&rig, 500);
        assert_int_equal(op.n_ends, 0);
        xfer_backend_tcp.unmap(rig.far.port, rig.far.region);
        rig.far.region = NULL;
        memset(rig.far.memory, 0, MEMORY_BYTES);
        rig.relay.ways[0].hold_at = rig.relay.ways[1].hold_at = 0;
        tcp_rig_wait_for_end(&rig, &op);
        assert_status(op.status, WEFT_ERR_NOT_FOUND);
        tcp_rig_steps(&rig, 500);
        assert_true(is_all_zero(rig.far.memory, MEMORY_BYTES));
        assert_status(tcp_rig_run(&rig, &op), WEFT_ERR_NOT_FOUND);
        assert_int_equal(rig.relay.n_connections, 1);
        tcp_rig_close(&rig);
    }
}

static void addresses_outside_a_region_are_refused(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t op;
    tcp_rig_open(&rig, MEMORY_BYTES, false);
    const uint64_t local = (uintptr_t)rig.near.memory;
    const uint64_t begin = (uintptr_t)rig.far.memory;
    const xfer_extent_t wrong[] = {
        {.local = local, .peer = begin + MEMORY_BYTES - 10, .bytes = 11},
        {.local = local, .peer = begin - 1, .bytes = 1},
        {.local = local, .peer = begin + MEMORY_BYTES, .bytes = 1},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(wrong); i++) {
        for (int direction = XFER_READ; direction <= XFER_WRITE; direction++) {
            tcp_rig_op_init(&rig, &op, (xfer_direction_t)direction, &wrong[i], 1);
            assert_status(tcp_rig_run(&rig, &op), WEFT_ERR_NOT_FOUND);
        }
    }
    tcp_rig_check(&rig);
    tcp_rig_close(&rig);
}

/* ---- cancelling ------------------------------------------------------------------------------ */

static void memory_of_a_cancelled_operation_is_left_alone(void **state)
{
    (void)state;
    test_random_t random = {test_seed(weft_clock_ns())};
    for (int round = 0; round < 20; round++) {
        tcp_rig_t rig = {0};
        tcp_rig_op_t op;
        tcp_rig_open(&rig, MEMORY_BYTES, false);
        const bool is_read = round % 2 == 0;
        const xfer_extent_t all = tcp_rig_all(&rig);
        tcp_rig_op_init(&rig, &op, is_read ? XFER_READ : XFER_WRITE, &all, 1);
        op.op.notification = "never";
        op.op.notification_bytes = 5;
        xfer_backend_tcp.post(rig.link, &op.op);
        tcp_rig_steps(&rig, (int)test_random_below(&random, 40));
        const bool had_ended = op.n_ends > 0;
        if (!had_ended) {
            xfer_backend_tcp.cancel(&op.op);
        }
        tcp_rig_wait_for_end(&rig, &op);
        assert_status(op.status, had_ended ? WEFT_OK : WEFT_ERR_CANCELLED);
        uint8_t *touched = is_read ? rig.near.memory : rig.far.memory;
        memset(touched, 0, MEMORY_BYTES);
        tcp_rig_steps(&rig, 2000);
        assert_true(is_all_zero(touched, MEMORY_BYTES));
        assert_int_equal(rig.far.n_notes, had_ended ? 1 : 0);
        tcp_rig_op_init(&rig, &op, XFER_READ, &all, 1);
        assert_status(tcp_rig_run(&rig, &op), WEFT_OK);
        assert_memory_equal(rig.near.memory, rig.far.memory, MEMORY_BYTES);
        assert_int_equal(op.op.resumed, 0);
        tcp_rig_close(&rig);
    }
}

static void a_cancelled_operation_ends_though_the_peer_is_stuck(void **state)
{
    (void)state;
    for (int direction = XFER_READ; direction <= XFER_WRITE; direction++) {
        tcp_rig_t rig = {0};
        tcp_rig_op_t op;
        tcp_rig_open(&rig, MEMORY_BYTES, true);
        rig.relay.ways[direction == XFER_WRITE ? 0 : 1].hold_at = 300000;
        const xfer_extent_t all = tcp_rig_all(&rig);
        tcp_rig_op_init(&rig, &op, (xfer_direction_t)direction, &all, 1);
        xfer_backend_tcp.post(rig.link, &op.op);
        tcp_rig_steps(&rig, 500);
        xfer_backend_tcp.cancel(&op.op);
        tcp_rig_wait_for_end(&rig, &op);
        assert_status(op.status, WEFT_ERR_CANCELLED);
        tcp_rig_close(&rig);
    }
}

static void disconnecting_ends_what_runs(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t op;
    tcp_rig_open(&rig, MEMORY_BYTES, false);
    const xfer_extent_t all = tcp_rig_all(&rig);
    tcp_rig_op_init(&rig, &op, XFER_READ, &all, 1);
    xfer_backend_tcp.post(rig.link, &op.op);
    tcp_rig_steps(&rig, 10);
    tcp_rig_close(&rig);
    assert_int_equal(op.n_ends, 1);
    assert_status(op.status, WEFT_ERR_CANCELLED);
}

/* ---- sleep ----------------------------------------------------------------------------------- */

/* Both sleep if they may; whether either was woken within a second. */
static bool sleep_both(tcp_rig_t *rig)
{
    struct pollfd fds[2] = {{.events = POLLIN}, {.events = POLLIN}};
    return !xfer_backend_tcp.arm(rig->near.port, &fds[0].fd) ||
           !xfer_backend_tcp.arm(rig->far.port, &fds[1].fd) || poll(fds, 2, 1000) > 0;
}

static void sleepers_are_woken_by_all_there_is_to_do(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t op;
    tcp_rig_open(&rig, MEMORY_BYTES, false);
    const size_t n = tcp_rig_extents(&rig, 5, MAX_EXTENTS, 9000, extents);
    for (int i = 0; i < 20; i++) {
        tcp_rig_op_init(&rig, &op, i % 2 == 0 ? XFER_READ : XFER_WRITE, extents, n);
        xfer_backend_tcp.post(rig.link, &op.op);
        while (op.n_ends == 0) {
            assert_true(sleep_both(&rig));
            while (xfer_backend_tcp.progress(rig.near.port) ||
                   xfer_backend_tcp.progress(rig.far.port)) {
            }
        }
        assert_status(op.status, WEFT_OK);
    }
    tcp_rig_close(&rig);
}

/* What the kernel hands over late may still wake them, a few times. */
static void ports_with_nothing_to_do_sleep_on(void **state)
{
    enum { MOST_WAKES = 100 };
    (void)state;
    tcp_rig_t rig = {0};
    int wakes = 0;
    tcp_rig_open(&rig, MEMORY_BYTES, false);
    tcp_rig_check(&rig);
    while (sleep_both(&rig)) {
        assert_true(++wakes <= MOST_WAKES);
        while (xfer_backend_tcp.progress(rig.near.port) ||
               xfer_backend_tcp.progress(rig.far.port)) {
        }
    }
    tcp_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scattered_bytes_arrive_where_they_belong),
        cmocka_unit_test(slices_of_any_size_do),
        cmocka_unit_test(what_is_large_is_in_two_slices_at_least),
        cmocka_unit_test(a_hundred_thousand_blocks_are_one_operation),
        cmocka_unit_test(many_operations_at_once_all_end),
        cmocka_unit_test(posting_again_allocates_nothing),
        cmocka_unit_test(notifications_come_once_in_order_and_after_the_data),
        cmocka_unit_test(a_large_notification_arrives_and_a_larger_one_is_refused),
        cmocka_unit_test(too_many_notifications_wait_outside),
        cmocka_unit_test(what_is_urgent_overtakes_what_has_begun),
        cmocka_unit_test(those_of_one_priority_share),
        cmocka_unit_test(a_guard_is_read_before_and_after),
        cmocka_unit_test(a_region_that_goes_is_neither_read_nor_written_any_more),
        cmocka_unit_test(addresses_outside_a_region_are_refused),
        cmocka_unit_test(memory_of_a_cancelled_operation_is_left_alone),
        cmocka_unit_test(a_cancelled_operation_ends_though_the_peer_is_stuck),
        cmocka_unit_test(disconnecting_ends_what_runs),
        cmocka_unit_test(sleepers_are_woken_by_all_there_is_to_do),
        cmocka_unit_test(ports_with_nothing_to_do_sleep_on),
    };
    weft_log_set_level(WEFT_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
