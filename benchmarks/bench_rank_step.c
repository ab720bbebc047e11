/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_rank_step: what a step over ranks costs besides its layers. A model's layers are left away;
 * embedding, output matrix and sampling stay. Steps of one token each are made by one rank alone, then
 * by RANKS ranks of one thread as the engine makes them (the plan goes over the feed, every rank
 * computes, results are looked at), by turns; prints one JSON line of medians in microseconds.
 *
 *   bench_rank_step MODEL [RANKS [STEPS [ROUNDS]]]
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "runtime/sched/step_plan_wire.h"
#include "tests/support/coll_rig.h"
#include "tests/support/executor_rig.h"
#include "transport/coll/coll_feed.h"

enum { PROMPT = 16, WARM_UP = 64, CONTEXT = 4096, BLOCK_TOKENS = 16, MAX_ROUNDS = 64 };

static const step_limits_t limits = {.max_slots = 1,
                                     .max_tokens = 64,
                                     .max_context = CONTEXT,
                                     .max_blocks = CONTEXT / BLOCK_TOKENS,
                                     .max_bind_tokens = CONTEXT,
                                     .max_biases = 1,
                                     .max_outputs = 1};

typedef struct run {
    const char *path;
    uint32_t steps;
    double *median_us; /* shared with the ranks; rank 0 writes */
} run_t;

typedef struct step_rig {
    executor_rig_t executor;
    coll_t *coll;      /* NULL: alone */
    coll_feed_t *feed; /* the same */
    step_wire_bounds_t bounds;
} step_rig_t;

/* No published model has none; of one that is loaded the graph runs as many as its config says. */
static void take_layers_away(model_rig_t *rig)
{
    ((model_config_t *)(uintptr_t)model_local_config(rig->model))->layers = 0;
    rig->layout.groups[0].layers = 0;
}

static void open_executor(executor_rig_t *rig, const model_rig_config_t *config)
{
    weft_diag_t diag = {0};
    *rig = (executor_rig_t){.limits = limits};
    model_rig_open(&rig->rig, config);
    take_layers_away(&rig->rig);
    const executor_config_t executor = executor_rig_config(rig, config->kv_dtype);
    model_rig_check(executor_create(&executor, &diag, &rig->executor), &diag);
    assert_status(step_plan_create(&limits, &rig->plan), WEFT_OK);
    step_plan_clear(rig->plan, ++rig->step);
}

static void open_rig(step_rig_t *rig, const coll_rig_rank_t *self, const char *path)
{
    weft_diag_t diag = {0};
    *rig = (step_rig_t){.coll = self->size > 1 ? coll_rig_create(self, "shm") : NULL};
    const model_shard_t shard = {
        .tensor_rank = self->rank, .tensor_size = self->size, .tensor = rig->coll};
    const model_rig_config_t config = {
        .path = path,
        .isa = "auto",
        .threads = 1,
        .kv_dtype = K_F16,
        .block_tokens = BLOCK_TOKENS,
        .n_blocks = CONTEXT / BLOCK_TOKENS,
        .limits = {.max_rows = limits.max_tokens,
                   .max_outputs = limits.max_outputs,
                   .max_context = limits.max_context},
        .shard = &shard,
    };
    open_executor(&rig->executor, &config);
    rig->bounds = (step_wire_bounds_t){
        .limits = limits,
        .vocab = model_config(rig->executor.rig.model)->vocab,
        .n_blocks = config.n_blocks,
    };
    if (rig->coll != NULL) {
        model_rig_check(
            coll_feed_create(rig->coll, step_wire_max_bytes(&rig->bounds), 4, &diag, &rig->feed),
            &diag);
    }
}

static void close_rig(step_rig_t *rig)
{
    coll_feed_destroy(rig->feed);
    executor_rig_close(&rig->executor);
    coll_destroy(rig->coll);
}

/* As engine_thread.c does it, plan and commit left out. */
static void lead_step(step_rig_t *rig)
{
    executor_rig_t *e = &rig->executor;
    if (rig->feed != NULL) {
        void *message = coll_feed_begin(rig->feed);
        assert_non_null(message);
        const size_t bytes =
            step_wire_encode(e->plan, executor_mask(e->executor, 0), rig->bounds.vocab, message);
        assert_status(coll_feed_send(rig->feed, bytes), WEFT_OK);
    }
    (void)executor_rig_step(e);
    assert_true(rig->coll == NULL || coll_status(rig->coll, NULL) == WEFT_OK);
}

static void follow(step_rig_t *rig)
{
    executor_rig_t *e = &rig->executor;
    bool is_stop = false;
    while (!is_stop) {
        const void *message;
        size_t bytes;
        weft_diag_t diag = {0};
        assert_status(coll_feed_receive(rig->feed, -1, &message, &bytes), WEFT_OK);
        assert_status(step_wire_decode(message, bytes, &rig->bounds, &diag, e->plan,
                                       executor_mask(e->executor, 0), &is_stop),
                      WEFT_OK);
        if (!is_stop) {
            (void)executor_rig_step(e);
        }
    }
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, uint32_t n)
{
    qsort(values, n, sizeof(*values), by_value);
    return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static void start_sequence(step_rig_t *rig)
{
    step_plan_t *plan = rig->executor.plan;
    int32_t prompt[PROMPT];
    for (uint32_t i = 0; i < PROMPT; i++) {
        prompt[i] = (int32_t)(100 + i);
    }
    plan_bind(plan, 0, prompt, PROMPT, &greedy_sampling);
    for (uint32_t i = 0; i < CONTEXT / BLOCK_TOKENS; i++) {
        plan_block(plan, 0, i, i);
    }
    plan_row(plan, 0, 0, PROMPT, STEP_ROW_SAMPLE, 0);
    lead_step(rig);
}

static void lead(step_rig_t *rig, const run_t *run)
{
    double *us = malloc(run->steps * sizeof(*us));
    assert_non_null(us);
    start_sequence(rig);
    for (uint32_t i = 0; i < WARM_UP + run->steps; i++) {
        plan_row(rig->executor.plan, 0, PROMPT + i, 1, STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT, i + 1);
        const uint64_t start = weft_clock_ns();
        lead_step(rig);
        if (i >= WARM_UP) {
            us[i - WARM_UP] = (double)(weft_clock_ns() - start) / 1000;
        }
    }
    *run->median_us = median(us, run->steps);
    free(us);
    if (rig->feed != NULL) {
        void *message = coll_feed_begin(rig->feed);
        assert_non_null(message);
        assert_status(coll_feed_send(rig->feed, step_wire_encode_stop(message)), WEFT_OK);
    }
}

static void measure(coll_rig_rank_t *self)
{
    const run_t *run = self->user;
    step_rig_t rig;
    open_rig(&rig, self, run->path);
    if (self->rank == 0) {
        lead(&rig, run);
    } else {
        follow(&rig);
    }
    if (rig.coll != NULL) {
        coll_barrier(rig.coll, self->queue);
    }
    close_rig(&rig);
}

static uint32_t number_at(int argc, char **argv, int i, uint32_t otherwise)
{
    return argc > i ? (uint32_t)strtoul(argv[i], NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
    const uint32_t ranks = number_at(argc, argv, 2, 2);
    const uint32_t steps = number_at(argc, argv, 3, 2000);
    const uint32_t rounds = number_at(argc, argv, 4, 7);
    double *us = mmap(NULL, 2 * MAX_ROUNDS * sizeof(*us), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (argc < 2 || ranks < 2 || ranks > COLL_RIG_MAX_RANKS || steps == 0 ||
        steps > CONTEXT - PROMPT - WARM_UP || rounds == 0 || rounds > MAX_ROUNDS ||
        us == MAP_FAILED) {
        (void)fprintf(stderr, "usage: bench_rank_step MODEL [RANKS [STEPS [ROUNDS]]]\n");
        return 2;
    }
    for (uint32_t round = 0; round < rounds; round++) {
        run_t alone = {argv[1], steps, &us[round]};
        run_t together = {argv[1], steps, &us[MAX_ROUNDS + round]};
        coll_rig_run(1, measure, &alone);
        coll_rig_run(ranks, measure, &together);
    }
    const double one = median(us, rounds);
    const double many = median(us + MAX_ROUNDS, rounds);
    printf("{\"model\": \"%s\", \"ranks\": %u, \"steps\": %u, \"rounds\": %u, \"one_us\": %.1f, "
           "\"one_range\": [%.1f, %.1f], \"ranks_us\": %.1f, \"ranks_range\": [%.1f, %.1f], "
           "\"difference_us\": %.1f}\n",
           argv[1], ranks, steps, rounds, one, us[0], us[rounds - 1], many, us[MAX_ROUNDS],
           us[MAX_ROUNDS + rounds - 1], many - one);
    return 0;
}
