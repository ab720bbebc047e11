/* SPDX-License-Identifier: Apache-2.0 */
/* Which backend a request takes, of several. */
#include <string.h>

#include "base/clock.h"
#include "tests/support/fabric_rig.h"
#include "tests/support/loop_backend.h"
#include "transport/xfer/xfer_request_priv.h"

#define MEMORY_BYTES ((size_t)4 << 20)

static void an_estimate_follows_what_was_measured(void **state)
{
    (void)state;
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t *ends[] = {&a, &b};
    uint64_t ns = 0;
    const fabric_config_t config = {.table = loop_backends, .bytes = MEMORY_BYTES};
    fabric_end_open(&config, "a", &a);
    fabric_end_open(&config, "b", &b);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    xfer_request_t *all = fabric_copy(&a, peer, XFER_READ, 0, fabric_addr(&b, 0), MEMORY_BYTES);
    xfer_request_t *half =
        fabric_copy(&a, peer, XFER_READ, 0, fabric_addr(&b, 0), MEMORY_BYTES / 2);
    assert_status(xfer_estimate(half, &ns), WEFT_ERR_NOT_FOUND);
    assert_status(fabric_run(all, ends, 2), WEFT_OK);
    peer->routes[0].bytes_per_second = 2.0 * MEMORY_BYTES; /* whatever was measured */
    assert_status(xfer_estimate(all, &ns), WEFT_OK);
    assert_int_equal(ns, WEFT_NS_PER_SECOND / 2);
    assert_status(xfer_estimate(half, &ns), WEFT_OK);
    assert_int_equal(ns, WEFT_NS_PER_SECOND / 4);
    xfer_request_destroy(all);
    xfer_request_destroy(half);
    fabric_end_close(&a);
    fabric_end_close(&b);
}

static void a_named_backend_is_used_and_others_are_measured(void **state)
{
    (void)state;
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t *ends[] = {&a, &b};
    xfer_backend_stats_t stats[4];
    const fabric_config_t config = {.table = loop_backends_two, .bytes = MEMORY_BYTES};
    fabric_end_open(&config, "a", &a);
    fabric_end_open(&config, "b", &b);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    xfer_request_t *request = fabric_copy(&a, peer, XFER_READ, 0, fabric_addr(&b, 0), MEMORY_BYTES);
    assert_status(fabric_run(request, ends, 2), WEFT_OK);
    assert_string_equal(xfer_request_stats(request).backend, "loop");
    assert_status(fabric_run(request, ends, 2), WEFT_OK);
    assert_string_equal(xfer_request_stats(request).backend, "loop2");
    assert_int_equal(xfer_agent_stats(a.agent, stats, 4), 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(stats[i].requests, 1);
        assert_int_equal(stats[i].read_bytes, MEMORY_BYTES);
        assert_true(stats[i].bytes_per_second > 0);
    }
    xfer_request_destroy(request);
    const xfer_run_t here = {.addr = fabric_addr(&a, 0), .bytes = 8, .count = 1};
    const xfer_run_t there = {.addr = fabric_addr(&b, 0), .bytes = 8, .count = 1};
    xfer_list_t *local = fabric_list(&a, NULL, &here, 1);
    xfer_list_t *theirs = fabric_list(&a, peer, &there, 1);
    xfer_request_config_t named = {.local = local, .peer = theirs, .backend = "loop2"};
    request = fabric_request(&a, &named);
    assert_status(fabric_run(request, ends, 2), WEFT_OK);
    assert_string_equal(xfer_request_stats(request).backend, "loop2");
    xfer_request_destroy(request);
    named.backend = "warp";
    assert_status(xfer_request_create(a.agent, &named, NULL, &request), WEFT_ERR_UNSUPPORTED);
    xfer_list_destroy(local);
    xfer_list_destroy(theirs);
    fabric_end_close(&a);
    fabric_end_close(&b);
}

/* What one backend cannot do for these two agents the next one does. */
static void check_served_by_the_next(const char *mine, const char *theirs)
{
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t *ends[] = {&a, &b};
    fabric_config_t config = {.table = loop_backends_two, .params = mine, .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    config.params = theirs;
    fabric_end_open(&config, "b", &b);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    fabric_fill(&b, 2);
    xfer_request_t *request = fabric_copy(&a, peer, XFER_READ, 0, fabric_addr(&b, 0), 4096);
    assert_status(fabric_run(request, ends, 2), WEFT_OK);
    assert_string_equal(xfer_request_stats(request).backend, "loop2");
    assert_true(fabric_is_filled(a.memory, 4096, 2, 0));
    assert_status(xfer_notify(peer, "x", 1), WEFT_OK);
    xfer_notification_free(fabric_wait_notification(&b, ends, 2));
    xfer_request_destroy(request);
    fabric_end_close(&a);
    fabric_end_close(&b);
}

static void what_one_backend_cannot_do_the_next_does(void **state)
{
    (void)state;
    check_served_by_the_next("loop.refuse=1", NULL);
    check_served_by_the_next(NULL, "loop.refuse=1");
    check_served_by_the_next("loop.no_connect=1", NULL);
    check_served_by_the_next("loop.no_map=1", NULL);
    check_served_by_the_next(NULL, "loop.no_map=1");
    check_served_by_the_next("loop.no_import=1", NULL);
    check_served_by_the_next("loop.no_move=1", NULL); /* found out late */
}

static void what_turns_out_not_to_go_at_all_ends(void **state)
{
    (void)state;
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t *ends[] = {&a, &b};
    fabric_config_t config = {
        .table = loop_backends_two, .params = "loop.no_move=1,loop2.no_move=1", .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    config.params = NULL;
    fabric_end_open(&config, "b", &b);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    xfer_request_t *request = fabric_copy(&a, peer, XFER_READ, 0, fabric_addr(&b, 0), 4096);
    assert_status(fabric_run(request, ends, 2), WEFT_ERR_UNSUPPORTED);
    xfer_request_destroy(request);
    fabric_end_close(&a);
    fabric_end_close(&b);
}

static void what_no_backend_can_do_is_said(void **state)
{
    (void)state;
    fabric_end_t a;
    fabric_end_t b;
    weft_diag_t diag = {0};
    xfer_request_t *request = NULL;
    fabric_config_t config = {
        .table = loop_backends_two, .params = "loop.no_import=1,loop2.no_connect=", .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    config.params = NULL;
    fabric_end_open(&config, "b", &b);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    const xfer_run_t here = {.addr = fabric_addr(&a, 0), .bytes = 8, .count = 1};
    const xfer_run_t there = {.addr = fabric_addr(&b, 0), .bytes = 8, .count = 1};
    xfer_list_t *local = fabric_list(&a, NULL, &here, 1);
    xfer_list_t *theirs = fabric_list(&a, peer, &there, 1);
    const xfer_request_config_t copy = {.local = local, .peer = theirs};
    assert_status(xfer_request_create(a.agent, &copy, &diag, &request), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "\"b\""));
    const xfer_request_config_t backwards = {.local = theirs, .peer = local};
    assert_status(xfer_request_create(a.agent, &backwards, &diag, &request), WEFT_ERR_INVALID);
    xfer_list_destroy(local);
    xfer_list_destroy(theirs);
    fabric_end_close(&a);
    fabric_end_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_estimate_follows_what_was_measured),
        cmocka_unit_test(a_named_backend_is_used_and_others_are_measured),
        cmocka_unit_test(what_one_backend_cannot_do_the_next_does),
        cmocka_unit_test(what_turns_out_not_to_go_at_all_ends),
        cmocka_unit_test(what_no_backend_can_do_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
