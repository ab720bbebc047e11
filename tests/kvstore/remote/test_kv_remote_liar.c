/* SPDX-License-Identifier: Apache-2.0 */
/* A peer that speaks the protocol and lies, and one that does not speak it. */
#include <string.h>
#include <zmq.h>

#include "base/clock.h"
#include "tests/support/remote_pair.h"
#include "tests/support/zmq_tsan.h"

enum { BASE = REMOTE_PAIR_BASE, N = REMOTE_PAIR_BLOCKS };

/* Plays the owner: what it says to a hello and to a lookup; the greeting is that of a real one. */
typedef struct liar {
    remote_pair_t pair;
    void *context;
    void *router;
    uint8_t route[256]; /* of who spoke last */
    size_t route_bytes;
    uint8_t welcome[4096];
    size_t welcome_bytes;
} liar_t;

static uint16_t bind_any(void *socket)
{
    char bound[64];
    size_t length = sizeof(bound);
    assert_int_equal(zmq_bind(socket, "tcp://127.0.0.1:*"), 0);
    assert_int_equal(zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, bound, &length), 0);
    return (uint16_t)atoi(strrchr(bound, ':') + 1);
}

static void copy_welcome(liar_t *liar)
{
    char endpoint[80];
    const int zero = 0;
    kv_remote_facts_t facts = {0};
    kv_remote_facts_add(&facts, "shape", "a");
    void *dealer = zmq_socket(liar->context, ZMQ_DEALER);
    zmq_setsockopt(dealer, ZMQ_LINGER, &zero, sizeof(zero));
    snprintf(endpoint, sizeof(endpoint), "tcp://127.0.0.1:%u",
             kv_store_offer_port(liar->pair.owner.store));
    assert_int_equal(zmq_connect(dealer, endpoint), 0);
    assert_status(kv_remote_facts_send(&facts, dealer), WEFT_OK);
    const int n = zmq_recv(dealer, liar->welcome, sizeof(liar->welcome), 0);
    assert_true(n > 0 && (size_t)n <= sizeof(liar->welcome));
    liar->welcome_bytes = (size_t)n;
    zmq_close(dealer);
}

static void open_liar(liar_t *liar, uint64_t wait_ns)
{
    const int zero = 0;
    *liar = (liar_t){.pair = {.backends = "tcp"}};
    remote_pair_open_owner(&liar->pair, 0);
    liar->context = zmq_ctx_new();
    copy_welcome(liar);
    liar->router = zmq_socket(liar->context, ZMQ_ROUTER);
    zmq_setsockopt(liar->router, ZMQ_LINGER, &zero, sizeof(zero));
    remote_pair_open_reader(&liar->pair, bind_any(liar->router), "a", wait_ns);
}

static void close_liar(liar_t *liar)
{
    remote_pair_close(&liar->pair);
    zmq_close(liar->router);
    zmq_ctx_term(liar->context);
}

/* What the reader says next; the route is for the answer. */
static kv_remote_message_t *hear(liar_t *liar)
{
    static uint8_t heard[65536];
    kv_remote_message_t *message = NULL;
    const int route_bytes = zmq_recv(liar->router, liar->route, sizeof(liar->route), 0);
    const int n = zmq_recv(liar->router, heard, sizeof(heard), 0);
    assert_true(route_bytes > 0 && n > 0);
    liar->route_bytes = (size_t)route_bytes;
    assert_status(kv_remote_message_decode(heard, (size_t)n, &message), WEFT_OK);
    return message;
}

static void say(liar_t *liar, const void *bytes, size_t n)
{
    assert_true(zmq_send(liar->router, liar->route, liar->route_bytes, ZMQ_SNDMORE) >= 0);
    assert_true(zmq_send(liar->router, bytes, n, 0) >= 0);
}

static void greet_with(liar_t *liar, const void *bytes, size_t n)
{
    kv_remote_message_t *hello = hear(liar);
    assert_int_equal(hello->body_case, WEFT__REMOTE__MESSAGE__BODY_HELLO);
    kv_remote_message_free(hello);
    say(liar, bytes, n);
}

static void wait_until_woken(store_rig_t *rig)
{
    sem_wait(&rig->woken);
    kv_store_poll(rig->store);
}

static void garbage_for_a_greeting_is_a_peer_that_is_away(void **state)
{
    (void)state;
    liar_t liar;
    store_rig_chain_t chain;
    open_liar(&liar, WEFT_NS_PER_SECOND);
    greet_with(&liar, "\xff\x00garbage", 9);
    wait_until_woken(&liar.pair.reader);
    store_rig_chain(&liar.pair.reader, &chain, BASE, N);
    assert_int_equal(remote_pair_fetch(&liar.pair.reader, &chain), 0);
    assert_int_equal(remote_pair_tier(&liar.pair.reader).peers, 0);
    close_liar(&liar);
}

static void a_greeting_with_garbage_for_an_agent_is_no_peer(void **state)
{
    (void)state;
    liar_t liar;
    open_liar(&liar, WEFT_NS_PER_SECOND);
    kv_remote_message_t *welcome = NULL;
    assert_status(kv_remote_message_decode(liar.welcome, liar.welcome_bytes, &welcome), WEFT_OK);
    memset(welcome->welcome->agent.data, 0x5a, welcome->welcome->agent.len);
    uint8_t bytes[4096];
    const size_t n = weft__remote__message__pack(welcome, bytes);
    kv_remote_message_free(welcome);
    greet_with(&liar, bytes, n);
    wait_until_woken(&liar.pair.reader);
    assert_int_equal(remote_pair_tier(&liar.pair.reader).peers, 0);
    close_liar(&liar);
}

static void meet_liar(liar_t *liar)
{
    greet_with(liar, liar->welcome, liar->welcome_bytes);
    remote_pair_meet(&liar->pair.reader);
}

static void a_peer_that_does_not_answer_costs_its_time_and_no_more(void **state)
{
    (void)state;
    liar_t liar;
    store_rig_chain_t chain;
    open_liar(&liar, WEFT_NS_PER_SECOND / 20);
    meet_liar(&liar);
    for (uint32_t i = 0; i < 2; i++) { /* the second time it is given up */
        store_rig_chain(&liar.pair.reader, &chain, BASE, N - i);
        assert_int_equal(remote_pair_fetch(&liar.pair.reader, &chain), 0);
        assert_int_equal(remote_pair_tier(&liar.pair.reader).lookups_late, i + 1);
    }
    assert_int_equal(remote_pair_tier(&liar.pair.reader).peers, 0);
    close_liar(&liar);
}

/* Says where blocks are: there, beyond its memory, more than were asked for, of another life. */
static uint32_t answer_with(liar_t *liar, store_rig_chain_t *chain, uint32_t block, uint32_t n,
                            uint64_t incarnation)
{
    static uint64_t epochs[64];
    static uint32_t shelves[64];
    uint32_t blocks[64];
    uint8_t bytes[2048];
    Weft__Remote__Found found = WEFT__REMOTE__FOUND__INIT;
    assert_status(kv_store_ask(liar->pair.reader.store, &chain->chain, 0), WEFT_PENDING);
    kv_remote_message_t *lookup = hear(liar);
    assert_int_equal(lookup->body_case, WEFT__REMOTE__MESSAGE__BODY_LOOKUP);
    for (uint32_t i = 0; i < n; i++) {
        blocks[i] = block;
    }
    found.number = lookup->lookup->number;
    found.incarnation = incarnation;
    found.shelves = shelves;
    found.blocks = blocks;
    found.epochs = epochs;
    found.n_shelves = found.n_blocks = found.n_epochs = n;
    kv_remote_message_free(lookup);
    const kv_remote_message_t message = KV_REMOTE_MESSAGE(FOUND, found, &found);
    say(liar, bytes, weft__remote__message__pack(&message, bytes));
    return remote_pair_fetch(&liar->pair.reader, chain);
}

static uint64_t incarnation_of(const liar_t *liar)
{
    kv_remote_message_t *welcome = NULL;
    assert_status(kv_remote_message_decode(liar->welcome, liar->welcome_bytes, &welcome), WEFT_OK);
    const uint64_t incarnation = welcome->welcome->incarnation;
    kv_remote_message_free(welcome);
    return incarnation;
}

static void answers_that_cannot_be_are_no_blocks(void **state)
{
    (void)state;
    liar_t liar;
    store_rig_chain_t chain;
    open_liar(&liar, 2 * WEFT_NS_PER_SECOND); /* one answer is waited for in vain */
    meet_liar(&liar);
    const uint64_t incarnation = incarnation_of(&liar);
    store_rig_chain(&liar.pair.reader, &chain, BASE, N);
    assert_int_equal(answer_with(&liar, &chain, 0, N, incarnation), 0); /* epochs that are not */
    store_rig_chain(&liar.pair.reader, &chain, BASE + 100, N);
    assert_int_equal(answer_with(&liar, &chain, UINT32_MAX, N, incarnation), 0);
    store_rig_chain(&liar.pair.reader, &chain, BASE + 200, N);
    assert_int_equal(answer_with(&liar, &chain, 0, N + 1, incarnation), 0);
    store_rig_chain(&liar.pair.reader, &chain, BASE + 300, N);
    assert_int_equal(answer_with(&liar, &chain, 0, N, incarnation + 1), 0);
    assert_int_equal(remote_pair_tier(&liar.pair.reader).peers, 0); /* not the one that was met */
    close_liar(&liar);
}

static void garbage_does_not_hold_up_the_owner(void **state)
{
    (void)state;
    remote_pair_t pair;
    store_rig_chain_t chain;
    char endpoint[80];
    const int zero = 0;
    remote_pair_open(&pair, "tcp", 0);
    remote_pair_share(&pair, &chain);
    void *context = zmq_ctx_new();
    void *dealer = zmq_socket(context, ZMQ_DEALER);
    zmq_setsockopt(dealer, ZMQ_LINGER, &zero, sizeof(zero));
    snprintf(endpoint, sizeof(endpoint), "tcp://%s", pair.peers);
    assert_int_equal(zmq_connect(dealer, endpoint), 0);
    zmq_send(dealer, "\x0a\xff\xff\xff\xff", 5, 0);
    zmq_send(dealer, "two", 3, ZMQ_SNDMORE);
    zmq_send(dealer, "parts", 5, 0);
    zmq_send(dealer, "", 0, 0);
    remote_pair_meet(&pair.reader);
    while (kv_store_stats(pair.owner.store).offer.garbage < 3) {
        zmq_poll(NULL, 0, 1); /* until it has been looked at */
    }
    assert_int_equal(remote_pair_fetch(&pair.reader, &chain), N);
    zmq_close(dealer);
    zmq_ctx_term(context);
    remote_pair_close(&pair);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(garbage_for_a_greeting_is_a_peer_that_is_away),
        cmocka_unit_test(a_greeting_with_garbage_for_an_agent_is_no_peer),
        cmocka_unit_test(a_peer_that_does_not_answer_costs_its_time_and_no_more),
        cmocka_unit_test(answers_that_cannot_be_are_no_blocks),
        cmocka_unit_test(garbage_does_not_hold_up_the_owner),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
