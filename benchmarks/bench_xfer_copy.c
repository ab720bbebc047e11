/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_xfer_copy [pool MiB] [seconds a row]: reading another process's blocks through the shm
 * backend, against the plainest way to do the same. In turns, on the same blocks, drawn at random:
 *
 *     mapped   both pools in memfds     against memcpy, block by block, between the same mappings
 *     kernel   the owner's pool is not  against process_vm_readv, 1024 blocks a call
 *
 * One JSON object a row: GB/s of either (median, 10th and 90th percentile) and their ratio. The
 * backend is driven as an agent would: post, then progress until the operation ends.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/device.h"
#include "transport/xfer/xfer_backend.h"

#define MIB        ((size_t)1 << 20)
#define MAX_ROUNDS 400
#define MIN_ROUNDS 7
#define MAX_KEY    256

typedef struct pool {
    xfer_memory_t memory; /* as its owner sees it */
    char key[MAX_KEY];
    size_t key_bytes;
} pool_t;

/* What the owner tells through a pipe. */
typedef struct offer {
    char address[MAX_KEY];
    size_t address_bytes;
    pool_t pools[2]; /* mapped, kernel */
} offer_t;

typedef struct bench {
    size_t pool_bytes;
    double seconds;
    pid_t owner;
    char *local;      /* [pool_bytes] */
    const char *twin; /* the owner's memfd, mapped here too */
    void *local_handle;
    xfer_port_t *port;
    xfer_link_t *link;
    offer_t offer;
    void *imports[2];
    xfer_extent_t *extents; /* [pool_bytes / smallest block] */
    uint32_t *shuffled;     /* the same */
} bench_t;

static void fail(const char *what)
{
    fprintf(stderr, "bench_xfer_copy: %s failed\n", what);
    exit(1);
}

static weft_mem_t take_memory(size_t bytes, uint32_t flags, int value)
{
    weft_device_t *device;
    weft_mem_t mem;
    if (weft_device_open("cpu", 0, NULL, &device) < 0 ||
        device->ops->alloc(device, bytes, flags, &mem) < 0) {
        fail("taking memory");
    }
    memset(mem.addr, value, bytes);
    return mem;
}

static const char *no_param(void *user, const char *key)
{
    (void)user;
    (void)key;
    return NULL;
}

static void ignore_notification(void *user, const char *peer, const void *data, size_t bytes)
{
    (void)user;
    (void)peer;
    (void)data;
    (void)bytes;
}

static void ignore_link(void *user, xfer_link_t *link)
{
    (void)user;
    (void)link;
}

static xfer_port_t *open_port(const char *name)
{
    const xfer_port_config_t config = {.agent = name,
                                       .param = no_param,
                                       .on_notification = ignore_notification,
                                       .on_link_up = ignore_link,
                                       .on_link_lost = ignore_link};
    xfer_port_t *port;
    if (xfer_backend_shm.open(&config, NULL, &port) < 0) {
        fail("opening shm");
    }
    return port;
}

static size_t copy_out(weft_buffer_t *buffer, char *room)
{
    if (buffer->is_failed || buffer->length > MAX_KEY) {
        fail("a key");
    }
    const size_t bytes = buffer->length;
    memcpy(room, buffer->data, bytes);
    weft_buffer_free(buffer);
    return bytes;
}

static void *map(xfer_port_t *port, const weft_mem_t *mem, pool_t *pool)
{
    weft_buffer_t key = {0};
    void *handle;
    pool->memory = (xfer_memory_t){
        .space = XFER_DRAM, .addr = (uintptr_t)mem->addr, .bytes = mem->bytes, .fd = mem->fd};
    if (xfer_backend_shm.map(port, &pool->memory, &key, &handle) < 0) {
        fail("map");
    }
    pool->key_bytes = copy_out(&key, pool->key);
    return handle;
}

static void serve(const weft_mem_t *shared, size_t pool_bytes, int pipe_fd)
{
    offer_t offer = {.address_bytes = 0};
    weft_buffer_t address = {0};
    xfer_port_t *port = open_port("owner");
    const weft_mem_t own = take_memory(pool_bytes, 0, 0x3c);
    int fd;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    memset(shared->addr, 0x5a, pool_bytes);
    (void)map(port, shared, &offer.pools[0]);
    (void)map(port, &own, &offer.pools[1]);
    xfer_backend_shm.address(port, &address);
    offer.address_bytes = copy_out(&address, offer.address);
    if (write(pipe_fd, &offer, sizeof(offer)) != (ssize_t)sizeof(offer)) {
        fail("write");
    }
    for (;;) {
        while (!xfer_backend_shm.arm(port, &fd)) {
            xfer_backend_shm.progress(port);
        }
        struct pollfd readable = {.fd = fd, .events = POLLIN};
        (void)poll(&readable, 1, -1);
        xfer_backend_shm.progress(port);
    }
}

typedef struct read_op {
    xfer_op_t op;
    weft_status_t status;
} read_op_t;

static void set_status(xfer_op_t *op, weft_status_t status)
{
    ((read_op_t *)op)->status = status;
}

static double ns_of_backend(bench_t *bench, size_t n, size_t total, int which)
{
    read_op_t read_op = {.op = {.direction = XFER_READ,
                                .extents = bench->extents,
                                .n_extents = n,
                                .bytes = total,
                                .local_handles = &bench->local_handle,
                                .peer_handles = &bench->imports[which],
                                .end = set_status},
                         .status = WEFT_PENDING};
    const uint64_t begin = weft_clock_ns();
    xfer_backend_shm.post(bench->link, &read_op.op);
    while (read_op.status == WEFT_PENDING) {
        xfer_backend_shm.progress(bench->port);
    }
    const uint64_t end = weft_clock_ns();
    if (read_op.status != WEFT_OK) {
        fail("a read");
    }
    return (double)(end - begin);
}

static double ns_of_memcpy(const bench_t *bench, size_t n)
{
    const uint64_t peer_addr = bench->offer.pools[0].memory.addr;
    const uint64_t begin = weft_clock_ns();
    for (size_t i = 0; i < n; i++) {
        const xfer_extent_t *extent = &bench->extents[i];
        memcpy((void *)(uintptr_t)extent->local, bench->twin + (extent->peer - peer_addr),
               extent->bytes);
    }
    return (double)(weft_clock_ns() - begin);
}

static double ns_of_readv(const bench_t *bench, size_t n)
{
    static struct iovec local[1024];
    static struct iovec peer[1024];
    const uint64_t begin = weft_clock_ns();
    for (size_t i = 0; i < n;) {
        size_t count = 0;
        size_t bytes = 0;
        for (; i < n && count < 1024 && bytes < (MIB << 10); i++, count++) {
            const xfer_extent_t *extent = &bench->extents[i];
            local[count] = (struct iovec){(void *)(uintptr_t)extent->local, extent->bytes};
            peer[count] = (struct iovec){(void *)(uintptr_t)extent->peer, extent->bytes};
            bytes += extent->bytes;
        }
        if (process_vm_readv(bench->owner, local, count, peer, count, 0) != (ssize_t)bytes) {
            fail("process_vm_readv");
        }
    }
    return (double)(weft_clock_ns() - begin);
}

static uint64_t draw(uint64_t below)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

/* The first n of shuffled become n different blocks out of slots. */
static void shuffle(uint32_t *shuffled, size_t slots, size_t n)
{
    for (size_t i = 0; i < slots; i++) {
        shuffled[i] = (uint32_t)i;
    }
    for (size_t i = 0; i < n; i++) {
        const size_t j = i + draw(slots - i);
        const uint32_t other = shuffled[j];
        shuffled[j] = shuffled[i];
        shuffled[i] = other;
    }
}

static void choose_blocks(bench_t *bench, size_t block, size_t n, int which)
{
    const size_t slots = bench->pool_bytes / block;
    shuffle(bench->shuffled, slots, n);
    for (size_t i = 0; i < n; i++) {
        bench->extents[i] = (xfer_extent_t){
            .local = (uintptr_t)bench->local + bench->shuffled[i] * block, .bytes = block};
    }
    shuffle(bench->shuffled, slots, n);
    for (size_t i = 0; i < n; i++) {
        bench->extents[i].peer = bench->offer.pools[which].memory.addr + bench->shuffled[i] * block;
    }
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* GB/s: median, and what nine of ten rounds reach or stay below. */
static double print_speed(const char *name, double *ns, size_t rounds, size_t total)
{
    qsort(ns, rounds, sizeof(*ns), compare_doubles);
    printf(", \"%s_gb_s\": %.3f, \"%s_p10\": %.3f, \"%s_p90\": %.3f", name,
           (double)total / ns[rounds / 2], name, (double)total / ns[rounds * 9 / 10], name,
           (double)total / ns[rounds / 10]);
    return ns[rounds / 2];
}

static void measure(bench_t *bench, size_t block, size_t total, int which)
{
    static double rival[MAX_ROUNDS];
    static double ours[MAX_ROUNDS];
    const size_t n = total / block;
    const uint64_t deadline = weft_clock_ns() + (uint64_t)(bench->seconds * 1e9);
    size_t rounds = 0;
    choose_blocks(bench, block, n, which);
    (void)ns_of_backend(bench, n, total, which);
    while (rounds < MAX_ROUNDS && (rounds < MIN_ROUNDS || weft_clock_ns() < deadline)) {
        rival[rounds] = which == 0 ? ns_of_memcpy(bench, n) : ns_of_readv(bench, n);
        ours[rounds] = ns_of_backend(bench, n, total, which);
        rounds++;
    }
    printf("{\"path\": \"%s\", \"block\": %zu, \"total\": %zu, \"rounds\": %zu",
           which == 0 ? "mapped" : "kernel", block, total, rounds);
    const double rival_ns = print_speed(which == 0 ? "memcpy" : "readv", rival, rounds, total);
    const double our_ns = print_speed("shm", ours, rounds, total);
    printf(", \"ratio\": %.3f}\n", rival_ns / our_ns);
    fflush(stdout);
}

static void open_reader(bench_t *bench, const weft_mem_t *shared, int pipe_fd)
{
    pool_t pool;
    bench->twin = shared->addr;
    const weft_mem_t local = take_memory(bench->pool_bytes, WEFT_MEM_EXPORTABLE, 1);
    bench->local = local.addr;
    if (read(pipe_fd, &bench->offer, sizeof(bench->offer)) != (ssize_t)sizeof(bench->offer)) {
        fail("the owner");
    }
    bench->port = open_port("reader");
    bench->local_handle = map(bench->port, &local, &pool);
    if (xfer_backend_shm.connect(bench->port, "owner", bench->offer.address,
                                 bench->offer.address_bytes, &bench->link) < 0) {
        fail("connect");
    }
    for (int i = 0; i < 2; i++) {
        const pool_t *theirs = &bench->offer.pools[i];
        if (xfer_backend_shm.import(bench->link, &theirs->memory, theirs->key, theirs->key_bytes,
                                    &bench->imports[i]) < 0) {
            fail("import");
        }
    }
}

int main(int argc, char **argv)
{
    static const size_t blocks[] = {4096, 16384, 65536, 262144, 2097152};
    static const size_t totals[] = {1 * MIB, 8 * MIB, 64 * MIB, 512 * MIB};
    bench_t bench = {.pool_bytes = (argc > 1 ? strtoul(argv[1], NULL, 10) : 1024) * MIB,
                     .seconds = argc > 2 ? strtod(argv[2], NULL) : 3};
    const weft_mem_t shared = take_memory(bench.pool_bytes, WEFT_MEM_EXPORTABLE, 0);
    int fds[2];
    if (bench.pool_bytes < MIB || pipe(fds) != 0) {
        fail("starting");
    }
    bench.owner = fork();
    if (bench.owner == 0) {
        serve(&shared, bench.pool_bytes, fds[1]);
    }
    close(fds[1]);
    bench.extents = calloc(bench.pool_bytes / blocks[0], sizeof(*bench.extents));
    bench.shuffled = calloc(bench.pool_bytes / blocks[0], sizeof(*bench.shuffled));
    if (bench.extents == NULL || bench.shuffled == NULL) {
        fail("taking memory");
    }
    open_reader(&bench, &shared, fds[0]);
    for (int which = 0; which < 2; which++) {
        for (size_t t = 0; t < sizeof(totals) / sizeof(totals[0]); t++) {
            for (size_t b = 0; b < sizeof(blocks) / sizeof(blocks[0]); b++) {
                if (blocks[b] <= totals[t] && totals[t] <= bench.pool_bytes) {
                    measure(&bench, blocks[b], totals[t], which);
                }
            }
        }
    }
    kill(bench.owner, SIGKILL);
    waitpid(bench.owner, NULL, 0);
    return 0;
}
