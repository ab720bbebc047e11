/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that prefill and decode for each other, over the real fabric. */
#include "kvstore/transfer/kv_transfer.h"

#include <stdio.h>

#include "tests/support/random.h"
#include "tests/support/transfer_pair.h"

static void a_prompt_is_pulled_and_its_blocks_are_free_then(void **state)
{
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "cmpl-1:x", PROMPT, 7);
    assert_int_equal(params.n_blocks, PROMPT_BLOCKS);
    assert_int_equal(params.remote_num_tokens, PROMPT);
    kv_pull_t *pull = expect(&decode, &params, PROMPT);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    assert_int_equal(kv_pull_tokens(pull), 0);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    assert_pulled(pull);
    assert_int_equal(kv_pull_tokens(pull), PROMPT);
    assert_true(transfer_worker_has(&decode, blocks, 0, PROMPT, 7));
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    assert_all_free(&prefill);
    assert_all_free(&decode);
    const kv_transfer_stats_t there = transfer_worker_stats(&prefill);
    assert_int_equal(there.leases, 1);
    assert_int_equal(there.leases_released, 1);
    assert_int_equal(there.leases_open, 0);
    const kv_transfer_stats_t here = transfer_worker_stats(&decode);
    assert_int_equal(here.pulls, 1);
    assert_int_equal(here.handshakes, 1);
    assert_int_equal(here.pulls_open, 0);
    const uint64_t block_bytes = kv_pool_layout(decode.pool)->block_bytes[0];
    assert_int_equal(here.bytes_read, PROMPT_BLOCKS * block_bytes);
    assert_int_equal(here.overlapped_bytes, 0);
    assert_int_equal(decode.n_reports, 1);
    assert_int_equal(decode.last_report.bytes, PROMPT_BLOCKS * block_bytes);
    kv_transfer_params_fini(&params);
}

static void what_is_here_already_is_not_read(void **state)
{
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    kv_pull_t *pull = expect(&decode, &params, PROMPT);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    transfer_worker_write(&decode, blocks, 0, PROMPT, 8);
    assert_status(kv_pull_start(pull, 2, blocks + 2, n - 2), WEFT_OK);
    assert_int_equal(kv_pull_tokens(pull), 2 * TOKENS);
    assert_pulled(pull);
    assert_true(transfer_worker_has(&decode, blocks, 0, 2 * TOKENS, 8));
    assert_true(transfer_worker_has(&decode, blocks, 2 * TOKENS, PROMPT - 2 * TOKENS, 7));
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    assert_all_free(&prefill);
    assert_int_equal(transfer_worker_stats(&decode).bytes_read,
                     3 * kv_pool_layout(decode.pool)->block_bytes[0]);
    kv_transfer_params_fini(&params);
}

static void where_all_is_here_the_peer_is_told_alone(void **state)
{
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    kv_pull_t *pull = expect(&decode, &params, PROMPT);
    assert_status(kv_pull_start(pull, PROMPT_BLOCKS, NULL, 0), WEFT_OK);
    assert_pulled(pull);
    kv_pull_end(pull);
    assert_all_free(&prefill);
    assert_int_equal(transfer_worker_stats(&decode).bytes_read, 0);
    assert_int_equal(decode.n_reports, 0);
    kv_transfer_params_fini(&params);
}

/* The last token is computed here in any case: its block need not be there. */
static void no_more_is_read_than_there_are_blocks_for(void **state)
{
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", 4 * TOKENS + 1, 7);
    assert_int_equal(params.n_blocks, 5);
    kv_pull_t *pull = expect(&decode, &params, 4 * TOKENS + 1);
    const uint32_t n = alloc(&decode, 4 * TOKENS, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    assert_pulled(pull);
    assert_int_equal(kv_pull_tokens(pull), 4 * TOKENS);
    assert_int_equal(kv_pull_tokens_in_the_end(pull), 4 * TOKENS);
    assert_true(transfer_worker_has(&decode, blocks, 0, 4 * TOKENS, 7));
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    assert_all_free(&prefill);
    kv_transfer_params_fini(&params);
}

static void a_request_that_never_runs_frees_the_peers_blocks(void **state)
{
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    kv_transfer_decline(decode.transfer, &params);
    assert_all_free(&prefill);
    assert_int_equal(transfer_worker_stats(&prefill).leases_released, 1);
    assert_int_equal(transfer_worker_stats(&decode).pulls_failed, 0);
    kv_transfer_params_fini(&params);
}

/* It may take the peer ten seconds to answer, or not to. */
static void a_pull_that_ends_before_the_peer_has_answered_keeps_no_blocks(void **state)
{
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    kv_pull_t *pull = expect(&decode, &params, PROMPT);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    assert_int_equal(kv_pool_held_blocks(decode.pool), 0);
    assert_int_equal(kv_transfer_landing_blocks(decode.transfer), 0);
    assert_all_free(&prefill); /* it is told all the same */
    kv_transfer_params_fini(&params);
}

static void answers_without_leases_are_asked_for_them(void **state)
{
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    params.n_leases = 0; /* a proxy that keeps vLLM's keys alone */
    kv_pull_t *pull = expect(&decode, &params, PROMPT);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    assert_pulled(pull);
    assert_true(transfer_worker_has(&decode, blocks, 0, PROMPT, 7));
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    assert_all_free(&prefill);
    kv_transfer_params_fini(&params);
}

/* ---- leases over ----------------------------------------------------------------------------- */

static void open_hasty(transfer_worker_t *worker, double lease_s)
{
    char extra[64];
    const transfer_worker_config_t config = {.extra = extra};
    snprintf(extra, sizeof(extra), "\"kv_lease_duration\": %g", lease_s);
    transfer_worker_open(worker, &config);
}

static bool has_expired(void *user)
{
    return transfer_worker_stats(user).leases_expired > 0;
}

static void blocks_of_an_expired_lease_are_stale(void **state)
{
    transfer_worker_t hasty;
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    open_hasty(&hasty, 0.02);
    kv_transfer_params_t params = prefill_whole(&hasty, "r", PROMPT, 7);
    assert_true(transfer_rig_until(has_expired, &hasty));
    assert_int_equal(kv_pool_held_blocks(hasty.pool), 0);
    kv_pull_t *pull = expect(&decode, &params, PROMPT);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    assert_fails(pull, WEFT_ERR_STALE, "no longer");
    assert_int_equal(kv_pull_tokens(pull), 0);
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    assert_int_equal(transfer_worker_stats(&decode).stale_reads, 1);
    kv_transfer_params_fini(&params);
    transfer_worker_close(&hasty);
}

static bool has_many_heartbeats(void *user)
{
    return transfer_worker_stats(user).heartbeats_received >= 20;
}

/* Twenty heartbeats at a sixth of a lease are more than three of them. */
static void heartbeats_keep_blocks_while_a_request_waits(void **state)
{
    transfer_worker_t holder;
    transfer_worker_t waiter;
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    open_hasty(&holder, 1.5);
    open_hasty(&waiter, 0.6);
    kv_transfer_params_t params = prefill_whole(&holder, "r", PROMPT, 7);
    kv_pull_t *pull = expect(&waiter, &params, PROMPT);
    assert_true(transfer_rig_until(has_many_heartbeats, &holder));
    assert_int_equal(transfer_worker_stats(&holder).leases_expired, 0);
    const uint32_t n = alloc(&waiter, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    assert_pulled(pull);
    assert_true(transfer_worker_has(&waiter, blocks, 0, PROMPT, 7));
    kv_pull_end(pull);
    kv_pool_release(waiter.pool, blocks, n);
    assert_all_free(&holder);
    kv_transfer_params_fini(&params);
    transfer_worker_close(&waiter);
    transfer_worker_close(&holder);
}

/* ---- giving up in the middle ----------------------------------------------------------------- */

static void a_pull_may_end_at_any_time(void **state)
{
    test_random_t random = {test_seed(3)};
    const uint32_t rounds = test_rounds(1000);
    (void)state;
    for (uint32_t i = 0; i < rounds; i++) {
        kv_block_id_t blocks[PROMPT_BLOCKS];
        char id[32];
        uint32_t users[TRANSFER_RIG_BLOCKS] = {0};
        snprintf(id, sizeof(id), "r%u", i);
        kv_transfer_params_t params = prefill_whole(&prefill, id, PROMPT, i);
        kv_pull_t *pull = expect(&decode, &params, PROMPT);
        for (uint32_t polls = test_random_below(&random, 4); polls > 0; polls--) {
            transfer_rig_poll();
        }
        const uint32_t n = alloc(&decode, PROMPT, blocks);
        if (test_random_below(&random, 4) > 0) {
            assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
        }
        for (uint32_t polls = test_random_below(&random, 4); polls > 0; polls--) {
            transfer_rig_poll();
        }
        const bool is_there = kv_pull_state(pull) == WEFT_OK;
        kv_pull_end(pull);
        assert_true(!is_there || transfer_worker_has(&decode, blocks, 0, PROMPT, i));
        kv_transfer_count_held(decode.transfer, users);
        for (uint32_t block = 0; block < n; block++) {
            assert_int_equal(kv_pool_refs(decode.pool, blocks[block]), 1 + users[blocks[block]]);
        }
        kv_pool_release(decode.pool, blocks, n);
        assert_true(transfer_rig_until(has_landed, &decode));
        assert_all_free(&prefill);
        kv_transfer_params_fini(&params);
    }
    assert_int_equal(transfer_worker_stats(&prefill).late_notifications, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_prompt_is_pulled_and_its_blocks_are_free_then),
        TEST(what_is_here_already_is_not_read),
        TEST(where_all_is_here_the_peer_is_told_alone),
        TEST(no_more_is_read_than_there_are_blocks_for),
        TEST(a_request_that_never_runs_frees_the_peers_blocks),
        TEST(a_pull_that_ends_before_the_peer_has_answered_keeps_no_blocks),
        TEST(answers_without_leases_are_asked_for_them),
        TEST(blocks_of_an_expired_lease_are_stale),
        TEST(heartbeats_keep_blocks_while_a_request_waits),
        TEST(a_pull_may_end_at_any_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
