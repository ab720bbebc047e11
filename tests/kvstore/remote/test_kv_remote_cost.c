/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/remote/kv_remote_cost.h"

#include "tests/support/check.h"

/* 1 GB/s, 100 µs to ask and as much to reach. */
static const kv_remote_rates_t rates = {.answer_ns = 1e5, .latency_ns = 1e5, .byte_ns = 1};

static kv_remote_work_t blocks_of(uint32_t n, double compute_ns)
{
    return (kv_remote_work_t){.n_blocks = n, .block_bytes = 1e5, .block_compute_ns = compute_ns};
}

static void reading_counts_what_each_part_takes(void **state)
{
    (void)state;
    const kv_remote_work_t work = blocks_of(10, 0);
    assert_int_equal((int64_t)kv_remote_read_ns(&rates, &work), 1200000);
}

static void blocks_are_read_only_for_twice_the_speed(void **state)
{
    (void)state;
    const kv_remote_work_t twice = blocks_of(10, 240000);
    const kv_remote_work_t less = blocks_of(10, 239999);
    assert_true(kv_remote_is_worth(&rates, &twice));
    assert_false(kv_remote_is_worth(&rates, &less));
}

static void a_few_blocks_are_not_worth_the_way(void **state)
{
    (void)state;
    const kv_remote_work_t one = blocks_of(1, 300000);
    const kv_remote_work_t many = blocks_of(100, 300000);
    assert_false(kv_remote_is_worth(&rates, &one));
    assert_true(kv_remote_is_worth(&rates, &many));
}

static void before_anything_was_computed_blocks_are_read(void **state)
{
    (void)state;
    const kv_remote_work_t some = blocks_of(1, 0);
    const kv_remote_work_t none = blocks_of(0, 0);
    assert_true(kv_remote_is_worth(&rates, &some));
    assert_false(kv_remote_is_worth(&rates, &none));
}

static void more_blocks_from_a_faster_peer_gain_more(void **state)
{
    (void)state;
    const kv_remote_rates_t slow = {.answer_ns = 1e5, .latency_ns = 1e5, .byte_ns = 2};
    for (int known = 0; known < 2; known++) {
        const kv_remote_work_t few = blocks_of(50, known * 1e6);
        const kv_remote_work_t many = blocks_of(100, known * 1e6);
        assert_true(kv_remote_gain_ns(&rates, &many) > kv_remote_gain_ns(&rates, &few));
    }
    const kv_remote_work_t work = blocks_of(100, 1e6);
    assert_true(kv_remote_gain_ns(&rates, &work) > kv_remote_gain_ns(&slow, &work));
}

static void a_rate_follows_what_is_measured(void **state)
{
    (void)state;
    double rate = 0;
    kv_remote_rate_note(&rate, 8);
    assert_true(rate == 8);
    for (int i = 0; i < 100; i++) {
        kv_remote_rate_note(&rate, 2);
    }
    assert_true(rate > 1.99 && rate < 2.01);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reading_counts_what_each_part_takes),
        cmocka_unit_test(blocks_are_read_only_for_twice_the_speed),
        cmocka_unit_test(a_few_blocks_are_not_worth_the_way),
        cmocka_unit_test(before_anything_was_computed_blocks_are_read),
        cmocka_unit_test(more_blocks_from_a_faster_peer_gain_more),
        cmocka_unit_test(a_rate_follows_what_is_measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
