/* SPDX-License-Identifier: Apache-2.0 */
/* What a subscriber knows is what the store has: in every tier, after whatever happened. */
#include <string.h>

#include "kvstore/events/kv_event_mirror.h"
#include "kvstore/events/kv_event_subscriber.h"
#include "kvstore/kv_store_priv.h"
#include "tests/support/random.h"
#include "tests/support/store_rig.h"
#include "tests/support/zmq_tsan.h"

enum { CHAINS = 12, STEPS = 200 };

typedef struct watch {
    kv_publisher_t *publisher;
    kv_event_subscriber_t *subscriber;
    kv_event_mirror_t *mirror;
    uint32_t holes[4];
} watch_t;

static void count_hole(void *user, kv_event_hole_t hole, const kv_event_hash_t *hash)
{
    (void)hash;
    ((watch_t *)user)->holes[hole]++;
}

static const char *endpoint_of(json_t *sources, const char *key)
{
    return json_string_value(json_object_get(json_object_get(sources, "0"), key));
}

static void watch_init(watch_t *watch, store_rig_t *rig)
{
    weft_diag_t diag = {0};
    const kv_publisher_config_t publisher = {
        .events_config = "{\"enable_kv_cache_events\": true, \"endpoint\": \"tcp://*:0\","
                         " \"replay_endpoint\": \"tcp://127.0.0.1:0\", \"buffer_steps\": 50}",
        .block_tokens = STORE_RIG_TOKENS,
        .algo = KV_HASH_ALGO_sha256_cbor,
    };
    *watch = (watch_t){0};
    if (kv_publisher_create(&publisher, &diag, &watch->publisher) < 0) {
        fail_msg("%s", diag.text);
    }
    rig->config.publisher = watch->publisher;
    json_t *sources = kv_publisher_sources(watch->publisher);
    const kv_event_subscriber_config_t subscriber = {
        .endpoint = endpoint_of(sources, "endpoint"),
        .replay_endpoint = endpoint_of(sources, "replay_endpoint"),
    };
    assert_status(kv_event_subscriber_create(&subscriber, &diag, &watch->subscriber), WEFT_OK);
    json_decref(sources);
    const kv_event_mirror_config_t mirror = {
        .block_tokens = STORE_RIG_TOKENS, .on_hole = count_hole, .user = watch};
    assert_status(kv_event_mirror_create(&mirror, &watch->mirror), WEFT_OK);
}

static void watch_fini(watch_t *watch)
{
    kv_event_mirror_destroy(watch->mirror);
    kv_event_subscriber_destroy(watch->subscriber);
    kv_publisher_destroy(watch->publisher);
}

static void do_something(store_rig_t *rig, test_random_t *random, store_rig_chain_t *chains)
{
    store_rig_chain_t *chain = &chains[test_random_below(random, CHAINS)];
    uint32_t counts[KV_TIER_COUNT];
    switch (test_random_below(random, 40)) {
    case 0:
        kv_store_clear(rig->store, test_random_below(random, 2) == 0);
        break;
    case 1:
        kv_store_pin(rig->store, chain->blocks, store_rig_on_device(rig, chain));
        break;
    case 2:
        (void)kv_store_unpin_all(rig->store);
        break;
    default:
        (void)store_rig_fetch(rig, chain, store_rig_on_device(rig, chain), counts);
        if (kv_pool_free_blocks(rig->pool) >= chain->chain.n) {
            store_rig_compute(rig, chain);
        }
        break;
    }
    kv_store_poll(rig->store);
    kv_store_flush(rig->store);
}

static kv_event_hash_t event_hash(const kv_hash_t *hash)
{
    kv_event_hash_t name = {.n_bytes = KV_HASH_BYTES};
    memcpy(name.bytes, hash->bytes, KV_HASH_BYTES);
    return name;
}

static bool is_known(const watch_t *watch, kv_tier_id_t tier, const kv_hash_t *hash)
{
    const char *medium = kv_tier_medium(tier);
    const kv_event_hash_t name = event_hash(hash);
    return kv_event_mirror_has(watch->mirror, kv_event_text(medium), 0, &name);
}

/* Up to a block that the store knows nothing of, told last. */
static void catch_up(watch_t *watch)
{
    static const int32_t tokens[STORE_RIG_TOKENS] = {0};
    kv_name_t last = {.is_first = true, .tokens = tokens};
    weft_diag_t diag = {0};
    kv_event_news_t news = {0};
    memset(last.hash.bytes, 0xee, sizeof(last.hash.bytes));
    kv_publisher_stored(watch->publisher, KV_TIER_device, &last);
    kv_publisher_flush(watch->publisher);
    while (!is_known(watch, KV_TIER_device, &last.hash)) {
        assert_status(kv_event_subscriber_next(watch->subscriber, -1, &diag, &news), WEFT_OK);
        assert_int_equal(news.missed, 0);
        assert_status(kv_event_mirror_apply_batch(watch->mirror, news.sequence, news.batch),
                      WEFT_OK);
    }
}

static void assert_same(store_rig_t *rig, watch_t *watch, const store_rig_chain_t *chains)
{
    for (uint32_t c = 0; c < CHAINS; c++) {
        for (uint32_t i = 0; i < chains[c].chain.n; i++) {
            const kv_hash_t *hash = &chains[c].hashes[i];
            for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
                kv_tier_t *tier = rig->store->tiers[id];
                const bool has = id == KV_TIER_device ? kv_store_has(rig->store, hash)
                                                      : tier != NULL && tier->ops->has(tier, hash);
                assert_int_equal(is_known(watch, id, hash), has);
            }
        }
    }
}

static void run(uint64_t seed)
{
    store_rig_t rig;
    watch_t watch;
    test_random_t random = {seed};
    static store_rig_chain_t chains[CHAINS];
    store_rig_init(&rig, 0, 0);
    kv_store_destroy(rig.store);
    watch_init(&watch, &rig);
    rig.config.host_bytes = test_random_between(&random, 4, 20) * STORE_RIG_BLOCK_BYTES;
    rig.config.disk_bytes = 400 << 10;
    rig.config.admits_all = test_random_below(&random, 2) == 0;
    store_rig_open(&rig);
    for (uint32_t c = 0; c < CHAINS; c++) { /* of three families, of several lengths */
        store_rig_chain(&rig, &chains[c], (int32_t)(c % 3) * 1000,
                        test_random_between(&random, 1, STORE_RIG_BLOCKS - 2));
    }
    for (uint32_t i = 0; i < STEPS; i++) {
        do_something(&rig, &random, chains);
    }
    store_rig_settle(&rig, NULL);
    kv_store_flush(rig.store);
    catch_up(&watch);
    assert_same(&rig, &watch, chains);
    assert_int_equal(watch.holes[KV_EVENT_HOLE_ABSENT], 0);
    assert_int_equal(watch.holes[KV_EVENT_HOLE_UNKNOWN], 0);
    assert_int_equal(watch.holes[KV_EVENT_HOLE_GAP], 0);
    kv_store_destroy(rig.store);
    watch_fini(&watch);
    rig.config.publisher = NULL;
    store_rig_open(&rig);
    store_rig_fini(&rig);
}

static void a_subscriber_knows_what_each_tier_has(void **state)
{
    (void)state;
    const uint64_t seed = test_seed(5);
    const uint32_t rounds = test_rounds(100);
    for (uint32_t i = 0; i < rounds; i++) {
        print_message("seed %llu\n", (unsigned long long)(seed + i));
        run(seed + i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_subscriber_knows_what_each_tier_has),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
