/* SPDX-License-Identifier: Apache-2.0 */
/* Stores that take blocks of each other, and what becomes of it when one goes or forgets. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "tests/support/remote_pair.h"
#include "tests/support/zmq_tsan.h"

enum { BASE = REMOTE_PAIR_BASE, N = REMOTE_PAIR_BLOCKS };

static void blocks_of_the_owners_device_come_by(const char *backend)
{
    remote_pair_t pair;
    store_rig_chain_t chain;
    remote_pair_open_shared(&pair, backend, &chain);
    assert_int_equal(remote_pair_fetch(&pair.reader, &chain), N);
    store_rig_assert_content(&pair.reader, &chain, N);
    assert_int_equal(remote_pair_tier(&pair.reader).read_bytes, N * STORE_RIG_BLOCK_BYTES);
    assert_int_equal(remote_pair_tier(&pair.reader).lookups, 1);
    const kv_store_offer_stats_t offer = kv_store_stats(pair.owner.store).offer;
    assert_int_equal(offer.found_blocks, N);
    assert_int_equal(offer.blocks, N);
    remote_pair_close(&pair);
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
    remote_pair_t pair;
    store_rig_chain_t chain;
    remote_pair_open(&pair, "tcp", 32);
    remote_pair_share(&pair, &chain);
    store_rig_push_out(&pair.owner, BASE + 5000);
    assert_int_equal(store_rig_on_device(&pair.owner, &chain), 0);
    remote_pair_meet(&pair.reader);
    assert_int_equal(remote_pair_fetch(&pair.reader, &chain), N);
    store_rig_assert_content(&pair.reader, &chain, N);
    remote_pair_close(&pair);
}

static void only_what_is_missing_here_is_read(void **state)
{
    (void)state;
    remote_pair_t pair;
    store_rig_chain_t chain;
    store_rig_chain_t head;
    remote_pair_open(&pair, "tcp", 0);
    remote_pair_share(&pair, &chain);
    store_rig_chain(&pair.reader, &head, BASE, 2);
    store_rig_compute(&pair.reader, &head);
    remote_pair_meet(&pair.reader);
    remote_pair_ask(&pair.reader, &chain, 2);
    assert_int_equal(remote_pair_read(&pair.reader, &chain, 2), N - 2);
    store_rig_assert_content(&pair.reader, &chain, N);
    remote_pair_close(&pair);
}

static void a_prompt_that_nobody_has_is_found_nowhere(void **state)
{
    (void)state;
    remote_pair_t pair;
    store_rig_chain_t chain;
    remote_pair_open(&pair, "tcp", 0);
    remote_pair_meet(&pair.reader);
    store_rig_chain(&pair.reader, &chain, BASE, N);
    assert_int_equal(remote_pair_fetch(&pair.reader, &chain), 0);
    assert_int_equal(remote_pair_tier(&pair.reader).lookups, 1);
    remote_pair_close(&pair);
}

static void a_prompt_for_an_adapter_is_not_asked_for(void **state)
{
    (void)state;
    remote_pair_t pair;
    store_rig_chain_t chain;
    remote_pair_open_shared(&pair, "tcp", &chain);
    assert_status(kv_extra_create(NULL, "poet", "/adapters/poet", &chain.chain.extra), WEFT_OK);
    assert_int_equal(remote_pair_fetch(&pair.reader, &chain), 0);
    assert_int_equal(remote_pair_tier(&pair.reader).lookups, 0);
    kv_extra_release(chain.chain.extra);
    remote_pair_close(&pair);
}

/* The owner computes something else where the blocks were, between saying where and their reading. */
static void blocks_reused_before_they_are_read_are_stale(void **state)
{
    (void)state;
    remote_pair_t pair;
    store_rig_chain_t chain;
    remote_pair_open_shared(&pair, "tcp", &chain);
    remote_pair_ask(&pair.reader, &chain, 0);
    store_rig_push_out(&pair.owner, BASE + 5000);
    assert_int_equal(remote_pair_read(&pair.reader, &chain, 0), 0);
    assert_int_equal(store_rig_on_device(&pair.reader, &chain), 0);
    assert_true(remote_pair_tier(&pair.reader).stale > 0);
    assert_int_equal(remote_pair_tier(&pair.reader).peers, 1); /* nothing is wrong with the peer */
    remote_pair_close(&pair);
}

static void what_the_owner_forgets_is_stale(void **state)
{
    (void)state;
    remote_pair_t pair;
    store_rig_chain_t chain;
    remote_pair_open_shared(&pair, "shm", &chain);
    remote_pair_ask(&pair.reader, &chain, 0);
    kv_store_clear(pair.owner.store, true);
    assert_int_equal(remote_pair_read(&pair.reader, &chain, 0), 0);
    assert_true(remote_pair_tier(&pair.reader).stale > 0);
    remote_pair_close(&pair);
}

static void what_computing_does_as_fast_is_not_read(void **state)
{
    (void)state;
    remote_pair_t pair;
    store_rig_chain_t chain;
    remote_pair_open_shared(&pair, "tcp", &chain);
    for (int i = 0; i < 100; i++) {
        kv_store_note_compute(pair.reader.store, 1000, 1000); /* a nanosecond a token */
    }
    assert_int_equal(remote_pair_fetch(&pair.reader, &chain), 0);
    assert_int_equal(remote_pair_tier(&pair.reader).lookups_declined, 1);
    assert_int_equal(remote_pair_tier(&pair.reader).lookups, 0);
    for (int i = 0; i < 1000; i++) {
        kv_store_note_compute(pair.reader.store, 1, 10 * WEFT_NS_PER_SECOND);
    }
    store_rig_chain_t other;
    store_rig_chain(&pair.owner, &other, BASE, N - 1); /* the answer for the whole is still good */
    assert_int_equal(remote_pair_fetch(&pair.reader, &other), N - 1);
    remote_pair_close(&pair);
}

static void a_worker_of_another_model_is_refused(void **state)
{
    (void)state;
    remote_pair_t pair = {.backends = "tcp"};
    store_rig_chain_t chain;
    remote_pair_open_owner(&pair, 0);
    remote_pair_open_reader(&pair, kv_store_offer_port(pair.owner.store), "b",
                            REMOTE_PAIR_PATIENCE_NS);
    remote_pair_share(&pair, &chain);
    while (kv_store_stats(pair.owner.store).offer.refused == 0) {
        sem_wait(&pair.reader.woken); /* by the refusal */
    }
    kv_store_poll(pair.reader.store);
    assert_int_equal(remote_pair_fetch(&pair.reader, &chain), 0);
    assert_int_equal(remote_pair_tier(&pair.reader).peers, 0);
    remote_pair_close(&pair);
}

static void a_peer_that_comes_later_is_met(void **state)
{
    (void)state;
    remote_pair_t pair = {.backends = "tcp"};
    store_rig_chain_t chain;
    remote_pair_open_owner(&pair, 0);
    const unsigned port = kv_store_offer_port(pair.owner.store);
    remote_pair_reopen(&pair.owner, NULL, 0);
    remote_pair_open_reader(&pair, port, "a", REMOTE_PAIR_PATIENCE_NS);
    kv_store_poll(pair.reader.store);
    remote_pair_reopen(&pair.owner, &pair.owner_remote, 0);
    remote_pair_share(&pair, &chain);
    remote_pair_meet(&pair.reader);
    assert_int_equal(remote_pair_fetch(&pair.reader, &chain), N);
    remote_pair_close(&pair);
}

/* The answer came from an owner that is no more when its blocks are read. */
static void an_owner_lost_before_the_read_ends_it(void **state)
{
    (void)state;
    remote_pair_t pair;
    store_rig_chain_t chain;
    remote_pair_open(&pair, "tcp", 0);
    pair.reader_remote.wait_ns =
        WEFT_NS_PER_SECOND; /* for the answer, then for what is not to be read */
    remote_pair_reopen(&pair.reader, &pair.reader_remote, 0);
    remote_pair_share(&pair, &chain);
    remote_pair_meet(&pair.reader);
    remote_pair_ask(&pair.reader, &chain, 0);
    remote_pair_reopen(&pair.owner, NULL, 0);
    assert_int_equal(remote_pair_read(&pair.reader, &chain, 0), 0);
    assert_int_equal(remote_pair_tier(&pair.reader).peers, 0);
    assert_int_equal(remote_pair_tier(&pair.reader).in_flight, 0);
    remote_pair_close(&pair);
}

static void closing_in_the_middle_of_reads_is_fine(void **state)
{
    (void)state;
    remote_pair_t pair;
    store_rig_chain_t chain;
    remote_pair_open_shared(&pair, "tcp", &chain);
    remote_pair_ask(&pair.reader, &chain, 0);
    kv_fetch_t *started = kv_store_fetch(pair.reader.store, &chain.chain, 0, N);
    assert_non_null(started);
    kv_store_fetch_end(pair.reader.store, started);
    remote_pair_close(&pair);
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

static void open_churn(churn_t *churn, remote_pair_t *pair, const char *backend)
{
    remote_pair_open(pair, backend, 0);
    enlarge(&pair->owner);
    enlarge(&pair->reader);
    remote_pair_reopen(&pair->owner, &pair->owner_remote, 0);
    remote_pair_reopen(&pair->reader, &pair->reader_remote, 0);
    *churn = (churn_t){.rig = &pair->owner};
    for (int32_t i = 0; i < CHAINS; i++) {
        store_rig_chain(&pair->owner, &churn->chains[i], BASE + 1000 * i, CHAIN_BLOCKS);
    }
    remote_pair_meet(&pair->reader);
}

static void check_churn(const char *backend)
{
    remote_pair_t pair;
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
        (void)remote_pair_fetch(&pair.reader, chain);
        assert_large(&pair.reader, chain);
    }
    atomic_store(&churn.is_over, true);
    pthread_join(thread, NULL);
    const kv_tier_stats_t stats = remote_pair_tier(&pair.reader);
    print_message("%s: %llu blocks read, %llu stale\n", backend,
                  (unsigned long long)(stats.gets - stats.gets_failed),
                  (unsigned long long)stats.stale);
    remote_pair_close(&pair);
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
    remote_pair_t pair;
    store_rig_chain_t chain;
    weft_device_ops_t ops;
    remote_pair_open(&pair, "tcp", 0);
    kv_store_destroy(pair.reader.store);
    move_elsewhere(&pair.reader, &ops);
    store_rig_open(&pair.reader);
    remote_pair_share(&pair, &chain);
    remote_pair_meet(&pair.reader);
    assert_int_equal(remote_pair_fetch(&pair.reader, &chain), N);
    store_rig_assert_content(&pair.reader, &chain, N);
    remote_pair_close(&pair);
}

static void a_gpu_offers_what_its_host_tier_has(void **state)
{
    (void)state;
    remote_pair_t pair;
    store_rig_chain_t chain;
    weft_device_ops_t ops;
    remote_pair_open(&pair, "tcp", 0);
    kv_store_destroy(pair.owner.store);
    move_elsewhere(&pair.owner, &ops);
    store_rig_open(&pair.owner);
    assert_int_equal(kv_store_offer_port(pair.owner.store), 0); /* nothing that peers could read */
    remote_pair_reopen(&pair.owner, &pair.owner_remote, 32);
    remote_pair_share(&pair, &chain);
    assert_int_equal(kv_store_stats(pair.owner.store).offer.blocks, 0);
    store_rig_push_out(&pair.owner, BASE + 5000);
    remote_pair_meet(&pair.reader);
    assert_int_equal(remote_pair_fetch(&pair.reader, &chain), N);
    store_rig_assert_content(&pair.reader, &chain, N);
    remote_pair_close(&pair);
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
