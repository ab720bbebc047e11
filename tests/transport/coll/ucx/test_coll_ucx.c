/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backend "ucx" over TCP between two network namespaces with a wire of two ends (veth), which is also
 * pulled. Needs root and iproute2. What every backend has to do is in test_coll_conformance.c.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/support/coll_rig.h"
#include "transport/coll/coll_feed.h"

#define N_RANKS ((uint32_t)2)
#define N       ((size_t)300000) /* several steps, the last of which is not full */

static int spaces[N_RANKS];

static bool run(const char *command)
{
    return system(command) == 0;
}

static void enter(uint32_t rank)
{
    assert_int_equal(setns(spaces[rank], CLONE_NEWNET), 0);
}

/* A new namespace, which this thread is in from now on. */
static int make_space(void)
{
    return unshare(CLONE_NEWNET) == 0 ? open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC) : -1;
}

/* The system says that an end is up some time after it was set up, and UCX leaves out those that are not. */
static bool is_wire_up(void)
{
    char command[120];
    bool is_up = true;
    for (uint32_t rank = 0; rank < N_RANKS && is_up; rank++) {
        enter(rank);
        (void)snprintf(
            command, sizeof(command),
            "timeout 30 sh -c 'until ip link show wire%u | grep -q state.UP; do :; done'", rank);
        is_up = run(command);
    }
    return is_up;
}

static bool make_wire(void)
{
    char command[200];
    spaces[0] = make_space();
    spaces[1] = make_space();
    if (spaces[0] < 0 || spaces[1] < 0) {
        return false;
    }
    enter(0);
    (void)snprintf(command, sizeof(command),
                   "ip link add wire0 type veth peer name wire1 netns /proc/%d/fd/%d 2>&1",
                   getpid(), spaces[1]);
    if (!run(command) || !run("ip link set lo up") || !run("ip link set wire0 up") ||
        !run("ip addr add 10.78.0.1/24 dev wire0")) {
        return false;
    }
    enter(1);
    return run("ip link set lo up") && run("ip link set wire1 up") &&
           run("ip addr add 10.78.0.2/24 dev wire1") && is_wire_up();
}

static void put_back_wire(void)
{
    char command[120];
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        enter(rank);
        (void)snprintf(command, sizeof(command), "ip link set wire%u up", rank);
        assert_true(run(command));
    }
    assert_true(is_wire_up());
}

/* UCX reads of the interfaces in /sys, which is that of the namespace that it was mounted in. */
static void live_in(uint32_t rank)
{
    enter(rank);
    assert_int_equal(unshare(CLONE_NEWNS), 0);
    assert_int_equal(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
    assert_int_equal(mount("sysfs", "/sys", "sysfs", 0, NULL), 0);
}

static coll_t *create_apart(const coll_rig_rank_t *self, uint64_t timeout_ns)
{
    coll_config_t config = coll_rig_config(self, "ucx");
    weft_diag_t diag = {.text = ""};
    coll_t *coll = NULL;

    live_in(self->rank);
    setenv("UCX_TLS", "tcp", 1);
    config.timeout_ns = timeout_ns;
    const weft_status_t status = coll_create(&config, &diag, &coll);
    if (status < 0) {
        print_error("%s\n", diag.text);
    }
    assert_status(status, WEFT_OK);
    return coll;
}

static void fill(float *values, uint32_t rank)
{
    for (size_t i = 0; i < N; i++) {
        values[i] = (float)(i % 1000 + 1) * (float)(rank + 1);
    }
}

static void reduce_apart(coll_rig_rank_t *self)
{
    static const size_t counts[] = {1, 2048, 100000, N};
    coll_t *coll = create_apart(self, COLL_RIG_TIMEOUT_NS);
    float *values = weft_calloc(N, sizeof(*values), "test");

    for (size_t c = 0; c < WEFT_ARRAY_LEN(counts); c++) {
        fill(values, self->rank);
        coll_all_reduce(coll, self->queue, values, values, counts[c], COLL_F32);
        assert_status(coll_status(coll, NULL), WEFT_OK);
        for (size_t i = 0; i < counts[c]; i++) {
            assert_true(values[i] == 3 * (float)(i % 1000 + 1));
        }
    }
    weft_free(values);
    coll_barrier(coll, self->queue);
    coll_destroy(coll);
}

static void ranks_that_are_apart_add_over_tcp(void **state)
{
    (void)state;
    coll_rig_run(N_RANKS, reduce_apart, NULL);
}

/* Rank 0 pulls the wire when some operations have been done, and all go on until they fail. */
static void reduce_until_lost(coll_rig_rank_t *self)
{
    coll_t *coll = create_apart(self, WEFT_NS_PER_SECOND);
    float *values = weft_calloc(N, sizeof(*values), "test");
    uint32_t lost = COLL_NO_RANK;
    weft_status_t status = WEFT_OK;

    for (unsigned i = 0; status == WEFT_OK; i++) {
        coll_all_reduce(coll, self->queue, values, values, i % 2 == 0 ? N : 2048, COLL_F32);
        status = coll_status(coll, &lost);
        if (i == 20 && self->rank == 0) {
            assert_true(run("ip link set wire0 down"));
        }
    }
    assert_true(status == WEFT_ERR_TIMEOUT || status == WEFT_ERR_PEER_GONE);
    assert_int_equal(lost, 1 - self->rank);
    coll_destroy(coll);
    weft_free(values);
}

static void a_wire_that_is_pulled_is_an_error_with_the_rank(void **state)
{
    (void)state;
    coll_rig_run(N_RANKS, reduce_until_lost, NULL);
    put_back_wire();
}

/* The reader's wait has no limit; what ends it is that somebody gives the group up. */
static void read_until_aborted(coll_rig_rank_t *self)
{
    atomic_uint *is_down = self->shared;
    coll_t *coll = create_apart(self, WEFT_NS_PER_SECOND);
    coll_feed_t *feed = NULL;
    const void *message;
    size_t bytes;

    assert_status(coll_feed_create(coll, 4096, 4, NULL, &feed), WEFT_OK);
    if (self->rank == 0) {
        assert_non_null(coll_feed_begin(feed));
        assert_status(coll_feed_send(feed, 4096), WEFT_OK);
        coll_rig_await(is_down, 1);
        while (coll_feed_begin(feed) != NULL) {
            (void)coll_feed_send(feed, 4096); /* until the reader would be too far behind */
        }
        uint32_t lost;
        assert_true(coll_status(coll, &lost) < 0);
        assert_int_equal(lost, 1);
    } else {
        assert_status(coll_feed_receive(feed, -1, &message, &bytes), WEFT_OK);
        assert_int_equal(bytes, 4096);
        assert_true(run("ip link set wire1 down"));
        atomic_store(is_down, 1);
        assert_status(coll_feed_receive(feed, 100, &message, &bytes), WEFT_ERR_TIMEOUT);
        coll_abort(coll, 0);
        assert_status(coll_feed_receive(feed, -1, &message, &bytes), WEFT_ERR_PEER_GONE);
    }
    coll_feed_destroy(feed);
    coll_destroy(coll);
}

static void a_feed_over_a_wire_that_is_pulled_ends_on_both_sides(void **state)
{
    (void)state;
    coll_rig_run(N_RANKS, read_until_aborted, NULL);
    put_back_wire();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_that_are_apart_add_over_tcp),
        cmocka_unit_test(a_wire_that_is_pulled_is_an_error_with_the_rank),
        cmocka_unit_test(a_feed_over_a_wire_that_is_pulled_ends_on_both_sides),
    };
#ifndef WEFT_UCX_LIBRARY
    print_message("skipped: built without UCX's headers\n");
    return 77;
#endif
    if (!make_wire()) {
        print_message("skipped: no network namespaces with a wire (needs root and ip)\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
