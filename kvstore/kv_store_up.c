/* SPDX-License-Identifier: Apache-2.0 */
/* The store's way up: blocks of a chain read from tiers into free blocks of the device. */
#include <assert.h>

#include "kvstore/kv_store_priv.h"

#define MEAN_OF 8  /* measurements, about */
#define RETRY   64 /* readings declined before one is made all the same, to measure again */

/* ---- is it worth it? ---- */

static double blend(double mean, double value)
{
    return mean == 0 ? value : mean + (value - mean) / MEAN_OF;
}

void kv_store_note_compute(kv_store_t *store, uint32_t tokens, uint64_t ns)
{
    double *mean = &store->costs.compute_token_ns;
    *mean = blend(*mean, (double)ns / tokens);
}

/* One that is asked has thought of that itself. */
static bool is_worth_reading(kv_store_t *store, kv_tier_id_t tier)
{
    kv_store_costs_t *costs = &store->costs;
    if (store->tiers[tier]->ops->ask != NULL) {
        return true;
    }
    const double read = costs->read_block_ns[tier];
    const double compute = costs->compute_token_ns * store->block_tokens;
    if (read == 0 || compute == 0 || read <= compute) {
        return true;
    }
    store->stats.fetches_declined++;
    return ++costs->declined % RETRY == 0;
}

/* ---- choosing what to read ---- */

/* The fastest tier below the device that has the block; KV_TIER_device: none. */
static kv_tier_id_t tier_with(const kv_store_t *store, const kv_hash_t *hash)
{
    for (kv_tier_id_t id = KV_TIER_device + 1; id < KV_TIER_COUNT; id++) {
        const kv_tier_t *tier = store->tiers[id];
        if (tier != NULL && tier->ops->has(tier, hash)) {
            return id;
        }
    }
    return KV_TIER_device;
}

static bool is_wanted(const kv_store_t *store, const kv_hash_t *hash)
{
    return !kv_store_has(store, hash) && !kv_store_is_fetching(store, hash);
}

/* Whether the block is on its way, or known to be below the device. */
static bool is_known(const kv_store_t *store, const kv_hash_t *hash)
{
    bool is_below = false;
    for (kv_tier_id_t id = KV_TIER_device + 1; id < KV_TIER_COUNT && !is_below; id++) {
        const kv_tier_t *tier = store->tiers[id];
        is_below = tier != NULL && tier->ops->ask == NULL && tier->ops->has(tier, hash);
    }
    return is_below || !is_wanted(store, hash);
}

/* Its blocks are named by the adapter's name and path, which may be another one's elsewhere. */
static bool has_adapter(const kv_chain_t *chain)
{
    return chain->extra != NULL && kv_extra_lora_name(chain->extra) != NULL;
}

weft_status_t kv_store_ask(kv_store_t *store, const kv_chain_t *chain, uint32_t first)
{
    kv_tier_t *tier = store->tiers[KV_TIER_remote];
    if (tier == NULL || tier->ops->ask == NULL || has_adapter(chain)) {
        return WEFT_OK;
    }
    while (first < chain->n && is_known(store, &chain->hashes[first])) {
        first++;
    }
    return first == chain->n ? WEFT_OK
                             : tier->ops->ask(tier, &chain->hashes[first], chain->n - first,
                                              store->costs.compute_token_ns * store->block_tokens);
}

/* The index behind the last block that is to be read or there already; n_out of them to be read. */
static uint32_t reach(kv_store_t *store, const kv_chain_t *chain, uint32_t first,
                      uint32_t most_blocks, uint32_t *n_out)
{
    kv_tier_id_t accepted = KV_TIER_device;
    uint32_t end = first;
    uint32_t n = 0;
    for (uint32_t i = first; i < chain->n && n < most_blocks; i++) {
        if (!is_wanted(store, &chain->hashes[i])) {
            continue;
        }
        const kv_tier_id_t tier = tier_with(store, &chain->hashes[i]);
        if (tier == KV_TIER_device || (tier != accepted && !is_worth_reading(store, tier))) {
            break;
        }
        accepted = tier;
        end = i + 1;
        n++;
    }
    *n_out = n;
    return end;
}

/* Taking device blocks pushes others down: what is to be read must not go for them. */
static void touch_tail_first(kv_store_t *store, const kv_chain_t *chain, uint32_t first,
                             uint32_t end)
{
    for (uint32_t i = end; i-- > first;) {
        const kv_tier_id_t id = tier_with(store, &chain->hashes[i]);
        if (id != KV_TIER_device) {
            store->tiers[id]->ops->touch(store->tiers[id], &chain->hashes[i]);
        }
    }
}

static kv_fetch_t *take_fetch(kv_store_t *store)
{
    for (uint32_t i = 0; i < KV_STORE_MAX_FETCHES; i++) {
        if (!store->fetches[i].is_active) {
            store->n_fetches++;
            store->fetches[i] = (kv_fetch_t){.is_active = true,
                                             .last = KV_BLOCK_NONE,
                                             .to_post = KV_BLOCK_NONE,
                                             .to_name = KV_BLOCK_NONE};
            return &store->fetches[i];
        }
    }
    return NULL;
}

static void add_read(kv_store_t *store, kv_fetch_t *fetch, const kv_name_t *name, kv_tier_id_t tier)
{
    kv_block_id_t block;
    const weft_status_t status = kv_pool_alloc(store->pool, 1, &block);
    assert(status == WEFT_OK);
    (void)status;
    kv_names_put(store->arrivals, name, block);
    store->reads[block] =
        (kv_read_t){.fetch = fetch, .next = KV_BLOCK_NONE, .prev = fetch->last, .tier = tier};
    if (fetch->last == KV_BLOCK_NONE) {
        fetch->to_post = fetch->to_name = block;
    } else {
        store->reads[fetch->last].next = block;
    }
    fetch->last = block;
    fetch->n_blocks++;
}

/* ---- reading ---- */

/* What follows a block that is not to be had is of no use. */
static void fail(kv_fetch_t *fetch)
{
    fetch->is_failed = true;
    fetch->to_post = KV_BLOCK_NONE;
}

static void post_reads(kv_store_t *store, kv_fetch_t *fetch)
{
    while (fetch->to_post != KV_BLOCK_NONE) {
        const kv_block_id_t block = fetch->to_post;
        kv_read_t *read = &store->reads[block];
        kv_tier_t *tier = store->tiers[read->tier];
        kv_name_t name;
        (void)kv_names_get(store->arrivals, block, &name);
        const weft_status_t status =
            tier->ops->get(tier, &name.hash, kv_pool_block(store->pool, block), read);
        if (status == WEFT_ERR_QUEUE_FULL) {
            return;
        }
        if (status < 0) {
            fail(fetch);
            return;
        }
        read->state = KV_READ_POSTED;
        fetch->n_posted++;
        fetch->to_post = read->next;
    }
}

bool kv_store_can_fetch(const kv_store_t *store)
{
    return store->reads != NULL && store->n_fetches < KV_STORE_MAX_FETCHES;
}

uint32_t kv_store_landing_blocks(const kv_store_t *store)
{
    uint32_t n = 0;
    for (uint32_t i = 0; store->n_fetches > 0 && i < KV_STORE_MAX_FETCHES; i++) {
        const kv_fetch_t *fetch = &store->fetches[i];
        n += fetch->is_active && fetch->is_ended ? fetch->n_blocks : 0;
    }
    return n;
}

void kv_store_fail_fetches(kv_store_t *store)
{
    for (uint32_t i = 0; store->n_fetches > 0 && i < KV_STORE_MAX_FETCHES; i++) {
        fail(&store->fetches[i]);
    }
}

kv_fetch_t *kv_store_fetch(kv_store_t *store, const kv_chain_t *chain, uint32_t first,
                           uint32_t most_blocks)
{
    const uint32_t free = kv_pool_free_blocks(store->pool);
    uint32_t n = 0;
    if (!kv_store_can_fetch(store)) {
        return NULL;
    }
    const uint32_t end = reach(store, chain, first, most_blocks < free ? most_blocks : free, &n);
    if (n == 0) {
        return NULL;
    }
    kv_fetch_t *fetch = take_fetch(store);
    touch_tail_first(store, chain, first, end);
    store->is_taking = true;
    for (uint32_t i = first; i < end && n > 0; i++) {
        const kv_hash_t *hash = &chain->hashes[i];
        const kv_tier_id_t tier = tier_with(store, hash);
        if (is_wanted(store, hash) && tier != KV_TIER_device) {
            const kv_name_t name = kv_chain_name(chain, i, store->block_tokens);
            add_read(store, fetch, &name, tier);
            n--;
        }
    }
    store->is_taking = false;
    kv_store_finish_evicts(store);
    store->stats.fetches++;
    post_reads(store, fetch);
    return fetch;
}

bool kv_store_is_fetching(const kv_store_t *store, const kv_hash_t *hash)
{
    return store->arrivals != NULL && kv_names_find(store->arrivals, hash) != KV_BLOCK_NONE;
}

bool kv_fetch_is_done(const kv_fetch_t *fetch)
{
    return fetch->n_posted == 0 && (fetch->is_failed || fetch->to_name == KV_BLOCK_NONE);
}

void kv_fetch_count(const kv_fetch_t *fetch, uint32_t blocks_out[KV_TIER_COUNT])
{
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        blocks_out[id] = fetch->counts[id];
    }
}

/* ---- arriving ---- */

/* In the order of the chain: a block is never found, or told of, before its parent. */
static void name_arrived(kv_store_t *store, kv_fetch_t *fetch)
{
    while (!fetch->is_failed && fetch->to_name != KV_BLOCK_NONE) {
        const kv_block_id_t block = fetch->to_name;
        const kv_read_t *read = &store->reads[block];
        if (read->state == KV_READ_FAILED) {
            fail(fetch);
        }
        if (read->state != KV_READ_DONE) {
            return;
        }
        kv_name_t name;
        (void)kv_names_get(store->arrivals, block, &name);
        (void)kv_store_adopt(store, &name, block);
        kv_names_remove(store->arrivals, block);
        fetch->counts[read->tier]++;
        fetch->to_name = read->next;
    }
}

/* Tail first, as kv_pool_release does. */
static void release_blocks(kv_store_t *store, kv_fetch_t *fetch)
{
    for (kv_block_id_t block = fetch->last; block != KV_BLOCK_NONE;) {
        const kv_block_id_t before = store->reads[block].prev;
        kv_names_remove(store->arrivals, block); /* if it never arrived */
        store->reads[block].fetch = NULL;
        kv_pool_release(store->pool, &block, 1);
        block = before;
    }
    fetch->is_active = false;
    store->n_fetches--;
}

void kv_store_fetch_end(kv_store_t *store, kv_fetch_t *fetch)
{
    fetch->is_ended = true;
    fetch->to_post = KV_BLOCK_NONE;
    if (fetch->n_posted == 0) {
        release_blocks(store, fetch);
    }
}

static void advance(kv_store_t *store, kv_fetch_t *fetch)
{
    name_arrived(store, fetch);
    if (fetch->is_ended && fetch->n_posted == 0) {
        release_blocks(store, fetch);
    } else if (!fetch->is_ended) {
        post_reads(store, fetch);
    }
}

static void land(kv_store_t *store, const kv_tier_done_t *done)
{
    kv_read_t *read = done->tag;
    read->state = done->status == WEFT_OK ? KV_READ_DONE : KV_READ_FAILED;
    read->fetch->n_posted--;
    if (done->status == WEFT_OK) {
        double *mean = &store->costs.read_block_ns[read->tier];
        *mean = blend(*mean, (double)done->read_ns);
        if (store->config.on_read != NULL) {
            store->config.on_read(store->config.user, read->tier, done->read_ns);
        }
    }
}

void kv_store_poll(kv_store_t *store)
{
    kv_tier_done_t done[32];
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        kv_tier_t *tier = store->tiers[id];
        uint32_t n = tier == NULL ? 0 : 1;
        while (n > 0) {
            n = tier->ops->poll(tier, done, sizeof(done) / sizeof(done[0]));
            for (uint32_t i = 0; i < n; i++) {
                land(store, &done[i]);
            }
        }
    }
    for (uint32_t i = 0; store->n_fetches > 0 && i < KV_STORE_MAX_FETCHES; i++) {
        if (store->fetches[i].is_active) {
            advance(store, &store->fetches[i]);
        }
    }
    kv_store_write_ahead(store); /* after readings, which requests wait for */
}

void kv_store_count_fetching(const kv_store_t *store, uint32_t *users)
{
    for (uint32_t i = 0; i < KV_STORE_MAX_FETCHES; i++) {
        const kv_fetch_t *fetch = &store->fetches[i];
        for (kv_block_id_t block = fetch->is_active ? fetch->last : KV_BLOCK_NONE;
             block != KV_BLOCK_NONE; block = store->reads[block].prev) {
            users[block]++;
        }
    }
}
