/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_lease_table.h"

#include <string.h>

#include "tests/support/check.h"
#include "tests/support/random.h"

enum { BLOCKS = 48, SLOTS = 6, LEASE_NS = 30, MAX_ID = 16 };

typedef struct rig {
    weft_device_t *device;
    kv_pool_t *pool;
    kv_lease_table_t *table;
    uint64_t words[SLOTS];
    uint32_t gone;
} rig_t;

static rig_t rig;

/* What a lease ends with is what it was until then: the epoch is the old one, the blocks are held. */
static void on_gone(void *user, kv_lease_t *lease)
{
    rig_t *own = user;
    own->gone++;
    assert_true(own->words[lease->ref.slot] == lease->ref.epoch);
    for (uint32_t i = 0; lease->state == KV_LEASE_HELD && i < lease->n_blocks; i++) {
        assert_true(kv_pool_refs(own->pool, lease->blocks[i]) > 0);
    }
}

static int setup(void **state)
{
    (void)state;
    rig = (rig_t){0};
    assert_status(weft_device_open("cpu", 0, NULL, &rig.device), WEFT_OK);
    kv_pool_config_t pool = {.device = rig.device,
                             .layout = {.block_tokens = 4,
                                        .element_bytes = 4,
                                        .n_groups = 1,
                                        .groups = {{.layers = 1, .heads = 1, .head_dim = 1}}},
                             .n_blocks = BLOCKS};
    assert_status(kv_layout_init(&pool.layout, BLOCKS, NULL), WEFT_OK);
    assert_status(kv_pool_create(&pool, &rig.pool), WEFT_OK);
    const kv_lease_table_config_t config = {.pool = rig.pool,
                                            .words = rig.words,
                                            .n_slots = SLOTS,
                                            .lease_ns = LEASE_NS,
                                            .on_gone = on_gone,
                                            .user = &rig};
    assert_status(kv_lease_table_create(&config, &rig.table), WEFT_OK);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    kv_lease_table_destroy(rig.table);
    assert_int_equal(kv_pool_held_blocks(rig.pool), 0);
    kv_pool_destroy(rig.pool);
    weft_device_close(rig.device);
    return 0;
}

static void take(uint32_t n, kv_block_id_t *blocks)
{
    assert_status(kv_pool_alloc(rig.pool, n, blocks), WEFT_OK);
}

/* A request of n blocks that ends, and gives up its own references. */
static kv_lease_t *hold(kv_lease_t *lease, const char *id, uint32_t n, uint64_t now,
                        kv_block_id_t *blocks)
{
    take(n, blocks);
    assert_status(kv_lease_table_hold(rig.table, id, blocks, n, 4 * n, now, &lease), WEFT_OK);
    kv_pool_release(rig.pool, blocks, n);
    return lease;
}

static bool read_done(const char *id, uint32_t readers)
{
    return kv_lease_table_read(rig.table, id, strlen(id), readers);
}

static void beat(const char *id, uint64_t now)
{
    kv_lease_table_heartbeat(rig.table, id, strlen(id), now);
}

/* ---- claims ---------------------------------------------------------------------------------- */

static void held_blocks_stay_until_their_reader_is_done(void **state)
{
    kv_block_id_t blocks[3];
    (void)state;
    const kv_lease_t *lease = hold(NULL, "r:1", 3, 0, blocks);
    const kv_lease_ref_t ref = lease->ref;
    assert_int_equal(kv_pool_held_blocks(rig.pool), 3);
    assert_true(rig.words[ref.slot] == ref.epoch);
    assert_true(read_done("r:1", 1));
    assert_int_equal(kv_pool_held_blocks(rig.pool), 0);
    assert_true(rig.words[ref.slot] != ref.epoch);
    assert_int_equal(kv_lease_table_stats(rig.table).released, 1);
    assert_int_equal(rig.gone, 1);
}

static void as_many_readers_as_there_are_must_be_done(void **state)
{
    kv_block_id_t blocks[2];
    (void)state;
    hold(NULL, "r", 2, 0, blocks);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(kv_pool_held_blocks(rig.pool), 2);
        assert_true(read_done("r", 4));
    }
    assert_true(read_done("r", 4));
    assert_int_equal(kv_pool_held_blocks(rig.pool), 0);
}

static void a_lease_ends_and_a_late_reader_is_counted(void **state)
{
    kv_block_id_t blocks[2];
    (void)state;
    hold(NULL, "r", 2, 100, blocks);
    assert_int_equal(kv_lease_table_next_expiry(rig.table), 100 + LEASE_NS);
    assert_int_equal(kv_lease_table_expire(rig.table, 100 + LEASE_NS - 1), 0);
    assert_int_equal(kv_lease_table_expire(rig.table, 100 + LEASE_NS), 1);
    assert_int_equal(kv_pool_held_blocks(rig.pool), 0);
    assert_true(kv_lease_table_next_expiry(rig.table) == UINT64_MAX);
    assert_false(read_done("r", 1));
    const kv_lease_stats_t stats = kv_lease_table_stats(rig.table);
    assert_int_equal(stats.expired, 1);
    assert_int_equal(stats.late, 1);
    assert_int_equal(stats.released, 0);
}

static void heartbeats_move_the_end_and_never_back(void **state)
{
    kv_block_id_t blocks[1];
    (void)state;
    const kv_lease_t *lease = hold(NULL, "r", 1, 0, blocks);
    beat("r", 5); /* 5 + 20 is before 30 */
    assert_int_equal(lease->expires_ns, LEASE_NS);
    beat("r", 25);
    assert_int_equal(lease->expires_ns, 45);
    beat("someone else", 99);
    assert_int_equal(lease->expires_ns, 45);
    assert_int_equal(kv_lease_table_expire(rig.table, 44), 0);
    assert_int_equal(kv_lease_table_expire(rig.table, 45), 1);
}

static void an_open_lease_borrows_and_is_found_by_both_names(void **state)
{
    kv_block_id_t blocks[4];
    kv_lease_t *lease;
    kv_lease_t *other;
    (void)state;
    take(4, blocks);
    assert_status(kv_lease_table_open(rig.table, "t", &lease), WEFT_OK);
    assert_status(kv_lease_table_open(rig.table, "t", &other), WEFT_ERR_EXISTS);
    assert_status(kv_lease_table_fill(lease, blocks, 2, 8), WEFT_OK);
    assert_status(kv_lease_table_fill(lease, blocks, 1, 4), WEFT_ERR_INVALID);
    assert_int_equal(kv_pool_refs(rig.pool, blocks[0]), 1);
    assert_int_equal(kv_lease_table_expire(rig.table, UINT64_MAX - 1), 0);
    assert_ptr_equal(kv_lease_table_find(rig.table, "t", 1), lease);
    const uint64_t epoch = lease->ref.epoch;
    assert_status(kv_lease_table_hold(rig.table, "r", blocks, 4, 15, 0, &lease), WEFT_OK);
    assert_true(lease->ref.epoch == epoch); /* who reads already goes on */
    assert_ptr_equal(kv_lease_table_find(rig.table, "t", 1), lease);
    assert_ptr_equal(kv_lease_table_find(rig.table, "r", 1), lease);
    assert_int_equal(kv_pool_refs(rig.pool, blocks[3]), 2);
    kv_pool_release(rig.pool, blocks, 4);
    assert_true(read_done("t", 1));
    assert_null(kv_lease_table_find(rig.table, "r", 1));
    assert_null(kv_lease_table_find(rig.table, "t", 1));
}

static void a_retracted_lease_has_another_epoch(void **state)
{
    kv_block_id_t blocks[3];
    kv_lease_t *lease;
    (void)state;
    take(3, blocks);
    assert_status(kv_lease_table_open(rig.table, "t", &lease), WEFT_OK);
    assert_status(kv_lease_table_fill(lease, blocks, 2, 8), WEFT_OK);
    const uint64_t epoch = lease->ref.epoch;
    kv_lease_table_retract(lease);
    assert_true(lease->ref.epoch > epoch && rig.words[lease->ref.slot] == lease->ref.epoch);
    assert_status(kv_lease_table_fill(lease, blocks + 1, 1, 4), WEFT_OK);
    kv_lease_table_drop(lease);
    kv_pool_release(rig.pool, blocks, 3);
}

static void one_whose_readers_are_done_already_is_not_held(void **state)
{
    kv_block_id_t blocks[2];
    kv_lease_t *lease;
    (void)state;
    assert_status(kv_lease_table_open(rig.table, "t", &lease), WEFT_OK);
    assert_true(read_done("t", 1));
    lease = hold(lease, "r", 2, 0, blocks);
    assert_null(lease);
    assert_int_equal(kv_pool_held_blocks(rig.pool), 0);
    assert_int_equal(kv_lease_table_stats(rig.table).released, 1);
}

static void ids_and_slots_are_used_once_at_a_time(void **state)
{
    kv_block_id_t blocks[SLOTS + 1];
    kv_lease_t *lease = NULL;
    char id[MAX_ID];
    (void)state;
    take(SLOTS + 1, blocks);
    for (int i = 0; i < SLOTS; i++) {
        snprintf(id, sizeof(id), "r%d", i);
        lease = NULL;
        assert_status(kv_lease_table_hold(rig.table, id, &blocks[i], 1, 4, 0, &lease), WEFT_OK);
    }
    lease = NULL;
    assert_status(kv_lease_table_hold(rig.table, "more", &blocks[SLOTS], 1, 4, 0, &lease),
                  WEFT_ERR_QUEUE_FULL);
    assert_true(read_done("r0", 1));
    lease = NULL;
    assert_status(kv_lease_table_hold(rig.table, "r1", &blocks[SLOTS], 1, 4, 0, &lease),
                  WEFT_ERR_EXISTS);
    assert_int_equal(kv_pool_refs(rig.pool, blocks[SLOTS]), 1);
    assert_int_equal(kv_lease_table_stats(rig.table).open_now, 0);
    kv_pool_release(rig.pool, blocks, SLOTS + 1);
}

static void a_failed_allocation_holds_nothing(void **state)
{
    kv_block_id_t blocks[3];
    (void)state;
    take(3, blocks);
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    for (uint64_t n = 1; status != WEFT_OK; n++) {
        kv_lease_t *lease = NULL;
        weft_alloc_fail_nth(n);
        status = kv_lease_table_open(rig.table, "t", &lease);
        if (status == WEFT_OK) {
            status = kv_lease_table_hold(rig.table, "r", blocks, 3, 12, 0, &lease);
        }
        weft_alloc_fail_nth(0);
        assert_int_equal(kv_pool_refs(rig.pool, blocks[0]), status == WEFT_OK ? 2 : 1);
    }
    kv_pool_release(rig.pool, blocks, 3);
}

/* ---- any history ----------------------------------------------------------------------------- */

/*
 * Requests are computed, held, read and forgotten in any order, while blocks go to whoever comes next
 * and are written anew each time. A reader notes the epoch, copies, and looks at the epoch again: what
 * it then believes is what the request wrote. The naive model knows for each lease what its references
 * must be.
 */
enum { MAX_LIVE = 8 };

typedef struct model_request {
    bool is_live;
    char transfer_id[MAX_ID];
    char request_id[MAX_ID];
    kv_lease_t *lease; /* while it runs */
    bool is_held;
    uint64_t expires;
    uint32_t readers;
    uint32_t done;
    kv_block_id_t blocks[4];
    uint32_t n;
    uint32_t filled;
    uint64_t seed; /* of what it writes */
    kv_lease_ref_t ref;
} model_request_t;

typedef struct model_reader {
    bool is_reading;
    kv_lease_ref_t ref;
    uint64_t seed;
    kv_block_id_t blocks[4];
    uint32_t n;
    uint32_t at; /* the next block to look at */
    bool is_wrong;
} model_reader_t;

typedef struct model {
    test_random_t random;
    uint64_t now;
    uint32_t n_ids;
    model_request_t requests[MAX_LIVE];
    model_reader_t readers[MAX_LIVE];
    uint64_t stale;
    uint64_t good;
    uint64_t wrong_but_noticed;
} model_t;

static uint64_t written(uint64_t seed, uint32_t i)
{
    test_random_t random = {seed + i};
    return test_random_u64(&random);
}

static uint64_t *block_at(kv_block_id_t block)
{
    return kv_pool_block(rig.pool, block);
}

static void begin_request(model_t *model, model_request_t *request)
{
    const uint32_t n = test_random_between(&model->random, 1, 4);
    kv_block_id_t blocks[4];
    if (kv_pool_alloc(rig.pool, n, blocks) != WEFT_OK) {
        return;
    }
    *request = (model_request_t){.is_live = true,
                                 .n = n,
                                 .seed = test_random_u64(&model->random),
                                 .readers = test_random_between(&model->random, 1, 3)};
    memcpy(request->blocks, blocks, sizeof(blocks));
    snprintf(request->transfer_id, MAX_ID, "t%u", model->n_ids);
    snprintf(request->request_id, MAX_ID, "r%u", model->n_ids++);
    if (test_random_below(&model->random, 4) > 0 &&
        kv_lease_table_open(rig.table, request->transfer_id, &request->lease) == WEFT_OK) {
        request->ref = request->lease->ref;
    }
}

static void fill_request(model_request_t *request)
{
    if (request->filled < request->n) {
        *block_at(request->blocks[request->filled]) = written(request->seed, request->filled);
        request->filled++;
        if (request->lease != NULL) {
            assert_status(kv_lease_table_fill(request->lease, request->blocks, request->filled,
                                              4 * request->filled),
                          WEFT_OK);
        }
    }
}

static void preempt_request(model_request_t *request)
{
    if (request->lease != NULL) {
        kv_lease_table_retract(request->lease);
        request->ref = request->lease->ref;
    }
    kv_pool_release(rig.pool, request->blocks, request->n);
    request->filled = 0;
    if (kv_pool_alloc(rig.pool, request->n, request->blocks) != WEFT_OK) {
        kv_lease_table_drop(request->lease);
        request->is_live = false;
    }
}

static void end_request(model_t *model, model_request_t *request)
{
    if (test_random_below(&model->random, 4) == 0) {
        kv_lease_table_drop(request->lease);
        request->is_live = false;
    } else {
        kv_lease_t *lease = request->lease;
        const weft_status_t status =
            kv_lease_table_hold(rig.table, request->request_id, request->blocks, request->n,
                                4 * request->n, model->now, &lease);
        request->is_live = status == WEFT_OK && lease != NULL;
        request->is_held = request->is_live;
        request->expires = model->now + LEASE_NS;
        if (request->is_live) {
            request->ref = lease->ref;
        }
        assert_true(request->is_live || status == WEFT_ERR_QUEUE_FULL ||
                    request->done >= request->readers);
    }
    request->lease = NULL;
    kv_pool_release(rig.pool, request->blocks, request->n);
}

static void advance_request(model_t *model, model_request_t *request)
{
    if (!request->is_live) {
        begin_request(model, request);
    } else if (request->is_held) {
        return;
    } else if (test_random_below(&model->random, 8) == 0) {
        preempt_request(request);
    } else if (request->filled < request->n) {
        fill_request(request);
    } else {
        end_request(model, request);
    }
}

static void say_done(model_t *model, model_request_t *request)
{
    const bool by_transfer = test_random_below(&model->random, 2) == 0 && request->ref.epoch != 0;
    const char *id = by_transfer ? request->transfer_id : request->request_id;
    const bool is_known = read_done(id, request->readers);
    if (is_known) {
        request->done++;
        if (request->is_held && request->done >= request->readers) {
            request->is_live = false;
        }
    }
}

static void pass_time(model_t *model)
{
    model->now += test_random_below(&model->random, LEASE_NS / 2);
    kv_lease_table_expire(rig.table, model->now);
    for (int i = 0; i < MAX_LIVE; i++) {
        model_request_t *request = &model->requests[i];
        if (request->is_live && request->is_held && request->expires <= model->now) {
            request->is_live = false;
        }
    }
}

static void send_heartbeat(model_t *model, model_request_t *request)
{
    beat(request->request_id, model->now);
    if (request->is_live && request->is_held && model->now + 20 > request->expires) {
        request->expires = model->now + 20;
    }
}

/* As much of a reading as there is time for; a new one begins where none is. */
static void advance_reader(model_t *model, model_reader_t *reader, const model_request_t *request)
{
    if (!reader->is_reading) {
        if (request->is_live && request->ref.epoch != 0 && request->filled > 0) {
            *reader = (model_reader_t){.is_reading = true,
                                       .ref = request->ref,
                                       .seed = request->seed,
                                       .n = request->filled};
            memcpy(reader->blocks, request->blocks, sizeof(reader->blocks));
        }
        return;
    }
    if (reader->at < reader->n) {
        reader->is_wrong |=
            *block_at(reader->blocks[reader->at]) != written(reader->seed, reader->at);
        reader->at++;
        return;
    }
    reader->is_reading = false;
    if (rig.words[reader->ref.slot] != reader->ref.epoch) {
        model->stale++;
        model->wrong_but_noticed += reader->is_wrong;
        return;
    }
    model->good++;
    assert_false(reader->is_wrong);
}

static void check_references(const model_t *model)
{
    uint32_t expected[BLOCKS] = {0};
    uint32_t leased[BLOCKS] = {0};
    uint32_t in_leases[BLOCKS] = {0};
    uint64_t held = 0;
    for (int i = 0; i < MAX_LIVE; i++) {
        const model_request_t *request = &model->requests[i];
        held += request->is_live && request->is_held;
        for (uint32_t j = 0; request->is_live && j < request->n; j++) {
            expected[request->blocks[j]]++;
            leased[request->blocks[j]] += request->is_held;
        }
    }
    kv_lease_table_count(rig.table, in_leases);
    for (kv_block_id_t block = 0; block < BLOCKS; block++) {
        assert_int_equal(kv_pool_refs(rig.pool, block), expected[block]);
        assert_int_equal(in_leases[block], leased[block]);
    }
    assert_int_equal(kv_lease_table_stats(rig.table).held_now, held);
}

static void run_history(uint64_t seed)
{
    model_t model = {.random = {seed}};
    for (int step = 0; step < 3000; step++) {
        const uint32_t i = test_random_below(&model.random, MAX_LIVE);
        switch (test_random_below(&model.random, 16)) {
        case 0:
            pass_time(&model);
            break;
        case 1:
            say_done(&model, &model.requests[i]);
            break;
        case 2:
            send_heartbeat(&model, &model.requests[i]);
            break;
        case 3:
        case 4:
        case 5:
        case 6:
        case 7:
            advance_reader(&model, &model.readers[i],
                           &model.requests[test_random_below(&model.random, MAX_LIVE)]);
            break;
        default:
            advance_request(&model, &model.requests[i]);
        }
        check_references(&model);
    }
    for (int i = 0; i < MAX_LIVE; i++) {
        model_request_t *request = &model.requests[i];
        if (request->is_live && !request->is_held) {
            kv_lease_table_drop(request->lease);
            kv_pool_release(rig.pool, request->blocks, request->n);
        }
    }
    kv_lease_table_expire(rig.table, UINT64_MAX);
    assert_int_equal(kv_pool_held_blocks(rig.pool), 0);
    assert_true(model.good > 0 && model.stale > 0 && model.wrong_but_noticed > 0);
}

static void nothing_leaks_and_nothing_is_believed_after_reuse(void **state)
{
    const uint64_t seed = test_seed(1);
    const uint32_t rounds = test_rounds(400);
    for (uint32_t i = 0; i < rounds; i++) {
        if (i > 0) {
            teardown(state);
            setup(state);
        }
        run_history(seed + i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(held_blocks_stay_until_their_reader_is_done, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(as_many_readers_as_there_are_must_be_done, setup, teardown),
        cmocka_unit_test_setup_teardown(a_lease_ends_and_a_late_reader_is_counted, setup, teardown),
        cmocka_unit_test_setup_teardown(heartbeats_move_the_end_and_never_back, setup, teardown),
        cmocka_unit_test_setup_teardown(an_open_lease_borrows_and_is_found_by_both_names, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_retracted_lease_has_another_epoch, setup, teardown),
        cmocka_unit_test_setup_teardown(one_whose_readers_are_done_already_is_not_held, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(ids_and_slots_are_used_once_at_a_time, setup, teardown),
        cmocka_unit_test_setup_teardown(a_failed_allocation_holds_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_leaks_and_nothing_is_believed_after_reuse, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
