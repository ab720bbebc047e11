/* SPDX-License-Identifier: Apache-2.0 */
/* An engine over several ranks of which one goes: who hears of it, and how the group goes on. */
#include <signal.h>
#include <sys/wait.h>

#include "runtime/engine/engine_priv.h"
#include "runtime/executor/executor_priv.h"
#include "tests/support/ranks_rig.h"

static engine_request_t *kill_while_it_runs(ranks_rig_t *rig, uint32_t max_tokens)
{
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, max_tokens);
    return ranks_rig_kill_amid(rig, &submit, 5);
}

static void a_lost_rank_ends_what_runs_and_refuses_what_comes(void **state)
{
    (void)state;
    ranks_rig_t rig;
    const ranks_rig_config_t config = ranks_rig_replicas(2);
    ranks_rig_open(&rig, &config);
    engine_request_t *request = kill_while_it_runs(&rig, 100);
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
    ranks_rig_config_t config = ranks_rig_replicas(3);
    config.cause = 2;
    ranks_rig_open(&rig, &config);
    engine_request_t *request = kill_while_it_runs(&rig, 100);
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
    const ranks_rig_config_t config = ranks_rig_replicas(3);
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
    const ranks_rig_config_t config = ranks_rig_replicas(2);
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
    ranks_rig_config_t config = ranks_rig_replicas(2);
    config.timeout_ms = 10000; /* longer than the start of one that runs may take */
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
    health_log_t log = {0};
    ranks_rig_config_t config = ranks_rig_tensor(ENGINE_RIG_MODEL, 3);
    config.restarts = 2;
    ranks_rig_open(&rig, &config);
    engine_watch_health(rig.rig.engine, note_health, &log);
    engine_request_t *before = engine_rig_greedy(&rig.rig, 60);
    engine_request_t *request = kill_while_it_runs(&rig, 60);
    wait_for_health(&rig, ENGINE_FORMING);
    weft_diag_t diag = {0};
    engine_request_t *late = NULL;
    const engine_submit_t submit = engine_rig_submit(engine_rig_prompt, 20, 5);
    assert_status(engine_submit(rig.rig.engine, rig.rig.client, &submit, &diag, &late),
                  WEFT_ERR_PEER_GONE);
    assert_non_null(strstr(diag.text, "forms again"));

    ranks_rig_replace(&rig, 1);
    engine_rig_wait(&rig.rig, request);
    engine_rig_assert_whole_as(request, before);
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
    ranks_rig_config_t config = ranks_rig_replicas(2);
    config.restarts = 1;
    config.spare_options = config.options;
    config.spare_options.max_model_len = 0; /* it is lowered to what the blocks hold */
    config.spare_options.num_gpu_blocks = 2;
    ranks_rig_open(&rig, &config);
    const uint32_t n_blocks = engine_stats(rig.rig.engine).total_blocks;
    engine_request_t *request = kill_while_it_runs(&rig, 60);
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
    ranks_rig_config_t config = ranks_rig_replicas(3);
    config.restarts = 2;
    config.losses_again = 1;
    ranks_rig_open(&rig, &config);
    engine_request_t *request = kill_while_it_runs(&rig, 30);
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
    ranks_rig_config_t config = ranks_rig_replicas(2);
    config.restarts = 2;
    config.losses_again = 2;
    ranks_rig_open(&rig, &config);
    engine_request_t *request = kill_while_it_runs(&rig, 30);
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
    ranks_rig_config_t config = ranks_rig_replicas(2);
    config.restarts = 1;
    ranks_rig_open(&rig, &config);
    ranks_rig_kill(&rig, 1);
    wait_for_health(&rig, ENGINE_FORMING);
    ranks_rig_close(&rig); /* the rank never came */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
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
