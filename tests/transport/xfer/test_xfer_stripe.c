/* SPDX-License-Identifier: Apache-2.0 */
/* Large requests over several ways at once, and what becomes of them when one of those fails. */
#include <string.h>

#include "base/clock.h"
#include "tests/support/fabric_rig.h"
#include "tests/support/loop_backend.h"
#include "transport/xfer/xfer_stripe.h"

#define MEMORY_BYTES ((uint64_t)24 << 20)
#define SMALL_BYTES  ((uint64_t)2 << 20) /* enough to be measured by, too little to be striped */

typedef struct rig {
    fabric_end_t here;
    fabric_end_t there;
    fabric_end_t *ends[2];
    xfer_peer_t *peer;
    uint64_t before[2]; /* bytes that each rail had moved */
} rig_t;

static void moved(rig_t *rig, uint64_t bytes_out[2])
{
    xfer_backend_stats_t stats[2];
    assert_int_equal(xfer_agent_stats(rig->here.agent, stats, 2), 2);
    for (int i = 0; i < 2; i++) {
        bytes_out[i] = stats[i].read_bytes + stats[i].written_bytes;
    }
}

/* Before a rail is late. For ever: how the machine's time is shared out makes none late. */
static void set_patience(rig_t *rig, uint64_t ns)
{
    xfer_agent_enter(rig->here.agent);
    rig->here.agent->rail_late_ns = ns;
    xfer_agent_leave_idle(rig->here.agent);
}

/* More rounds than the loop takes for that. */
static void go_on(rig_t *rig, uint64_t bytes)
{
    for (uint64_t i = 0; i < 2 * bytes / LOOP_STEP_BYTES; i++) {
        fabric_progress(rig->ends, 2);
    }
}

static xfer_request_t *begin_small(rig_t *rig)
{
    xfer_request_t *request =
        fabric_copy(&rig->here, rig->peer, XFER_READ, 0, fabric_addr(&rig->there, 0), SMALL_BYTES);
    assert_status(xfer_post(request), WEFT_OK);
    return request;
}

static void copy_small(rig_t *rig)
{
    xfer_request_t *request = begin_small(rig);
    assert_status(fabric_wait(request, rig->ends, 2), WEFT_OK);
    xfer_request_destroy(request);
}

/* Each rail has been measured alone when it is open. */
static void open_rig(rig_t *rig, const fabric_config_t *config, const fabric_config_t *there)
{
    loop_backend_stall(0);
    loop_backend_lose(0);
    *rig = (rig_t){0};
    fabric_end_open(config, "here", &rig->here);
    fabric_end_open(there, "there", &rig->there);
    rig->ends[0] = &rig->here;
    rig->ends[1] = &rig->there;
    set_patience(rig, UINT64_MAX);
    rig->peer = fabric_introduce(&rig->here, &rig->there);
    fabric_fill(&rig->there, 1);
    copy_small(rig);
    copy_small(rig);
    moved(rig, rig->before);
    assert_int_equal(rig->before[0], SMALL_BYTES);
    assert_int_equal(rig->before[1], SMALL_BYTES);
}

static void open_loop(rig_t *rig)
{
    const fabric_config_t config = {.table = loop_rails, .bytes = MEMORY_BYTES};
    open_rig(rig, &config, &config);
}

static void close_rig(rig_t *rig)
{
    loop_backend_stall(0);
    loop_backend_lose(0);
    fabric_end_close(&rig->here);
    fabric_end_close(&rig->there);
}

static xfer_request_t *copy_all(rig_t *rig, xfer_direction_t direction)
{
    return fabric_copy(&rig->here, rig->peer, direction, 0, fabric_addr(&rig->there, 0),
                       MEMORY_BYTES);
}

static void assert_here(const rig_t *rig)
{
    assert_true(fabric_is_filled(rig->here.memory, MEMORY_BYTES, 1, 0));
}

/* The share of each rail, which add up. */
static void assert_shares(rig_t *rig, bool is_first, bool is_second)
{
    uint64_t now[2];
    moved(rig, now);
    assert_int_equal(now[0] - rig->before[0] + now[1] - rig->before[1], MEMORY_BYTES);
    assert_int_equal(now[0] > rig->before[0], is_first);
    assert_int_equal(now[1] > rig->before[1], is_second);
}

static void a_large_request_takes_both_rails(void **state)
{
    (void)state;
    for (xfer_direction_t direction = XFER_READ; direction <= XFER_WRITE; direction++) {
        rig_t rig;
        open_loop(&rig);
        fabric_fill(direction == XFER_READ ? &rig.there : &rig.here, 1);
        xfer_request_t *request = copy_all(&rig, direction);
        assert_status(fabric_run(request, rig.ends, 2), WEFT_OK);
        assert_here(&rig);
        assert_true(fabric_is_filled(rig.there.memory, MEMORY_BYTES, 1, 0));
        assert_shares(&rig, true, true);
        xfer_request_destroy(request);
        close_rig(&rig);
    }
}

static void it_can_be_posted_again(void **state)
{
    (void)state;
    rig_t rig;
    open_loop(&rig);
    xfer_request_t *request = copy_all(&rig, XFER_READ);
    for (uint64_t seed = 1; seed <= 3; seed++) {
        rig.peer->rails_bytes_per_second = 0; /* whatever was measured */
        fabric_fill(&rig.there, seed);
        assert_status(fabric_run(request, rig.ends, 2), WEFT_OK);
        assert_true(fabric_is_filled(rig.here.memory, MEMORY_BYTES, seed, 0));
        assert_int_equal(xfer_request_stats(request).bytes, MEMORY_BYTES);
    }
    xfer_request_destroy(request);
    close_rig(&rig);
}

/* Pieces of a size that no chunk is a multiple of, in another order there. */
static void pieces_that_two_chunks_share_are_whole(void **state)
{
    (void)state;
    enum { PIECE = 999983, N = 24 };
    rig_t rig;
    open_loop(&rig);
    const xfer_run_t here = {
        .addr = fabric_addr(&rig.here, 0), .bytes = PIECE, .stride = PIECE, .count = N};
    const xfer_run_t there = {
        .addr = fabric_addr(&rig.there, 0), .bytes = PIECE, .stride = PIECE, .count = N};
    xfer_list_t *local = fabric_list(&rig.here, NULL, &here, 1);
    xfer_list_t *remote = fabric_list(&rig.here, rig.peer, &there, 1);
    uint32_t ids[N];
    for (uint32_t i = 0; i < N; i++) {
        ids[i] = (i * 7 + 3) % N;
    }
    const xfer_request_config_t config = {.local = local, .peer = remote, .peer_ids = ids, .n = N};
    xfer_request_t *request = fabric_request(&rig.here, &config);
    assert_status(fabric_run(request, rig.ends, 2), WEFT_OK);
    for (uint32_t i = 0; i < N; i++) {
        assert_true(fabric_is_filled(rig.here.memory + (size_t)i * PIECE, PIECE, 1,
                                     (uint64_t)ids[i] * PIECE));
    }
    assert_int_equal(xfer_request_stats(request).pieces, N);
    xfer_request_destroy(request);
    xfer_list_destroy(local);
    xfer_list_destroy(remote);
    close_rig(&rig);
}

static void a_small_request_takes_one(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t now[2];
    open_loop(&rig);
    copy_small(&rig);
    moved(&rig, now);
    assert_true((now[0] == rig.before[0]) != (now[1] == rig.before[1]));
    close_rig(&rig);
}

/* As when blocks are read one by one. */
static void small_requests_in_flight_share_the_rails(void **state)
{
    (void)state;
    enum { N = 6 };
    rig_t rig;
    uint64_t now[2];
    xfer_request_t *requests[N];
    open_loop(&rig);
    for (uint64_t i = 0; i < N; i++) {
        const uint64_t at = i * SMALL_BYTES;
        requests[i] = fabric_copy(&rig.here, rig.peer, XFER_READ, at, fabric_addr(&rig.there, at),
                                  SMALL_BYTES);
        assert_status(xfer_post(requests[i]), WEFT_OK);
    }
    for (int i = 0; i < N; i++) {
        assert_status(fabric_wait(requests[i], rig.ends, 2), WEFT_OK);
        xfer_request_destroy(requests[i]);
    }
    moved(&rig, now);
    assert_int_equal(now[0] - rig.before[0], N / 2 * SMALL_BYTES);
    assert_int_equal(now[1] - rig.before[1], N / 2 * SMALL_BYTES);
    assert_true(fabric_is_filled(rig.here.memory, N * SMALL_BYTES, 1, 0));
    close_rig(&rig);
}

static void a_small_request_on_a_rail_that_stalls_goes_by_the_other(void **state)
{
    (void)state;
    rig_t rig;
    open_loop(&rig);
    for (int rail = 1; rail <= 2; rail++) {
        rig.peer->routes[0].is_doubtful = rig.peer->routes[1].is_doubtful = false;
        loop_backend_stall(rail);
        for (int i = 0; i < 2; i++) {
            xfer_request_t *request = begin_small(&rig);
            go_on(&rig, SMALL_BYTES); /* which ends it, or it is on the rail that stalls */
            set_patience(&rig, XFER_RAIL_LATE_NS);
            assert_status(fabric_wait(request, rig.ends, 2), WEFT_OK);
            set_patience(&rig, UINT64_MAX);
            xfer_request_destroy(request);
        }
    }
    close_rig(&rig);
}

static void rails_that_do_not_help_are_left_alone(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t now[2];
    open_loop(&rig);
    rig.peer->routes[0].bytes_per_second = 2e9;
    rig.peer->routes[1].bytes_per_second = 1e9;
    rig.peer->rails_bytes_per_second = 2.1e9; /* together hardly more than the better one */
    xfer_request_t *request = copy_all(&rig, XFER_READ);
    assert_status(fabric_run(request, rig.ends, 2), WEFT_OK);
    moved(&rig, now);
    assert_true((now[0] == rig.before[0]) != (now[1] == rig.before[1]));
    assert_int_equal(rig.peer->rails_left_out, 1);
    assert_here(&rig);
    xfer_request_destroy(request);
    close_rig(&rig);
}

static void a_rail_that_stalls_gives_its_part_to_the_other(void **state)
{
    (void)state;
    rig_t rig;
    open_loop(&rig);
    xfer_request_t *request = copy_all(&rig, XFER_READ);
    loop_backend_stall(2);
    assert_status(xfer_post(request), WEFT_OK);
    go_on(&rig, MEMORY_BYTES); /* until nothing is left but what the other has */
    set_patience(&rig, XFER_RAIL_LATE_NS);
    assert_status(fabric_wait(request, rig.ends, 2), WEFT_OK);
    assert_here(&rig);
    assert_shares(&rig, true, false);
    assert_true(xfer_request_stats(request).resumed > 0);
    assert_true(rig.peer->routes[1].is_doubtful);
    fabric_fill(&rig.there, 2); /* nor does it come back to write */
    loop_backend_stall(0);
    fabric_progress(rig.ends, 2);
    assert_here(&rig);
    xfer_request_destroy(request);
    close_rig(&rig);
}

static void a_rail_that_is_lost_gives_its_part_to_the_other(void **state)
{
    (void)state;
    rig_t rig;
    open_loop(&rig);
    xfer_request_t *request = copy_all(&rig, XFER_READ);
    loop_backend_lose(1);
    assert_status(fabric_run(request, rig.ends, 2), WEFT_OK);
    assert_here(&rig);
    assert_shares(&rig, false, true);
    xfer_request_destroy(request);
    close_rig(&rig);
}

static void without_any_rail_the_peer_is_gone(void **state)
{
    (void)state;
    rig_t rig;
    open_loop(&rig);
    xfer_request_t *request = copy_all(&rig, XFER_READ);
    loop_backend_lose(LOOP_BOTH);
    assert_status(fabric_run(request, rig.ends, 2), WEFT_ERR_PEER_GONE);
    xfer_request_destroy(request);
    close_rig(&rig);
}

static void cancelled_in_the_middle_it_ends_and_can_go_again(void **state)
{
    (void)state;
    rig_t rig;
    open_loop(&rig);
    xfer_request_t *request = copy_all(&rig, XFER_READ);
    assert_status(xfer_post(request), WEFT_OK);
    fabric_progress(rig.ends, 2);
    assert_true(request->is_striped);
    xfer_cancel(request);
    assert_status(fabric_wait(request, rig.ends, 2), WEFT_ERR_CANCELLED);
    assert_status(fabric_run(request, rig.ends, 2), WEFT_OK);
    assert_here(&rig);
    assert_status(xfer_post(request), WEFT_OK);
    xfer_request_destroy(request); /* cancels what runs */
    close_rig(&rig);
}

static void a_peer_forgotten_in_the_middle_ends_it(void **state)
{
    (void)state;
    rig_t rig;
    open_loop(&rig);
    xfer_request_t *request = copy_all(&rig, XFER_READ);
    assert_status(xfer_post(request), WEFT_OK);
    fabric_progress(rig.ends, 2);
    xfer_forget(rig.here.agent, rig.peer);
    assert_status(xfer_poll(request), WEFT_ERR_CANCELLED);
    xfer_request_destroy(request);
    close_rig(&rig);
}

static xfer_request_t *request_of_all(rig_t *rig, xfer_request_config_t config)
{
    const xfer_run_t here = {.addr = fabric_addr(&rig->here, 0), .bytes = MEMORY_BYTES, .count = 1};
    const xfer_run_t there = {
        .addr = fabric_addr(&rig->there, 0), .bytes = MEMORY_BYTES, .count = 1};
    xfer_list_t *local = fabric_list(&rig->here, NULL, &here, 1);
    xfer_list_t *remote = fabric_list(&rig->here, rig->peer, &there, 1);
    config.local = local;
    config.peer = remote;
    xfer_request_t *request = fabric_request(&rig->here, &config);
    xfer_list_destroy(local);
    xfer_list_destroy(remote);
    return request;
}

static void the_notification_comes_behind_the_data_of_all_rails(void **state)
{
    (void)state;
    rig_t rig;
    open_loop(&rig);
    fabric_fill(&rig.here, 5);
    const xfer_request_config_t config = {
        .direction = XFER_WRITE, .n = 1, .notification = "done", .notification_bytes = 4};
    xfer_request_t *request = request_of_all(&rig, config);
    assert_status(xfer_post(request), WEFT_OK);
    xfer_notification_t *note = fabric_wait_notification(&rig.there, rig.ends, 2);
    assert_int_equal(note->bytes, 4);
    assert_true(fabric_is_filled(rig.there.memory, MEMORY_BYTES, 5, 0));
    xfer_notification_free(note);
    assert_status(fabric_wait(request, rig.ends, 2), WEFT_OK);
    assert_shares(&rig, true, true);
    xfer_request_destroy(request);
    close_rig(&rig);
}

static void each_part_is_guarded(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t word = 77;
    open_loop(&rig);
    memcpy(rig.there.memory, &word, sizeof(word));
    const xfer_guard_t guard = {.addr = fabric_addr(&rig.there, 0), .expected = 77};
    const xfer_request_config_t config = {.direction = XFER_READ, .n = 1, .guard = &guard};
    xfer_request_t *request = request_of_all(&rig, config);
    assert_status(fabric_run(request, rig.ends, 2), WEFT_OK);
    rig.peer->rails_bytes_per_second = 0;
    assert_status(xfer_post(request), WEFT_OK);
    fabric_progress(rig.ends, 2);
    assert_true(request->is_striped);
    word = 78; /* what it guards is somebody else's from now on */
    memcpy(rig.there.memory, &word, sizeof(word));
    assert_status(fabric_wait(request, rig.ends, 2), WEFT_ERR_STALE);
    xfer_request_destroy(request);
    close_rig(&rig);
}

/* Two addresses of this host stand for two networks. */
static void connections_to_two_addresses_are_rails(void **state)
{
    (void)state;
    const char *params = "tcp.host=127.0.0.1,tcp1.host=127.0.0.2";
    for (int has_thread = 0; has_thread < 2; has_thread++) {
        rig_t rig;
        const fabric_config_t config = {.backends = "tcp,tcp1",
                                        .params = params,
                                        .has_thread = has_thread != 0,
                                        .bytes = MEMORY_BYTES};
        open_rig(&rig, &config, &config);
        xfer_request_t *request = copy_all(&rig, XFER_READ);
        assert_status(fabric_run(request, rig.ends, 2), WEFT_OK);
        assert_here(&rig);
        assert_shares(&rig, true, true);
        xfer_request_destroy(request);
        close_rig(&rig);
    }
}

static void an_agent_with_one_rail_goes_by_that(void **state)
{
    (void)state;
    fabric_end_t here;
    fabric_end_t there;
    const fabric_config_t one = {
        .backends = "tcp1", .params = "tcp1.host=127.0.0.2", .bytes = MEMORY_BYTES};
    const fabric_config_t two = {.backends = "tcp,tcp1",
                                 .params = "tcp.host=127.0.0.1,tcp1.host=127.0.0.2",
                                 .bytes = MEMORY_BYTES};
    fabric_end_open(&two, "here", &here);
    fabric_end_open(&one, "there", &there);
    fabric_end_t *ends[] = {&here, &there};
    xfer_peer_t *peer = fabric_introduce(&here, &there);
    fabric_fill(&there, 1);
    for (int i = 0; i < 3; i++) {
        xfer_request_t *request =
            fabric_copy(&here, peer, XFER_READ, 0, fabric_addr(&there, 0), MEMORY_BYTES);
        assert_status(fabric_run(request, ends, 2), WEFT_OK);
        assert_null(request->stripe);
        xfer_request_destroy(request);
    }
    assert_true(fabric_is_filled(here.memory, MEMORY_BYTES, 1, 0));
    fabric_end_close(&here);
    fabric_end_close(&there);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_large_request_takes_both_rails),
        cmocka_unit_test(it_can_be_posted_again),
        cmocka_unit_test(pieces_that_two_chunks_share_are_whole),
        cmocka_unit_test(a_small_request_takes_one),
        cmocka_unit_test(small_requests_in_flight_share_the_rails),
        cmocka_unit_test(a_small_request_on_a_rail_that_stalls_goes_by_the_other),
        cmocka_unit_test(rails_that_do_not_help_are_left_alone),
        cmocka_unit_test(a_rail_that_stalls_gives_its_part_to_the_other),
        cmocka_unit_test(a_rail_that_is_lost_gives_its_part_to_the_other),
        cmocka_unit_test(without_any_rail_the_peer_is_gone),
        cmocka_unit_test(cancelled_in_the_middle_it_ends_and_can_go_again),
        cmocka_unit_test(a_peer_forgotten_in_the_middle_ends_it),
        cmocka_unit_test(the_notification_comes_behind_the_data_of_all_rails),
        cmocka_unit_test(each_part_is_guarded),
        cmocka_unit_test(connections_to_two_addresses_are_rails),
        cmocka_unit_test(an_agent_with_one_rail_goes_by_that),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
