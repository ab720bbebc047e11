/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_xfer_cost [backend]: what the fabric takes of its caller, apart from moving bytes: describing
 * pieces, making requests, posting to an agent without a thread, to one whose thread is awake and to
 * one whose thread sleeps. Pieces are 8 bytes, so that moving them is little. One JSON object a line:
 * the median of several rounds with the least and the most. Times are of the calling thread alone;
 * posting without a thread includes what the backend does within post.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/xfer/xfer.h"

enum { ROUNDS = 21, PIECES = 100000, POSTS = 64, MAX_RUNS = 1024 };

#define PIECE        ((uint64_t)8)
#define MEMORY_BYTES ((uint64_t)PIECES * 2 * PIECE)

typedef struct side {
    xfer_agent_t *agent;
    uint8_t *memory;
    bool has_thread;
} side_t;

static void check(weft_status_t status, const char *what)
{
    if (status < 0) {
        fprintf(stderr, "bench_xfer_cost: %s: %s\n", what, weft_strerror(status));
        exit(1);
    }
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print(const char *what, const char *mode, unsigned n, double *values)
{
    qsort(values, ROUNDS, sizeof(*values), compare);
    printf("{\"what\": \"%s\", \"mode\": \"%s\", \"n\": %u, \"us\": %.3f, \"min_us\": %.3f, "
           "\"max_us\": %.3f}\n",
           what, mode, n, values[ROUNDS / 2], values[0], values[ROUNDS - 1]);
}

static double us_since(uint64_t start_ns)
{
    return (double)(weft_clock_ns() - start_ns) / 1e3;
}

/* ---- two agents ------------------------------------------------------------------------------ */

static void open_side(side_t *side, const char *name, const char *backend, bool has_thread)
{
    const xfer_agent_config_t config = {
        .name = name, .backends = backend, .has_thread = has_thread};
    weft_diag_t diag = {0};
    xfer_region_t *region;
    side->has_thread = has_thread;
    const int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)MEMORY_BYTES) != 0) {
        check(WEFT_ERR_NO_MEMORY, "memory");
    }
    side->memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memset(side->memory, 1, MEMORY_BYTES);
    weft_status_t status = xfer_agent_create(&config, &diag, &side->agent);
    check(status, diag.text);
    const xfer_memory_t memory = {
        .addr = (uint64_t)(uintptr_t)side->memory, .bytes = MEMORY_BYTES, .fd = fd};
    status = xfer_register(side->agent, &memory, &diag, &region);
    check(status, diag.text);
    close(fd);
}

static void close_side(side_t *side)
{
    xfer_agent_destroy(side->agent);
    munmap(side->memory, MEMORY_BYTES);
}

static xfer_peer_t *introduce(side_t *who, side_t *to)
{
    weft_buffer_t blob = {0};
    xfer_peer_t *peer;
    check(xfer_export(to->agent, NULL, 0, true, &blob), "export");
    check(xfer_import(who->agent, blob.data, blob.length, NULL, &peer), "import");
    weft_buffer_free(&blob);
    return peer;
}

static xfer_list_t *list_of(side_t *side, xfer_peer_t *peer, const side_t *memory, uint64_t stride,
                            uint64_t count)
{
    const xfer_run_t run = {.addr = (uint64_t)(uintptr_t)memory->memory,
                            .bytes = PIECE,
                            .stride = stride,
                            .count = count};
    xfer_list_t *list;
    check(xfer_list_create(side->agent, peer, XFER_DRAM, &run, 1, NULL, &list), "list");
    return list;
}

static void finish(side_t *side, side_t *other, xfer_request_t *request)
{
    while (xfer_poll(request) == WEFT_PENDING) {
        if (!side->has_thread) {
            xfer_progress(side->agent, 0);
        }
        xfer_progress(other->agent, 0);
    }
    check(xfer_poll(request), "transfer");
}

/* ---- describing ------------------------------------------------------------------------------ */

static xfer_run_t *single_pieces(const side_t *side, bool is_shuffled)
{
    xfer_run_t *runs = weft_calloc(PIECES, sizeof(*runs), "bench.runs");
    uint64_t state = 1;
    for (uint64_t i = 0; i < PIECES; i++) {
        runs[i] = (xfer_run_t){
            .addr = (uint64_t)(uintptr_t)side->memory + 2 * i * PIECE, .bytes = PIECE, .count = 1};
    }
    for (uint64_t i = PIECES; is_shuffled && i > 1; i--) {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407U;
        const uint64_t j = (state >> 33) % i;
        const xfer_run_t swapped = runs[i - 1];
        runs[i - 1] = runs[j];
        runs[j] = swapped;
    }
    return runs;
}

static void measure_describe(side_t *side, const char *mode, const xfer_run_t *runs, size_t n)
{
    double values[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        xfer_list_t *list;
        const uint64_t start = weft_clock_ns();
        check(xfer_list_create(side->agent, NULL, XFER_DRAM, runs, n, NULL, &list), "list");
        values[i] = us_since(start);
        xfer_list_destroy(list);
    }
    print("describe", mode, PIECES, values);
}

static void measure_lists(side_t *side)
{
    xfer_run_t *ordered = single_pieces(side, false);
    xfer_run_t *shuffled = single_pieces(side, true);
    const xfer_run_t strided = {.addr = (uint64_t)(uintptr_t)side->memory,
                                .bytes = PIECE,
                                .stride = 2 * PIECE,
                                .count = PIECES};
    measure_describe(side, "one by one, in order", ordered, PIECES);
    measure_describe(side, "one by one, shuffled", shuffled, PIECES);
    measure_describe(side, "strided", &strided, 1);
    weft_free(ordered);
    weft_free(shuffled);
}

/* Requests of n ids in an order that merges nothing. */
static void measure_requests(side_t *side, side_t *other, xfer_peer_t *peer)
{
    double values[ROUNDS];
    uint32_t *ids = weft_calloc(PIECES, sizeof(*ids), "bench.ids");
    xfer_list_t *local = list_of(side, NULL, side, 2 * PIECE, PIECES);
    xfer_list_t *theirs = list_of(side, peer, other, 2 * PIECE, PIECES);
    for (uint32_t i = 0; i < PIECES; i++) {
        ids[i] = (uint32_t)((uint64_t)i * 7919 % PIECES);
    }
    for (int i = 0; i < ROUNDS; i++) {
        xfer_request_t *request;
        const xfer_request_config_t config = {
            .local = local, .peer = theirs, .local_ids = ids, .peer_ids = ids, .n = PIECES};
        const uint64_t start = weft_clock_ns();
        check(xfer_request_create(side->agent, &config, NULL, &request), "request");
        values[i] = us_since(start);
        xfer_request_destroy(request);
    }
    print("request", "scattered ids", PIECES, values);
    xfer_list_destroy(local);
    xfer_list_destroy(theirs);
    weft_free(ids);
}

/* ---- posting --------------------------------------------------------------------------------- */

static xfer_request_t *request_of(side_t *side, side_t *other, xfer_peer_t *peer, uint64_t runs)
{
    xfer_list_t *local = list_of(side, NULL, side, 2 * PIECE, runs);
    xfer_list_t *theirs = list_of(side, peer, other, 2 * PIECE, runs);
    const xfer_request_config_t config = {.local = local, .peer = theirs};
    xfer_request_t *request;
    check(xfer_request_create(side->agent, &config, NULL, &request), "request");
    xfer_list_destroy(local);
    xfer_list_destroy(theirs);
    return request;
}

static double post_one(xfer_request_t *request)
{
    const uint64_t start = weft_clock_ns();
    check(xfer_post(request), "post");
    return us_since(start);
}

static void measure_post_alone(side_t *side, side_t *other, xfer_peer_t *peer, uint64_t runs,
                               const char *mode, useconds_t pause_us)
{
    double values[ROUNDS];
    xfer_request_t *request = request_of(side, other, peer, runs);
    for (int i = -1; i < ROUNDS; i++) { /* the first connects */
        if (pause_us > 0) {
            usleep(pause_us);
        }
        values[i < 0 ? 0 : i] = post_one(request);
        finish(side, other, request);
    }
    print("post", mode, (unsigned)runs, values);
    xfer_request_destroy(request);
}

/* The first wakes the thread; those after it find it awake. */
static void measure_post_awake(side_t *side, side_t *other, xfer_peer_t *peer, uint64_t runs)
{
    double values[ROUNDS];
    xfer_request_t *requests[POSTS];
    for (int i = 0; i < POSTS; i++) {
        requests[i] = request_of(side, other, peer, runs);
    }
    for (int round = -1; round < ROUNDS; round++) {
        double sum = 0;
        check(xfer_post(requests[0]), "post");
        for (int i = 1; i < POSTS; i++) {
            sum += post_one(requests[i]);
        }
        values[round < 0 ? 0 : round] = sum / (POSTS - 1);
        for (int i = 0; i < POSTS; i++) {
            finish(side, other, requests[i]);
        }
    }
    print("post", "thread awake", (unsigned)runs, values);
    for (int i = 0; i < POSTS; i++) {
        xfer_request_destroy(requests[i]);
    }
}

static void measure_posts(const char *backend, bool has_thread)
{
    side_t side;
    side_t other;
    open_side(&side, "bench-a", backend, has_thread);
    open_side(&other, "bench-b", backend, false);
    xfer_peer_t *peer = introduce(&side, &other);
    if (!has_thread) {
        measure_lists(&side);
        measure_requests(&side, &other, peer);
    }
    for (uint64_t runs = 1; runs <= MAX_RUNS; runs *= 32) {
        if (has_thread) {
            measure_post_awake(&side, &other, peer, runs);
            measure_post_alone(&side, &other, peer, runs, "thread asleep", 2000);
        } else {
            measure_post_alone(&side, &other, peer, runs, "no thread", 0);
        }
    }
    close_side(&side);
    close_side(&other);
}

int main(int argc, char **argv)
{
    const char *backend = argc > 1 ? argv[1] : NULL;
    measure_posts(backend, false);
    measure_posts(backend, true);
    return 0;
}
