/* SPDX-License-Identifier: Apache-2.0 */
/* The side channel as plain ZeroMQ sockets see it, and as it sees them. */
#include "kvstore/transfer/kv_side_channel.h"

#include <string.h>
#include <zmq.h>

#include "base/clock.h"
#include "tests/support/nixl_vectors.h"
#include "tests/support/reserved_port.h"
#include "tests/support/tally.h"
#include "tests/support/zmq_tsan.h"

enum { TIMEOUT_MS = 30000 };

static void *context;
static kv_side_channel_t *channel;
static kv_side_client_t *client;
static tally_t woken = TALLY_INIT;

static void on_wake(void *user)
{
    tally_add(user);
}

static int setup(void **state)
{
    weft_diag_t diag = {0};
    const kv_side_client_config_t config = {.wake = on_wake, .user = &woken};
    (void)state;
    context = zmq_ctx_new();
    tally_reset(&woken);
    if (kv_side_channel_create("127.0.0.1", 0, &diag, &channel) != WEFT_OK) {
        fail_msg("%s", diag.text);
    }
    assert_status(kv_side_client_open(channel, &config, &client), WEFT_OK);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    kv_side_client_close(client);
    kv_side_channel_destroy(channel);
    return zmq_ctx_term(context);
}

static void serve(uint32_t pp_rank, uint32_t tp_rank, const char *payload)
{
    const kv_meta_request_t rank = {pp_rank, tp_rank};
    assert_status(kv_side_client_serve(client, rank, payload, strlen(payload)), WEFT_OK);
}

static void *connect_to(int type)
{
    const int zero = 0;
    const int timeout = TIMEOUT_MS;
    char endpoint[64];
    void *socket = zmq_socket(context, type);
    assert_non_null(socket);
    zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof(zero));
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &timeout, sizeof(timeout));
    snprintf(endpoint, sizeof(endpoint), "tcp://127.0.0.1:%u", kv_side_channel_port(channel));
    assert_int_equal(zmq_connect(socket, endpoint), 0);
    return socket;
}

/* ---- answering ------------------------------------------------------------------------------- */

/* The two frames as a REQ sees them. */
static void check_exchange(const json_t *test)
{
    weft_arena_t arena = {0};
    size_t length;
    size_t payload_length;
    double seconds;
    char frame[64];
    char expected[64] = {0};
    void *req = connect_to(ZMQ_REQ);
    const json_t *frames = json_object_get(test, "reply_frames_seen_by_REQ");
    const uint8_t *request = hex_bytes(&arena, nixl_text(test, "request"), &length);
    const uint8_t *payload =
        hex_bytes(&arena, json_string_value(json_array_get(frames, 0)), &payload_length);
    memcpy(expected, payload, payload_length);
    kv_meta_request_t rank;
    assert_status(kv_meta_request_decode(request, length, &rank), WEFT_OK);
    serve(rank.pp_rank, rank.tp_rank, expected);
    assert_int_equal(zmq_send(req, request, length, 0), length);
    assert_int_equal(zmq_recv(req, frame, sizeof(frame), 0), payload_length);
    assert_memory_equal(frame, payload, payload_length);
    const int clock_length = zmq_recv(req, frame, sizeof(frame), 0);
    assert_int_equal(clock_length, KV_HANDSHAKE_CLOCK_BYTES);
    assert_status(kv_clock_decode(frame, (size_t)clock_length, &seconds), WEFT_OK);
    assert_true(seconds > 0 && seconds <= (double)weft_clock_ns() / (double)WEFT_NS_PER_SECOND);
    zmq_close(req);
    weft_arena_free(&arena);
}

static void exchanges_are_vllms(void **state)
{
    (void)state;
    nixl_for_each("listener_exchange", check_exchange);
}

static void ask_raw(void *socket, const void *data, size_t bytes)
{
    assert_int_equal(zmq_send(socket, "", 0, ZMQ_SNDMORE), 0);
    assert_int_equal(zmq_send(socket, data, bytes, 0), bytes);
}

static void expect_payload(void *socket, const char *payload)
{
    char frame[64];
    assert_int_equal(zmq_recv(socket, frame, sizeof(frame), 0), 0);
    assert_int_equal(zmq_recv(socket, frame, sizeof(frame), 0), strlen(payload));
    assert_memory_equal(frame, payload, strlen(payload));
    assert_int_equal(zmq_recv(socket, frame, sizeof(frame), 0), KV_HANDSHAKE_CLOCK_BYTES);
}

static void ask_rank(void *socket, uint32_t pp_rank, uint32_t tp_rank)
{
    weft_buffer_t request = {0};
    kv_meta_request_encode((kv_meta_request_t){pp_rank, tp_rank}, &request);
    ask_raw(socket, request.data, request.length);
    weft_buffer_free(&request);
}

/* Answers come in the order of the questions: what has none is passed over. */
static void garbage_and_strange_ranks_get_no_answer_and_do_no_harm(void **state)
{
    static const char *const garbage[] = {"", "get_meta_msg", "\xff\xff\xff\xff", "\x93\xc4\x0c",
                                          "\xdd\xff\xff\xff\xff"};
    void *dealer = connect_to(ZMQ_DEALER);
    char large[512] = {0};
    (void)state;
    serve(0, 1, "payload");
    for (size_t i = 0; i < 5; i++) {
        ask_raw(dealer, garbage[i], strlen(garbage[i]));
        assert_int_equal(zmq_send(dealer, garbage[i], strlen(garbage[i]), 0), strlen(garbage[i]));
    }
    ask_rank(dealer, 0, 0);
    ask_rank(dealer, 1, 1);
    ask_rank(dealer, 0, UINT32_MAX);
    ask_rank(dealer, 0, 1);
    expect_payload(dealer, "payload");
    void *greedy = connect_to(ZMQ_DEALER); /* its connection is closed, and no other */
    assert_int_equal(zmq_send(greedy, large, sizeof(large), 0), sizeof(large));
    ask_rank(dealer, 0, 1);
    expect_payload(dealer, "payload");
    zmq_close(greedy);
    zmq_close(dealer);
    const kv_side_channel_stats_t stats = kv_side_channel_stats(channel);
    assert_int_equal(stats.answered, 2);
    assert_true(stats.refused >= 13);
}

static void ranks_share_a_channel(void **state)
{
    const kv_side_client_config_t config = {0};
    const kv_meta_request_t second = {0, 1};
    kv_side_client_t *other;
    void *dealer = connect_to(ZMQ_DEALER);
    (void)state;
    serve(0, 0, "first");
    assert_status(kv_side_client_open(channel, &config, &other), WEFT_OK);
    assert_status(kv_side_client_serve(other, second, "second", 6), WEFT_OK);
    ask_rank(dealer, 0, 1);
    expect_payload(dealer, "second");
    ask_rank(dealer, 0, 0);
    expect_payload(dealer, "first");
    kv_side_client_close(other);
    ask_rank(dealer, 0, 1); /* gone: not answered */
    ask_rank(dealer, 0, 0);
    expect_payload(dealer, "first");
    zmq_close(dealer);
}

static void a_port_in_use_is_said(void **state)
{
    kv_side_channel_t *second;
    weft_diag_t diag = {0};
    (void)state;
    assert_status(
        kv_side_channel_create("127.0.0.1", kv_side_channel_port(channel), &diag, &second),
        WEFT_ERR_IN_USE);
    assert_non_null(strstr(diag.text, "127.0.0.1"));
    assert_status(kv_side_channel_create("no such host.invalid", 0, &diag, &second),
                  WEFT_ERR_INVALID);
}

/* ---- asking ---------------------------------------------------------------------------------- */

static kv_side_answer_t *answer_to(const char *host, uint16_t port, uint64_t tag)
{
    const kv_meta_request_t rank = {0, 2};
    kv_side_answer_t *answer = NULL;
    assert_status(kv_side_client_ask(client, host, port, rank, tag), WEFT_OK);
    while (answer == NULL) {
        tally_take(&woken);
        answer = kv_side_client_next(client);
    }
    assert_true(answer->tag == tag);
    return answer;
}

static void workers_meet(void **state)
{
    (void)state;
    serve(0, 2, "hello");
    kv_side_answer_t *answer = answer_to("localhost", kv_side_channel_port(channel), 77);
    assert_status(answer->status, WEFT_OK);
    assert_int_equal(answer->bytes, 5);
    assert_memory_equal(answer->payload, "hello", 5);
    assert_true(answer->has_clock);
    assert_true(answer->round_trip >= 0);
    assert_true(answer->clock_offset <= answer->round_trip &&
                answer->clock_offset >= -answer->round_trip); /* it is our own clock */
    kv_side_answer_free(answer);
}

static void where_nobody_listens_is_known_before_the_time_is_over(void **state)
{
    (void)state;
    kv_side_answer_t *answer = answer_to("127.0.0.1", reserve_port(), 1);
    assert_status(answer->status, WEFT_ERR_PEER_GONE);
    assert_string_equal(answer->reason, "nobody listens there");
    kv_side_answer_free(answer);
}

/* ".invalid" never has one (RFC 6761). */
static void a_name_without_an_address_is_said(void **state)
{
    (void)state;
    kv_side_answer_t *answer = answer_to("nobody.invalid", 5600, 1);
    assert_status(answer->status, WEFT_ERR_PEER_GONE);
    assert_string_equal(answer->reason, "its name has no address");
    kv_side_answer_free(answer);
}

/* A ROUTER that says something else. */
static void check_foreign_answer(const char *frames[], int n, weft_status_t status)
{
    char endpoint[128];
    char identity[256];
    char frame[256];
    size_t length = sizeof(endpoint);
    const int zero = 0;
    const int timeout = TIMEOUT_MS;
    const kv_meta_request_t rank = {0, 0};
    unsigned port = 0;
    void *router = zmq_socket(context, ZMQ_ROUTER);
    zmq_setsockopt(router, ZMQ_LINGER, &zero, sizeof(zero));
    zmq_setsockopt(router, ZMQ_RCVTIMEO, &timeout, sizeof(timeout));
    assert_int_equal(zmq_bind(router, "tcp://127.0.0.1:*"), 0);
    zmq_getsockopt(router, ZMQ_LAST_ENDPOINT, endpoint, &length);
    assert_int_equal(sscanf(strrchr(endpoint, ':') + 1, "%u", &port), 1);
    assert_status(kv_side_client_ask(client, "127.0.0.1", (uint16_t)port, rank, 5), WEFT_OK);
    const int n_identity = zmq_recv(router, identity, sizeof(identity), 0);
    assert_true(n_identity > 0);
    assert_int_equal(zmq_recv(router, frame, sizeof(frame), 0), 0);
    assert_int_equal(zmq_recv(router, frame, sizeof(frame), 0), 17);
    assert_int_equal(zmq_send(router, identity, (size_t)n_identity, ZMQ_SNDMORE), n_identity);
    for (int i = 0; i < n; i++) {
        const int more = i + 1 < n ? ZMQ_SNDMORE : 0;
        assert_int_equal(zmq_send(router, frames[i], strlen(frames[i]), more), strlen(frames[i]));
    }
    kv_side_answer_t *answer = NULL;
    while (answer == NULL) {
        tally_take(&woken);
        answer = kv_side_client_next(client);
    }
    assert_status(answer->status, status);
    assert_false(answer->has_clock);
    kv_side_answer_free(answer);
    zmq_close(router);
}

static void an_older_answer_has_no_clock_and_others_are_malformed(void **state)
{
    const char *older[] = {"", "payload"};
    const char *bare[] = {"payload"};
    const char *no_delimiter[] = {"x", "payload"};
    const char *strange_clock[] = {"", "payload", "noon"};
    (void)state;
    check_foreign_answer(older, 2, WEFT_OK);
    check_foreign_answer(strange_clock, 3, WEFT_OK);
    check_foreign_answer(bare, 1, WEFT_ERR_MALFORMED);
    check_foreign_answer(no_delimiter, 2, WEFT_ERR_MALFORMED);
}

static void more_asks_than_go_at_once_are_all_answered(void **state)
{
    enum { ASKS = 3 * KV_SIDE_CHANNEL_MAX_ASKS };
    bool is_answered[ASKS] = {false};
    const kv_meta_request_t rank = {0, 2};
    (void)state;
    serve(0, 2, "hello");
    for (uint64_t i = 0; i < ASKS; i++) {
        assert_status(
            kv_side_client_ask(client, "127.0.0.1", kv_side_channel_port(channel), rank, i),
            WEFT_OK);
    }
    for (int n = 0; n < ASKS;) {
        tally_take(&woken);
        kv_side_answer_t *answer;
        while ((answer = kv_side_client_next(client)) != NULL) {
            assert_status(answer->status, WEFT_OK);
            assert_false(is_answered[answer->tag]);
            is_answered[answer->tag] = true;
            kv_side_answer_free(answer);
            n++;
        }
    }
}

static void hosts_that_are_none_are_refused(void **state)
{
    const char *wrong[] = {"", "a b", "h\n", "tcp://h", "h/x", "h;y"};
    const kv_meta_request_t rank = {0, 0};
    (void)state;
    for (size_t i = 0; i < 6; i++) {
        assert_status(kv_side_client_ask(client, wrong[i], 1, rank, 0), WEFT_ERR_INVALID);
    }
    assert_status(kv_side_client_ask(client, "h", 0, rank, 0), WEFT_ERR_INVALID);
}

static void a_client_is_woken_when_it_wants(void **state)
{
    (void)state;
    const uint64_t then = weft_clock_ns() + 2 * WEFT_NS_PER_MS;
    kv_side_client_wake_at(client, then + 3600 * WEFT_NS_PER_SECOND);
    kv_side_client_wake_at(client, then);
    tally_take(&woken);
    assert_true(weft_clock_ns() >= then);
    assert_null(kv_side_client_next(client));
}

static void a_client_that_closes_takes_its_asks_along(void **state)
{
    const kv_side_client_config_t config = {.wake = on_wake, .user = &woken};
    const kv_meta_request_t rank = {0, 9};
    (void)state;
    for (int i = 0; i < 20; i++) {
        kv_side_client_t *other;
        assert_status(kv_side_client_open(channel, &config, &other), WEFT_OK);
        for (uint64_t j = 0; j < 5; j++) {
            assert_status(
                kv_side_client_ask(other, "127.0.0.1", kv_side_channel_port(channel), rank, j),
                WEFT_OK);
        }
        kv_side_client_close(other);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(exchanges_are_vllms),
        TEST(garbage_and_strange_ranks_get_no_answer_and_do_no_harm),
        TEST(ranks_share_a_channel),
        TEST(a_port_in_use_is_said),
        TEST(workers_meet),
        TEST(where_nobody_listens_is_known_before_the_time_is_over),
        TEST(a_name_without_an_address_is_said),
        TEST(an_older_answer_has_no_clock_and_others_are_malformed),
        TEST(more_asks_than_go_at_once_are_all_answered),
        TEST(hosts_that_are_none_are_refused),
        TEST(a_client_is_woken_when_it_wants),
        TEST(a_client_that_closes_takes_its_asks_along),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
