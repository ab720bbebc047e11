/* SPDX-License-Identifier: Apache-2.0 */
/* What every backend promises of requests: posting, cancelling and forgetting them. */
#include <pthread.h>
#include <string.h>

#include "base/clock.h"
#include "tests/support/fabric_cases.h"

#define BLOCK ((uint64_t)4096)

/* ---- posting --------------------------------------------------------------------------------- */

static void check_cancel(const fabric_case_t *test)
{
    fabric_pair_t pair;
    fabric_pair_open(test, &pair);
    xfer_request_t *request = fabric_pair_copy(&pair, XFER_READ, 0, 0, FABRIC_CASE_BYTES);
    for (int i = 0; i < 10; i++) {
        assert_status(xfer_post(request), WEFT_OK);
        for (int rounds = 0; rounds < i; rounds++) {
            fabric_progress(pair.ends, 2);
        }
        xfer_cancel(request);
        const weft_status_t status = fabric_wait(request, pair.ends, 2);
        assert_true(status == WEFT_ERR_CANCELLED || status == WEFT_OK);
    }
    xfer_cancel(request); /* of none that runs: nothing */
    fabric_fill(&pair.a, 1);
    assert_status(fabric_pair_run(&pair, request), WEFT_OK);
    assert_true(fabric_is_filled(pair.a.memory, FABRIC_CASE_BYTES, 2, 0));
    xfer_request_destroy(request);
    fabric_pair_close(&pair);
}

static void a_cancelled_request_ends_and_can_be_posted_again(void **state)
{
    (void)state;
    fabric_claim_for_all(0, check_cancel);
}

static void check_repost(const fabric_case_t *test)
{
    fabric_pair_t pair;
    fabric_pair_open(test, &pair);
    const uint64_t n = 3 * BLOCK;
    xfer_request_t *request = fabric_pair_copy(&pair, XFER_READ, BLOCK, 0, n);
    for (uint64_t i = 0; i < 100; i++) {
        memset(pair.b.memory, (int)i, n);
        assert_status(xfer_post(request), WEFT_OK);
        const weft_status_t again = xfer_post(request);
        assert_true(again == WEFT_ERR_IN_USE || again == WEFT_OK); /* the first may be done */
        assert_status(fabric_wait(request, pair.ends, 2), WEFT_OK);
        assert_int_equal(pair.a.memory[BLOCK], i);
        assert_int_equal(pair.a.memory[BLOCK + n - 1], i);
    }
    xfer_request_destroy(request);
    fabric_pair_close(&pair);
}

static void a_request_is_good_for_many_posts(void **state)
{
    (void)state;
    fabric_claim_for_all(0, check_repost);
}

static void check_destroy_running(const fabric_case_t *test)
{
    for (int i = 0; i < 5; i++) {
        fabric_pair_t pair;
        fabric_pair_open(test, &pair);
        xfer_request_t *request = fabric_pair_copy(&pair, XFER_WRITE, 0, 0, FABRIC_CASE_BYTES);
        assert_status(xfer_post(request), WEFT_OK);
        xfer_request_destroy(request);
        fabric_fill(&pair.a, 9); /* nobody reads it any more */
        fabric_pair_close(&pair);
    }
}

static void a_running_request_can_be_destroyed(void **state)
{
    (void)state;
    fabric_claim_for_all(0, check_destroy_running);
}

static void check_batch(const fabric_case_t *test)
{
    enum { N = 16 };
    fabric_pair_t pair;
    xfer_request_t *requests[N];
    xfer_batch_t *batch = NULL;
    fabric_pair_open(test, &pair);
    const uint64_t part = FABRIC_CASE_BYTES / N;
    for (uint64_t i = 0; i < N; i++) {
        requests[i] = fabric_pair_copy(&pair, XFER_READ, i * part, (N - 1 - i) * part, part);
    }
    assert_status(xfer_batch_create(requests, N, &batch), WEFT_OK);
    assert_status(xfer_batch_poll(batch), WEFT_ERR_INVALID);
    for (int round = 0; round < 3; round++) {
        const uint64_t start = weft_clock_ns();
        fabric_fill(&pair.a, 1);
        assert_status(xfer_batch_post(batch), WEFT_OK);
        while (xfer_batch_poll(batch) == WEFT_PENDING) {
            fabric_progress(pair.ends, 2);
            fabric_check_deadline(start, "a batch");
        }
        assert_status(xfer_batch_poll(batch), WEFT_OK);
        for (uint64_t i = 0; i < N; i++) {
            assert_status(xfer_poll(requests[i]), WEFT_OK);
            assert_true(fabric_is_filled(pair.a.memory + i * part, part, 2, (N - 1 - i) * part));
        }
    }
    xfer_batch_destroy(batch);
    for (int i = 0; i < N; i++) {
        xfer_request_destroy(requests[i]);
    }
    fabric_pair_close(&pair);
}

static void a_batch_ends_once_all_have(void **state)
{
    (void)state;
    fabric_claim_for_all(0, check_batch);
}

typedef struct poster {
    fabric_pair_t *pair;
    uint64_t offset;
    int ended_well;
} poster_t;

static void *post_many(void *argument)
{
    enum { N = 4, ROUNDS = 50 };
    poster_t *poster = argument;
    fabric_pair_t *pair = poster->pair;
    xfer_request_t *requests[N];
    const uint64_t part = 5 * BLOCK;
    for (uint64_t i = 0; i < N; i++) {
        const uint64_t at = poster->offset + i * part;
        requests[i] = fabric_pair_copy(pair, XFER_READ, at, at, part);
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < N; i++) {
            poster->ended_well += xfer_post(requests[i]) == WEFT_OK;
        }
        for (int i = 0; i < N; i++) {
            poster->ended_well += fabric_wait(requests[i], pair->ends, 2) == WEFT_OK;
        }
    }
    for (int i = 0; i < N; i++) {
        xfer_request_destroy(requests[i]);
    }
    return NULL;
}

static void check_threads(const fabric_case_t *test)
{
    fabric_pair_t pair;
    fabric_pair_open(test, &pair);
    pthread_t threads[2];
    poster_t posters[2] = {{.pair = &pair}, {.pair = &pair, .offset = FABRIC_CASE_BYTES / 2}};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, post_many, &posters[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(posters[i].ended_well, 2 * 4 * 50);
        assert_true(
            fabric_is_filled(pair.a.memory + posters[i].offset, 20 * BLOCK, 2, posters[i].offset));
    }
    fabric_pair_close(&pair);
}

static void two_threads_may_post_at_once(void **state)
{
    (void)state;
    fabric_claim_for_all(0, check_threads);
}

/* ---- who knows whom -------------------------------------------------------------------------- */

static void check_forget(const fabric_case_t *test)
{
    fabric_pair_t pair;
    fabric_pair_open(test, &pair);
    xfer_request_t *request = fabric_pair_copy(&pair, XFER_READ, 0, 0, FABRIC_CASE_BYTES);
    assert_status(xfer_post(request), WEFT_OK);
    fabric_progress(pair.ends, 2);
    xfer_forget(pair.a.agent, pair.peer);
    const weft_status_t status = xfer_poll(request);
    assert_true(status == WEFT_ERR_CANCELLED || status == WEFT_OK);
    assert_null(xfer_find_peer(pair.a.agent, "b"));
    assert_status(xfer_post(request), WEFT_ERR_NOT_FOUND);
    pair.peer = fabric_introduce(&pair.a, &pair.b);
    assert_status(xfer_post(request), WEFT_ERR_NOT_FOUND);
    xfer_request_t *again = fabric_pair_copy(&pair, XFER_READ, 0, 0, FABRIC_CASE_BYTES);
    assert_status(fabric_pair_run(&pair, again), WEFT_OK);
    assert_true(fabric_is_filled(pair.a.memory, FABRIC_CASE_BYTES, 2, 0));
    xfer_request_destroy(request);
    xfer_request_destroy(again);
    fabric_pair_close(&pair);
}

static void what_is_forgotten_stays_so_for_old_requests(void **state)
{
    (void)state;
    fabric_claim_for_all(0, check_forget);
}

/* A region that was registered later is told of alone, and read from. */
static void check_reload(const fabric_case_t *test)
{
    fabric_pair_t pair;
    weft_buffer_t blob = {0};
    xfer_peer_t *peer = NULL;
    xfer_region_t *region = NULL;
    static uint8_t more[3 * BLOCK];
    fabric_pair_open(test, &pair);
    assert_ptr_equal(fabric_introduce(&pair.a, &pair.b), pair.peer);
    const xfer_memory_t memory = {
        .space = XFER_DRAM, .addr = (uint64_t)(uintptr_t)more, .bytes = sizeof(more), .fd = -1};
    memset(more, 5, sizeof(more));
    if (xfer_register(pair.b.agent, &memory, NULL, &region) == WEFT_OK) {
        assert_false(xfer_peer_has(pair.peer, XFER_DRAM, memory.addr, BLOCK));
        assert_status(xfer_export(pair.b.agent, &region, 1, false, &blob), WEFT_OK);
        assert_status(xfer_import(pair.a.agent, blob.data, blob.length, NULL, &peer), WEFT_OK);
        assert_ptr_equal(peer, pair.peer);
        assert_true(xfer_peer_has(pair.peer, XFER_DRAM, memory.addr, BLOCK));
        xfer_request_t *request =
            fabric_copy(&pair.a, pair.peer, XFER_READ, 10, memory.addr, sizeof(more));
        assert_status(fabric_pair_run(&pair, request), WEFT_OK);
        assert_memory_equal(pair.a.memory + 10, more, sizeof(more));
        xfer_request_destroy(request);
        assert_status(xfer_deregister(pair.b.agent, region), WEFT_OK);
    }
    weft_buffer_free(&blob);
    fabric_pair_close(&pair);
}

static void more_of_a_known_peer_can_be_learned(void **state)
{
    (void)state;
    fabric_claim_for_all(0, check_reload);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cancelled_request_ends_and_can_be_posted_again),
        cmocka_unit_test(a_request_is_good_for_many_posts),
        cmocka_unit_test(a_running_request_can_be_destroyed),
        cmocka_unit_test(a_batch_ends_once_all_have),
        cmocka_unit_test(two_threads_may_post_at_once),
        cmocka_unit_test(what_is_forgotten_stays_so_for_old_requests),
        cmocka_unit_test(more_of_a_known_peer_can_be_learned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
