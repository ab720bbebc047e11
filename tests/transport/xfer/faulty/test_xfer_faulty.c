/* SPDX-License-Identifier: Apache-2.0 */
/* The faulty backend around the first other one that can be had: each fault, and all together. */
#include <string.h>

#include "base/clock.h"
#include "tests/support/fabric_rig.h"
#include "tests/support/random.h"

#define MEMORY_BYTES ((size_t)1 << 20)

/* ---- a pair of agents ------------------------------------------------------------------------ */

typedef struct pair {
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t *ends[2];
    xfer_peer_t *peer; /* b, as a knows it */
} pair_t;

static const char *wrapped; /* NULL: nothing can be */

static int find_wrapped(void **state)
{
    (void)state;
    for (size_t i = 0; xfer_backends[i] != NULL && wrapped == NULL; i++) {
        fabric_end_t end;
        char params[64];
        snprintf(params, sizeof(params), "faulty.under=%s", xfer_backends[i]->name);
        const fabric_config_t named = {.backends = xfer_backends[i]->name, .bytes = 4096};
        const fabric_config_t config = {.backends = "faulty", .params = params, .bytes = 4096};
        const uint32_t needed = XFER_CAP_DRAM | XFER_CAP_GUARD | XFER_CAP_NOTIFY;
        if ((xfer_backends[i]->caps & (needed | XFER_CAP_NAMED)) != needed ||
            fabric_end_try_open(&named, "probe", &end) < 0) {
            continue;
        }
        fabric_end_close(&end);
        fabric_end_open(&config, "probe", &end);
        fabric_end_close(&end);
        wrapped = xfer_backends[i]->name;
    }
    return 0;
}

/* faults is a's; b does what it should. */
static void pair_open(const char *faults, bool has_thread, pair_t *pair)
{
    char params[256];
    if (wrapped == NULL) {
        print_message("skipped: no backend here can be wrapped\n");
        skip();
    }
    snprintf(params, sizeof(params), "faulty.under=%s,%s", wrapped, faults);
    fabric_config_t config = {
        .backends = "faulty", .params = params, .has_thread = has_thread, .bytes = MEMORY_BYTES};
    fabric_end_open(&config, "a", &pair->a);
    snprintf(params, sizeof(params), "faulty.under=%s", wrapped);
    fabric_end_open(&config, "b", &pair->b);
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

static xfer_request_t *read_of(pair_t *pair, uint64_t offset, uint64_t n)
{
    return fabric_copy(&pair->a, pair->peer, XFER_READ, offset, fabric_addr(&pair->b, offset), n);
}

/* ---- one fault each -------------------------------------------------------------------------- */

static weft_status_t try_params(const char *params)
{
    const xfer_agent_config_t config = {.name = "a", .backends = "faulty", .params = params};
    xfer_agent_t *agent = NULL;
    weft_diag_t diag = {0};
    weft_status_t status = xfer_agent_create(&config, &diag, &agent);
    assert_true(status == WEFT_OK || diag.text[0] != '\0');
    xfer_agent_destroy(agent);
    return status;
}

static void it_has_to_wrap_something_by_numbers(void **state)
{
    (void)state;
    char params[128];
    assert_status(try_params(NULL), WEFT_ERR_INVALID);
    assert_status(try_params("faulty.under=faulty"), WEFT_ERR_INVALID);
    assert_status(try_params("faulty.under=warp"), WEFT_ERR_INVALID);
    if (wrapped == NULL) {
        skip();
    }
    static const char *const wrong[] = {"drop=2",       "drop=-1",  "drop=",    "drop=x",
                                        "corrupt=0.5x", "seed=nan", "unknown=1"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(wrong); i++) {
        snprintf(params, sizeof(params), "faulty.under=%s,faulty.%s", wrapped, wrong[i]);
        assert_status(try_params(params), WEFT_ERR_INVALID);
    }
    snprintf(params, sizeof(params), "faulty.under=%s,faulty.drop=0.5", wrapped);
    assert_status(try_params(params), WEFT_OK);
}

static void it_is_not_there_unless_named(void **state)
{
    (void)state;
    fabric_end_t end;
    xfer_backend_stats_t stats[XFER_MAX_WAYS];
    const fabric_config_t config = {.bytes = 4096};
    if (fabric_end_try_open(&config, "a", &end) < 0) {
        skip();
    }
    const size_t n = xfer_agent_stats(end.agent, stats, XFER_MAX_WAYS);
    for (size_t i = 0; i < n; i++) {
        assert_string_not_equal(stats[i].backend, "faulty");
    }
    fabric_end_close(&end);
}

static void a_delayed_end_comes_later_and_well(void **state)
{
    (void)state;
    pair_t pair;
    pair_open("faulty.delay_us=2000", true, &pair);
    xfer_request_t *request = read_of(&pair, 0, MEMORY_BYTES);
    for (int i = 0; i < 10; i++) {
        fabric_fill(&pair.a, 1);
        assert_status(fabric_run(request, pair.ends, 2), WEFT_OK);
        assert_true(fabric_is_filled(pair.a.memory, MEMORY_BYTES, 2, 0));
    }
    xfer_request_destroy(request);
    pair_close(&pair);
}

static void a_cancelled_request_does_not_wait_for_its_delay(void **state)
{
    (void)state;
    pair_t pair;
    pair_open("faulty.delay_us=1000000000", false, &pair);
    xfer_request_t *request = read_of(&pair, 0, MEMORY_BYTES);
    assert_status(xfer_post(request), WEFT_OK);
    for (int i = 0; i < 100; i++) {
        fabric_progress(pair.ends, 2);
    }
    xfer_cancel(request);
    const weft_status_t status = fabric_wait(request, pair.ends, 2);
    assert_true(status == WEFT_OK || status == WEFT_ERR_CANCELLED);
    xfer_request_destroy(request);
    pair_close(&pair);
}

static void a_corrupted_read_differs_in_one_byte(void **state)
{
    (void)state;
    pair_t pair;
    size_t wrong = 0;
    pair_open("faulty.corrupt=1", false, &pair);
    xfer_request_t *request = read_of(&pair, 0, MEMORY_BYTES);
    assert_status(fabric_run(request, pair.ends, 2), WEFT_OK);
    for (size_t i = 0; i < MEMORY_BYTES; i++) {
        wrong += pair.a.memory[i] != pair.b.memory[i];
    }
    assert_int_equal(wrong, 1);
    xfer_request_destroy(request);
    pair_close(&pair);
}

static void a_cut_link_fails_and_the_next_one_works(void **state)
{
    (void)state;
    pair_t pair;
    pair_open("faulty.cut_after=1500000", false, &pair);
    xfer_request_t *requests[2] = {read_of(&pair, 0, MEMORY_BYTES),
                                   read_of(&pair, 0, MEMORY_BYTES)};
    for (int round = 0; round < 3; round++) {
        assert_status(fabric_run(requests[0], pair.ends, 2), WEFT_OK);
        assert_status(fabric_run(requests[0], pair.ends, 2), WEFT_OK);
        const uint64_t start = weft_clock_ns();
        while (xfer_peer_status(pair.peer) != WEFT_ERR_PEER_GONE) {
            fabric_progress(pair.ends, 2);
            fabric_check_deadline(start, "a cut");
        }
        assert_status(fabric_run(requests[1], pair.ends, 2), WEFT_OK);
        assert_status(xfer_peer_status(pair.peer), WEFT_OK);
        assert_status(fabric_run(requests[1], pair.ends, 2), WEFT_OK);
        fabric_progress(pair.ends, 2);
        fabric_progress(pair.ends, 2);
    }
    xfer_request_destroy(requests[0]);
    xfer_request_destroy(requests[1]);
    pair_close(&pair);
}

static void a_dropped_request_ends_as_gone(void **state)
{
    (void)state;
    pair_t pair;
    pair_open("faulty.drop=1", true, &pair);
    xfer_request_t *request = read_of(&pair, 0, 100);
    assert_status(fabric_run(request, pair.ends, 2), WEFT_ERR_PEER_GONE);
    assert_status(fabric_run(request, pair.ends, 2), WEFT_ERR_PEER_GONE);
    xfer_request_destroy(request);
    pair_close(&pair);
}

static void a_dropped_notification_takes_the_link_with_it(void **state)
{
    (void)state;
    pair_t pair;
    pair_open("faulty.drop=1", false, &pair);
    assert_status(xfer_notify(pair.peer, "hello", 5), WEFT_OK);
    const uint64_t start = weft_clock_ns();
    while (xfer_peer_status(pair.peer) != WEFT_ERR_PEER_GONE) {
        fabric_progress(pair.ends, 2);
        fabric_check_deadline(start, "a lost link");
    }
    assert_null(xfer_next_notification(pair.b.agent));
    pair_close(&pair);
}

typedef struct end_order {
    xfer_request_t *ended[64];
    size_t n;
} end_order_t;

static void log_end(void *user, xfer_request_t *request)
{
    end_order_t *order = user;
    order->ended[order->n++] = request;
}

static void ends_come_in_another_order(void **state)
{
    (void)state;
    enum { N = 40 };
    pair_t pair;
    end_order_t order = {.n = 0};
    xfer_request_t *requests[N];
    size_t overtaken = 0;
    pair_open("faulty.reorder=0.5", false, &pair);
    const xfer_run_t here = {.addr = fabric_addr(&pair.a, 0), .bytes = 64, .count = 1};
    const xfer_run_t there = {.addr = fabric_addr(&pair.b, 0), .bytes = 64, .count = 1};
    xfer_list_t *local = fabric_list(&pair.a, NULL, &here, 1);
    xfer_list_t *peer = fabric_list(&pair.a, pair.peer, &there, 1);
    const xfer_request_config_t config = {
        .local = local, .peer = peer, .on_end = log_end, .user = &order};
    for (int i = 0; i < N; i++) {
        requests[i] = fabric_request(&pair.a, &config);
        assert_status(xfer_post(requests[i]), WEFT_OK);
    }
    const uint64_t start = weft_clock_ns();
    while (order.n < N) {
        fabric_progress(pair.ends, 2);
        fabric_check_deadline(start, "the ends");
    }
    for (int i = 0; i < N; i++) {
        overtaken += order.ended[i] != requests[i];
        assert_status(xfer_poll(requests[i]), WEFT_OK);
        xfer_request_destroy(requests[i]);
    }
    assert_true(overtaken > 0);
    xfer_list_destroy(local);
    xfer_list_destroy(peer);
    pair_close(&pair);
}

/* ---- all of them ----------------------------------------------------------------------------- */

typedef struct tally {
    uint32_t ok;
    uint32_t gone;
    uint32_t cancelled;
} tally_t;

static void count(tally_t *tally, weft_status_t status)
{
    switch (status) {
    case WEFT_OK:
        tally->ok++;
        break;
    case WEFT_ERR_PEER_GONE:
        tally->gone++;
        break;
    default:
        assert_status(status, WEFT_ERR_CANCELLED);
        tally->cancelled++;
    }
}

static void run_storm(uint64_t seed, bool has_thread, tally_t *tally)
{
    enum { N = 8, ROUNDS = 20 };
    char faults[128];
    pair_t pair;
    xfer_request_t *requests[N];
    test_random_t random = {seed};
    snprintf(faults, sizeof(faults),
             "faulty.seed=%llu,faulty.delay_us=50,faulty.reorder=0.02,faulty.drop=0.02",
             (unsigned long long)seed);
    pair_open(faults, has_thread, &pair);
    const uint64_t part = MEMORY_BYTES / N;
    for (uint64_t i = 0; i < N; i++) {
        requests[i] = read_of(&pair, i * part, part);
    }
    for (int round = 0; round < ROUNDS; round++) {
        fabric_fill(&pair.a, 1);
        for (int i = 0; i < N; i++) {
            assert_status(xfer_post(requests[i]), WEFT_OK);
        }
        if (test_random_below(&random, 8) == 0) {
            xfer_cancel(requests[test_random_below(&random, N)]);
        }
        for (uint64_t i = 0; i < N; i++) {
            const weft_status_t status = fabric_wait(requests[i], pair.ends, 2);
            count(tally, status);
            assert_true(status != WEFT_OK ||
                        fabric_is_filled(pair.a.memory + i * part, part, 2, i * part));
        }
    }
    for (int i = 0; i < N; i++) {
        xfer_request_destroy(requests[i]);
    }
    pair_close(&pair);
}

static void in_a_storm_every_request_ends_and_none_lies(void **state)
{
    (void)state;
    tally_t tally = {0};
    const uint64_t seed = test_seed(1);
    for (uint32_t round = 0; round < test_rounds(200); round++) {
        run_storm(seed + round, round % 2 != 0, &tally);
    }
    print_message("ok=%u gone=%u cancelled=%u\n", tally.ok, tally.gone, tally.cancelled);
    assert_true(tally.ok > 0 && tally.gone > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_has_to_wrap_something_by_numbers),
        cmocka_unit_test(it_is_not_there_unless_named),
        cmocka_unit_test(a_delayed_end_comes_later_and_well),
        cmocka_unit_test(a_cancelled_request_does_not_wait_for_its_delay),
        cmocka_unit_test(a_corrupted_read_differs_in_one_byte),
        cmocka_unit_test(a_cut_link_fails_and_the_next_one_works),
        cmocka_unit_test(a_dropped_request_ends_as_gone),
        cmocka_unit_test(a_dropped_notification_takes_the_link_with_it),
        cmocka_unit_test(ends_come_in_another_order),
        cmocka_unit_test(in_a_storm_every_request_ends_and_none_lies),
    };
    return cmocka_run_group_tests(tests, find_wrapped, NULL);
}
