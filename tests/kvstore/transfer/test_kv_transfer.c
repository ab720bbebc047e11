/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that prefill and decode for each other, over the real fabric. */
#include "kvstore/transfer/kv_transfer.h"

#include <stdio.h>
#include <string.h>

#include "kvstore/transfer/kv_compat.h"
#include "kvstore/transfer/kv_handshake.h"
#include "kvstore/transfer/kv_side_channel.h"
#include "kvstore/transfer/kv_transfer_priv.h"
#include "tests/support/random.h"
#include "tests/support/transfer_rig.h"
#include "tests/support/zmq_tsan.h"
#include "transport/xfer/xfer.h"

enum { TOKENS = 16, PROMPT = 5 * TOKENS - 3, PROMPT_BLOCKS = 5, MAX_RANKS = 4 };

static transfer_worker_t prefill;
static transfer_worker_t decode;
static weft_diag_t diag;

static int setup(void **state)
{
    const transfer_worker_config_t config = {0};
    (void)state;
    diag = (weft_diag_t){0};
    transfer_worker_open(&prefill, &config);
    transfer_worker_open(&decode, &config);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    transfer_worker_close(&decode);
    transfer_worker_close(&prefill);
    return 0;
}

/* ---- a prompt on both sides ------------------------------------------------------------------ */

static uint32_t blocks_of(const transfer_worker_t *worker, uint32_t tokens)
{
    const uint32_t each = kv_pool_layout(worker->pool)->block_tokens;
    return (tokens + each - 1) / each;
}

static uint32_t alloc(transfer_worker_t *worker, uint32_t tokens, kv_block_id_t *blocks)
{
    const uint32_t n = blocks_of(worker, tokens);
    assert_status(kv_pool_alloc(worker->pool, n, blocks), WEFT_OK);
    return n;
}

/* Computes the prompt and ends: the transfer alone holds its blocks. */
static kv_transfer_params_t prefill_whole(transfer_worker_t *worker, const char *id,
                                          uint32_t tokens, uint64_t prompt)
{
    kv_block_id_t blocks[TRANSFER_RIG_BLOCKS];
    kv_transfer_params_t params;
    const uint32_t n = alloc(worker, tokens, blocks);
    transfer_worker_write(worker, blocks, 0, tokens, prompt);
    assert_status(kv_transfer_hold(worker->transfer, NULL, id, blocks, n, tokens, &params),
                  WEFT_OK);
    kv_pool_release(worker->pool, blocks, n);
    return params;
}

static kv_pull_t *expect(transfer_worker_t *worker, const kv_transfer_params_t *params,
                         uint32_t tokens)
{
    kv_pull_t *pull = NULL;
    diag = (weft_diag_t){0};
    assert_status(kv_transfer_params_check(params, &diag), WEFT_OK);
    if (kv_transfer_expect(worker->transfer, params, tokens, &diag, &pull) != WEFT_OK) {
        fail_msg("%s", diag.text);
    }
    return pull;
}

static bool is_over(void *user)
{
    return kv_pull_state(user) != WEFT_PENDING;
}

static void assert_pulled(kv_pull_t *pull)
{
    assert_true(transfer_rig_until(is_over, pull));
    if (kv_pull_state(pull) != WEFT_OK) {
        fail_msg("%s: %s", weft_strerror(kv_pull_state(pull)), kv_pull_reason(pull));
    }
}

static void assert_fails(kv_pull_t *pull, weft_status_t status, const char *said)
{
    assert_true(transfer_rig_until(is_over, pull));
    assert_status(kv_pull_state(pull), status);
    if (strstr(kv_pull_reason(pull), said) == NULL) {
        fail_msg("\"%s\" does not say %s", kv_pull_reason(pull), said);
    }
}

static bool is_free(void *user)
{
    const transfer_worker_t *worker = user;
    return kv_pool_held_blocks(worker->pool) == 0;
}

static void assert_all_free(transfer_worker_t *worker)
{
    assert_true(transfer_rig_until(is_free, worker));
}

/* ---- claims ---------------------------------------------------------------------------------- */

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

/* ---- ahead ----------------------------------------------------------------------------------- */

/* A prefill that runs while somebody watches. */
typedef struct running {
    transfer_worker_t *worker;
    kv_lease_t *lease;
    kv_block_id_t blocks[TRANSFER_RIG_BLOCKS];
    uint32_t n;
    uint32_t tokens;
} running_t;

static void begin_prefill_on(transfer_worker_t *worker, running_t *running, const char *transfer_id,
                             uint32_t tokens)
{
    *running = (running_t){.worker = worker};
    running->n = alloc(worker, tokens, running->blocks);
    running->lease = kv_transfer_open(worker->transfer, transfer_id);
    assert_non_null(running->lease);
}

static void begin_prefill(running_t *running, const char *transfer_id, uint32_t tokens)
{
    begin_prefill_on(&prefill, running, transfer_id, tokens);
}

static void compute(running_t *running, uint32_t tokens, uint64_t prompt)
{
    transfer_worker_write(running->worker, running->blocks, running->tokens, tokens, prompt);
    running->tokens += tokens;
    kv_lease_progress(running->lease, running->blocks, running->n, running->tokens);
}

static void finish_prefill(running_t *running, const char *id)
{
    kv_transfer_params_t params;
    assert_status(kv_transfer_hold(running->worker->transfer, running->lease, id, running->blocks,
                                   running->n, running->tokens, &params),
                  WEFT_OK);
    kv_pool_release(running->worker->pool, running->blocks, running->n);
    kv_transfer_params_fini(&params);
}

/* Its blocks are given up, and taken again in another order, written by somebody else meanwhile. */
static void preempt_prefill(running_t *running)
{
    kv_lease_retract(running->lease);
    transfer_worker_write(running->worker, running->blocks, 0,
                          running->n * running->worker->form.block_tokens, UINT32_MAX);
    for (uint32_t i = 0; i < running->n / 2; i++) {
        const kv_block_id_t block = running->blocks[i];
        running->blocks[i] = running->blocks[running->n - 1 - i];
        running->blocks[running->n - 1 - i] = block;
    }
    running->tokens = 0;
}

static kv_pull_t *expect_ahead_of(const transfer_worker_t *there, transfer_worker_t *worker,
                                  const char *transfer_id, uint32_t tokens)
{
    kv_transfer_params_t params = {.do_remote_prefill = true,
                                   .has_port = true,
                                   .remote_port = kv_transfer_port(there->transfer),
                                   .remote_host = (char *)"127.0.0.1",
                                   .transfer_id = (char *)transfer_id,
                                   .tp_size = 1,
                                   .pp_size = 1,
                                   .dcp_size = 1};
    return expect(worker, &params, tokens);
}

static kv_pull_t *expect_ahead(transfer_worker_t *worker, const char *transfer_id, uint32_t tokens)
{
    return expect_ahead_of(&prefill, worker, transfer_id, tokens);
}

typedef struct wanted {
    kv_pull_t *pull;
    uint32_t tokens;
} wanted_t;

static bool has_tokens(void *user)
{
    const wanted_t *wanted = user;
    return kv_pull_tokens(wanted->pull) >= wanted->tokens || kv_pull_state(wanted->pull) < 0;
}

static void assert_gets(kv_pull_t *pull, uint32_t tokens)
{
    wanted_t wanted = {pull, tokens};
    assert_true(transfer_rig_until(has_tokens, &wanted));
    assert_string_equal(kv_pull_reason(pull), "");
    assert_true(kv_pull_tokens(pull) >= tokens);
}

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

static bool is_watched(void *user)
{
    (void)user;
    return transfer_worker_stats(&decode).handshakes == 1;
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

/* ---- who does not fit, who is not there ------------------------------------------------------- */

static void what_differs_is_named(void **state)
{
    const transfer_worker_config_t config = {.model = 1};
    transfer_worker_t other;
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    transfer_worker_open(&other, &config);
    kv_pull_t *pull = expect(&other, &params, PROMPT);
    assert_fails(pull, WEFT_ERR_INVALID, "other weights");
    kv_pull_end(pull);
    transfer_worker_close(&other);
    kv_transfer_decline(decode.transfer, &params);
    assert_all_free(&prefill);
    kv_transfer_params_fini(&params);
}

static void another_engine_at_the_address_is_not_read(void **state)
{
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    params.remote_engine_id[0] ^= 1;
    kv_pull_t *pull = expect(&decode, &params, PROMPT);
    assert_fails(pull, WEFT_ERR_INVALID, "another engine");
    kv_pull_end(pull);
    kv_transfer_params_fini(&params);
}

static void blocks_the_peer_does_not_have_are_not_read(void **state)
{
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    params.blocks[2] = TRANSFER_RIG_BLOCKS;
    kv_pull_t *pull = expect(&decode, &params, PROMPT);
    assert_fails(pull, WEFT_ERR_INVALID, "does not have");
    kv_pull_end(pull);
    assert_all_free(&prefill); /* it was told all the same */
    kv_transfer_params_fini(&params);
}

static void a_peer_that_is_not_there_fails_at_once_and_is_left_alone_for_a_while(void **state)
{
    kv_pull_t *pull;
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    transfer_worker_close(&prefill);
    pull = expect(&decode, &params, PROMPT);
    assert_fails(pull, WEFT_ERR_PEER_GONE, "nobody listens");
    kv_pull_end(pull);
    assert_status(kv_transfer_expect(decode.transfer, &params, PROMPT, &diag, &pull),
                  WEFT_ERR_PEER_GONE);
    assert_non_null(strstr(diag.text, "nobody listens"));
    kv_transfer_params_fini(&params);
}

static weft_status_t expect_of(kv_transfer_params_t params, char *host)
{
    kv_pull_t *pull;
    params.remote_host = host;
    return kv_transfer_expect(decode.transfer, &params, PROMPT, &diag, &pull);
}

static void of_invented_hosts_the_oldest_are_forgotten(void **state)
{
    char host[32];
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    assert_status(expect_of(params, "no host"), WEFT_ERR_INVALID);
    assert_status(expect_of(params, "no host"), WEFT_ERR_PEER_GONE); /* it is left alone */
    for (int i = 0; i < KV_TRANSFER_MAX_PEERS; i++) {
        snprintf(host, sizeof(host), "no host %d", i);
        assert_status(expect_of(params, host), WEFT_ERR_INVALID);
    }
    assert_status(expect_of(params, "no host"), WEFT_ERR_INVALID);
    assert_status(expect_of(params, host), WEFT_ERR_PEER_GONE);
    kv_transfer_poll(decode.transfer);
    const kv_transfer_stats_t stats = transfer_worker_stats(&decode);
    assert_int_equal(stats.n_peers, 1); /* none of them is named for ever */
    assert_string_equal(stats.peers[0].address, KV_TRANSFER_OTHER_PEERS);
    assert_int_equal(stats.peers[0].failures, KV_TRANSFER_MAX_PEERS + 4);
    kv_transfer_params_fini(&params);
}

static bool is_shown_again(void *user)
{
    const uint64_t *failures = user;
    const kv_transfer_stats_t stats = transfer_worker_stats(&decode);
    return stats.n_peers == 1 && stats.peers[0].failures == *failures;
}

static void each_request_that_goes_without_is_counted_once(void **state)
{
    kv_pull_t *pull;
    uint64_t failures = 1;
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    transfer_worker_close(&prefill);
    pull = expect(&decode, &params, PROMPT);
    assert_fails(pull, WEFT_ERR_PEER_GONE, "nobody listens");
    kv_pull_end(pull);
    assert_true(transfer_rig_until(is_shown_again, &failures));
    assert_status(kv_transfer_expect(decode.transfer, &params, PROMPT, &diag, &pull),
                  WEFT_ERR_PEER_GONE);
    failures = 2;
    assert_true(transfer_rig_until(is_shown_again, &failures));
    assert_int_equal(transfer_worker_stats(&decode).pulls_failed, 1);
    kv_transfer_params_fini(&params);
}

static void a_peer_that_goes_fails_the_pulls_that_need_it(void **state)
{
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    kv_pull_t *pull = expect_ahead(&decode, "xfer-1", PROMPT);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    assert_true(transfer_rig_until(is_watched, NULL));
    transfer_worker_close(&prefill);
    assert_true(transfer_rig_until(is_over, pull));
    assert_true(kv_pull_state(pull) == WEFT_ERR_PEER_GONE ||
                kv_pull_state(pull) == WEFT_ERR_TIMEOUT);
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    assert_all_free(&decode);
}

static bool has_met(void *user)
{
    (void)user;
    return transfer_worker_stats(&decode).handshakes > 0;
}

/* Started anew on the same port: requests name its new id. */
static void a_new_engine_at_the_address_is_met(void **state)
{
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    const transfer_worker_config_t config = {.port = params.remote_port};
    kv_transfer_decline(decode.transfer, &params);
    assert_all_free(&prefill);
    kv_transfer_params_fini(&params);
    transfer_worker_close(&prefill);
    transfer_worker_open(&prefill, &config);
    params = prefill_whole(&prefill, "r", PROMPT, 8);
    kv_pull_t *pull = expect(&decode, &params, PROMPT);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    assert_pulled(pull);
    assert_true(transfer_worker_has(&decode, blocks, 0, PROMPT, 8));
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    assert_all_free(&prefill);
    const kv_transfer_stats_t stats = transfer_worker_stats(&decode);
    assert_int_equal(stats.handshakes, 2);
    assert_int_equal(stats.n_peers, 1); /* its address is the same */
    assert_int_equal(stats.peers[0].pulls, 1);
    assert_true(stats.peers[0].is_connected);
    assert_string_equal(stats.peers[0].engine_id, kv_transfer_engine_id(prefill.transfer));
    kv_transfer_params_fini(&params);
}

/* A pull that ends after another engine was met at the address counts for the same address. */
static void a_replaced_peers_pull_is_counted(void **state)
{
    kv_block_id_t blocks[PROMPT_BLOCKS];
    kv_pull_t *second;
    char other[] = "another engine";
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    kv_pull_t *pull = expect(&decode, &params, PROMPT);
    assert_true(transfer_rig_until(has_met, NULL));
    kv_transfer_params_t newer = params;
    newer.remote_engine_id = other;
    assert_status(kv_transfer_expect(decode.transfer, &newer, PROMPT, &diag, &second), WEFT_OK);
    const uint32_t n = alloc(&decode, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    assert_pulled(pull);
    kv_transfer_poll(decode.transfer);
    const kv_transfer_stats_t stats = transfer_worker_stats(&decode);
    assert_int_equal(stats.n_peers, 1);
    assert_int_equal(stats.peers[0].pulls, 1);
    assert_int_equal(stats.peers[0].bytes, stats.bytes_read);
    kv_pull_end(second);
    kv_pull_end(pull);
    kv_pool_release(decode.pool, blocks, n);
    kv_transfer_params_fini(&params);
}

static void a_producer_pulls_nothing(void **state)
{
    const transfer_worker_config_t config = {.role = "kv_producer"};
    transfer_worker_t producer;
    kv_pull_t *pull;
    (void)state;
    transfer_worker_open(&producer, &config);
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    assert_status(kv_transfer_expect(producer.transfer, &params, PROMPT, &diag, &pull),
                  WEFT_ERR_UNSUPPORTED);
    kv_transfer_decline(decode.transfer, &params);
    assert_all_free(&prefill);
    kv_transfer_params_fini(&params);
    transfer_worker_close(&producer);
}

/* ---- strangers ------------------------------------------------------------------------------- */

/* An agent that met the prefill worker as any decode worker does. */
typedef struct stranger {
    kv_side_channel_t *channel;
    kv_side_client_t *client;
    xfer_agent_t *agent;
    xfer_peer_t *peer;
    kv_side_answer_t *answer;
} stranger_t;

static bool is_answered(void *user)
{
    stranger_t *stranger = user;
    stranger->answer = kv_side_client_next(stranger->client);
    return stranger->answer != NULL;
}

static void open_stranger(stranger_t *stranger)
{
    const xfer_agent_config_t agent = {.backends = getenv("WEFT_TEST_BACKEND"), .has_thread = true};
    const kv_side_client_config_t client = {.wake = transfer_rig_wake};
    const kv_meta_request_t rank = {0, 0};
    kv_handshake_t handshake;
    *stranger = (stranger_t){0};
    assert_status(kv_side_channel_create("127.0.0.1", 0, &diag, &stranger->channel), WEFT_OK);
    assert_status(kv_side_client_open(stranger->channel, &client, &stranger->client), WEFT_OK);
    assert_status(kv_side_client_ask(stranger->client, "127.0.0.1",
                                     kv_transfer_port(prefill.transfer), rank, 0),
                  WEFT_OK);
    assert_true(transfer_rig_until(is_answered, stranger));
    assert_status(
        kv_handshake_decode(stranger->answer->payload, stranger->answer->bytes, &diag, &handshake),
        WEFT_OK);
    assert_status(xfer_agent_create(&agent, &diag, &stranger->agent), WEFT_OK);
    assert_status(xfer_import(stranger->agent, handshake.agent.agent_metadata.data,
                              handshake.agent.agent_metadata.length, &diag, &stranger->peer),
                  WEFT_OK);
    kv_handshake_fini(&handshake);
}

static void close_stranger(stranger_t *stranger)
{
    xfer_agent_destroy(stranger->agent);
    kv_side_answer_free(stranger->answer);
    kv_side_client_close(stranger->client);
    kv_side_channel_destroy(stranger->channel);
}

static bool has_heard_all(void *user)
{
    const kv_transfer_stats_t stats = transfer_worker_stats(user);
    return stats.bad_notifications >= 5 && stats.late_notifications >= 1 &&
           stats.heartbeats_received >= 1;
}

static void a_strangers_notifications_do_no_harm(void **state)
{
    static const char *const words[] = {"x",   ":",        "WEFT_KV:\x81", "WEFT_WATCH:\xc1",
                                        "r:0", "nobody:1", "HB:nobody"};
    stranger_t stranger;
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    open_stranger(&stranger);
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        assert_status(xfer_notify(stranger.peer, words[i], strlen(words[i])), WEFT_OK);
    }
    assert_true(transfer_rig_until(has_heard_all, &prefill));
    assert_int_equal(kv_pool_held_blocks(prefill.pool), PROMPT_BLOCKS);
    close_stranger(&stranger);
    kv_transfer_decline(decode.transfer, &params);
    assert_all_free(&prefill);
    kv_transfer_params_fini(&params);
}

/* Agents that come and go do not add up: most are forgotten, and those that come again are answered. */
static void many_readers_may_come_and_go(void **state)
{
    enum { READERS = 20 };
    const transfer_worker_config_t there_config = {.extra = "\"engine_ttl\": 0.001"};
    const transfer_worker_config_t here_config = {0};
    transfer_worker_t there;
    running_t running;
    (void)state;
    transfer_worker_open(&there, &there_config);
    begin_prefill_on(&there, &running, "xfer-1", PROMPT);
    compute(&running, 2 * TOKENS, 9);
    for (int i = 0; i < READERS; i++) {
        transfer_worker_t here;
        kv_block_id_t blocks[PROMPT_BLOCKS];
        transfer_worker_open(&here, &here_config);
        kv_pull_t *pull = expect_ahead_of(&there, &here, "xfer-1", PROMPT);
        const uint32_t n = alloc(&here, PROMPT, blocks);
        assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
        assert_gets(pull, 2 * TOKENS);
        assert_true(transfer_worker_has(&here, blocks, 0, 2 * TOKENS, 9));
        kv_pull_end(pull);
        kv_pool_release(here.pool, blocks, n);
        assert_all_free(&here);
        transfer_worker_close(&here);
    }
    kv_lease_drop(running.lease);
    kv_pool_release(there.pool, running.blocks, running.n);
    transfer_worker_close(&there);
}

static bool has_a_watcher(void *user)
{
    return ((const kv_lease_t *)user)->user != NULL;
}

/* A peer's last word, and a notice before it that never came. */
static void blocks_that_the_last_word_left_out_are_asked_for(void **state)
{
    const transfer_worker_config_t config = {.extra = "\"kv_lease_duration\": 1"};
    transfer_worker_t there;
    transfer_worker_t here;
    running_t running;
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    transfer_worker_open(&there, &config);
    transfer_worker_open(&here, &config);
    kv_pull_t *pull = expect_ahead_of(&there, &here, "xfer-1", PROMPT);
    const uint32_t n = alloc(&here, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    begin_prefill_on(&there, &running, "xfer-1", PROMPT);
    assert_true(transfer_rig_until(has_a_watcher, running.lease));
    ((kv_watcher_t *)running.lease->user)->sent_blocks = PROMPT_BLOCKS;
    compute(&running, PROMPT, 9);
    finish_prefill(&running, "cmpl-9");
    assert_pulled(pull);
    assert_true(transfer_worker_has(&here, blocks, 0, PROMPT, 9));
    kv_pull_end(pull);
    kv_pool_release(here.pool, blocks, n);
    assert_all_free(&there);
    transfer_worker_close(&here);
    transfer_worker_close(&there);
}

/* ---- giving up in the middle ----------------------------------------------------------------- */

static bool has_landed(void *user)
{
    const transfer_worker_t *worker = user;
    return kv_transfer_landing_blocks(worker->transfer) == 0 &&
           kv_pool_held_blocks(worker->pool) == 0;
}

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

/* ---- unequal workers ------------------------------------------------------------------------- */

typedef struct ensemble {
    uint32_t tp;
    transfer_worker_t ranks[MAX_RANKS];
} ensemble_t;

typedef struct form {
    uint32_t tp;
    uint32_t tokens;
    kv_order_t order;
    const char *dtype;
} form_t;

static void open_ensemble(ensemble_t *ensemble, const form_t *form)
{
    ensemble->tp = form->tp;
    for (uint32_t rank = 0; rank < form->tp; rank++) {
        const transfer_worker_config_t config = {
            .block_tokens = form->tokens,
            .order = form->order,
            .tp_size = form->tp,
            .dtype = form->dtype,
            .tp_rank = rank,
            .engine_id = rank == 0 ? NULL : kv_transfer_engine_id(ensemble->ranks[0].transfer),
            .side_channel =
                rank == 0 ? NULL : kv_transfer_side_channel(ensemble->ranks[0].transfer)};
        transfer_worker_open(&ensemble->ranks[rank], &config);
    }
}

static void close_ensemble(ensemble_t *ensemble)
{
    for (uint32_t rank = ensemble->tp; rank > 0; rank--) {
        transfer_worker_close(&ensemble->ranks[rank - 1]);
    }
}

static void move_between(form_t peer, form_t local)
{
    enum { LENGTH = 100 };
    ensemble_t there;
    ensemble_t here;
    kv_transfer_params_t params = {0};
    kv_pull_t *pulls[MAX_RANKS];
    kv_block_id_t blocks[MAX_RANKS][TRANSFER_RIG_BLOCKS];
    open_ensemble(&there, &peer);
    open_ensemble(&here, &local);
    for (uint32_t rank = peer.tp; rank > 0; rank--) {
        kv_transfer_params_fini(&params); /* rank 0 answers */
        params = prefill_whole(&there.ranks[rank - 1], "r", LENGTH, 11);
    }
    for (uint32_t rank = 0; rank < local.tp; rank++) {
        transfer_worker_t *worker = &here.ranks[rank];
        pulls[rank] = expect(worker, &params, LENGTH);
        const uint32_t n = alloc(worker, LENGTH, blocks[rank]);
        const uint32_t first = 32 / kv_pool_layout(worker->pool)->block_tokens;
        assert_status(kv_pull_start(pulls[rank], first, blocks[rank] + first, n - first), WEFT_OK);
    }
    for (uint32_t rank = 0; rank < local.tp; rank++) {
        assert_pulled(pulls[rank]);
        assert_true(transfer_worker_has(&here.ranks[rank], blocks[rank], 32, LENGTH - 32, 11));
        kv_pull_end(pulls[rank]);
        kv_pool_release(here.ranks[rank].pool, blocks[rank], blocks_of(&here.ranks[rank], LENGTH));
    }
    for (uint32_t rank = 0; rank < peer.tp; rank++) {
        assert_all_free(&there.ranks[rank]);
    }
    kv_transfer_params_fini(&params);
    close_ensemble(&here);
    close_ensemble(&there);
}

#define FORM(tp, tokens, order, dtype) ((form_t){tp, tokens, KV_ORDER_##order, dtype})

static void unequal_workers_move_the_same_blocks(void **state)
{
    (void)state;
    move_between(FORM(1, 16, BHLNC, "f32"), FORM(2, 16, BHLNC, "f32"));
    move_between(FORM(2, 16, BHLNC, "f32"), FORM(1, 16, BHLNC, "f32"));
    move_between(FORM(4, 16, BHLNC, "bf16"), FORM(2, 16, LBHNC, "bf16"));
    move_between(FORM(1, 4, BHLNC, "f16"), FORM(1, 16, BHLNC, "f16"));
    move_between(FORM(1, 32, BHLNC, "f32"), FORM(1, 8, BLHNC, "f32"));
    move_between(FORM(2, 8, BLHNC, "f32"), FORM(4, 32, LBHNC, "f32"));
}

static void elements_are_converted_on_arrival(void **state)
{
    (void)state;
    move_between(FORM(1, 16, BHLNC, "bf16"), FORM(1, 16, BHLNC, "f32"));
    move_between(FORM(1, 16, LBHNC, "f32"), FORM(2, 16, BHLNC, "bf16"));
    move_between(FORM(2, 32, BHLNC, "f16"), FORM(1, 8, BLHNC, "f32"));
    move_between(FORM(1, 4, BLHNC, "f32"), FORM(1, 32, BHLNC, "f16"));
}

/* ---- a vLLM worker --------------------------------------------------------------------------- */

/*
 * What vLLM's CPU worker is to us: a handshake without weft's key, one region a layer, K transposed,
 * notifications as its own. 3 heads of a worker, as its memory has them.
 */
enum { FOREIGN_TOKENS = 32, FOREIGN_BLOCKS = 8 };

typedef struct foreign {
    kv_side_channel_t *channel;
    kv_side_client_t *client;
    xfer_agent_t *agent;
    xfer_region_t *region;
    uint16_t *memory;
    size_t bytes;
    uint64_t layers[TRANSFER_RIG_LAYERS];
    uint32_t heartbeats;
    bool is_read;
} foreign_t;

static const kv_head_form_t foreign_form = {KV_ELEMENT_BF16, true, FOREIGN_TOKENS,
                                            TRANSFER_RIG_HEAD_DIM};

static size_t foreign_head_bytes(void)
{
    return (size_t)FOREIGN_TOKENS * 2 * TRANSFER_RIG_HEAD_DIM * sizeof(uint16_t);
}

static void write_foreign(foreign_t *foreign, const uint32_t *blocks, uint32_t tokens,
                          uint64_t prompt)
{
    const kv_head_form_t plain = {KV_ELEMENT_F32, false, 1, TRANSFER_RIG_HEAD_DIM};
    float elements[2 * TRANSFER_RIG_HEAD_DIM];
    for (uint32_t layer = 0; layer < TRANSFER_RIG_LAYERS; layer++) {
        for (uint32_t head = 0; head < TRANSFER_RIG_HEADS; head++) {
            for (uint32_t token = 0; token < tokens; token++) {
                const size_t at = (blocks[token / FOREIGN_TOKENS] * TRANSFER_RIG_HEADS + head) *
                                  foreign_head_bytes();
                transfer_rig_token(prompt, layer, head, token, elements);
                kv_convert_head(&plain, elements, 0, &foreign_form,
                                (void *)(uintptr_t)(foreign->layers[layer] + at),
                                token % FOREIGN_TOKENS, 1);
            }
        }
    }
}

static void serve_foreign(foreign_t *foreign, const char *backend)
{
    const kv_vllm_identity_t identity = {.attn_backend_name = backend,
                                         .cache_dtype = "auto",
                                         .dtype = "torch.bfloat16",
                                         .model = "org/model",
                                         .vllm_version = "0.32.0",
                                         .head_size = TRANSFER_RIG_HEAD_DIM,
                                         .nixl_connector_version = 14,
                                         .num_hidden_layers = TRANSFER_RIG_LAYERS,
                                         .num_kv_heads = TRANSFER_RIG_HEADS,
                                         .is_hma_enabled = true};
    uint64_t lens[TRANSFER_RIG_LAYERS];
    char hash[KV_COMPAT_HASH_BYTES];
    weft_buffer_t blob = {0};
    weft_buffer_t meta = {0};
    weft_buffer_t payload = {0};
    const kv_meta_request_t rank = {0, 0};
    for (int i = 0; i < TRANSFER_RIG_LAYERS; i++) {
        lens[i] = TRANSFER_RIG_HEADS * foreign_head_bytes();
    }
    assert_status(xfer_export(foreign->agent, NULL, 0, true, &blob), WEFT_OK);
    const kv_agent_meta_t agent = {.engine_id = kv_wire_text("vllm"),
                                   .agent_metadata = {blob.data, (uint32_t)blob.length},
                                   .kv_caches_base_addr = {foreign->layers, TRANSFER_RIG_LAYERS},
                                   .num_blocks = FOREIGN_BLOCKS,
                                   .block_lens = {lens, TRANSFER_RIG_LAYERS},
                                   .block_strides = {lens, TRANSFER_RIG_LAYERS},
                                   .kv_cache_layout = kv_wire_text("LBHNC"),
                                   .block_size = FOREIGN_TOKENS,
                                   .attn_backend_name = kv_wire_text(backend),
                                   .physical_blocks_per_logical_kv_block = 1};
    kv_agent_meta_encode(&agent, &meta);
    assert_status(kv_compat_vllm_hash(&identity, hash), WEFT_OK);
    kv_payload_encode(hash, meta.data, meta.length, &payload);
    assert_status(kv_side_client_serve(foreign->client, rank, payload.data, payload.length),
                  WEFT_OK);
    weft_buffer_free(&blob);
    weft_buffer_free(&meta);
    weft_buffer_free(&payload);
}

static void open_foreign(foreign_t *foreign, const char *backend)
{
    const xfer_agent_config_t agent = {
        .backends = getenv("WEFT_TEST_BACKEND"), .has_thread = true, .on_event = transfer_rig_wake};
    const kv_side_client_config_t client = {0};
    *foreign = (foreign_t){0};
    foreign->bytes =
        TRANSFER_RIG_LAYERS * FOREIGN_BLOCKS * TRANSFER_RIG_HEADS * foreign_head_bytes();
    foreign->memory = weft_zalloc(foreign->bytes, "test.foreign");
    assert_non_null(foreign->memory);
    for (uint32_t i = 0; i < TRANSFER_RIG_LAYERS; i++) {
        foreign->layers[i] =
            (uint64_t)(uintptr_t)foreign->memory + i * foreign->bytes / TRANSFER_RIG_LAYERS;
    }
    const xfer_memory_t memory = {.space = XFER_DRAM,
                                  .addr = (uint64_t)(uintptr_t)foreign->memory,
                                  .bytes = foreign->bytes,
                                  .fd = -1};
    assert_status(xfer_agent_create(&agent, &diag, &foreign->agent), WEFT_OK);
    assert_status(xfer_register(foreign->agent, &memory, &diag, &foreign->region), WEFT_OK);
    assert_status(kv_side_channel_create("127.0.0.1", 0, &diag, &foreign->channel), WEFT_OK);
    assert_status(kv_side_client_open(foreign->channel, &client, &foreign->client), WEFT_OK);
    serve_foreign(foreign, backend);
}

static void close_foreign(foreign_t *foreign)
{
    kv_side_client_close(foreign->client);
    kv_side_channel_destroy(foreign->channel);
    xfer_agent_destroy(foreign->agent);
    weft_free(foreign->memory);
}

static bool is_foreign_told(void *user)
{
    foreign_t *foreign = user;
    xfer_notification_t *notification;
    while ((notification = xfer_next_notification(foreign->agent)) != NULL) {
        foreign->heartbeats +=
            notification->bytes == 7 && memcmp(notification->data, "HB:cmpl", 7) == 0;
        foreign->is_read |=
            notification->bytes == 6 && memcmp(notification->data, "cmpl:1", 6) == 0;
        xfer_notification_free(notification);
    }
    return foreign->is_read;
}

static kv_transfer_params_t params_of(const foreign_t *foreign, const uint32_t *blocks, uint32_t n,
                                      uint32_t tokens)
{
    kv_transfer_params_t copy;
    const kv_transfer_params_t params = {.do_remote_prefill = true,
                                         .has_block_ids = true,
                                         .has_port = true,
                                         .remote_port = kv_side_channel_port(foreign->channel),
                                         .remote_engine_id = (char *)"vllm",
                                         .remote_request_id = (char *)"cmpl",
                                         .remote_host = (char *)"127.0.0.1",
                                         .blocks = (uint32_t *)blocks,
                                         .n_blocks = n,
                                         .n_groups = 1,
                                         .group_blocks = {n},
                                         .tp_size = 1,
                                         .pp_size = 1,
                                         .dcp_size = 1,
                                         .has_num_tokens = true,
                                         .remote_num_tokens = tokens};
    assert_status(kv_transfer_params_copy(&params, &copy), WEFT_OK);
    return copy;
}

#define AS_VLLM                                                                                    \
    "\"vllm_version\": \"0.32.0\", \"vllm_dtype\": \"torch.bfloat16\", "                           \
    "\"attn_backend_name\": \"CPU_ATTN\""

static bool has_no_lease(void *user)
{
    return transfer_worker_stats(user).leases_open == 0;
}

static void blocks_of_a_vllm_worker_are_read_and_it_is_told_in_its_words(void **state)
{
    static const uint32_t theirs[] = {5, 1, 3};
    const transfer_worker_config_t config = {.extra = AS_VLLM, .dtype = "bf16", .block_tokens = 8};
    foreign_t foreign;
    transfer_worker_t worker;
    kv_block_id_t blocks[TRANSFER_RIG_BLOCKS];
    (void)state;
    open_foreign(&foreign, "CPU_ATTN");
    transfer_worker_open(&worker, &config);
    write_foreign(&foreign, theirs, PROMPT, 21);
    kv_transfer_params_t params = params_of(&foreign, theirs, 3, PROMPT);
    kv_pull_t *pull = expect(&worker, &params, PROMPT);
    const uint32_t n = alloc(&worker, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 3, blocks + 3, n - 3), WEFT_OK);
    assert_pulled(pull);
    assert_int_equal(kv_pull_tokens(pull), PROMPT);
    assert_true(transfer_worker_has(&worker, blocks, 24, PROMPT - 24, 21));
    assert_true(transfer_rig_until(is_foreign_told, &foreign));
    assert_int_equal(foreign.heartbeats, 1);
    kv_pull_end(pull);
    kv_pool_release(worker.pool, blocks, n);
    kv_transfer_params_fini(&params);
    transfer_worker_close(&worker);
    close_foreign(&foreign);
}

/* As vLLM's CPU worker would: transposed, in its blocks. The request's own are free at once. */
static void what_is_held_for_vllm_is_a_copy_in_its_form(void **state)
{
    const transfer_worker_config_t giver = {.extra = AS_VLLM ", \"vllm_block_size\": 32"};
    const transfer_worker_config_t taker = {.extra = AS_VLLM, .dtype = "bf16", .block_tokens = 8};
    transfer_worker_t there;
    transfer_worker_t here;
    kv_block_id_t blocks[TRANSFER_RIG_BLOCKS];
    (void)state;
    transfer_worker_open(&there, &giver);
    transfer_worker_open(&here, &taker);
    kv_transfer_params_t params = prefill_whole(&there, "r", PROMPT, 31);
    assert_int_equal(kv_pool_held_blocks(there.pool), 0);
    assert_int_equal(params.n_blocks, (PROMPT + 31) / 32);
    assert_int_equal(params.n_leases, 0);
    assert_null(kv_transfer_open(there.transfer, "ahead"));
    kv_pull_t *pull = expect(&here, &params, PROMPT);
    const uint32_t n = alloc(&here, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    assert_pulled(pull);
    assert_true(transfer_worker_has(&here, blocks, 0, PROMPT, 31));
    kv_pull_end(pull);
    kv_pool_release(here.pool, blocks, n);
    assert_true(transfer_rig_until(has_no_lease, &there));
    assert_int_equal(transfer_worker_stats(&there).leases_released, 1);
    kv_transfer_params_fini(&params);
    transfer_worker_close(&here);
    transfer_worker_close(&there);
}

static void copies_for_vllm_are_bounded(void **state)
{
    const transfer_worker_config_t giver = {.extra = AS_VLLM
                                            ", \"vllm_block_size\": 32, \"vllm_blocks\": 4"};
    transfer_worker_t there;
    kv_block_id_t blocks[PROMPT_BLOCKS];
    kv_transfer_params_t second;
    (void)state;
    transfer_worker_open(&there, &giver);
    kv_transfer_params_t first = prefill_whole(&there, "r1", PROMPT, 31);
    const uint32_t n = alloc(&there, PROMPT, blocks);
    assert_status(kv_transfer_hold(there.transfer, NULL, "r2", blocks, n, PROMPT, &second),
                  WEFT_ERR_NO_BLOCKS);
    kv_pool_release(there.pool, blocks, n);
    kv_transfer_params_fini(&first);
    transfer_worker_close(&there);
}

static void a_vllm_worker_of_another_kind_is_not_read(void **state)
{
    static const uint32_t theirs[] = {0};
    const transfer_worker_config_t as_vllm = {.extra = AS_VLLM, .dtype = "bf16"};
    const transfer_worker_config_t lenient = {
        .extra = AS_VLLM ", \"enforce_handshake_compat\": false", .dtype = "bf16"};
    const transfer_worker_config_t plain = {.dtype = "bf16"};
    const transfer_worker_config_t *configs[] = {&as_vllm, &lenient, &plain};
    const char *said[] = {"compatibility hash", "attention backend NEW_ATTN", "vllm_version"};
    foreign_t foreign;
    (void)state;
    open_foreign(&foreign, "NEW_ATTN");
    for (size_t i = 0; i < 3; i++) {
        transfer_worker_t worker;
        transfer_worker_open(&worker, configs[i]);
        kv_transfer_params_t params = params_of(&foreign, theirs, 1, 16);
        kv_pull_t *pull = expect(&worker, &params, 16);
        assert_true(transfer_rig_until(is_over, pull));
        assert_true(kv_pull_state(pull) < 0);
        if (strstr(kv_pull_reason(pull), said[i]) == NULL) {
            fail_msg("\"%s\" does not say %s", kv_pull_reason(pull), said[i]);
        }
        kv_pull_end(pull);
        kv_transfer_params_fini(&params);
        transfer_worker_close(&worker);
    }
    close_foreign(&foreign);
}

/* ---- no memory ------------------------------------------------------------------------------- */

/* From meeting to reading, with whatever fails at the nth allocation of the process. */
static void move_prompt(transfer_worker_t *there, transfer_worker_t *here, uint64_t nth)
{
    kv_block_id_t theirs[PROMPT_BLOCKS];
    kv_block_id_t ours[PROMPT_BLOCKS];
    kv_transfer_params_t params = {0};
    kv_pull_t *pull = NULL;
    const uint32_t n = alloc(there, PROMPT, theirs);
    alloc(here, PROMPT, ours);
    transfer_worker_write(there, theirs, 0, PROMPT, nth);
    weft_alloc_fail_nth(nth);
    const weft_status_t held =
        kv_transfer_hold(there->transfer, NULL, "r", theirs, n, PROMPT, &params);
    kv_pool_release(there->pool, theirs, n);
    if (held == WEFT_OK &&
        kv_transfer_expect(here->transfer, &params, PROMPT, &diag, &pull) == WEFT_OK &&
        kv_pull_start(pull, 0, ours, n) == WEFT_OK) {
        assert_true(transfer_rig_until(is_over, pull));
        assert_true(transfer_worker_has(here, ours, 0, kv_pull_tokens(pull), nth));
        assert_true(kv_pull_state(pull) != WEFT_OK || kv_pull_tokens(pull) == PROMPT);
    }
    kv_pull_end(pull);
    kv_pool_release(here->pool, ours, n);
    kv_transfer_params_fini(&params);
}

static void a_failed_allocation_costs_a_pull_at_most(void **state)
{
    const transfer_worker_config_t config = {.extra = "\"kv_lease_duration\": 0.1"};
    (void)state;
    const size_t before = weft_alloc_live_bytes();
    uint64_t n_allocations = UINT64_MAX;
    for (uint64_t nth = 1; nth <= n_allocations; nth++) {
        transfer_worker_t there;
        transfer_worker_t here;
        transfer_worker_open(&there, &config);
        transfer_worker_open(&here, &config);
        move_prompt(&there, &here, nth);
        n_allocations = weft_alloc_fail_nth(0);
        assert_true(transfer_rig_until(has_landed, &here));
        assert_all_free(&there);
        transfer_worker_close(&here);
        transfer_worker_close(&there);
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
}

static void a_failed_allocation_at_the_start_leaves_nothing_behind(void **state)
{
    static const uint8_t fingerprint[32];
    kv_transfer_config_t parsed;
    (void)state;
    assert_status(kv_transfer_config_parse("{\"kv_connector\": \"WeftConnector\", \"kv_role\": "
                                           "\"kv_both\", \"kv_connector_extra_config\": {" AS_VLLM
                                           "}}",
                                           0, &diag, &parsed),
                  WEFT_OK);
    const kv_transfer_setup_t start = {.config = &parsed,
                                       .pool = prefill.pool,
                                       .fingerprint = fingerprint,
                                       .model = "m",
                                       .dtype = "f32",
                                       .model_dtype = "torch.float32",
                                       .total_heads = TRANSFER_RIG_HEADS,
                                       .total_layers = TRANSFER_RIG_LAYERS};
    const size_t before = weft_alloc_live_bytes();
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    for (uint64_t nth = 1; status != WEFT_OK; nth++) {
        kv_transfer_t *transfer = NULL;
        weft_alloc_fail_nth(nth);
        status = kv_transfer_create(&start, NULL, &transfer);
        weft_alloc_fail_nth(0);
        kv_transfer_destroy(transfer);
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
    kv_transfer_config_fini(&parsed);
}

/* ---- any history ----------------------------------------------------------------------------- */

/*
 * Many prompts, short leases, blocks that are written anew as soon as they are free: whatever a pull
 * calls good is the prompt's, and in the end no block is held on either side.
 */
enum { MAX_PULLS = 6, SMALL = 24 };

typedef struct history {
    transfer_worker_t there;
    transfer_worker_t here;
    test_random_t random;
    uint64_t prompts;
    uint64_t good;
    uint64_t failed;
    uint64_t expired; /* leases, when time began to pass */
    struct {
        kv_pull_t *pull;
        uint64_t prompt;
        uint32_t n;
        kv_block_id_t blocks[PROMPT_BLOCKS];
    } pulls[MAX_PULLS];
} history_t;

static void begin_pull(history_t *history, uint32_t i)
{
    kv_block_id_t blocks[PROMPT_BLOCKS];
    kv_transfer_params_t params;
    char id[32];
    const uint64_t prompt = history->prompts++;
    if (kv_pool_alloc(history->there.pool, PROMPT_BLOCKS, blocks) != WEFT_OK) {
        return;
    }
    transfer_worker_write(&history->there, blocks, 0, PROMPT, prompt);
    snprintf(id, sizeof(id), "r%llu", (unsigned long long)prompt);
    assert_status(
        kv_transfer_hold(history->there.transfer, NULL, id, blocks, PROMPT_BLOCKS, PROMPT, &params),
        WEFT_OK);
    kv_pool_release(history->there.pool, blocks, PROMPT_BLOCKS);
    kv_pull_t *pull = expect(&history->here, &params, PROMPT);
    kv_transfer_params_fini(&params);
    history->pulls[i].n = 0;
    if (kv_pool_alloc(history->here.pool, PROMPT_BLOCKS, history->pulls[i].blocks) == WEFT_OK) {
        history->pulls[i].n = PROMPT_BLOCKS;
    }
    history->pulls[i].pull = pull;
    history->pulls[i].prompt = prompt;
}

static void end_pull(history_t *history, uint32_t i)
{
    kv_pull_t *pull = history->pulls[i].pull;
    const uint32_t tokens = kv_pull_tokens(pull);
    const bool is_good = transfer_worker_has(&history->here, history->pulls[i].blocks, 0, tokens,
                                             history->pulls[i].prompt);
    assert_true(tokens == 0 || is_good);
    history->good += kv_pull_state(pull) == WEFT_OK;
    history->failed += kv_pull_state(pull) < 0;
    kv_pull_end(pull);
    kv_pool_release(history->here.pool, history->pulls[i].blocks, history->pulls[i].n);
    history->pulls[i].pull = NULL;
}

static void step_pull(history_t *history, uint32_t i)
{
    kv_pull_t *pull = history->pulls[i].pull;
    if (pull == NULL) {
        begin_pull(history, i);
    } else if (kv_pull_state(pull) != WEFT_PENDING ||
               test_random_below(&history->random, 16) == 0) {
        end_pull(history, i);
    } else if (!kv_pull_is_started(pull) && history->pulls[i].n > 0 &&
               test_random_below(&history->random, 4) == 0) {
        assert_status(kv_pull_start(pull, 0, history->pulls[i].blocks, history->pulls[i].n),
                      WEFT_OK);
    }
}

/* Of what is on its way something is over, or nothing is on its way. */
static bool has_news(void *user)
{
    const history_t *history = user;
    bool is_moving = false;
    for (uint32_t i = 0; i < MAX_PULLS; i++) {
        const kv_pull_t *pull = history->pulls[i].pull;
        if (pull != NULL && kv_pull_state(pull) != WEFT_PENDING) {
            return true;
        }
        is_moving |= pull != NULL && kv_pull_is_started(pull);
    }
    return !is_moving;
}

static bool has_time_passed(void *user)
{
    history_t *history = user;
    const kv_transfer_stats_t stats = transfer_worker_stats(&history->there);
    return stats.leases_expired > history->expired || stats.leases_open == 0;
}

static void nothing_leaks_and_nothing_stale_is_believed(void **state)
{
    static history_t history;
    const uint64_t seed = test_seed(1);
    const uint32_t steps = test_rounds(40000);
    (void)state;
    history = (history_t){.random = {seed}};
    const transfer_worker_config_t config = {.extra = "\"kv_lease_duration\": 0.003",
                                             .n_blocks = SMALL};
    transfer_worker_open(&history.there, &config);
    transfer_worker_open(&history.here, &config);
    for (uint32_t step = 0; step < steps; step++) {
        step_pull(&history, test_random_below(&history.random, MAX_PULLS));
        transfer_rig_poll();
        if (test_random_below(&history.random, 4) == 0) {
            assert_true(transfer_rig_until(has_news, &history));
        }
        if (test_random_below(&history.random, 32) == 0) {
            history.expired = transfer_worker_stats(&history.there).leases_expired;
            assert_true(transfer_rig_until(has_time_passed, &history));
        }
    }
    for (uint32_t i = 0; i < MAX_PULLS; i++) {
        if (history.pulls[i].pull != NULL) {
            end_pull(&history, i);
        }
    }
    assert_true(transfer_rig_until(has_landed, &history.here));
    assert_all_free(&history.there);
    printf("good %llu failed %llu stale %llu expired %llu\n", (unsigned long long)history.good,
           (unsigned long long)history.failed,
           (unsigned long long)transfer_worker_stats(&history.here).stale_reads,
           (unsigned long long)transfer_worker_stats(&history.there).leases_expired);
    assert_true(history.good > 0);
    assert_true(transfer_worker_stats(&history.there).leases_expired > 0);
    transfer_worker_close(&history.here);
    transfer_worker_close(&history.there);
}

/*
 * The same ahead of prefills that are cut in chunks, preempted, aborted, over a fabric that loses,
 * delays and reorders; each round with workers of its own, closed in the middle of everything.
 */
typedef struct ahead {
    transfer_worker_t there;
    transfer_worker_t here;
    test_random_t random;
    uint32_t n_ids;
    uint64_t good;
    uint64_t failed;
    struct {
        bool is_running; /* the prefill */
        running_t running;
        kv_pull_t *pull;
        uint64_t prompt;
        uint32_t n;
        kv_block_id_t blocks[PROMPT_BLOCKS];
        char id[32];
    } requests[MAX_PULLS];
} ahead_t;

static void step_prefill(ahead_t *ahead, uint32_t i)
{
    running_t *running = &ahead->requests[i].running;
    char id[40];
    if (test_random_below(&ahead->random, 16) == 0) {
        preempt_prefill(running);
    } else if (test_random_below(&ahead->random, 24) == 0) {
        kv_lease_drop(running->lease);
        kv_pool_release(ahead->there.pool, running->blocks, running->n);
        ahead->requests[i].is_running = false;
    } else if (running->tokens < PROMPT) {
        const uint32_t left = PROMPT - running->tokens;
        const uint32_t n = test_random_between(&ahead->random, 1, 2 * TOKENS);
        compute(running, n < left ? n : left, ahead->requests[i].prompt);
    } else {
        snprintf(id, sizeof(id), "cmpl-%s", ahead->requests[i].id);
        finish_prefill(running, id);
        ahead->requests[i].is_running = false;
    }
}

static void begin_ahead(ahead_t *ahead, uint32_t i)
{
    if (kv_pool_free_blocks(ahead->there.pool) < PROMPT_BLOCKS ||
        kv_pool_free_blocks(ahead->here.pool) < PROMPT_BLOCKS) {
        return;
    }
    ahead->requests[i].prompt = ahead->n_ids;
    snprintf(ahead->requests[i].id, sizeof(ahead->requests[i].id), "x%u", ahead->n_ids++);
    const char *id = ahead->requests[i].id;
    const bool is_early = test_random_below(&ahead->random, 2) == 0;
    if (is_early) {
        begin_prefill_on(&ahead->there, &ahead->requests[i].running, id, PROMPT);
    }
    ahead->requests[i].pull = expect_ahead_of(&ahead->there, &ahead->here, id, PROMPT);
    ahead->requests[i].n = alloc(&ahead->here, PROMPT, ahead->requests[i].blocks);
    if (!is_early) {
        begin_prefill_on(&ahead->there, &ahead->requests[i].running, id, PROMPT);
    }
    ahead->requests[i].is_running = true;
}

static void end_ahead(ahead_t *ahead, uint32_t i)
{
    kv_pull_t *pull = ahead->requests[i].pull;
    const kv_block_id_t *blocks = ahead->requests[i].blocks;
    const uint32_t tokens = kv_pull_tokens(pull);
    assert_true(kv_pull_state(pull) != WEFT_OK || tokens == PROMPT);
    assert_true(transfer_worker_has(&ahead->here, blocks, 0, tokens, ahead->requests[i].prompt));
    ahead->good += kv_pull_state(pull) == WEFT_OK;
    ahead->failed += kv_pull_state(pull) < 0;
    kv_pull_end(pull);
    kv_pool_release(ahead->here.pool, blocks, ahead->requests[i].n);
    ahead->requests[i].pull = NULL;
}

static void step_ahead(ahead_t *ahead, uint32_t i)
{
    kv_pull_t *pull = ahead->requests[i].pull;
    if (ahead->requests[i].is_running && test_random_below(&ahead->random, 2) == 0) {
        step_prefill(ahead, i);
    } else if (pull == NULL && !ahead->requests[i].is_running) {
        begin_ahead(ahead, i);
    } else if (pull != NULL && (kv_pull_state(pull) != WEFT_PENDING ||
                                test_random_below(&ahead->random, 40) == 0)) {
        end_ahead(ahead, i);
    } else if (pull != NULL && !kv_pull_is_started(pull)) {
        assert_status(kv_pull_start(pull, 0, ahead->requests[i].blocks, ahead->requests[i].n),
                      WEFT_OK);
    }
}

static bool is_peer_lost(ahead_t *ahead)
{
    const kv_transfer_stats_t stats = transfer_worker_stats(&ahead->here);
    return stats.n_peers > 0 && !stats.peers[0].is_connected && stats.handshakes > 0;
}

/* Every pull has what there is of its prefill, or is over. */
static bool has_caught_up(void *user)
{
    ahead_t *ahead = user;
    for (uint32_t i = 0; i < MAX_PULLS; i++) {
        const kv_pull_t *pull = ahead->requests[i].pull;
        const uint32_t tokens = ahead->requests[i].running.tokens;
        if (pull != NULL && kv_pull_is_started(pull) && kv_pull_state(pull) == WEFT_PENDING &&
            kv_pull_tokens(pull) < (tokens == PROMPT ? PROMPT : tokens / TOKENS * TOKENS)) {
            return is_peer_lost(ahead);
        }
    }
    return true;
}

static void run_ahead(ahead_t *ahead, const char *fabric, uint64_t seed)
{
    char extra[256];
    const transfer_worker_config_t config = {.extra = extra, .n_blocks = SMALL};
    snprintf(extra, sizeof(extra), "\"kv_lease_duration\": 0.05%s", fabric);
    ahead->random.state = seed;
    memset(ahead->requests, 0, sizeof(ahead->requests));
    transfer_worker_open(&ahead->there, &config);
    transfer_worker_open(&ahead->here, &config);
    for (uint32_t step = 0; step < 600 && !is_peer_lost(ahead); step++) {
        step_ahead(ahead, test_random_below(&ahead->random, MAX_PULLS));
        transfer_rig_poll();
        if (test_random_below(&ahead->random, 6) == 0) {
            assert_true(transfer_rig_until(has_caught_up, ahead));
        }
    }
    for (uint32_t i = 0; i < MAX_PULLS; i++) {
        if (ahead->requests[i].pull != NULL) {
            end_ahead(ahead, i);
        }
        if (ahead->requests[i].is_running) {
            kv_lease_drop(ahead->requests[i].running.lease);
            kv_pool_release(ahead->there.pool, ahead->requests[i].running.blocks,
                            ahead->requests[i].running.n);
        }
    }
    assert_true(transfer_rig_until(has_landed, &ahead->here));
    assert_all_free(&ahead->there);
    transfer_worker_close(&ahead->here);
    transfer_worker_close(&ahead->there);
}

static void any_prefill_may_be_followed(void **state)
{
    static ahead_t ahead;
    const uint64_t seed = test_seed(1);
    const uint32_t rounds = test_rounds(100);
    (void)state;
    ahead = (ahead_t){0};
    for (uint32_t i = 0; i < rounds; i++) {
        run_ahead(&ahead, "", seed + i);
    }
    printf("good %llu failed %llu\n", (unsigned long long)ahead.good,
           (unsigned long long)ahead.failed);
    assert_true(ahead.good > 0);
}

static void a_bad_fabric_loses_nothing_but_time(void **state)
{
    static ahead_t ahead;
    const uint64_t seed = test_seed(1);
    const uint32_t rounds = test_rounds(200);
    (void)state;
    ahead = (ahead_t){0};
    for (uint32_t i = 0; i < rounds; i++) {
        char fabric[200];
        snprintf(fabric, sizeof(fabric),
                 ", \"backends\": [\"faulty\"], \"fabric_params\": \"faulty.under=tcp,"
                 "faulty.seed=%llu,faulty.delay_us=300,faulty.reorder=0.2,faulty.drop=%s\"",
                 (unsigned long long)(seed + i), i % 2 == 0 ? "0" : "0.01");
        run_ahead(&ahead, fabric, seed + i);
    }
    printf("good %llu failed %llu\n", (unsigned long long)ahead.good,
           (unsigned long long)ahead.failed);
    assert_true(ahead.good > 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

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
        TEST(blocks_are_pulled_as_they_fill),
        TEST(who_gives_up_before_the_prefill_begins_leaves_nothing_held),
        TEST(an_aborted_prefill_is_heard_of),
        TEST(who_comes_after_the_abort_does_not_wait),
        TEST(a_preempted_prefill_is_followed),
        TEST(a_prefill_that_does_not_begin_is_not_waited_for),
        TEST(blocks_of_an_expired_lease_are_stale),
        TEST(heartbeats_keep_blocks_while_a_request_waits),
        TEST(what_differs_is_named),
        TEST(another_engine_at_the_address_is_not_read),
        TEST(blocks_the_peer_does_not_have_are_not_read),
        TEST(a_peer_that_is_not_there_fails_at_once_and_is_left_alone_for_a_while),
        TEST(of_invented_hosts_the_oldest_are_forgotten),
        TEST(each_request_that_goes_without_is_counted_once),
        TEST(a_peer_that_goes_fails_the_pulls_that_need_it),
        TEST(a_new_engine_at_the_address_is_met),
        TEST(a_replaced_peers_pull_is_counted),
        TEST(a_producer_pulls_nothing),
        TEST(a_strangers_notifications_do_no_harm),
        cmocka_unit_test(many_readers_may_come_and_go),
        cmocka_unit_test(blocks_that_the_last_word_left_out_are_asked_for),
        TEST(a_pull_may_end_at_any_time),
        cmocka_unit_test(unequal_workers_move_the_same_blocks),
        cmocka_unit_test(elements_are_converted_on_arrival),
        cmocka_unit_test(blocks_of_a_vllm_worker_are_read_and_it_is_told_in_its_words),
        cmocka_unit_test(what_is_held_for_vllm_is_a_copy_in_its_form),
        cmocka_unit_test(copies_for_vllm_are_bounded),
        cmocka_unit_test(a_vllm_worker_of_another_kind_is_not_read),
        cmocka_unit_test(a_failed_allocation_costs_a_pull_at_most),
        TEST(a_failed_allocation_at_the_start_leaves_nothing_behind),
        cmocka_unit_test(nothing_leaks_and_nothing_stale_is_believed),
        cmocka_unit_test(any_prefill_may_be_followed),
        cmocka_unit_test(a_bad_fabric_loses_nothing_but_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
