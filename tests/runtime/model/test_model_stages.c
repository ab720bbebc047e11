/* SPDX-License-Identifier: Apache-2.0 */
/* Models in stages: ranks that are processes, each with an executor that carries out the same plans. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>

#include "tests/support/coll_rig.h"
#include "tests/support/executor_rig.h"

enum { SEQUENCES = 4, GROUPS = 2, BLOCK_TOKENS = 16, SEQUENCE_BLOCKS = 9, ANSWER = 16 };

static const step_limits_t limits = {.max_slots = SEQUENCES,
                                     .max_tokens = 256,
                                     .max_context = BLOCK_TOKENS * SEQUENCE_BLOCKS,
                                     .max_blocks = SEQUENCES * SEQUENCE_BLOCKS,
                                     .max_bind_tokens = 512,
                                     .max_biases = 4,
                                     .max_outputs = SEQUENCES};

/* What all ranks do. */
typedef struct job {
    const char *model;
    uint32_t stages;
    uint32_t tensor_size;
    uint32_t killed_stage; /* 0: none */
} job_t;

typedef struct sequence {
    int32_t tokens[BLOCK_TOKENS * SEQUENCE_BLOCKS]; /* the prompt, then the reference's answer */
    uint32_t n_prompt;
} sequence_t;

typedef struct rank {
    coll_rig_rank_t *self;
    const job_t *job;
    coll_t *world;
    coll_t *tensor;
    model_shard_t shard;
    executor_rig_t rig;
    sequence_t sequences[SEQUENCES];
} rank_t;

static uint32_t read_tokens(const json_t *array, int32_t *out)
{
    size_t i;
    json_t *token;
    json_array_foreach(array, i, token)
    {
        out[i] = (int32_t)json_integer_value(token);
    }
    return (uint32_t)json_array_size(array);
}

static void read_sequences(rank_t *rank)
{
    char path[512];
    snprintf(path, sizeof(path), TINY_MODELS "%s/golden.json", rank->job->model);
    json_t *golden = json_load_file(path, 0, NULL);
    assert_non_null(golden);
    const json_t *all = json_object_get(golden, "sequences");
    assert_true(json_array_size(all) >= SEQUENCES);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        const json_t *one = json_array_get(all, i);
        sequence_t *sequence = &rank->sequences[i];
        sequence->n_prompt = read_tokens(json_object_get(one, "tokens"), sequence->tokens);
        const uint32_t n =
            read_tokens(json_object_get(one, "greedy"), sequence->tokens + sequence->n_prompt);
        assert_true(n >= ANSWER && sequence->n_prompt + n <= limits.max_context);
    }
    json_decref(golden);
}

static void open_rank(rank_t *rank, coll_rig_rank_t *self)
{
    const job_t *job = self->user;
    weft_diag_t diag = {0};
    char path[512];
    *rank = (rank_t){.self = self, .job = job, .world = coll_rig_create(self, "shm")};
    rank->shard = (model_shard_t){.tensor_rank = self->rank % job->tensor_size,
                                  .tensor_size = job->tensor_size,
                                  .stage = self->rank / job->tensor_size,
                                  .stages = job->stages,
                                  .world = rank->world};
    if (job->tensor_size > 1) {
        model_rig_check(coll_split(rank->world, rank->shard.stage, &diag, &rank->tensor), &diag);
        rank->shard.tensor = rank->tensor;
    }
    const bool is_gguf = strstr(job->model, "gguf") != NULL;
    snprintf(path, sizeof(path), TINY_MODELS "%s%s", job->model, is_gguf ? "/model.gguf" : "");
    const model_rig_config_t config = {.path = path,
                                       .isa = "ref",
                                       .kv_dtype = K_F32,
                                       .block_tokens = BLOCK_TOKENS,
                                       .n_blocks = SEQUENCES * SEQUENCE_BLOCKS,
                                       .shard = &rank->shard};
    executor_rig_open(&rank->rig, config, &limits);
    read_sequences(rank);
}

static void close_rank(rank_t *rank)
{
    executor_rig_close(&rank->rig);
    coll_destroy(rank->tensor);
    coll_destroy(rank->world);
}

/* The group's sequences from the first token on; each ends in a sample. */
static void plan_prefills(rank_t *rank, uint32_t group)
{
    step_plan_t *plan = rank->rig.plan;
    for (uint32_t i = group; i < SEQUENCES; i += GROUPS) {
        const sequence_t *sequence = &rank->sequences[i];
        plan_bind(plan, i, sequence->tokens, sequence->n_prompt, &greedy_sampling);
        for (uint32_t j = 0; j < SEQUENCE_BLOCKS; j++) {
            plan_block(plan, i, j, j * SEQUENCES + i);
        }
        plan_row(plan, i, 0, sequence->n_prompt, STEP_ROW_SAMPLE, 0);
    }
    assert_status(executor_rig_launch(&rank->rig), WEFT_OK);
}

/* Their nth answer token, of which the plan tells, goes in, the next comes out. */
static void plan_decodes(rank_t *rank, uint32_t group, uint32_t n)
{
    step_plan_t *plan = rank->rig.plan;
    for (uint32_t i = group; i < SEQUENCES; i += GROUPS) {
        const sequence_t *sequence = &rank->sequences[i];
        const uint32_t at = sequence->n_prompt + n;
        plan_row(plan, i, at, 1, STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT | STEP_ROW_TOLD, n + 1);
        plan->tokens[plan->n_tokens++] = sequence->tokens[at];
    }
    assert_status(executor_rig_launch(&rank->rig), WEFT_OK);
}

/* Only the leader hears what the last stage sampled. */
static void collect(rank_t *rank, uint32_t group, uint32_t n)
{
    const step_result_t result = executor_rig_collect(&rank->rig);
    const k_sampled_t *row = result.rows;
    if (rank->self->rank > 0) {
        return;
    }
    for (uint32_t i = group; i < SEQUENCES; i += GROUPS) {
        const sequence_t *sequence = &rank->sequences[i];
        if (row->chosen.token != sequence->tokens[sequence->n_prompt + n]) {
            fail_msg("%s, sequence %u, answer token %u: %d, not %d", rank->job->model, i, n,
                     row->chosen.token, sequence->tokens[sequence->n_prompt + n]);
        }
        row++;
    }
}

static void answer_all(rank_t *rank)
{
    for (uint32_t n = 0; n < ANSWER; n++) {
        for (uint32_t group = 0; group < GROUPS; group++) {
            collect(rank, group, n);
            if (n + 1 < ANSWER) {
                plan_decodes(rank, group, n);
            }
        }
    }
}

static void answer(coll_rig_rank_t *self)
{
    rank_t rank;
    open_rank(&rank, self);
    plan_prefills(&rank, 0);
    plan_prefills(&rank, 1);
    answer_all(&rank);
    close_rank(&rank);
}

static void every_models_stages_give_its_tokens(void **state)
{
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(tiny_models); i++) {
        job_t job = {.model = tiny_models[i], .stages = 2, .tensor_size = 1};
        if (strstr(job.model, "longrope") != NULL) {
            continue; /* the reference rotates each sequence by its length, an executor all alike */
        }
        print_message("%s\n", job.model);
        coll_rig_run(2, answer, &job);
    }
}

static void more_stages_and_stages_cut_over_ranks_give_the_tokens(void **state)
{
    static const char *const models[] = {"llama", "qwen3-moe", "deepseek-v2", "olmo2"};
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(models); i++) {
        job_t three = {.model = models[i], .stages = 3, .tensor_size = 1};
        job_t cut = {.model = models[i], .stages = 2, .tensor_size = 2};
        print_message("%s\n", models[i]);
        coll_rig_run(3, answer, &three);
        coll_rig_run(4, answer, &cut);
    }
}

/* The second stage begins the first step when the first stage has launched the second one. */
static void answer_when_two_are_out(coll_rig_rank_t *self)
{
    _Atomic uint32_t *n_launched = self->shared;
    rank_t rank;
    open_rank(&rank, self);
    if (rank.shard.stage > 0) {
        coll_rig_await(n_launched, GROUPS);
    }
    for (uint32_t group = 0; group < GROUPS; group++) {
        plan_prefills(&rank, group);
        atomic_fetch_add(n_launched, rank.shard.stage == 0);
    }
    answer_all(&rank);
    close_rank(&rank);
}

static void two_steps_are_on_their_way_at_a_time(void **state)
{
    (void)state;
    job_t job = {.model = "llama", .stages = 2, .tensor_size = 1};
    coll_rig_run(2, answer_when_two_are_out, &job);
}

static void die_in_a_stage(coll_rig_rank_t *self)
{
    const job_t *job = self->user;
    step_result_t result;
    rank_t rank;
    open_rank(&rank, self);
    plan_prefills(&rank, 0);
    if (rank.shard.stage == job->killed_stage) {
        assert_status(executor_collect(rank.rig.executor, &result), WEFT_OK);
        (void)raise(SIGKILL);
    }
    if (self->rank == 0) {
        collect(&rank, 0, 0); /* was sent before it died */
        plan_decodes(&rank, 0, 0);
        assert_true(executor_collect(rank.rig.executor, &result) < 0);
    }
    close_rank(&rank);
}

static void a_stage_that_is_lost_is_an_error(void **state)
{
    (void)state;
    job_t job = {.model = "llama", .stages = 2, .tensor_size = 1, .killed_stage = 1};
    coll_rig_run_with_deaths(2, 1U << 1, die_in_a_stage, &job);
}

/* ---- links of one rank that fail one by one ---- */

enum { LAST_STAGE_RANKS = 2, FAILED_RANK = 3, FAILED_TENSOR_RANK = 1 };

typedef struct watcher {
    coll_t *world;
    const _Atomic uint32_t *n_done;
} watcher_t;

/* What the launcher's group tells the leader in the end. */
static void *give_up_on_the_last_stage(void *arg)
{
    const watcher_t *watcher = arg;
    coll_rig_await(watcher->n_done, LAST_STAGE_RANKS);
    coll_abort(watcher->world, FAILED_RANK);
    return NULL;
}

static void collect_nothing(rank_t *rank, const _Atomic uint32_t *n_done)
{
    watcher_t watcher = {.world = rank->world, .n_done = n_done};
    pthread_t thread;
    step_result_t result;
    assert_int_equal(pthread_create(&thread, NULL, give_up_on_the_last_stage, &watcher), 0);
    assert_status(executor_collect(rank->rig.executor, &result), WEFT_ERR_PEER_GONE);
    pthread_join(thread, NULL);
}

static void decode_with_a_failed_last_stage(coll_rig_rank_t *self)
{
    _Atomic uint32_t *n_done = self->shared;
    rank_t rank;
    uint32_t who = COLL_NO_RANK;
    open_rank(&rank, self);
    plan_prefills(&rank, 0);
    collect(&rank, 0, 0);
    if (rank.shard.stage == 1) {
        coll_abort(rank.tensor, FAILED_TENSOR_RANK);
    }
    plan_decodes(&rank, 0, 0);
    if (self->rank == 0) {
        collect_nothing(&rank, n_done);
    } else if (rank.shard.stage == 1) {
        step_result_t result;
        assert_status(executor_collect(rank.rig.executor, &result), WEFT_OK);
        assert_status(coll_status(rank.world, &who), WEFT_ERR_PEER_GONE);
        assert_int_equal(who, FAILED_RANK);
        atomic_fetch_add(n_done, 1);
    }
    close_rank(&rank);
}

static void a_stage_whose_tensor_group_failed_sends_nothing(void **state)
{
    (void)state;
    job_t job = {.model = "llama", .stages = 2, .tensor_size = 2};
    coll_rig_run(4, decode_with_a_failed_last_stage, &job);
}

static void decode_without_input(coll_rig_rank_t *self)
{
    _Atomic uint32_t *n_done = self->shared;
    rank_t rank;
    uint32_t who = 0;
    open_rank(&rank, self);
    plan_prefills(&rank, 0);
    collect(&rank, 0, 0);
    if (self->rank == 0) {
        atomic_fetch_add(n_done, 1); /* the failure, which all hear of, may come now */
    } else if (self->rank == FAILED_RANK) {
        coll_rig_await(n_done, 1);
        coll_abort(rank.world, 1);
        plan_decodes(&rank, 0, 0);
        assert_status(coll_status(rank.tensor, &who), WEFT_ERR_PEER_GONE);
        assert_int_equal(who, COLL_NO_RANK); /* it was one of another stage */
    }
    close_rank(&rank);
}

static void a_rank_that_got_nothing_adds_nothing(void **state)
{
    (void)state;
    job_t job = {.model = "llama", .stages = 2, .tensor_size = 2};
    coll_rig_run(4, decode_without_input, &job);
}

/* A rank's share of the model, as bytes of weights. */
static size_t weights_of(const model_source_t *source, const k_ops_t *ops, uint32_t stage,
                         uint32_t stages)
{
    const model_shard_t shard = {.stage = stage, .stages = stages};
    const model_limits_t model_limits_of_one = {.max_rows = 1, .max_outputs = 1, .max_context = 64};
    weft_diag_t diag = {0};
    size_t weights = 0;
    size_t activations = 0;
    model_rig_check(
        model_memory(source, &shard, &model_limits_of_one, ops, &diag, &weights, &activations),
        &diag);
    return weights;
}

static void a_stage_holds_its_layers_alone(void **state)
{
    (void)state;
    const model_rig_config_t config = {.path = TINY_MODELS "llama", .isa = "ref"};
    model_rig_t rig;
    model_rig_open_source(&rig, &config);
    const k_ops_t *ops = rig.stream->ops;
    const size_t whole = weights_of(rig.source, ops, 0, 1);
    size_t sum = 0;
    for (uint32_t stage = 0; stage < 3; stage++) {
        const size_t bytes = weights_of(rig.source, ops, stage, 3);
        assert_true(bytes < whole);
        sum += bytes;
    }
    assert_true(sum >= whole);
    model_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stage_holds_its_layers_alone),
        cmocka_unit_test(every_models_stages_give_its_tokens),
        cmocka_unit_test(more_stages_and_stages_cut_over_ranks_give_the_tokens),
        cmocka_unit_test(two_steps_are_on_their_way_at_a_time),
        cmocka_unit_test(a_stage_that_is_lost_is_an_error),
        cmocka_unit_test(a_stage_whose_tensor_group_failed_sends_nothing),
        cmocka_unit_test(a_rank_that_got_nothing_adds_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
