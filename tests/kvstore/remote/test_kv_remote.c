/* SPDX-License-Identifier: Apache-2.0 */
/* Stores that take blocks of each other, and what becomes of it when one is not as it should be. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <zmq.h>

#include "base/clock.h"
#include "kvstore/kv_store.h"
#include "tests/support/reserved_port.h"
#include "tests/support/store_rig.h"
#include "tests/support/zmq_tsan.h"

enum { BASE = 1000, N = 6 };

#define PATIENCE_NS (60 * WEFT_NS_PER_SECOND)

typedef struct pair {
    store_rig_t owner;
    store_rig_t reader;
    kv_remote_config_t owner_remote;
    kv_remote_config_t reader_remote;
    char listen[64]; /* a port that stays the owner's while it is not there */
    char peers[64];
    char backends[8];
} pair_t;

static void reopen(store_rig_t *rig, const kv_remote_config_t *remote, size_t host_blocks)
{
    kv_store_destroy(rig->store);
    rig->config.remote = remote;
    rig->config.host_bytes = host_blocks * STORE_RIG_BLOCK_BYTES;
    store_rig_open(rig);
}

static void open_owner(pair_t *pair, size_t host_blocks)
{
    store_rig_init(&pair->owner, 0, 0);
    snprintf(pair->listen, sizeof(pair->listen), "127.0.0.1:%u", reserve_port());
    pair->owner_remote = (kv_remote_config_t){.listen = pair->listen, .backends = pair->backends};
    kv_remote_facts_add(&pair->owner_remote.facts, "shape", "a");
    reopen(&pair->owner, &pair->owner_remote, host_blocks);
}

static void open_reader(pair_t *pair, unsigned port, const char *shape, uint64_t wait_ns)
{
    store_rig_init(&pair->reader, 0, 0);
    snprintf(pair->peers, sizeof(pair->peers), "127.0.0.1:%u", port);
    pair->reader_remote =
        (kv_remote_config_t){.peers = pair->peers, .backends = pair->backends, .wait_ns = wait_ns};
    kv_remote_facts_add(&pair->reader_remote.facts, "shape", "%s", shape);
    reopen(&pair->reader, &pair->reader_remote, 0);
}

static void open_pair(pair_t *pair, const char *backend, size_t host_blocks)
{
    *pair = (pair_t){0};
    snprintf(pair->backends, sizeof(pair->backends), "%s", backend);
    open_owner(pair, host_blocks);
    open_reader(pair, kv_store_offer_port(pair->owner.store), "a", PATIENCE_NS);
}

static void close_pair(pair_t *pair)
{
    store_rig_fini(&pair->reader);
    store_rig_fini(&pair->owner);
}

static kv_tier_stats_t tier_of(const store_rig_t *rig)
{
    return kv_store_stats(rig->store).tiers[KV_TIER_remote].tier;
}

static void wait_for_peer(store_rig_t *rig)
{
    kv_store_poll(rig->store);
    while (tier_of(rig).peers == 0) {
        sem_wait(&rig->woken); /* ctest has the deadline */
        kv_store_poll(rig->store);
    }
}

/* As the scheduler does, until peers have answered or their time is over. */
static void ask(store_rig_t *rig, const store_rig_chain_t *chain, uint32_t first)
{
    while (kv_store_ask(rig->store, &chain->chain, first) == WEFT_PENDING) {
        sem_wait(&rig->woken);
        kv_store_poll(rig->store);
    }
}

static uint32_t fetch(store_rig_t *rig, store_rig_chain_t *chain)
{
    uint32_t counts[KV_TIER_COUNT];
    ask(rig, chain, 0);
    store_rig_fetch(rig, chain, 0, counts);
    return counts[KV_TIER_remote];
}

/* The same chain for both: hashes follow from tokens. */
static void share(pair_t *pair, store_rig_chain_t *chain, uint32_t n)
{
    store_rig_chain(&pair->owner, chain, BASE, n);
    store_rig_compute(&pair->owner, chain);
}

static void blocks_of_the_owners_device_come_by(const char *backend)
{
    pair_t pair;
    store_rig_chain_t chain;
    open_pair(&pair, backend, 0);
    share(&pair, &chain, N);
    wait_for_peer(&pair.reader);
    assert_int_equal(fetch(&pair.reader, &chain), N);
    store_rig_assert_content(&pair.reader, &chain, N);
    assert_int_equal(tier_of(&pair.reader).read_bytes, N * STORE_RIG_BLOCK_BYTES);
    assert_int_equal(tier_of(&pair.reader).lookups, 1);
    const kv_store_offer_stats_t offer = kv_store_stats(pair.owner.store).offer;
    assert_int_equal(offer.found_blocks, N);
    assert_int_equal(offer.blocks, N);
    close_pair(&pair);
}

static void a_peers_blocks_come_over_tcp(void **state)
{
    (void)state;
    blocks_of_the_owners_device_come_by("tcp");
}

static void a_peers_blocks_come_through_shared_memory(void **state)
{
    (void)state;
    blocks_of_the_owners_device_come_by("shm");
}

static void blocks_of_the_owners_host_tier_come_too(void **state)
{
    (void)state;
    pair_t pair;
    store_rig_chain_t chain;
    open_pair(&pair, "tcp", 32);
    share(&pair, &chain, N);
    store_rig_push_out(&pair.owner, BASE + 5000);
    assert_int_equal(store_rig_on_device(&pair.owner, &chain), 0);
    wait_for_peer(&pair.reader);
    assert_int_equal(fetch(&pair.reader, &chain), N);
    store_rig_assert_content(&pair.reader, &chain, N);
    close_pair(&pair);
}

static void only_what_is_missing_here_is_read(void **state)
{
    (void)state;
    pair_t pair;
    store_rig_chain_t chain;
    store_rig_chain_t head;
    open_pair(&pair, "tcp", 0);
    share(&pair, &chain, N);
    store_rig_chain(&pair.reader, &head, BASE, 2);
    store_rig_compute(&pair.reader, &head);
    wait_for_peer(&pair.reader);
    uint32_t counts[KV_TIER_COUNT];
    ask(&pair.reader, &chain, 2);
    store_rig_fetch(&pair.reader, &chain, 2, counts);
    assert_int_equal(counts[KV_TIER_remote], N - 2);
    store_rig_assert_content(&pair.reader, &chain, N);
    close_pair(&pair);
}

static void a_prompt_that_nobody_has_is_found_nowhere(void **state)
{
    (void)state;
    pair_t pair;
    store_rig_chain_t chain;
    open_pair(&pair, "tcp", 0);
    wait_for_peer(&pair.reader);
    store_rig_chain(&pair.reader, &chain, BASE, N);
    assert_int_equal(fetch(&pair.reader, &chain), 0);
    assert_int_equal(tier_of(&pair.reader).lookups, 1);
    close_pair(&pair);
}

static void a_prompt_for_an_adapter_is_not_asked_for(void **state)
{
    (void)state;
    pair_t pair;
    store_rig_chain_t chain;
    open_pair(&pair, "tcp", 0);
    share(&pair, &chain, N);
    wait_for_peer(&pair.reader);
    assert_status(kv_extra_create(NULL, "poet", "/adapters/poet", &chain.chain.extra), WEFT_OK);
    assert_int_equal(fetch(&pair.reader, &chain), 0);
    assert_int_equal(tier_of(&pair.reader).lookups, 0);
    kv_extra_release(chain.chain.extra);
    close_pair(&pair);
}

/* The owner computes something else where the blocks were, between saying where and their reading. */
static void blocks_reused_before_they_are_read_are_stale(void **state)
{
    (void)state;
    pair_t pair;
    store_rig_chain_t chain;
    open_pair(&pair, "tcp", 0);
    share(&pair, &chain, N);
    wait_for_peer(&pair.reader);
    ask(&pair.reader, &chain, 0);
    store_rig_push_out(&pair.owner, BASE + 5000);
    uint32_t counts[KV_TIER_COUNT];
    store_rig_fetch(&pair.reader, &chain, 0, counts);
    assert_int_equal(counts[KV_TIER_remote], 0);
    assert_int_equal(store_rig_on_device(&pair.reader, &chain), 0);
    assert_true(tier_of(&pair.reader).stale > 0);
    assert_int_equal(tier_of(&pair.reader).peers, 1); /* nothing is wrong with the peer */
    close_pair(&pair);
}

static void what_the_owner_forgets_is_stale(void **state)
{
    (void)state;
    pair_t pair;
    store_rig_chain_t chain;
    open_pair(&pair, "shm", 0);
    share(&pair, &chain, N);
    wait_for_peer(&pair.reader);
    ask(&pair.reader, &chain, 0);
    kv_store_clear(pair.owner.store, true);
    uint32_t counts[KV_TIER_COUNT];
    store_rig_fetch(&pair.reader, &chain, 0, counts);
    assert_int_equal(counts[KV_TIER_remote], 0);
    assert_true(tier_of(&pair.reader).stale > 0);
    close_pair(&pair);
}

static void what_computing_does_as_fast_is_not_read(void **state)
{
    (void)state;
    pair_t pair;
    store_rig_chain_t chain;
    open_pair(&pair, "tcp", 0);
    share(&pair, &chain, N);
    wait_for_peer(&pair.reader);
    for (int i = 0; i < 100; i++) {
        kv_store_note_compute(pair.reader.store, 1000, 1000); /* a nanosecond a token */
    }
    assert_int_equal(fetch(&pair.reader, &chain), 0);
    assert_int_equal(tier_of(&pair.reader).lookups_declined, 1);
    assert_int_equal(tier_of(&pair.reader).lookups, 0);
    for (int i = 0; i < 1000; i++) {
        kv_store_note_compute(pair.reader.store, 1, 10 * WEFT_NS_PER_SECOND);
    }
    store_rig_chain_t other;
    store_rig_chain(&pair.owner, &other, BASE, N - 1); /* the answer for the whole is still good */
    assert_int_equal(fetch(&pair.reader, &other), N - 1);
    close_pair(&pair);
}

static void a_worker_of_another_model_is_refused(void **state)
{
    (void)state;
    pair_t pair = {.backends = "tcp"};
    store_rig_chain_t chain;
    open_owner(&pair, 0);
    open_reader(&pair, kv_store_offer_port(pair.owner.store), "b", PATIENCE_NS);
    share(&pair, &chain, N);
    while (kv_store_stats(pair.owner.store).offer.refused == 0) {
        sem_wait(&pair.reader.woken); /* by the refusal */
    }
    kv_store_poll(pair.reader.store);
    assert_int_equal(fetch(&pair.reader, &chain), 0);
    assert_int_equal(tier_of(&pair.reader).peers, 0);
    close_pair(&pair);
}

static void a_peer_that_comes_later_is_met(void **state)
{
    (void)state;
    pair_t pair = {.backends = "tcp"};
    store_rig_chain_t chain;
    open_owner(&pair, 0);
    const unsigned port = kv_store_offer_port(pair.owner.store);
    reopen(&pair.owner, NULL, 0);
    open_reader(&pair, port, "a", PATIENCE_NS);
    kv_store_poll(pair.reader.store);
    reopen(&pair.owner, &pair.owner_remote, 0);
    share(&pair, &chain, N);
    wait_for_peer(&pair.reader);
    assert_int_equal(fetch(&pair.reader, &chain), N);
    close_pair(&pair);
}

/* The answer came from an owner that is no more when its blocks are read. */
static void an_owner_lost_before_the_read_ends_it(void **state)
{
    (void)state;
    pair_t pair;
    store_rig_chain_t chain;
    open_pair(&pair, "tcp", 0);
    pair.reader_remote.wait_ns =
        WEFT_NS_PER_SECOND; /* for the answer, then for what is not to be read */
    reopen(&pair.reader, &pair.reader_remote, 0);
    share(&pair, &chain, N);
    wait_for_peer(&pair.reader);
    ask(&pair.reader, &chain, 0);
    reopen(&pair.owner, NULL, 0);
    uint32_t counts[KV_TIER_COUNT];
    store_rig_fetch(&pair.reader, &chain, 0, counts);
    assert_int_equal(counts[KV_TIER_remote], 0);
    assert_int_equal(tier_of(&pair.reader).peers, 0);
    assert_int_equal(tier_of(&pair.reader).in_flight, 0);
    close_pair(&pair);
}

static void closing_in_the_middle_of_reads_is_fine(void **state)
{
    (void)state;
    pair_t pair;
    store_rig_chain_t chain;
    open_pair(&pair, "tcp", 0);
    share(&pair, &chain, N);
    wait_for_peer(&pair.reader);
    ask(&pair.reader, &chain, 0);
    kv_fetch_t *started = kv_store_fetch(pair.reader.store, &chain.chain, 0, N);
    assert_non_null(started);
    kv_store_fetch_end(pair.reader.store, started);
    close_pair(&pair);
}

/* ---- an owner that uses its blocks for others all the time ------------------------------------- */

enum { LARGE_DIM = 8192, CHAINS = 5, CHAIN_BLOCKS = 4, CHURN_ROUNDS = 60 };

typedef struct churn {
    store_rig_t *rig;
    store_rig_chain_t chains[CHAINS];
    atomic_bool is_over;
} churn_t;

static size_t large_words(const store_rig_t *rig)
{
    return rig->config.layout.block_bytes[0] / sizeof(uint64_t);
}

static uint64_t word_of(const kv_hash_t *hash, size_t i)
{
    uint64_t word;
    memcpy(&word, hash->bytes, sizeof(word));
    return word + i;
}

static void compute_large(store_rig_t *rig, store_rig_chain_t *chain)
{
    assert_status(kv_pool_alloc(rig->pool, CHAIN_BLOCKS, chain->blocks), WEFT_OK);
    for (uint32_t i = 0; i < CHAIN_BLOCKS; i++) {
        uint64_t *words = kv_pool_block(rig->pool, chain->blocks[i]);
        for (size_t j = 0; j < large_words(rig); j++) {
            words[j] = word_of(&chain->hashes[i], j);
        }
        kv_store_name(rig->store, &chain->chain, i, chain->blocks[i], false);
    }
    kv_pool_release(rig->pool, chain->blocks, CHAIN_BLOCKS);
}

/* Two of the five fit: whatever a reader was told of is somebody else's soon. */
static void *compute_on_and_on(void *user)
{
    churn_t *churn = user;
    for (uint32_t i = 0; !atomic_load(&churn->is_over); i++) {
        store_rig_chain_t *chain = &churn->chains[i % CHAINS];
        if (store_rig_on_device(churn->rig, chain) < CHAIN_BLOCKS) {
            compute_large(churn->rig, chain);
        }
    }
    return NULL;
}

static void assert_large(store_rig_t *rig, store_rig_chain_t *chain)
{
    const uint32_t n = store_rig_on_device(rig, chain);
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t *words = kv_pool_block(rig->pool, chain->blocks[i]);
        for (size_t j = 0; j < large_words(rig); j++) {
            assert_true(words[j] == word_of(&chain->hashes[i], j));
        }
    }
}

static void enlarge(store_rig_t *rig)
{
    rig->config.layout.groups[0].head_dim = LARGE_DIM;
    assert_status(kv_layout_init(&rig->config.layout, STORE_RIG_BLOCKS, NULL), WEFT_OK);
}

static void open_churn(churn_t *churn, pair_t *pair, const char *backend)
{
    open_pair(pair, backend, 0);
    enlarge(&pair->owner);
    enlarge(&pair->reader);
    reopen(&pair->owner, &pair->owner_remote, 0);
    reopen(&pair->reader, &pair->reader_remote, 0);
    *churn = (churn_t){.rig = &pair->owner};
    for (int32_t i = 0; i < CHAINS; i++) {
        store_rig_chain(&pair->owner, &churn->chains[i], BASE + 1000 * i, CHAIN_BLOCKS);
    }
    wait_for_peer(&pair->reader);
}

static void check_churn(const char *backend)
{
    pair_t pair;
    churn_t churn;
    pthread_t thread;
    open_churn(&churn, &pair, backend);
    store_rig_chain_t chains[CHAINS]; /* the reader's, as blocks are noted in them */
    memcpy(chains, churn.chains, sizeof(chains));
    assert_int_equal(pthread_create(&thread, NULL, compute_on_and_on, &churn), 0);
    for (uint32_t i = 0; i < CHURN_ROUNDS; i++) {
        store_rig_chain_t *chain = &chains[i % CHAINS];
        chain->chain.hashes = chain->hashes;
        chain->chain.tokens = chain->tokens;
        kv_store_clear(pair.reader.store, true); /* also what it was told */
        (void)fetch(&pair.reader, chain);
        assert_large(&pair.reader, chain);
    }
    atomic_store(&churn.is_over, true);
    pthread_join(thread, NULL);
    const kv_tier_stats_t stats = tier_of(&pair.reader);
    print_message("%s: %llu blocks read, %llu stale\n", backend,
                  (unsigned long long)(stats.gets - stats.gets_failed),
                  (unsigned long long)stats.stale);
    close_pair(&pair);
}

static void no_block_is_ever_read_with_bytes_of_another(void **state)
{
    (void)state;
#ifdef __SANITIZE_THREAD__
    skip(); /* memory that changes while it is read is what this is about */
#endif
    check_churn("tcp");
    check_churn("shm");
}

/* ---- memory that peers do not reach ----------------------------------------------------------- */

/* As a GPU's: what the cpu does, said to be elsewhere. */
static void move_elsewhere(store_rig_t *rig, weft_device_ops_t *ops)
{
    *ops = *rig->device->ops;
    ops->is_host = false;
    rig->device->ops = ops;
}

static void blocks_for_a_gpu_come_by_the_hosts_memory(void **state)
{
    (void)state;
    pair_t pair;
    store_rig_chain_t chain;
    weft_device_ops_t ops;
    open_pair(&pair, "tcp", 0);
    kv_store_destroy(pair.reader.store);
    move_elsewhere(&pair.reader, &ops);
    store_rig_open(&pair.reader);
    share(&pair, &chain, N);
    wait_for_peer(&pair.reader);
    assert_int_equal(fetch(&pair.reader, &chain), N);
    store_rig_assert_content(&pair.reader, &chain, N);
    close_pair(&pair);
}

static void a_gpu_offers_what_its_host_tier_has(void **state)
{
    (void)state;
    pair_t pair;
    store_rig_chain_t chain;
    weft_device_ops_t ops;
    open_pair(&pair, "tcp", 0);
    kv_store_destroy(pair.owner.store);
    move_elsewhere(&pair.owner, &ops);
    store_rig_open(&pair.owner);
    assert_int_equal(kv_store_offer_port(pair.owner.store), 0); /* nothing that peers could read */
    reopen(&pair.owner, &pair.owner_remote, 32);
    share(&pair, &chain, N);
    assert_int_equal(kv_store_stats(pair.owner.store).offer.blocks, 0);
    store_rig_push_out(&pair.owner, BASE + 5000);
    wait_for_peer(&pair.reader);
    assert_int_equal(fetch(&pair.reader, &chain), N);
    store_rig_assert_content(&pair.reader, &chain, N);
    close_pair(&pair);
}

/* ---- a peer that is none ---------------------------------------------------------------------- */

/* Plays the owner: what it says to a hello and to a lookup; the greeting is that of a real one. */
typedef struct liar {
    pair_t pair;
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
    open_owner(&liar->pair, 0);
    liar->context = zmq_ctx_new();
    copy_welcome(liar);
    liar->router = zmq_socket(liar->context, ZMQ_ROUTER);
    zmq_setsockopt(liar->router, ZMQ_LINGER, &zero, sizeof(zero));
    open_reader(&liar->pair, bind_any(liar->router), "a", wait_ns);
}

static void close_liar(liar_t *liar)
{
    close_pair(&liar->pair);
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
    assert_int_equal(fetch(&liar.pair.reader, &chain), 0);
    assert_int_equal(tier_of(&liar.pair.reader).peers, 0);
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
    assert_int_equal(tier_of(&liar.pair.reader).peers, 0);
    close_liar(&liar);
}

static void meet_liar(liar_t *liar)
{
    greet_with(liar, liar->welcome, liar->welcome_bytes);
    wait_for_peer(&liar->pair.reader);
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
        assert_int_equal(fetch(&liar.pair.reader, &chain), 0);
        assert_int_equal(tier_of(&liar.pair.reader).lookups_late, i + 1);
    }
    assert_int_equal(tier_of(&liar.pair.reader).peers, 0);
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
    return fetch(&liar->pair.reader, chain);
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
    assert_int_equal(tier_of(&liar.pair.reader).peers, 0); /* not the one that was met */
    close_liar(&liar);
}

static void garbage_does_not_hold_up_the_owner(void **state)
{
    (void)state;
    pair_t pair;
    store_rig_chain_t chain;
    char endpoint[80];
    const int zero = 0;
    open_pair(&pair, "tcp", 0);
    share(&pair, &chain, N);
    void *context = zmq_ctx_new();
    void *dealer = zmq_socket(context, ZMQ_DEALER);
    zmq_setsockopt(dealer, ZMQ_LINGER, &zero, sizeof(zero));
    snprintf(endpoint, sizeof(endpoint), "tcp://%s", pair.peers);
    assert_int_equal(zmq_connect(dealer, endpoint), 0);
    zmq_send(dealer, "\x0a\xff\xff\xff\xff", 5, 0);
    zmq_send(dealer, "two", 3, ZMQ_SNDMORE);
    zmq_send(dealer, "parts", 5, 0);
    zmq_send(dealer, "", 0, 0);
    wait_for_peer(&pair.reader);
    while (kv_store_stats(pair.owner.store).offer.garbage < 3) {
        zmq_poll(NULL, 0, 1); /* until it has been looked at */
    }
    assert_int_equal(fetch(&pair.reader, &chain), N);
    zmq_close(dealer);
    zmq_ctx_term(context);
    close_pair(&pair);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_peers_blocks_come_over_tcp),
        cmocka_unit_test(a_peers_blocks_come_through_shared_memory),
        cmocka_unit_test(blocks_of_the_owners_host_tier_come_too),
        cmocka_unit_test(only_what_is_missing_here_is_read),
        cmocka_unit_test(a_prompt_that_nobody_has_is_found_nowhere),
        cmocka_unit_test(a_prompt_for_an_adapter_is_not_asked_for),
        cmocka_unit_test(blocks_reused_before_they_are_read_are_stale),
        cmocka_unit_test(what_the_owner_forgets_is_stale),
        cmocka_unit_test(what_computing_does_as_fast_is_not_read),
        cmocka_unit_test(a_worker_of_another_model_is_refused),
        cmocka_unit_test(a_peer_that_comes_later_is_met),
        cmocka_unit_test(an_owner_lost_before_the_read_ends_it),
        cmocka_unit_test(closing_in_the_middle_of_reads_is_fine),
        cmocka_unit_test(no_block_is_ever_read_with_bytes_of_another),
        cmocka_unit_test(blocks_for_a_gpu_come_by_the_hosts_memory),
        cmocka_unit_test(a_gpu_offers_what_its_host_tier_has),
        cmocka_unit_test(garbage_for_a_greeting_is_a_peer_that_is_away),
        cmocka_unit_test(a_greeting_with_garbage_for_an_agent_is_no_peer),
        cmocka_unit_test(a_peer_that_does_not_answer_costs_its_time_and_no_more),
        cmocka_unit_test(answers_that_cannot_be_are_no_blocks),
        cmocka_unit_test(garbage_does_not_hold_up_the_owner),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
