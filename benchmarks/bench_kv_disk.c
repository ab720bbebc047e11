/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_kv_disk FOLDER [block_bytes] [n_blocks]: how fast the disk tier puts and gets blocks, beside
 * the same reads and writes without a tier: O_DIRECT through the same row of kv_io on a file of the
 * same size. In turns, so many in flight; one JSON object a line, medians of ROUNDS. FOLDER is on
 * the disk to be measured, and must be new or empty.
 */
#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/device.h"
#include "kvstore/disk/kv_disk_format.h"
#include "kvstore/disk/kv_io.h"
#include "kvstore/disk/kv_journal.h"
#include "kvstore/tiers/kv_tier.h"

enum { ROUNDS = 5, TOKENS = 16, DEPTH_MAX = 16 };

typedef struct bench {
    size_t block_bytes;
    size_t slot_bytes;
    uint32_t n_blocks;
    uint32_t *order; /* [n_blocks] shuffled */
    uint64_t *begun; /* [n_blocks] */
    double *latency; /* [n_blocks] seconds */
    uint8_t *memory; /* [DEPTH_MAX * slot_bytes] */
    /* Without a tier: */
    int fd;
    kv_io_t *io;
    /* With one: */
    kv_tier_t *tier;
    sem_t woken;
    uint32_t base; /* of this round's names */
} bench_t;

typedef struct figures {
    double mb_s;
    double p50_us;
    double p99_us;
    double cpu_us; /* of all threads, a block: what a busy machine does not change */
} figures_t;

typedef struct beginning {
    uint64_t ns;
    uint64_t cpu_ns;
} beginning_t;

static void fail(const char *what)
{
    fprintf(stderr, "bench_kv_disk: %s\n", what);
    exit(1);
}

static void require(weft_status_t status, const char *what, const weft_diag_t *diag)
{
    if (status < 0) {
        fail(diag != NULL && diag->text[0] != '\0' ? diag->text : what);
    }
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

static uint64_t cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * WEFT_NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

static beginning_t begin_now(void)
{
    return (beginning_t){.ns = weft_clock_ns(), .cpu_ns = cpu_ns()};
}

static figures_t figures(bench_t *bench, beginning_t begin)
{
    const double seconds = (double)(weft_clock_ns() - begin.ns) * 1e-9;
    const double cpu_us = (double)(cpu_ns() - begin.cpu_ns) * 1e-3;
    const uint32_t n = bench->n_blocks;
    qsort(bench->latency, n, sizeof(double), compare_doubles);
    return (figures_t){
        .mb_s = (double)bench->block_bytes * n / seconds * 1e-6,
        .p50_us = bench->latency[n / 2] * 1e6,
        .p99_us = bench->latency[n - 1 - n / 100] * 1e6,
        .cpu_us = cpu_us / n,
    };
}

/* ---- without a tier --------------------------------------------------------------------------- */

static figures_t raw(bench_t *bench, bool is_write, uint32_t depth)
{
    kv_io_op_t ops[DEPTH_MAX];
    uint32_t block_of[DEPTH_MAX];
    uint32_t n_started = 0;
    const beginning_t begin = begin_now();
    for (uint32_t n_done = 0; n_done < bench->n_blocks;) {
        kv_io_op_t *ended[DEPTH_MAX];
        uint32_t n_free = depth;
        if (n_started < depth) { /* the first ones */
            for (uint32_t i = 0; i < depth; i++) {
                ended[i] = &ops[i];
            }
        } else {
            n_free = bench->io->ops->wait(bench->io, true, ended, depth);
            for (uint32_t i = 0; i < n_free; i++, n_done++) {
                const uint32_t block = block_of[ended[i] - ops];
                if (ended[i]->result != (int32_t)bench->slot_bytes) {
                    fail("the disk did a part only");
                }
                bench->latency[block] = (double)(weft_clock_ns() - bench->begun[block]) * 1e-9;
            }
        }
        for (uint32_t i = 0; i < n_free && n_started < bench->n_blocks; i++, n_started++) {
            const size_t lane = (size_t)(ended[i] - ops);
            const uint32_t block = bench->order[n_started];
            block_of[lane] = block;
            bench->begun[block] = weft_clock_ns();
            ops[lane] = (kv_io_op_t){
                .is_write = is_write,
                .bytes = (uint32_t)bench->slot_bytes,
                .offset = (uint64_t)block * bench->slot_bytes,
                .buffer = bench->memory + lane * bench->slot_bytes,
            };
            bench->io->ops->start(bench->io, &ops[lane]);
        }
    }
    return figures(bench, begin);
}

/* ---- with the tier ---------------------------------------------------------------------------- */

static kv_hash_t hash_of(uint32_t number)
{
    kv_hash_t hash = {0};
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t word = (number + 1) * 2654435761u ^ i * 40503u;
        memcpy(hash.bytes + 4 * i, &word, sizeof(word));
    }
    return hash;
}

static void on_stored(void *user, const kv_name_t *name)
{
    bench_t *bench = user;
    const uint32_t block = (uint32_t)name->tokens[0] - bench->base;
    bench->latency[block] = (double)(weft_clock_ns() - bench->begun[block]) * 1e-9;
}

static void wake(void *user)
{
    sem_post(&((bench_t *)user)->woken);
}

static uint32_t flying(const bench_t *bench)
{
    return kv_tier_disk.stats(bench->tier).in_flight;
}

/* Until fewer than depth are in flight. */
static void make_way(bench_t *bench, uint32_t depth)
{
    kv_tier_done_t done[DEPTH_MAX];
    for (;;) {
        const uint32_t n = kv_tier_disk.poll(bench->tier, done, DEPTH_MAX);
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t block = (uint32_t)((uint64_t *)done[i].tag - bench->begun);
            require(done[i].status, "a get failed", NULL);
            bench->latency[block] = (double)(weft_clock_ns() - bench->begun[block]) * 1e-9;
        }
        if (flying(bench) < depth) {
            return;
        }
        sem_wait(&bench->woken);
    }
}

static figures_t tier_put(bench_t *bench, uint32_t depth)
{
    int32_t tokens[TOKENS] = {0};
    const beginning_t begin = begin_now();
    bench->base += bench->n_blocks;
    for (uint32_t i = 0; i < bench->n_blocks; i++) {
        make_way(bench, depth);
        tokens[0] = (int32_t)(bench->base + i);
        const kv_name_t name = {
            .hash = hash_of(bench->base + i), .is_first = true, .tokens = tokens};
        bench->begun[i] = weft_clock_ns();
        while (kv_tier_disk.put(bench->tier, &name, bench->memory) == WEFT_ERR_QUEUE_FULL) {
            make_way(bench, flying(bench)); /* large blocks have fewer staging buffers than depth */
        }
    }
    make_way(bench, 1);
    return figures(bench, begin);
}

static figures_t tier_get(bench_t *bench, uint32_t depth)
{
    const beginning_t begin = begin_now();
    for (uint32_t i = 0; i < bench->n_blocks; i++) {
        make_way(bench, depth);
        const uint32_t block = bench->order[i];
        const kv_hash_t hash = hash_of(bench->base + block);
        bench->begun[block] = weft_clock_ns();
        uint8_t *dst = bench->memory + i % DEPTH_MAX * bench->slot_bytes;
        weft_status_t status;
        while ((status = kv_tier_disk.get(bench->tier, &hash, dst, &bench->begun[block])) ==
               WEFT_ERR_QUEUE_FULL) {
            make_way(bench, flying(bench));
        }
        require(status, "a block is missing", NULL);
    }
    make_way(bench, 1);
    return figures(bench, begin);
}

/* ---- rounds ----------------------------------------------------------------------------------- */

static double median(double *values)
{
    qsort(values, ROUNDS, sizeof(double), compare_doubles);
    return values[ROUNDS / 2];
}

/* The median of one figure over the rounds. */
static double middle(const figures_t *rounds, size_t offset)
{
    double values[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        memcpy(&values[i], (const char *)&rounds[i] + offset, sizeof(double));
    }
    return median(values);
}

static void report_side(const char *prefix, const figures_t *rounds)
{
    double rates[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        rates[i] = rounds[i].mb_s;
    }
    const double mb_s = median(rates); /* and they are sorted */
    printf(", \"%smb_s\": %.0f, \"%smin_mb_s\": %.0f, \"%smax_mb_s\": %.0f, \"%sp50_us\": %.0f, "
           "\"%sp99_us\": %.0f, \"%scpu_us\": %.0f",
           prefix, mb_s, prefix, rates[0], prefix, rates[ROUNDS - 1], prefix,
           middle(rounds, offsetof(figures_t, p50_us)), prefix,
           middle(rounds, offsetof(figures_t, p99_us)), prefix,
           middle(rounds, offsetof(figures_t, cpu_us)));
}

static void report(const bench_t *bench, const char *what, uint32_t depth, const figures_t *tier,
                   const figures_t *without)
{
    printf("{\"what\": \"%s\", \"block_bytes\": %zu, \"depth\": %u", what, bench->block_bytes,
           depth);
    report_side("", tier);
    report_side("floor_", without);
    printf("}\n");
    fflush(stdout);
}

/* The first round warms up and is dropped. */
static void measure(bench_t *bench, uint32_t depth)
{
    figures_t puts[ROUNDS];
    figures_t writes[ROUNDS];
    figures_t gets[ROUNDS];
    figures_t reads[ROUNDS];
    for (int i = -1; i < ROUNDS; i++) {
        const int at = i < 0 ? 0 : i;
        writes[at] = raw(bench, true, depth);
        puts[at] = tier_put(bench, depth);
        reads[at] = raw(bench, false, depth);
        gets[at] = tier_get(bench, depth);
    }
    report(bench, "put", depth, puts, writes);
    report(bench, "get", depth, gets, reads);
}

static void *take(size_t count, size_t size)
{
    void *memory = weft_alloc_aligned(KV_DISK_PAGE_BYTES, count * size, "bench");
    if (memory == NULL) {
        fail("not enough memory");
    }
    memset(memory, 1, count * size);
    return memory;
}

static void shuffle(uint32_t *order, uint32_t n)
{
    uint32_t random = 1;
    for (uint32_t i = 0; i < n; i++) {
        order[i] = i;
    }
    for (uint32_t i = n - 1; i > 0; i--) {
        random = random * 1664525u + 1013904223u;
        const uint32_t other = random / 65536 % (i + 1);
        const uint32_t kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
}

static void open_raw(bench_t *bench, const char *folder)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s.raw", folder);
    bench->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600);
    if (bench->fd < 0 || unlink(path) != 0 ||
        posix_fallocate(bench->fd, 0, (off_t)(bench->slot_bytes * bench->n_blocks)) != 0) {
        fail("no file with O_DIRECT beside FOLDER");
    }
    require(kv_io_uring.open(bench->fd, DEPTH_MAX, &bench->io), "no io_uring here", NULL);
}

static void open_tier(bench_t *bench, const char *folder, weft_device_t *device)
{
    static const uint8_t fingerprint[32] = "bench";
    weft_diag_t diag = {0};
    const kv_tier_config_t config = {
        .device = device,
        .block_tokens = TOKENS,
        .block_bytes = bench->block_bytes,
        .budget_bytes = (bench->slot_bytes + kv_journal_bytes_per_slot(TOKENS)) * bench->n_blocks,
        .path = folder,
        .fingerprint = fingerprint,
        .on_stored = on_stored,
        .user = bench,
        .wake = wake,
        .wake_user = bench,
    };
    require(kv_tier_disk.open(&config, &diag, &bench->tier), "the tier does not open", &diag);
    kv_tier_disk.clear(bench->tier);
}

int main(int argc, char **argv)
{
    bench_t bench = {0};
    weft_device_t *device = NULL;
    if (argc < 2) {
        fail("usage: bench_kv_disk FOLDER [block_bytes] [n_blocks]");
    }
    bench.block_bytes = argc > 2 ? strtoul(argv[2], NULL, 0) : (size_t)2 << 20;
    bench.slot_bytes = kv_disk_slot_bytes(bench.block_bytes);
    bench.n_blocks = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 0) : 256;
    if (bench.block_bytes == 0 || bench.n_blocks < DEPTH_MAX) {
        fail("block_bytes is a number of bytes, n_blocks at least 16");
    }
    bench.order = take(bench.n_blocks, sizeof(uint32_t));
    bench.begun = take(bench.n_blocks, sizeof(uint64_t));
    bench.latency = take(bench.n_blocks, sizeof(double));
    bench.memory = take(DEPTH_MAX, bench.slot_bytes);
    shuffle(bench.order, bench.n_blocks);
    sem_init(&bench.woken, 0, 0);
    require(weft_device_open("cpu", 0, NULL, &device), "no device", NULL);
    open_raw(&bench, argv[1]);
    open_tier(&bench, argv[1], device);
    for (uint32_t depth = 1; depth <= DEPTH_MAX; depth *= 4) {
        measure(&bench, depth);
    }
    kv_tier_disk.close(bench.tier);
    kv_io_uring.close(bench.io);
    close(bench.fd);
    weft_device_close(device);
    return 0;
}
