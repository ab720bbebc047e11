/* SPDX-License-Identifier: Apache-2.0 */
/* The host's memory as a tier: a pool of blocks there, and a thread that copies back from it. */
#include "base/alloc.h"
#include "kvstore/remote/kv_offer.h"
#include "kvstore/tiers/kv_copier.h"
#include "kvstore/tiers/kv_tier.h"

#define MAX_GETS 256
#define MAX_PUTS 32 /* copies on their way at a time */

typedef struct get {
    void *tag;
    kv_block_id_t slot;
} get_t;

typedef struct host {
    kv_tier_t tier; /* first: one's address is the other's */
    kv_tier_config_t config;
    kv_pool_t *pool; /* of slots; one being read is referenced */
    kv_names_t *names;
    kv_copier_t *copier;
    weft_queue_t *queue; /* of puts */
    kv_block_id_t
        falling[MAX_PUTS]; /* slots whose bytes are on their way: named, not yet offered */
    uint32_t n_falling;
    uint32_t shelf; /* in config.offer, if there is one */
    get_t gets[MAX_GETS];
    uint32_t free_gets[MAX_GETS];
    uint32_t n_free_gets;
    kv_tier_stats_t stats;
} host_t;

static host_t *host_of(kv_tier_t *tier)
{
    return (host_t *)tier;
}

static const host_t *host_of_const(const kv_tier_t *tier)
{
    return (const host_t *)tier;
}

/* ---- on their way down ---- */

static void forget(host_t *host, kv_block_id_t slot, const kv_name_t *name)
{
    host->config.on_removed(host->config.user, &name->hash);
    kv_names_remove(host->names, slot);
}

static void host_finish_puts(kv_tier_t *tier)
{
    host_t *host = host_of(tier);
    const uint32_t n = host->n_falling;
    const weft_status_t status = n == 0 ? WEFT_OK : host->config.device->ops->sync(host->queue);
    host->n_falling = 0;
    for (uint32_t i = 0; i < n; i++) {
        const kv_block_id_t slot = host->falling[i];
        kv_name_t name;
        if (!kv_names_get(host->names, slot, &name)) {
            continue; /* cannot be: whoever takes a name waits first */
        }
        if (status == WEFT_OK) {
            kv_offer_put(host->config.offer, host->shelf, slot, &name.hash);
        } else {
            host->stats.puts_refused++;
            forget(host, slot, &name);
        }
    }
}

/* Its bytes are about to be read, or written over. */
static void let_land(host_t *host, kv_block_id_t slot)
{
    for (uint32_t i = 0; i < host->n_falling; i++) {
        if (host->falling[i] == slot) {
            host_finish_puts(&host->tier);
        }
    }
}

/* ---- slots ---- */

/* The pool is about to give this slot to another block. */
static void evict(void *user, kv_block_id_t slot)
{
    host_t *host = user;
    kv_name_t name;
    let_land(host, slot);
    if (!kv_names_get(host->names, slot, &name)) {
        return;
    }
    const kv_tier_config_t *config = &host->config;
    config->on_evict(config->user, &name, kv_pool_block(host->pool, slot));
    host->stats.evictions++;
    kv_offer_take_back(config->offer, host->shelf, slot);
    forget(host, slot, &name);
}

static weft_status_t create_pool(host_t *host, uint32_t slots)
{
    const kv_tier_config_t *config = &host->config;
    kv_pool_config_t pool = {
        .device = config->device,
        .layout = {.block_tokens = config->block_tokens, .n_groups = 1},
        .n_blocks = slots,
        .memory_flags = WEFT_MEM_HOST,
        .on_reuse = evict,
        .user = host,
    };
    pool.layout.block_bytes[0] = pool.layout.strides[0].block = config->block_bytes;
    return kv_pool_create(&pool, &host->pool);
}

static weft_status_t make_shelf(host_t *host, uint32_t slots)
{
    const kv_offer_shelf_t shelf = {.memory = kv_pool_memory(host->pool),
                                    .block_bytes = host->config.block_bytes,
                                    .n_blocks = slots};
    return host->config.offer == NULL
               ? WEFT_OK
               : kv_offer_add_shelf(host->config.offer, &shelf, &host->shelf);
}

static void give_up_all(host_t *host)
{
    kv_name_t name;
    host_finish_puts(&host->tier);
    for (kv_block_id_t slot = kv_pool_older(host->pool, KV_BLOCK_NONE); slot != KV_BLOCK_NONE;
         slot = kv_pool_older(host->pool, slot)) {
        if (kv_names_get(host->names, slot, &name)) {
            host->config.on_evict(host->config.user, &name, kv_pool_block(host->pool, slot));
        }
    }
}

static void host_close(kv_tier_t *tier)
{
    if (tier == NULL) {
        return;
    }
    host_t *host = host_of(tier);
    if (host->copier != NULL) { /* the last part of open */
        give_up_all(host);
    }
    kv_copier_destroy(host->copier);
    if (host->queue != NULL) {
        host->config.device->ops->close_queue(host->queue);
    }
    kv_pool_destroy(host->pool);
    kv_names_destroy(host->names);
    weft_free(host);
}

static weft_status_t create_parts(host_t *host, uint32_t slots)
{
    const kv_tier_config_t *config = &host->config;
    const kv_copier_config_t copier = {
        .device = config->device,
        .max_copies = MAX_GETS,
        .wake = config->wake,
        .user = config->wake_user,
    };
    weft_status_t status = kv_names_create(slots, config->block_tokens, &host->names);
    if (status == WEFT_OK) {
        status = create_pool(host, slots);
    }
    if (status == WEFT_OK) {
        status = config->device->ops->open_queue(config->device, &host->queue);
    }
    if (status == WEFT_OK) {
        status = kv_copier_create(&copier, &host->copier);
    }
    return status < 0 ? status : make_shelf(host, slots); /* last: it is not taken back */
}

static weft_status_t host_open(const kv_tier_config_t *config, weft_diag_t *diag,
                               kv_tier_t **tier_out)
{
    const size_t slots = config->budget_bytes / config->block_bytes;
    if (slots == 0 || slots > UINT32_C(1) << 30) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--kv-host-bytes %zu: a KV block takes %zu bytes; 1 to 2^30 blocks are "
                         "possible",
                         config->budget_bytes, config->block_bytes);
    }
    host_t *host = weft_zalloc(sizeof(*host), "kv_tier_host.host");
    if (host == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    host->tier.ops = &kv_tier_host;
    host->config = *config;
    host->stats.capacity_blocks = slots;
    for (host->n_free_gets = 0; host->n_free_gets < MAX_GETS; host->n_free_gets++) {
        host->free_gets[host->n_free_gets] = host->n_free_gets;
    }
    const weft_status_t status = create_parts(host, (uint32_t)slots);
    if (status < 0) {
        host_close(&host->tier);
        return weft_diag(diag, status,
                         "no memory for %zu KV blocks of %zu bytes in --kv-host-bytes", slots,
                         config->block_bytes);
    }
    *tier_out = &host->tier;
    return WEFT_OK;
}

static bool host_has(const kv_tier_t *tier, const kv_hash_t *hash)
{
    return kv_names_find(host_of_const(tier)->names, hash) != KV_BLOCK_NONE;
}

static void host_touch(kv_tier_t *tier, const kv_hash_t *hash)
{
    host_t *host = host_of(tier);
    const kv_block_id_t slot = kv_names_find(host->names, hash);
    if (slot != KV_BLOCK_NONE) {
        kv_pool_acquire(host->pool, &slot, 1);
        kv_pool_release(host->pool, &slot, 1);
    }
}

static weft_status_t host_put(kv_tier_t *tier, const kv_name_t *name, const void *content)
{
    host_t *host = host_of(tier);
    const kv_tier_config_t *config = &host->config;
    if (host_has(tier, &name->hash)) {
        host_touch(tier, &name->hash);
        return WEFT_OK;
    }
    kv_block_id_t slot;
    if (kv_pool_alloc(host->pool, 1, &slot) < 0) {
        host->stats.puts_refused++;
        return WEFT_ERR_QUEUE_FULL;
    }
    if (host->n_falling == MAX_PUTS) {
        host_finish_puts(tier);
    }
    config->device->ops->copy(host->queue, kv_pool_block(host->pool, slot), content,
                              config->block_bytes);
    host->falling[host->n_falling++] = slot;
    kv_names_put(host->names, name, slot);
    kv_pool_release(host->pool, &slot, 1);
    host->stats.puts++;
    host->stats.written_bytes += config->block_bytes;
    config->on_stored(config->user, name);
    return WEFT_OK;
}

static weft_status_t host_get(kv_tier_t *tier, const kv_hash_t *hash, void *dst, void *tag)
{
    host_t *host = host_of(tier);
    const kv_block_id_t slot = kv_names_find(host->names, hash);
    if (slot == KV_BLOCK_NONE) {
        return WEFT_ERR_NOT_FOUND;
    }
    if (host->n_free_gets == 0) {
        return WEFT_ERR_QUEUE_FULL;
    }
    let_land(host, slot);
    if (kv_names_find(host->names, hash) == KV_BLOCK_NONE) {
        return WEFT_ERR_NOT_FOUND; /* it did not */
    }
    get_t *get = &host->gets[host->free_gets[--host->n_free_gets]];
    *get = (get_t){.tag = tag, .slot = slot};
    kv_pool_acquire(host->pool, &slot, 1);
    /* Cannot be full: it holds as many as there are gets. */
    (void)kv_copier_post(host->copier, dst, kv_pool_block(host->pool, slot),
                         host->config.block_bytes, get);
    host->stats.gets++;
    return WEFT_PENDING;
}

static uint32_t host_poll(kv_tier_t *tier, kv_tier_done_t *done, uint32_t max)
{
    host_t *host = host_of(tier);
    uint32_t n = 0;
    kv_copier_done_t copied;
    while (n < max && kv_copier_poll(host->copier, &copied)) {
        const get_t *get = copied.tag;
        kv_pool_release(host->pool, &get->slot, 1);
        host->free_gets[host->n_free_gets++] = (uint32_t)(get - host->gets);
        host->stats.read_ns += copied.copy_ns;
        if (copied.status == WEFT_OK) {
            host->stats.read_bytes += host->config.block_bytes;
        } else {
            host->stats.gets_failed++;
        }
        done[n++] = (kv_tier_done_t){get->tag, copied.status, copied.copy_ns};
    }
    return n;
}

static const void *host_peek(const kv_tier_t *tier, const kv_hash_t *hash)
{
    const host_t *host = host_of_const(tier);
    const kv_block_id_t slot = kv_names_find(host->names, hash);
    return slot == KV_BLOCK_NONE ? NULL : kv_pool_block(host->pool, slot);
}

static void host_clear(kv_tier_t *tier)
{
    const host_t *host = host_of(tier);
    host_finish_puts(tier); /* a slot that a copy is still going to could be taken */
    kv_offer_clear(host->config.offer, host->shelf);
    kv_names_clear(host->names);
}

static kv_tier_stats_t host_stats(const kv_tier_t *tier)
{
    const host_t *host = host_of_const(tier);
    kv_tier_stats_t stats = host->stats;
    stats.blocks = kv_names_count(host->names);
    stats.in_flight = MAX_GETS - host->n_free_gets;
    return stats;
}

const kv_tier_ops_t kv_tier_host = {
    .id = KV_TIER_host,
    .open = host_open,
    .close = host_close,
    .has = host_has,
    .touch = host_touch,
    .put = host_put,
    .finish_puts = host_finish_puts,
    .get = host_get,
    .poll = host_poll,
    .peek = host_peek,
    .clear = host_clear,
    .stats = host_stats,
};
