/* SPDX-License-Identifier: Apache-2.0 */
/* What every backend promises of a peer in another process, also of one that dies. */
#include <string.h>

#include "base/clock.h"
#include "tests/support/fabric_cases.h"

static void check_processes(const fabric_case_t *test)
{
    fabric_child_t child;
    fabric_end_t a;
    fabric_end_t *ends[] = {&a};
    char text[64];
    assert_true(fabric_child_start(&test->config, "child", &child));
    fabric_end_open(&test->config, "a", &a);
    fabric_fill(&a, 5);
    xfer_peer_t *peer = fabric_import(&a, &child.blob);
    xfer_request_t *read = fabric_copy(&a, peer, XFER_READ, 0, child.addr, FABRIC_CASE_BYTES / 2);
    xfer_request_t *write = fabric_copy(&a, peer, XFER_WRITE, FABRIC_CASE_BYTES / 2,
                                        child.addr + FABRIC_CASE_BYTES / 2, FABRIC_CASE_BYTES / 2);
    assert_status(fabric_run(read, ends, 1), WEFT_OK);
    assert_status(fabric_run(write, ends, 1), WEFT_OK);
    assert_true(fabric_is_filled(a.memory, FABRIC_CASE_BYTES / 2, 1, 0));
    assert_true(fabric_child_is_filled(&child, 5, FABRIC_CASE_BYTES / 2, FABRIC_CASE_BYTES / 2));
    if ((test->backend->caps & XFER_CAP_NOTIFY) != 0) {
        assert_status(xfer_notify(peer, "hello", 5), WEFT_OK);
        fabric_child_next_notification(&child, ends, 1, text, sizeof(text));
        assert_string_equal(text, "hello");
        fabric_child_notify(&child, &a, "hello yourself");
        xfer_notification_t *notification = fabric_wait_notification(&a, ends, 1);
        assert_int_equal(notification->bytes, strlen("hello yourself"));
        assert_string_equal(notification->peer, "child");
        xfer_notification_free(notification);
    }
    assert_status(xfer_peer_status(peer), WEFT_OK);
    xfer_request_destroy(read);
    xfer_request_destroy(write);
    fabric_end_close(&a);
    fabric_child_stop(&child);
}

static void two_processes_read_write_and_notify(void **state)
{
    (void)state;
    fabric_claim_for_rows(0, check_processes);
}

static void check_kill(const fabric_case_t *test)
{
    fabric_child_t victim;
    fabric_child_t other;
    fabric_end_t a;
    fabric_end_t *ends[] = {&a};
    assert_true(fabric_child_start(&test->config, "victim", &victim));
    assert_true(fabric_child_start(&test->config, "other", &other));
    fabric_end_open(&test->config, "a", &a);
    xfer_peer_t *peer = fabric_import(&a, &victim.blob);
    xfer_peer_t *other_peer = fabric_import(&a, &other.blob);
    xfer_request_t *request = fabric_copy(&a, peer, XFER_READ, 0, victim.addr, FABRIC_CASE_BYTES);
    xfer_request_t *beside =
        fabric_copy(&a, other_peer, XFER_READ, 0, other.addr, FABRIC_CASE_BYTES);
    assert_status(fabric_run(request, ends, 1), WEFT_OK);
    assert_status(fabric_run(beside, ends, 1), WEFT_OK);
    assert_status(xfer_post(request), WEFT_OK);
    fabric_child_kill(&victim);
    const uint64_t start = weft_clock_ns();
    weft_status_t status = fabric_wait(request, ends, 1);
    while (status == WEFT_OK) { /* what was mapped may outlive its owner for a moment */
        status = fabric_run(request, ends, 1);
        fabric_check_deadline(start, "to notice a dead peer");
    }
    assert_status(status, WEFT_ERR_PEER_GONE);
    assert_status(fabric_run(request, ends, 1), WEFT_ERR_PEER_GONE);
    assert_status(xfer_peer_status(peer), WEFT_ERR_PEER_GONE);
    assert_status(fabric_run(beside, ends, 1), WEFT_OK);
    assert_true(fabric_is_filled(a.memory, FABRIC_CASE_BYTES, 1, 0));
    xfer_forget(a.agent, peer);
    xfer_request_destroy(request);
    xfer_request_destroy(beside);
    fabric_end_close(&a);
    fabric_child_stop(&other);
}

/* ofi learns of a death by waiting alone: not the time that users get. */
static void check_kill_soon(const fabric_case_t *test)
{
    fabric_case_t soon = *test;
    if (strcmp(test->backend->name, "ofi") == 0) {
        soon.config.params = FABRIC_OFI_PARAMS ",ofi.timeout_ms=1500";
    }
    check_kill(&soon);
}

static void a_killed_peer_fails_its_requests_and_no_others(void **state)
{
    (void)state;
    fabric_claim_for_rows(0, check_kill_soon);
}

/* The peer is still there, its memory is not: the request ends, nobody falls. */
static void check_deregister(const fabric_case_t *test)
{
    fabric_child_t child;
    fabric_end_t a;
    fabric_end_t *ends[] = {&a};
    assert_true(fabric_child_start(&test->config, "child", &child));
    fabric_end_open(&test->config, "a", &a);
    xfer_peer_t *peer = fabric_import(&a, &child.blob);
    xfer_request_t *request = fabric_copy(&a, peer, XFER_READ, 0, child.addr, FABRIC_CASE_BYTES);
    assert_status(fabric_run(request, ends, 1), WEFT_OK);
    assert_status(xfer_post(request), WEFT_OK);
    fabric_child_deregister(&child);
    weft_status_t status = fabric_wait(request, ends, 1);
    print_message("during: %s\n", weft_status_name(status));
    status = fabric_run(request, ends, 1);
    print_message("after: %s\n", weft_status_name(status));
    if ((test->backend->caps & XFER_CAP_REVOKE) != 0) {
        assert_status(status, WEFT_ERR_NOT_FOUND);
    }
    xfer_request_destroy(request);
    fabric_end_close(&a);
    fabric_child_stop(&child);
}

static void memory_taken_back_ends_reads_of_it(void **state)
{
    (void)state;
    fabric_claim_for_rows(0, check_deregister);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_processes_read_write_and_notify),
        cmocka_unit_test(a_killed_peer_fails_its_requests_and_no_others),
        cmocka_unit_test(memory_taken_back_ends_reads_of_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
