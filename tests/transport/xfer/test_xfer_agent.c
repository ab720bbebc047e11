/* SPDX-License-Identifier: Apache-2.0 */
/* What the agent does itself, whatever the backend: over the loop backend. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/support/fabric_rig.h"
#include "tests/support/loop_backend.h"
#include "transport/xfer/xfer_request_priv.h"

#define MEMORY_BYTES ((size_t)4 << 20)

/* ---- opening --------------------------------------------------------------------------------- */

static weft_status_t try_open(const char *name, const char *backends, const char *params,
                              const char *why)
{
    const xfer_agent_config_t config = {.name = name, .backends = backends, .params = params};
    weft_diag_t diag = {0};
    xfer_agent_t *agent = NULL;
    weft_status_t status = xfer_agent_open(&config, loop_backends_two, &diag, &agent);
    if (why != NULL && strstr(diag.text, why) == NULL) {
        fail_msg("\"%s\" says nothing of \"%s\"", diag.text, why);
    }
    xfer_agent_destroy(agent);
    return status;
}

static void what_is_wrong_with_a_config_is_said(void **state)
{
    (void)state;
    static char name[XFER_MAX_NAME + 2];
    memset(name, 'x', sizeof(name) - 1);
    assert_status(try_open("a", NULL, NULL, NULL), WEFT_OK);
    assert_status(try_open("a", "loop", "", NULL), WEFT_OK);
    assert_status(try_open("a", "loop,loop2", NULL, NULL), WEFT_OK);
    assert_status(try_open(name, NULL, NULL, "255 bytes"), WEFT_ERR_INVALID);
    assert_status(try_open(name + 1, NULL, NULL, NULL), WEFT_OK);
    assert_status(try_open("", NULL, NULL, "name"), WEFT_ERR_INVALID);
    assert_status(try_open("a", "loop,warp", NULL, "\"warp\""), WEFT_ERR_NOT_FOUND);
    assert_status(try_open("a", NULL, "warp.speed=9", "\"warp\""), WEFT_ERR_NOT_FOUND);
    assert_status(try_open("a", NULL, "loop", "\"loop\""), WEFT_ERR_INVALID);
    assert_status(try_open("a", NULL, "loop.x", "\"loop.x\""), WEFT_ERR_INVALID);
    assert_status(try_open("a", NULL, "loop=x.y", "\"loop=x.y\""), WEFT_ERR_INVALID);
    assert_status(try_open("a", NULL, "loop2.knots=1", "\"knots\""), WEFT_ERR_INVALID);
    assert_status(try_open("a", "loop,loop2", "loop.refuse=1", "told to"), WEFT_ERR_UNSUPPORTED);
    assert_status(try_open("a", NULL, "loop.refuse=1", NULL), WEFT_OK);
    assert_status(try_open("a", NULL, "loop.refuse=1,loop2.refuse=", "no backend"),
                  WEFT_ERR_UNSUPPORTED);
}

static void agents_without_a_name_get_different_ones(void **state)
{
    (void)state;
    fabric_end_t a;
    fabric_end_t b;
    const fabric_config_t config = {.table = loop_backends, .bytes = 4096};
    fabric_end_open(&config, NULL, &a);
    fabric_end_open(&config, NULL, &b);
    assert_string_not_equal(xfer_agent_name(a.agent), xfer_agent_name(b.agent));
    fabric_end_close(&a);
    fabric_end_close(&b);
}

/* ---- regions --------------------------------------------------------------------------------- */

static weft_status_t try_register(xfer_agent_t *agent, xfer_space_t space, uint64_t addr,
                                  uint64_t bytes, xfer_region_t **region_out)
{
    const xfer_memory_t memory = {.space = space, .addr = addr, .bytes = bytes, .fd = -1};
    weft_diag_t diag = {0};
    weft_status_t status = xfer_register(agent, &memory, &diag, region_out);
    assert_true(status == WEFT_OK || diag.text[0] != '\0');
    return status;
}

static void regions_do_not_overlap(void **state)
{
    (void)state;
    fabric_end_t a;
    xfer_region_t *region = NULL;
    xfer_region_t *next = NULL;
    const fabric_config_t config = {.table = loop_backends, .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    assert_status(try_register(a.agent, XFER_DRAM, 1000, 1000, &region), WEFT_OK);
    assert_status(try_register(a.agent, XFER_DRAM, 1999, 1, &next), WEFT_ERR_EXISTS);
    assert_status(try_register(a.agent, XFER_DRAM, 500, 501, &next), WEFT_ERR_EXISTS);
    assert_status(try_register(a.agent, XFER_DRAM, 500, 5000, &next), WEFT_ERR_EXISTS);
    assert_status(try_register(a.agent, XFER_DRAM, 2000, 5, &next), WEFT_OK);
    assert_status(xfer_deregister(a.agent, next), WEFT_OK);
    assert_status(try_register(a.agent, XFER_DRAM, 5000, 0, &next), WEFT_ERR_INVALID);
    assert_status(try_register(a.agent, XFER_DRAM, UINT64_MAX, 2, &next), WEFT_ERR_INVALID);
    assert_status(try_register(a.agent, (xfer_space_t)2, 5000, 5, &next), WEFT_ERR_INVALID);
    assert_status(try_register(a.agent, XFER_VRAM, 5000, 5, &next), WEFT_ERR_UNSUPPORTED);
    assert_status(xfer_deregister(a.agent, region), WEFT_OK);
    assert_status(try_register(a.agent, XFER_DRAM, 500, 5000, &next), WEFT_OK);
    fabric_end_close(&a);
}

/* ---- who knows whom -------------------------------------------------------------------------- */

static weft_status_t try_import(fabric_end_t *end, const weft_buffer_t *blob)
{
    weft_diag_t diag = {0};
    xfer_peer_t *peer = NULL;
    weft_status_t status = xfer_import(end->agent, blob->data, blob->length, &diag, &peer);
    assert_true(status == WEFT_OK || diag.text[0] != '\0');
    return status;
}

static void an_agent_takes_neither_its_own_blob_nor_a_changed_one(void **state)
{
    (void)state;
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t other_b;
    weft_buffer_t blob = {0};
    const fabric_config_t config = {.table = loop_backends, .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    fabric_end_open(&config, "b", &b);
    fabric_end_open(&config, "b", &other_b);
    fabric_export(&a, &blob);
    assert_status(try_import(&a, &blob), WEFT_ERR_INVALID);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    weft_buffer_clear(&blob);
    fabric_export(&other_b, &blob);
    assert_status(try_import(&a, &blob), WEFT_ERR_EXISTS);
    xfer_forget(a.agent, peer);
    assert_status(try_import(&a, &blob), WEFT_OK);
    weft_buffer_free(&blob);
    fabric_end_close(&a);
    fabric_end_close(&b);
    fabric_end_close(&other_b);
}

static void agents_without_a_common_backend_do_not_meet(void **state)
{
    (void)state;
    fabric_end_t a;
    fabric_end_t b;
    weft_buffer_t blob = {0};
    fabric_config_t config = {.table = loop_backends_two, .backends = "loop", .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    config.backends = "loop2";
    fabric_end_open(&config, "b", &b);
    fabric_export(&b, &blob);
    assert_status(try_import(&a, &blob), WEFT_ERR_UNSUPPORTED);
    weft_buffer_free(&blob);
    fabric_end_close(&a);
    fabric_end_close(&b);
}

static void a_closed_peer_is_gone_and_may_not_come_back_by_itself(void **state)
{
    (void)state;
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t *ends[] = {&a};
    const fabric_config_t config = {.table = loop_backends, .bytes = MEMORY_BYTES};
    fabric_end_open(&config, "a", &a);
    fabric_end_open(&config, "b", &b);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    xfer_request_t *request = fabric_copy(&a, peer, XFER_READ, 0, fabric_addr(&b, 0), MEMORY_BYTES);
    assert_status(xfer_connect(peer), WEFT_OK);
    assert_status(xfer_peer_status(peer), WEFT_PENDING);
    assert_status(fabric_run(request, ends, 1), WEFT_OK);
    assert_status(xfer_peer_status(peer), WEFT_OK);
    assert_status(xfer_post(request), WEFT_OK);
    xfer_progress(a.agent, 0);
    fabric_end_close(&b);
    assert_status(fabric_wait(request, ends, 1), WEFT_ERR_PEER_GONE);
    assert_status(xfer_peer_status(peer), WEFT_ERR_PEER_GONE);
    assert_status(fabric_run(request, ends, 1), WEFT_ERR_PEER_GONE);
    assert_status(xfer_notify(peer, "x", 1), WEFT_ERR_PEER_GONE);
    xfer_request_destroy(request);
    fabric_end_close(&a);
}

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

/* ---- ways ------------------------------------------------------------------------------------ */

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

static void what_an_agent_registers_later_it_has_as_its_own_peer(void **state)
{
    (void)state;
    static uint8_t more[64];
    fabric_end_t a;
    xfer_peer_t *self = NULL;
    xfer_peer_t *again = NULL;
    xfer_region_t *region = NULL;
    weft_diag_t diag = {0};
    const fabric_config_t config = {.table = loop_backends, .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    assert_status(xfer_import_self(a.agent, &diag, &self), WEFT_OK);
    assert_false(xfer_peer_has(self, XFER_DRAM, (uint64_t)(uintptr_t)more, sizeof(more)));
    assert_status(try_register(a.agent, XFER_DRAM, (uint64_t)(uintptr_t)more, 32, &region),
                  WEFT_OK);
    assert_status(xfer_import_self(a.agent, &diag, &again), WEFT_OK);
    assert_ptr_equal(self, again);
    assert_true(xfer_peer_has(self, XFER_DRAM, (uint64_t)(uintptr_t)more, 32));
    assert_status(xfer_deregister(a.agent, region), WEFT_OK);
    assert_status(try_register(a.agent, XFER_DRAM, (uint64_t)(uintptr_t)more, 64, &region),
                  WEFT_OK);
    assert_status(xfer_import_self(a.agent, &diag, &again), WEFT_ERR_EXISTS);
    xfer_forget(a.agent, self);
    assert_status(xfer_import_self(a.agent, &diag, &again), WEFT_OK);
    assert_true(xfer_peer_has(again, XFER_DRAM, (uint64_t)(uintptr_t)more, 64));
    fabric_end_close(&a);
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

/* ---- all at once ----------------------------------------------------------------------------- */

typedef struct bustle {
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t c;
    xfer_peer_t *peer; /* b */
    atomic_bool is_over;
} bustle_t;

#define BUSTLE_ROUNDS 150

static void *keep_reading(void *argument)
{
    bustle_t *bustle = argument;
    for (int i = 0; i < BUSTLE_ROUNDS; i++) {
        xfer_request_t *request =
            fabric_copy(&bustle->a, bustle->peer, XFER_READ, 0, fabric_addr(&bustle->b, 0), 300000);
        assert_status(fabric_run(request, NULL, 0), WEFT_OK);
        assert_true(xfer_request_stats(request).bytes == 300000);
        xfer_request_destroy(request);
    }
    return NULL;
}

/* Meets c, reads from it, and forgets it while it reads. */
static void *keep_forgetting(void *argument)
{
    bustle_t *bustle = argument;
    for (int i = 0; i < BUSTLE_ROUNDS; i++) {
        xfer_peer_t *peer = fabric_introduce(&bustle->a, &bustle->c);
        xfer_request_t *request = fabric_copy(&bustle->a, peer, XFER_READ, MEMORY_BYTES / 2,
                                              fabric_addr(&bustle->c, 0), 300000);
        assert_status(xfer_post(request), WEFT_OK);
        xfer_forget(bustle->a.agent, peer);
        const weft_status_t status = xfer_poll(request);
        assert_true(status == WEFT_OK || status == WEFT_ERR_CANCELLED);
        assert_status(xfer_post(request), WEFT_ERR_NOT_FOUND);
        xfer_request_destroy(request);
    }
    return NULL;
}

static void *keep_registering(void *argument)
{
    bustle_t *bustle = argument;
    static uint8_t memory[4096];
    for (int i = 0; i < BUSTLE_ROUNDS; i++) {
        xfer_region_t *region = NULL;
        weft_buffer_t blob = {0};
        xfer_backend_stats_t stats;
        const xfer_memory_t more = {
            .addr = (uint64_t)(uintptr_t)memory, .bytes = sizeof(memory), .fd = -1};
        assert_status(xfer_register(bustle->a.agent, &more, NULL, &region), WEFT_OK);
        fabric_export(&bustle->a, &blob);
        assert_status(xfer_deregister(bustle->a.agent, region), WEFT_OK);
        assert_int_equal(xfer_agent_stats(bustle->a.agent, &stats, 1), 1);
        weft_buffer_free(&blob);
    }
    return NULL;
}

static void *keep_notifying(void *argument)
{
    bustle_t *bustle = argument;
    int sent = 0;
    while (!atomic_load(&bustle->is_over)) {
        assert_status(xfer_notify(bustle->peer, &sent, sizeof(sent)), WEFT_OK);
        xfer_notification_free(fabric_wait_notification(&bustle->b, NULL, 0));
        sent++;
    }
    assert_true(sent > 0);
    return NULL;
}

static void any_call_may_come_at_any_time(void **state)
{
    (void)state;
    static void *(*const workers[])(void *) = {keep_reading, keep_reading, keep_forgetting,
                                               keep_registering, keep_notifying};
    enum { N = WEFT_ARRAY_LEN(workers) };
    static bustle_t bustle;
    pthread_t threads[N];
    const fabric_config_t config = {
        .table = loop_backends, .has_thread = true, .bytes = MEMORY_BYTES};
    fabric_end_open(&config, "a", &bustle.a);
    fabric_end_open(&config, "b", &bustle.b);
    fabric_end_open(&config, "c", &bustle.c);
    bustle.peer = fabric_introduce(&bustle.a, &bustle.b);
    for (int i = 0; i < N; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, workers[i], &bustle), 0);
    }
    for (int i = 0; i < N; i++) {
        atomic_store(&bustle.is_over, i == N - 1);
        pthread_join(threads[i], NULL);
    }
    fabric_end_close(&bustle.a);
    fabric_end_close(&bustle.b);
    fabric_end_close(&bustle.c);
}

/* ---- notifications that nobody takes --------------------------------------------------------- */

static void unread_notifications_are_bounded(void **state)
{
    (void)state;
    enum { FITTING = 1000, N = 1200 };
    static uint8_t data[XFER_MAX_NOTIFICATION];
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t *ends[] = {&a, &b};
    int n = 0;
    const fabric_config_t config = {.table = loop_backends, .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    fabric_end_open(&config, "b", &b);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    for (int i = 0; i < N; i++) {
        memcpy(data, &i, sizeof(i));
        assert_status(xfer_notify(peer, data, sizeof(data)), WEFT_OK);
        fabric_progress(ends, 2);
    }
    for (xfer_notification_t *notification; (notification = xfer_next_notification(b.agent)); n++) {
        assert_memory_equal(notification->data, &n, sizeof(n)); /* the oldest are kept */
        xfer_notification_free(notification);
    }
    assert_true(n >= FITTING && n <= 1024);
    assert_status(xfer_notify(peer, data, 5), WEFT_OK);
    xfer_notification_free(fabric_wait_notification(&b, ends, 2));
    fabric_end_close(&a);
    fabric_end_close(&b);
}

/* ---- no memory ------------------------------------------------------------------------------- */

/* One whole transfer; false where an allocation failed. */
static bool transfer_once(void)
{
    static uint8_t memory[2][4096];
    const xfer_agent_config_t configs[2] = {{.name = "a"}, {.name = "b"}};
    xfer_agent_t *agents[2] = {NULL, NULL};
    xfer_region_t *regions[2];
    xfer_list_t *lists[2] = {NULL, NULL};
    xfer_peer_t *peer = NULL;
    xfer_request_t *request = NULL;
    weft_buffer_t blob = {0};
    weft_status_t status = WEFT_OK;
    for (int i = 0; status == WEFT_OK && i < 2; i++) {
        status = xfer_agent_open(&configs[i], loop_backends, NULL, &agents[i]);
        const xfer_memory_t region = {.space = XFER_DRAM,
                                      .addr = (uint64_t)(uintptr_t)memory[i],
                                      .bytes = sizeof(memory[i]),
                                      .fd = -1};
        if (status == WEFT_OK) {
            status = xfer_register(agents[i], &region, NULL, &regions[i]);
        }
    }
    if (status == WEFT_OK) {
        status = xfer_export(agents[1], NULL, 0, true, &blob);
    }
    if (status == WEFT_OK) {
        status = xfer_import(agents[0], blob.data, blob.length, NULL, &peer);
    }
    for (int i = 0; status == WEFT_OK && i < 2; i++) {
        const xfer_run_t run = {
            .addr = (uint64_t)(uintptr_t)memory[i], .bytes = 64, .stride = 128, .count = 9};
        status =
            xfer_list_create(agents[0], i == 0 ? NULL : peer, XFER_DRAM, &run, 1, NULL, &lists[i]);
    }
    if (status == WEFT_OK) {
        const xfer_request_config_t config = {.local = lists[0], .peer = lists[1]};
        status = xfer_request_create(agents[0], &config, NULL, &request);
    }
    if (status == WEFT_OK) {
        status = xfer_post(request);
        while (status == WEFT_OK && xfer_poll(request) == WEFT_PENDING) {
            xfer_progress(agents[0], 0);
        }
        status = status == WEFT_OK ? xfer_poll(request) : status;
    }
    xfer_request_destroy(request);
    xfer_list_destroy(lists[0]);
    xfer_list_destroy(lists[1]);
    weft_buffer_free(&blob);
    xfer_agent_destroy(agents[0]);
    xfer_agent_destroy(agents[1]);
    assert_true(status == WEFT_OK || status == WEFT_ERR_NO_MEMORY);
    return status == WEFT_OK;
}

static void every_failed_allocation_is_survived(void **state)
{
    (void)state;
    assert_true(transfer_once());
    const size_t before = weft_alloc_live_bytes();
    bool is_good = false;
    for (uint64_t n = 1; !is_good; n++) {
        weft_alloc_fail_nth(n);
        is_good = transfer_once();
        weft_alloc_fail_nth(0);
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
}

static void posting_allocates_nothing(void **state)
{
    (void)state;
    fabric_end_t a;
    fabric_end_t b;
    fabric_end_t *ends[] = {&a, &b};
    const fabric_config_t config = {.table = loop_backends, .bytes = 4096};
    fabric_end_open(&config, "a", &a);
    fabric_end_open(&config, "b", &b);
    xfer_peer_t *peer = fabric_introduce(&a, &b);
    xfer_request_t *request = fabric_copy(&a, peer, XFER_READ, 0, fabric_addr(&b, 0), 4096);
    assert_status(fabric_run(request, ends, 2), WEFT_OK);
    weft_alloc_fail_nth(0);
    for (int i = 0; i < 10; i++) {
        assert_status(fabric_run(request, ends, 2), WEFT_OK);
    }
    assert_int_equal(weft_alloc_fail_nth(0), 0);
    xfer_request_destroy(request);
    fabric_end_close(&a);
    fabric_end_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_wrong_with_a_config_is_said),
        cmocka_unit_test(agents_without_a_name_get_different_ones),
        cmocka_unit_test(regions_do_not_overlap),
        cmocka_unit_test(an_agent_takes_neither_its_own_blob_nor_a_changed_one),
        cmocka_unit_test(agents_without_a_common_backend_do_not_meet),
        cmocka_unit_test(a_closed_peer_is_gone_and_may_not_come_back_by_itself),
        cmocka_unit_test(lower_priorities_go_first),
        cmocka_unit_test(a_callback_may_post_its_request_again),
        cmocka_unit_test(a_request_that_reposts_itself_can_be_destroyed),
        cmocka_unit_test(an_event_is_told_of_notifications_and_ends),
        cmocka_unit_test(progress_sleeps_until_something_comes),
        cmocka_unit_test(who_is_woken_knows_whether_it_is_on_the_wakers_core),
        cmocka_unit_test(no_wake_up_is_lost),
        cmocka_unit_test(idle_agents_make_no_rounds),
        cmocka_unit_test(an_estimate_follows_what_was_measured),
        cmocka_unit_test(what_an_agent_registers_later_it_has_as_its_own_peer),
        cmocka_unit_test(a_named_backend_is_used_and_others_are_measured),
        cmocka_unit_test(what_one_backend_cannot_do_the_next_does),
        cmocka_unit_test(what_turns_out_not_to_go_at_all_ends),
        cmocka_unit_test(what_no_backend_can_do_is_said),
        cmocka_unit_test(any_call_may_come_at_any_time),
        cmocka_unit_test(unread_notifications_are_bounded),
        cmocka_unit_test(every_failed_allocation_is_survived),
        cmocka_unit_test(posting_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
