/* SPDX-License-Identifier: Apache-2.0 */
/* Peers that do not fit, are not there, go, or are strangers. */
#include <stdio.h>
#include <string.h>

#include "kvstore/transfer/kv_handshake.h"
#include "kvstore/transfer/kv_side_channel.h"
#include "kvstore/transfer/kv_transfer_priv.h"
#include "tests/support/reserved_port.h"
#include "tests/support/transfer_pair.h"
#include "transport/xfer/xfer.h"

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
    const transfer_worker_config_t config = {.port = reserve_port()};
    kv_block_id_t blocks[PROMPT_BLOCKS];
    (void)state;
    transfer_worker_close(&prefill);
    transfer_worker_open(&prefill, &config);
    kv_transfer_params_t params = prefill_whole(&prefill, "r", PROMPT, 7);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
