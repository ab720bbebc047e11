/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that prefill and decode for each other, over the real fabric. */
#include "kvstore/transfer/kv_transfer.h"

#include <string.h>

#include "kvstore/transfer/kv_handshake.h"
#include "kvstore/transfer/kv_side_channel.h"
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
    kv_lease_t *lease;
    kv_block_id_t blocks[TRANSFER_RIG_BLOCKS];
    uint32_t n;
    uint32_t tokens;
} running_t;

static void begin_prefill(running_t *running, const char *transfer_id, uint32_t tokens)
{
    *running = (running_t){0};
    running->n = alloc(&prefill, tokens, running->blocks);
    running->lease = kv_transfer_open(prefill.transfer, transfer_id);
    assert_non_null(running->lease);
}

static void compute(running_t *running, uint32_t tokens, uint64_t prompt)
{
    transfer_worker_write(&prefill, running->blocks, running->tokens, tokens, prompt);
    running->tokens += tokens;
    kv_lease_progress(running->lease, running->blocks, running->n, running->tokens);
}

static void finish_prefill(running_t *running, const char *id)
{
    kv_transfer_params_t params;
    assert_status(kv_transfer_hold(prefill.transfer, running->lease, id, running->blocks,
                                   running->n, running->tokens, &params),
                  WEFT_OK);
    kv_pool_release(prefill.pool, running->blocks, running->n);
    kv_transfer_params_fini(&params);
}

static kv_pull_t *expect_ahead(transfer_worker_t *worker, const char *transfer_id, uint32_t tokens)
{
    kv_transfer_params_t params = {.do_remote_prefill = true,
                                   .has_port = true,
                                   .remote_port = kv_transfer_port(prefill.transfer),
                                   .remote_host = (char *)"127.0.0.1",
                                   .transfer_id = (char *)transfer_id,
                                   .tp_size = 1,
                                   .pp_size = 1,
                                   .dcp_size = 1};
    return expect(worker, &params, tokens);
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
    kv_lease_retract(running.lease);
    transfer_worker_write(&prefill, running.blocks, 0, PROMPT, 1000); /* the new owner */
    kv_block_id_t fresh[TRANSFER_RIG_BLOCKS];
    alloc(&prefill, PROMPT, fresh);
    kv_pool_release(prefill.pool, running.blocks, running.n);
    memcpy(running.blocks, fresh, sizeof(fresh));
    running.tokens = 0;
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
    const transfer_worker_config_t weights = {.model = 1};
    const transfer_worker_config_t dtype = {.dtype = "bf16"};
    (void)state;
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
    const transfer_worker_config_t *misfits[] = {&weights, &dtype};
    const char *said[] = {"other weights", "KV dtype: f32 there, bf16 here"};
    for (size_t i = 0; i < 2; i++) {
        transfer_worker_t other;
        transfer_worker_open(&other, misfits[i]);
        kv_pull_t *pull = expect(&other, &params, PROMPT);
        assert_fails(pull, WEFT_ERR_INVALID, said[i]);
        kv_pull_end(pull);
        transfer_worker_close(&other);
    }
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
    const xfer_agent_config_t agent = {.has_thread = true};
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

static void open_ensemble(ensemble_t *ensemble, uint32_t tp, uint32_t tokens, kv_order_t order)
{
    ensemble->tp = tp;
    for (uint32_t rank = 0; rank < tp; rank++) {
        const transfer_worker_config_t config = {
            .block_tokens = tokens,
            .order = order,
            .tp_size = tp,
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

static void move_between(uint32_t peer_tp, uint32_t peer_tokens, kv_order_t peer_order,
                         uint32_t local_tp, uint32_t local_tokens, kv_order_t local_order)
{
    enum { LENGTH = 100 };
    ensemble_t there;
    ensemble_t here;
    kv_transfer_params_t params = {0};
    kv_pull_t *pulls[MAX_RANKS];
    kv_block_id_t blocks[MAX_RANKS][TRANSFER_RIG_BLOCKS];
    open_ensemble(&there, peer_tp, peer_tokens, peer_order);
    open_ensemble(&here, local_tp, local_tokens, local_order);
    for (uint32_t rank = peer_tp; rank > 0; rank--) {
        kv_transfer_params_fini(&params); /* rank 0 answers */
        params = prefill_whole(&there.ranks[rank - 1], "r", LENGTH, 11);
    }
    for (uint32_t rank = 0; rank < local_tp; rank++) {
        transfer_worker_t *worker = &here.ranks[rank];
        pulls[rank] = expect(worker, &params, LENGTH);
        const uint32_t n = alloc(worker, LENGTH, blocks[rank]);
        const uint32_t first = 32 / kv_pool_layout(worker->pool)->block_tokens;
        assert_status(kv_pull_start(pulls[rank], first, blocks[rank] + first, n - first), WEFT_OK);
    }
    for (uint32_t rank = 0; rank < local_tp; rank++) {
        assert_pulled(pulls[rank]);
        assert_true(transfer_worker_has(&here.ranks[rank], blocks[rank], 32, LENGTH - 32, 11));
        kv_pull_end(pulls[rank]);
        kv_pool_release(here.ranks[rank].pool, blocks[rank], blocks_of(&here.ranks[rank], LENGTH));
    }
    for (uint32_t rank = 0; rank < peer_tp; rank++) {
        assert_all_free(&there.ranks[rank]);
    }
    kv_transfer_params_fini(&params);
    close_ensemble(&here);
    close_ensemble(&there);
}

static void unequal_workers_move_the_same_blocks(void **state)
{
    (void)state;
    move_between(1, 16, KV_ORDER_BHLNC, 2, 16, KV_ORDER_BHLNC);
    move_between(2, 16, KV_ORDER_BHLNC, 1, 16, KV_ORDER_BHLNC);
    move_between(4, 16, KV_ORDER_BHLNC, 2, 16, KV_ORDER_LBHNC);
    move_between(1, 4, KV_ORDER_BHLNC, 1, 16, KV_ORDER_BHLNC);
    move_between(1, 32, KV_ORDER_BHLNC, 1, 8, KV_ORDER_BLHNC);
    move_between(2, 8, KV_ORDER_BLHNC, 4, 32, KV_ORDER_LBHNC);
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

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_prompt_is_pulled_and_its_blocks_are_free_then),
        TEST(what_is_here_already_is_not_read),
        TEST(where_all_is_here_the_peer_is_told_alone),
        TEST(no_more_is_read_than_there_are_blocks_for),
        TEST(a_request_that_never_runs_frees_the_peers_blocks),
        TEST(answers_without_leases_are_asked_for_them),
        TEST(blocks_are_pulled_as_they_fill),
        TEST(who_gives_up_before_the_prefill_begins_leaves_nothing_held),
        TEST(an_aborted_prefill_is_heard_of),
        TEST(a_preempted_prefill_is_followed),
        TEST(a_prefill_that_does_not_begin_is_not_waited_for),
        TEST(blocks_of_an_expired_lease_are_stale),
        TEST(heartbeats_keep_blocks_while_a_request_waits),
        TEST(what_differs_is_named),
        TEST(another_engine_at_the_address_is_not_read),
        TEST(blocks_the_peer_does_not_have_are_not_read),
        TEST(a_peer_that_is_not_there_fails_at_once_and_is_left_alone_for_a_while),
        TEST(a_peer_that_goes_fails_the_pulls_that_need_it),
        TEST(a_producer_pulls_nothing),
        TEST(a_strangers_notifications_do_no_harm),
        TEST(a_pull_may_end_at_any_time),
        cmocka_unit_test(unequal_workers_move_the_same_blocks),
        cmocka_unit_test(nothing_leaks_and_nothing_stale_is_believed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
