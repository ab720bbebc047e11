/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tcp backend between two network namespaces with a wire of two ends (veth) that is pulled and put
 * back. Needs root and iproute2.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "tests/support/check.h"
#include "tests/support/tcp_rig.h"

#define MEMORY_BYTES ((size_t)64 << 20)

static int spaces[2]; /* near's, far's */

static bool run(const char *command)
{
    return system(command) == 0;
}

static void enter(bool is_far)
{
    assert_int_equal(setns(spaces[is_far], CLONE_NEWNET), 0);
}

/* A new namespace, which this thread is in from now on. */
static int make_space(void)
{
    return unshare(CLONE_NEWNET) == 0 ? open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC) : -1;
}

static bool make_wire(void)
{
    char command[200];
    spaces[0] = make_space();
    spaces[1] = make_space();
    if (spaces[0] < 0 || spaces[1] < 0) {
        return false;
    }
    enter(false);
    (void)snprintf(command, sizeof(command),
                   "ip link add wire0 type veth peer name wire1 netns /proc/%d/fd/%d 2>&1",
                   getpid(), spaces[1]);
    if (!run(command) || !run("ip link set lo up") || !run("ip link set wire0 up") ||
        !run("ip addr add 10.77.0.1/24 dev wire0")) {
        return false;
    }
    enter(true);
    const bool is_good = run("ip link set lo up") && run("ip link set wire1 up") &&
                         run("ip addr add 10.77.0.2/24 dev wire1") &&
                         run("ip addr add fd77::2/64 dev wire1 nodad");
    enter(false);
    return is_good && run("ip addr add fd77::1/64 dev wire0 nodad");
}

static void open_apart(tcp_rig_t *rig, const char *patience_ms)
{
    rig->enter = enter;
    tcp_rig_param(&rig->near, "silence_ms", "300");
    tcp_rig_param(&rig->far, "silence_ms", "300");
    tcp_rig_param(&rig->near, "reconnect_ms", patience_ms);
    tcp_rig_open(rig, MEMORY_BYTES, false);
}

static void step_for(tcp_rig_t *rig, uint64_t ns)
{
    const uint64_t end = weft_clock_ns() + ns;
    while (weft_clock_ns() < end) {
        tcp_rig_step(rig);
    }
}

static void peers_that_are_apart_find_each_other(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    open_apart(&rig, "30000");
    tcp_rig_check(&rig);
    tcp_rig_move_and_check(&rig, 3, XFER_WRITE, 20000);
    tcp_rig_close(&rig);
}

static void an_operation_outlives_a_wire_that_is_pulled(void **state)
{
    (void)state;
    static const uint64_t pulled_ms[] = {100, 1500};
    for (size_t i = 0; i < 2 * WEFT_ARRAY_LEN(pulled_ms); i++) {
        tcp_rig_t rig = {0};
        tcp_rig_op_t op;
        open_apart(&rig, "30000");
        const xfer_extent_t all = tcp_rig_all(&rig);
        tcp_rig_op_init(&rig, &op, i % 2 == 0 ? XFER_READ : XFER_WRITE, &all, 1);
        op.op.notification = "done";
        op.op.notification_bytes = 4;
        xfer_backend_tcp.post(rig.link, &op.op);
        while (op.op.offset < MEMORY_BYTES / 4) {
            tcp_rig_step(&rig);
        }
        assert_true(run("ip link set wire0 down"));
        step_for(&rig, pulled_ms[i / 2] * WEFT_NS_PER_MS);
        assert_int_equal(op.n_ends, 0);
        assert_true(run("ip link set wire0 up && ip addr add fd77::1/64 dev wire0 nodad"));
        tcp_rig_wait_for_end(&rig, &op);
        assert_status(op.status, WEFT_OK);
        assert_memory_equal(rig.near.memory, rig.far.memory, MEMORY_BYTES);
        tcp_rig_wait_for_notes(&rig, 1);
        tcp_rig_close(&rig);
    }
}

static void a_wire_that_stays_pulled_is_a_peer_that_is_gone(void **state)
{
    (void)state;
    tcp_rig_t rig = {0};
    tcp_rig_op_t op;
    open_apart(&rig, "1000");
    tcp_rig_check(&rig);
    const xfer_extent_t all = tcp_rig_all(&rig);
    tcp_rig_op_init(&rig, &op, XFER_READ, &all, 1);
    xfer_backend_tcp.post(rig.link, &op.op);
    assert_true(run("ip link set wire0 down"));
    tcp_rig_wait_for_end(&rig, &op);
    assert_status(op.status, WEFT_ERR_PEER_GONE);
    while (rig.near.n_lost == 0) {
        tcp_rig_step(&rig);
    }
    assert_true(run("ip link set wire0 up && ip addr add fd77::1/64 dev wire0 nodad"));
    tcp_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(peers_that_are_apart_find_each_other),
        cmocka_unit_test(an_operation_outlives_a_wire_that_is_pulled),
        cmocka_unit_test(a_wire_that_stays_pulled_is_a_peer_that_is_gone),
    };
    weft_log_set_level(WEFT_LOG_ERROR);
    if (!run("ip -V >/dev/null 2>&1") || !make_wire()) {
        print_message("skipped: network namespaces take root and iproute2\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
