/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/store_rig.h"

#include <string.h>

#include "tests/support/scratch_folder.h"

static void wake(void *user)
{
    sem_post(&((store_rig_t *)user)->woken);
}

void store_rig_open(store_rig_t *rig)
{
    assert_status(kv_store_create(&rig->config, NULL, &rig->store), WEFT_OK);
    rig->pool = kv_store_pool(rig->store);
}

void store_rig_init(store_rig_t *rig, size_t host_blocks, size_t disk_bytes)
{
    static const uint8_t fingerprint[32] = {1};
    *rig = (store_rig_t){0};
    sem_init(&rig->woken, 0, 0);
    scratch_folder_make(rig->folder, sizeof(rig->folder));
    assert_status(weft_device_open("cpu", 0, NULL, &rig->device), WEFT_OK);
    assert_status(kv_hasher_create(KV_HASH_ALGO_sha256_cbor, NULL, &rig->hasher), WEFT_OK);
    rig->config = (kv_store_config_t){
        .device = rig->device,
        .layout = {.block_tokens = STORE_RIG_TOKENS,
                   .element_bytes = 4,
                   .n_groups = 1,
                   .groups = {{.layers = 1, .heads = 1, .head_dim = 1}}},
        .n_blocks = STORE_RIG_BLOCKS,
        .is_caching = true,
        .max_pinned_blocks = 2,
        .host_bytes = host_blocks * STORE_RIG_BLOCK_BYTES,
        .disk_bytes = disk_bytes,
        .disk_path = rig->folder,
        .admits_all = true,
        .fingerprint = fingerprint,
        .wake = wake,
        .user = rig,
    };
    assert_status(kv_layout_init(&rig->config.layout, STORE_RIG_BLOCKS, NULL), WEFT_OK);
    assert_int_equal(rig->config.layout.block_bytes[0], STORE_RIG_BLOCK_BYTES);
    store_rig_open(rig);
}

void store_rig_fini(store_rig_t *rig)
{
    kv_store_destroy(rig->store);
    kv_hasher_destroy(rig->hasher);
    weft_device_close(rig->device);
    sem_destroy(&rig->woken);
    scratch_folder_remove(rig->folder);
}

void store_rig_hash(store_rig_t *rig, store_rig_chain_t *chain)
{
    for (uint32_t i = 0; i < chain->chain.n; i++) {
        kv_hasher_block(rig->hasher, i == 0 ? NULL : &chain->hashes[i - 1],
                        chain->tokens + (size_t)i * STORE_RIG_TOKENS, STORE_RIG_TOKENS, NULL,
                        &chain->hashes[i]);
    }
}

void store_rig_chain(store_rig_t *rig, store_rig_chain_t *chain, int32_t base, uint32_t n)
{
    for (uint32_t i = 0; i < n * STORE_RIG_TOKENS; i++) {
        chain->tokens[i] = base + (int32_t)i;
    }
    chain->chain = (kv_chain_t){.hashes = chain->hashes, .tokens = chain->tokens, .n = n};
    store_rig_hash(rig, chain);
}

void store_rig_compute(store_rig_t *rig, store_rig_chain_t *chain)
{
    const uint32_t n = chain->chain.n;
    const bool goes_on = kv_store_begin(rig->store, &chain->chain, 0, (uint32_t[KV_TIER_COUNT]){0});
    assert_status(kv_pool_alloc(rig->pool, n, chain->blocks), WEFT_OK);
    for (uint32_t i = 0; i < n; i++) {
        memcpy(kv_pool_block(rig->pool, chain->blocks[i]), chain->hashes[i].bytes,
               STORE_RIG_BLOCK_BYTES);
        kv_store_name(rig->store, &chain->chain, i, chain->blocks[i], goes_on);
    }
    kv_pool_release(rig->pool, chain->blocks, n);
}

uint32_t store_rig_on_device(store_rig_t *rig, store_rig_chain_t *chain)
{
    return kv_store_match(rig->store, &chain->chain, chain->blocks);
}

void store_rig_assert_content(store_rig_t *rig, store_rig_chain_t *chain, uint32_t n)
{
    assert_int_equal(store_rig_on_device(rig, chain), n);
    for (uint32_t i = 0; i < n; i++) {
        assert_memory_equal(kv_pool_block(rig->pool, chain->blocks[i]), chain->hashes[i].bytes,
                            STORE_RIG_BLOCK_BYTES);
    }
}

void store_rig_push_out(store_rig_t *rig, int32_t base)
{
    store_rig_chain_t other;
    store_rig_chain(rig, &other, base, STORE_RIG_BLOCKS);
    store_rig_compute(rig, &other);
}

void store_rig_settle(store_rig_t *rig, const kv_fetch_t *fetch)
{
    kv_store_poll(rig->store);
    kv_store_stats_t stats = kv_store_stats(rig->store);
    while ((fetch != NULL && !kv_fetch_is_done(fetch)) ||
           stats.tiers[KV_TIER_disk].tier.in_flight > 0 ||
           stats.tiers[KV_TIER_host].tier.in_flight > 0) {
        sem_wait(&rig->woken); /* ctest has the deadline */
        kv_store_poll(rig->store);
        stats = kv_store_stats(rig->store);
    }
}

uint32_t store_rig_fetch(store_rig_t *rig, store_rig_chain_t *chain, uint32_t first,
                         uint32_t counts[KV_TIER_COUNT])
{
    kv_fetch_t *f = kv_store_fetch(rig->store, &chain->chain, first, STORE_RIG_BLOCKS);
    memset(counts, 0, KV_TIER_COUNT * sizeof(counts[0]));
    if (f != NULL) {
        store_rig_settle(rig, f);
        kv_fetch_count(f, counts);
        kv_store_fetch_end(rig->store, f);
    }
    assert_int_equal(kv_pool_held_blocks(rig->pool), 0);
    return counts[KV_TIER_host] + counts[KV_TIER_disk];
}
