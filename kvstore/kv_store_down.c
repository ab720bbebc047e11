/* SPDX-License-Identifier: Apache-2.0 */
/* The store's way down: what a tier gives up goes to the next, and at the end all to the disk. */
#include <time.h>

#include "base/clock.h"
#include "kvstore/kv_store_priv.h"
#include "kvstore/ranks/kv_tier_ranks.h"

#define WEFT_LOG_MODULE "kv_store"
#include "base/log.h"

#define SAVE_SECONDS 5

static bool is_admitted(const kv_store_t *store, kv_tier_id_t tier, const kv_hash_t *hash)
{
    return tier != KV_TIER_disk || store->config.admits_all ||
           kv_reuse_count(store->reuse, hash) >= 2;
}

static void pass_down(kv_store_t *store, kv_tier_id_t from, const kv_name_t *name,
                      const void *content)
{
    for (kv_tier_id_t id = from + 1; id < KV_TIER_COUNT; id++) {
        kv_tier_t *tier = store->tiers[id];
        if (tier != NULL && is_admitted(store, id, &name->hash) &&
            tier->ops->put(tier, name, content) == WEFT_OK) {
            return;
        }
    }
}

/* The pool is about to give this block to a new user. */
void kv_store_evict(void *user, kv_block_id_t block)
{
    kv_store_t *store = user;
    kv_name_t name;
    if (!kv_names_get(store->names, block, &name)) {
        return;
    }
    store->evictions++;
    kv_store_take_back(store, block);
    pass_down(store, KV_TIER_device, &name, kv_pool_block(store->pool, block));
    kv_publisher_removed(store->config.publisher, KV_TIER_device, &name.hash);
    kv_names_remove(store->names, block);
}

/* Several blocks go down at a time; those who asked for space wait for all of them once. */
void kv_store_finish_evicts(void *user)
{
    const kv_store_t *store = user;
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT && !store->is_taking; id++) {
        kv_tier_t *tier = store->tiers[id];
        if (tier != NULL && tier->ops->finish_puts != NULL) {
            tier->ops->finish_puts(tier);
        }
    }
}

/* ---- ahead of it ---- */

/* Whether what is above the disk has had to give anything up yet. */
static bool is_disk_needed(const kv_store_t *store)
{
    const kv_tier_t *host = store->tiers[KV_TIER_host];
    return store->tiers[KV_TIER_disk] != NULL &&
           (host == NULL ? store->evictions : host->ops->stats(host).evictions) > 0;
}

void kv_store_queue_ahead(kv_store_t *store, kv_block_id_t block)
{
    const uint32_t most = store->config.n_blocks;
    if (store->n_ahead < most && is_disk_needed(store)) {
        store->ahead[(store->first_ahead + store->n_ahead++) % most] = block;
    }
}

void kv_store_write_ahead(kv_store_t *store)
{
    kv_tier_t *disk = store->tiers[KV_TIER_disk];
    for (; store->n_ahead > 0; store->n_ahead--) {
        const kv_block_id_t block = store->ahead[store->first_ahead];
        kv_name_t name;
        /* It may hold something else by now, which is as good. */
        if (kv_names_get(store->names, block, &name) &&
            is_admitted(store, KV_TIER_disk, &name.hash) && !disk->ops->has(disk, &name.hash) &&
            disk->ops->put(disk, &name, kv_pool_block(store->pool, block)) == WEFT_ERR_QUEUE_FULL) {
            return;
        }
        store->first_ahead = (store->first_ahead + 1) % store->config.n_blocks;
    }
}

/* ---- the last way down ---- */

/* What rank 0's disk has, another rank's may lack. */
static bool is_everywhere(const kv_store_t *store, const kv_hash_t *hash)
{
    const kv_tier_t *disk = store->tiers[KV_TIER_disk];
    return store->config.crew == NULL && disk->ops->has(disk, hash);
}

/* Waits for the disk, unlike every other put. No more than it holds: the first are the newest. */
static void save(kv_store_t *store, const kv_name_t *name, const void *content)
{
    kv_tier_t *disk = store->tiers[KV_TIER_disk];
    if (disk == NULL || is_everywhere(store, &name->hash) ||
        store->n_saved >= disk->ops->stats(disk).capacity_blocks) {
        return;
    }
    const struct timespec pause = {.tv_nsec = 100000};
    weft_status_t status = disk->ops->put(disk, name, content);
    if (store->on_saved != NULL) {
        store->on_saved(store->save_user);
    }
    while (status == WEFT_ERR_QUEUE_FULL && weft_clock_ns() < store->save_until) {
        nanosleep(&pause, NULL);
        kv_store_poll(store);
        status = disk->ops->put(disk, name, content);
    }
    store->n_saved += status == WEFT_OK;
}

/* Of what was used last, heads before tails. */
static void save_device(kv_store_t *store)
{
    kv_name_t name;
    for (kv_block_id_t block = kv_pool_older(store->pool, KV_BLOCK_NONE); block != KV_BLOCK_NONE;
         block = kv_pool_older(store->pool, block)) {
        if (kv_names_get(store->names, block, &name)) {
            save(store, &name, kv_pool_block(store->pool, block));
        }
    }
}

static void begin_saving(kv_store_t *store)
{
    if (store->save_until > 0) {
        return;
    }
    store->save_until = weft_clock_ns() + SAVE_SECONDS * WEFT_NS_PER_SECOND;
    if (store->tiers[KV_TIER_disk] != NULL && store->names != NULL) {
        (void)kv_store_unpin_all(store);
        save_device(store);
    }
}

/* The host's tier gives up what it has when it is closed, to the disk, which is still there. */
void kv_store_save(kv_store_t *store, void (*flush)(void *user), void *user)
{
    kv_tier_t **host = &store->tiers[KV_TIER_host];
    if (store->tiers[KV_TIER_disk] != NULL) {
        kv_tier_ranks_insist(store->tiers[KV_TIER_disk]);
    }
    store->on_saved = flush;
    store->save_user = user;
    begin_saving(store);
    if (*host != NULL) {
        (*host)->ops->close(*host);
        *host = NULL;
    }
    store->on_saved = NULL;
    flush(user);
}

void kv_store_close_tiers(kv_store_t *store)
{
    begin_saving(store);
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        if (store->tiers[id] != NULL) {
            store->tiers[id]->ops->close(store->tiers[id]);
        }
    }
    if (store->n_saved > 0) {
        weft_log_info("saved KV blocks to the disk blocks=%llu",
                      (unsigned long long)store->n_saved);
    }
}

/* ---- what tiers report ---- */

void kv_store_on_tier_stored(void *user, const kv_name_t *name)
{
    const kv_store_hook_t *hook = user;
    if (hook->store->reuse != NULL) {
        kv_reuse_note(hook->store->reuse, &name->hash,
                      1); /* news when found from an earlier life */
    }
    kv_publisher_stored(hook->store->config.publisher, hook->tier, name);
}

void kv_store_on_tier_removed(void *user, const kv_hash_t *hash)
{
    const kv_store_hook_t *hook = user;
    kv_publisher_removed(hook->store->config.publisher, hook->tier, hash);
}

void kv_store_on_tier_evict(void *user, const kv_name_t *name, const void *content)
{
    const kv_store_hook_t *hook = user;
    if (hook->store->save_until > 0) {
        save(hook->store, name, content);
    } else {
        pass_down(hook->store, hook->tier, name, content);
    }
}
