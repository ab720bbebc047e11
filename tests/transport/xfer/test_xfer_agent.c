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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_wrong_with_a_config_is_said),
        cmocka_unit_test(agents_without_a_name_get_different_ones),
        cmocka_unit_test(regions_do_not_overlap),
        cmocka_unit_test(an_agent_takes_neither_its_own_blob_nor_a_changed_one),
        cmocka_unit_test(agents_without_a_common_backend_do_not_meet),
        cmocka_unit_test(a_closed_peer_is_gone_and_may_not_come_back_by_itself),
        cmocka_unit_test(any_call_may_come_at_any_time),
        cmocka_unit_test(unread_notifications_are_bounded),
        cmocka_unit_test(every_failed_allocation_is_survived),
        cmocka_unit_test(posting_allocates_nothing),
        cmocka_unit_test(what_an_agent_registers_later_it_has_as_its_own_peer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
