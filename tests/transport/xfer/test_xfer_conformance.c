/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every backend promises, for each row of xfer_backends.def and the one of the tests, by the
 * caps that it claims; with and without a thread, for memory that is given as a memfd and not.
 * WEFT_TEST_BACKEND=tcp runs one row.
 */
#include <pthread.h>
#include <string.h>

#include "base/clock.h"
#include "tests/support/fabric_rig.h"
#include "tests/support/loop_backend.h"
#include "tests/support/random.h"

#define MEMORY_BYTES ((size_t)4 << 20)
#define BLOCK        ((uint64_t)4096)

/* ---- the rows -------------------------------------------------------------------------------- */

typedef struct test_case {
    const xfer_backend_t *backend;
    fabric_config_t config;
} test_case_t;

typedef void claim_fn(const test_case_t *test);

/* ThreadSanitizer does not see what orders memory through libraries that it did not compile. */
static bool is_seen_through(const char *name)
{
#ifdef __SANITIZE_THREAD__
    return strcmp(name, "ucx") != 0 && strcmp(name, "ofi") != 0;
#else
    return name != NULL;
#endif
}

static bool is_wanted(const char *name)
{
    const char *only = getenv("WEFT_TEST_BACKEND");
    return is_seen_through(name) && (only == NULL || strcmp(only, name) == 0);
}

static bool can_open(const fabric_config_t *config)
{
    fabric_end_t end;
    if (fabric_end_try_open(config, "probe", &end) < 0) {
        return false;
    }
    fabric_end_close(&end);
    return true;
}

/* Variants: driven by the caller or by a thread, in memory that can be mapped or that cannot. */
enum { WITH_THREAD = 1, IN_PRIVATE = 2, EVERY_VARIANT = 1, OPPOSITES = WITH_THREAD | IN_PRIVATE };

static void claim_for_backend(const xfer_backend_t *backend, const xfer_backend_t *const *table,
                              const char *params, int step, claim_fn *claim)
{
    test_case_t test = {.backend = backend};
    bool can_be_had = false;
    for (int variant = 0; variant <= (WITH_THREAD | IN_PRIVATE); variant += step) {
        test.config = (fabric_config_t){.table = table,
                                        .backends = backend->name,
                                        .params = params,
                                        .has_thread = (variant & WITH_THREAD) != 0,
                                        .is_private = (variant & IN_PRIVATE) != 0,
                                        .bytes = MEMORY_BYTES};
        can_be_had = can_be_had || can_open(&test.config);
        if (can_be_had) {
            print_message("backend=%s params=%s thread=%d private=%d\n", backend->name,
                          params == NULL ? "" : params, test.config.has_thread,
                          test.config.is_private);
            claim(&test);
        }
    }
}

/* tcp1 and so on: the code of tcp, whose row says it all. */
static bool is_rail_beside(const xfer_backend_t *row)
{
    return (row->caps & XFER_CAP_NAMED) != 0 && (row->caps & XFER_CAP_RAIL) != 0;
}

/* A backend that wraps others around each that it can; those are tested by themselves. */
static void claim_for_wrapper(const xfer_backend_t *wrapper, claim_fn *claim)
{
    const uint32_t needed = wrapper->caps & ~XFER_CAP_NAMED;
    for (size_t i = 0; xfer_backends[i] != NULL; i++) {
        const xfer_backend_t *row = xfer_backends[i];
        const fabric_config_t config = {.backends = row->name, .bytes = BLOCK};
        char params[64];
        if (row != wrapper && !is_rail_beside(row) && (row->caps & needed) == needed &&
            can_open(&config)) {
            snprintf(params, sizeof(params), "%s.under=%s", wrapper->name, row->name);
            claim_for_backend(wrapper, NULL, params, OPPOSITES, claim);
        }
    }
}

/* What ofi is for is on few machines: it has to be told to do without. */
#define OFI_PARAMS "ofi.provider=tcp,ofi.host=127.0.0.1"

static const char *params_of(const xfer_backend_t *row)
{
    return strcmp(row->name, "ofi") == 0 ? OFI_PARAMS : NULL;
}

static void claim_for_rows(uint32_t caps, claim_fn *claim)
{
    for (size_t i = 0; xfer_backends[i] != NULL; i++) {
        const xfer_backend_t *row = xfer_backends[i];
        if ((row->caps & caps) != caps || !is_wanted(row->name) || is_rail_beside(row)) {
            continue;
        }
        if ((row->caps & XFER_CAP_NAMED) != 0) {
            claim_for_wrapper(row, claim);
        } else {
            claim_for_backend(row, NULL, params_of(row), EVERY_VARIANT, claim);
        }
    }
}

static void claim_for_all(uint32_t caps, claim_fn *claim)
{
    if ((loop_backend.caps & caps) == caps && is_wanted("loop")) {
        claim_for_backend(&loop_backend, loop_backends, NULL, EVERY_VARIANT, claim);
    }
    claim_for_rows(caps, claim);
}

/* ---- two agents in this process -------------------------------------------------------------- */

typedef struct pair {
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t *ends[2];
    xfer_peer_t *peer; /* b, as a knows it */
} pair_t;

static void pair_open(const test_case_t *test, pair_t *pair)
{
    fabric_end_open(&test->config, "a", &pair->a);
    fabric_end_open(&test->config, "b", &pair->b);
    pair->ends[0] = &pair->a;
    pair->ends[1] = &pair->b;
    pair->peer = fabric_introduce(&pair->a, &pair->b);
    fabric_fill(&pair->a, 1);
    fabric_fill(&pair->b, 2);
}

static void pair_close(pair_t *pair)
{
    fabric_end_close(&pair->a);
    fabric_end_close(&pair->b);
}

static weft_status_t pair_run(pair_t *pair, xfer_request_t *request)
{
    return fabric_run(request, pair->ends, 2);
}

/* ---- bytes ----------------------------------------------------------------------------------- */

static void check_copies(const test_case_t *test, xfer_direction_t direction)
{
    static const uint64_t sizes[] = {1, 7, 4096, 65536 + 13, ((uint64_t)1 << 20) + 1};
    pair_t pair;
    pair_open(test, &pair);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sizes); i++) {
        const uint64_t n = sizes[i];
        const uint64_t from = 4097;
        const uint64_t to = 8209;
        const bool is_read = direction == XFER_READ;
        xfer_request_t *request = fabric_copy(&pair.a, pair.peer, direction, is_read ? to : from,
                                              fabric_addr(&pair.b, is_read ? from : to), n);
        assert_status(pair_run(&pair, request), WEFT_OK);
        const uint8_t *got = is_read ? pair.a.memory : pair.b.memory;
        const uint64_t seed = is_read ? 1 : 2;
        assert_true(fabric_is_filled(got, to, seed, 0));
        assert_true(fabric_is_filled(got + to, n, 3 - seed, from));
        assert_true(fabric_is_filled(got + to + n, MEMORY_BYTES - to - n, seed, to + n));
        const xfer_request_stats_t stats = xfer_request_stats(request);
        assert_int_equal(stats.bytes, n);
        assert_int_equal(stats.extents, 1);
        assert_string_equal(stats.backend, test->backend->name);
        assert_true(stats.posted_ns <= stats.started_ns && stats.started_ns <= stats.ended_ns);
        xfer_request_destroy(request);
        fabric_fill(&pair.a, 1);
        fabric_fill(&pair.b, 2);
    }
    pair_close(&pair);
}

static void check_read(const test_case_t *test)
{
    check_copies(test, XFER_READ);
}

static void check_write(const test_case_t *test)
{
    check_copies(test, XFER_WRITE);
}

static void a_read_brings_the_bytes_and_touches_no_other(void **state)
{
    (void)state;
    claim_for_all(0, check_read);
}

static void a_write_brings_the_bytes_and_touches_no_other(void **state)
{
    (void)state;
    claim_for_all(0, check_write);
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
static void check_scattered_in(const test_case_t *test, xfer_direction_t direction)
{
    enum { ALL = MEMORY_BYTES / BLOCK, N = ALL / 2 };
    static uint32_t here[ALL];
    static uint32_t there[ALL];
    test_random_t random = {test_seed(7)};
    pair_t pair;
    pair_open(test, &pair);
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
    assert_status(pair_run(&pair, request), WEFT_OK);
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
    pair_close(&pair);
}

static void check_scattered(const test_case_t *test)
{
    check_scattered_in(test, XFER_READ);
    check_scattered_in(test, XFER_WRITE);
}

static void scattered_blocks_arrive_where_they_belong(void **state)
{
    (void)state;
    claim_for_all(0, check_scattered);
}

/* Slices of the peer's blocks to dense memory: unequal views of the same bytes. */
static void check_strided(const test_case_t *test)
{
    enum { SLICE = 300, STRIDE = 1100, N = 3000 };
    pair_t pair;
    pair_open(test, &pair);
    const xfer_run_t local_run = {
        .addr = fabric_addr(&pair.a, 5), .bytes = SLICE, .stride = SLICE, .count = N};
    const xfer_run_t peer_run = {
        .addr = fabric_addr(&pair.b, 77), .bytes = SLICE, .stride = STRIDE, .count = N};
    xfer_list_t *local = fabric_list(&pair.a, NULL, &local_run, 1);
    xfer_list_t *peer = fabric_list(&pair.a, pair.peer, &peer_run, 1);
    const xfer_request_config_t config = {.local = local, .peer = peer};
    xfer_request_t *request = fabric_request(&pair.a, &config);
    assert_status(pair_run(&pair, request), WEFT_OK);
    for (uint64_t i = 0; i < N; i++) {
        assert_true(fabric_is_filled(pair.a.memory + 5 + i * SLICE, SLICE, 2, 77 + i * STRIDE));
    }
    xfer_list_destroy(local);
    xfer_list_destroy(peer);
    xfer_request_destroy(request);
    pair_close(&pair);
}

static void strided_views_arrive_dense(void **state)
{
    (void)state;
    claim_for_all(0, check_strided);
}

/* Blocks change places within one agent's memory, and it hears of it itself. */
static void check_self(const test_case_t *test)
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
    claim_for_all(XFER_CAP_NOTIFY, check_self);
}

static void check_nothing(const test_case_t *test)
{
    pair_t pair;
    pair_open(test, &pair);
    xfer_request_t *request =
        fabric_copy(&pair.a, pair.peer, XFER_WRITE, 0, fabric_addr(&pair.b, 0), 0);
    assert_status(xfer_poll(request), WEFT_ERR_INVALID);
    assert_status(pair_run(&pair, request), WEFT_OK);
    assert_true(fabric_is_filled(pair.b.memory, MEMORY_BYTES, 2, 0));
    xfer_request_destroy(request);
    pair_close(&pair);
}

static void nothing_to_move_is_done_at_once(void **state)
{
    (void)state;
    claim_for_all(0, check_nothing);
}

/* ---- notifications --------------------------------------------------------------------------- */

static xfer_request_t *copy_with_text(pair_t *pair, xfer_direction_t direction, uint64_t n,
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

static void expect_text(fabric_end_t *end, pair_t *pair, const char *text)
{
    xfer_notification_t *notification = fabric_wait_notification(end, pair->ends, 2);
    assert_int_equal(notification->bytes, strlen(text));
    assert_memory_equal(notification->data, text, strlen(text));
    assert_string_equal(notification->peer, "a");
    xfer_notification_free(notification);
}

static void check_notification(const test_case_t *test)
{
    pair_t pair;
    pair_open(test, &pair);
    for (uint64_t round = 0; round < 20; round++) {
        const uint64_t seed = 10 + round;
        fabric_fill(&pair.a, seed);
        xfer_request_t *request = copy_with_text(&pair, XFER_WRITE, MEMORY_BYTES, "it is there");
        assert_status(xfer_post(request), WEFT_OK);
        expect_text(&pair.b, &pair, "it is there");
        assert_true(fabric_is_filled(pair.b.memory, MEMORY_BYTES, seed, 0));
        assert_status(fabric_wait(request, pair.ends, 2), WEFT_OK);
        xfer_request_destroy(request);
    }
    xfer_request_t *request = copy_with_text(&pair, XFER_READ, MEMORY_BYTES, "I have it");
    fabric_fill(&pair.b, 3);
    assert_status(pair_run(&pair, request), WEFT_OK);
    expect_text(&pair.b, &pair, "I have it");
    assert_true(fabric_is_filled(pair.a.memory, MEMORY_BYTES, 3, 0));
    xfer_request_destroy(request);
    request = copy_with_text(&pair, XFER_READ, 0, "only this");
    assert_status(pair_run(&pair, request), WEFT_OK);
    expect_text(&pair.b, &pair, "only this");
    xfer_request_destroy(request);
    assert_null(xfer_next_notification(pair.b.agent));
    pair_close(&pair);
}

static void a_notification_is_seen_after_the_data(void **state)
{
    (void)state;
    claim_for_all(XFER_CAP_NOTIFY, check_notification);
}

static void notify_patiently(pair_t *pair, const void *data, size_t bytes)
{
    const uint64_t start = weft_clock_ns();
    weft_status_t status;
    while ((status = xfer_notify(pair->peer, data, bytes)) == WEFT_ERR_QUEUE_FULL) {
        fabric_progress(pair->ends, 2);
        fabric_check_deadline(start, "room for a notification");
    }
    assert_status(status, WEFT_OK);
}

static void check_many_notifications(const test_case_t *test)
{
    enum { N = 500 };
    static uint8_t large[XFER_MAX_NOTIFICATION + 1];
    static bool has_come[N];
    pair_t pair;
    pair_open(test, &pair);
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
    pair_close(&pair);
}

static void notifications_come_once_each_whatever_their_size(void **state)
{
    (void)state;
    claim_for_all(XFER_CAP_NOTIFY, check_many_notifications);
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

static void check_guard(const test_case_t *test)
{
    pair_t pair;
    pair_open(test, &pair);
    const uint64_t word = 42;
    const uint64_t n = 100000;
    const xfer_guard_t guard = {.addr = fabric_addr(&pair.b, 4096), .expected = word};
    memcpy(pair.b.memory + 4096, &word, sizeof(word));
    xfer_request_t *request =
        guarded_read(&pair.a, pair.peer, 0, fabric_addr(&pair.b, 8192), n, &guard);
    assert_status(pair_run(&pair, request), WEFT_OK);
    assert_true(fabric_is_filled(pair.a.memory, n, 2, 8192));
    const uint64_t other = 43;
    memcpy(pair.b.memory + 4096, &other, sizeof(other));
    assert_status(pair_run(&pair, request), WEFT_ERR_STALE);
    memcpy(pair.b.memory + 4096, &word, sizeof(word));
    assert_status(pair_run(&pair, request), WEFT_OK);
    xfer_request_destroy(request);
    pair_close(&pair);
}

static void a_guard_that_changed_makes_a_read_stale(void **state)
{
    (void)state;
    claim_for_all(XFER_CAP_GUARD, check_guard);
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
static void check_churn(const test_case_t *test)
{
    churn_t churn = {0};
    fabric_config_t config = test->config;
    config.bytes = MEMORY_BYTES / 8;
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
    claim_for_rows(XFER_CAP_GUARD, check_churn);
}

/* ---- posting --------------------------------------------------------------------------------- */

static void check_cancel(const test_case_t *test)
{
    pair_t pair;
    pair_open(test, &pair);
    xfer_request_t *request =
        fabric_copy(&pair.a, pair.peer, XFER_READ, 0, fabric_addr(&pair.b, 0), MEMORY_BYTES);
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
    assert_status(pair_run(&pair, request), WEFT_OK);
    assert_true(fabric_is_filled(pair.a.memory, MEMORY_BYTES, 2, 0));
    xfer_request_destroy(request);
    pair_close(&pair);
}

static void a_cancelled_request_ends_and_can_be_posted_again(void **state)
{
    (void)state;
    claim_for_all(0, check_cancel);
}

static void check_repost(const test_case_t *test)
{
    pair_t pair;
    pair_open(test, &pair);
    const uint64_t n = 3 * BLOCK;
    xfer_request_t *request =
        fabric_copy(&pair.a, pair.peer, XFER_READ, BLOCK, fabric_addr(&pair.b, 0), n);
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
    pair_close(&pair);
}

static void a_request_is_good_for_many_posts(void **state)
{
    (void)state;
    claim_for_all(0, check_repost);
}

static void check_destroy_running(const test_case_t *test)
{
    for (int i = 0; i < 5; i++) {
        pair_t pair;
        pair_open(test, &pair);
        xfer_request_t *request =
            fabric_copy(&pair.a, pair.peer, XFER_WRITE, 0, fabric_addr(&pair.b, 0), MEMORY_BYTES);
        assert_status(xfer_post(request), WEFT_OK);
        xfer_request_destroy(request);
        fabric_fill(&pair.a, 9); /* nobody reads it any more */
        pair_close(&pair);
    }
}

static void a_running_request_can_be_destroyed(void **state)
{
    (void)state;
    claim_for_all(0, check_destroy_running);
}

static void check_batch(const test_case_t *test)
{
    enum { N = 16 };
    pair_t pair;
    xfer_request_t *requests[N];
    xfer_batch_t *batch = NULL;
    pair_open(test, &pair);
    const uint64_t part = MEMORY_BYTES / N;
    for (uint64_t i = 0; i < N; i++) {
        requests[i] = fabric_copy(&pair.a, pair.peer, XFER_READ, i * part,
                                  fabric_addr(&pair.b, (N - 1 - i) * part), part);
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
    pair_close(&pair);
}

static void a_batch_ends_once_all_have(void **state)
{
    (void)state;
    claim_for_all(0, check_batch);
}

typedef struct poster {
    pair_t *pair;
    uint64_t offset;
    int ended_well;
} poster_t;

static void *post_many(void *argument)
{
    enum { N = 4, ROUNDS = 50 };
    poster_t *poster = argument;
    pair_t *pair = poster->pair;
    xfer_request_t *requests[N];
    const uint64_t part = 5 * BLOCK;
    for (uint64_t i = 0; i < N; i++) {
        const uint64_t at = poster->offset + i * part;
        requests[i] =
            fabric_copy(&pair->a, pair->peer, XFER_READ, at, fabric_addr(&pair->b, at), part);
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

static void check_threads(const test_case_t *test)
{
    pair_t pair;
    pair_open(test, &pair);
    pthread_t threads[2];
    poster_t posters[2] = {{.pair = &pair}, {.pair = &pair, .offset = MEMORY_BYTES / 2}};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, post_many, &posters[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(posters[i].ended_well, 2 * 4 * 50);
        assert_true(
            fabric_is_filled(pair.a.memory + posters[i].offset, 20 * BLOCK, 2, posters[i].offset));
    }
    pair_close(&pair);
}

static void two_threads_may_post_at_once(void **state)
{
    (void)state;
    claim_for_all(0, check_threads);
}

/* ---- who knows whom -------------------------------------------------------------------------- */

static void check_forget(const test_case_t *test)
{
    pair_t pair;
    pair_open(test, &pair);
    xfer_request_t *request =
        fabric_copy(&pair.a, pair.peer, XFER_READ, 0, fabric_addr(&pair.b, 0), MEMORY_BYTES);
    assert_status(xfer_post(request), WEFT_OK);
    fabric_progress(pair.ends, 2);
    xfer_forget(pair.a.agent, pair.peer);
    const weft_status_t status = xfer_poll(request);
    assert_true(status == WEFT_ERR_CANCELLED || status == WEFT_OK);
    assert_null(xfer_find_peer(pair.a.agent, "b"));
    assert_status(xfer_post(request), WEFT_ERR_NOT_FOUND);
    pair.peer = fabric_introduce(&pair.a, &pair.b);
    assert_status(xfer_post(request), WEFT_ERR_NOT_FOUND);
    xfer_request_t *again =
        fabric_copy(&pair.a, pair.peer, XFER_READ, 0, fabric_addr(&pair.b, 0), MEMORY_BYTES);
    assert_status(pair_run(&pair, again), WEFT_OK);
    assert_true(fabric_is_filled(pair.a.memory, MEMORY_BYTES, 2, 0));
    xfer_request_destroy(request);
    xfer_request_destroy(again);
    pair_close(&pair);
}

static void what_is_forgotten_stays_so_for_old_requests(void **state)
{
    (void)state;
    claim_for_all(0, check_forget);
}

/* A region that was registered later is told of alone, and read from. */
static void check_reload(const test_case_t *test)
{
    pair_t pair;
    weft_buffer_t blob = {0};
    xfer_peer_t *peer = NULL;
    xfer_region_t *region = NULL;
    static uint8_t more[3 * BLOCK];
    pair_open(test, &pair);
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
        assert_status(pair_run(&pair, request), WEFT_OK);
        assert_memory_equal(pair.a.memory + 10, more, sizeof(more));
        xfer_request_destroy(request);
        assert_status(xfer_deregister(pair.b.agent, region), WEFT_OK);
    }
    weft_buffer_free(&blob);
    pair_close(&pair);
}

static void more_of_a_known_peer_can_be_learned(void **state)
{
    (void)state;
    claim_for_all(0, check_reload);
}

/* ---- a peer in another process --------------------------------------------------------------- */

static void check_processes(const test_case_t *test)
{
    fabric_child_t child;
    fabric_end_t a;
    fabric_end_t *ends[] = {&a};
    char text[64];
    assert_true(fabric_child_start(&test->config, "child", &child));
    fabric_end_open(&test->config, "a", &a);
    fabric_fill(&a, 5);
    xfer_peer_t *peer = fabric_import(&a, &child.blob);
    xfer_request_t *read = fabric_copy(&a, peer, XFER_READ, 0, child.addr, MEMORY_BYTES / 2);
    xfer_request_t *write = fabric_copy(&a, peer, XFER_WRITE, MEMORY_BYTES / 2,
                                        child.addr + MEMORY_BYTES / 2, MEMORY_BYTES / 2);
    assert_status(fabric_run(read, ends, 1), WEFT_OK);
    assert_status(fabric_run(write, ends, 1), WEFT_OK);
    assert_true(fabric_is_filled(a.memory, MEMORY_BYTES / 2, 1, 0));
    assert_true(fabric_child_is_filled(&child, 5, MEMORY_BYTES / 2, MEMORY_BYTES / 2));
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
    claim_for_rows(0, check_processes);
}

static void check_kill(const test_case_t *test)
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
    xfer_request_t *request = fabric_copy(&a, peer, XFER_READ, 0, victim.addr, MEMORY_BYTES);
    xfer_request_t *beside = fabric_copy(&a, other_peer, XFER_READ, 0, other.addr, MEMORY_BYTES);
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
    assert_true(fabric_is_filled(a.memory, MEMORY_BYTES, 1, 0));
    xfer_forget(a.agent, peer);
    xfer_request_destroy(request);
    xfer_request_destroy(beside);
    fabric_end_close(&a);
    fabric_child_stop(&other);
}

/* ofi learns of a death by waiting alone: not the time that users get. */
static void check_kill_soon(const test_case_t *test)
{
    test_case_t soon = *test;
    if (strcmp(test->backend->name, "ofi") == 0) {
        soon.config.params = OFI_PARAMS ",ofi.timeout_ms=1500";
    }
    check_kill(&soon);
}

static void a_killed_peer_fails_its_requests_and_no_others(void **state)
{
    (void)state;
    claim_for_rows(0, check_kill_soon);
}

/* The peer is still there, its memory is not: the request ends, nobody falls. */
static void check_deregister(const test_case_t *test)
{
    fabric_child_t child;
    fabric_end_t a;
    fabric_end_t *ends[] = {&a};
    assert_true(fabric_child_start(&test->config, "child", &child));
    fabric_end_open(&test->config, "a", &a);
    xfer_peer_t *peer = fabric_import(&a, &child.blob);
    xfer_request_t *request = fabric_copy(&a, peer, XFER_READ, 0, child.addr, MEMORY_BYTES);
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
    claim_for_rows(0, check_deregister);
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
        cmocka_unit_test(a_cancelled_request_ends_and_can_be_posted_again),
        cmocka_unit_test(a_request_is_good_for_many_posts),
        cmocka_unit_test(a_running_request_can_be_destroyed),
        cmocka_unit_test(a_batch_ends_once_all_have),
        cmocka_unit_test(two_threads_may_post_at_once),
        cmocka_unit_test(what_is_forgotten_stays_so_for_old_requests),
        cmocka_unit_test(more_of_a_known_peer_can_be_learned),
        cmocka_unit_test(two_processes_read_write_and_notify),
        cmocka_unit_test(a_killed_peer_fails_its_requests_and_no_others),
        cmocka_unit_test(memory_taken_back_ends_reads_of_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
