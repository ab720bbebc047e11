/* SPDX-License-Identifier: Apache-2.0 */
/* Lists and pairs against pieces written out one by one. Their memory is only numbers here. */
#include <string.h>

#include "tests/support/check.h"
#include "tests/support/loop_backend.h"
#include "tests/support/random.h"
#include "transport/xfer/xfer_list_priv.h"
#include "transport/xfer/xfer_pair.h"

#define MAX_PIECES  2000
#define REGION      UINT64_C(10000)
#define N_REGIONS   8
#define FIRST_ADDR  UINT64_C(0x10000)
#define MEMORY_SIZE (REGION * N_REGIONS)

/* ---- two agents whose regions touch ---------------------------------------------------------- */

typedef struct world {
    xfer_agent_t *agent;
    xfer_agent_t *other;
    xfer_peer_t *peer;
} world_t;

static xfer_agent_t *open_agent(const char *name)
{
    const xfer_agent_config_t config = {.name = name};
    xfer_agent_t *agent = NULL;
    assert_status(xfer_agent_open(&config, loop_backends, NULL, &agent), WEFT_OK);
    for (uint64_t i = 0; i < N_REGIONS; i++) {
        xfer_region_t *region;
        const xfer_memory_t memory = {.space = XFER_DRAM,
                                      .addr = FIRST_ADDR + i * REGION,
                                      .bytes = REGION,
                                      .device = i / (N_REGIONS / 2),
                                      .fd = -1};
        assert_status(xfer_register(agent, &memory, NULL, &region), WEFT_OK);
    }
    return agent;
}

static void world_open(world_t *world)
{
    weft_buffer_t blob = {0};
    world->agent = open_agent("a");
    world->other = open_agent("b");
    assert_status(xfer_export(world->other, NULL, 0, true, &blob), WEFT_OK);
    assert_status(xfer_import(world->agent, blob.data, blob.length, NULL, &world->peer), WEFT_OK);
    weft_buffer_free(&blob);
}

static void world_close(world_t *world)
{
    xfer_agent_destroy(world->agent);
    xfer_agent_destroy(world->other);
}

/* ---- the model ------------------------------------------------------------------------------- */

typedef struct piece {
    uint64_t addr;
    uint64_t bytes;
    uint64_t device;
} piece_t;

typedef struct model {
    piece_t pieces[MAX_PIECES];
    size_t n;
    xfer_run_t runs[MAX_PIECES];
    size_t n_runs;
} model_t;

static uint64_t region_of(const piece_t *piece)
{
    return (piece->addr - FIRST_ADDR) / REGION;
}

static bool is_valid(const piece_t *piece)
{
    const uint64_t region = region_of(piece);
    return piece->addr >= FIRST_ADDR && piece->addr + piece->bytes <= FIRST_ADDR + MEMORY_SIZE &&
           (piece->addr + piece->bytes - 1 - FIRST_ADDR) / REGION == region &&
           piece->device == region / (N_REGIONS / 2);
}

/* A run that stays valid, of pieces of `bytes`; mostly goes on where the last ended. */
static void add_run(model_t *model, uint64_t bytes, test_random_t *random)
{
    xfer_run_t run = {.bytes = bytes, .count = 1};
    const piece_t *last = model->n == 0 ? NULL : &model->pieces[model->n - 1];
    run.addr = last != NULL && test_random_below(random, 3) > 0
                   ? last->addr + last->bytes
                   : FIRST_ADDR + test_random_below(random, (uint32_t)MEMORY_SIZE);
    const uint32_t wanted =
        test_random_below(random, 2) == 0 ? 1 : test_random_between(random, 1, 20);
    run.stride = bytes + (test_random_below(random, 2) == 0 ? 0 : test_random_below(random, 400));
    run.device = (run.addr - FIRST_ADDR) / REGION / (N_REGIONS / 2);
    run.count = 0;
    while (run.count < wanted && model->n < MAX_PIECES) {
        const piece_t piece = {run.addr + run.count * run.stride, bytes, run.device};
        if (!is_valid(&piece)) {
            break;
        }
        model->pieces[model->n++] = piece;
        run.count++;
    }
    if (run.count > 0) {
        model->runs[model->n_runs++] = run;
    }
}

static void model_make(model_t *model, uint64_t bytes, size_t n_runs, test_random_t *random)
{
    model->n = 0;
    model->n_runs = 0;
    while (model->n_runs < n_runs && model->n < MAX_PIECES) {
        add_run(model, bytes, random);
    }
}

static xfer_list_t *make_list(xfer_agent_t *agent, xfer_peer_t *peer, const model_t *model)
{
    weft_diag_t diag = {0};
    xfer_list_t *list = NULL;
    weft_status_t status =
        xfer_list_create(agent, peer, XFER_DRAM, model->runs, model->n_runs, &diag, &list);
    if (status < 0) {
        fail_msg("%s", diag.text);
    }
    return list;
}

/* ---- lists ----------------------------------------------------------------------------------- */

static void check_list(const xfer_list_t *list, const model_t *model, test_random_t *random)
{
    size_t hint = 0;
    assert_int_equal(xfer_list_pieces(list), model->n);
    for (size_t i = 0; i < 2 * model->n; i++) {
        const uint64_t id = i < model->n ? i : test_random_below(random, (uint32_t)model->n);
        const xfer_list_run_t *run = xfer_list_run_of(list, id, &hint);
        const piece_t *piece = &model->pieces[id];
        const xfer_range_t *range = list->cover->ranges[run->region];
        assert_true(id >= run->first && id - run->first < run->count);
        assert_true(run->addr + (id - run->first) * run->stride == piece->addr);
        assert_int_equal(run->bytes, piece->bytes);
        assert_int_equal(range->device, piece->device);
        assert_true(range->addr == FIRST_ADDR + region_of(piece) * REGION);
    }
}

static void a_list_has_the_pieces_it_was_given(void **state)
{
    (void)state;
    static model_t model;
    const uint64_t seed = test_seed(1);
    world_t world;
    world_open(&world);
    for (uint32_t round = 0; round < test_rounds(20000); round++) {
        test_random_t random = {seed + round};
        model_make(&model, test_random_between(&random, 1, 700),
                   test_random_between(&random, 1, 60), &random);
        xfer_list_t *list =
            make_list(world.agent, test_random_below(&random, 2) == 0 ? NULL : world.peer, &model);
        check_list(list, &model, &random);
        xfer_list_destroy(list);
    }
    world_close(&world);
}

static weft_status_t try_run(world_t *world, xfer_peer_t *peer, xfer_run_t run, weft_diag_t *diag)
{
    xfer_list_t *list = NULL;
    weft_status_t status = xfer_list_create(world->agent, peer, XFER_DRAM, &run, 1, diag, &list);
    xfer_list_destroy(list);
    return status;
}

static void a_piece_outside_of_one_region_is_named(void **state)
{
    (void)state;
    world_t world;
    weft_diag_t diag = {0};
    world_open(&world);
    const xfer_run_t good = {.addr = FIRST_ADDR, .bytes = 100, .stride = 100, .count = 400};
    assert_status(try_run(&world, NULL, good, &diag), WEFT_OK);
    xfer_run_t bad = good;
    bad.count = 401; /* the last lies on another device */
    assert_status(try_run(&world, NULL, bad, &diag), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "piece 400,"));
    bad = good;
    bad.addr += 50; /* one lies across two regions */
    assert_status(try_run(&world, world.peer, bad, &diag), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "piece 99,"));
    bad = good;
    bad.stride = UINT64_MAX; /* goes round */
    assert_status(try_run(&world, NULL, bad, &diag), WEFT_ERR_NOT_FOUND);
    bad = good;
    bad.bytes = UINT64_MAX;
    assert_status(try_run(&world, NULL, bad, &diag), WEFT_ERR_NOT_FOUND);
    bad = good;
    bad.addr = FIRST_ADDR - 1;
    assert_status(try_run(&world, NULL, bad, &diag), WEFT_ERR_NOT_FOUND);
    bad = good;
    bad.count = 0;
    assert_status(try_run(&world, NULL, bad, &diag), WEFT_ERR_INVALID);
    bad = good;
    bad.stride = 0;
    bad.count = (uint64_t)1 << 32;
    assert_status(try_run(&world, NULL, bad, &diag), WEFT_ERR_TOO_LARGE);
    world_close(&world);
}

static void pieces_that_follow_each_other_are_one_run(void **state)
{
    (void)state;
    enum { N = 1000 };
    static xfer_run_t runs[N];
    world_t world;
    xfer_list_t *list = NULL;
    world_open(&world);
    for (uint64_t i = 0; i < N; i++) {
        runs[i] = (xfer_run_t){.addr = FIRST_ADDR + 10 * i, .bytes = 7, .count = 1};
    }
    assert_status(xfer_list_create(world.agent, NULL, XFER_DRAM, runs, N, NULL, &list), WEFT_OK);
    assert_int_equal(list->n_runs, 1);
    assert_int_equal(xfer_list_pieces(list), N);
    xfer_list_destroy(list);
    for (uint64_t i = 0; i < N; i++) {
        runs[i].addr = FIRST_ADDR + 40 * i; /* over all regions of a device */
        runs[i].bytes = 40;
    }
    assert_status(xfer_list_create(world.agent, NULL, XFER_DRAM, runs, N, NULL, &list), WEFT_OK);
    assert_int_equal(list->n_runs, N_REGIONS / 2);
    assert_int_equal(list->cover->n, N_REGIONS / 2);
    xfer_list_destroy(list);
    world_close(&world);
}

static void memory_in_a_list_or_request_cannot_be_taken_back(void **state)
{
    (void)state;
    world_t world;
    xfer_region_t *region = NULL;
    xfer_list_t *local = NULL;
    xfer_list_t *peer = NULL;
    xfer_request_t *request = NULL;
    world_open(&world);
    const xfer_memory_t memory = {.space = XFER_DRAM, .addr = 4096, .bytes = 4096, .fd = -1};
    const xfer_run_t here = {.addr = 4096, .bytes = 4096, .count = 1};
    const xfer_run_t there = {.addr = FIRST_ADDR, .bytes = 4096, .count = 1};
    assert_status(xfer_register(world.agent, &memory, NULL, &region), WEFT_OK);
    assert_status(xfer_list_create(world.agent, NULL, XFER_DRAM, &here, 1, NULL, &local), WEFT_OK);
    assert_status(xfer_list_create(world.agent, world.peer, XFER_DRAM, &there, 1, NULL, &peer),
                  WEFT_OK);
    assert_status(xfer_deregister(world.agent, region), WEFT_ERR_IN_USE);
    const xfer_request_config_t config = {.local = local, .peer = peer};
    assert_status(xfer_request_create(world.agent, &config, NULL, &request), WEFT_OK);
    xfer_list_destroy(local);
    xfer_list_destroy(peer);
    assert_status(xfer_deregister(world.agent, region), WEFT_ERR_IN_USE);
    xfer_request_destroy(request);
    assert_status(xfer_deregister(world.agent, region), WEFT_OK);
    assert_status(xfer_list_create(world.agent, NULL, XFER_DRAM, &here, 1, NULL, &local),
                  WEFT_ERR_NOT_FOUND);
    world_close(&world);
}

/* ---- pairs ----------------------------------------------------------------------------------- */

typedef struct byte_pair {
    uint64_t local;
    uint64_t peer;
} byte_pair_t;

static byte_pair_t expected[MAX_PIECES * 64];
static byte_pair_t got[MAX_PIECES * 64];

static int compare_pairs(const void *a, const void *b)
{
    const byte_pair_t *x = a;
    const byte_pair_t *y = b;
    if (x->local != y->local) {
        return x->local < y->local ? -1 : 1;
    }
    return x->peer == y->peer ? 0 : x->peer < y->peer ? -1 : 1;
}

static size_t write_out(byte_pair_t *to, size_t n, uint64_t local, uint64_t peer, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i++) {
        to[n++] = (byte_pair_t){local + i, peer + i};
    }
    return n;
}

static bool would_follow(const piece_t *a, const piece_t *b)
{
    return a->addr + a->bytes == b->addr && region_of(a) == region_of(b);
}

/* As few extents as there are pairs that no other pair leads up to. No pair comes twice. */
static size_t count_heads(const model_t *local, const uint32_t *local_ids, const model_t *peer,
                          const uint32_t *peer_ids, size_t n)
{
    size_t heads = 0;
    for (size_t i = 0; i < n; i++) {
        bool is_head = true;
        for (size_t j = 0; j < n && is_head; j++) {
            is_head = !would_follow(&local->pieces[local_ids[j]], &local->pieces[local_ids[i]]) ||
                      !would_follow(&peer->pieces[peer_ids[j]], &peer->pieces[peer_ids[i]]);
        }
        heads += is_head;
    }
    return heads;
}

static void fill_ids(uint32_t *ids, size_t n, size_t below, test_random_t *random)
{
    for (size_t i = 0; i < n; i++) {
        ids[i] = i > 0 && ids[i - 1] + 1 < below && test_random_below(random, 3) > 0
                     ? ids[i - 1] + 1
                     : test_random_below(random, (uint32_t)below);
    }
}

static bool has_twice(const model_t *local, const uint32_t *local_ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < i; j++) {
            const piece_t *a = &local->pieces[local_ids[i]];
            const piece_t *b = &local->pieces[local_ids[j]];
            if (a->addr < b->addr + b->bytes && b->addr < a->addr + a->bytes) {
                return true;
            }
        }
    }
    return false;
}

static void check_pairs(world_t *world, const model_t *local, const model_t *peer,
                        const uint32_t *local_ids, const uint32_t *peer_ids, size_t n)
{
    xfer_extents_t extents;
    size_t n_expected = 0;
    size_t n_got = 0;
    xfer_list_t *local_list = make_list(world->agent, NULL, local);
    xfer_list_t *peer_list = make_list(world->agent, world->peer, peer);
    const xfer_pairs_t pairs = {local_list, peer_list, local_ids, peer_ids, n};
    assert_status(xfer_pair(&pairs, NULL, &extents), WEFT_OK);
    for (size_t i = 0; i < n; i++) {
        n_expected = write_out(expected, n_expected, local->pieces[local_ids[i]].addr,
                               peer->pieces[peer_ids[i]].addr, local->pieces[local_ids[i]].bytes);
    }
    for (size_t i = 0; i < extents.n; i++) {
        const xfer_extent_t *extent = &extents.items[i];
        assert_true(extent->bytes > 0);
        n_got = write_out(got, n_got, extent->local, extent->peer, extent->bytes);
        const xfer_range_t *range = peer_list->cover->ranges[extent->peer_region];
        assert_true(extent->peer >= range->addr &&
                    extent->peer + extent->bytes <= range->addr + range->bytes);
    }
    assert_int_equal(n_got, n_expected);
    assert_true(extents.bytes == n_expected);
    qsort(expected, n_expected, sizeof(expected[0]), compare_pairs);
    qsort(got, n_got, sizeof(got[0]), compare_pairs);
    assert_memory_equal(got, expected, n_got * sizeof(got[0]));
    if (!has_twice(local, local_ids, n)) {
        assert_int_equal(extents.n, count_heads(local, local_ids, peer, peer_ids, n));
    }
    weft_free(extents.items);
    xfer_list_destroy(local_list);
    xfer_list_destroy(peer_list);
}

static void extents_are_the_pairs_and_as_few_as_can_be(void **state)
{
    (void)state;
    static model_t local;
    static model_t peer;
    static uint32_t local_ids[MAX_PIECES];
    static uint32_t peer_ids[MAX_PIECES];
    const uint64_t seed = test_seed(1);
    world_t world;
    world_open(&world);
    for (uint32_t round = 0; round < test_rounds(20000); round++) {
        test_random_t random = {seed + round};
        const uint64_t bytes = test_random_between(&random, 1, 60);
        model_make(&local, bytes, test_random_between(&random, 1, 20), &random);
        model_make(&peer, bytes, test_random_between(&random, 1, 20), &random);
        const size_t most = local.n < peer.n ? local.n : peer.n;
        const size_t n = test_random_below(&random, (uint32_t)most + 1);
        fill_ids(local_ids, n, local.n, &random);
        fill_ids(peer_ids, n, peer.n, &random);
        if (test_random_below(&random, 2) == 0) { /* many that go on: pair a list with itself */
            memcpy(peer_ids, local_ids, n * sizeof(*peer_ids));
            check_pairs(&world, &local, &local, local_ids, peer_ids, n);
        } else {
            check_pairs(&world, &local, &peer, local_ids, peer_ids, n);
        }
    }
    world_close(&world);
}

static void an_order_that_hides_neighbours_is_seen_through(void **state)
{
    (void)state;
    enum { N = 100 };
    static model_t model;
    static uint32_t ids[N];
    world_t world;
    world_open(&world);
    model.n_runs = 1;
    model.runs[0] = (xfer_run_t){.addr = FIRST_ADDR, .bytes = 10, .stride = 10, .count = N};
    for (uint32_t i = 0; i < N; i++) {
        ids[i] = N - 1 - i;
    }
    xfer_list_t *local = make_list(world.agent, NULL, &model);
    xfer_list_t *peer = make_list(world.agent, world.peer, &model);
    const xfer_pairs_t pairs = {local, peer, ids, ids, N};
    xfer_extents_t extents;
    assert_status(xfer_pair(&pairs, NULL, &extents), WEFT_OK);
    assert_int_equal(extents.n, 1);
    assert_true(extents.items[0].local == FIRST_ADDR && extents.items[0].bytes == 10 * N);
    weft_free(extents.items);
    xfer_list_destroy(local);
    xfer_list_destroy(peer);
    world_close(&world);
}

static void pairs_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    static model_t model;
    world_t world;
    weft_diag_t diag = {0};
    xfer_extents_t extents;
    world_open(&world);
    model.n_runs = 1;
    model.runs[0] = (xfer_run_t){.addr = FIRST_ADDR, .bytes = 10, .stride = 10, .count = 5};
    xfer_list_t *local = make_list(world.agent, NULL, &model);
    model.runs[0].bytes = 9;
    xfer_list_t *other = make_list(world.agent, world.peer, &model);
    model.runs[0].bytes = 10;
    xfer_list_t *peer = make_list(world.agent, world.peer, &model);
    const uint32_t ids[] = {4, 5};
    xfer_pairs_t pairs = {local, other, NULL, NULL, 1};
    assert_status(xfer_pair(&pairs, &diag, &extents), WEFT_ERR_INVALID);
    pairs = (xfer_pairs_t){local, peer, ids, NULL, 2};
    assert_status(xfer_pair(&pairs, &diag, &extents), WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "pair 1"));
    pairs = (xfer_pairs_t){local, peer, NULL, ids, 2};
    assert_status(xfer_pair(&pairs, &diag, &extents), WEFT_ERR_INVALID);
    pairs = (xfer_pairs_t){local, peer, NULL, NULL, 6};
    assert_status(xfer_pair(&pairs, &diag, &extents), WEFT_ERR_INVALID);
    xfer_list_destroy(local);
    xfer_list_destroy(other);
    xfer_list_destroy(peer);
    world_close(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_list_has_the_pieces_it_was_given),
        cmocka_unit_test(a_piece_outside_of_one_region_is_named),
        cmocka_unit_test(pieces_that_follow_each_other_are_one_run),
        cmocka_unit_test(memory_in_a_list_or_request_cannot_be_taken_back),
        cmocka_unit_test(extents_are_the_pairs_and_as_few_as_can_be),
        cmocka_unit_test(an_order_that_hides_neighbours_is_seen_through),
        cmocka_unit_test(pairs_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
