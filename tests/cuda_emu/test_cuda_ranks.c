/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Models cut over ranks on one CUDA device, each rank a process: against the reference's numbers, and
 * against themselves in other company.
 */
#include <sys/wait.h>
#include <unistd.h>

#include "tests/cuda_emu/cuda_check.h"
#include "tests/support/coll_rig.h"
#include "tests/support/executor_jobs.h"
#include "tests/support/test_fork.h"

enum { BLOCK = 16, CHECKED = 3 /* sequences: emulated, the longest takes its time */ };

#define ROUNDED_SUM 0.004 /* of the range of logits, a token: as test_cuda_models.c */

typedef struct job_spec {
    const char *model;
    const char *backend; /* of the groups on the device; NULL: auto, which is cuda on one host */
    uint32_t stages;
    job_kind_t kind;
    bool splits_experts;
} job_spec_t;

typedef struct rank {
    coll_rig_rank_t *self;
    executor_rig_t rig;
    model_shard_t shard;
    coll_t *host; /* all ranks, in host memory */
    coll_t *all;  /* on the device */
    coll_t *tensor;
} rank_t;

/* ---- a rank ----------------------------------------------------------------------------------- */

static coll_t *create_group(const coll_rig_rank_t *self, weft_device_t *device, const char *backend)
{
    coll_config_t config = coll_rig_config(self, backend == NULL ? "auto" : backend);
    coll_t *coll = NULL;
    weft_diag_t diag = {0};
    config.device = device;
    model_rig_check(coll_create(&config, &diag, &coll), &diag);
    return coll;
}

static void join(rank_t *rank, const job_spec_t *spec)
{
    weft_diag_t diag = {0};
    rank->host = create_group(rank->self, rank->self->device, NULL);
    rank->all = create_group(rank->self, rank->rig.rig.device, spec->backend);
    if (rank->shard.tensor_size > 1 && spec->stages > 1) {
        model_rig_check(coll_split(rank->all, rank->shard.stage, &diag, &rank->tensor), &diag);
    }
    if (rank->shard.tensor_size > 1) {
        rank->shard.tensor = rank->tensor != NULL ? rank->tensor : rank->all;
    }
    if (spec->stages > 1) {
        rank->shard.world = rank->all;
        rank->shard.results = rank->host;
    }
    model_set_groups(rank->rig.rig.model, &rank->shard);
}

static void open_rank(rank_t *rank, coll_rig_rank_t *self)
{
    const job_spec_t *spec = self->user;
    const uint32_t tensor_size = self->size / spec->stages;
    *rank = (rank_t){.self = self,
                     .shard = {.tensor_rank = self->rank % tensor_size,
                               .tensor_size = tensor_size,
                               .stage = self->rank / tensor_size,
                               .stages = spec->stages,
                               .splits_experts = spec->splits_experts}};
    executor_rig_open(&rank->rig,
                      (model_rig_config_t){.path = tiny_model_path(spec->model),
                                           .device = "cuda",
                                           .isa = "auto",
                                           .kv_dtype = K_BF16,
                                           .block_tokens = BLOCK,
                                           .n_blocks = SEQUENCES * CONTEXT / BLOCK + 1,
                                           .shard = &rank->shard},
                      &limits);
    join(rank, spec);
}

static void close_rank(rank_t *rank)
{
    coll_barrier(rank->host, rank->self->queue); /* nobody reads what goes now */
    assert_status(coll_status(rank->all, NULL), WEFT_OK);
    executor_forget(rank->rig.executor);
    coll_destroy(rank->tensor);
    coll_destroy(rank->all);
    coll_destroy(rank->host);
    executor_rig_close(&rank->rig);
}

static void skip_without_nccl(void)
{
    if (!coll_rig_has_backend("cuda", "nccl")) {
        skip();
    }
}

/* ---- the reference's numbers ------------------------------------------------------------------ */

/* What the leader has of a sequence: all but the first of several stages samples for it. */
static void check_sum(const rank_t *rank, const job_t *job, double expected, double range)
{
    double sum = 0;
    for (uint32_t i = 0; i < job->n_prompt_logprobs; i++) {
        sum += job->prompt_logprobs[i].chosen.logprob;
    }
    if (rank->self->rank == 0 || rank->shard.stages <= 1) {
        assert_int_equal(job->n_prompt_logprobs, job->n_prompt - 1);
        assert_float_equal(sum, expected, ROUNDED_SUM * range * job->n_prompt);
    }
}

static void run_prompt(rank_t *rank, uint32_t index, job_t *job)
{
    step_sampling_t sampling = greedy_sampling;
    sampling.n_prompt_top = 1;
    plan_bind(rank->rig.plan, index, job->prompt, job->n_prompt, &sampling);
    plan_all_blocks(&rank->rig, index);
    for (uint32_t at = 0; at < job->n_prompt;) {
        const uint32_t left = job->n_prompt - at;
        const uint32_t n = left < limits.max_tokens ? left : limits.max_tokens;
        plan_row(rank->rig.plan, index, at, n,
                 STEP_ROW_PROMPT_LOGPROBS | (n == left ? STEP_ROW_SAMPLE : 0), 0);
        const step_result_t result = executor_rig_step(&rank->rig);
        take_prompt_logprobs(job, result.prompt, result.n_prompt);
        at += n;
    }
}

static void compute_prompts(coll_rig_rank_t *self)
{
    static job_t jobs[SEQUENCES];
    int32_t greedy[SEQUENCES][ANSWER];
    double sums[SEQUENCES];
    double range;
    rank_t rank;
    const job_spec_t *spec = self->user;
    load_jobs(spec->model, jobs, greedy, sums, &range);
    open_rank(&rank, self);
    for (uint32_t i = 0; i < CHECKED; i++) {
        run_prompt(&rank, i, &jobs[i]);
        check_sum(&rank, &jobs[i], sums[i], range);
    }
    close_rank(&rank);
}

static void tensor_ranks_compute_what_the_reference_does(void **state)
{
    (void)state;
    job_spec_t llama = {.model = "llama", .stages = 1};
    job_spec_t olmo2 = {.model = "olmo2", .stages = 1}; /* norms q and k over the ranks */
    job_spec_t q8_0 = {.model = "llama-gguf-q8_0", .stages = 1};
    coll_rig_run(2, compute_prompts, &llama);
    coll_rig_run(3, compute_prompts, &llama); /* more ranks than heads of keys */
    coll_rig_run(2, compute_prompts, &olmo2);
    coll_rig_run(2, compute_prompts, &q8_0);
}

static void experts_are_cut_or_dealt_out(void **state)
{
    (void)state;
    job_spec_t cut = {.model = "qwen3-moe", .stages = 1};
    job_spec_t dealt = {.model = "qwen3-moe", .stages = 1, .splits_experts = true};
    coll_rig_run(2, compute_prompts, &cut);
    coll_rig_run(2, compute_prompts, &dealt);
}

static void stages_compute_what_the_reference_does(void **state)
{
    (void)state;
    job_spec_t two = {.model = "llama", .stages = 2};
    coll_rig_run(2, compute_prompts, &two);
    coll_rig_run(4, compute_prompts, &two);
}

static void nccl_ranks_compute_what_the_reference_does(void **state)
{
    (void)state;
    job_spec_t llama = {.model = "llama", .backend = "nccl", .stages = 1};
    job_spec_t dealt = {
        .model = "qwen3-moe", .backend = "nccl", .stages = 1, .splits_experts = true};
    job_spec_t staged = {.model = "llama", .backend = "nccl", .stages = 2};
    skip_without_nccl();
    coll_rig_run(2, compute_prompts, &llama);
    coll_rig_run(2, compute_prompts, &dealt);
    coll_rig_run(4, compute_prompts, &staged);
}

/* ---- decision 7 ------------------------------------------------------------------------------- */

/* Decodes are graphs, of other sizes alone than together. */
static void answer_alone_and_together(coll_rig_rank_t *self)
{
    static job_t alone[SEQUENCES];
    static job_t together[SEQUENCES];
    int32_t greedy[SEQUENCES][ANSWER];
    double sums[SEQUENCES];
    double range;
    rank_t rank;
    const job_spec_t *spec = self->user;
    test_random_t random = {test_seed(14)}; /* every rank plans the same steps */
    load_jobs(spec->model, alone, greedy, sums, &range);
    memcpy(together, alone, sizeof(together));
    open_rank(&rank, self);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        run_alone(&rank.rig, i, &alone[i], spec->kind);
    }
    run_together(&rank.rig, together, spec->kind, &random);
    close_rank(&rank);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        assert_same_job(&alone[i], &together[i]);
    }
}

static void an_answer_of_ranks_is_the_same_alone_and_in_company(void **state)
{
    (void)state;
    job_spec_t wide = {.model = "llama-gguf-q8_0", .stages = 1, .kind = JOBS_WIDE};
    coll_rig_run(2, answer_alone_and_together, &wide);
}

static void an_answer_of_nccl_ranks_is_the_same_alone_and_in_company(void **state)
{
    (void)state;
    job_spec_t wide = {
        .model = "llama-gguf-q8_0", .backend = "nccl", .stages = 1, .kind = JOBS_WIDE};
    skip_without_nccl();
    coll_rig_run(2, answer_alone_and_together, &wide);
}

/* ---- a rank that is lost ---------------------------------------------------------------------- */

static void lose_a_rank(coll_rig_rank_t *self)
{
    static const int32_t prompt[] = {5, 100, 7, 42};
    rank_t rank;
    step_result_t result;
    uint32_t who = COLL_NO_RANK;
    open_rank(&rank, self);
    plan_bind(rank.rig.plan, 0, prompt, 4, &greedy_sampling);
    plan_all_blocks(&rank.rig, 0);
    plan_row(rank.rig.plan, 0, 0, 4, STEP_ROW_SAMPLE, 0);
    (void)executor_rig_step(&rank.rig);
    if (self->rank == 1) {
        (void)raise(SIGKILL);
    }
    plan_row(rank.rig.plan, 0, 4, 1, STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT, 1);
    assert_status(executor_rig_launch(&rank.rig), WEFT_OK);
    coll_abort(rank.all, 1); /* whoever watches the ranks has heard of it */
    (void)executor_collect(rank.rig.executor, &result);
    assert_status(coll_status(rank.all, &who), WEFT_ERR_PEER_GONE);
    assert_int_equal(who, 1);
    executor_forget(rank.rig.executor);
    coll_destroy(rank.all);
    coll_destroy(rank.host);
    executor_rig_close(&rank.rig);
}

static void a_step_without_a_rank_ends(void **state)
{
    (void)state;
    job_spec_t two = {.model = "llama", .stages = 1};
    coll_rig_run_with_deaths(2, 1U << 1, lose_a_rank, &two);
}

/* A device that this process opened its forks could not use. */
static void skip_without_device(void)
{
    int status = 0;
    const pid_t pid = test_fork();
    if (pid == 0) {
        cuda_skip_without_device();
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status) ||
        WEXITSTATUS(status) != 0) {
        exit(77);
    }
}

int main(void)
{
    skip_without_device();
    setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 0);
    if (emu_is_emulated()) {
        setenv("WEFT_NCCL_LIBRARY", FAKE_NCCL_LIBRARY, 1);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensor_ranks_compute_what_the_reference_does),
        cmocka_unit_test(experts_are_cut_or_dealt_out),
        cmocka_unit_test(stages_compute_what_the_reference_does),
        cmocka_unit_test(nccl_ranks_compute_what_the_reference_does),
        cmocka_unit_test(an_answer_of_ranks_is_the_same_alone_and_in_company),
        cmocka_unit_test(an_answer_of_nccl_ranks_is_the_same_alone_and_in_company),
        cmocka_unit_test(a_step_without_a_rank_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
