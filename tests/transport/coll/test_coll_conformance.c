/* SPDX-License-Identifier: Apache-2.0 */
/* What the operations of every backend come to, for each row of coll_backends.def. */
#include <string.h>

#include "base/device.h"
#include "tests/support/coll_trial.h"
#include "transport/coll/coll_feed.h"

#define MAX_RANKS 4

/* Around every limit that an algorithm may have, odd ones between them. */
static const size_t sizes[] = {1,    2,     3,     5,     7,     14,    15,    16,     17,
                               31,   33,    64,    127,   1000,  1024,  2047,  2048,   4097,
                               8192, 10000, 16385, 32768, 40001, 65536, 65537, 131072, 200003};

/* ---- every operation at every size ------------------------------------------------------------ */

static void run_sums(coll_rig_rank_t *self)
{
    coll_trial_t trial;
    coll_trial_open(&trial, self, self->user);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sizes); i++) {
        for (int dtype = COLL_F32; dtype <= COLL_BF16; dtype++) {
            const coll_variant_t variant = {
                .dtype = (coll_dtype_t)dtype, .shift = i % 3, .is_in_place = i % 2 == 1};
            const size_t part = sizes[i] / 2 + 1;
            coll_trial_all_reduce(&trial, sizes[i], variant);
            coll_trial_reduce_scatter(&trial, part, variant);
        }
    }
    coll_trial_close(&trial);
}

static void run_copies(coll_rig_rank_t *self)
{
    coll_trial_t trial;
    coll_trial_open(&trial, self, self->user);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sizes); i++) {
        for (int is_in_place = 0; is_in_place < 2; is_in_place++) {
            const coll_variant_t variant = {
                .shift = i % 5, .is_in_place = is_in_place == 1, .root = (uint32_t)i};
            coll_trial_all_gather(&trial, sizes[i], variant);
            coll_trial_broadcast(&trial, sizes[i], variant);
        }
    }
    coll_trial_close(&trial);
}

static void claim_sums(const char *backend)
{
    for (uint32_t size = 1; size <= MAX_RANKS; size++) {
        coll_rig_run(size, run_sums, (void *)(uintptr_t)backend);
    }
}

static void sums_are_added_in_rank_order_bit_for_bit(void **state)
{
    (void)state;
    coll_rig_each_backend(claim_sums);
}

static void claim_copies(const char *backend)
{
    for (uint32_t size = 1; size <= MAX_RANKS; size++) {
        coll_rig_run(size, run_copies, (void *)(uintptr_t)backend);
    }
}

static void gathers_and_broadcasts_bring_every_byte(void **state)
{
    (void)state;
    coll_rig_each_backend(claim_copies);
}

/* ---- any sequence ------------------------------------------------------------------------------ */

typedef struct campaign {
    const char *backend;
    uint64_t seed;
    uint32_t n_operations;
} campaign_t;

static size_t random_size(test_random_t *random, size_t max)
{
    const size_t limit = (size_t)1 << test_random_between(random, 1, 18);
    const size_t n = 1 + test_random_below(random, (uint32_t)limit);
    return n < max ? n : max;
}

static void run_sequence(coll_rig_rank_t *self)
{
    const campaign_t *campaign = self->user;
    test_random_t random = {.state = campaign->seed};
    coll_trial_t trial;
    coll_rig_rank_t named = *self;
    named.user = (void *)(uintptr_t)campaign->backend;
    coll_trial_open(&trial, &named, named.user);
    for (uint32_t i = 0; i < campaign->n_operations; i++) {
        const coll_variant_t variant = {.dtype = (coll_dtype_t)test_random_below(&random, 3),
                                        .shift = test_random_below(&random, 16),
                                        .is_in_place = test_random_below(&random, 2) == 0,
                                        .root = test_random_below(&random, MAX_RANKS)};
        const size_t n = random_size(&random, 250000);
        switch (test_random_below(&random, 6)) {
        case 0:
            coll_barrier(trial.coll, self->queue);
            break;
        case 1:
            coll_trial_reduce_scatter(&trial, n / 2 + 1, variant);
            break;
        case 2:
            coll_trial_all_gather(&trial, n, variant);
            break;
        case 3:
            coll_trial_broadcast(&trial, n, variant);
            break;
        default:
            coll_trial_all_reduce(&trial, n, variant);
            break;
        }
    }
    coll_trial_close(&trial);
}

static void claim_sequences(const char *backend)
{
    const uint64_t seed = test_seed(20261126);
    const uint32_t rounds = test_rounds(160);
    for (uint32_t round = 0; round < rounds; round++) {
        campaign_t campaign = {.backend = backend, .seed = seed + round, .n_operations = 60};
        print_message("seed %llu\n", (unsigned long long)campaign.seed);
        coll_rig_run(2 + (uint32_t)(campaign.seed % 3), run_sequence, &campaign);
    }
}

static void any_sequence_of_operations_is_as_the_model(void **state)
{
    (void)state;
    coll_rig_each_backend(claim_sequences);
}

/* ---- pairs ------------------------------------------------------------------------------------- */

static const size_t message_sizes[] = {0, 1, 63, 4096, 100001, (size_t)2 << 20};

static void run_pairs(coll_rig_rank_t *self)
{
    coll_trial_t trial;
    coll_trial_open(&trial, self, self->user);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(message_sizes); i++) {
        coll_trial_pairs(&trial, message_sizes[i]);
    }
    coll_trial_close(&trial);
}

static void claim_pairs(const char *backend)
{
    coll_rig_run(2, run_pairs, (void *)(uintptr_t)backend);
    coll_rig_run(4, run_pairs, (void *)(uintptr_t)backend);
}

static void sends_go_ahead_and_arrive_in_order(void **state)
{
    (void)state;
    coll_rig_each_backend(claim_pairs);
}

/* ---- more than any buffer ----------------------------------------------------------------------- */

#define HUGE_ELEMENTS ((size_t)2300003)
#define HUGE_BYTES    (((size_t)65 << 20) + 3)

static void run_huge_sum(coll_rig_rank_t *self)
{
    coll_t *coll = coll_rig_create(self, self->user);
    float *in = weft_calloc(HUGE_ELEMENTS + 1, sizeof(float), "test.in");
    float *out = weft_calloc(HUGE_ELEMENTS + 1, sizeof(float), "test.out");
    assert_non_null(in);
    assert_non_null(out);
    coll_model_input(1, self->rank, COLL_F32, in, 0, HUGE_ELEMENTS);
    coll_all_reduce(coll, self->queue, in, out + 1, HUGE_ELEMENTS, COLL_F32);
    coll_all_reduce(coll, self->queue, in, in, HUGE_ELEMENTS, COLL_F32);
    assert_status(coll_status(coll, NULL), WEFT_OK);
    for (size_t i = 0; i < HUGE_ELEMENTS; i++) {
        float expected;
        coll_model_sum(1, self->size, COLL_F32, &expected, i, 1);
        assert_true(out[1 + i] == expected && in[i] == expected);
    }
    coll_barrier(coll, self->queue);
    coll_destroy(coll);
    weft_free(out);
    weft_free(in);
}

static void run_huge_message(coll_rig_rank_t *self)
{
    coll_t *coll = coll_rig_create(self, self->user);
    char *data = weft_alloc(HUGE_BYTES, "test.data");
    assert_non_null(data);
    if (self->rank == 0) {
        coll_model_bytes(3, 0, data, HUGE_BYTES);
        coll_send(coll, self->queue, 1, data, HUGE_BYTES);
    } else {
        char *expected = weft_alloc(HUGE_BYTES, "test.expected");
        assert_non_null(expected);
        coll_model_bytes(3, 0, expected, HUGE_BYTES);
        coll_receive(coll, self->queue, 0, data, HUGE_BYTES);
        assert_int_equal(memcmp(data, expected, HUGE_BYTES), 0);
        weft_free(expected);
    }
    coll_barrier(coll, self->queue);
    assert_status(coll_status(coll, NULL), WEFT_OK);
    coll_destroy(coll);
    weft_free(data);
}

static void what_fits_no_buffer_goes_in_pieces(void **state)
{
    (void)state;
    coll_rig_run_each(3, 0, run_huge_sum);
    coll_rig_run_each(2, 0, run_huge_message);
}

/* ---- no memory ---------------------------------------------------------------------------------- */

static bool try_alone(coll_rig_rank_t *self)
{
    const coll_config_t config = coll_rig_config(self, self->user);
    coll_t *coll = NULL;
    coll_feed_t *feed = NULL;
    const float one = 1;
    float sum = 0;
    const weft_status_t status = coll_create(&config, NULL, &coll);
    if (status >= 0 && coll_feed_create(coll, 100, 2, NULL, &feed) >= 0) {
        coll_all_reduce(coll, self->queue, &one, &sum, 1, COLL_F32);
        assert_true(sum == 1);
    }
    coll_feed_destroy(feed);
    coll_destroy(coll);
    return sum == 1;
}

static void run_without_memory(coll_rig_rank_t *self)
{
    bool is_done = false;
    for (uint64_t n = 1; !is_done; n++) {
        const size_t held = weft_alloc_live_bytes();
        (void)weft_alloc_fail_nth(n);
        is_done = try_alone(self);
        (void)weft_alloc_fail_nth(0);
        assert_int_equal(weft_alloc_live_bytes(), held);
        assert_true(n < 1000);
    }
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    coll_rig_run(1, run_without_memory, (void *)(uintptr_t)"shm");
}

/* ---- parts ------------------------------------------------------------------------------------- */

/* Colors of 1, 2 and 3 members; a part works beside its parent. */
static void run_split(coll_rig_rank_t *self)
{
    static const uint32_t colors[] = {7, 3, 7, 3, 9, 3};
    static const uint32_t ranks[] = {0, 0, 1, 1, 0, 2};
    static const uint32_t part_sizes[] = {2, 3, 2, 3, 1, 3};
    coll_t *coll = coll_rig_create(self, self->user);
    coll_t *part = NULL;
    coll_t *second = NULL;
    weft_diag_t diag = {.text = ""};
    assert_status(coll_split(coll, colors[self->rank], &diag, &part), WEFT_OK);
    assert_int_equal(coll_rank(part), ranks[self->rank]);
    assert_int_equal(coll_size(part), part_sizes[self->rank]);
    for (int i = 0; i < 100; i++) {
        const float mine = (float)(self->rank + 1);
        const float sums[] = {4, 12, 4, 12, 5, 12};
        float of_part = 0;
        float of_all = 0;
        coll_all_reduce(part, self->queue, &mine, &of_part, 1, COLL_F32);
        coll_all_reduce(coll, self->queue, &mine, &of_all, 1, COLL_F32);
        assert_true(of_part == sums[self->rank]);
        assert_true(of_all == 21);
    }
    assert_status(coll_split(part, 0, &diag, &second), WEFT_ERR_UNSUPPORTED);
    coll_barrier(coll, self->queue);
    coll_destroy(part);
    coll_destroy(coll);
}

static void ranks_of_one_color_make_a_group(void **state)
{
    (void)state;
    coll_rig_run_each(6, 0, run_split);
}

/* ---- choosing ---------------------------------------------------------------------------------- */

static void run_disagreement(coll_rig_rank_t *self)
{
    const coll_config_t config = coll_rig_config(self, self->rank == 1 ? "auto" : "shm");
    weft_diag_t diag = {.text = ""};
    coll_t *coll = NULL;
    assert_status(coll_create(&config, &diag, &coll), WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "\"auto\""));
}

static void ranks_that_name_different_backends_are_told(void **state)
{
    (void)state;
    coll_rig_run(3, run_disagreement, NULL);
}

static void run_unknown(coll_rig_rank_t *self)
{
    const coll_config_t config = coll_rig_config(self, "pigeon");
    weft_diag_t diag = {.text = ""};
    coll_t *coll = NULL;
    assert_status(coll_create(&config, &diag, &coll), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "shm"));
}

static void an_unknown_backend_is_answered_with_the_known_ones(void **state)
{
    (void)state;
    coll_rig_run(2, run_unknown, NULL);
}

static void run_auto(coll_rig_rank_t *self)
{
    coll_t *coll = coll_rig_create(self, "auto");
    assert_string_equal(coll_backend_name(coll), "shm");
    coll_barrier(coll, self->queue);
    coll_destroy(coll);
}

static void auto_takes_the_first_that_all_can_use(void **state)
{
    (void)state;
    coll_rig_run(3, run_auto, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_added_in_rank_order_bit_for_bit),
        cmocka_unit_test(gathers_and_broadcasts_bring_every_byte),
        cmocka_unit_test(any_sequence_of_operations_is_as_the_model),
        cmocka_unit_test(sends_go_ahead_and_arrive_in_order),
        cmocka_unit_test(what_fits_no_buffer_goes_in_pieces),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(ranks_of_one_color_make_a_group),
        cmocka_unit_test(ranks_that_name_different_backends_are_told),
        cmocka_unit_test(an_unknown_backend_is_answered_with_the_known_ones),
        cmocka_unit_test(auto_takes_the_first_that_all_can_use),
    };
    setenv("UCX_NET_DEVICES", "lo", 0); /* others come and go while tests of networks run */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
