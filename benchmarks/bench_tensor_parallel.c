/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_tensor_parallel: what cutting a model over ranks costs. Decodes one sequence with N threads of
 * one process, then with N ranks of one thread each, by turns, and prints one JSON line.
 *
 *   bench_tensor_parallel MODEL [RANKS [TOKENS [ROUNDS]]]
 *
 * A round loads the model anew; its first tokens are not counted.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "tests/support/coll_rig.h"
#include "tests/support/executor_rig.h"

enum { PROMPT = 16, WARM_UP = 8, CONTEXT = 1024, BLOCK_TOKENS = 16, MAX_ROUNDS = 64 };

typedef struct run {
    const char *path;
    uint32_t threads; /* of each rank */
    uint32_t tokens;
    double *tokens_per_second; /* shared with the ranks; rank 0 writes */
} run_t;

static void start_sequence(executor_rig_t *rig)
{
    int32_t prompt[PROMPT];
    for (uint32_t i = 0; i < PROMPT; i++) {
        prompt[i] = (int32_t)(100 + i);
    }
    plan_bind(rig->plan, 0, prompt, PROMPT, &greedy_sampling);
    for (uint32_t i = 0; i < CONTEXT / BLOCK_TOKENS; i++) {
        plan_block(rig->plan, 0, i, i);
    }
    plan_row(rig->plan, 0, 0, PROMPT, STEP_ROW_SAMPLE, 0);
    (void)executor_rig_step(rig);
}

static void decode(executor_rig_t *rig, uint32_t first, uint32_t n)
{
    for (uint32_t i = first; i < first + n; i++) {
        plan_row(rig->plan, 0, PROMPT + i, 1, STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT, i + 1);
        (void)executor_rig_step(rig);
    }
}

static void measure(coll_rig_rank_t *self)
{
    static const step_limits_t limits = {.max_slots = 1,
                                         .max_tokens = 64,
                                         .max_context = CONTEXT,
                                         .max_blocks = CONTEXT / BLOCK_TOKENS,
                                         .max_bind_tokens = CONTEXT,
                                         .max_biases = 1,
                                         .max_outputs = 1};
    const run_t *run = self->user;
    executor_rig_t rig;
    coll_t *coll = self->size > 1 ? coll_rig_create(self, "shm") : NULL;
    const model_shard_t shard = {
        .tensor_rank = self->rank, .tensor_size = self->size, .tensor = coll};
    executor_rig_open(&rig,
                      (model_rig_config_t){.path = run->path,
                                           .isa = "auto",
                                           .threads = run->threads,
                                           .kv_dtype = K_F16,
                                           .block_tokens = BLOCK_TOKENS,
                                           .n_blocks = CONTEXT / BLOCK_TOKENS,
                                           .shard = &shard},
                      &limits);
    start_sequence(&rig);
    decode(&rig, 0, WARM_UP);
    const uint64_t start = weft_clock_ns();
    decode(&rig, WARM_UP, run->tokens);
    const uint64_t end = weft_clock_ns();
    if (self->rank == 0) {
        *run->tokens_per_second = run->tokens * 1e9 / (double)(end - start);
    }
    executor_rig_close(&rig);
    coll_destroy(coll);
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

static uint32_t number_at(int argc, char **argv, int i, uint32_t otherwise)
{
    return argc > i ? (uint32_t)strtoul(argv[i], NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
    const uint32_t ranks = number_at(argc, argv, 2, 2);
    const uint32_t tokens = number_at(argc, argv, 3, 64);
    const uint32_t rounds = number_at(argc, argv, 4, 5);
    double *speed = mmap(NULL, 2 * MAX_ROUNDS * sizeof(*speed), PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (argc < 2 || ranks == 0 || ranks > COLL_RIG_MAX_RANKS || tokens == 0 ||
        tokens > CONTEXT - PROMPT - WARM_UP || rounds == 0 || rounds > MAX_ROUNDS ||
        speed == MAP_FAILED) {
        (void)fprintf(stderr, "usage: bench_tensor_parallel MODEL [RANKS [TOKENS [ROUNDS]]]\n");
        return 2;
    }
    for (uint32_t round = 0; round < rounds; round++) {
        run_t threads = {argv[1], ranks, tokens, &speed[round]};
        run_t processes = {argv[1], 1, tokens, &speed[MAX_ROUNDS + round]};
        coll_rig_run(1, measure, &threads);
        coll_rig_run(ranks, measure, &processes);
    }
    const double by_threads = median(speed, rounds);
    const double by_ranks = median(speed + MAX_ROUNDS, rounds);
    printf(
        "{\"model\": \"%s\", \"ranks\": %u, \"rounds\": %u, \"threads_tokens_per_second\": %.2f, "
        "\"threads_range\": [%.2f, %.2f], \"ranks_tokens_per_second\": %.2f, "
        "\"ranks_range\": [%.2f, %.2f], \"ratio\": %.3f}\n",
        argv[1], ranks, rounds, by_threads, speed[0], speed[rounds - 1], by_ranks,
        speed[MAX_ROUNDS], speed[MAX_ROUNDS + rounds - 1], by_ranks / by_threads);
    return 0;
}
