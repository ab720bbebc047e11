/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_store.h"

#include <assert.h>
#include <time.h>

#include "base/alloc.h"
#include "kvstore/kv_store_priv.h"
#include "kvstore/ranks/kv_tier_ranks.h"

#define WEFT_LOG_MODULE "kv_store"
#include "base/log.h"

static const kv_tier_ops_t *const tier_rows[KV_TIER_COUNT] = {
    [KV_TIER_host] = &kv_tier_host,
    [KV_TIER_disk] = &kv_tier_disk,
    [KV_TIER_remote] = &kv_tier_remote,
};

/* ---- making ---- */

static weft_status_t create_pool(kv_store_t *store)
{
    const kv_store_config_t *config = &store->config;
    const kv_pool_config_t pool = {
        .device = config->device,
        .layout = config->layout,
        .n_blocks = config->n_blocks,
        .is_private = config->is_private,
        .on_reuse = config->is_caching ? kv_store_evict : NULL,
        .after_reuse = config->is_caching ? kv_store_finish_evicts : NULL,
        .user = store,
    };
    return kv_pool_create(&pool, &store->pool);
}

/* It stands for those of all ranks. */
static weft_status_t share_tier(kv_store_t *store, kv_tier_id_t id)
{
    const kv_tier_ranks_config_t config = {
        .own = store->tiers[id], .id = id, .crew = store->config.crew, .pool = store->pool};
    return config.crew == NULL ? WEFT_OK : kv_tier_ranks_open(&config, &store->tiers[id]);
}

/* A tier that cannot be had costs what it would have saved, and nothing else. */
static weft_status_t open_tier(kv_store_t *store, kv_tier_id_t id, size_t bytes)
{
    const kv_store_config_t *config = &store->config;
    weft_diag_t diag = {0};
    store->hooks[id] = (kv_store_hook_t){.store = store, .tier = id};
    const kv_tier_config_t tier = {
        .device = config->device,
        .block_tokens = store->block_tokens,
        .block_bytes = config->layout.block_bytes[0],
        .budget_bytes = bytes,
        .path = config->disk_path,
        .memory = kv_pool_memory(store->pool),
        .remote = config->remote,
        .offer = store->offer,
        .fingerprint = config->fingerprint,
        .on_stored = kv_store_on_tier_stored,
        .on_removed = kv_store_on_tier_removed,
        .on_evict = kv_store_on_tier_evict,
        .user = &store->hooks[id],
        .wake = config->wake,
        .wake_user = config->user,
    };
    const kv_tier_ops_t *const *rows = config->tiers == NULL ? tier_rows : config->tiers;
    const weft_status_t status = rows[id]->open(&tier, &diag, &store->tiers[id]);
    if (status < 0) {
        store->tiers[id] = NULL;
        weft_log_warn("no %s tier of KV blocks status=%s: %s", kv_tier_name(id),
                      weft_strerror(status), diag.text);
        return WEFT_OK;
    }
    return share_tier(store, id);
}

static bool has_peers(const kv_store_config_t *config)
{
    return config->remote != NULL && config->remote->peers != NULL &&
           config->remote->peers[0] != '\0';
}

static weft_status_t create_tiers(kv_store_t *store)
{
    const kv_store_config_t *config = &store->config;
    const size_t budgets[KV_TIER_COUNT] = {
        [KV_TIER_host] = config->host_bytes,
        [KV_TIER_disk] = config->disk_bytes,
        [KV_TIER_remote] = has_peers(config) ? 1 : 0, /* it takes nothing */
    };
    size_t contents = config->n_blocks;
    bool has_tiers = false;
    weft_status_t status = WEFT_OK;
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT && status == WEFT_OK; id++) {
        if (budgets[id] > 0) {
            status = open_tier(store, id, budgets[id]);
        }
        if (store->tiers[id] != NULL) {
            contents += store->tiers[id]->ops->stats(store->tiers[id]).capacity_blocks;
            has_tiers = true;
        }
    }
    if (!has_tiers || status < 0) {
        return status;
    }
    /* Twice as many as can be present, so that what is gone for a while is still known. */
    status = kv_reuse_create(2 * contents, &store->reuse);
    if (status == WEFT_OK) {
        status = kv_names_create(config->n_blocks, store->block_tokens, &store->arrivals);
    }
    if (status == WEFT_OK) {
        store->reads = weft_calloc(config->n_blocks, sizeof(kv_read_t), "kv_store.reads");
        store->ahead = weft_calloc(config->n_blocks, sizeof(kv_block_id_t), "kv_store.ahead");
        status = store->reads == NULL || store->ahead == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    return status;
}

/* Blocks are offered once they have a shelf: the device's, where peers can read it, and the host tier's. */
static weft_status_t create_offer(kv_store_t *store)
{
    const kv_store_config_t *config = &store->config;
    if (config->remote == NULL || config->remote->listen == NULL ||
        config->remote->listen[0] == '\0') {
        return WEFT_OK;
    }
    const weft_status_t status = kv_offer_create(&store->offer);
    if (status < 0 || !config->device->ops->is_host) {
        return status;
    }
    const kv_offer_shelf_t shelf = {.memory = kv_pool_memory(store->pool),
                                    .block_bytes = config->layout.block_bytes[0],
                                    .n_blocks = config->n_blocks};
    store->has_shelf = true;
    return kv_offer_add_shelf(store->offer, &shelf, &store->shelf);
}

/* What cannot be offered costs others what it would have saved them. */
static void serve_offer(kv_store_t *store)
{
    const kv_remote_config_t *remote = store->config.remote;
    weft_diag_t diag = {0};
    if (store->offer == NULL) {
        return;
    }
    const kv_offer_server_config_t server = {
        .offer = store->offer,
        .listen = remote->listen,
        .port_offset = remote->port_offset,
        .backends = remote->backends,
        .params = remote->params,
        .facts = &remote->facts,
    };
    const weft_status_t status =
        kv_offer_shelves(store->offer) == 0
            ? weft_diag(&diag, WEFT_ERR_UNSUPPORTED,
                        "the device's memory cannot be read by peers, and there is no host tier")
            : kv_offer_server_create(&server, &diag, &store->offer_server);
    if (status < 0) {
        weft_log_warn("no KV blocks are offered to peers status=%s: %s", weft_strerror(status),
                      diag.text);
    }
}

static weft_status_t create_caching(kv_store_t *store)
{
    const kv_store_config_t *config = &store->config;
    const weft_status_t status =
        kv_names_create(config->n_blocks, store->block_tokens, &store->names);
    if (status < 0) {
        return status;
    }
    if (config->max_pinned_blocks > 0) {
        store->pinned =
            weft_calloc(config->max_pinned_blocks, sizeof(kv_block_id_t), "kv_store.pinned");
        if (store->pinned == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
    }
    weft_status_t last = create_offer(store);
    if (last == WEFT_OK) {
        last = create_tiers(store);
    }
    if (last == WEFT_OK) {
        serve_offer(store);
    }
    return last;
}

weft_status_t kv_store_create(const kv_store_config_t *config, weft_diag_t *diag,
                              kv_store_t **store_out)
{
    kv_store_t *store = weft_zalloc(sizeof(*store), "kv_store.store");
    if (store == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    store->config = *config;
    store->block_tokens = config->layout.block_tokens;
    store->config.max_pinned_blocks = config->is_caching ? config->max_pinned_blocks : 0;
    weft_status_t status = create_pool(store);
    if (status == WEFT_OK && config->is_caching) {
        status = create_caching(store);
    }
    if (status < 0) {
        kv_store_destroy(store);
        return weft_diag(diag, status, "no memory for a KV cache of %u blocks of %zu bytes",
                         config->n_blocks, config->layout.block_bytes[0]);
    }
    *store_out = store;
    return WEFT_OK;
}

void kv_store_destroy(kv_store_t *store)
{
    if (store == NULL) {
        return;
    }
    kv_offer_server_destroy(store->offer_server); /* before the memory that peers read */
    kv_store_close_tiers(store);
    kv_offer_destroy(store->offer);
    weft_free(store->pinned);
    weft_free(store->ahead);
    weft_free(store->reads);
    kv_names_destroy(store->arrivals);
    kv_reuse_destroy(store->reuse);
    kv_names_destroy(store->names);
    kv_pool_destroy(store->pool);
    weft_free(store);
}

bool kv_store_has_tiers(const kv_store_t *store)
{
    return store->reads != NULL;
}

uint32_t kv_store_tiers(const kv_store_t *store)
{
    uint32_t tiers = 0;
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        tiers |= store->tiers[id] != NULL ? UINT32_C(1) << id : 0;
    }
    return tiers;
}

static bool is_reading(const kv_store_t *store)
{
    bool is_so = false;
    for (uint32_t i = 0; i < KV_STORE_MAX_FETCHES; i++) {
        is_so |= store->fetches[i].is_active && store->fetches[i].n_posted > 0;
    }
    return is_so;
}

void kv_store_keep_tiers(kv_store_t *store, uint32_t tiers)
{
    const struct timespec pause = {.tv_nsec = 100000};
    while ((kv_store_tiers(store) & ~tiers) != 0 && is_reading(store)) {
        nanosleep(&pause, NULL); /* after a loss: what was posted ends by itself */
        kv_store_poll(store);
    }
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        if (store->tiers[id] != NULL && (tiers & UINT32_C(1) << id) == 0) {
            weft_log_warn("no %s tier of KV blocks: another rank has none", kv_tier_name(id));
            store->tiers[id]->ops->close(store->tiers[id]);
            store->tiers[id] = NULL;
        }
    }
}

kv_pool_t *kv_store_pool(const kv_store_t *store)
{
    return store->pool;
}

/* ---- names ---- */

kv_name_t kv_chain_name(const kv_chain_t *chain, uint32_t i, uint32_t block_tokens)
{
    assert(i < chain->n);
    kv_name_t name = {
        .hash = chain->hashes[i],
        .is_first = i == 0,
        .tokens = chain->tokens + (size_t)i * block_tokens,
        .extra = chain->extra,
    };
    if (i > 0) {
        name.parent = chain->hashes[i - 1];
    }
    return name;
}

uint32_t kv_store_match(const kv_store_t *store, const kv_chain_t *chain, kv_block_id_t *blocks_out)
{
    return kv_names_match(store->names, chain->hashes, chain->n, blocks_out);
}

bool kv_store_has(const kv_store_t *store, const kv_hash_t *hash)
{
    return kv_names_find(store->names, hash) != KV_BLOCK_NONE;
}

bool kv_store_adopt(kv_store_t *store, const kv_name_t *name, kv_block_id_t block)
{
    const uint32_t before = kv_names_count(store->names);
    kv_names_put(store->names, name, block);
    if (kv_names_count(store->names) == before) {
        return false;
    }
    kv_store_offer_block(store, &name->hash, block);
    kv_publisher_stored(store->config.publisher, KV_TIER_device, name);
    return true;
}

void kv_store_name(kv_store_t *store, const kv_chain_t *chain, uint32_t i, kv_block_id_t block,
                   bool goes_on)
{
    const kv_name_t name = kv_chain_name(chain, i, store->block_tokens);
    (void)kv_store_adopt(store, &name, block);
    if (store->reuse != NULL) {
        kv_reuse_note(store->reuse, &name.hash, goes_on ? 2 : 1);
        kv_store_queue_ahead(store, block);
    }
}

void kv_store_name_pulled(kv_store_t *store, const kv_chain_t *chain, uint32_t i,
                          kv_block_id_t block)
{
    const kv_name_t name = kv_chain_name(chain, i, store->block_tokens);
    (void)kv_store_adopt(store, &name, block);
}

static void count_hits(kv_store_t *store, uint32_t found, const uint32_t from_tiers[KV_TIER_COUNT],
                       uint32_t wanted)
{
    uint32_t missing = wanted;
    for (kv_tier_id_t id = KV_TIER_device + 1; id < KV_TIER_COUNT; id++) {
        found -= from_tiers[id] < found ? from_tiers[id] : found;
    }
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        const uint32_t hits = id == KV_TIER_device ? found : from_tiers[id];
        missing -= hits < missing ? hits : missing;
        store->stats.tiers[id].hit_blocks += hits;
        store->stats.tiers[id].miss_blocks += missing;
    }
}

bool kv_store_begin(kv_store_t *store, const kv_chain_t *chain, uint32_t found,
                    const uint32_t from_tiers[KV_TIER_COUNT])
{
    count_hits(store, found, from_tiers, chain->n);
    if (store->reuse == NULL) {
        return false;
    }
    uint32_t seen = chain->n; /* blocks up to the last one that is known */
    while (seen > 0 && kv_reuse_count(store->reuse, &chain->hashes[seen - 1]) == 0) {
        seen--;
    }
    const bool goes_on = seen > 0 && kv_reuse_count(store->reuse, &chain->hashes[seen - 1]) == 1;
    for (uint32_t i = 0; i < seen; i++) {
        const kv_block_id_t block = kv_names_find(store->names, &chain->hashes[i]);
        kv_reuse_note(store->reuse, &chain->hashes[i], 2);
        if (goes_on && block != KV_BLOCK_NONE) {
            kv_store_queue_ahead(store, block);
        }
    }
    return goes_on;
}

/* ---- peers ---- */

void kv_store_offer_block(kv_store_t *store, const kv_hash_t *hash, kv_block_id_t block)
{
    if (store->has_shelf) {
        kv_offer_put(store->offer, store->shelf, block, hash);
    }
}

void kv_store_take_back(kv_store_t *store, kv_block_id_t block)
{
    if (store->has_shelf) {
        kv_offer_take_back(store->offer, store->shelf, block);
    }
}

uint16_t kv_store_offer_port(const kv_store_t *store)
{
    return store->offer_server == NULL ? 0 : kv_offer_server_port(store->offer_server);
}

/* ---- pins ---- */

void kv_store_pin(kv_store_t *store, const kv_block_id_t *blocks, uint32_t n)
{
    kv_name_t name;
    for (uint32_t i = 0; i < n; i++) {
        const bool is_found = store->names != NULL && kv_names_get(store->names, blocks[i], &name);
        if (!is_found || kv_pool_is_pinned(store->pool, blocks[i])) {
            continue;
        }
        if (store->n_pinned == store->config.max_pinned_blocks) {
            store->stats.pins_refused += n - i;
            return;
        }
        kv_pool_pin(store->pool, blocks[i]);
        store->pinned[store->n_pinned++] = blocks[i];
    }
}

uint32_t kv_store_unpin_all(kv_store_t *store)
{
    const uint32_t n = store->n_pinned;
    while (store->n_pinned > 0) {
        kv_pool_unpin(store->pool, store->pinned[--store->n_pinned]);
    }
    return n;
}

/* ---- other ranks ---- */

void kv_store_hear(kv_store_t *store, const kv_report_t *report)
{
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        if (store->tiers[id] != NULL && kv_tier_ranks_hear(store->tiers[id], report)) {
            return;
        }
    }
}

void kv_store_lose_ranks(kv_store_t *store)
{
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        if (store->tiers[id] != NULL) {
            kv_tier_ranks_lose(store->tiers[id]);
        }
    }
}

/* ---- the rest ---- */

void kv_store_flush(kv_store_t *store)
{
    kv_publisher_flush(store->config.publisher);
}

/* AllBlocksCleared would speak of the tiers too. */
static void tell_device_removed(kv_store_t *store)
{
    kv_name_t name;
    for (kv_block_id_t block = 0; block < store->config.n_blocks; block++) {
        if (kv_names_get(store->names, block, &name)) {
            kv_publisher_removed(store->config.publisher, KV_TIER_device, &name.hash);
        }
    }
}

static void clear_tiers(kv_store_t *store)
{
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        if (store->tiers[id] != NULL) {
            store->tiers[id]->ops->clear(store->tiers[id]);
        }
    }
}

void kv_store_clear(kv_store_t *store, bool with_tiers)
{
    if (store->names == NULL) {
        return;
    }
    (void)kv_store_unpin_all(store);
    kv_store_fail_fetches(store);
    if (with_tiers || !kv_store_has_tiers(store)) {
        clear_tiers(store);
        kv_publisher_cleared(store->config.publisher);
    } else {
        tell_device_removed(store);
    }
    if (store->has_shelf) {
        kv_offer_clear(store->offer, store->shelf);
    }
    kv_names_clear(store->names);
    kv_store_flush(store);
}

static kv_store_offer_stats_t offer_stats(const kv_store_t *store)
{
    if (store->offer_server == NULL) {
        return (kv_store_offer_stats_t){0};
    }
    const kv_offer_server_stats_t server = kv_offer_server_stats(store->offer_server);
    return (kv_store_offer_stats_t){.blocks = kv_offer_blocks(store->offer),
                                    .welcomed = server.welcomed,
                                    .refused = server.refused,
                                    .lookups = server.lookups,
                                    .found_blocks = server.found_blocks,
                                    .garbage = server.garbage};
}

kv_store_stats_t kv_store_stats(const kv_store_t *store)
{
    kv_store_stats_t stats = store->stats;
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        const kv_tier_t *tier = store->tiers[id];
        stats.tiers[id].is_present = tier != NULL;
        if (tier != NULL) {
            stats.tiers[id].tier = tier->ops->stats(tier);
        }
    }
    stats.tiers[KV_TIER_device].is_present = true;
    stats.tiers[KV_TIER_device].tier = (kv_tier_stats_t){
        .blocks = store->names == NULL ? 0 : kv_names_count(store->names),
        .capacity_blocks = store->config.n_blocks,
        .evictions = store->evictions,
    };
    stats.pinned_blocks = store->n_pinned;
    stats.offer = offer_stats(store);
    return stats;
}
