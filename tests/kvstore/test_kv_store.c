/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_store.h"

#include "tests/support/store_rig.h"

static void what_the_device_gives_up_comes_back_from_the_host(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t chain;
    uint32_t counts[KV_TIER_COUNT];
    store_rig_init(&rig, 32, 0);
    store_rig_chain(&rig, &chain, 1000, 5);
    store_rig_compute(&rig, &chain);
    store_rig_assert_content(&rig, &chain, 5);
    store_rig_push_out(&rig, 0);
    assert_int_equal(store_rig_on_device(&rig, &chain), 0);
    assert_int_equal(store_rig_fetch(&rig, &chain, 0, counts), 5);
    assert_int_equal(counts[KV_TIER_host], 5);
    store_rig_assert_content(&rig, &chain, 5);
    store_rig_fini(&rig);
}

static void only_what_is_missing_behind_the_first_is_read(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t chain;
    store_rig_chain_t half;
    uint32_t counts[KV_TIER_COUNT];
    store_rig_init(&rig, 32, 0);
    store_rig_chain(&rig, &chain, 1000, 6);
    store_rig_compute(&rig, &chain);
    store_rig_push_out(&rig, 0);
    half = chain;
    half.chain = (kv_chain_t){.hashes = half.hashes, .tokens = half.tokens, .n = 2};
    store_rig_compute(&rig, &half);
    assert_int_equal(store_rig_on_device(&rig, &chain), 2);
    assert_int_equal(store_rig_fetch(&rig, &chain, 2, counts), 4);
    store_rig_assert_content(&rig, &chain, 6);
    store_rig_fini(&rig);
}

static void what_the_host_gives_up_comes_back_from_the_disk(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t chain;
    uint32_t counts[KV_TIER_COUNT];
    store_rig_init(&rig, 8, 1 << 20);
    assert_true(kv_store_stats(rig.store).tiers[KV_TIER_disk].is_present);
    store_rig_chain(&rig, &chain, 1000, 5);
    store_rig_compute(&rig, &chain);
    store_rig_push_out(&rig, 0);    /* to the host */
    store_rig_push_out(&rig, 2000); /* from there to the disk */
    store_rig_settle(&rig, NULL);
    assert_int_equal(store_rig_fetch(&rig, &chain, 0, counts), 5);
    assert_int_equal(counts[KV_TIER_disk], 5);
    store_rig_assert_content(&rig, &chain, 5);
    store_rig_fini(&rig);
}

static void reopen_admitting_what_is_seen_twice(store_rig_t *rig)
{
    kv_store_destroy(rig->store);
    rig->config.admits_all = false;
    store_rig_open(rig);
}

static void the_disk_takes_what_was_seen_twice(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t chain;
    uint32_t counts[KV_TIER_COUNT];
    store_rig_init(&rig, 0, 1 << 20);
    reopen_admitting_what_is_seen_twice(&rig);
    store_rig_chain(&rig, &chain, 1000, 3);
    store_rig_compute(&rig, &chain);
    store_rig_push_out(&rig, 0);
    store_rig_settle(&rig, NULL);
    assert_int_equal(store_rig_fetch(&rig, &chain, 0, counts), 0); /* seen once */
    store_rig_compute(&rig, &chain);
    store_rig_push_out(&rig, 2000);
    store_rig_settle(&rig, NULL);
    assert_int_equal(store_rig_fetch(&rig, &chain, 0, counts), 3);
    store_rig_assert_content(&rig, &chain, 3);
    store_rig_fini(&rig);
}

/* As turns of a conversation do: the second one's blocks are new, but go on from seen ones. */
static void the_disk_takes_what_goes_on_from_what_was_seen_once(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t first;
    store_rig_chain_t second;
    uint32_t counts[KV_TIER_COUNT];
    store_rig_init(&rig, 0, 1 << 20);
    reopen_admitting_what_is_seen_twice(&rig);
    store_rig_chain(&rig, &first, 1000, 2);
    store_rig_chain(&rig, &second, 1000, 5);
    store_rig_compute(&rig, &first);
    store_rig_compute(&rig, &second);
    store_rig_push_out(&rig, 0);
    store_rig_settle(&rig, NULL);
    assert_int_equal(store_rig_fetch(&rig, &second, 0, counts), 5);
    store_rig_fini(&rig);
}

/* As questions behind one system prompt do. */
static void the_disk_takes_no_tail_behind_a_beginning_that_many_share(void **state)
{
    (void)state;
    enum { SHARED = 2, WHOLE = 4 };
    store_rig_t rig;
    store_rig_chain_t question;
    uint32_t counts[KV_TIER_COUNT];
    store_rig_init(&rig, 0, 1 << 20);
    reopen_admitting_what_is_seen_twice(&rig);
    for (int32_t i = 0; i < 4; i++) {
        store_rig_chain(&rig, &question, 1000, WHOLE);
        for (uint32_t t = SHARED * STORE_RIG_TOKENS; t < WHOLE * STORE_RIG_TOKENS; t++) {
            question.tokens[t] += 100 * (i + 1);
        }
        store_rig_hash(&rig, &question);
        store_rig_compute(&rig, &question);
    }
    store_rig_push_out(&rig, 0);
    store_rig_settle(&rig, NULL);
    assert_int_equal(store_rig_fetch(&rig, &question, 0, counts), SHARED);
    store_rig_fini(&rig);
}

static void once_blocks_are_given_up_the_disk_is_written_ahead(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t chain;
    store_rig_init(&rig, 0, 1 << 20);
    store_rig_chain(&rig, &chain, 1000, 3);
    store_rig_compute(&rig, &chain);
    store_rig_settle(&rig, NULL);
    assert_int_equal(kv_store_stats(rig.store).tiers[KV_TIER_disk].tier.blocks, 0);
    store_rig_push_out(&rig, 0);
    store_rig_settle(&rig, NULL);
    const uint64_t before = kv_store_stats(rig.store).tiers[KV_TIER_disk].tier.blocks;
    store_rig_chain(&rig, &chain, 5000, 2);
    store_rig_compute(&rig, &chain);
    const uint64_t evicted = kv_store_stats(rig.store).tiers[KV_TIER_device].tier.evictions;
    store_rig_settle(&rig, NULL);
    assert_int_equal(kv_store_stats(rig.store).tiers[KV_TIER_disk].tier.blocks, before + 2);
    assert_int_equal(kv_store_stats(rig.store).tiers[KV_TIER_device].tier.evictions, evicted);
    assert_int_equal(store_rig_on_device(&rig, &chain), 2);
    store_rig_fini(&rig);
}

static void pinned_blocks_stay_as_far_as_the_quota_goes(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t chain;
    store_rig_init(&rig, 0, 0);
    store_rig_chain(&rig, &chain, 1000, 3);
    store_rig_compute(&rig, &chain);
    kv_store_pin(rig.store, chain.blocks, 3);
    kv_store_pin(rig.store, chain.blocks, 2); /* once is enough */
    assert_int_equal(kv_store_stats(rig.store).pinned_blocks, 2);
    assert_int_equal(kv_store_stats(rig.store).pins_refused, 1);
    assert_int_equal(kv_pool_free_blocks(rig.pool), STORE_RIG_BLOCKS - 2);
    store_rig_chain_t other;
    store_rig_chain(&rig, &other, 0, STORE_RIG_BLOCKS - 2);
    store_rig_compute(&rig, &other);
    store_rig_assert_content(&rig, &chain, 2);
    assert_int_equal(kv_store_unpin_all(rig.store), 2);
    assert_int_equal(kv_pool_free_blocks(rig.pool), STORE_RIG_BLOCKS);
    store_rig_push_out(&rig, 2000);
    assert_int_equal(store_rig_on_device(&rig, &chain), 0);
    store_rig_fini(&rig);
}

static void a_block_without_a_name_is_not_pinned(void **state)
{
    (void)state;
    store_rig_t rig;
    kv_block_id_t block;
    store_rig_init(&rig, 0, 0);
    assert_status(kv_pool_alloc(rig.pool, 1, &block), WEFT_OK);
    kv_store_pin(rig.store, &block, 1);
    assert_int_equal(kv_store_stats(rig.store).pinned_blocks, 0);
    kv_pool_release(rig.pool, &block, 1);
    store_rig_fini(&rig);
}

static void nothing_is_read_where_computing_is_cheaper(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t chain;
    uint32_t counts[KV_TIER_COUNT];
    store_rig_init(&rig, 64, 0);
    store_rig_chain(&rig, &chain, 1000, 4);
    store_rig_compute(&rig, &chain);
    store_rig_push_out(&rig, 0);
    assert_int_equal(store_rig_fetch(&rig, &chain, 0, counts),
                     4); /* what it costs is not known yet */
    store_rig_push_out(&rig, 0);
    kv_store_note_compute(rig.store, 1000000, 1);
    assert_int_equal(store_rig_fetch(&rig, &chain, 0, counts), 0);
    assert_int_equal(kv_store_stats(rig.store).fetches_declined, 1);
    uint32_t tries = 0;
    while (store_rig_fetch(&rig, &chain, 0, counts) == 0) { /* now and then it is measured again */
        assert_true(++tries < 1000);
    }
    store_rig_assert_content(&rig, &chain, 4);
    store_rig_fini(&rig);
}

static void a_fetch_that_nobody_waits_for_frees_its_blocks(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t chain;
    store_rig_init(&rig, 64, 0);
    store_rig_chain(&rig, &chain, 1000, 6);
    store_rig_compute(&rig, &chain);
    store_rig_push_out(&rig, 0);
    kv_fetch_t *f = kv_store_fetch(rig.store, &chain.chain, 0, STORE_RIG_BLOCKS);
    assert_non_null(f);
    assert_true(kv_store_is_fetching(rig.store, &chain.hashes[5]));
    kv_store_fetch_end(rig.store, f);
    store_rig_settle(&rig, NULL);
    assert_int_equal(kv_pool_held_blocks(rig.pool), 0);
    assert_false(kv_store_is_fetching(rig.store, &chain.hashes[5]));
    store_rig_fini(&rig);
}

static void a_reset_is_not_undone_by_what_is_being_read(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t chain;
    store_rig_init(&rig, 64, 0);
    store_rig_chain(&rig, &chain, 1000, 5);
    store_rig_compute(&rig, &chain);
    store_rig_push_out(&rig, 0);
    kv_fetch_t *wanted = kv_store_fetch(rig.store, &chain.chain, 0, STORE_RIG_BLOCKS);
    assert_non_null(wanted);
    kv_store_clear(rig.store, true);
    store_rig_settle(&rig, wanted);
    kv_store_fetch_end(rig.store, wanted);
    assert_int_equal(store_rig_on_device(&rig, &chain), 0);
    assert_int_equal(kv_pool_held_blocks(rig.pool), 0);
    store_rig_fini(&rig);
}

static void what_is_in_memory_is_on_the_disk_after_the_end(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t first;
    store_rig_chain_t last;
    uint32_t counts[KV_TIER_COUNT];
    store_rig_init(&rig, 16, 1 << 20);
    store_rig_chain(&rig, &first, 1000, 5);
    store_rig_chain(&rig, &last, 2000, 3);
    store_rig_compute(&rig, &first);
    store_rig_push_out(&rig, 0);
    store_rig_compute(&rig, &last);
    kv_store_destroy(rig.store);
    store_rig_open(&rig);
    assert_int_equal(store_rig_fetch(&rig, &first, 0, counts), 5);
    assert_int_equal(counts[KV_TIER_disk], 5);
    assert_int_equal(store_rig_fetch(&rig, &last, 0, counts), 3);
    store_rig_assert_content(&rig, &first, 5);
    store_rig_assert_content(&rig, &last, 3);
    store_rig_fini(&rig);
}

static void clearing_takes_the_tiers_only_when_asked_to(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t chain;
    uint32_t counts[KV_TIER_COUNT];
    store_rig_init(&rig, 64, 0);
    store_rig_chain(&rig, &chain, 1000, 4);
    store_rig_compute(&rig, &chain);
    store_rig_push_out(&rig, 0);
    kv_store_clear(rig.store, false);
    assert_int_equal(kv_store_stats(rig.store).tiers[KV_TIER_device].tier.blocks, 0);
    assert_int_equal(store_rig_fetch(&rig, &chain, 0, counts), 4);
    kv_store_clear(rig.store, true);
    assert_int_equal(store_rig_on_device(&rig, &chain), 0);
    assert_int_equal(store_rig_fetch(&rig, &chain, 0, counts), 0);
    store_rig_fini(&rig);
}

static void a_tier_that_cannot_be_had_is_left_out(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_chain_t chain;
    store_rig_init(&rig, 0, 0);
    kv_store_destroy(rig.store);
    rig.config.disk_bytes = 1 << 20;
    rig.config.disk_path = "/proc/no/such/folder";
    store_rig_open(&rig);
    assert_false(kv_store_has_tiers(rig.store));
    store_rig_chain(&rig, &chain, 1000, 4);
    store_rig_compute(&rig, &chain);
    store_rig_push_out(&rig, 0);
    assert_null(kv_store_fetch(rig.store, &chain.chain, 0, STORE_RIG_BLOCKS));
    store_rig_fini(&rig);
}

static void a_tier_that_cannot_be_had_costs_no_memory(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_init(&rig, 8, 0);
    kv_store_destroy(rig.store);
    rig.config.disk_bytes = SIZE_MAX / 2;
    store_rig_open(&rig);
    assert_true(kv_store_has_tiers(rig.store));
    assert_false(kv_store_stats(rig.store).tiers[KV_TIER_disk].is_present);
    store_rig_fini(&rig);
}

static void creation_survives_no_memory(void **state)
{
    (void)state;
    store_rig_t rig;
    store_rig_init(&rig, 0, 0);
    rig.config.host_bytes = 4 * STORE_RIG_BLOCK_BYTES;
    const size_t before = weft_alloc_live_bytes();
    uint64_t used = 1;
    for (uint64_t n = 1; used >= n; n++) {
        kv_store_t *store = NULL;
        weft_alloc_fail_nth(n);
        const weft_status_t status = kv_store_create(&rig.config, NULL, &store);
        used = weft_alloc_fail_nth(0);
        assert_true(status == WEFT_OK || (status == WEFT_ERR_NO_MEMORY && used >= n));
        kv_store_destroy(store);
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
    store_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_the_device_gives_up_comes_back_from_the_host),
        cmocka_unit_test(only_what_is_missing_behind_the_first_is_read),
        cmocka_unit_test(what_the_host_gives_up_comes_back_from_the_disk),
        cmocka_unit_test(the_disk_takes_what_was_seen_twice),
        cmocka_unit_test(the_disk_takes_what_goes_on_from_what_was_seen_once),
        cmocka_unit_test(the_disk_takes_no_tail_behind_a_beginning_that_many_share),
        cmocka_unit_test(once_blocks_are_given_up_the_disk_is_written_ahead),
        cmocka_unit_test(pinned_blocks_stay_as_far_as_the_quota_goes),
        cmocka_unit_test(a_block_without_a_name_is_not_pinned),
        cmocka_unit_test(nothing_is_read_where_computing_is_cheaper),
        cmocka_unit_test(a_fetch_that_nobody_waits_for_frees_its_blocks),
        cmocka_unit_test(a_reset_is_not_undone_by_what_is_being_read),
        cmocka_unit_test(what_is_in_memory_is_on_the_disk_after_the_end),
        cmocka_unit_test(clearing_takes_the_tiers_only_when_asked_to),
        cmocka_unit_test(a_tier_that_cannot_be_had_is_left_out),
        cmocka_unit_test(a_tier_that_cannot_be_had_costs_no_memory),
        cmocka_unit_test(creation_survives_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
