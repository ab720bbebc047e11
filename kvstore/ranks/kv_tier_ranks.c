/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/ranks/kv_tier_ranks.h"

#include <stddef.h>

#include "base/alloc.h"
#include "base/compiler.h"

#define MAX_GETS (KV_TIER_RANKS_MAX_GETS / KV_TIER_COUNT)

typedef struct get {
    uint64_t id; /* 0: free */
    void *tag;
    bool is_own_done;
    uint32_t n_others; /* that have not ended it */
    weft_status_t status;
    uint64_t read_ns; /* of the slowest */
} get_t;

typedef struct ranks_tier {
    kv_tier_t tier; /* first: one's address is the other's */
    kv_tier_ranks_config_t config;
    bool insists;
    uint64_t next_id; /* its remainder by KV_TIER_COUNT is the tier */
    uint32_t n_gets;
    get_t gets[MAX_GETS];
} ranks_tier_t;

static ranks_tier_t *ranks_of(kv_tier_t *tier)
{
    return WEFT_CONTAINER(tier, ranks_tier_t, tier);
}

static kv_tier_t *own_of(const kv_tier_t *tier)
{
    return ((const ranks_tier_t *)(const void *)tier)->config.own;
}

/* ---- orders ---------------------------------------------------------------------------------- */

static kv_order_head_t order_of(const ranks_tier_t *ranks, kv_order_kind_t kind,
                                const kv_hash_t *hash)
{
    return (kv_order_head_t){
        .kind = kind, .tier = ranks->config.id, .block = KV_BLOCK_NONE, .hash = *hash};
}

/* The device's block that lies there; KV_BLOCK_NONE: it is in a tier. */
static kv_block_id_t block_at(const ranks_tier_t *ranks, const void *content)
{
    const kv_pool_t *pool = ranks->config.pool;
    const uintptr_t at = (uintptr_t)content;
    const uintptr_t base = (uintptr_t)kv_pool_memory(pool)->addr;
    const uint64_t block = (at - base) / kv_pool_layout(pool)->strides[0].block;
    return at >= base && block < kv_pool_total_blocks(pool) ? (kv_block_id_t)block : KV_BLOCK_NONE;
}

/* ---- the table of functions ------------------------------------------------------------------ */

static void ranks_close(kv_tier_t *tier)
{
    if (tier != NULL) {
        own_of(tier)->ops->close(own_of(tier));
        weft_free(ranks_of(tier));
    }
}

static bool ranks_has(const kv_tier_t *tier, const kv_hash_t *hash)
{
    return own_of(tier)->ops->has(own_of(tier), hash);
}

static void ranks_touch(kv_tier_t *tier, const kv_hash_t *hash)
{
    const ranks_tier_t *ranks = ranks_of(tier);
    const kv_order_head_t order = order_of(ranks, KV_ORDER_TIER_TOUCH, hash);
    own_of(tier)->ops->touch(own_of(tier), hash);
    kv_crew_order(ranks->config.crew, &order, NULL);
}

/* Also of what is here already: another rank may lack it. */
static weft_status_t ranks_put(kv_tier_t *tier, const kv_name_t *name, const void *content)
{
    const ranks_tier_t *ranks = ranks_of(tier);
    const weft_status_t status = own_of(tier)->ops->put(own_of(tier), name, content);
    if (status >= 0) {
        kv_order_head_t order = order_of(ranks, KV_ORDER_TIER_PUT, &name->hash);
        order.block = block_at(ranks, content);
        order.first = ranks->insists;
        kv_crew_order(ranks->config.crew, &order, NULL);
    }
    return status;
}

static void ranks_finish_puts(kv_tier_t *tier)
{
    kv_tier_t *own = own_of(tier);
    if (own->ops->finish_puts != NULL) {
        own->ops->finish_puts(own);
    }
}

static get_t *take_get(ranks_tier_t *ranks)
{
    for (uint32_t i = 0; i < MAX_GETS; i++) {
        if (ranks->gets[i].id == 0) {
            ranks->n_gets++;
            return &ranks->gets[i];
        }
    }
    return NULL;
}

static void free_get(ranks_tier_t *ranks, get_t *get)
{
    get->id = 0;
    ranks->n_gets--;
}

static weft_status_t ranks_get(kv_tier_t *tier, const kv_hash_t *hash, void *dst, void *tag)
{
    ranks_tier_t *ranks = ranks_of(tier);
    const bool has_met = kv_crew_has_met(ranks->config.crew);
    get_t *get = take_get(ranks);
    if (get == NULL) {
        return WEFT_ERR_QUEUE_FULL;
    }
    *get = (get_t){.id = ranks->next_id, .tag = tag};
    const weft_status_t status = own_of(tier)->ops->get(own_of(tier), hash, dst, get);
    if (status < 0) {
        free_get(ranks, get);
        return status;
    }
    get->n_others = has_met ? kv_crew_others(ranks->config.crew) : 0;
    get->status = has_met ? WEFT_OK : WEFT_ERR_PEER_GONE;
    kv_order_head_t order = order_of(ranks, KV_ORDER_TIER_GET, hash);
    order.id = get->id;
    order.block = block_at(ranks, dst);
    kv_crew_order(ranks->config.crew, &order, NULL);
    ranks->next_id += KV_TIER_COUNT;
    return status;
}

static void end_part(get_t *get, weft_status_t status, uint64_t read_ns)
{
    get->read_ns = read_ns > get->read_ns ? read_ns : get->read_ns;
    get->status = get->status < 0 ? get->status : status;
}

static void poll_own(ranks_tier_t *ranks)
{
    kv_tier_done_t done[32];
    uint32_t n;
    do {
        n = ranks->config.own->ops->poll(ranks->config.own, done, WEFT_ARRAY_LEN(done));
        for (uint32_t i = 0; i < n; i++) {
            get_t *get = done[i].tag;
            get->is_own_done = true;
            end_part(get, done[i].status, done[i].read_ns);
        }
    } while (n == WEFT_ARRAY_LEN(done));
}

static uint32_t ranks_poll(kv_tier_t *tier, kv_tier_done_t *done, uint32_t max)
{
    ranks_tier_t *ranks = ranks_of(tier);
    uint32_t n = 0;
    poll_own(ranks);
    for (uint32_t i = 0; ranks->n_gets > 0 && n < max && i < MAX_GETS; i++) {
        get_t *get = &ranks->gets[i];
        if (get->id != 0 && get->is_own_done && get->n_others == 0) {
            done[n++] = (kv_tier_done_t){get->tag, get->status, get->read_ns};
            free_get(ranks, get);
        }
    }
    return n;
}

static void ranks_clear(kv_tier_t *tier)
{
    static const kv_hash_t none;
    const ranks_tier_t *ranks = ranks_of(tier);
    const kv_order_head_t order = order_of(ranks, KV_ORDER_TIER_CLEAR, &none);
    own_of(tier)->ops->clear(own_of(tier));
    kv_crew_order(ranks->config.crew, &order, NULL);
}

static kv_tier_stats_t ranks_stats(const kv_tier_t *tier)
{
    return own_of(tier)->ops->stats(own_of(tier));
}

/* ---- open and hear --------------------------------------------------------------------------- */

static const kv_tier_ops_t ranks_ops = {
    .close = ranks_close,
    .has = ranks_has,
    .touch = ranks_touch,
    .put = ranks_put,
    .finish_puts = ranks_finish_puts,
    .get = ranks_get,
    .poll = ranks_poll,
    .clear = ranks_clear,
    .stats = ranks_stats,
};

weft_status_t kv_tier_ranks_open(const kv_tier_ranks_config_t *config, kv_tier_t **tier_out)
{
    ranks_tier_t *ranks = weft_zalloc(sizeof(*ranks), "kv_tier_ranks");
    if (ranks == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    ranks->tier.ops = &ranks_ops;
    ranks->config = *config;
    ranks->next_id = KV_TIER_COUNT + (uint64_t)config->id; /* never 0 */
    *tier_out = &ranks->tier;
    return WEFT_OK;
}

void kv_tier_ranks_insist(kv_tier_t *tier)
{
    ranks_of(tier)->insists = true;
}

bool kv_tier_ranks_hear(kv_tier_t *tier, const kv_report_t *report)
{
    ranks_tier_t *ranks = ranks_of(tier);
    if (report->id % KV_TIER_COUNT != ranks->config.id) {
        return false;
    }
    for (uint32_t i = 0; i < MAX_GETS; i++) {
        get_t *get = &ranks->gets[i];
        if (get->id == report->id && get->n_others > 0) {
            get->n_others--;
            end_part(get, (weft_status_t)report->status, report->ns);
        }
    }
    return true;
}

/* Our own part still ends by itself. */
void kv_tier_ranks_lose(kv_tier_t *tier)
{
    ranks_tier_t *ranks = ranks_of(tier);
    for (uint32_t i = 0; i < MAX_GETS; i++) {
        get_t *get = &ranks->gets[i];
        if (get->id != 0 && get->n_others > 0) {
            get->n_others = 0;
            end_part(get, WEFT_ERR_PEER_GONE, 0);
        }
    }
}
