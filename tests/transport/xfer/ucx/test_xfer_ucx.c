/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is ucx's own; what every backend has to do is in test_xfer_conformance.c. Two ports of this
 * process talk over TCP (or what UCX_TLS says).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/ucx/ucx_library.h"
#include "transport/xfer/xfer_backend.h"

#ifndef WEFT_UCX_LIBRARY

int main(void)
{
    return 77; /* built without UCX's headers */
}

#else

#define WORDS       ((size_t)1024 * 1024)
#define DEADLINE_NS (30 * WEFT_NS_PER_SECOND)

typedef struct end {
    xfer_port_t *port;
    xfer_link_t *link;
    uint64_t *words; /* [WORDS] */
    void *mine;
    void *theirs;
    char heard[256]; /* notifications, each with a ';' behind */
    unsigned lost;
} end_t;

typedef struct rig {
    end_t ends[2];
} rig_t;

typedef struct post {
    xfer_op_t op;
    xfer_extent_t extent;
    void *local[1];
    void *peer[1];
    bool has_ended;
    weft_status_t status;
} post_t;

static const char *no_param(void *user, const char *key)
{
    (void)user;
    (void)key;
    return NULL;
}

static void hear(void *user, const char *peer, const void *data, size_t bytes)
{
    end_t *end = user;
    const size_t length = strlen(end->heard);
    snprintf(end->heard + length, sizeof(end->heard) - length, "%s:%.*s;", peer, (int)bytes,
             (const char *)data);
}

static void see_up(void *user, xfer_link_t *link)
{
    (void)user;
    (void)link;
}

static void see_lost(void *user, xfer_link_t *link)
{
    (void)link;
    ((end_t *)user)->lost++;
}

static void open_end(end_t *end, const char *name)
{
    const xfer_port_config_t config = {.agent = name,
                                       .param = no_param,
                                       .on_notification = hear,
                                       .on_link_up = see_up,
                                       .on_link_lost = see_lost,
                                       .user = end};
    weft_diag_t diag = {0};

    if (xfer_backend_ucx.open(&config, &diag, &end->port) < 0) {
        fail_msg("%s", diag.text);
    }
    end->words = weft_alloc_aligned(4096, WORDS * sizeof(uint64_t), "test.ucx");
    assert_non_null(end->words);
}

static xfer_memory_t memory_of(const end_t *end)
{
    return (xfer_memory_t){.space = XFER_DRAM,
                           .addr = (uint64_t)(uintptr_t)end->words,
                           .bytes = WORDS * sizeof(uint64_t),
                           .fd = -1};
}

/* from learns of to, as by metadata. */
static void introduce(end_t *from, end_t *to)
{
    const xfer_memory_t memory = memory_of(to);
    weft_buffer_t address = {0};
    weft_buffer_t key = {0};

    assert_int_equal(xfer_backend_ucx.address(to->port, &address), WEFT_OK);
    assert_int_equal(xfer_backend_ucx.map(to->port, &memory, &key, &to->mine), WEFT_OK);
    assert_int_equal(xfer_backend_ucx.connect(from->port, to->port->config.agent, address.data,
                                              address.length, &from->link),
                     WEFT_OK);
    assert_int_equal(
        xfer_backend_ucx.import(from->link, &memory, key.data, key.length, &from->theirs), WEFT_OK);
    weft_buffer_free(&address);
    weft_buffer_free(&key);
}

static int open_rig(void **state)
{
    rig_t *rig = weft_zalloc(sizeof(*rig), "test.ucx");
    assert_non_null(rig);
    open_end(&rig->ends[0], "first");
    open_end(&rig->ends[1], "second");
    introduce(&rig->ends[0], &rig->ends[1]);
    introduce(&rig->ends[1], &rig->ends[0]);
    for (size_t i = 0; i < WORDS; i++) {
        rig->ends[0].words[i] = i;
        rig->ends[1].words[i] = WORDS + i;
    }
    *state = rig;
    return 0;
}

static int close_rig(void **state)
{
    rig_t *rig = *state;
    for (size_t i = 0; i < 2; i++) {
        end_t *end = &rig->ends[i];
        if (end->link != NULL) {
            xfer_backend_ucx.disconnect(end->link);
        }
        xfer_backend_ucx.release(end->port, end->theirs);
    }
    for (size_t i = 0; i < 2; i++) {
        xfer_backend_ucx.unmap(rig->ends[i].port, rig->ends[i].mine);
        xfer_backend_ucx.close(rig->ends[i].port);
        weft_free(rig->ends[i].words);
    }
    weft_free(rig);
    return 0;
}

static void step(rig_t *rig)
{
    xfer_backend_ucx.progress(rig->ends[0].port);
    xfer_backend_ucx.progress(rig->ends[1].port);
}

#define step_until(rig, condition)                                                                 \
    do {                                                                                           \
        const uint64_t deadline_ = weft_clock_ns() + DEADLINE_NS;                                  \
        while (!(condition)) {                                                                     \
            assert_true(weft_clock_ns() < deadline_);                                              \
            step(rig);                                                                             \
        }                                                                                          \
    } while (0)

static void note_end(xfer_op_t *op, weft_status_t status)
{
    post_t *post = WEFT_CONTAINER(op, post_t, op);
    assert_false(post->has_ended);
    post->has_ended = true;
    post->status = status;
}

/* Words [at, at + n) of both sides. */
static void fill_post(post_t *post, const rig_t *rig, xfer_direction_t direction, size_t at,
                      size_t n)
{
    const end_t *first = &rig->ends[0];
    *post = (post_t){
        .extent = {.local = (uint64_t)(uintptr_t)(first->words + at),
                   .peer = (uint64_t)(uintptr_t)(rig->ends[1].words + at),
                   .bytes = n * sizeof(uint64_t)},
        .local = {first->mine},
        .peer = {first->theirs},
        .op = {.direction = direction,
               .n_extents = 1,
               .bytes = n * sizeof(uint64_t),
               .end = note_end},
    };
    post->op.extents = &post->extent;
    post->op.local_handles = post->local;
    post->op.peer_handles = post->peer;
}

static void xfer_ucx_names_the_library_that_is_missing(void **state)
{
    const ucx_functions_t *functions;
    weft_diag_t diag = {0};
    (void)state;
    assert_int_equal(ucx_load("/nonexistent/libucp.so", &diag, &functions), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "/nonexistent/libucp.so"));
    assert_non_null(strstr(diag.text, "pip install libucx"));
}

static void xfer_ucx_lets_a_lower_number_overtake(void **state)
{
    rig_t *rig = *state;
    post_t bulk;
    post_t urgent;

    fill_post(&bulk, rig, XFER_READ, 0, WORDS - 512);
    fill_post(&urgent, rig, XFER_READ, WORDS - 512, 512);
    bulk.op.priority = 9;
    xfer_backend_ucx.post(rig->ends[0].link, &bulk.op);
    step_until(rig, bulk.op.position > 0 || bulk.op.offset > 0);
    xfer_backend_ucx.post(rig->ends[0].link, &urgent.op);
    step_until(rig, urgent.has_ended);
    assert_false(bulk.has_ended);
    step_until(rig, bulk.has_ended);
    assert_int_equal(urgent.status, WEFT_OK);
    assert_int_equal(bulk.status, WEFT_OK);
    assert_memory_equal(rig->ends[0].words, rig->ends[1].words, WORDS * sizeof(uint64_t));
}

static void xfer_ucx_cancels_what_has_begun(void **state)
{
    rig_t *rig = *state;
    post_t bulk;

    fill_post(&bulk, rig, XFER_READ, 0, WORDS);
    xfer_backend_ucx.post(rig->ends[0].link, &bulk.op);
    step_until(rig, bulk.op.position > 0 || bulk.op.offset > 0);
    xfer_backend_ucx.cancel(&bulk.op);
    step_until(rig, bulk.has_ended);
    assert_int_equal(bulk.status, WEFT_ERR_CANCELLED);
    assert_int_equal(rig->ends[0].words[WORDS - 1], WORDS - 1);
    assert_int_equal(rig->ends[0].lost, 0);
}

static void xfer_ucx_disconnect_ends_what_is_under_way(void **state)
{
    rig_t *rig = *state;
    post_t posts[3];

    for (size_t i = 0; i < 3; i++) {
        fill_post(&posts[i], rig, XFER_READ, 0, WORDS);
        xfer_backend_ucx.post(rig->ends[0].link, &posts[i].op);
    }
    step_until(rig, posts[0].op.position > 0 || posts[0].op.offset > 0);
    xfer_backend_ucx.disconnect(rig->ends[0].link);
    rig->ends[0].link = NULL;
    for (size_t i = 0; i < 3; i++) {
        assert_true(posts[i].has_ended);
        assert_int_equal(posts[i].status, WEFT_ERR_CANCELLED);
    }
}

static void xfer_ucx_posts_without_allocating(void **state)
{
    rig_t *rig = *state;
    post_t post;

    for (int turn = 0; turn < 3; turn++) {
        fill_post(&post, rig, XFER_WRITE, 0, 4096);
        post.op.notification = "moved";
        post.op.notification_bytes = 5;
        weft_alloc_fail_nth(0);
        xfer_backend_ucx.post(rig->ends[0].link, &post.op);
        step_until(rig, post.has_ended);
        assert_int_equal(weft_alloc_fail_nth(0), 0);
        assert_int_equal(post.status, WEFT_OK);
    }
    step_until(rig, strcmp(rig->ends[1].heard, "first:moved;first:moved;first:moved;") == 0);
}

static void xfer_ucx_stale_guard_of_before_moves_nothing(void **state)
{
    rig_t *rig = *state;
    post_t post;

    fill_post(&post, rig, XFER_READ, 0, 64);
    post.op.has_guard = true;
    post.op.guard.addr = (uint64_t)(uintptr_t)&rig->ends[1].words[100];
    post.op.guard.expected = 1;
    post.op.guard_handle = rig->ends[0].theirs;
    post.op.notification = "never";
    post.op.notification_bytes = 5;
    xfer_backend_ucx.post(rig->ends[0].link, &post.op);
    step_until(rig, post.has_ended);
    assert_int_equal(post.status, WEFT_ERR_STALE);
    assert_int_equal(rig->ends[0].words[0], 0);
    assert_string_equal(rig->ends[1].heard, "");
}

/* ---- strangers ------------------------------------------------------------------------------- */

/* A worker that says what it likes. */
typedef struct stranger {
    const ucx_functions_t *ucx;
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_ep_h endpoint;
} stranger_t;

static void open_stranger(stranger_t *stranger, xfer_port_t *port)
{
    const ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES,
        .features = UCP_FEATURE_RMA | UCP_FEATURE_AMO32 | UCP_FEATURE_AMO64 | UCP_FEATURE_AM |
                    UCP_FEATURE_WAKEUP,
    };
    const ucp_worker_params_t worker_params = {0};
    weft_buffer_t address = {0};

    assert_int_equal(ucx_load(NULL, NULL, &stranger->ucx), WEFT_OK);
    assert_int_equal(stranger->ucx->ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, NULL,
                                                     &stranger->context),
                     UCS_OK);
    assert_int_equal(
        stranger->ucx->ucp_worker_create(stranger->context, &worker_params, &stranger->worker),
        UCS_OK);
    assert_int_equal(xfer_backend_ucx.address(port, &address), WEFT_OK);
    const ucp_ep_params_t ep_params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE,
        .address = (const ucp_address_t *)(void *)address.data,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
    };
    assert_int_equal(
        stranger->ucx->ucp_ep_create(stranger->worker, &ep_params, &stranger->endpoint), UCS_OK);
    weft_buffer_free(&address);
}

static void close_stranger(stranger_t *stranger)
{
    stranger->ucx->ucp_worker_destroy(stranger->worker);
    stranger->ucx->ucp_cleanup(stranger->context);
}

static void say(stranger_t *stranger, rig_t *rig, const void *bytes, size_t n)
{
    const ucp_request_param_t params = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                        .flags = UCP_AM_SEND_FLAG_EAGER};
    void *request =
        stranger->ucx->ucp_am_send_nbx(stranger->endpoint, 0, NULL, 0, bytes, n, &params);
    assert_false(UCS_PTR_IS_ERR(request));
    if (request != NULL) {
        stranger->ucx->ucp_request_free(request);
    }
    for (int i = 0; i < 100; i++) {
        stranger->ucx->ucp_worker_progress(stranger->worker);
        step(rig);
    }
}

/* NIXL's container of one notification, from "x", that says "hello". */
#define LETTER "nixlSerDes|name\1\0\0\0\0\0\0\0x|msg\5\0\0\0\0\0\0\0hello|"

static void xfer_ucx_drops_what_is_no_notification(void **state)
{
    static const char letter[] = LETTER;
    const size_t n = sizeof(letter) - 1;
    char changed[sizeof(letter)];
    rig_t *rig = *state;
    stranger_t stranger;

    open_stranger(&stranger, rig->ends[1].port);
    for (size_t i = 0; i < n; i++) {
        say(&stranger, rig, letter, i); /* cut anywhere */
    }
    for (size_t i = 0; i < n; i++) {
        const bool is_content = i == 23 || (i >= 36 && i < 41);
        memcpy(changed, letter, n);
        changed[i] = (char)0xff;
        if (!is_content) {
            say(&stranger, rig, changed, n);
        }
    }
    assert_string_equal(rig->ends[1].heard, "");
    say(&stranger, rig, letter, n);
    step_until(rig, strcmp(rig->ends[1].heard, "x:hello;") == 0);
    close_stranger(&stranger);
}

static weft_status_t try_key(rig_t *rig, const weft_buffer_t *key, size_t n)
{
    const xfer_memory_t memory = memory_of(&rig->ends[1]);
    void *handle = NULL;
    const weft_status_t status =
        xfer_backend_ucx.import(rig->ends[0].link, &memory, key->data, n, &handle);
    if (status == WEFT_OK) {
        xfer_backend_ucx.release(rig->ends[0].port, handle);
    }
    return status;
}

/* UCX itself stops the process on some of these. */
static void xfer_ucx_refuses_keys_and_addresses_that_are_none(void **state)
{
    rig_t *rig = *state;
    const xfer_memory_t memory = memory_of(&rig->ends[1]);
    weft_buffer_t address = {0};
    weft_buffer_t key = {0};
    xfer_link_t *link;
    void *mine;

    assert_int_equal(xfer_backend_ucx.address(rig->ends[1].port, &address), WEFT_OK);
    assert_int_equal(xfer_backend_ucx.connect(rig->ends[0].port, "cut", address.data, 8, &link),
                     WEFT_ERR_MALFORMED);
    address.data[0] |= 0xf;
    assert_int_equal(xfer_backend_ucx.connect(rig->ends[0].port, "of another time", address.data,
                                              address.length, &link),
                     WEFT_ERR_MALFORMED);

    assert_int_equal(xfer_backend_ucx.map(rig->ends[1].port, &memory, &key, &mine), WEFT_OK);
    for (size_t n = 0; n < 9; n++) {
        assert_int_equal(try_key(rig, &key, n), WEFT_ERR_MALFORMED);
    }
    assert_int_equal(try_key(rig, &key, key.length), WEFT_OK);
    key.data[8] = (char)0x80; /* no kind of memory */
    assert_int_equal(try_key(rig, &key, key.length), WEFT_ERR_MALFORMED);
    key.data[8] = 0;
    memset(key.data, 0xff, 8); /* more domains than it has bytes for */
    assert_int_equal(try_key(rig, &key, key.length), WEFT_ERR_MALFORMED);
    xfer_backend_ucx.unmap(rig->ends[1].port, mine);
    weft_buffer_free(&address);
    weft_buffer_free(&key);
}

int main(void)
{
    setenv("UCX_TLS", "tcp", 0);
    setenv("UCX_NET_DEVICES", "lo", 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(xfer_ucx_names_the_library_that_is_missing), /* before one is loaded */
        cmocka_unit_test_setup_teardown(xfer_ucx_lets_a_lower_number_overtake, open_rig, close_rig),
        cmocka_unit_test_setup_teardown(xfer_ucx_cancels_what_has_begun, open_rig, close_rig),
        cmocka_unit_test_setup_teardown(xfer_ucx_disconnect_ends_what_is_under_way, open_rig,
                                        close_rig),
        cmocka_unit_test_setup_teardown(xfer_ucx_posts_without_allocating, open_rig, close_rig),
        cmocka_unit_test_setup_teardown(xfer_ucx_stale_guard_of_before_moves_nothing, open_rig,
                                        close_rig),
        cmocka_unit_test_setup_teardown(xfer_ucx_drops_what_is_no_notification, open_rig,
                                        close_rig),
        cmocka_unit_test_setup_teardown(xfer_ucx_refuses_keys_and_addresses_that_are_none, open_rig,
                                        close_rig),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
