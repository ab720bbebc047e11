/* SPDX-License-Identifier: Apache-2.0 */
/* What is done in which order, told to whom, and slept over: by a thread or by the caller. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/support/fabric_rig.h"
#include "tests/support/loop_backend.h"
#include "transport/xfer/xfer_agent_priv.h"

#define MEMORY_BYTES ((size_t)4 << 20)

/* ---- order ----------------------------------------------------------------------------------- */

typedef struct order_log {
    int numbers[16];
    atomic_int n;
} order_log_t;

typedef struct logged {
    order_log_t *log;
    int number;
} logged_t;

static void log_end(void *user, xfer_request_t *request)
{
    logged_t *logged = user;
    assert_true(xfer_poll(request) != WEFT_PENDING);
    const int n = atomic_load(&logged->log->n);
    logged->log->numbers[n] = logged->number;
    atomic_store(&logged->log->n, n + 1);
}

static xfer_request_t *prioritized(fabric_end_t *a, fabric_end_t *b, xfer_peer_t *peer,
                                   uint8_t priority, logged_t *logged)
{
    const xfer_run_t here = {.addr = fabric_addr(a, 0), .bytes = 200000, .count = 1};
    const xfer_run_t there = {.addr = fabric_addr(b, 0), .bytes = 200000, .count = 1};
    xfer_list_t *local = fabric_list(a, NULL, &here, 1);
    xfer_list_t *theirs = fabric_list(a, peer, &there, 1);
    const xfer_request_config_t config = {
        .local = local, .peer = theirs, .priority = priority, .on_end = log_end, .user = logged};
    xfer_request_t *request = fabric_request(a, &config);
    xfer_list_destroy(local);
    xfer_list_destroy(theirs);
    return request;
}

/* By priority, and by the order of posting among equals; also where a thread takes them. */
static void check_order(bool has_thread)
{
    static const uint8_t priorities[] = {5, 200, 0, 5, 0, 7};
    static const int in_order[] = {2, 4, 0, 3, 5, 1};
    enum { N = WEFT_ARRAY_LEN(priorities) };
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t *ends[] = {&a, &b};
    order_log_t log = {.n = 0};
    logged_t logged[N];
    xfer_request_t *requests[N];
    const fabric_config_t config = {
        .table = loop_backends, .has_thread = has_thread, .bytes = MEMORY_BYTES};
    fabric_end_open(&config, "a", &a);
    fabric_end_open(&config, "b", &b);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    for (int i = 0; i < N; i++) {
        logged[i] = (logged_t){&log, i};
        requests[i] = prioritized(&a, &b, peer, priorities[i], &logged[i]);
    }
    pthread_mutex_lock(&a.agent->lock); /* the thread sees all at once */
    for (int i = 0; has_thread && i < N; i++) {
        assert_status(xfer_post(requests[i]), WEFT_OK);
    }
    pthread_mutex_unlock(&a.agent->lock);
    for (int i = 0; !has_thread && i < N; i++) {
        assert_status(xfer_post(requests[i]), WEFT_OK);
    }
    const uint64_t start = weft_clock_ns();
    while (atomic_load(&log.n) < N) {
        fabric_progress(ends, 2);
        fabric_check_deadline(start, "the callbacks");
    }
    for (int i = 0; i < N; i++) {
        assert_int_equal(log.numbers[i], in_order[i]);
        xfer_request_destroy(requests[i]);
    }
    fabric_end_close(&a);
    fabric_end_close(&b);
}

static void lower_priorities_go_first(void **state)
{
    (void)state;
    check_order(false);
    check_order(true);
}

/* ---- callbacks ------------------------------------------------------------------------------- */

typedef struct chain {
    atomic_int ends;
    int wanted;
} chain_t;

static void post_again(void *user, xfer_request_t *request)
{
    chain_t *chain = user;
    if (atomic_fetch_add(&chain->ends, 1) + 1 < chain->wanted) {
        assert_status(xfer_post(request), WEFT_OK);
    }
}

static void check_chain(bool has_thread, bool is_cut_short)
{
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t *ends[] = {&a, &b};
    chain_t chain = {.ends = 0, .wanted = is_cut_short ? INT32_MAX : 300};
    const fabric_config_t config = {
        .table = loop_backends, .has_thread = has_thread, .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    fabric_end_open(&config, "b", &b);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    const xfer_run_t here = {.addr = fabric_addr(&a, 0), .bytes = 100, .count = 1};
    const xfer_run_t there = {.addr = fabric_addr(&b, 0), .bytes = 100, .count = 1};
    xfer_list_t *local = fabric_list(&a, NULL, &here, 1);
    xfer_list_t *theirs = fabric_list(&a, peer, &there, 1);
    const xfer_request_config_t request_config = {
        .local = local, .peer = theirs, .on_end = post_again, .user = &chain};
    xfer_request_t *request = fabric_request(&a, &request_config);
    assert_status(xfer_post(request), WEFT_OK);
    const uint64_t start = weft_clock_ns();
    while (atomic_load(&chain.ends) < (is_cut_short ? 20 : chain.wanted)) {
        fabric_progress(ends, 2);
        fabric_check_deadline(start, "a chain of posts");
    }
    if (is_cut_short) {
        chain.wanted = 0;
    }
    xfer_request_destroy(request);
    xfer_list_destroy(local);
    xfer_list_destroy(theirs);
    fabric_end_close(&a);
    fabric_end_close(&b);
}

static void a_callback_may_post_its_request_again(void **state)
{
    (void)state;
    check_chain(false, false);
    check_chain(true, false);
}

static void a_request_that_reposts_itself_can_be_destroyed(void **state)
{
    (void)state;
#ifndef __SANITIZE_THREAD__ /* `wanted` is set while the callback reads it */
    check_chain(false, true);
    check_chain(true, true);
#endif
}

static void count_event(void *user)
{
    atomic_fetch_add((atomic_int *)user, 1);
}

static void an_event_is_told_of_notifications_and_ends(void **state)
{
    (void)state;
    atomic_int events = 0;
    weft_diag_t diag = {0};
    fabric_end_t a;
    fabric_end_t b = {0};
    fabric_end_t *ends[] = {&a};
    const fabric_config_t config = {.table = loop_backends, .bytes = 4096};
    const xfer_agent_config_t listening = {
        .name = "b", .has_thread = true, .on_event = count_event, .user = &events};
    fabric_end_open(&config, "a", &a);
    assert_status(xfer_agent_open(&listening, loop_backends, &diag, &b.agent), WEFT_OK);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    assert_status(xfer_notify(peer, "hello", 5), WEFT_OK);
    const uint64_t start = weft_clock_ns();
    while (atomic_load(&events) == 0) {
        fabric_progress(ends, 1);
        fabric_check_deadline(start, "an event");
    }
    xfer_notification_t *notification = xfer_next_notification(b.agent);
    assert_non_null(notification);
    assert_string_equal(notification->peer, "a");
    xfer_notification_free(notification);
    xfer_agent_destroy(b.agent);
    fabric_end_close(&a);
}

/* ---- waiting --------------------------------------------------------------------------------- */

static void *wake_later(void *argument)
{
    fabric_end_t *b = argument;
    xfer_peer_t *peer = xfer_find_peer(b->agent, "a");
    assert_status(xfer_notify(peer, "now", 3), WEFT_OK);
    return NULL;
}

static void progress_sleeps_until_something_comes(void **state)
{
    (void)state;
    fabric_end_t a;
    fabric_end_t b;
    pthread_t thread;
    fabric_config_t config = {.table = loop_backends, .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    config.has_thread = true;
    fabric_end_open(&config, "b", &b);
    fabric_introduce(&b, &a);
    while (xfer_progress(a.agent, 0)) {
    }
    assert_false(xfer_progress(a.agent, 1));
    assert_int_equal(pthread_create(&thread, NULL, wake_later, &b), 0);
    while (!xfer_progress(a.agent, -1)) { /* hangs, and so fails, if the wake-up is lost */
    }
    pthread_join(thread, NULL);
    xfer_notification_t *notification = xfer_next_notification(a.agent);
    assert_non_null(notification);
    xfer_notification_free(notification);
    fabric_end_close(&a);
    fabric_end_close(&b);
}

typedef struct sleeper {
    xfer_agent_t *agent;
    bool took_core;
} sleeper_t;

static void *sleep_once(void *argument)
{
    sleeper_t *sleeper = argument;
    xfer_sleep(sleeper->agent, -1);
    sleeper->took_core = xfer_sleep_took_wakers_core(sleeper->agent);
    return NULL;
}

/* There it must not stay awake: its waker waits. */
static void who_is_woken_knows_whether_it_is_on_the_wakers_core(void **state)
{
    (void)state;
    fabric_end_t a;
    cpu_set_t before;
    cpu_set_t one;
    pthread_t thread;
    const fabric_config_t config = {.table = loop_backends, .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    sleeper_t sleeper = {.agent = a.agent};
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0); /* of the sleeper as well */
    assert_int_equal(pthread_create(&thread, NULL, sleep_once, &sleeper), 0);
    const uint64_t start = weft_clock_ns();
    while (!atomic_load(&a.agent->is_sleeping)) {
        fabric_check_deadline(start, "falling asleep");
        sched_yield();
    }
    xfer_sleep_wake(a.agent);
    pthread_join(thread, NULL);
    assert_true(sleeper.took_core);
    xfer_sleep(a.agent, 1); /* nobody wakes it */
    assert_false(xfer_sleep_took_wakers_core(a.agent));
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
    fabric_end_close(&a);
}

/* Each post finds the thread falling asleep, asleep or awake; all have to be seen. */
static void no_wake_up_is_lost(void **state)
{
    (void)state;
    enum { ROUNDS = 5000 };
    fabric_end_t a;
    fabric_end_t b;
    const fabric_config_t config = {.table = loop_backends, .has_thread = true, .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    fabric_end_open(&config, "b", &b);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    xfer_request_t *request = fabric_copy(&a, peer, XFER_WRITE, 0, fabric_addr(&b, 0), 8);
    for (int i = 0; i < ROUNDS; i++) {
        const uint64_t start = weft_clock_ns();
        assert_status(xfer_post(request), WEFT_OK);
        while (xfer_poll(request) == WEFT_PENDING) {
            if ((i & 1) != 0) {
                usleep(1);
            }
            fabric_check_deadline(start, "a post");
        }
        for (volatile int spin = 0; spin < i % 400; spin++) {
        }
    }
    xfer_request_destroy(request);
    fabric_end_close(&a);
    fabric_end_close(&b);
}

/* Not a time but a number of rounds: the threads of two idle agents make none. */
static void idle_agents_make_no_rounds(void **state)
{
    (void)state;
    fabric_end_t a;
    fabric_end_t b;
    const fabric_config_t config = {.table = loop_backends, .has_thread = true, .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    fabric_end_open(&config, "b", &b);
    const uint64_t start = weft_clock_ns();
    while (!atomic_load(&a.agent->is_sleeping) || !atomic_load(&b.agent->is_sleeping)) {
        fabric_check_deadline(start, "falling asleep");
    }
    const uint64_t before = loop_backend_rounds();
    usleep(200000); /* a while to be idle in */
    assert_int_equal(loop_backend_rounds(), before);
    assert_true(atomic_load(&a.agent->is_sleeping) && atomic_load(&b.agent->is_sleeping));
    fabric_end_close(&a);
    fabric_end_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lower_priorities_go_first),
        cmocka_unit_test(a_callback_may_post_its_request_again),
        cmocka_unit_test(a_request_that_reposts_itself_can_be_destroyed),
        cmocka_unit_test(an_event_is_told_of_notifications_and_ends),
        cmocka_unit_test(progress_sleeps_until_something_comes),
        cmocka_unit_test(who_is_woken_knows_whether_it_is_on_the_wakers_core),
        cmocka_unit_test(no_wake_up_is_lost),
        cmocka_unit_test(idle_agents_make_no_rounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
