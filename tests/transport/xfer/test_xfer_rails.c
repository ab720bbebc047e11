/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A large read between two network namespaces that two veth pairs join, as two networks do: over both,
 * and on over one when the other is cut in the middle. Takes root, ip and tc; without, it is skipped.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/support/fabric_rig.h"

#define MEMORY_BYTES ((size_t)48 << 20)
#define SMALL_BYTES  ((uint64_t)2 << 20)
#define SKIPPED      77

/* One namespace a place; threads that an agent makes stay where it was made. */
static int spaces[2];

static bool run(const char *words)
{
    char line[512];
    snprintf(line, sizeof(line), "%s >/dev/null 2>&1", words);
    return system(line) == 0;
}

static void go_to(int place)
{
    assert_int_equal(setns(spaces[place], CLONE_NEWNET), 0);
}

static bool make_space(int place)
{
    if (unshare(CLONE_NEWNET) != 0) {
        return false;
    }
    spaces[place] = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    return spaces[place] >= 0 && run("ip link set lo up");
}

/* So slow that there is a middle, a tenth of a second for four chunks. */
static bool dress(int place, int rail)
{
    char words[256];
    snprintf(words, sizeof(words),
             "ip addr add 10.98.%d.%d/24 dev rail%d && ip link set rail%d up && "
             "tc qdisc add dev rail%d root tbf rate 1gbit burst 1mb latency 50ms",
             rail, place + 1, rail, rail, rail);
    return run(words);
}

static bool make_rail(int rail)
{
    char words[128];
    assert_int_equal(setns(spaces[1], CLONE_NEWNET), 0);
    snprintf(words, sizeof(words),
             "ip link add rail%d type veth peer name rail%d netns /proc/%d/fd/%d", rail, rail,
             (int)getpid(), spaces[0]);
    if (!run(words) || !dress(1, rail)) {
        return false;
    }
    assert_int_equal(setns(spaces[0], CLONE_NEWNET), 0);
    return dress(0, rail);
}

static bool make_network(void)
{
    return geteuid() == 0 && make_space(0) && make_space(1) && make_rail(0) && make_rail(1);
}

typedef struct rig {
    fabric_end_t here;
    fabric_end_t there;
    fabric_end_t *ends[2];
    xfer_peer_t *peer;
} rig_t;

static void open_end(int place, fabric_end_t *end_out)
{
    char params[96];
    snprintf(params, sizeof(params), "tcp.host=10.98.0.%d,tcp1.host=10.98.1.%d", place + 1,
             place + 1);
    const fabric_config_t config = {
        .backends = "tcp,tcp1", .params = params, .has_thread = true, .bytes = MEMORY_BYTES};
    go_to(place);
    fabric_end_open(&config, place == 0 ? "here" : "there", end_out);
}

static void read_bytes(rig_t *rig, uint64_t n)
{
    xfer_request_t *request =
        fabric_copy(&rig->here, rig->peer, XFER_READ, 0, fabric_addr(&rig->there, 0), n);
    assert_status(fabric_run(request, rig->ends, 2), WEFT_OK);
    xfer_request_destroy(request);
}

static void open_rig(rig_t *rig)
{
    *rig = (rig_t){0};
    open_end(1, &rig->there);
    open_end(0, &rig->here);
    rig->ends[0] = &rig->here;
    rig->ends[1] = &rig->there;
    rig->peer = fabric_introduce(&rig->here, &rig->there);
    fabric_fill(&rig->there, 1);
    read_bytes(rig, SMALL_BYTES); /* each is measured alone */
    read_bytes(rig, SMALL_BYTES);
}

static void close_rig(rig_t *rig)
{
    fabric_end_close(&rig->here);
    fabric_end_close(&rig->there);
}

static uint64_t moved_by(rig_t *rig, int rail)
{
    xfer_backend_stats_t stats[2];
    assert_int_equal(xfer_agent_stats(rig->here.agent, stats, 2), 2);
    return stats[rail].read_bytes;
}

static void two_networks_share_a_large_read(void **state)
{
    (void)state;
    rig_t rig;
    open_rig(&rig);
    read_bytes(&rig, MEMORY_BYTES);
    assert_true(fabric_is_filled(rig.here.memory, MEMORY_BYTES, 1, 0));
    assert_true(moved_by(&rig, 0) > SMALL_BYTES);
    assert_true(moved_by(&rig, 1) > SMALL_BYTES);
    close_rig(&rig);
}

/* Its connection is not closed by anybody: nothing comes any more. */
static void a_network_that_is_cut_leaves_the_rest_to_the_other(void **state)
{
    (void)state;
    rig_t rig;
    open_rig(&rig);
    xfer_request_t *request =
        fabric_copy(&rig.here, rig.peer, XFER_READ, 0, fabric_addr(&rig.there, 0), MEMORY_BYTES);
    assert_status(xfer_post(request), WEFT_OK);
    const uint64_t start = weft_clock_ns();
    while (moved_by(&rig, 1) == SMALL_BYTES) { /* its first chunk */
        fabric_check_deadline(start, "a chunk by the second rail");
    }
    assert_true(run("ip link set rail1 down"));
    assert_status(fabric_wait(request, rig.ends, 2), WEFT_OK);
    assert_true(fabric_is_filled(rig.here.memory, MEMORY_BYTES, 1, 0));
    assert_true(moved_by(&rig, 0) > MEMORY_BYTES / 2);
    assert_true(xfer_request_stats(request).resumed > 0);
    xfer_request_destroy(request);
    assert_true(run("ip link set rail1 up"));
    close_rig(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_networks_share_a_large_read),
        cmocka_unit_test(a_network_that_is_cut_leaves_the_rest_to_the_other),
    };
    if (!make_network()) {
        print_message("skipped: takes root, ip and tc, to make namespaces with veth pairs\n");
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
