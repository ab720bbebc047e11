/* SPDX-License-Identifier: Apache-2.0 */
/* The parts with content: a tier below the device, driven through kv_tier_ops as the store does. */
#include <errno.h>
#include <semaphore.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/compiler.h"
#include "cli/bench/bench_folder.h"
#include "cli/bench/bench_kv_parts.h"
#include "cli/bench/bench_random.h"
#include "kvstore/tiers/kv_tier.h"

#define DEPTH       32 /* reads in flight, each into a block of its own */
#define DONE_MAX    32
#define LATENCIES   200                   /* reads one by one */
#define WAIT_NS     (10 * WEFT_NS_PER_MS) /* of a wait for news, so that a lost one only delays */
#define STUCK_TRIES 3000                  /* waits without news: 30 s */

/* What a figure is called, tier by tier: literals, as bench_kv_note wants them. */
typedef struct names {
    const char *put;
    const char *put_p50;
    const char *put_p99;
    const char *get;
    const char *get_p50;
    const char *get_p99;
} names_t;

#define NAMES(tier)                                                                                \
    {tier " put", tier " put call p50",    tier " put call p99",                                   \
     tier " get", tier " get latency p50", tier " get latency p99"}

typedef struct rig {
    bench_kv_bench_t *bench;
    const kv_tier_ops_t *ops;
    kv_tier_t *tier;
    weft_mem_t memory; /* [DEPTH] blocks of the device */
    uint32_t n_blocks;
    int32_t *tokens; /* [block_tokens] */
    uint32_t n_stored;
    uint32_t n_read;
    uint32_t free_slots[DEPTH]; /* blocks of memory that no read writes to */
    uint32_t n_free_slots;
    sem_t news;
    uint32_t n_waits; /* since something happened */
    char folder[BENCH_FOLDER_BYTES];
} rig_t;

/* ---- what the tier calls --------------------------------------------------------------------- */

static void on_stored(void *user, const kv_name_t *name)
{
    rig_t *rig = user;
    (void)name;
    rig->n_stored++;
    rig->n_waits = 0;
}

static void on_removed(void *user, const kv_hash_t *hash)
{
    (void)user;
    (void)hash;
}

static void on_evict(void *user, const kv_name_t *name, const void *content)
{
    (void)user;
    (void)name;
    (void)content;
}

static void wake(void *user)
{
    rig_t *rig = user;
    sem_post(&rig->news);
}

/* ---- making ---------------------------------------------------------------------------------- */

static void *block_at(const rig_t *rig, uint32_t slot)
{
    return (char *)rig->memory.addr + slot * rig->bench->options->block_bytes;
}

/* Through a queue: the device's memory need not be ours to write. */
static weft_status_t fill_memory(const rig_t *rig)
{
    weft_device_t *device = rig->bench->device;
    const size_t bytes = rig->bench->options->block_bytes;
    bench_random_t random = {.state = rig->bench->seed};
    weft_queue_t *queue = NULL;
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    uint8_t *content = weft_alloc(bytes + sizeof(uint64_t), "bench_kv.content");
    if (content == NULL || device->ops->open_queue(device, &queue) < 0) {
        goto cleanup;
    }
    status = WEFT_OK;
    for (uint32_t slot = 0; status >= 0 && slot < DEPTH; slot++) {
        for (size_t at = 0; at < bytes; at += sizeof(uint64_t)) {
            const uint64_t word = bench_random_next(&random);
            memcpy(content + at, &word, sizeof(word));
        }
        device->ops->copy(queue, block_at(rig, slot), content, bytes);
        status = device->ops->sync(queue);
    }

cleanup:
    if (queue != NULL) {
        device->ops->close_queue(queue);
    }
    weft_free(content);
    return status;
}

static void rig_fini(rig_t *rig)
{
    weft_device_t *device = rig->bench->device;
    if (rig->tier != NULL) {
        rig->ops->close(rig->tier);
    }
    if (rig->memory.addr != NULL) {
        device->ops->free(device, &rig->memory);
    }
    weft_free(rig->tokens);
    sem_destroy(&rig->news);
    bench_folder_remove(rig->folder);
}

static weft_status_t open_tier(rig_t *rig, weft_diag_t *diag)
{
    static const uint8_t fingerprint[KV_HASH_BYTES] = {0};
    const bench_kv_options_t *options = rig->bench->options;
    const kv_tier_config_t config = {
        .device = rig->bench->device,
        .block_tokens = rig->bench->block_tokens,
        .block_bytes = options->block_bytes,
        .budget_bytes = options->tier_bytes,
        .path = rig->folder,
        .fingerprint = fingerprint,
        .on_stored = on_stored,
        .on_removed = on_removed,
        .on_evict = on_evict,
        .user = rig,
        .wake = wake,
        .wake_user = rig,
    };
    const weft_status_t status = rig->ops->open(&config, diag, &rig->tier);
    if (status < 0) {
        return status;
    }
    rig->n_blocks = (uint32_t)rig->ops->stats(rig->tier).capacity_blocks;
    return WEFT_OK;
}

static weft_status_t rig_init(rig_t *rig, weft_diag_t *diag)
{
    weft_device_t *device = rig->bench->device;
    weft_status_t status = WEFT_OK;
    sem_init(&rig->news, 0, 0);
    for (uint32_t slot = 0; slot < DEPTH; slot++) {
        rig->free_slots[rig->n_free_slots++] = slot;
    }
    if (rig->ops->id == KV_TIER_disk) {
        status = bench_folder_create(rig->bench->options->disk_path, diag, rig->folder);
    }
    if (status < 0) {
        return status;
    }
    rig->tokens = weft_calloc(rig->bench->block_tokens, sizeof(int32_t), "bench_kv.tokens");
    status =
        rig->tokens == NULL
            ? WEFT_ERR_NO_MEMORY
            : device->ops->alloc(device, DEPTH * rig->bench->options->block_bytes, 0, &rig->memory);
    if (status >= 0) {
        status = fill_memory(rig);
    }
    return status < 0 ? weft_diag(diag, status, "no memory for %d blocks", DEPTH)
                      : open_tier(rig, diag);
}

/* ---- moving on ------------------------------------------------------------------------------- */

/* What the tier has done; a read's tag is where it writes to. */
static weft_status_t poll(rig_t *rig)
{
    kv_tier_done_t done[DONE_MAX];
    weft_status_t status = WEFT_OK;
    const uint32_t n = rig->ops->poll(rig->tier, done, DONE_MAX);
    for (uint32_t i = 0; i < n; i++) {
        const size_t offset = (size_t)((char *)done[i].tag - (char *)rig->memory.addr);
        rig->free_slots[rig->n_free_slots++] =
            (uint32_t)(offset / rig->bench->options->block_bytes);
        rig->n_read++;
        rig->n_waits = 0;
        status = done[i].status < 0 ? done[i].status : status;
    }
    return status;
}

static weft_status_t wait_for_news(rig_t *rig)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    const uint64_t ns = (uint64_t)until.tv_nsec + WAIT_NS;
    until.tv_sec += (time_t)(ns / WEFT_NS_PER_SECOND);
    until.tv_nsec = (long)(ns % WEFT_NS_PER_SECOND);
    while (sem_timedwait(&rig->news, &until) < 0 && errno == EINTR) {
    }
    return ++rig->n_waits > STUCK_TRIES ? WEFT_ERR_TIMEOUT : poll(rig);
}

/* ---- measuring ------------------------------------------------------------------------------- */

static weft_status_t put(rig_t *rig, uint32_t i, bench_samples_t *calls)
{
    kv_name_t name = {.is_first = true, .tokens = rig->tokens};
    weft_status_t status = WEFT_ERR_QUEUE_FULL;
    bench_kv_hashes(rig->bench, i, 1, &name.hash);
    while (status == WEFT_ERR_QUEUE_FULL) {
        const uint64_t start = weft_clock_ns();
        status = rig->ops->put(rig->tier, &name, block_at(rig, i % DEPTH));
        const uint64_t ns = weft_clock_ns() - start;
        weft_status_t others = bench_samples_add(calls, (double)ns / (double)WEFT_NS_PER_SECOND);
        if (others >= 0 && status == WEFT_ERR_QUEUE_FULL) {
            others = wait_for_news(rig);
        }
        status = others < 0 ? others : status;
    }
    return status;
}

/* As many blocks as the tier holds, from number first on, until the last could be read back. */
static weft_status_t put_all(rig_t *rig, uint32_t first, bench_samples_t *calls)
{
    weft_status_t status = WEFT_OK;
    rig->n_stored = 0;
    for (uint32_t i = 0; status >= 0 && i < rig->n_blocks; i++) {
        status = put(rig, first + i, calls);
    }
    while (status >= 0 && rig->n_stored < rig->n_blocks) {
        status = wait_for_news(rig);
    }
    return status;
}

/* Into a tier that is full, as one is most of its life: each block drives out another. */
static weft_status_t measure_puts(rig_t *rig, const names_t *names)
{
    bench_samples_t calls = {0};
    weft_status_t status = put_all(rig, rig->n_blocks, &calls);
    calls.n = 0;
    const uint64_t start = weft_clock_ns();
    if (status >= 0) {
        status = put_all(rig, 0, &calls);
    }
    const uint64_t ns = weft_clock_ns() - start;
    const bench_distribution_t d = bench_samples_distribute(&calls);
    bench_samples_fini(&calls);
    if (status >= 0) {
        status = bench_kv_note_rate(rig->bench, names->put, "B/s",
                                    rig->n_blocks * rig->bench->options->block_bytes, ns);
    }
    if (status >= 0) {
        status = bench_kv_note(rig->bench, names->put_p50, "s", d.p50);
    }
    return status < 0 ? status : bench_kv_note(rig->bench, names->put_p99, "s", d.p99);
}

/* Starts reading block i into a free slot, which there is; waits while the tier's queue is full. */
static weft_status_t start_get(rig_t *rig, uint32_t i)
{
    kv_hash_t hash;
    weft_status_t status = WEFT_ERR_QUEUE_FULL;
    void *dst = block_at(rig, rig->free_slots[--rig->n_free_slots]);
    bench_kv_hashes(rig->bench, bench_kv_shuffled(i, rig->n_blocks), 1, &hash);
    while (status == WEFT_ERR_QUEUE_FULL) {
        status = rig->ops->get(rig->tier, &hash, dst, dst);
        if (status == WEFT_ERR_QUEUE_FULL) {
            const weft_status_t others = wait_for_news(rig);
            status = others < 0 ? others : status;
        }
    }
    return status;
}

/* Every block, DEPTH at a time, in no order. */
static weft_status_t measure_gets(rig_t *rig, const names_t *names)
{
    weft_status_t status = WEFT_OK;
    rig->n_read = 0;
    const uint64_t start = weft_clock_ns();
    for (uint32_t i = 0; status >= 0 && i < rig->n_blocks; i++) {
        while (status >= 0 && rig->n_free_slots == 0) {
            status = wait_for_news(rig);
        }
        status = status < 0 ? status : start_get(rig, i);
    }
    while (status >= 0 && rig->n_read < rig->n_blocks) {
        status = wait_for_news(rig);
    }
    const uint64_t ns = weft_clock_ns() - start;
    return status < 0 ? status
                      : bench_kv_note_rate(rig->bench, names->get, "B/s",
                                           rig->n_blocks * rig->bench->options->block_bytes, ns);
}

static weft_status_t measure_latency(rig_t *rig, const names_t *names)
{
    bench_samples_t latencies = {0};
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; status >= 0 && i < rig->n_blocks && i < LATENCIES; i++) {
        rig->n_read = 0;
        const uint64_t start = weft_clock_ns();
        status = start_get(rig, i);
        while (status >= 0 && rig->n_read == 0) {
            status = wait_for_news(rig);
        }
        const uint64_t ns = weft_clock_ns() - start;
        if (status >= 0) {
            status = bench_samples_add(&latencies, (double)ns / (double)WEFT_NS_PER_SECOND);
        }
    }
    const bench_distribution_t d = bench_samples_distribute(&latencies);
    bench_samples_fini(&latencies);
    if (status >= 0) {
        status = bench_kv_note(rig->bench, names->get_p50, "s", d.p50);
    }
    return status < 0 ? status : bench_kv_note(rig->bench, names->get_p99, "s", d.p99);
}

static weft_status_t measure(rig_t *rig, const names_t *names)
{
    weft_status_t status = measure_puts(rig, names);
    if (status >= 0) {
        status = measure_gets(rig, names);
    }
    return status < 0 ? status : measure_latency(rig, names);
}

static weft_status_t measure_tier(bench_kv_bench_t *bench, const kv_tier_ops_t *ops,
                                  const names_t *names, weft_diag_t *diag)
{
    rig_t rig = {.bench = bench, .ops = ops};
    weft_status_t status = rig_init(&rig, diag);
    if (status >= 0) {
        status = measure(&rig, names);
        if (status < 0) {
            weft_diag(diag, status, "%s tier: %s", kv_tier_name(ops->id), weft_strerror(status));
        }
    }
    rig_fini(&rig);
    return status;
}

weft_status_t bench_kv_part_host(bench_kv_bench_t *bench, weft_diag_t *diag)
{
    static const names_t names = NAMES("host");
    return measure_tier(bench, &kv_tier_host, &names, diag);
}

weft_status_t bench_kv_part_disk(bench_kv_bench_t *bench, weft_diag_t *diag)
{
    static const names_t names = NAMES("disk");
    return bench->options->disk_path[0] == '\0' ? WEFT_OK
                                                : measure_tier(bench, &kv_tier_disk, &names, diag);
}
