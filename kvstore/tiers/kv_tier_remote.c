/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks of other workers as a tier: asked for by their hashes, read over the fabric. A block is read
 * with its epoch before and behind it, so that what its owner used for something else in the middle
 * is an error (stale), not a block. Puts are refused: what is theirs they keep themselves.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "kvstore/remote/kv_remote.h"
#include "kvstore/remote/kv_remote_asks.h"
#include "kvstore/remote/kv_remote_fabric.h"
#include "kvstore/tiers/kv_copier.h"
#include "kvstore/tiers/kv_tier.h"

#define MAX_GETS 64

typedef enum get_state { GET_FREE, GET_READING, GET_COPYING } get_state_t;

/* Slot i of the staging memory is get i's. */
typedef struct get {
    get_state_t state;
    void *tag;
    void *dst;
    uint32_t peer;
    uint64_t posted_ns;
    uint64_t read_ns;
    xfer_request_t *request;
} get_t;

typedef struct remote {
    kv_tier_t tier; /* first: one's address is the other's */
    kv_tier_config_t config;
    uint64_t wait_ns;
    weft_device_t *host;
    weft_mem_t scratch;
    weft_mem_t staging; /* where the device's memory is not the host's; else nothing */
    kv_copier_t *copier;
    xfer_agent_t *agent;
    xfer_list_t *local; /* the device's blocks, or those of staging */
    kv_remote_peers_t *peers;
    kv_remote_asks_t *asks;
    get_t gets[MAX_GETS];
    uint32_t n_gets;
    uint64_t heard_ns[KV_REMOTE_MAX_PEERS]; /* when a read of it last ended */
    kv_tier_stats_t stats;
} remote_t;

static remote_t *remote_of(kv_tier_t *tier)
{
    return (remote_t *)tier;
}

static const remote_t *remote_of_const(const kv_tier_t *tier)
{
    return (const remote_t *)tier;
}

/* ---- open and close -------------------------------------------------------------------------- */

static void on_event(void *user)
{
    const remote_t *remote = user;
    if (remote->config.wake != NULL) {
        remote->config.wake(remote->config.wake_user);
    }
}

static void on_found(void *user, uint32_t peer, const Weft__Remote__Found *found, uint64_t at_ns)
{
    kv_remote_asks_found(((remote_t *)user)->asks, peer, found, at_ns);
}

static void on_lost(void *user, uint32_t peer)
{
    remote_t *remote = user;
    for (uint32_t i = 0; i < MAX_GETS; i++) {
        get_t *get = &remote->gets[i];
        if (get->state == GET_READING && get->peer == peer) {
            xfer_cancel(get->request);
        }
    }
    kv_remote_asks_lost(remote->asks, peer);
}

/* Gets have ended before, as those of any tier; nothing is written to the device's memory then. */
static void remote_close(kv_tier_t *tier)
{
    if (tier == NULL) {
        return;
    }
    remote_t *remote = remote_of(tier);
    for (uint32_t i = 0; i < MAX_GETS; i++) {
        xfer_request_destroy(remote->gets[i].request);
    }
    kv_copier_destroy(remote->copier);
    kv_remote_peers_destroy(remote->peers);
    kv_remote_asks_destroy(remote->asks);
    xfer_list_destroy(remote->local);
    xfer_agent_destroy(remote->agent);
    if (remote->staging.addr != NULL) {
        remote->config.device->ops->free(remote->config.device, &remote->staging);
    }
    if (remote->scratch.addr != NULL) {
        remote->host->ops->free(remote->host, &remote->scratch);
    }
    weft_device_close(remote->host);
    weft_free(remote);
}

static bool is_staged(const remote_t *remote)
{
    return !remote->config.device->ops->is_host;
}

static weft_status_t open_staging(remote_t *remote)
{
    const kv_tier_config_t *config = &remote->config;
    const kv_copier_config_t copier = {.device = config->device,
                                       .max_copies = MAX_GETS,
                                       .wake = config->wake,
                                       .user = config->wake_user};
    const weft_status_t status = config->device->ops->alloc(
        config->device, MAX_GETS * config->block_bytes, WEFT_MEM_HOST, &remote->staging);
    return status < 0 ? status : kv_copier_create(&copier, &remote->copier);
}

static weft_status_t open_memory(remote_t *remote, weft_diag_t *diag)
{
    const kv_tier_config_t *config = &remote->config;
    weft_status_t status = weft_device_open("cpu", 0, diag, &remote->host);
    if (status >= 0) {
        status = remote->host->ops->alloc(remote->host, KV_OFFER_PROBE_BYTES, 0, &remote->scratch);
    }
    if (status >= 0) {
        memset(remote->scratch.addr, 0, KV_OFFER_PROBE_BYTES); /* its first touch is not measured */
    }
    if (status >= 0 && is_staged(remote)) {
        status = open_staging(remote);
    }
    if (status >= 0) {
        status = kv_remote_register(remote->agent, &remote->scratch, diag);
    }
    const weft_mem_t *memory = is_staged(remote) ? &remote->staging : config->memory;
    if (status >= 0) {
        status = kv_remote_register(remote->agent, memory, diag);
    }
    const xfer_run_t run = {.addr = (uint64_t)(uintptr_t)memory->addr,
                            .bytes = config->block_bytes,
                            .stride = config->block_bytes,
                            .count = memory->bytes / config->block_bytes};
    return status < 0
               ? status
               : xfer_list_create(remote->agent, NULL, XFER_DRAM, &run, 1, diag, &remote->local);
}

static weft_status_t open_peers(remote_t *remote, const kv_remote_config_t *config,
                                weft_diag_t *diag)
{
    const kv_remote_peers_config_t peers = {.peers = config->peers,
                                            .facts = &config->facts,
                                            .block_bytes = remote->config.block_bytes,
                                            .agent = remote->agent,
                                            .scratch = &remote->scratch,
                                            .on_found = on_found,
                                            .on_lost = on_lost,
                                            .user = remote,
                                            .wake = on_event,
                                            .wake_user = remote};
    weft_status_t status = kv_remote_peers_create(&peers, diag, &remote->peers);
    const kv_remote_asks_config_t asks = {.peers = remote->peers,
                                          .block_bytes = remote->config.block_bytes,
                                          .wait_ns = config->wait_ns};
    return status < 0 ? status : kv_remote_asks_create(&asks, &remote->asks);
}

static weft_status_t open_all(remote_t *remote, weft_diag_t *diag)
{
    const kv_remote_config_t *config = remote->config.remote;
    /* Its own port is nobody's business: peers are read, and do not read. */
    const kv_remote_fabric_t fabric = {.backends = config->backends,
                                       .params = config->params,
                                       .host = "127.0.0.1",
                                       .on_event = on_event,
                                       .user = remote};
    weft_status_t status = kv_remote_agent_open(&fabric, diag, &remote->agent);
    if (status >= 0) {
        status = open_memory(remote, diag);
    }
    return status < 0 ? status : open_peers(remote, config, diag);
}

static weft_status_t remote_open(const kv_tier_config_t *config, weft_diag_t *diag,
                                 kv_tier_t **tier_out)
{
    remote_t *remote = weft_zalloc(sizeof(*remote), "kv_tier_remote.remote");
    if (remote == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    remote->tier.ops = &kv_tier_remote;
    remote->config = *config;
    remote->wait_ns = config->remote->wait_ns;
    const weft_status_t status = open_all(remote, diag);
    remote->config.remote = NULL; /* read */
    if (status < 0) {
        remote_close(&remote->tier);
        return status;
    }
    *tier_out = &remote->tier;
    return WEFT_OK;
}

/* ---- what is there --------------------------------------------------------------------------- */

static void plan_wake(remote_t *remote);

static weft_status_t remote_ask(kv_tier_t *tier, const kv_hash_t *hashes, uint32_t n,
                                double compute_ns)
{
    remote_t *remote = remote_of(tier);
    const weft_status_t status =
        kv_remote_asks_ask(remote->asks, hashes, n, compute_ns, weft_clock_ns());
    plan_wake(remote);
    return status;
}

static bool remote_has(const kv_tier_t *tier, const kv_hash_t *hash)
{
    uint32_t peer;
    kv_offer_place_t place;
    return kv_remote_asks_find(remote_of_const(tier)->asks, hash, &peer, &place);
}

static void remote_touch(kv_tier_t *tier, const kv_hash_t *hash)
{
    (void)tier;
    (void)hash;
}

static weft_status_t remote_put(kv_tier_t *tier, const kv_name_t *name, const void *content)
{
    (void)tier;
    (void)name;
    (void)content;
    return WEFT_ERR_UNSUPPORTED;
}

static void remote_clear(kv_tier_t *tier)
{
    kv_remote_asks_clear(remote_of(tier)->asks);
}

/* ---- reading --------------------------------------------------------------------------------- */

static weft_status_t create_request(remote_t *remote, get_t *get, const kv_offer_place_t *place)
{
    const xfer_list_t *list;
    xfer_guard_t guard;
    if (!kv_remote_peer_find(remote->peers, get->peer, place, &list, &guard)) {
        return WEFT_ERR_NOT_FOUND;
    }
    const size_t offset =
        (size_t)((const char *)get->dst - (const char *)remote->config.memory->addr);
    const uint32_t local = is_staged(remote) ? (uint32_t)(get - remote->gets)
                                             : (uint32_t)(offset / remote->config.block_bytes);
    const xfer_request_config_t config = {.direction = XFER_READ,
                                          .local = remote->local,
                                          .peer = list,
                                          .local_ids = &local,
                                          .peer_ids = &place->block,
                                          .n = 1,
                                          .guard = &guard};
    weft_diag_t diag = {0};
    return xfer_request_create(remote->agent, &config, &diag, &get->request);
}

static get_t *take_get(remote_t *remote)
{
    for (uint32_t i = 0; i < MAX_GETS; i++) {
        if (remote->gets[i].state == GET_FREE) {
            return &remote->gets[i];
        }
    }
    return NULL;
}

static bool is_idle(const remote_t *remote, uint32_t peer)
{
    for (uint32_t i = 0; i < MAX_GETS; i++) {
        if (remote->gets[i].state == GET_READING && remote->gets[i].peer == peer) {
            return false;
        }
    }
    return true;
}

static weft_status_t remote_get(kv_tier_t *tier, const kv_hash_t *hash, void *dst, void *tag)
{
    remote_t *remote = remote_of(tier);
    kv_offer_place_t place;
    uint32_t peer;
    if (!kv_remote_asks_find(remote->asks, hash, &peer, &place)) {
        return WEFT_ERR_NOT_FOUND;
    }
    get_t *get = take_get(remote);
    if (get == NULL) {
        return WEFT_ERR_QUEUE_FULL;
    }
    *get = (get_t){.tag = tag, .dst = dst, .peer = peer, .posted_ns = weft_clock_ns()};
    weft_status_t status = create_request(remote, get, &place);
    if (status >= 0) {
        status = xfer_post(get->request);
    }
    kv_remote_asks_forget(remote->asks, hash); /* used up: it may be gone by the next time */
    if (status < 0) {
        xfer_request_destroy(get->request);
        *get = (get_t){0};
        return WEFT_ERR_NOT_FOUND;
    }
    if (is_idle(remote, peer)) {
        remote->heard_ns[peer] = get->posted_ns;
    }
    get->state = GET_READING;
    remote->n_gets++;
    remote->stats.gets++;
    plan_wake(remote);
    return WEFT_PENDING;
}

/* ---- ends ------------------------------------------------------------------------------------ */

static kv_tier_done_t end_get(remote_t *remote, get_t *get, weft_status_t status)
{
    const kv_tier_done_t done = {get->tag, status, get->read_ns};
    if (status == WEFT_OK) {
        remote->stats.read_bytes += remote->config.block_bytes;
        remote->stats.read_ns += get->read_ns;
    } else {
        remote->stats.gets_failed++;
        remote->stats.stale += status == WEFT_ERR_STALE;
    }
    *get = (get_t){0};
    remote->n_gets--;
    return done;
}

/* A link has one block after the other: waiting for those before it is not the block's time. */
static void measure(remote_t *remote, get_t *get, const xfer_request_stats_t *stats)
{
    uint64_t *heard = &remote->heard_ns[get->peer];
    const uint64_t since = stats->started_ns > *heard ? stats->started_ns : *heard;
    get->read_ns = stats->ended_ns > since ? stats->ended_ns - since : 0;
    *heard = stats->ended_ns > *heard ? stats->ended_ns : *heard;
}

static bool is_of_peer(weft_status_t status)
{
    return status != WEFT_ERR_STALE && status != WEFT_ERR_CANCELLED;
}

/* True: it is over. */
static bool end_read(remote_t *remote, get_t *get, uint64_t now_ns, kv_tier_done_t *done_out)
{
    weft_status_t status = xfer_poll(get->request);
    const uint32_t slot = (uint32_t)(get - remote->gets);
    const size_t bytes = remote->config.block_bytes;
    const xfer_request_stats_t stats = xfer_request_stats(get->request);
    xfer_request_destroy(get->request);
    get->request = NULL;
    measure(remote, get, &stats);
    if (status == WEFT_OK) {
        kv_remote_peer_was_read(remote->peers, get->peer, bytes, get->read_ns);
    } else if (is_of_peer(status)) {
        get->state = GET_FREE; /* not to be cancelled */
        kv_remote_peer_fail(remote->peers, get->peer, weft_strerror(status), now_ns);
    }
    if (status == WEFT_OK && is_staged(remote)) {
        status = kv_copier_post(remote->copier, get->dst,
                                (const char *)remote->staging.addr + slot * bytes, bytes, get);
        if (status >= 0) {
            get->state = GET_COPYING;
            return false;
        }
    }
    *done_out = end_get(remote, get, status);
    return true;
}

static uint32_t poll_copies(remote_t *remote, kv_tier_done_t *done, uint32_t max)
{
    kv_copier_done_t copied;
    uint32_t n = 0;
    while (remote->copier != NULL && n < max && kv_copier_poll(remote->copier, &copied)) {
        get_t *get = copied.tag;
        get->read_ns += copied.copy_ns;
        done[n++] = end_get(remote, get, copied.status);
    }
    return n;
}

/* Of a peer that reads wait for, and that gives nothing any more. */
static void find_silent(remote_t *remote, uint64_t now_ns)
{
    for (uint32_t i = 0; i < MAX_GETS; i++) {
        const get_t *get = &remote->gets[i];
        if (get->state == GET_READING && xfer_poll(get->request) == WEFT_PENDING &&
            remote->heard_ns[get->peer] + remote->wait_ns <= now_ns) {
            kv_remote_peer_fail(remote->peers, get->peer, "no block has come for too long", now_ns);
        }
    }
}

static uint64_t next_silence_ns(const remote_t *remote)
{
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < MAX_GETS; i++) {
        const get_t *get = &remote->gets[i];
        const uint64_t at = remote->heard_ns[get->peer] + remote->wait_ns;
        if (get->state == GET_READING && at < next) {
            next = at;
        }
    }
    return next;
}

static void plan_wake(remote_t *remote)
{
    const uint64_t asks = kv_remote_asks_next_ns(remote->asks);
    const uint64_t silence = remote->n_gets == 0 ? UINT64_MAX : next_silence_ns(remote);
    kv_remote_peers_plan_wake(remote->peers, asks < silence ? asks : silence);
}

static uint32_t remote_poll(kv_tier_t *tier, kv_tier_done_t *done, uint32_t max)
{
    remote_t *remote = remote_of(tier);
    const uint64_t now = weft_clock_ns();
    uint32_t n = poll_copies(remote, done, max);
    for (uint32_t i = 0; remote->n_gets > 0 && i < MAX_GETS && n < max; i++) {
        get_t *get = &remote->gets[i];
        if (get->state == GET_READING && xfer_poll(get->request) != WEFT_PENDING) {
            n += end_read(remote, get, now, &done[n]);
        }
    }
    if (n < max) {
        find_silent(remote, now);
    }
    kv_remote_peers_poll(remote->peers, now);
    kv_remote_asks_poll(remote->asks, now);
    plan_wake(remote);
    return n;
}

static kv_tier_stats_t remote_stats(const kv_tier_t *tier)
{
    const remote_t *remote = remote_of_const(tier);
    const kv_remote_asks_stats_t asks = kv_remote_asks_stats(remote->asks);
    kv_tier_stats_t stats = remote->stats;
    stats.in_flight = remote->n_gets;
    stats.peers = kv_remote_peers_ready(remote->peers);
    stats.lookups = asks.lookups;
    stats.lookups_late = asks.late;
    stats.lookups_declined = asks.declined;
    return stats;
}

const kv_tier_ops_t kv_tier_remote = {
    .id = KV_TIER_remote,
    .open = remote_open,
    .close = remote_close,
    .ask = remote_ask,
    .has = remote_has,
    .touch = remote_touch,
    .put = remote_put,
    .get = remote_get,
    .poll = remote_poll,
    .clear = remote_clear,
    .stats = remote_stats,
};
