/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of a GPU through the fabric, between two processes: mapped by the peer (shm), staged in the
 * host's memory (tcp), or as UCX does it (ucx). On the GPU's double and, in a build with nvcc, on a GPU;
 * UCX knows a GPU only.
 */
#include <string.h>

#include "base/clock.h"
#include "tests/cuda_emu/cuda_check.h"
#include "tests/support/fabric_rig.h"

#define KIB ((uint64_t)1024)
#define MIB (KIB * KIB)

enum { BLOCKS = 64 };

static const uint64_t block_bytes = 48 * KIB;

/* What agents are opened with, and by which backend the GPU's memory then goes. */
typedef struct way {
    const char *backends;
    const char *params;
    const char *backend;
} way_t;

static const way_t ways[] = {
    {"shm", NULL, "shm"},
    {"tcp", NULL, "tcp"},
    {"ucx", NULL, "ucx"},
    {"ucx,tcp", "ucx.tls=tcp", "tcp"}, /* a UCX that does not know the GPU */
};
enum { SHM, TCP, UCX, UCX_WITHOUT_CUDA, WAYS };

/* Ours, without a thread, and a child's, with one: each has DRAM and a GPU's memory. */
typedef struct pair {
    const char *backend;
    fabric_child_t child;
    fabric_end_t end;
    fabric_end_t *ends[1];
    xfer_peer_t *peer;
} pair_t;

/* The child first: a process that has used a GPU may not fork. So the suite's are made at its start. */
static fabric_child_t children[WAYS];
static bool has_child[WAYS];

static fabric_config_t config_of(size_t which, bool has_thread)
{
    return (fabric_config_t){.backends = ways[which].backends,
                             .params = ways[which].params,
                             .has_thread = has_thread,
                             .bytes = BLOCKS * block_bytes,
                             .vram_bytes = BLOCKS * block_bytes};
}

static void open_pair_with(pair_t *pair, size_t which, bool has_thread)
{
    const fabric_config_t config = config_of(which, has_thread);
    *pair = (pair_t){.backend = ways[which].backend, .child = children[which]};
    if (!has_child[which]) {
        skip();
    }
    fabric_end_open(&config, NULL, &pair->end);
    fabric_fill(&pair->end, 2);
    fabric_vram_fill(&pair->end, 2);
    pair->ends[0] = &pair->end;
    pair->peer = fabric_import(&pair->end, &pair->child.blob);
}

static void open_pair(pair_t *pair, size_t which)
{
    open_pair_with(pair, which, false);
}

static void close_pair(pair_t *pair)
{
    fabric_end_close(&pair->end);
}

static xfer_list_t *make_list(pair_t *pair, bool is_ours, xfer_space_t space, uint64_t bytes)
{
    const uint64_t ours =
        space == XFER_VRAM ? (uint64_t)(uintptr_t)pair->end.vram.addr : fabric_addr(&pair->end, 0);
    const uint64_t theirs = space == XFER_VRAM ? pair->child.vram_addr : pair->child.addr;
    const xfer_run_t run = {.addr = is_ours ? ours : theirs,
                            .bytes = bytes,
                            .stride = bytes,
                            .count = BLOCKS * block_bytes / bytes};
    weft_diag_t diag = {0};
    xfer_list_t *list = NULL;
    if (xfer_list_create(pair->end.agent, is_ours ? NULL : pair->peer, space, &run, 1, &diag,
                         &list) < 0) {
        fail_msg("list: %s", diag.text);
    }
    return list;
}

typedef struct wanted {
    xfer_direction_t direction;
    xfer_space_t ours;
    xfer_space_t theirs;
    uint64_t bytes; /* of a piece */
    const uint32_t *local_ids;
    const uint32_t *peer_ids;
    size_t n;
    const char *note;
    const xfer_guard_t *guard;
} wanted_t;

static xfer_request_t *make_request(pair_t *pair, const wanted_t *wanted)
{
    xfer_list_t *local = make_list(pair, true, wanted->ours, wanted->bytes);
    xfer_list_t *peer = make_list(pair, false, wanted->theirs, wanted->bytes);
    const xfer_request_config_t config = {
        .direction = wanted->direction,
        .local = local,
        .peer = peer,
        .local_ids = wanted->local_ids,
        .peer_ids = wanted->peer_ids,
        .n = wanted->n,
        .notification = wanted->note,
        .notification_bytes = wanted->note == NULL ? 0 : strlen(wanted->note),
        .guard = wanted->guard,
    };
    xfer_request_t *request = fabric_request(&pair->end, &config);
    xfer_list_destroy(local);
    xfer_list_destroy(peer);
    return request;
}

static bool ours_is_filled(pair_t *pair, xfer_space_t space, uint64_t seed, uint64_t offset,
                           uint64_t n, uint64_t pattern_offset)
{
    return space == XFER_VRAM
               ? fabric_vram_is_filled(&pair->end, n, seed, offset, pattern_offset)
               : fabric_is_filled(pair->end.memory + offset, n, seed, pattern_offset);
}

/* ---- what it moves --------------------------------------------------------------------------- */

/* Every second block of the peer's, the last first, to our first ones; those behind stay. */
static void read_scattered(pair_t *pair, xfer_space_t ours, xfer_space_t theirs)
{
    enum { N = BLOCKS / 2 };
    uint32_t local_ids[N];
    uint32_t peer_ids[N];
    for (uint32_t i = 0; i < N; i++) {
        local_ids[i] = i;
        peer_ids[i] = BLOCKS - 1 - 2 * i;
    }
    const wanted_t wanted = {.direction = XFER_READ,
                             .ours = ours,
                             .theirs = theirs,
                             .bytes = block_bytes,
                             .local_ids = local_ids,
                             .peer_ids = peer_ids,
                             .n = N};
    xfer_request_t *request = make_request(pair, &wanted);
    assert_status(fabric_run(request, pair->ends, 1), WEFT_OK);
    assert_int_equal(xfer_request_stats(request).extents, N);
    assert_string_equal(xfer_request_stats(request).backend, pair->backend);
    xfer_request_destroy(request);
    for (uint32_t i = 0; i < N; i++) {
        assert_true(
            ours_is_filled(pair, ours, 1, i * block_bytes, block_bytes, peer_ids[i] * block_bytes));
    }
    assert_true(ours_is_filled(pair, ours, 2, N * block_bytes, (BLOCKS - N) * block_bytes,
                               N * block_bytes));
}

static void scattered_blocks_are_read(size_t which, xfer_space_t ours, xfer_space_t theirs)
{
    pair_t pair;
    open_pair(&pair, which);
    read_scattered(&pair, ours, theirs);
    close_pair(&pair);
}

static void a_gpu_reads_blocks_of_a_gpu(void **state)
{
    scattered_blocks_are_read(*(const size_t *)*state, XFER_VRAM, XFER_VRAM);
}

static void a_gpu_reads_blocks_of_the_host(void **state)
{
    scattered_blocks_are_read(*(const size_t *)*state, XFER_VRAM, XFER_DRAM);
}

static void the_host_reads_blocks_of_a_gpu(void **state)
{
    scattered_blocks_are_read(*(const size_t *)*state, XFER_DRAM, XFER_VRAM);
}

/* Pieces that neither end on 16 bytes nor fill what moves them. */
static void pieces_of_any_size_are_read(void **state)
{
    static const uint64_t sizes[] = {24, 4 * KIB, 96 * KIB};
    pair_t pair;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sizes); i++) {
        const uint32_t n = i == 0 ? 1000 : (uint32_t)(BLOCKS * block_bytes / sizes[i] / 2);
        uint32_t *ids = test_malloc(n * sizeof(*ids));
        for (uint32_t k = 0; k < n; k++) {
            ids[k] = 2 * k; /* nothing touches */
        }
        open_pair(&pair, *(const size_t *)*state);
        const wanted_t wanted = {.direction = XFER_READ,
                                 .ours = XFER_VRAM,
                                 .theirs = XFER_VRAM,
                                 .bytes = sizes[i],
                                 .local_ids = ids,
                                 .peer_ids = ids,
                                 .n = n};
        xfer_request_t *request = make_request(&pair, &wanted);
        assert_status(fabric_run(request, pair.ends, 1), WEFT_OK);
        xfer_request_destroy(request);
        for (uint32_t k = 0; k < n; k += n / 20 + 1) {
            const uint64_t at = ids[k] * sizes[i];
            assert_true(ours_is_filled(&pair, XFER_VRAM, 1, at, sizes[i], at));
            assert_true(
                ours_is_filled(&pair, XFER_VRAM, 2, at + sizes[i], sizes[i], at + sizes[i]));
        }
        close_pair(&pair);
        test_free(ids);
    }
}

/* The child looks when it is told, not before. */
static void a_write_is_there_when_it_is_told(void **state)
{
    pair_t pair;
    char text[16] = "";
    uint32_t ids[BLOCKS / 4];
    const size_t n = WEFT_ARRAY_LEN(ids);
    open_pair(&pair, *(const size_t *)*state);
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = 4 * i + 1;
    }
    static const xfer_space_t froms[] = {XFER_VRAM, XFER_DRAM};
    for (size_t f = 0; f < WEFT_ARRAY_LEN(froms); f++) {
        const uint64_t seed = 3 + f;
        fabric_fill(&pair.end, seed);
        fabric_vram_fill(&pair.end, seed);
        const wanted_t wanted = {.direction = XFER_WRITE,
                                 .ours = froms[f],
                                 .theirs = XFER_VRAM,
                                 .bytes = block_bytes,
                                 .local_ids = ids,
                                 .peer_ids = ids,
                                 .n = n,
                                 .note = "written"};
        xfer_request_t *request = make_request(&pair, &wanted);
        assert_status(xfer_post(request), WEFT_OK);
        fabric_child_next_notification(&pair.child, pair.ends, 1, text, sizeof(text));
        assert_string_equal(text, "written");
        assert_status(fabric_wait(request, pair.ends, 1), WEFT_OK);
        xfer_request_destroy(request);
        for (size_t i = 0; i < n; i++) {
            const uint64_t at = ids[i] * block_bytes;
            assert_true(fabric_child_vram_is_filled(&pair.child, seed, at, block_bytes));
            assert_true(fabric_child_vram_is_filled(&pair.child, 1, at + block_bytes, block_bytes));
        }
    }
    /* As it was, for the tests behind. */
    fabric_fill(&pair.end, 1);
    const wanted_t back = {.direction = XFER_WRITE,
                           .ours = XFER_DRAM,
                           .theirs = XFER_VRAM,
                           .bytes = BLOCKS * block_bytes};
    xfer_request_t *request = make_request(&pair, &back);
    assert_status(fabric_run(request, pair.ends, 1), WEFT_OK);
    xfer_request_destroy(request);
    close_pair(&pair);
}

/* ---- what it promises ------------------------------------------------------------------------ */

/* The child's word changes behind the copy's begin: that the copy is done is seen in a later turn. */
static void a_word_that_changes_meanwhile_makes_it_stale(void **state)
{
    pair_t pair;
    const uint64_t word = UINT64_C(0x1234);
    open_pair(&pair, *(const size_t *)*state);
    const xfer_guard_t guard = {.addr = pair.child.addr, .expected = word};
    const wanted_t wanted = {.direction = XFER_READ,
                             .ours = XFER_VRAM,
                             .theirs = XFER_VRAM,
                             .bytes = BLOCKS * block_bytes,
                             .guard = &guard};
    xfer_request_t *request = make_request(&pair, &wanted);
    fabric_child_poke(&pair.child, 0, word);
    assert_status(fabric_run(request, pair.ends, 1), WEFT_OK);
    fabric_child_poke(&pair.child, 0, word + 1);
    assert_status(fabric_run(request, pair.ends, 1), WEFT_ERR_STALE);
    if (strcmp(pair.backend, "shm") == 0) { /* where the copy is begun in a turn of ours */
        fabric_child_poke(&pair.child, 0, word);
        assert_status(xfer_post(request), WEFT_OK);
        (void)xfer_progress(pair.end.agent, 0);
        assert_status(xfer_poll(request), WEFT_PENDING);
        fabric_child_poke(&pair.child, 0, word + 1);
        assert_status(fabric_wait(request, pair.ends, 1), WEFT_ERR_STALE);
    }
    xfer_request_destroy(request);
    close_pair(&pair);
}

/* It ends as cancelled, and what is written to its memory then stays. */
static void a_cancelled_one_leaves_memory_alone(void **state)
{
    pair_t pair;
    open_pair(&pair, *(const size_t *)*state);
    const wanted_t wanted = {.direction = XFER_READ,
                             .ours = XFER_VRAM,
                             .theirs = XFER_VRAM,
                             .bytes = BLOCKS * block_bytes};
    xfer_request_t *request = make_request(&pair, &wanted);
    assert_status(fabric_run(request, pair.ends, 1), WEFT_OK); /* connected, imported */
    assert_status(xfer_post(request), WEFT_OK);
    (void)xfer_progress(pair.end.agent, 0);
    xfer_cancel(request);
    assert_status(fabric_wait(request, pair.ends, 1), WEFT_ERR_CANCELLED);
    fabric_vram_fill(&pair.end, 5);
    for (int i = 0; i < 100; i++) {
        (void)xfer_progress(pair.end.agent, 1);
    }
    assert_true(ours_is_filled(&pair, XFER_VRAM, 5, 0, BLOCKS * block_bytes, 0));
    xfer_request_destroy(request);
    close_pair(&pair);
}

/* Nothing but a 50 µs timer wakes its thread while a copy runs: it must come to the end by itself. */
static void a_thread_finishes_alone(void **state)
{
    pair_t pair;
    open_pair_with(&pair, *(const size_t *)*state, true);
    read_scattered(&pair, XFER_VRAM, XFER_VRAM);
    close_pair(&pair);
}

static void memory_that_was_taken_back_is_not_found(void **state)
{
    pair_t pair;
    open_pair(&pair, *(const size_t *)*state);
    const wanted_t wanted = {.direction = XFER_READ,
                             .ours = XFER_VRAM,
                             .theirs = XFER_VRAM,
                             .bytes = BLOCKS * block_bytes};
    xfer_request_t *request = make_request(&pair, &wanted);
    assert_status(fabric_run(request, pair.ends, 1), WEFT_OK);
    fabric_child_deregister_vram(&pair.child);
    assert_status(fabric_run(request, pair.ends, 1), WEFT_ERR_NOT_FOUND);
    xfer_request_destroy(request);
    close_pair(&pair);
}

static void a_killed_peer_is_gone(void **state)
{
    pair_t pair;
    open_pair(&pair, *(const size_t *)*state);
    const wanted_t wanted = {.direction = XFER_READ,
                             .ours = XFER_VRAM,
                             .theirs = XFER_DRAM,
                             .bytes = BLOCKS * block_bytes};
    xfer_request_t *request = make_request(&pair, &wanted);
    assert_status(fabric_run(request, pair.ends, 1), WEFT_OK);
    fabric_child_kill(&pair.child);
    assert_status(fabric_run(request, pair.ends, 1), WEFT_ERR_PEER_GONE);
    xfer_request_destroy(request);
    close_pair(&pair);
}

#define TEST(name, which) cmocka_unit_test_prestate(name, &numbers[which])
#define TESTS_OF(which)                                                                            \
    TEST(a_gpu_reads_blocks_of_a_gpu, which), TEST(a_gpu_reads_blocks_of_the_host, which),         \
        TEST(the_host_reads_blocks_of_a_gpu, which), TEST(pieces_of_any_size_are_read, which),     \
        TEST(a_write_is_there_when_it_is_told, which),                                             \
        TEST(a_word_that_changes_meanwhile_makes_it_stale, which),                                 \
        TEST(a_cancelled_one_leaves_memory_alone, which), TEST(a_thread_finishes_alone, which),    \
        TEST(memory_that_was_taken_back_is_not_found, which), TEST(a_killed_peer_is_gone, which)

int main(void)
{
    static size_t numbers[WAYS] = {SHM, TCP, UCX, UCX_WITHOUT_CUDA};
    for (size_t i = 0; i < WAYS; i++) {
        const fabric_config_t config = config_of(i, true);
        has_child[i] = fabric_child_start(&config, NULL, &children[i]);
        if (!has_child[i]) {
            print_message("skipped: %s\n", ways[i].backends);
        }
    }
    if (!has_child[SHM]) {
        puts("skipped: no CUDA device");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        TESTS_OF(SHM),
        TESTS_OF(TCP),
        TEST(a_gpu_reads_blocks_of_a_gpu, UCX_WITHOUT_CUDA),
        TEST(the_host_reads_blocks_of_a_gpu, UCX_WITHOUT_CUDA),
    };
    const struct CMUnitTest by_ucx[] = {TESTS_OF(UCX)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (has_child[UCX]) {
        failed += cmocka_run_group_tests(by_ucx, NULL, NULL);
    }
    return failed;
}
