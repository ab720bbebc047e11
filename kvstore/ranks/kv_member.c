/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "kv-ranks"
#include "kvstore/ranks/kv_member.h"

#include <assert.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/compiler.h"
#include "base/log.h"
#include "kvstore/ranks/kv_tier_ranks.h"

#define INSIST_NS (5 * WEFT_NS_PER_SECOND) /* that puts wait for a busy tier, in all */
#define PAUSE_NS  100000
#define UNSENT_NS WEFT_NS_PER_MS /* until reports that could not be sent are tried again */
#define PULLING_NS                                                                                 \
    (100 * WEFT_NS_PER_MS) /* from one look at peers that are read from to the next */

/* A reading that rank 0 waits for. */
typedef struct read {
    uint64_t id; /* 0: free */
    kv_tier_id_t tier;
    bool is_posted;
    kv_block_id_t block;
    kv_hash_t hash;
} read_t;

struct kv_member {
    kv_member_config_t config;
    kv_tier_t *tiers[KV_TIER_COUNT]; /* NULL: not there. Guarded by lock, so for all below */
    kv_transfer_t *transfer;         /* NULL: blocks stay here */
    int32_t *no_tokens;              /* [block_tokens]: rank 0 knows what is in a block */
    read_t *reads;                   /* [KV_TIER_RANKS_MAX_GETS] */
    uint32_t n_reads;
    uint32_t n_unposted;
    uint64_t insisted_ns;
    weft_buffer_t incoming; /* the beginning of an order whose rest has not come */

    pthread_mutex_t lock;
    pthread_t thread;
    bool has_thread;
    pthread_mutex_t wake_lock;
    pthread_cond_t woken;
    bool is_woken; /* guarded by wake_lock, so for the next */
    bool is_stopping;
};

/* ---- waking ---------------------------------------------------------------------------------- */

void kv_member_wake(void *user)
{
    kv_member_t *member = user;
    pthread_mutex_lock(&member->wake_lock);
    member->is_woken = true;
    pthread_cond_signal(&member->woken);
    pthread_mutex_unlock(&member->wake_lock);
}

/* Until woken, or patience_ns has passed (0: for ever). False: it is to stop. */
static bool wait_for_wake(kv_member_t *member, uint64_t patience_ns)
{
    const uint64_t until_ns = weft_clock_ns() + patience_ns;
    const struct timespec until = {.tv_sec = (time_t)(until_ns / WEFT_NS_PER_SECOND),
                                   .tv_nsec = (long)(until_ns % WEFT_NS_PER_SECOND)};
    int error = 0;
    pthread_mutex_lock(&member->wake_lock);
    while (!member->is_woken && !member->is_stopping && error == 0) {
        error = patience_ns == 0
                    ? pthread_cond_wait(&member->woken, &member->wake_lock)
                    : pthread_cond_timedwait(&member->woken, &member->wake_lock, &until);
    }
    member->is_woken = false;
    const bool goes_on = !member->is_stopping;
    pthread_mutex_unlock(&member->wake_lock);
    return goes_on;
}

/* ---- reading from tiers ---------------------------------------------------------------------- */

static void report_read(const kv_member_t *member, uint64_t id, weft_status_t status, uint64_t ns)
{
    const kv_report_t report = {.kind = KV_REPORT_READ, .id = id, .status = status, .ns = ns};
    kv_crew_report(member->config.crew, &report);
}

static void end_read(kv_member_t *member, read_t *read, weft_status_t status, uint64_t ns)
{
    report_read(member, read->id, status, ns);
    read->id = 0;
    member->n_reads--;
}

static void post_read(kv_member_t *member, read_t *read)
{
    kv_tier_t *tier = member->tiers[read->tier];
    const weft_status_t status =
        tier == NULL ? WEFT_ERR_NOT_FOUND
                     : tier->ops->get(tier, &read->hash,
                                      kv_pool_block(member->config.pool, read->block), read);
    if (status == WEFT_ERR_QUEUE_FULL) {
        return; /* posted once others have ended */
    }
    member->n_unposted--;
    read->is_posted = true;
    if (status < 0) {
        end_read(member, read, status, 0);
    }
}

static void post_reads(kv_member_t *member)
{
    for (uint32_t i = 0; member->n_unposted > 0 && i < KV_TIER_RANKS_MAX_GETS; i++) {
        read_t *read = &member->reads[i];
        if (read->id != 0 && !read->is_posted) {
            post_read(member, read);
        }
    }
}

static void poll_tier(kv_member_t *member, kv_tier_t *tier)
{
    kv_tier_done_t done[32];
    uint32_t n;
    do {
        n = tier->ops->poll(tier, done, WEFT_ARRAY_LEN(done));
        for (uint32_t i = 0; i < n; i++) {
            end_read(member, done[i].tag, done[i].status, done[i].read_ns);
        }
    } while (n == WEFT_ARRAY_LEN(done));
}

static void poll_tiers(kv_member_t *member)
{
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        if (member->tiers[id] != NULL) {
            poll_tier(member, member->tiers[id]);
        }
    }
    post_reads(member);
}

/* ---- tiers' orders --------------------------------------------------------------------------- */

static void settle(const kv_member_t *member)
{
    if (member->config.settle != NULL) {
        member->config.settle(member->config.user);
    }
}

static weft_status_t get(kv_member_t *member, const kv_order_head_t *order)
{
    read_t *read = member->reads;
    if (order->block >= kv_pool_total_blocks(member->config.pool) ||
        member->n_reads == KV_TIER_RANKS_MAX_GETS || order->id == 0) {
        return WEFT_ERR_MALFORMED;
    }
    while (read->id != 0) {
        read++;
    }
    settle(member);
    *read =
        (read_t){.id = order->id, .tier = order->tier, .block = order->block, .hash = order->hash};
    member->n_reads++;
    member->n_unposted++;
    post_read(member, read);
    return WEFT_OK;
}

/* Blocks that were put may be written, or read, from now on. */
static void finish_puts(const kv_member_t *member)
{
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        kv_tier_t *tier = member->tiers[id];
        if (tier != NULL && tier->ops->finish_puts != NULL) {
            tier->ops->finish_puts(tier);
        }
    }
}

/* Of the device, or of the host's memory, which rank 0 is about to have forget it. */
static const void *content_of(const kv_member_t *member, const kv_order_head_t *order)
{
    const kv_tier_t *host = member->tiers[KV_TIER_host];
    if (order->block != KV_BLOCK_NONE) {
        return kv_pool_block(member->config.pool, order->block);
    }
    finish_puts(member);
    return host == NULL ? NULL : host->ops->peek(host, &order->hash);
}

/* A tier that cannot keep up does not get the block: unless this is the end. */
static void put(kv_member_t *member, const kv_order_head_t *order)
{
    kv_tier_t *tier = member->tiers[order->tier];
    const void *content = content_of(member, order);
    const kv_name_t name = {.hash = order->hash, .is_first = true, .tokens = member->no_tokens};
    if (tier == NULL || content == NULL) {
        return;
    }
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    const uint64_t begin = weft_clock_ns();
    weft_status_t status = tier->ops->put(tier, &name, content);
    while (order->first != 0 && status == WEFT_ERR_QUEUE_FULL &&
           member->insisted_ns + (weft_clock_ns() - begin) < INSIST_NS) {
        nanosleep(&pause, NULL);
        poll_tiers(member);
        status = tier->ops->put(tier, &name, content);
    }
    member->insisted_ns += order->first != 0 ? weft_clock_ns() - begin : 0;
}

static weft_status_t obey_tier(kv_member_t *member, const kv_order_head_t *order)
{
    if (order->tier >= KV_TIER_COUNT ||
        (order->block != KV_BLOCK_NONE &&
         order->block >= kv_pool_total_blocks(member->config.pool))) {
        return WEFT_ERR_MALFORMED;
    }
    kv_tier_t *tier = member->tiers[order->tier];
    switch (order->kind) {
    case KV_ORDER_TIER_PUT:
        put(member, order);
        return WEFT_OK;
    case KV_ORDER_TIER_GET:
        return get(member, order);
    case KV_ORDER_TIER_TOUCH:
        if (tier != NULL) {
            tier->ops->touch(tier, &order->hash);
        }
        return WEFT_OK;
    default: /* KV_ORDER_TIER_CLEAR */
        if (tier != NULL) {
            tier->ops->clear(tier);
        }
        return WEFT_OK;
    }
}

/* ---- orders ---------------------------------------------------------------------------------- */

static weft_status_t carry_out(kv_member_t *member, const kv_order_head_t *order, const char *items)
{
    if (order->kind != KV_ORDER_TIER_PUT && order->kind != KV_ORDER_TIER_TOUCH) {
        finish_puts(member); /* it may write to blocks that went down */
    }
    if (order->kind <= KV_ORDER_TIER_CLEAR) {
        return order->kind == 0 ? WEFT_ERR_MALFORMED : obey_tier(member, order);
    }
    if (member->transfer == NULL || order->kind >= KV_ORDER_COUNT) {
        return WEFT_ERR_MALFORMED;
    }
    if (order->kind == KV_ORDER_PULL_START) {
        settle(member);
    }
    return kv_transfer_obey(member->transfer, order, items);
}

/* How many bytes whole orders took. */
static weft_status_t carry_out_all(kv_member_t *member, const char *bytes, size_t n,
                                   size_t *taken_out)
{
    size_t taken = 0;
    weft_status_t status = WEFT_OK;
    while (status >= 0 && n - taken >= sizeof(kv_order_head_t)) {
        kv_order_head_t order;
        memcpy(&order, bytes + taken, sizeof(order));
        if (order.bytes > KV_ORDER_MAX_BYTES) {
            return WEFT_ERR_MALFORMED;
        }
        if (n - taken < kv_order_length(&order)) {
            break;
        }
        status = carry_out(member, &order, bytes + taken + sizeof(order));
        taken += kv_order_length(&order);
    }
    finish_puts(member); /* the step comes next */
    *taken_out = taken;
    return status;
}

static weft_status_t take_bytes(kv_member_t *member, const char *bytes, size_t n)
{
    size_t taken = 0;
    weft_status_t status = WEFT_OK;
    if (member->incoming.length == 0) { /* mostly: orders need not be copied */
        status = carry_out_all(member, bytes, n, &taken);
        weft_buffer_append(&member->incoming, bytes + taken, n - taken);
    } else {
        weft_buffer_append(&member->incoming, bytes, n);
        if (!member->incoming.is_failed) {
            status = carry_out_all(member, member->incoming.data, member->incoming.length, &taken);
            weft_buffer_drop_front(&member->incoming, taken);
        }
    }
    return member->incoming.is_failed ? WEFT_ERR_NO_MEMORY : status;
}

weft_status_t kv_member_obey(kv_member_t *member, const void *bytes, size_t n, weft_diag_t *diag)
{
    pthread_mutex_lock(&member->lock);
    weft_status_t status = take_bytes(member, bytes, n);
    if (status >= 0) {
        status = kv_crew_flush(member->config.crew);
    }
    pthread_mutex_unlock(&member->lock);
    if (member->transfer != NULL) {
        kv_member_wake(member); /* it may have to look sooner now */
    }
    return status < 0 ? weft_diag(diag, status, "orders of rank 0 for KV blocks: %s",
                                  weft_strerror(status))
                      : WEFT_OK;
}

/* ---- the thread ------------------------------------------------------------------------------ */

/* When to look again at the latest: that a peer is gone nobody wakes us for. */
static uint64_t patience_of(const kv_member_t *member)
{
    return kv_crew_has_unsent(member->config.crew)                                ? UNSENT_NS
           : member->transfer != NULL && kv_transfer_is_pulling(member->transfer) ? PULLING_NS
                                                                                  : 0;
}

static uint64_t poll_all(kv_member_t *member)
{
    pthread_mutex_lock(&member->lock);
    poll_tiers(member);
    if (member->transfer != NULL) {
        (void)kv_transfer_poll(member->transfer);
    }
    (void)kv_crew_flush(member->config.crew); /* what is missing is said where orders are taken */
    const uint64_t patience_ns = patience_of(member);
    pthread_mutex_unlock(&member->lock);
    return patience_ns;
}

static void *run(void *user)
{
    kv_member_t *member = user;
    uint64_t patience_ns = 0;
    while (wait_for_wake(member, patience_ns)) {
        patience_ns = poll_all(member);
    }
    return NULL;
}

weft_status_t kv_member_start(kv_member_t *member)
{
    if (pthread_create(&member->thread, NULL, run, member) != 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    member->has_thread = true;
    pthread_setname_np(member->thread, "kv-member");
    return WEFT_OK;
}

static void stop_thread(kv_member_t *member)
{
    if (member->has_thread) {
        pthread_mutex_lock(&member->wake_lock);
        member->is_stopping = true;
        pthread_cond_signal(&member->woken);
        pthread_mutex_unlock(&member->wake_lock);
        pthread_join(member->thread, NULL);
        member->has_thread = false;
    }
}

/* ---- life ------------------------------------------------------------------------------------ */

/* Rank 0 tells the world of blocks. */
static void ignore_stored(void *user, const kv_name_t *name)
{
    (void)user;
    (void)name;
}

static void ignore_removed(void *user, const kv_hash_t *hash)
{
    (void)user;
    (void)hash;
}

/* What goes further down is ordered. */
static void ignore_evicted(void *user, const kv_name_t *name, const void *content)
{
    (void)user;
    (void)name;
    (void)content;
}

static void open_tier(kv_member_t *member, const kv_tier_ops_t *ops, size_t bytes)
{
    const kv_member_config_t *config = &member->config;
    const kv_layout_t *layout = kv_pool_layout(config->pool);
    weft_diag_t diag = {0};
    const kv_tier_config_t tier = {
        .device = config->device,
        .block_tokens = layout->block_tokens,
        .block_bytes = layout->block_bytes[0],
        .budget_bytes = bytes,
        .path = config->disk_path,
        .fingerprint = config->fingerprint,
        .on_stored = ignore_stored,
        .on_removed = ignore_removed,
        .on_evict = ignore_evicted,
        .wake = kv_member_wake,
        .wake_user = member,
    };
    const weft_status_t status =
        bytes == 0 ? WEFT_OK : ops->open(&tier, &diag, &member->tiers[ops->id]);
    if (status < 0) {
        member->tiers[ops->id] = NULL;
        weft_log_warn("no %s tier of KV blocks status=%s: %s", kv_tier_name(ops->id),
                      weft_strerror(status), diag.text);
    }
}

static weft_status_t allocate(kv_member_t *member)
{
    const uint32_t tokens = kv_pool_layout(member->config.pool)->block_tokens;
    pthread_condattr_t monotonic;
    pthread_mutex_init(&member->lock, NULL);
    pthread_mutex_init(&member->wake_lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&member->woken, &monotonic);
    pthread_condattr_destroy(&monotonic);
    member->reads = weft_calloc(KV_TIER_RANKS_MAX_GETS, sizeof(*member->reads), "kv_member.reads");
    member->no_tokens = weft_calloc(tokens, sizeof(*member->no_tokens), "kv_member.tokens");
    return member->reads == NULL || member->no_tokens == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

weft_status_t kv_member_create(const kv_member_config_t *config, weft_diag_t *diag,
                               kv_member_t **member_out)
{
    kv_member_t *member = weft_zalloc(sizeof(*member), "kv_member");
    if (member == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory for this rank's KV blocks");
    }
    member->config = *config;
    const weft_status_t status = allocate(member);
    if (status < 0) {
        kv_member_destroy(member);
        return weft_diag(diag, status, "no memory for this rank's KV blocks");
    }
    open_tier(member, &kv_tier_host, config->host_bytes);
    open_tier(member, &kv_tier_disk, config->disk_bytes);
    *member_out = member;
    return WEFT_OK;
}

void kv_member_destroy(kv_member_t *member)
{
    if (member == NULL) {
        return;
    }
    stop_thread(member);
    kv_transfer_destroy(member->transfer);
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        if (member->tiers[id] != NULL) {
            member->tiers[id]->ops->close(member->tiers[id]);
        }
    }
    weft_buffer_free(&member->incoming);
    weft_free(member->reads);
    weft_free(member->no_tokens);
    pthread_cond_destroy(&member->woken);
    pthread_mutex_destroy(&member->wake_lock);
    pthread_mutex_destroy(&member->lock);
    weft_free(member);
}

void kv_member_set_transfer(kv_member_t *member, kv_transfer_t *transfer)
{
    member->transfer = transfer;
}

weft_status_t kv_member_export(kv_member_t *member, const char *engine_id, weft_buffer_t *out)
{
    weft_status_t status = WEFT_OK;
    pthread_mutex_lock(&member->lock);
    if (member->transfer != NULL) {
        status = kv_transfer_set_engine_id(member->transfer, engine_id);
    }
    if (member->transfer != NULL && status >= 0) {
        status = kv_transfer_export(member->transfer, out);
    }
    pthread_mutex_unlock(&member->lock);
    return status;
}

uint32_t kv_member_tiers(const kv_member_t *member)
{
    uint32_t tiers = 0;
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        tiers |= member->tiers[id] != NULL ? UINT32_C(1) << id : 0;
    }
    return tiers;
}

/* ---- losing and meeting ---------------------------------------------------------------------- */

static void end_reads(kv_member_t *member)
{
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    for (uint32_t i = 0; i < KV_TIER_RANKS_MAX_GETS; i++) {
        read_t *read = &member->reads[i];
        if (read->id != 0 && !read->is_posted) {
            member->n_unposted--;
            member->n_reads--;
            read->id = 0;
        }
    }
    while (member->n_reads > 0) {
        poll_tiers(member);
        nanosleep(&pause, NULL);
    }
}

void kv_member_part(kv_member_t *member)
{
    pthread_mutex_lock(&member->lock);
    kv_crew_part(member->config.crew);
    weft_buffer_clear(&member->incoming);
    if (member->transfer != NULL) {
        kv_transfer_lose_ranks(member->transfer);
    }
    end_reads(member);
    for (kv_tier_id_t id = 0; id < KV_TIER_COUNT; id++) {
        if (member->tiers[id] != NULL) {
            member->tiers[id]->ops->clear(member->tiers[id]);
        }
    }
    pthread_mutex_unlock(&member->lock);
}

weft_status_t kv_member_meet(kv_member_t *member, uint64_t epoch, const void *blob, size_t bytes,
                             weft_diag_t *diag)
{
    pthread_mutex_lock(&member->lock);
    const weft_status_t status = kv_crew_meet(member->config.crew, epoch, blob, bytes, diag);
    pthread_mutex_unlock(&member->lock);
    return status;
}
