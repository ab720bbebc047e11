/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks of a GPU that go down to the host's memory, many at a time, and come back. */
#include <semaphore.h>
#include <string.h>

#include "kvstore/kv_store.h"
#include "tests/cuda_emu/cuda_check.h"

enum { TOKENS = 4, BLOCKS = 40, BLOCK_BYTES = TOKENS * 2 * 64 * 4 };

/* How often the host waited for a queue of the device that is open. */
static unsigned n_syncs;
static const weft_device_ops_t *device_ops;

static weft_status_t count_sync(weft_queue_t *queue)
{
    n_syncs++;
    return device_ops->sync(queue);
}

typedef struct rig {
    weft_device_t *device;
    weft_device_ops_t ops;
    weft_queue_t *queue;
    kv_hasher_t *hasher;
    kv_store_t *store;
    kv_pool_t *pool;
    sem_t woken;
    int32_t tokens[BLOCKS * TOKENS];
    kv_hash_t hashes[BLOCKS];
    kv_chain_t chain; /* as many as the device holds */
    kv_block_id_t blocks[BLOCKS];
} rig_t;

static void wake(void *user)
{
    sem_post(&((rig_t *)user)->woken);
}

/* Of the tokens base, base + 1 … */
static void make_chain(rig_t *rig, int32_t base)
{
    for (int32_t i = 0; i < BLOCKS * TOKENS; i++) {
        rig->tokens[i] = base + i;
    }
    for (uint32_t i = 0; i < BLOCKS; i++) {
        kv_hasher_block(rig->hasher, i == 0 ? NULL : &rig->hashes[i - 1],
                        rig->tokens + (size_t)i * TOKENS, TOKENS, NULL, &rig->hashes[i]);
    }
    rig->chain = (kv_chain_t){.hashes = rig->hashes, .tokens = rig->tokens, .n = BLOCKS};
}

static void rig_init(rig_t *rig, uint32_t host_blocks)
{
    static const uint8_t fingerprint[32] = {1};
    *rig = (rig_t){0};
    sem_init(&rig->woken, 0, 0);
    assert_status(weft_device_open("cuda", 0, NULL, &rig->device), WEFT_OK);
    device_ops = rig->device->ops;
    rig->ops = *device_ops;
    rig->ops.sync = count_sync;
    rig->device->ops = &rig->ops;
    assert_status(rig->ops.open_queue(rig->device, &rig->queue), WEFT_OK);
    assert_status(kv_hasher_create(KV_HASH_ALGO_sha256_cbor, NULL, &rig->hasher), WEFT_OK);
    kv_store_config_t config = {
        .device = rig->device,
        .layout = {.block_tokens = TOKENS,
                   .element_bytes = 4,
                   .n_groups = 1,
                   .groups = {{.layers = 1, .heads = 1, .head_dim = 64}}},
        .n_blocks = BLOCKS,
        .is_caching = true,
        .host_bytes = (size_t)host_blocks * BLOCK_BYTES,
        .fingerprint = fingerprint,
        .wake = wake,
        .user = rig,
    };
    assert_status(kv_layout_init(&config.layout, BLOCKS, NULL), WEFT_OK);
    assert_int_equal(config.layout.block_bytes[0], BLOCK_BYTES);
    assert_status(kv_store_create(&config, NULL, &rig->store), WEFT_OK);
    assert_true(kv_store_has_tiers(rig->store));
    rig->pool = kv_store_pool(rig->store);
    make_chain(rig, 0);
}

static void rig_fini(rig_t *rig)
{
    kv_store_destroy(rig->store);
    kv_hasher_destroy(rig->hasher);
    rig->ops.close_queue(rig->queue);
    rig->device->ops = device_ops;
    weft_device_close(rig->device);
    sem_destroy(&rig->woken);
}

/* Bytes that follow from a block's place in the chain. */
static void content_of(const rig_t *rig, uint32_t i, char content[BLOCK_BYTES])
{
    for (size_t at = 0; at < BLOCK_BYTES; at += sizeof(kv_hash_t)) {
        memcpy(content + at, rig->hashes[i].bytes, sizeof(kv_hash_t));
    }
}

/* Fills the device with the chain, and lets go of it. */
static void compute(rig_t *rig)
{
    char content[BLOCK_BYTES];
    const bool goes_on = kv_store_begin(rig->store, &rig->chain, 0, (uint32_t[KV_TIER_COUNT]){0});
    assert_status(kv_pool_alloc(rig->pool, BLOCKS, rig->blocks), WEFT_OK);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        content_of(rig, i, content);
        rig->ops.copy(rig->queue, kv_pool_block(rig->pool, rig->blocks[i]), content, BLOCK_BYTES);
        assert_status(device_ops->sync(rig->queue), WEFT_OK);
        kv_store_name(rig->store, &rig->chain, i, rig->blocks[i], goes_on);
    }
    kv_pool_release(rig->pool, rig->blocks, BLOCKS);
}

/* As the step of another sequence does, of n blocks: takes them, and writes to them. */
static void overwrite(rig_t *rig, uint32_t n)
{
    kv_block_id_t blocks[BLOCKS];
    assert_status(kv_pool_alloc(rig->pool, n, blocks), WEFT_OK);
    for (uint32_t i = 0; i < n; i++) {
        rig->ops.fill(rig->queue, kv_pool_block(rig->pool, blocks[i]), 0xEE, BLOCK_BYTES);
    }
    assert_status(device_ops->sync(rig->queue), WEFT_OK);
    kv_pool_release(rig->pool, blocks, n);
}

static void assert_content(rig_t *rig, uint32_t n)
{
    char content[BLOCK_BYTES];
    char got[BLOCK_BYTES];
    for (uint32_t i = 0; i < n; i++) {
        content_of(rig, i, content);
        rig->ops.copy(rig->queue, got, kv_pool_block(rig->pool, rig->blocks[i]), BLOCK_BYTES);
        assert_status(device_ops->sync(rig->queue), WEFT_OK);
        assert_memory_equal(got, content, BLOCK_BYTES);
    }
}

/* How many blocks came back behind the `first` that are there; all have their bytes. */
static uint32_t fetch(rig_t *rig, uint32_t first)
{
    uint32_t counts[KV_TIER_COUNT] = {0};
    kv_block_id_t held[BLOCKS];
    assert_int_equal(kv_store_match(rig->store, &rig->chain, held), first);
    kv_pool_acquire(rig->pool, held, first);
    kv_fetch_t *fetch = kv_store_fetch(rig->store, &rig->chain, first, BLOCKS);
    assert_non_null(fetch);
    while (!kv_fetch_is_done(fetch)) {
        sem_wait(&rig->woken); /* ctest has the deadline */
        kv_store_poll(rig->store);
    }
    kv_fetch_count(fetch, counts);
    kv_store_fetch_end(rig->store, fetch);
    const uint32_t n = kv_store_match(rig->store, &rig->chain, rig->blocks);
    assert_content(rig, n);
    assert_int_equal(n, first + counts[KV_TIER_host]);
    kv_pool_release(rig->pool, held, first);
    return counts[KV_TIER_host];
}

static void blocks_go_down_many_at_a_time(void **state)
{
    (void)state;
    rig_t rig;
    rig_init(&rig, 2 * BLOCKS);
    compute(&rig);
    n_syncs = 0;
    overwrite(&rig, BLOCKS);
    assert_int_equal(n_syncs, 2); /* 32, then 8 */
    assert_int_equal(kv_store_match(rig.store, &rig.chain, rig.blocks), 0);
    assert_int_equal(fetch(&rig, 0), BLOCKS);
    rig_fini(&rig);
}

static void blocks_that_make_space_for_others_go_down_many_at_a_time(void **state)
{
    (void)state;
    rig_t rig;
    rig_init(&rig, 2 * BLOCKS);
    compute(&rig);
    make_chain(&rig, 1000);
    compute(&rig); /* the first chain goes down */
    make_chain(&rig, 0);
    n_syncs = 0;
    assert_int_equal(fetch(&rig, 0), BLOCKS); /* the second one does */
    assert_int_equal(n_syncs, 2);
    make_chain(&rig, 1000);
    assert_int_equal(fetch(&rig, 0), BLOCKS);
    rig_fini(&rig);
}

/* The host has space for a few of those that go down at once: the later push the earlier out. */
static void those_that_find_no_space_push_others_out(void **state)
{
    (void)state;
    rig_t rig;
    rig_init(&rig, 5);
    compute(&rig);
    overwrite(&rig, BLOCKS);
    const kv_store_stats_t stats = kv_store_stats(rig.store);
    assert_int_equal(stats.tiers[KV_TIER_host].tier.blocks, 5);
    /* Tails go first, heads last: the beginning of the chain is what is left. */
    assert_int_equal(fetch(&rig, 0), 5);
    rig_fini(&rig);
}

/* What went down in one alloc is asked for at once, into blocks that others of it were in. */
static void what_just_went_down_comes_back(void **state)
{
    (void)state;
    rig_t rig;
    rig_init(&rig, 2 * BLOCKS);
    for (uint32_t round = 0; round < 4; round++) {
        compute(&rig);
        overwrite(&rig, 1 + 11 * round);
        const uint32_t left = kv_store_match(rig.store, &rig.chain, rig.blocks);
        assert_int_equal(left, BLOCKS - (1 + 11 * round));
        assert_int_equal(fetch(&rig, left), 1 + 11 * round);
        overwrite(&rig, BLOCKS);
    }
    rig_fini(&rig);
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_go_down_many_at_a_time),
        cmocka_unit_test(blocks_that_make_space_for_others_go_down_many_at_a_time),
        cmocka_unit_test(those_that_find_no_space_push_others_out),
        cmocka_unit_test(what_just_went_down_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
