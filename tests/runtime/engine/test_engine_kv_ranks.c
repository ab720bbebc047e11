/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KV blocks of which each of several ranks has a part: in tiers below the device, and moved between
 * workers of as many ranks or others. Whatever comes from there, the answer is what it would be.
 */
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "runtime/engine/engine_priv.h"
#include "tests/support/ranks_rig.h"
#include "tests/support/scratch_folder.h"
#include "tests/support/zmq_tsan.h"

enum { N_PROMPTS = 6, PROMPT = 70, ANSWER = 10, MAX_PROMPT = 96 };

static const char producer[] = "{\"kv_connector\":\"WeftConnector\",\"kv_role\":\"kv_producer\"}";
static const char consumer[] = "{\"kv_connector\":\"WeftConnector\",\"kv_role\":\"kv_consumer\"}";

/* Where a rank dies, what it kept for others is kept until its lease is over: so long does the test take. */
static const char brief_producer[] =
    "{\"kv_connector\":\"WeftConnector\",\"kv_role\":\"kv_producer\","
    "\"kv_connector_extra_config\":{\"kv_lease_duration\":4}}";

typedef struct prompts {
    int32_t tokens[N_PROMPTS][MAX_PROMPT];
    int32_t answers[N_PROMPTS][ANSWER];
} prompts_t;

static int set_up(void **state)
{
    (void)state;
    setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1", 1);
    setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", "0", 1);
    weft_log_set_level(WEFT_LOG_ERROR);
    return 0;
}

static void fill(prompts_t *prompts)
{
    for (int32_t i = 0; i < N_PROMPTS; i++) {
        for (int32_t j = 0; j < MAX_PROMPT; j++) {
            prompts->tokens[i][j] = 3 + (j * 7 + i * 31 + j * i) % 300;
        }
    }
}

static ranks_rig_config_t config_of(uint32_t tensor_size, uint32_t stages)
{
    ranks_rig_config_t config = {.model = "llama",
                                 .size = tensor_size * stages,
                                 .stages = stages,
                                 .options = engine_rig_options()};
    config.options.threads = 1;
    config.options.max_model_len = 128;
    config.options.tensor_parallel_size = tensor_size;
    config.options.pipeline_parallel_size = stages;
    config.options.max_num_batched_tokens =
        48; /* too few to tell what computing costs: all is read */
    return config;
}

static const int32_t *answer(engine_rig_t *rig, const prompts_t *prompts, uint32_t i,
                             const kv_transfer_params_t *params, engine_request_t **request_out)
{
    engine_submit_t submit = engine_rig_submit(prompts->tokens[i], PROMPT, ANSWER);
    submit.transfer = params;
    *request_out = engine_rig_send(rig, &submit);
    engine_rig_wait(rig, *request_out);
    const engine_answer_t a = engine_request_answer(*request_out, 0);
    assert_int_equal(a.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(a.n_tokens, ANSWER);
    return a.tokens;
}

/* As ranks without tiers and transfers say them. */
static void answer_all(const ranks_rig_config_t *config, prompts_t *prompts)
{
    ranks_rig_t rig;
    ranks_rig_open(&rig, config);
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        engine_request_t *request;
        memcpy(prompts->answers[i], answer(&rig.rig, prompts, i, NULL, &request),
               sizeof(prompts->answers[i]));
        engine_request_release(request);
    }
    ranks_rig_close(&rig);
}

static void check_all(engine_rig_t *rig, const prompts_t *prompts)
{
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        engine_request_t *request;
        assert_memory_equal(answer(rig, prompts, i, NULL, &request), prompts->answers[i],
                            sizeof(prompts->answers[i]));
        engine_request_release(request);
    }
}

static uint64_t hits(const engine_rig_t *rig, kv_tier_id_t tier)
{
    return engine_stats(rig->engine).store.tiers[tier].hit_blocks;
}

/* ---- tiers ----------------------------------------------------------------------------------- */

static void host_tiers_give_back_what_ranks_gave_them(uint32_t tensor_size, uint32_t stages)
{
    prompts_t prompts;
    ranks_rig_t rig;
    ranks_rig_config_t config = config_of(tensor_size, stages);
    fill(&prompts);
    answer_all(&config, &prompts);
    config.options.num_gpu_blocks = 12; /* of 6 prompts of 5 blocks each */
    config.options.kv_host_bytes = 1 << 20;
    ranks_rig_open(&rig, &config);
    check_all(&rig.rig, &prompts);
    assert_int_equal(hits(&rig.rig, KV_TIER_host), 0);
    check_all(&rig.rig, &prompts);
    assert_true(hits(&rig.rig, KV_TIER_host) >= 4 * (N_PROMPTS - 2));
    assert_int_equal(engine_stats(rig.rig.engine).store.tiers[KV_TIER_host].tier.gets_failed, 0);
    for (uint64_t seed = 1; seed <= 2; seed++) {
        engine_set_chaos(rig.rig.engine, seed);
        check_all(&rig.rig, &prompts);
    }
    engine_set_chaos(rig.rig.engine, 0);
    ranks_rig_close(&rig);
}

static void ranks_find_in_their_host_tiers_what_they_put_there(void **state)
{
    (void)state;
    host_tiers_give_back_what_ranks_gave_them(2, 1);
    host_tiers_give_back_what_ranks_gave_them(4, 1);
    host_tiers_give_back_what_ranks_gave_them(1, 2);
}

/* What the device and the host's tier have at the end goes to the disk, on each rank from its own. */
static ranks_rig_config_t on_disk(const char *folder)
{
    ranks_rig_config_t config = config_of(2, 1);
    config.options.num_gpu_blocks = 12;
    config.options.kv_host_bytes = 1 << 20;
    config.options.kv_disk_bytes = 1 << 20;
    config.options.kv_disk_path = folder;
    config.options.kv_disk_admission = "all";
    return config;
}

static void empty_folder_of(const char *folder, const char *shard)
{
    char path[300];
    static const char *const files[] = {"blocks.kv", "journal", "lock"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(files); i++) {
        snprintf(path, sizeof(path), "%s/%s/%s", folder, shard, files[i]);
        (void)unlink(path);
    }
}

static void remove_shards(const char *folder)
{
    static const char *const shards[] = {"shard-0", "shard-1"};
    char path[300];
    for (size_t i = 0; i < WEFT_ARRAY_LEN(shards); i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, shards[i]);
        scratch_folder_remove(path);
    }
    scratch_folder_remove(folder);
}

static void ranks_find_on_their_disks_what_they_saved(void **state)
{
    (void)state;
    prompts_t prompts;
    ranks_rig_t rig;
    char folder[200];
    scratch_folder_make(folder, sizeof(folder));
    ranks_rig_config_t config = config_of(2, 1);
    fill(&prompts);
    answer_all(&config, &prompts);
    config = on_disk(folder);
    ranks_rig_open(&rig, &config);
    check_all(&rig.rig, &prompts);
    ranks_rig_close(&rig);
    ranks_rig_open(&rig, &config);
    check_all(&rig.rig, &prompts);
    assert_int_equal(hits(&rig.rig, KV_TIER_disk), 4 * N_PROMPTS);
    ranks_rig_close(&rig);
    remove_shards(folder);
}

static void what_one_rank_has_lost_all_compute_and_keep_anew(void **state)
{
    (void)state;
    prompts_t prompts;
    ranks_rig_t rig;
    char folder[200];
    scratch_folder_make(folder, sizeof(folder));
    ranks_rig_config_t config = config_of(2, 1);
    fill(&prompts);
    answer_all(&config, &prompts);
    config = on_disk(folder);
    ranks_rig_open(&rig, &config);
    check_all(&rig.rig, &prompts);
    ranks_rig_close(&rig);
    empty_folder_of(folder, "shard-1");
    ranks_rig_open(&rig, &config);
    check_all(&rig.rig, &prompts);
    assert_true(engine_stats(rig.rig.engine).store.fetches >= N_PROMPTS);
    assert_int_equal(hits(&rig.rig, KV_TIER_disk), 0);
    ranks_rig_close(&rig);
    ranks_rig_open(&rig, &config);
    check_all(&rig.rig, &prompts);
    assert_int_equal(hits(&rig.rig, KV_TIER_disk), 4 * N_PROMPTS);
    ranks_rig_close(&rig);
    remove_shards(folder);
}

static void a_tier_that_one_rank_cannot_have_none_has(void **state)
{
    (void)state;
    prompts_t prompts;
    ranks_rig_t rig;
    ranks_rig_config_t config = config_of(2, 1);
    fill(&prompts);
    answer_all(&config, &prompts);
    config.options.num_gpu_blocks = 12;
    config.options.kv_host_bytes = 1 << 20;
    config.follower_options = config.options;
    config.follower_options.kv_host_bytes = 0;
    ranks_rig_open(&rig, &config);
    check_all(&rig.rig, &prompts);
    check_all(&rig.rig, &prompts);
    assert_false(engine_stats(rig.rig.engine).store.tiers[KV_TIER_host].is_present);
    ranks_rig_close(&rig);
}

/* ---- transfers ------------------------------------------------------------------------------- */

typedef struct pair {
    ranks_rig_t prefill;
    ranks_rig_t decode;
    uint32_t n_transfers;
} pair_t;

static ranks_rig_config_t worker_config(uint32_t tensor_size, uint32_t stages, uint32_t block_size,
                                        const char *role)
{
    ranks_rig_config_t config = config_of(tensor_size, stages);
    config.options.block_size = block_size;
    config.options.num_gpu_blocks = 40 * 16 / block_size;
    config.options.kv_transfer_config = role;
    return config;
}

static void lead(ranks_rig_t *rig)
{
    weft_diag_t diag = {0};
    if (ranks_rig_lead(rig, &diag) < 0) {
        fail_msg("%s", diag.text);
    }
}

static void open_pair(pair_t *pair, const ranks_rig_config_t *p, const ranks_rig_config_t *d)
{
    pair->n_transfers = 0;
    ranks_rig_fork(&pair->prefill, p);
    ranks_rig_fork(&pair->decode, d);
    lead(&pair->prefill);
    lead(&pair->decode);
}

static void close_pair(pair_t *pair)
{
    (void)engine_rig_wait_idle(&pair->prefill.rig); /* no rank holds anything */
    (void)engine_rig_wait_idle(&pair->decode.rig);
    ranks_rig_close(&pair->decode);
    ranks_rig_close(&pair->prefill);
}

static engine_request_t *send_prefill(pair_t *pair, const prompts_t *prompts, uint32_t i,
                                      char *transfer_id)
{
    const kv_transfer_params_t asked = {.do_remote_decode = true,
                                        .transfer_id = transfer_id,
                                        .tp_size = 1,
                                        .dcp_size = 1,
                                        .pp_size = 1};
    engine_submit_t leg = engine_rig_submit(prompts->tokens[i], PROMPT, 1);
    leg.transfer = &asked;
    return engine_rig_send(&pair->prefill.rig, &leg);
}

static void check_pulled(pair_t *pair, const prompts_t *prompts, uint32_t i,
                         const kv_transfer_params_t *params)
{
    engine_request_t *request;
    const int32_t *tokens = answer(&pair->decode.rig, prompts, i, params, &request);
    assert_memory_equal(tokens, prompts->answers[i], sizeof(prompts->answers[i]));
    assert_int_equal(engine_request_timings(request).pulled_tokens, PROMPT - 1);
    engine_request_release(request);
}

static void check_behind_the_answer(pair_t *pair, const prompts_t *prompts, uint32_t i)
{
    kv_transfer_params_t params;
    engine_request_t *request = send_prefill(pair, prompts, i, NULL);
    engine_rig_wait(&pair->prefill.rig, request);
    assert_non_null(engine_request_transfer(request));
    assert_status(kv_transfer_params_copy(engine_request_transfer(request), &params), WEFT_OK);
    engine_request_release(request);
    check_pulled(pair, prompts, i, &params);
    kv_transfer_params_fini(&params);
}

/* What a decode worker is told before there is an answer; id is borrowed. */
static kv_transfer_params_t ahead_of(const pair_t *pair, char *id)
{
    return (kv_transfer_params_t){.do_remote_prefill = true,
                                  .transfer_id = id,
                                  .remote_host = (char *)"127.0.0.1",
                                  .has_port = true,
                                  .remote_port =
                                      kv_transfer_port(engine_transfer(pair->prefill.rig.engine)),
                                  .tp_size = pair->prefill.config.options.tensor_parallel_size,
                                  .pp_size = pair->prefill.config.options.pipeline_parallel_size,
                                  .dcp_size = 1};
}

static void check_ahead_of_it(pair_t *pair, const prompts_t *prompts, uint32_t i)
{
    char id[32];
    snprintf(id, sizeof(id), "x-%u", pair->n_transfers++);
    const kv_transfer_params_t params = ahead_of(pair, id);
    engine_request_t *prefill = send_prefill(pair, prompts, i, id);
    check_pulled(pair, prompts, i, &params);
    engine_rig_wait(&pair->prefill.rig, prefill);
    engine_request_release(prefill);
}

static void move_between(const ranks_rig_config_t *p, const ranks_rig_config_t *d)
{
    prompts_t prompts;
    pair_t pair;
    ranks_rig_config_t alone = *d;
    fill(&prompts);
    alone.options.kv_transfer_config = "";
    answer_all(&alone, &prompts);
    open_pair(&pair, p, d);
    for (uint32_t i = 0; i < 3; i++) {
        check_behind_the_answer(&pair, &prompts, i);
    }
    for (uint32_t i = 3; i < N_PROMPTS; i++) {
        check_ahead_of_it(&pair, &prompts, i);
    }
    close_pair(&pair);
}

static void move(uint32_t p_size, uint32_t p_block, uint32_t d_size, uint32_t d_block)
{
    const ranks_rig_config_t p = worker_config(p_size, 1, p_block, producer);
    const ranks_rig_config_t d = worker_config(d_size, 1, d_block, consumer);
    move_between(&p, &d);
}

static void as_many_ranks_decode_bit_for_bit_from_blocks_of_others(void **state)
{
    (void)state;
    move(2, 16, 2, 16);
    move(2, 8, 2, 16);
    move(4, 16, 4, 8);
}

static void other_numbers_of_ranks_decode_from_them_too(void **state)
{
    (void)state;
    move(1, 16, 2, 16);
    move(2, 16, 1, 8);
    move(4, 16, 1, 16);
    move(2, 16, 4, 16);
    move(4, 8, 2, 16);
}

static void stages_decode_from_other_stages(void **state)
{
    (void)state;
    const ranks_rig_config_t p = worker_config(2, 2, 16, producer);
    const ranks_rig_config_t d = worker_config(1, 2, 16, consumer);
    move_between(&p, &d);
}

/* ---- losses ---------------------------------------------------------------------------------- */

/* It waits for a prefill that does not begin: so the pull is under way, whatever else happens when. */
static void a_rank_of_the_decode_worker_that_dies_in_a_pull_costs_a_computation(void **state)
{
    (void)state;
    prompts_t prompts;
    pair_t pair;
    const ranks_rig_config_t p = worker_config(2, 1, 16, producer);
    ranks_rig_config_t d = worker_config(2, 1, 16, "");
    fill(&prompts);
    answer_all(&d, &prompts);
    d.options.kv_transfer_config = consumer;
    d.restarts = 1;
    open_pair(&pair, &p, &d);
    check_behind_the_answer(&pair, &prompts, 0);
    const kv_transfer_params_t params = ahead_of(&pair, (char *)"never");
    engine_submit_t submit = engine_rig_submit(prompts.tokens[1], PROMPT, ANSWER);
    submit.transfer = &params;
    engine_request_t *request = engine_rig_send(&pair.decode.rig, &submit);
    kv_transfer_stats_t stats = {0};
    while (stats.pulls_open == 0) {
        (void)engine_client_wait(pair.decode.rig.client, 1);
        kv_transfer_stats(engine_transfer(pair.decode.rig.engine), &stats);
    }
    ranks_rig_kill(&pair.decode, 1);
    ranks_rig_replace(&pair.decode, 1);
    engine_rig_wait(&pair.decode.rig, request);
    assert_memory_equal(engine_request_answer(request, 0).tokens, prompts.answers[1],
                        sizeof(prompts.answers[1]));
    assert_int_equal(engine_request_timings(request).pulled_tokens, 0);
    engine_request_release(request);
    assert_int_equal(engine_stats(pair.decode.rig.engine).regroupings, 1);
    check_behind_the_answer(&pair, &prompts, 2); /* the new rank takes part */
    close_pair(&pair);
}

static void a_rank_of_the_prefill_worker_that_dies_costs_a_computation(void **state)
{
    (void)state;
    prompts_t prompts;
    pair_t pair;
    engine_request_t *request;
    kv_transfer_params_t params;
    const ranks_rig_config_t p = worker_config(2, 1, 16, brief_producer);
    ranks_rig_config_t d = worker_config(2, 1, 16, "");
    fill(&prompts);
    answer_all(&d, &prompts);
    d.options.kv_transfer_config = consumer;
    open_pair(&pair, &p, &d);
    check_behind_the_answer(&pair, &prompts, 0);
    engine_request_t *prefill = send_prefill(&pair, &prompts, 1, NULL);
    engine_rig_wait(&pair.prefill.rig, prefill);
    assert_status(kv_transfer_params_copy(engine_request_transfer(prefill), &params), WEFT_OK);
    engine_request_release(prefill);
    ranks_rig_kill(&pair.prefill, 1);
    assert_memory_equal(answer(&pair.decode.rig, &prompts, 1, &params, &request),
                        prompts.answers[1], sizeof(prompts.answers[1]));
    assert_int_equal(engine_request_timings(request).pulled_tokens, 0);
    engine_request_release(request);
    kv_transfer_params_fini(&params);
    close_pair(&pair);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_find_in_their_host_tiers_what_they_put_there),
        cmocka_unit_test(ranks_find_on_their_disks_what_they_saved),
        cmocka_unit_test(what_one_rank_has_lost_all_compute_and_keep_anew),
        cmocka_unit_test(a_tier_that_one_rank_cannot_have_none_has),
        cmocka_unit_test(as_many_ranks_decode_bit_for_bit_from_blocks_of_others),
        cmocka_unit_test(other_numbers_of_ranks_decode_from_them_too),
        cmocka_unit_test(stages_decode_from_other_stages),
        cmocka_unit_test(a_rank_of_the_decode_worker_that_dies_in_a_pull_costs_a_computation),
        cmocka_unit_test(a_rank_of_the_prefill_worker_that_dies_costs_a_computation),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
