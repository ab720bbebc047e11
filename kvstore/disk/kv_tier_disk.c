/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk tier: metadata here, on the engine's thread; bytes, checksums and the journal on
 * kv_disk_worker's. on_evict is not called: nothing is below a disk that could be given its blocks
 * without reading them.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "kvstore/disk/kv_disk_found.h"
#include "kvstore/disk/kv_disk_slots.h"
#include "kvstore/disk/kv_disk_worker.h"
#include "kvstore/disk/kv_slot_file.h"
#include "kvstore/tiers/kv_tier.h"

#define WEFT_LOG_MODULE "kvstore"
#include "base/log.h"

#define STAGING_BYTES   ((size_t)16 << 20)
#define SLOTS_MAX       (UINT32_C(1) << 30)
#define BLOCK_BYTES_MAX ((size_t)1 << 30)
enum { JOBS_MIN = 8, JOBS_MAX = 64 };

typedef struct disk_tier {
    kv_tier_t base;
    kv_tier_config_t config; /* path and fingerprint in it are not kept */
    kv_disk_identity_t identity;
    char *path;
    kv_slot_file_t file;
    kv_journal_t *journal; /* the worker's while it runs */
    kv_disk_slots_t *slots;
    kv_disk_found_t *found; /* not yet announced */
    kv_disk_worker_t *worker;
    weft_queue_t *queue; /* of puts */
    weft_mem_t staging;
    kv_disk_job_t *jobs; /* [n_jobs] */
    int32_t *tokens;     /* [n_jobs * block_tokens] */
    kv_disk_job_t *free_jobs;
    kv_disk_job_t *landed; /* writes that are done and not yet told of */
    kv_disk_job_t *held;   /* a get that ended, for which the last poll had no room */
    uint32_t n_jobs;
    uint32_t n_free_jobs;
    uint64_t next_generation;
    bool is_off; /* and all was forgotten */
    bool is_damage_logged;
    kv_tier_stats_t stats;
} disk_tier_t;

/* ---- jobs ------------------------------------------------------------------------------------- */

static kv_disk_job_t *take_job(disk_tier_t *tier)
{
    kv_disk_job_t *job = tier->free_jobs;
    tier->free_jobs = job->next;
    tier->n_free_jobs--;
    return job;
}

static void free_job(disk_tier_t *tier, kv_disk_job_t *job)
{
    kv_extra_release(job->name.extra);
    job->name.extra = NULL;
    job->next = tier->free_jobs;
    tier->free_jobs = job;
    tier->n_free_jobs++;
}

/* Of the staging buffers some are for gets alone: a request waits for those. */
static bool may_put(const disk_tier_t *tier)
{
    return tier->n_free_jobs > tier->n_jobs / 4;
}

/* ---- open and close --------------------------------------------------------------------------- */

static uint32_t jobs_for(size_t slot_bytes)
{
    const size_t n = STAGING_BYTES / slot_bytes;
    return n < JOBS_MIN ? JOBS_MIN : n > JOBS_MAX ? JOBS_MAX : (uint32_t)n;
}

/* The journal's share is in the budget. */
static weft_status_t count_slots(const kv_tier_config_t *config, weft_diag_t *diag,
                                 uint32_t *n_slots_out)
{
    if (config->block_bytes == 0 || config->block_bytes > BLOCK_BYTES_MAX ||
        config->block_tokens == 0 || config->block_tokens > KV_DISK_TOKENS_MAX) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "%s: blocks of %zu bytes and %u tokens are not for the disk", config->path,
                         config->block_bytes, config->block_tokens);
    }
    const size_t each =
        kv_disk_slot_bytes(config->block_bytes) + kv_journal_bytes_per_slot(config->block_tokens);
    const size_t n = config->budget_bytes / each;
    if (n == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "%s: %zu bytes hold no block: one takes %zu with its header and journal",
                         config->path, config->budget_bytes, each);
    }
    *n_slots_out = n > SLOTS_MAX ? SLOTS_MAX : (uint32_t)n;
    return WEFT_OK;
}

static weft_status_t allocate(disk_tier_t *tier)
{
    const size_t slot_bytes = kv_disk_slot_bytes(tier->identity.block_bytes);
    const uint32_t tokens = tier->identity.block_tokens;
    weft_device_t *device = tier->config.device;
    const uint32_t n = jobs_for(slot_bytes);
    tier->jobs = weft_calloc(n, sizeof(*tier->jobs), "kv_tier_disk.jobs");
    tier->tokens = weft_calloc((size_t)n * tokens, sizeof(int32_t), "kv_tier_disk.tokens");
    if (tier->jobs == NULL || tier->tokens == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status =
        device->ops->alloc(device, n * slot_bytes, WEFT_MEM_HOST, &tier->staging);
    if (status == WEFT_OK) {
        status = device->ops->open_queue(device, &tier->queue);
    }
    if (status < 0) {
        return status;
    }
    tier->n_jobs = n;
    for (uint32_t i = n; i > 0; i--) {
        kv_disk_job_t *job = &tier->jobs[i - 1];
        job->data = (uint8_t *)tier->staging.addr + (i - 1) * slot_bytes;
        job->tokens = tier->tokens + (size_t)(i - 1) * tokens;
        free_job(tier, job);
    }
    return WEFT_OK;
}

/* Finds what is there, and makes room for the rest. */
static weft_status_t open_files(disk_tier_t *tier, uint32_t n_slots, weft_diag_t *diag,
                                kv_journal_found_t *found_out)
{
    const uint64_t bytes = (uint64_t)n_slots * kv_disk_slot_bytes(tier->identity.block_bytes);
    weft_status_t status = kv_slot_file_open(tier->path, diag, &tier->file);
    if (status == WEFT_OK) {
        status = kv_slot_file_check_space(&tier->file, tier->path, bytes, diag);
    }
    if (status < 0) {
        return status;
    }
    const kv_journal_config_t config = {.dir_fd = tier->file.dir_fd,
                                        .path = tier->path,
                                        .identity = tier->identity,
                                        .n_slots = n_slots};
    /* Before the file gets its size: the journal says whether it is ours. */
    status = kv_journal_open(&config, diag, found_out, &tier->journal);
    return status < 0 ? status : kv_slot_file_reserve(&tier->file, tier->path, bytes, diag);
}

static weft_status_t start_worker(disk_tier_t *tier, const kv_io_ops_t **io_out)
{
    const kv_io_ops_t *wanted = tier->config.io;
    kv_disk_worker_config_t config = {
        .fd = tier->file.fd,
        .path = tier->path,
        .identity = tier->identity,
        .journal = tier->journal,
        .device = tier->config.device,
        .io = wanted != NULL         ? wanted
              : tier->file.is_direct ? &kv_io_uring
                                     : &kv_io_pread,
        .max_jobs = tier->n_jobs,
        .wake = tier->config.wake,
        .user = tier->config.wake_user,
    };
    weft_status_t status = kv_disk_worker_start(&config, &tier->worker);
    if (status == WEFT_ERR_UNSUPPORTED && wanted == NULL) {
        config.io = &kv_io_pread;
        status = kv_disk_worker_start(&config, &tier->worker);
    }
    *io_out = config.io;
    return status;
}

static void log_open(const disk_tier_t *tier, const kv_journal_found_t *found,
                     const kv_io_ops_t *io)
{
    weft_log_info("disk tier: path=%s blocks=%u found=%u io=%s direct=%s%s", tier->path,
                  kv_disk_slots_count(tier->slots), kv_disk_slots_stored(tier->slots), io->name,
                  tier->file.is_direct ? "yes" : "no",
                  io == &kv_io_pread && tier->config.io == NULL
                      ? " (io_uring with O_DIRECT is refused here; this is slower)"
                      : "");
    if (found->torn > 0 || found->unread_bytes > 0) {
        weft_log_warn("disk tier: what was torn or damaged is dropped: path=%s blocks=%u "
                      "journal_bytes=%llu",
                      tier->path, found->torn, (unsigned long long)found->unread_bytes);
    }
}

static weft_status_t open_all(disk_tier_t *tier, weft_diag_t *diag)
{
    uint32_t n_slots = 0;
    kv_journal_found_t found = {0};
    const kv_io_ops_t *io = NULL;
    weft_status_t status = count_slots(&tier->config, diag, &n_slots);
    if (status == WEFT_OK) {
        status = open_files(tier, n_slots, diag, &found);
    }
    if (status == WEFT_OK) {
        status = allocate(tier);
    }
    if (status == WEFT_OK) {
        status = kv_disk_slots_create(n_slots, &tier->slots);
    }
    if (status == WEFT_OK) {
        status = kv_disk_found_create(tier->journal, found.live, tier->identity.block_tokens,
                                      tier->slots, &tier->found);
    }
    if (status == WEFT_OK) {
        status = start_worker(tier, &io);
    }
    if (status == WEFT_OK) {
        tier->next_generation = found.next_generation;
        tier->stats.capacity_blocks = n_slots;
        log_open(tier, &found, io);
    }
    return status;
}

/* What is in flight ends, and what it would report is dropped. */
static void disk_close(kv_tier_t *base)
{
    if (base == NULL) {
        return;
    }
    disk_tier_t *tier = (disk_tier_t *)base;
    kv_disk_worker_stop(tier->worker);
    kv_journal_close(tier->journal);
    kv_slot_file_close(&tier->file);
    for (uint32_t i = 0; i < tier->n_jobs; i++) {
        kv_extra_release(tier->jobs[i].name.extra);
    }
    kv_disk_found_destroy(tier->found);
    kv_disk_slots_destroy(tier->slots);
    if (tier->queue != NULL) {
        tier->config.device->ops->close_queue(tier->queue);
    }
    if (tier->staging.addr != NULL) {
        tier->config.device->ops->free(tier->config.device, &tier->staging);
    }
    weft_free(tier->tokens);
    weft_free(tier->jobs);
    weft_free(tier->path);
    weft_free(tier);
}

static weft_status_t disk_open(const kv_tier_config_t *config, weft_diag_t *diag,
                               kv_tier_t **tier_out)
{
    disk_tier_t *tier = weft_zalloc(sizeof(*tier), "kv_tier_disk.tier");
    if (tier == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    tier->base.ops = &kv_tier_disk;
    tier->config = *config;
    tier->file = (kv_slot_file_t){.dir_fd = -1, .fd = -1};
    tier->identity.block_tokens = config->block_tokens;
    tier->identity.block_bytes = config->block_bytes;
    memcpy(tier->identity.fingerprint, config->fingerprint, sizeof(tier->identity.fingerprint));
    tier->path = weft_strdup(config->path, "kv_tier_disk.path");
    const weft_status_t status = tier->path == NULL ? WEFT_ERR_NO_MEMORY : open_all(tier, diag);
    if (status < 0) {
        disk_close(&tier->base);
        return status;
    }
    *tier_out = &tier->base;
    return WEFT_OK;
}

/* ---- put and get ------------------------------------------------------------------------------ */

static void say_stored(disk_tier_t *tier, const kv_name_t *name)
{
    if (tier->config.on_stored != NULL) {
        tier->config.on_stored(tier->config.user, name);
    }
}

/* Forgets slot, which is stored, and says so. */
static void remove_slot(disk_tier_t *tier, uint32_t slot)
{
    const kv_hash_t hash = *kv_disk_slots_hash(tier->slots, slot);
    kv_disk_slots_forget(tier->slots, slot);
    if (tier->config.on_removed != NULL) {
        tier->config.on_removed(tier->config.user, &hash);
    }
}

/* Before anything else changes: what is found is as it was at open. */
static void announce_found(disk_tier_t *tier)
{
    if (tier->found != NULL) {
        if (tier->config.on_stored != NULL) {
            kv_disk_found_announce(tier->found, tier->slots, tier->config.on_stored,
                                   tier->config.user);
        }
        kv_disk_found_destroy(tier->found);
        tier->found = NULL;
    }
}

static bool is_off(const disk_tier_t *tier)
{
    return kv_disk_worker_is_off(tier->worker);
}

static bool disk_has(const kv_tier_t *base, const kv_hash_t *hash)
{
    const disk_tier_t *tier = (const disk_tier_t *)base;
    const uint32_t slot = kv_disk_slots_find(tier->slots, hash);
    return slot != KV_DISK_SLOT_NONE && kv_disk_slots_is_stored(tier->slots, slot) && !is_off(tier);
}

static void disk_touch(kv_tier_t *base, const kv_hash_t *hash)
{
    disk_tier_t *tier = (disk_tier_t *)base;
    const uint32_t slot = kv_disk_slots_find(tier->slots, hash);
    if (slot != KV_DISK_SLOT_NONE && kv_disk_slots_is_stored(tier->slots, slot)) {
        kv_disk_slots_touch(tier->slots, slot);
    }
}

/* A free slot, if need be at the expense of the oldest block; NONE when all are busy. */
static uint32_t make_room(disk_tier_t *tier)
{
    const uint32_t slot = kv_disk_slots_free_one(tier->slots);
    const uint32_t oldest = slot == KV_DISK_SLOT_NONE ? kv_disk_slots_oldest(tier->slots) : slot;
    if (slot == KV_DISK_SLOT_NONE && oldest != KV_DISK_SLOT_NONE) {
        announce_found(tier);
        remove_slot(tier, oldest);
        tier->stats.evictions++;
    }
    return oldest;
}

static void post_write(disk_tier_t *tier, kv_disk_job_t *job, const kv_name_t *name, uint32_t slot)
{
    memcpy(job->tokens, name->tokens, tier->identity.block_tokens * sizeof(int32_t));
    job->name = *name;
    job->name.tokens = job->tokens;
    kv_extra_acquire(name->extra);
    job->slot = (kv_disk_slot_name_t){
        .slot = slot, .generation = tier->next_generation++, .hash = name->hash};
    job->op.is_write = true;
    kv_disk_slots_write(tier->slots, slot, &name->hash, job->slot.generation);
    kv_disk_worker_post(tier->worker, job);
}

static weft_status_t put_new(disk_tier_t *tier, const kv_name_t *name, const void *content)
{
    if (is_off(tier)) {
        return WEFT_ERR_IO;
    }
    if (!may_put(tier)) {
        return WEFT_ERR_QUEUE_FULL;
    }
    kv_disk_job_t *job = take_job(tier);
    const weft_device_ops_t *device = tier->config.device->ops;
    device->copy(tier->queue, job->data + KV_DISK_PAGE_BYTES, content, tier->identity.block_bytes);
    const weft_status_t status = device->sync(tier->queue);
    const uint32_t slot = status < 0 ? KV_DISK_SLOT_NONE : make_room(tier);
    if (slot == KV_DISK_SLOT_NONE) {
        free_job(tier, job);
        return status < 0 ? status : WEFT_ERR_QUEUE_FULL;
    }
    post_write(tier, job, name, slot);
    return WEFT_OK;
}

static weft_status_t disk_put(kv_tier_t *base, const kv_name_t *name, const void *content)
{
    disk_tier_t *tier = (disk_tier_t *)base;
    if (kv_disk_slots_find(tier->slots, &name->hash) != KV_DISK_SLOT_NONE && !is_off(tier)) {
        disk_touch(base, &name->hash);
        return WEFT_OK;
    }
    const weft_status_t status = put_new(tier, name, content);
    tier->stats.puts += status == WEFT_OK;
    tier->stats.puts_refused += status < 0;
    return status;
}

static weft_status_t disk_get(kv_tier_t *base, const kv_hash_t *hash, void *dst, void *tag)
{
    disk_tier_t *tier = (disk_tier_t *)base;
    if (!disk_has(base, hash)) {
        return WEFT_ERR_NOT_FOUND;
    }
    if (tier->n_free_jobs == 0) {
        return WEFT_ERR_QUEUE_FULL;
    }
    const uint32_t slot = kv_disk_slots_find(tier->slots, hash);
    kv_disk_job_t *job = take_job(tier);
    job->slot = (kv_disk_slot_name_t){
        .slot = slot,
        .generation = kv_disk_slots_generation(tier->slots, slot),
        .hash = *hash,
    };
    job->op.is_write = false;
    job->dst = dst;
    job->tag = tag;
    job->posted_ns = weft_clock_ns();
    kv_disk_slots_touch(tier->slots, slot);
    kv_disk_slots_pin(tier->slots, slot);
    tier->stats.gets++;
    kv_disk_worker_post(tier->worker, job);
    return WEFT_PENDING;
}

/* ---- poll ------------------------------------------------------------------------------------- */

/* A slot that a job is out for keeps its name, or has lost it: it is nobody else's. */
static bool is_named(const disk_tier_t *tier, uint32_t slot)
{
    return kv_disk_slots_hash(tier->slots, slot) != NULL;
}

static void end_job(disk_tier_t *tier, kv_disk_job_t *job)
{
    kv_disk_slots_unpin(tier->slots, job->slot.slot);
    free_job(tier, job);
}

static void end_write(disk_tier_t *tier, kv_disk_job_t *job)
{
    const uint32_t slot = job->slot.slot;
    if (job->status == WEFT_OK) {
        tier->stats.written_bytes += tier->identity.block_bytes;
    }
    if (is_named(tier, slot) && job->status == WEFT_OK) {
        kv_disk_slots_finish(tier->slots, slot);
        say_stored(tier, &job->name);
    } else if (is_named(tier, slot)) {
        kv_disk_slots_forget(tier->slots, slot);
    }
    end_job(tier, job);
}

static bool is_parent_being_written(const disk_tier_t *tier, const kv_disk_job_t *job)
{
    const uint32_t parent =
        job->name.is_first ? KV_DISK_SLOT_NONE : kv_disk_slots_find(tier->slots, &job->name.parent);
    return parent != KV_DISK_SLOT_NONE && !kv_disk_slots_is_stored(tier->slots, parent);
}

/*
 * Chains come tail first, and are told of head first: a write that has landed waits, its block not
 * yet there, until its parent's has. Its parent has a job too, so they are few and all end.
 */
static void end_writes(disk_tier_t *tier)
{
    bool has_ended = true;
    while (has_ended) {
        has_ended = false;
        for (kv_disk_job_t **link = &tier->landed; *link != NULL;) {
            kv_disk_job_t *job = *link;
            if (is_named(tier, job->slot.slot) && job->status == WEFT_OK &&
                is_parent_being_written(tier, job)) {
                link = &job->next;
                continue;
            }
            *link = job->next;
            end_write(tier, job);
            has_ended = true;
        }
    }
}

static void drop_damaged(disk_tier_t *tier, uint32_t slot)
{
    if (!is_named(tier, slot)) {
        return;
    }
    tier->stats.damaged++;
    remove_slot(tier, slot);
    if (!tier->is_damage_logged) {
        tier->is_damage_logged = true;
        weft_log_warn("disk tier: a block was not what was put, dropped; the next ones are only "
                      "counted: path=%s slot=%u",
                      tier->path, slot);
    }
}

static void end_read(disk_tier_t *tier, kv_disk_job_t *job, kv_tier_done_t *done)
{
    if (job->status == WEFT_OK) {
        tier->stats.read_bytes += tier->identity.block_bytes;
        tier->stats.read_ns += weft_clock_ns() - job->posted_ns;
    } else {
        tier->stats.gets_failed++;
    }
    if (job->status == WEFT_ERR_MALFORMED) {
        drop_damaged(tier, job->slot.slot);
    }
    *done = (kv_tier_done_t){.tag = job->tag, .status = job->status, .read_ns = job->busy_ns};
}

static void forget_found(disk_tier_t *tier)
{
    kv_disk_found_destroy(tier->found);
    tier->found = NULL;
}

/* The worker said why. */
static void go_absent(disk_tier_t *tier)
{
    announce_found(tier); /* so that what is removed now was stored */
    uint32_t slot;
    while ((slot = kv_disk_slots_any(tier->slots)) != KV_DISK_SLOT_NONE) {
        remove_slot(tier, slot);
    }
    tier->is_off = true;
}

static kv_disk_job_t *next_ended(disk_tier_t *tier)
{
    kv_disk_job_t *held = tier->held;
    tier->held = NULL;
    return held != NULL ? held : kv_disk_worker_take(tier->worker);
}

static uint32_t disk_poll(kv_tier_t *base, kv_tier_done_t *done, uint32_t max)
{
    disk_tier_t *tier = (disk_tier_t *)base;
    kv_disk_job_t *job;
    uint32_t n = 0;
    announce_found(tier);
    while ((job = next_ended(tier)) != NULL) {
        if (!job->op.is_write && n == max) {
            tier->held = job;
            break;
        }
        if (job->op.is_write) {
            job->next = tier->landed;
            tier->landed = job;
        } else {
            end_read(tier, job, &done[n++]);
            end_job(tier, job);
        }
    }
    end_writes(tier);
    if (is_off(tier) && !tier->is_off) {
        go_absent(tier);
    }
    return n;
}

static void disk_clear(kv_tier_t *base)
{
    disk_tier_t *tier = (disk_tier_t *)base;
    forget_found(tier);
    kv_disk_slots_forget_all(tier->slots);
    kv_disk_worker_clear(tier->worker, tier->next_generation);
}

static kv_tier_stats_t disk_stats(const kv_tier_t *base)
{
    const disk_tier_t *tier = (const disk_tier_t *)base;
    kv_tier_stats_t stats = tier->stats;
    stats.blocks = kv_disk_slots_stored(tier->slots);
    stats.in_flight = tier->n_jobs - tier->n_free_jobs;
    return stats;
}

const kv_tier_ops_t kv_tier_disk = {
    .id = KV_TIER_disk,
    .open = disk_open,
    .close = disk_close,
    .has = disk_has,
    .touch = disk_touch,
    .put = disk_put,
    .get = disk_get,
    .poll = disk_poll,
    .clear = disk_clear,
    .stats = disk_stats,
};
