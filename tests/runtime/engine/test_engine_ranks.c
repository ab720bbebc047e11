/* SPDX-License-Identifier: Apache-2.0 */
/* An engine over several ranks: what it answers, and what becomes of it when one of them goes. */
#include <semaphore.h>
#include <signal.h>
#include <sys/wait.h>

#include "runtime/engine/engine_priv.h"
#include "runtime/executor/executor_priv.h"
#include "tests/support/ranks_rig.h"

#define N_CASES    8
#define MAX_ANSWER 24

/* ---- requests of every kind ------------------------------------------------------------------ */

typedef struct request_case {
    engine_submit_t submit;
    uint32_t n_tokens;
    int32_t tokens[MAX_ANSWER];
    k_sampled_t logprobs[MAX_ANSWER];
    k_sampled_t last_prompt; /* of the prompt's last token, when asked for */
} request_case_t;

static const int32_t few_ids[] = {5, 17, 33, 64, 65, 66, 100, 200, 301};
static const k_bias_t biases[] = {{70, 4}, {71, -100}};
static const int32_t bad_words[] = {72};
static const uint32_t bad_word_lengths[] = {1};

/* All begin alike, so that later ones find the earlier ones' blocks. */
static void fill_cases(request_case_t cases[N_CASES])
{
    for (uint32_t i = 0; i < N_CASES; i++) {
        cases[i] = (request_case_t){
            .submit = engine_rig_submit(engine_rig_prompt, 20 + 2 * i, MAX_ANSWER - i)};
        cases[i].submit.sampling.wants_logprobs = true;
        cases[i].submit.sampling.n_top_logprobs = i % 4;
        cases[i].submit.sampling.seed = 40 + i;
        cases[i].submit.sampling.temperature = i % 2 == 0 ? 0 : 1.1f;
    }
    cases[1].submit.sampling.top_k = 30;
    cases[2].submit.sampling.repetition_penalty = 1.3f;
    cases[3].submit.sampling.logit_bias = biases;
    cases[3].submit.sampling.n_logit_bias = 2;
    cases[4].submit.sampling.wants_prompt_logprobs = true;
    cases[5].submit.sampling.allowed_token_ids = few_ids;
    cases[5].submit.sampling.n_allowed_token_ids = WEFT_ARRAY_LEN(few_ids);
    cases[6].submit.sampling.bad_words = bad_words;
    cases[6].submit.sampling.bad_word_lengths = bad_word_lengths;
    cases[6].submit.sampling.n_bad_words = 1;
    cases[6].submit.sampling.frequency_penalty = 0.5f;
    cases[7].submit.sampling.top_p = 0.9f;
}

static void keep(request_case_t *c, const engine_request_t *request)
{
    const engine_answer_t a = engine_request_answer(request, 0);
    const k_sampled_t *prompt = engine_request_prompt_logprobs(request);
    assert_int_equal(a.finish, ENGINE_FINISH_LENGTH);
    c->n_tokens = a.n_tokens;
    memcpy(c->tokens, a.tokens, a.n_tokens * sizeof(int32_t));
    memcpy(c->logprobs, a.logprobs, a.n_tokens * sizeof(k_sampled_t));
    if (prompt != NULL) {
        c->last_prompt = prompt[c->submit.n_prompt - 1];
    }
}

static void assert_logprobs_equal(const k_sampled_t *a, const k_sampled_t *b)
{
    assert_memory_equal(&a->chosen, &b->chosen, sizeof(a->chosen));
    assert_int_equal(a->n_top, b->n_top);
    assert_memory_equal(a->top, b->top, a->n_top * sizeof(a->top[0]));
}

static void assert_kept(const request_case_t *c, const engine_request_t *request)
{
    request_case_t now = {.submit = c->submit};
    keep(&now, request);
    assert_int_equal(now.n_tokens, c->n_tokens);
    assert_memory_equal(now.tokens, c->tokens, c->n_tokens * sizeof(int32_t));
    for (uint32_t i = 0; i < c->n_tokens; i++) {
        assert_logprobs_equal(&now.logprobs[i], &c->logprobs[i]);
    }
    assert_logprobs_equal(&now.last_prompt, &c->last_prompt);
}

static void answer_one_by_one(engine_rig_t *rig, request_case_t cases[N_CASES])
{
    for (uint32_t i = 0; i < N_CASES; i++) {
        engine_request_t *request = engine_rig_send(rig, &cases[i].submit);
        engine_rig_wait(rig, request);
        keep(&cases[i], request);
        engine_request_release(request);
    }
}

static void check_all_at_once(engine_rig_t *rig, const request_case_t cases[N_CASES])
{
    engine_request_t *requests[N_CASES];
    for (uint32_t i = 0; i < N_CASES; i++) {
        requests[i] = engine_rig_send(rig, &cases[i].submit);
    }
    for (uint32_t i = 0; i < N_CASES; i++) {
        engine_rig_wait(rig, requests[i]);
        assert_kept(&cases[i], requests[i]);
        engine_request_release(requests[i]);
    }
}

static ranks_rig_config_t config_of(const char *model, uint32_t size)
{
    ranks_rig_config_t config = {.model = model, .size = size, .options = engine_rig_options()};
    config.options.threads = 1;
    config.options.max_model_len = 128;
    config.options.tensor_parallel_size = size;
    return config;
}

/* ---- answers --------------------------------------------------------------------------------- */

static void replicas_answer_as_one_engine_alone(void **state)
{
    (void)state;
    request_case_t cases[N_CASES];
    engine_rig_t alone;
    ranks_rig_t rig;
    ranks_rig_config_t config = config_of(ENGINE_RIG_MODEL, 3);
    config.is_replicated = true;
    config.options.tensor_parallel_size = 1;
    fill_cases(cases);
    engine_rig_open(&alone, config.model, &config.options);
    answer_one_by_one(&alone, cases);
    engine_rig_close(&alone);
    ranks_rig_open(&rig, &config);
    check_all_at_once(&rig.rig, cases);
    ranks_rig_close(&rig);
}

/*
 * With tensor parallelism a follower that mirrored anything wrong would add the wrong numbers to
 * everybody's sums.
 */
static void disturbed_ranks_answer_as_undisturbed_ones(const char *model, uint32_t size,
                                                       uint32_t stages)
{
    request_case_t cases[N_CASES];
    ranks_rig_t rig;
    ranks_rig_config_t config = config_of(model, size);
    config.stages = stages;
    config.options.tensor_parallel_size = size / stages;
    config.options.pipeline_parallel_size = stages;
    fill_cases(cases);
    config.options.enable_prefix_caching = false;
    ranks_rig_open(&rig, &config);
    answer_one_by_one(&rig.rig, cases);
    ranks_rig_close(&rig);

    config.options.enable_prefix_caching = true;
    /* The leader guesses, what it guessed is computed by all. */
    config.options.speculative_config = stages > 1 ? ""
                                                   : "{\"model\": \"" WEFT_TEST_VECTORS
                                                     "/tiny-models/llama\", "
                                                     "\"num_speculative_tokens\": 3}";
    config.options.num_gpu_blocks = 12; /* so that preemption is also in earnest */
    config.options.max_num_batched_tokens = 24;
    ranks_rig_open(&rig, &config);
    for (uint64_t seed = 1; seed <= 4; seed++) {
        engine_set_chaos(rig.rig.engine, seed);
        check_all_at_once(&rig.rig, cases);
    }
    engine_set_chaos(rig.rig.engine, 0);
    assert_true(engine_stats(rig.rig.engine).preemptions > 0);
    assert_true(engine_stats(rig.rig.engine).prefix_hits > 0);
    assert_true(stages > 1 || engine_stats(rig.rig.engine).drafts > 0);
    ranks_rig_close(&rig);
}

static void two_ranks_answer_the_same_disturbed_or_not(void **state)
{
    (void)state;
    disturbed_ranks_answer_as_undisturbed_ones("llama", 2, 1);
}

static void more_ranks_than_kv_heads_answer_the_same_disturbed_or_not(void **state)
{
    (void)state;
    disturbed_ranks_answer_as_undisturbed_ones("qwen3", 4, 1);
}

/* Each stage computes what one engine would, in the same order: to the last bit. */
static void stages_answer_as_one_engine_alone(void **state)
{
    (void)state;
    request_case_t cases[N_CASES];
    engine_rig_t alone;
    ranks_rig_t rig;
    ranks_rig_config_t config = config_of("llama", 3);
    config.stages = 3;
    config.options.tensor_parallel_size = 1;
    fill_cases(cases);
    engine_rig_open(&alone, config.model, &config.options);
    answer_one_by_one(&alone, cases);
    engine_rig_close(&alone);
    config.options.pipeline_parallel_size = 3;
    ranks_rig_open(&rig, &config);
    check_all_at_once(&rig.rig, cases);
    ranks_rig_close(&rig);
}

static void stages_answer_the_same_disturbed_or_not(void **state)
{
    (void)state;
    disturbed_ranks_answer_as_undisturbed_ones("llama", 2, 2);
}

static void stages_of_ranks_answer_the_same_disturbed_or_not(void **state)
{
    (void)state;
    disturbed_ranks_answer_as_undisturbed_ones("llama", 4, 2);
}

/* ---- starting -------------------------------------------------------------------------------- */

static ranks_rig_config_t replicated(uint32_t size)
{
    ranks_rig_config_t config = config_of(ENGINE_RIG_MODEL, size);
    config.is_replicated = true;
    config.options.tensor_parallel_size = 1;
    return config;
}

static void sizes_are_those_of_the_smallest_rank(void **state)
{
    (void)state;
    ranks_rig_t rig;
    ranks_rig_config_t config = replicated(2);
    config.follower_options = config.options;
    config.follower_options.num_gpu_blocks = 7;
    config.follower_options.max_model_len = 100;
    ranks_rig_open(&rig, &config);
    assert_int_equal(engine_stats(rig.rig.engine).total_blocks, 7);
    assert_int_equal(engine_max_context(rig.rig.engine), 100);
    engine_request_t *request = engine_rig_greedy(&rig.rig, 50);
    assert_int_equal(engine_request_answer(request, 0).n_tokens, 50);
    engine_request_release(request);
    ranks_rig_close(&rig);
}

static void assert_refused(const ranks_rig_config_t *config, weft_status_t status,
                           const char *reason)
{
    ranks_rig_t rig;
    weft_diag_t diag = {0};
    assert_status(ranks_rig_try(&rig, config, &diag), status);
    if (strstr(diag.text, reason) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", diag.text, reason);
    }
    ranks_rig_end(&rig);
}

static void ranks_that_differ_are_refused_by_what_differs(void **state)
{
    (void)state;
    ranks_rig_config_t config = replicated(2);
    config.follower_options = config.options;
    config.follower_options.max_num_seqs = 3;
    assert_refused(&config, WEFT_ERR_DENIED, "--max-num-seqs is 8 on rank 0 but 3 on rank 1");
    config.follower_options = config.options;
    config.follower_options.block_size = 32;
    assert_refused(&config, WEFT_ERR_DENIED, "--block-size is 16 on rank 0 but 32 on rank 1");
}

static void a_rank_that_cannot_start_is_everybodys_reason(void **state)
{
    (void)state;
    ranks_rig_config_t config = replicated(2);
    config.follower_options = config.options;
    config.follower_options.cpu_isa = "z80";
    assert_refused(&config, WEFT_ERR_UNSUPPORTED, "rank 1: ");
    config = replicated(2);
    config.options.kv_cache_dtype = "f5";
    config.follower_options = replicated(2).options;
    assert_refused(&config, WEFT_ERR_INVALID, "--kv-cache-dtype f5");
}

static void ranks_of_which_one_alone_would_move_blocks_are_refused(void **state)
{
    (void)state;
    ranks_rig_config_t config = replicated(2);
    config.follower_options = config.options;
    config.follower_options.kv_transfer_config =
        "{\"kv_connector\":\"WeftConnector\",\"kv_role\":\"kv_both\"}";
    assert_refused(&config, WEFT_ERR_DENIED, "--kv-transfer-config: rank 0 has none, rank 1 has");
}

static void sizes_that_do_not_make_up_the_ranks_are_refused(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    model_shard_t shard;
    engine_options_t options = engine_rig_options();
    options.tensor_parallel_size = 2;
    options.pipeline_parallel_size = 3;
    options.enable_expert_parallel = true;
    assert_status(engine_shard(&options, 5, 6, &diag, &shard), WEFT_OK);
    assert_int_equal(shard.tensor_rank, 1);
    assert_int_equal(shard.tensor_size, 2);
    assert_int_equal(shard.stage, 2);
    assert_int_equal(shard.stages, 3);
    assert_true(shard.splits_experts);
    assert_status(engine_shard(&options, 0, 4, &diag, &shard), WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "here are 4: 1 x 4, 2 x 2, 4 x 1 would fit"));
}

/* ---- losing ---------------------------------------------------------------------------------- */

/* Holds the engine after a step, so that a rank is killed while a request runs. */
typedef struct gate {
    sem_t arrived;
    sem_t go;
    uint32_t steps_before;
} gate_t;

static void wait_at_gate(void *user, uint32_t tokens)
{
    (void)tokens;
    gate_t *gate = user;
    if (gate->steps_before > 0 && --gate->steps_before == 0) {
        assert_int_equal(sem_post(&gate->arrived), 0);
        while (sem_wait(&gate->go) != 0) {
        }
    }
}

/* A request that is in the midst of its answer when rank 1 is killed. */
static engine_request_t *kill_while_it_runs(ranks_rig_t *rig, gate_t *gate, uint32_t max_tokens)
{
    *gate = (gate_t){.steps_before = 5};
    assert_int_equal(sem_init(&gate->arrived, 0, 0), 0);
    assert_int_equal(sem_init(&gate->go, 0, 0), 0);
    engine_observe(rig->rig.engine, &(engine_observer_t){.user = gate, .on_step = wait_at_gate});
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, max_tokens);
    engine_request_t *request = engine_rig_send(&rig->rig, &submit);
    while (sem_wait(&gate->arrived) != 0) {
    }
    ranks_rig_kill(rig, 1);
    assert_int_equal(sem_post(&gate->go), 0);
    return request;
}

static void a_lost_rank_ends_what_runs_and_refuses_what_comes(void **state)
{
    (void)state;
    ranks_rig_t rig;
    gate_t gate;
    const ranks_rig_config_t config = replicated(2);
    ranks_rig_open(&rig, &config);
    engine_request_t *request = kill_while_it_runs(&rig, &gate, 100);
    engine_rig_wait(&rig.rig, request);
    const engine_answer_t answer = engine_request_answer(request, 0);
    assert_int_equal(answer.finish, ENGINE_FINISH_LOST);
    assert_non_null(strstr(answer.reason, "rank 1 was lost"));
    assert_int_equal(engine_health(rig.rig.engine), ENGINE_LOST);
    assert_int_equal(engine_stats(rig.rig.engine).rank_losses, 1);

    engine_request_t *late = NULL;
    weft_diag_t diag = {0};
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, 5);
    assert_status(engine_submit(rig.rig.engine, rig.rig.client, &submit, &diag, &late),
                  WEFT_ERR_PEER_GONE);
    engine_request_release(request);
    ranks_rig_close(&rig);
}

/* A survivor's end may be seen before the end of the one that it ended for. */
static void the_first_cause_is_named_where_the_group_knows_it(void **state)
{
    (void)state;
    ranks_rig_t rig;
    gate_t gate;
    ranks_rig_config_t config = replicated(3);
    config.cause = 2;
    ranks_rig_open(&rig, &config);
    engine_request_t *request = kill_while_it_runs(&rig, &gate, 100);
    engine_rig_wait(&rig.rig, request);
    assert_non_null(strstr(engine_request_answer(request, 0).reason, "rank 2 was lost"));
    engine_request_release(request);
    rig.pids[2] = 0; /* it ends too, but not well: by the same loss */
    ranks_rig_close(&rig);
}

typedef struct health_log {
    atomic_uint changes;
    atomic_int last;
} health_log_t;

static void note_health(void *user, engine_health_t health)
{
    health_log_t *log = user;
    atomic_store(&log->last, (int)health);
    atomic_fetch_add(&log->changes, 1);
}

static void wait_for_health(ranks_rig_t *rig, engine_health_t health)
{
    while (engine_health(rig->rig.engine) != health) {
        (void)engine_client_wait(rig->rig.client, 1);
    }
}

static void an_idle_group_notices_a_loss_too(void **state)
{
    (void)state;
    ranks_rig_t rig;
    health_log_t log = {0};
    const ranks_rig_config_t config = replicated(3);
    ranks_rig_open(&rig, &config);
    engine_watch_health(rig.rig.engine, note_health, &log);
    assert_int_equal(atomic_load(&log.changes), 0);
    ranks_rig_kill(&rig, 2);
    while (atomic_load(&log.changes) == 0) {
        (void)engine_client_wait(rig.rig.client, 1);
    }
    assert_int_equal(atomic_load(&log.last), ENGINE_LOST);
    rig.pids[1] = 0; /* it ends too, but not well: by the same loss */
    ranks_rig_close(&rig);
}

/* It takes no step any more. */
static void break_executor(void *user, uint32_t tokens)
{
    executor_t *executor = user;
    (void)tokens;
    executor->limits.max_tokens = 0;
}

static void a_leader_that_fails_tells_the_others(void **state)
{
    (void)state;
    ranks_rig_t rig;
    int status = 0;
    const ranks_rig_config_t config = replicated(2);
    ranks_rig_open(&rig, &config);
    engine_t *engine = rig.rig.engine;
    engine_observe(engine,
                   &(engine_observer_t){.user = engine->executor, .on_step = break_executor});
    engine_request_t *request = engine_rig_greedy(&rig.rig, 30);
    assert_int_equal(engine_request_answer(request, 0).finish, ENGINE_FINISH_ERROR);
    assert_int_equal(engine_health(engine), ENGINE_FAILED);
    assert_int_equal(waitpid(rig.pids[1], &status, 0), rig.pids[1]); /* of itself */
    assert_true(WIFEXITED(status));
    rig.pids[1] = 0;
    engine_request_release(request);
    ranks_rig_close(&rig);
}

/* A stopped process keeps its connections: only its silence tells. */
static void a_rank_that_hangs_is_lost_by_timeout(void **state)
{
    (void)state;
    ranks_rig_t rig;
    ranks_rig_config_t config = replicated(2);
    config.timeout_ms = 2000; /* longer than the start of one that runs may take */
    ranks_rig_open(&rig, &config);
    assert_int_equal(kill(rig.pids[1], SIGSTOP), 0);
    engine_request_t *request = engine_rig_greedy(&rig.rig, 100);
    assert_int_equal(engine_request_answer(request, 0).finish, ENGINE_FINISH_LOST);
    assert_int_equal(engine_stats(rig.rig.engine).rank_timeouts, 1);
    engine_request_release(request);
    ranks_rig_kill(&rig, 1);
    ranks_rig_close(&rig);
}

static void a_group_that_forms_again_goes_on_with_the_same_tokens(void **state)
{
    (void)state;
    ranks_rig_t rig;
    gate_t gate;
    health_log_t log = {0};
    ranks_rig_config_t config = config_of(ENGINE_RIG_MODEL, 3);
    config.restarts = 2;
    ranks_rig_open(&rig, &config);
    engine_watch_health(rig.rig.engine, note_health, &log);
    engine_request_t *before = engine_rig_greedy(&rig.rig, 60);
    engine_request_t *request = kill_while_it_runs(&rig, &gate, 60);
    wait_for_health(&rig, ENGINE_FORMING);
    weft_diag_t diag = {0};
    engine_request_t *late = NULL;
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, 5);
    assert_status(engine_submit(rig.rig.engine, rig.rig.client, &submit, &diag, &late),
                  WEFT_ERR_PEER_GONE);
    assert_non_null(strstr(diag.text, "forms again"));

    ranks_rig_replace(&rig, 1);
    engine_rig_wait(&rig.rig, request);
    const engine_answer_t a = engine_request_answer(before, 0);
    const engine_answer_t b = engine_request_answer(request, 0);
    assert_int_equal(b.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(b.n_tokens, a.n_tokens);
    assert_memory_equal(b.tokens, a.tokens, a.n_tokens * sizeof(int32_t));
    assert_int_equal(engine_stats(rig.rig.engine).regroupings, 1);
    assert_int_equal(atomic_load(&log.changes), 2);
    assert_int_equal(atomic_load(&log.last), ENGINE_UP);
    engine_request_release(before);
    engine_request_release(request);
    ranks_rig_close(&rig); /* rank 2, which lived, and the spare both end well */
}

/* Once the others have theirs there is less memory to be planned with. */
static void a_new_rank_takes_the_sizes_that_are_settled(void **state)
{
    (void)state;
    ranks_rig_t rig;
    gate_t gate;
    ranks_rig_config_t config = replicated(2);
    config.restarts = 1;
    config.spare_options = config.options;
    config.spare_options.max_model_len = 0; /* it is lowered to what the blocks hold */
    config.spare_options.num_gpu_blocks = 2;
    ranks_rig_open(&rig, &config);
    const uint32_t n_blocks = engine_stats(rig.rig.engine).total_blocks;
    engine_request_t *request = kill_while_it_runs(&rig, &gate, 60);
    ranks_rig_replace(&rig, 1);
    engine_rig_wait(&rig.rig, request);
    assert_int_equal(engine_request_answer(request, 0).finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(engine_stats(rig.rig.engine).total_blocks, n_blocks);
    assert_int_equal(engine_max_context(rig.rig.engine), config.options.max_model_len);
    engine_request_release(request);
    ranks_rig_close(&rig);
}

static void a_loss_while_the_group_forms_again_takes_a_restart(void **state)
{
    (void)state;
    ranks_rig_t rig;
    gate_t gate;
    ranks_rig_config_t config = replicated(3);
    config.restarts = 2;
    config.losses_again = 1;
    ranks_rig_open(&rig, &config);
    engine_request_t *request = kill_while_it_runs(&rig, &gate, 30);
    ranks_rig_replace(&rig, 1);
    engine_rig_wait(&rig.rig, request);
    assert_int_equal(engine_request_answer(request, 0).finish, ENGINE_FINISH_LENGTH);
    const engine_stats_t stats = engine_stats(rig.rig.engine);
    assert_int_equal(stats.rank_losses, 2);
    assert_int_equal(stats.regroupings, 1);
    engine_request_release(request);
    ranks_rig_close(&rig);
}

static void a_loss_beyond_the_restarts_is_the_last(void **state)
{
    (void)state;
    ranks_rig_t rig;
    gate_t gate;
    ranks_rig_config_t config = replicated(2);
    config.restarts = 2;
    config.losses_again = 2;
    ranks_rig_open(&rig, &config);
    engine_request_t *request = kill_while_it_runs(&rig, &gate, 30);
    engine_rig_wait(&rig.rig, request);
    assert_int_equal(engine_request_answer(request, 0).finish, ENGINE_FINISH_LOST);
    assert_int_equal(engine_health(rig.rig.engine), ENGINE_LOST);
    engine_request_release(request);
    ranks_rig_close(&rig);
}

static void an_engine_that_forms_again_can_be_destroyed(void **state)
{
    (void)state;
    ranks_rig_t rig;
    ranks_rig_config_t config = replicated(2);
    config.restarts = 1;
    ranks_rig_open(&rig, &config);
    ranks_rig_kill(&rig, 1);
    wait_for_health(&rig, ENGINE_FORMING);
    ranks_rig_close(&rig); /* the rank never came */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replicas_answer_as_one_engine_alone),
        cmocka_unit_test(two_ranks_answer_the_same_disturbed_or_not),
        cmocka_unit_test(more_ranks_than_kv_heads_answer_the_same_disturbed_or_not),
        cmocka_unit_test(stages_answer_as_one_engine_alone),
        cmocka_unit_test(stages_answer_the_same_disturbed_or_not),
        cmocka_unit_test(stages_of_ranks_answer_the_same_disturbed_or_not),
        cmocka_unit_test(sizes_are_those_of_the_smallest_rank),
        cmocka_unit_test(ranks_that_differ_are_refused_by_what_differs),
        cmocka_unit_test(a_rank_that_cannot_start_is_everybodys_reason),
        cmocka_unit_test(ranks_of_which_one_alone_would_move_blocks_are_refused),
        cmocka_unit_test(sizes_that_do_not_make_up_the_ranks_are_refused),
        cmocka_unit_test(a_lost_rank_ends_what_runs_and_refuses_what_comes),
        cmocka_unit_test(the_first_cause_is_named_where_the_group_knows_it),
        cmocka_unit_test(an_idle_group_notices_a_loss_too),
        cmocka_unit_test(a_leader_that_fails_tells_the_others),
        cmocka_unit_test(a_rank_that_hangs_is_lost_by_timeout),
        cmocka_unit_test(a_group_that_forms_again_goes_on_with_the_same_tokens),
        cmocka_unit_test(a_new_rank_takes_the_sizes_that_are_settled),
        cmocka_unit_test(a_loss_while_the_group_forms_again_takes_a_restart),
        cmocka_unit_test(a_loss_beyond_the_restarts_is_the_last),
        cmocka_unit_test(an_engine_that_forms_again_can_be_destroyed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
