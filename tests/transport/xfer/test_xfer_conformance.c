/* SPDX-License-Identifier: Apache-2.0 */
/* What every backend promises of what it moves: bytes, notifications, guards. fabric_cases says where. */
#include <string.h>

#include "base/clock.h"
#include "tests/support/fabric_cases.h"
#include "tests/support/random.h"

#define BLOCK ((uint64_t)4096)

/* ---- bytes ----------------------------------------------------------------------------------- */

static void check_copies(const fabric_case_t *test, xfer_direction_t direction)
{
    static const uint64_t sizes[] = {1, 7, 4096, 65536 + 13, ((uint64_t)1 << 20) + 1};
    fabric_pair_t pair;
    fabric_pair_open(test, &pair);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sizes); i++) {
        const uint64_t n = sizes[i];
        const uint64_t from = 4097;
        const uint64_t to = 8209;
        const bool is_read = direction == XFER_READ;
        xfer_request_t *request =
            fabric_pair_copy(&pair, direction, is_read ? to : from, is_read ? from : to, n);
        assert_status(fabric_pair_run(&pair, request), WEFT_OK);
        const uint8_t *got = is_read ? pair.a.memory : pair.b.memory;
        const uint64_t seed = is_read ? 1 : 2;
        assert_true(fabric_is_filled(got, to, seed, 0));
        assert_true(fabric_is_filled(got + to, n, 3 - seed, from));
        assert_true(fabric_is_filled(got + to + n, FABRIC_CASE_BYTES - to - n, seed, to + n));
        const xfer_request_stats_t stats = xfer_request_stats(request);
        assert_int_equal(stats.bytes, n);
        assert_int_equal(stats.extents, 1);
        assert_string_equal(stats.backend, test->backend->name);
        assert_true(stats.posted_ns <= stats.started_ns && stats.started_ns <= stats.ended_ns);
        xfer_request_destroy(request);
        fabric_fill(&pair.a, 1);
        fabric_fill(&pair.b, 2);
    }
    fabric_pair_close(&pair);
}

static void check_read(const fabric_case_t *test)
{
    check_copies(test, XFER_READ);
}

static void check_write(const fabric_case_t *test)
{
    check_copies(test, XFER_WRITE);
}

static void a_read_brings_the_bytes_and_touches_no_other(void **state)
{
    (void)state;
    fabric_claim_for_all(0, check_read);
}

static void a_write_brings_the_bytes_and_touches_no_other(void **state)
{
    (void)state;
    fabric_claim_for_all(0, check_write);
}

static void shuffle(uint32_t *ids, uint32_t n, test_random_t *random)
{
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = i;
    }
    for (uint32_t i = n; i > 1; i--) {
        const uint32_t j = test_random_below(random, i);
        const uint32_t swapped = ids[i - 1];
        ids[i - 1] = ids[j];
        ids[j] = swapped;
    }
}

/* Blocks of the peer to blocks of ours, both in any order, by lists of one run. */
static void check_scattered_in(const fabric_case_t *test, xfer_direction_t direction)
{
    enum { ALL = FABRIC_CASE_BYTES / BLOCK, N = ALL / 2 };
    static uint32_t here[ALL];
    static uint32_t there[ALL];
    test_random_t random = {test_seed(7)};
    fabric_pair_t pair;
    fabric_pair_open(test, &pair);
    shuffle(here, ALL, &random);
    shuffle(there, ALL, &random);
    const xfer_run_t local_run = {
        .addr = fabric_addr(&pair.a, 0), .bytes = BLOCK, .stride = BLOCK, .count = ALL};
    const xfer_run_t peer_run = {
        .addr = fabric_addr(&pair.b, 0), .bytes = BLOCK, .stride = BLOCK, .count = ALL};
    xfer_list_t *local = fabric_list(&pair.a, NULL, &local_run, 1);
    xfer_list_t *peer = fabric_list(&pair.a, pair.peer, &peer_run, 1);
    const xfer_request_config_t config = {.direction = direction,
                                          .local = local,
                                          .peer = peer,
                                          .local_ids = here,
                                          .peer_ids = there,
                                          .n = N};
    xfer_request_t *request = fabric_request(&pair.a, &config);
    xfer_list_destroy(local);
    xfer_list_destroy(peer);
    assert_status(fabric_pair_run(&pair, request), WEFT_OK);
    const bool is_read = direction == XFER_READ;
    const uint8_t *got = is_read ? pair.a.memory : pair.b.memory;
    const uint32_t *to = is_read ? here : there;
    const uint32_t *from = is_read ? there : here;
    for (uint32_t i = 0; i < ALL; i++) {
        const uint64_t old_seed = is_read ? 1 : 2;
        const uint64_t at = to[i] * BLOCK;
        assert_true(i < N ? fabric_is_filled(got + at, BLOCK, 3 - old_seed, from[i] * BLOCK)
                          : fabric_is_filled(got + at, BLOCK, old_seed, at));
    }
    xfer_request_destroy(request);
    fabric_pair_close(&pair);
}

static void check_scattered(const fabric_case_t *test)
{
    check_scattered_in(test, XFER_READ);
    check_scattered_in(test, XFER_WRITE);
}

static void scattered_blocks_arrive_where_they_belong(void **state)
{
    (void)state;
    fabric_claim_for_all(0, check_scattered);
}

/* Slices of the peer's blocks to dense memory: unequal views of the same bytes. */
static void check_strided(const fabric_case_t *test)
{
    enum { SLICE = 300, STRIDE = 1100, N = 3000 };
    fabric_pair_t pair;
    fabric_pair_open(test, &pair);
    const xfer_run_t local_run = {
        .addr = fabric_addr(&pair.a, 5), .bytes = SLICE, .stride = SLICE, .count = N};
    const xfer_run_t peer_run = {
        .addr = fabric_addr(&pair.b, 77), .bytes = SLICE, .stride = STRIDE, .count = N};
    xfer_list_t *local = fabric_list(&pair.a, NULL, &local_run, 1);
    xfer_list_t *peer = fabric_list(&pair.a, pair.peer, &peer_run, 1);
    const xfer_request_config_t config = {.local = local, .peer = peer};
    xfer_request_t *request = fabric_request(&pair.a, &config);
    assert_status(fabric_pair_run(&pair, request), WEFT_OK);
    for (uint64_t i = 0; i < N; i++) {
        assert_true(fabric_is_filled(pair.a.memory + 5 + i * SLICE, SLICE, 2, 77 + i * STRIDE));
    }
    xfer_list_destroy(local);
    xfer_list_destroy(peer);
    xfer_request_destroy(request);
    fabric_pair_close(&pair);
}

static void strided_views_arrive_dense(void **state)
{
    (void)state;
    fabric_claim_for_all(0, check_strided);
}

/* Blocks change places within one agent's memory, and it hears of it itself. */
static void check_self(const fabric_case_t *test)
{
    fabric_end_t a;
    fabric_end_t *ends[] = {&a};
    xfer_peer_t *self = NULL;
    fabric_end_open(&test->config, "a", &a);
    assert_status(xfer_import_self(a.agent, NULL, &self), WEFT_OK);
    assert_ptr_equal(xfer_find_peer(a.agent, "a"), self);
    fabric_fill(&a, 1);
    for (int direction = XFER_READ; direction <= XFER_WRITE; direction++) {
        const uint64_t from = direction == XFER_READ ? 3 * BLOCK : 7 * BLOCK;
        const uint64_t to = direction == XFER_READ ? 101 * BLOCK : 202 * BLOCK;
        const bool is_read = direction == XFER_READ;
        xfer_request_t *request =
            fabric_copy(&a, self, (xfer_direction_t)direction, is_read ? to : from,
                        fabric_addr(&a, is_read ? from : to), 2 * BLOCK);
        assert_status(fabric_run(request, ends, 1), WEFT_OK);
        assert_true(fabric_is_filled(a.memory + to, 2 * BLOCK, 1, from));
        assert_true(fabric_is_filled(a.memory + from, 2 * BLOCK, 1, from));
        xfer_request_destroy(request);
    }
    assert_status(xfer_notify(self, "note", 4), WEFT_OK);
    xfer_notification_t *note = fabric_wait_notification(&a, ends, 1);
    assert_string_equal(note->peer, "a");
    assert_memory_equal(note->data, "note", 4);
    xfer_notification_free(note);
    fabric_end_close(&a);
}

static void an_agent_is_a_peer_of_its_own(void **state)
{
    (void)state;
    fabric_claim_for_all(XFER_CAP_NOTIFY, check_self);
}

static void check_nothing(const fabric_case_t *test)
{
    fabric_pair_t pair;
    fabric_pair_open(test, &pair);
    xfer_request_t *request = fabric_pair_copy(&pair, XFER_WRITE, 0, 0, 0);
    assert_status(xfer_poll(request), WEFT_ERR_INVALID);
    assert_status(fabric_pair_run(&pair, request), WEFT_OK);
    assert_true(fabric_is_filled(pair.b.memory, FABRIC_CASE_BYTES, 2, 0));
    xfer_request_destroy(request);
    fabric_pair_close(&pair);
}

static void nothing_to_move_is_done_at_once(void **state)
{
    (void)state;
    fabric_claim_for_all(0, check_nothing);
}

/* ---- notifications --------------------------------------------------------------------------- */

static xfer_request_t *copy_with_text(fabric_pair_t *pair, xfer_direction_t direction, uint64_t n,
                                      const char *text)
{
    const xfer_run_t here = {.addr = fabric_addr(&pair->a, 0), .bytes = n, .count = 1};
    const xfer_run_t there = {.addr = fabric_addr(&pair->b, 0), .bytes = n, .count = 1};
    xfer_list_t *local = fabric_list(&pair->a, NULL, &here, 1);
    xfer_list_t *peer = fabric_list(&pair->a, pair->peer, &there, 1);
    const xfer_request_config_t config = {.direction = direction,
                                          .local = local,
                                          .peer = peer,
                                          .local_ids = &(uint32_t){0},
                                          .peer_ids = &(uint32_t){0},
                                          .n = n > 0,
                                          .notification = text,
                                          .notification_bytes = strlen(text)};
    xfer_request_t *request = fabric_request(&pair->a, &config);
    xfer_list_destroy(local);
    xfer_list_destroy(peer);
    return request;
}

static void expect_text(fabric_end_t *end, fabric_pair_t *pair, const char *text)
{
    xfer_notification_t *notification = fabric_wait_notification(end, pair->ends, 2);
    assert_int_equal(notification->bytes, strlen(text));
    assert_memory_equal(notification->data, text, strlen(text));
    assert_string_equal(notification->peer, "a");
    xfer_notification_free(notification);
}

static void check_notification(const fabric_case_t *test)
{
    fabric_pair_t pair;
    fabric_pair_open(test, &pair);
    for (uint64_t round = 0; round < 20; round++) {
        const uint64_t seed = 10 + round;
        fabric_fill(&pair.a, seed);
        xfer_request_t *request =
            copy_with_text(&pair, XFER_WRITE, FABRIC_CASE_BYTES, "it is there");
        assert_status(xfer_post(request), WEFT_OK);
        expect_text(&pair.b, &pair, "it is there");
        assert_true(fabric_is_filled(pair.b.memory, FABRIC_CASE_BYTES, seed, 0));
        assert_status(fabric_wait(request, pair.ends, 2), WEFT_OK);
        xfer_request_destroy(request);
    }
    xfer_request_t *request = copy_with_text(&pair, XFER_READ, FABRIC_CASE_BYTES, "I have it");
    fabric_fill(&pair.b, 3);
    assert_status(fabric_pair_run(&pair, request), WEFT_OK);
    expect_text(&pair.b, &pair, "I have it");
    assert_true(fabric_is_filled(pair.a.memory, FABRIC_CASE_BYTES, 3, 0));
    xfer_request_destroy(request);
    request = copy_with_text(&pair, XFER_READ, 0, "only this");
    assert_status(fabric_pair_run(&pair, request), WEFT_OK);
    expect_text(&pair.b, &pair, "only this");
    xfer_request_destroy(request);
    assert_null(xfer_next_notification(pair.b.agent));
    fabric_pair_close(&pair);
}

static void a_notification_is_seen_after_the_data(void **state)
{
    (void)state;
    fabric_claim_for_all(XFER_CAP_NOTIFY, check_notification);
}

static void notify_patiently(fabric_pair_t *pair, const void *data, size_t bytes)
{
    const uint64_t start = weft_clock_ns();
    weft_status_t status;
    while ((status = xfer_notify(pair->peer, data, bytes)) == WEFT_ERR_QUEUE_FULL) {
        fabric_progress(pair->ends, 2);
        fabric_check_deadline(start, "room for a notification");
    }
    assert_status(status, WEFT_OK);
}

static void check_many_notifications(const fabric_case_t *test)
{
    enum { N = 500 };
    static uint8_t large[XFER_MAX_NOTIFICATION + 1];
    static bool has_come[N];
    fabric_pair_t pair;
    fabric_pair_open(test, &pair);
    memset(has_come, 0, sizeof(has_come));
    for (uint32_t i = 0; i < N; i++) {
        notify_patiently(&pair, &i, sizeof(i));
    }
    for (uint32_t i = 0; i < N; i++) {
        xfer_notification_t *notification = fabric_wait_notification(&pair.b, pair.ends, 2);
        uint32_t number;
        assert_int_equal(notification->bytes, sizeof(number));
        memcpy(&number, notification->data, sizeof(number));
        assert_true(number < N && !has_come[number]);
        has_come[number] = true;
        xfer_notification_free(notification);
    }
    memset(large, 7, sizeof(large));
    assert_status(xfer_notify(pair.peer, large, sizeof(large)), WEFT_ERR_TOO_LARGE);
    notify_patiently(&pair, large, XFER_MAX_NOTIFICATION);
    notify_patiently(&pair, NULL, 0);
    size_t sum = 0;
    for (int i = 0; i < 2; i++) {
        xfer_notification_t *notification = fabric_wait_notification(&pair.b, pair.ends, 2);
        sum += notification->bytes;
        xfer_notification_free(notification);
    }
    assert_int_equal(sum, XFER_MAX_NOTIFICATION);
    fabric_pair_close(&pair);
}

static void notifications_come_once_each_whatever_their_size(void **state)
{
    (void)state;
    fabric_claim_for_all(XFER_CAP_NOTIFY, check_many_notifications);
}

/* ---- guards ---------------------------------------------------------------------------------- */

static xfer_request_t *guarded_read(fabric_end_t *end, xfer_peer_t *peer, uint64_t local,
                                    uint64_t peer_addr, uint64_t n, const xfer_guard_t *guard)
{
    const xfer_run_t here = {.addr = fabric_addr(end, local), .bytes = n, .count = 1};
    const xfer_run_t there = {.addr = peer_addr, .bytes = n, .count = 1};
    xfer_list_t *local_list = fabric_list(end, NULL, &here, 1);
    xfer_list_t *peer_list = fabric_list(end, peer, &there, 1);
    const xfer_request_config_t config = {.local = local_list, .peer = peer_list, .guard = guard};
    xfer_request_t *request = fabric_request(end, &config);
    xfer_list_destroy(local_list);
    xfer_list_destroy(peer_list);
    return request;
}

static void check_guard(const fabric_case_t *test)
{
    fabric_pair_t pair;
    fabric_pair_open(test, &pair);
    const uint64_t word = 42;
    const uint64_t n = 100000;
    const xfer_guard_t guard = {.addr = fabric_addr(&pair.b, 4096), .expected = word};
    memcpy(pair.b.memory + 4096, &word, sizeof(word));
    xfer_request_t *request =
        guarded_read(&pair.a, pair.peer, 0, fabric_addr(&pair.b, 8192), n, &guard);
    assert_status(fabric_pair_run(&pair, request), WEFT_OK);
    assert_true(fabric_is_filled(pair.a.memory, n, 2, 8192));
    const uint64_t other = 43;
    memcpy(pair.b.memory + 4096, &other, sizeof(other));
    assert_status(fabric_pair_run(&pair, request), WEFT_ERR_STALE);
    memcpy(pair.b.memory + 4096, &word, sizeof(word));
    assert_status(fabric_pair_run(&pair, request), WEFT_OK);
    xfer_request_destroy(request);
    fabric_pair_close(&pair);
}

static void a_guard_that_changed_makes_a_read_stale(void **state)
{
    (void)state;
    fabric_claim_for_all(XFER_CAP_GUARD, check_guard);
}

typedef struct churn {
    fabric_end_t a;
    fabric_child_t child;
    xfer_peer_t *peer;
    xfer_request_t *word; /* reads the guard to the end of our memory */
    uint32_t fresh;
    uint32_t stale;
} churn_t;

static void read_guarded(churn_t *churn, uint64_t n)
{
    fabric_end_t *ends[] = {&churn->a};
    xfer_guard_t guard = {.addr = churn->child.addr};
    assert_status(fabric_run(churn->word, ends, 1), WEFT_OK);
    memcpy(&guard.expected, churn->a.memory + n, sizeof(guard.expected));
    if (guard.expected == FABRIC_CHURNING) {
        return;
    }
    xfer_request_t *request =
        guarded_read(&churn->a, churn->peer, 0, churn->child.addr + FABRIC_CHURN_FROM, n, &guard);
    const weft_status_t status = fabric_run(request, ends, 1);
    if (status == WEFT_OK) {
        assert_true(fabric_is_filled(churn->a.memory, n, guard.expected, 0));
        churn->fresh++;
    } else {
        assert_status(status, WEFT_ERR_STALE);
        churn->stale++;
    }
    xfer_request_destroy(request);
}

/* The owner changes the word before the bytes and again after them: a read that ends well has those
 * of its word. */
static void check_churn(const fabric_case_t *test)
{
    churn_t churn = {0};
    fabric_config_t config = test->config;
    config.bytes = FABRIC_CASE_BYTES / 8;
    const uint64_t n = config.bytes - FABRIC_CHURN_FROM;
    assert_true(fabric_child_start(&config, "child", &churn.child));
    fabric_end_open(&config, "a", &churn.a);
    churn.peer = fabric_import(&churn.a, &churn.child.blob);
    churn.word =
        fabric_copy(&churn.a, churn.peer, XFER_READ, n, churn.child.addr, sizeof(uint64_t));
    fabric_child_poke(&churn.child, 0, FABRIC_CHURNING);
    fabric_child_churn(&churn.child, 200);
    for (int i = 0; i < 300; i++) {
        read_guarded(&churn, n);
    }
    fabric_child_churned(&churn.child);
    print_message("fresh=%u stale=%u\n", churn.fresh, churn.stale);
    churn.fresh = 0;
    read_guarded(&churn, n);
    assert_int_equal(churn.fresh, 1);
    xfer_request_destroy(churn.word);
    fabric_end_close(&churn.a);
    fabric_child_stop(&churn.child);
}

static void no_read_ends_well_with_bytes_of_another_time(void **state)
{
    (void)state;
#ifdef __SANITIZE_THREAD__
    skip(); /* memory that changes while it is read is what this is about */
#endif
    fabric_claim_for_rows(XFER_CAP_GUARD, check_churn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_read_brings_the_bytes_and_touches_no_other),
        cmocka_unit_test(a_write_brings_the_bytes_and_touches_no_other),
        cmocka_unit_test(scattered_blocks_arrive_where_they_belong),
        cmocka_unit_test(strided_views_arrive_dense),
        cmocka_unit_test(an_agent_is_a_peer_of_its_own),
        cmocka_unit_test(nothing_to_move_is_done_at_once),
        cmocka_unit_test(a_notification_is_seen_after_the_data),
        cmocka_unit_test(notifications_come_once_each_whatever_their_size),
        cmocka_unit_test(a_guard_that_changed_makes_a_read_stale),
        cmocka_unit_test(no_read_ends_well_with_bytes_of_another_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
