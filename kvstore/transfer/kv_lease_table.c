/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_lease_table.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"

#define MIN_CAPACITY 64

struct kv_lease_table {
    kv_lease_table_config_t config;
    kv_lease_t *leases; /* [n_slots] */
    kv_lease_t *free;
    kv_lease_t *live;            /* a list of those that are open or held */
    kv_lease_t **by_transfer_id; /* [n_buckets] */
    kv_lease_t **by_request_id;
    uint32_t n_buckets; /* a power of two */
    uint64_t next_epoch;
    uint64_t earliest_ns; /* no lease expires before */
    kv_lease_stats_t stats;
};

/* ---- ids ------------------------------------------------------------------------------------- */

/* FNV-1a; ids come from our own engine and from proxies that are trusted with requests. */
static uint32_t bucket_of(const kv_lease_table_t *table, const char *id, size_t length)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < length; i++) {
        hash = (hash ^ (uint8_t)id[i]) * UINT64_C(0x100000001b3);
    }
    return (uint32_t)(hash ^ hash >> 32) & (table->n_buckets - 1);
}

static bool is_id(const char *own, const char *id, size_t length)
{
    return own != NULL && strlen(own) == length && memcmp(own, id, length) == 0;
}

static kv_lease_t *find_transfer(const kv_lease_table_t *table, const char *id, size_t length)
{
    kv_lease_t *lease = table->by_transfer_id[bucket_of(table, id, length)];
    while (lease != NULL && !is_id(lease->transfer_id, id, length)) {
        lease = lease->next_of_transfer_id;
    }
    return lease;
}

static kv_lease_t *find_request(const kv_lease_table_t *table, const char *id, size_t length)
{
    kv_lease_t *lease = table->by_request_id[bucket_of(table, id, length)];
    while (lease != NULL && !is_id(lease->request_id, id, length)) {
        lease = lease->next_of_request_id;
    }
    return lease;
}

kv_lease_t *kv_lease_table_find(const kv_lease_table_t *table, const char *id, size_t length)
{
    kv_lease_t *lease = find_request(table, id, length);
    return lease != NULL ? lease : find_transfer(table, id, length);
}

static void link_transfer_id(kv_lease_t *lease)
{
    kv_lease_table_t *table = lease->table;
    kv_lease_t **head =
        &table->by_transfer_id[bucket_of(table, lease->transfer_id, strlen(lease->transfer_id))];
    lease->next_of_transfer_id = *head;
    *head = lease;
}

static void link_request_id(kv_lease_t *lease)
{
    kv_lease_table_t *table = lease->table;
    kv_lease_t **head =
        &table->by_request_id[bucket_of(table, lease->request_id, strlen(lease->request_id))];
    lease->next_of_request_id = *head;
    *head = lease;
}

static void unlink_transfer_id(kv_lease_t *lease)
{
    kv_lease_table_t *table = lease->table;
    if (lease->transfer_id == NULL) {
        return;
    }
    kv_lease_t **at =
        &table->by_transfer_id[bucket_of(table, lease->transfer_id, strlen(lease->transfer_id))];
    while (*at != lease) {
        at = &(*at)->next_of_transfer_id;
    }
    *at = lease->next_of_transfer_id;
}

static void unlink_request_id(kv_lease_t *lease)
{
    kv_lease_table_t *table = lease->table;
    if (lease->request_id == NULL) {
        return;
    }
    kv_lease_t **at =
        &table->by_request_id[bucket_of(table, lease->request_id, strlen(lease->request_id))];
    while (*at != lease) {
        at = &(*at)->next_of_request_id;
    }
    *at = lease->next_of_request_id;
}

/* ---- epochs ---------------------------------------------------------------------------------- */

/*
 * Sequentially consistent, so that it is there before the pool gives a block to somebody who writes
 * to it: a reader who saw any of that writing sees the new epoch behind it.
 */
static void change_epoch(kv_lease_t *lease)
{
    kv_lease_table_t *table = lease->table;
    _Atomic uint64_t *word = (_Atomic uint64_t *)&table->config.words[lease->ref.slot];
    lease->ref.epoch = table->next_epoch;
    table->next_epoch =
        table->next_epoch == (uint64_t)KV_LEASE_MAX_EPOCH ? 1 : table->next_epoch + 1;
    atomic_store(word, lease->ref.epoch);
    atomic_thread_fence(memory_order_seq_cst);
}

/* ---- the table ------------------------------------------------------------------------------- */

static weft_status_t alloc_table(kv_lease_table_t *table)
{
    const uint32_t n = table->config.n_slots;
    table->n_buckets = 16;
    while (table->n_buckets < n) {
        table->n_buckets *= 2;
    }
    table->leases = weft_calloc(n, sizeof(*table->leases), "kv_lease_table.leases");
    table->by_transfer_id =
        weft_calloc(table->n_buckets, sizeof(kv_lease_t *), "kv_lease_table.ids");
    table->by_request_id =
        weft_calloc(table->n_buckets, sizeof(kv_lease_t *), "kv_lease_table.ids");
    if (table->leases == NULL || table->by_transfer_id == NULL || table->by_request_id == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = n; i > 0; i--) {
        table->leases[i - 1] =
            (kv_lease_t){.table = table, .ref = {.slot = i - 1}, .next = table->free};
        table->free = &table->leases[i - 1];
    }
    return WEFT_OK;
}

weft_status_t kv_lease_table_create(const kv_lease_table_config_t *config,
                                    kv_lease_table_t **table_out)
{
    kv_lease_table_t *table = weft_zalloc(sizeof(*table), "kv_lease_table");
    if (table == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    table->config = *config;
    table->earliest_ns = UINT64_MAX;
    uint64_t start = 0;
    weft_status_t status =
        getrandom(&start, sizeof(start), 0) == sizeof(start) ? WEFT_OK : WEFT_ERR_IO;
    table->next_epoch = start % (uint64_t)(KV_LEASE_MAX_EPOCH / 2) + 1;
    if (status >= 0) {
        status = alloc_table(table);
    }
    if (status < 0) {
        kv_lease_table_destroy(table);
        return status;
    }
    *table_out = table;
    return WEFT_OK;
}

void kv_lease_table_destroy(kv_lease_table_t *table)
{
    if (table == NULL) {
        return;
    }
    while (table->live != NULL) {
        kv_lease_table_drop(table->live);
    }
    for (uint32_t i = 0; table->leases != NULL && i < table->config.n_slots; i++) {
        weft_free(table->leases[i].blocks);
    }
    weft_free(table->leases);
    weft_free(table->by_transfer_id);
    weft_free(table->by_request_id);
    weft_free(table);
}

/* ---- one lease ------------------------------------------------------------------------------- */

static weft_status_t take_slot(kv_lease_table_t *table, kv_lease_t **lease_out)
{
    kv_lease_t *lease = table->free;
    if (lease == NULL) {
        return WEFT_ERR_QUEUE_FULL;
    }
    table->free = lease->next;
    lease->state = KV_LEASE_OPEN;
    lease->tokens = 0;
    lease->n_blocks = 0;
    lease->readers = 0;
    lease->readers_done = 0;
    lease->expires_ns = UINT64_MAX;
    lease->user = NULL;
    lease->id = 0;
    lease->prev = NULL;
    lease->next = table->live;
    if (table->live != NULL) {
        table->live->prev = lease;
    }
    table->live = lease;
    table->stats.open_now++;
    change_epoch(lease);
    *lease_out = lease;
    return WEFT_OK;
}

static void give_slot(kv_lease_t *lease)
{
    kv_lease_table_t *table = lease->table;
    if (lease->prev != NULL) {
        lease->prev->next = lease->next;
    } else {
        table->live = lease->next;
    }
    if (lease->next != NULL) {
        lease->next->prev = lease->prev;
    }
    lease->next = table->free;
    table->free = lease;
}

static void end(kv_lease_t *lease)
{
    kv_lease_table_t *table = lease->table;
    if (table->config.on_gone != NULL) {
        table->config.on_gone(table->config.user, lease);
    }
    change_epoch(lease);
    if (lease->state == KV_LEASE_HELD) {
        kv_pool_release(table->config.pool, lease->blocks, lease->n_blocks);
        table->stats.held_now--;
        table->stats.blocks_now -= lease->n_blocks;
    } else {
        table->stats.open_now--;
    }
    unlink_transfer_id(lease);
    unlink_request_id(lease);
    weft_free(lease->transfer_id);
    weft_free(lease->request_id);
    lease->transfer_id = NULL;
    lease->request_id = NULL;
    give_slot(lease);
}

weft_status_t kv_lease_table_open(kv_lease_table_t *table, const char *transfer_id,
                                  kv_lease_t **lease_out)
{
    kv_lease_t *lease;
    if (find_transfer(table, transfer_id, strlen(transfer_id)) != NULL) {
        return WEFT_ERR_EXISTS;
    }
    char *id = weft_strdup(transfer_id, "kv_lease_table.id");
    if (id == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const weft_status_t status = take_slot(table, &lease);
    if (status < 0) {
        weft_free(id);
        return status;
    }
    lease->transfer_id = id;
    link_transfer_id(lease);
    *lease_out = lease;
    return WEFT_OK;
}

static weft_status_t reserve(kv_lease_t *lease, uint32_t n)
{
    uint32_t capacity = lease->capacity < MIN_CAPACITY ? MIN_CAPACITY : lease->capacity;
    if (n <= lease->capacity) {
        return WEFT_OK;
    }
    while (capacity < n) {
        capacity *= 2;
    }
    kv_block_id_t *blocks =
        weft_realloc(lease->blocks, capacity * sizeof(*blocks), "kv_lease_table.blocks");
    if (blocks == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    lease->blocks = blocks;
    lease->capacity = capacity;
    return WEFT_OK;
}

weft_status_t kv_lease_table_fill(kv_lease_t *lease, const kv_block_id_t *blocks, uint32_t n,
                                  uint32_t n_tokens)
{
    if (n < lease->n_blocks || n_tokens < lease->tokens) {
        return WEFT_ERR_INVALID;
    }
    const weft_status_t status = reserve(lease, n);
    if (status < 0) {
        return status;
    }
    for (uint32_t i = 0; i < n; i++) {
        assert(i >= lease->n_blocks || lease->blocks[i] == blocks[i]);
        lease->blocks[i] = blocks[i];
    }
    lease->n_blocks = n;
    lease->tokens = n_tokens;
    return WEFT_OK;
}

void kv_lease_table_retract(kv_lease_t *lease)
{
    assert(lease->state == KV_LEASE_OPEN);
    change_epoch(lease);
    lease->n_blocks = 0;
    lease->tokens = 0;
}

void kv_lease_table_drop(kv_lease_t *lease)
{
    if (lease != NULL) {
        end(lease);
    }
}

static bool is_read_by_all(const kv_lease_t *lease)
{
    return lease->readers > 0 && lease->readers_done >= lease->readers;
}

static weft_status_t make_held(kv_lease_t *lease, const char *request_id,
                               const kv_block_id_t *blocks, uint32_t n, uint32_t n_tokens)
{
    kv_lease_table_t *table = lease->table;
    if (find_request(table, request_id, strlen(request_id)) != NULL) {
        return WEFT_ERR_EXISTS;
    }
    const weft_status_t status = kv_lease_table_fill(lease, blocks, n, n_tokens);
    if (status < 0) {
        return status;
    }
    lease->request_id = weft_strdup(request_id, "kv_lease_table.id");
    if (lease->request_id == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    link_request_id(lease);
    kv_pool_acquire(table->config.pool, lease->blocks, n);
    lease->state = KV_LEASE_HELD;
    table->stats.open_now--;
    table->stats.held_now++;
    table->stats.held++;
    table->stats.blocks_now += n;
    return WEFT_OK;
}

weft_status_t kv_lease_table_hold(kv_lease_table_t *table, const char *request_id,
                                  const kv_block_id_t *blocks, uint32_t n, uint32_t n_tokens,
                                  uint64_t now_ns, kv_lease_t **lease_io)
{
    kv_lease_t *lease = *lease_io;
    *lease_io = NULL;
    weft_status_t status = lease == NULL ? take_slot(table, &lease) : WEFT_OK;
    if (status < 0) {
        return status;
    }
    if (is_read_by_all(lease)) {
        table->stats.released++;
        end(lease);
        return WEFT_OK;
    }
    status = make_held(lease, request_id, blocks, n, n_tokens);
    if (status < 0) {
        end(lease);
        return status;
    }
    lease->expires_ns = now_ns + table->config.lease_ns;
    table->earliest_ns =
        lease->expires_ns < table->earliest_ns ? lease->expires_ns : table->earliest_ns;
    *lease_io = lease;
    return WEFT_OK;
}

/* ---- what readers say, and time -------------------------------------------------------------- */

bool kv_lease_table_read(kv_lease_table_t *table, const char *id, size_t length, uint32_t readers)
{
    kv_lease_t *lease = kv_lease_table_find(table, id, length);
    if (lease == NULL) {
        table->stats.late++;
        return false;
    }
    lease->readers_done++;
    lease->readers = readers;
    if (lease->state == KV_LEASE_HELD && is_read_by_all(lease)) {
        table->stats.released++;
        end(lease);
    }
    return true;
}

void kv_lease_table_heartbeat(kv_lease_table_t *table, const char *id, size_t length,
                              uint64_t now_ns)
{
    kv_lease_t *lease = kv_lease_table_find(table, id, length);
    table->stats.heartbeats++;
    if (lease == NULL || lease->state != KV_LEASE_HELD) {
        return;
    }
    const uint64_t until = now_ns + table->config.lease_ns / 3 * 2;
    if (until > lease->expires_ns) {
        lease->expires_ns = until;
    }
}

uint32_t kv_lease_table_expire(kv_lease_table_t *table, uint64_t now_ns)
{
    uint64_t earliest = UINT64_MAX;
    uint32_t n = 0;
    kv_lease_t *next;
    if (now_ns < table->earliest_ns) {
        return 0;
    }
    for (kv_lease_t *lease = table->live; lease != NULL; lease = next) {
        next = lease->next;
        if (lease->expires_ns <= now_ns) {
            table->stats.expired++;
            end(lease);
            n++;
        } else {
            earliest = lease->expires_ns < earliest ? lease->expires_ns : earliest;
        }
    }
    table->earliest_ns = earliest;
    return n;
}

uint64_t kv_lease_table_next_expiry(const kv_lease_table_t *table)
{
    return table->earliest_ns;
}

kv_lease_t *kv_lease_table_first(const kv_lease_table_t *table)
{
    return table->live;
}

void *kv_lease_table_user(const kv_lease_table_t *table)
{
    return table->config.user;
}

kv_lease_stats_t kv_lease_table_stats(const kv_lease_table_t *table)
{
    return table->stats;
}

void kv_lease_table_count(const kv_lease_table_t *table, uint32_t *users)
{
    for (const kv_lease_t *lease = table->live; lease != NULL; lease = lease->next) {
        for (uint32_t i = 0; lease->state == KV_LEASE_HELD && i < lease->n_blocks; i++) {
            users[lease->blocks[i]]++;
        }
    }
}
