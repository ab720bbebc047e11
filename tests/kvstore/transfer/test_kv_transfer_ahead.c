/* SPDX-License-Identifier: Apache-2.0 */
/* Prefills that are followed while they run. */
#include "tests/support/transfer_pair.h"

static void blocks_are_pulled_as_they_fill(void **state)
{
    running_t running;
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    kv_pull_t *pull = expect_ahead(&decode, "xfer-1", PROMPT);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    begin_prefill(&running, "xfer-1", PROMPT);
    compute(&running, TOKENS + 3, 9);
    assert_gets(pull, TOKENS);
    assert_true(transfer_worker_has(&decode, blocks, 0, TOKENS, 9));
    assert_int_equal(kv_pull_tokens(pull), TOKENS); /* a half block is not whole */
    compute(&running, 2 * TOKENS - 3, 9);
    assert_gets(pull, 3 * TOKENS);
    compute(&running, PROMPT - 3 * TOKENS, 9);
    finish_prefill(&running, "cmpl-9");
    assert_pulled(pull);
    assert_true(transfer_worker_has(&decode, blocks, 0, PROMPT, 9));
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    assert_all_free(&prefill);
    const kv_transfer_stats_t stats = transfer_worker_stats(&decode);
    assert_true(stats.overlapped_bytes >= 3 * kv_pool_layout(decode.pool)->block_bytes[0]);
    assert_int_equal(stats.stale_reads, 0);
}

static bool has_been_told(void *user)
{
    (void)user;
    return transfer_worker_stats(&prefill).watches_done == 1;
}

static void who_gives_up_before_the_prefill_begins_leaves_nothing_held(void **state)
{
    running_t running;
    (void)state;
    kv_pull_t *pull = expect_ahead(&decode, "xfer-1", PROMPT);
    assert_true(transfer_rig_until(is_watched, NULL));
    kv_pull_end(pull);
    assert_true(transfer_rig_until(has_been_told, NULL));
    begin_prefill(&running, "xfer-1", PROMPT);
    compute(&running, PROMPT, 9);
    finish_prefill(&running, "cmpl-9");
    assert_all_free(&prefill);
}

static void an_aborted_prefill_is_heard_of(void **state)
{
    running_t running;
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    kv_pull_t *pull = expect_ahead(&decode, "xfer-1", PROMPT);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    begin_prefill(&running, "xfer-1", PROMPT);
    compute(&running, 2 * TOKENS, 9);
    assert_gets(pull, 2 * TOKENS);
    kv_lease_drop(running.lease);
    kv_pool_release(prefill.pool, running.blocks, running.n);
    assert_fails(pull, WEFT_ERR_CANCELLED, "given up");
    assert_int_equal(kv_pull_tokens(pull), 2 * TOKENS); /* what is there is good */
    assert_true(transfer_worker_has(&decode, blocks, 0, 2 * TOKENS, 9));
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    assert_all_free(&decode);
}

static void who_comes_after_the_abort_does_not_wait(void **state)
{
    running_t running;
    (void)state;
    begin_prefill(&running, "xfer-1", PROMPT);
    compute(&running, 2 * TOKENS, 9);
    kv_lease_drop(running.lease);
    kv_pool_release(prefill.pool, running.blocks, running.n);
    kv_pull_t *pull = expect_ahead(&decode, "xfer-1", PROMPT);
    assert_fails(pull, WEFT_ERR_CANCELLED, "given up");
    kv_pull_end(pull);
    begin_prefill(&running, "xfer-1", PROMPT); /* the name may be used again */
    compute(&running, TOKENS, 9);
    kv_block_id_t blocks[PROMPT_BLOCKS];
    pull = expect_ahead(&decode, "xfer-1", PROMPT);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    assert_gets(pull, TOKENS);
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    kv_lease_drop(running.lease);
    kv_pool_release(prefill.pool, running.blocks, running.n);
    assert_all_free(&decode);
}

/* Its blocks go to somebody else, and it computes everything again in others. */
static void a_preempted_prefill_is_followed(void **state)
{
    running_t running;
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    kv_pull_t *pull = expect_ahead(&decode, "xfer-1", PROMPT);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    begin_prefill(&running, "xfer-1", PROMPT);
    compute(&running, 2 * TOKENS, 9);
    assert_gets(pull, TOKENS);
    preempt_prefill(&running);
    compute(&running, PROMPT, 9);
    finish_prefill(&running, "cmpl-9");
    assert_pulled(pull);
    assert_true(transfer_worker_has(&decode, blocks, 0, PROMPT, 9));
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    assert_all_free(&prefill);
}

static void a_prefill_that_does_not_begin_is_not_waited_for(void **state)
{
    const transfer_worker_config_t config = {
        .extra = "\"transfer_wait\": 0.05, \"kv_lease_duration\": 0.12"};
    transfer_worker_t hasty;
    (void)state;
    transfer_worker_open(&hasty, &config);
    kv_pull_t *pull = expect_ahead(&hasty, "nobody knows it", PROMPT);
    assert_fails(pull, WEFT_ERR_TIMEOUT, "did not begin");
    kv_pull_end(pull);
    transfer_worker_close(&hasty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(blocks_are_pulled_as_they_fill),
        TEST(who_gives_up_before_the_prefill_begins_leaves_nothing_held),
        TEST(an_aborted_prefill_is_heard_of),
        TEST(who_comes_after_the_abort_does_not_wait),
        TEST(a_preempted_prefill_is_followed),
        TEST(a_prefill_that_does_not_begin_is_not_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
