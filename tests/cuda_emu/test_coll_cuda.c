/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Collectives of ranks on GPUs: processes that share one GPU, or each with its own emulation of it. The
 * backend nccl is there where NCCL is and lets ranks share a GPU, and in the emulation by a test double.
 * Nothing here may use CUDA before it forks.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/device.h"
#include "base/device_cuda.h"
#include "kernels/cuda/k_cuda.h"
#include "tests/cuda_emu/cuda_check.h"
#include "tests/support/coll_trial.h"
#include "tests/support/test_fork.h"
#include "transport/coll/coll_feed.h"

/* Around what one thread, block, channel and place hold, odd ones between them. */
#ifdef TEST_RACES /* with access hooks, what kernels do with memory alone */
#define IS_FOR_RACES true
#define MAX_RANKS    3
static const size_t sizes[] = {1, 33, 4097, 20011};
#else
#define IS_FOR_RACES false
#define MAX_RANKS    4
static const size_t sizes[] = {1, 3, 8, 9, 33, 1000, 4097, 10007, 65536, 200003};
#endif

/* Until this thread's own kernels have ended, in vain or not. */
static void await_own(const coll_rig_rank_t *self)
{
    assert_status(self->device->ops->sync(self->queue), WEFT_OK);
}

/* ---- every operation at every size ------------------------------------------------------------ */

static void run_sums(coll_rig_rank_t *self)
{
    coll_trial_t trial;
    coll_trial_open(&trial, self, self->user);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sizes); i++) {
        for (int dtype = COLL_F32; dtype <= COLL_BF16; dtype++) {
            const coll_variant_t variant = {
                .dtype = (coll_dtype_t)dtype, .shift = i % 3, .is_in_place = i % 2 == 1};
            coll_trial_all_reduce(&trial, sizes[i], variant);
            if (sizes[i] < 100000) {
                coll_trial_reduce_scatter(&trial, sizes[i], variant);
            }
        }
    }
    coll_trial_close(&trial);
}

static void claim_sums(const char *backend)
{
    for (uint32_t size = 1; size <= MAX_RANKS; size++) {
        coll_rig_run(size, run_sums, (void *)(uintptr_t)backend);
    }
}

static void sums_are_added_in_rank_order_bit_for_bit(void **state)
{
    (void)state;
    coll_rig_each_backend(claim_sums);
}

static void run_copies(coll_rig_rank_t *self)
{
    coll_trial_t trial;
    coll_trial_open(&trial, self, self->user);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sizes); i++) {
        for (int is_in_place = 0; is_in_place < 2; is_in_place++) {
            const coll_variant_t variant = {
                .shift = i % 5, .is_in_place = is_in_place == 1, .root = (uint32_t)i};
            coll_trial_all_gather(&trial, sizes[i], variant);
            coll_trial_broadcast(&trial, sizes[i], variant);
        }
        coll_barrier(trial.coll, self->queue);
    }
    coll_trial_close(&trial);
}

static void claim_copies(const char *backend)
{
    for (uint32_t size = 1; size <= MAX_RANKS; size++) {
        coll_rig_run(size, run_copies, (void *)(uintptr_t)backend);
    }
}

static void gathers_and_broadcasts_bring_every_byte(void **state)
{
    (void)state;
    coll_rig_each_backend(claim_copies);
}

/* ---- a sum and a norm in one go --------------------------------------------------------------------- */

static uint64_t count_different(const coll_trial_t *trial, const void *a, const void *b,
                                size_t bytes)
{
    char *x = trial->host;
    char *y = trial->expected;
    uint64_t n = 0;
    coll_trial_copy(trial, x, a, bytes);
    coll_trial_copy(trial, y, b, bytes);
    coll_trial_await(trial);
    for (size_t i = 0; i < bytes; i++) {
        n += x[i] != y[i];
    }
    return n;
}

/* Against an all_reduce and rms_norm, one behind the other. */
static void try_norm(coll_trial_t *trial, uint32_t rows, uint32_t dim)
{
    const size_t x_stride = dim + 8;
    const size_t n = rows * x_stride;
    float *x = trial->in.addr;
    float *w = x + n;
    char *outs = trial->out.addr;
    float *sum = (float *)(void *)outs;
    char *y = outs + n * sizeof(float);
    char *fused_y = y + n * 2;
    const coll_norm_t norm = {.x = x,
                              .w = w,
                              .y = fused_y,
                              .rows = rows,
                              .dim = dim,
                              .x_stride = x_stride,
                              .y_stride = x_stride,
                              .eps = 1e-5f};
    const k_cuda_launch_t at = {.stream = weft_device_cuda_stream(trial->self->queue),
                                .multiprocessors = 1};
    const k_rms_norm_args_t args = {.x = sum,
                                    .x_dtype = K_F32,
                                    .w = w,
                                    .y = y,
                                    .rows = rows,
                                    .groups = 1,
                                    .dim = dim,
                                    .x_stride = x_stride,
                                    .y_stride = x_stride,
                                    .eps = 1e-5f};
    coll_model_input(trial->round++, trial->self->rank, COLL_F32, trial->host, 0, n + dim);
    coll_trial_copy(trial, x, trial->host, (n + dim) * sizeof(float));
    trial->self->device->ops->fill(trial->self->queue, outs, 0, n * 8);
    coll_all_reduce(trial->coll, trial->self->queue, x, sum, n, COLL_F32);
    assert_int_equal(k_cuda_rms_norm(&at, &args), cudaSuccess);
    assert_true(coll_all_reduce_norm(trial->coll, trial->self->queue, &norm));
    assert_int_equal(count_different(trial, y, fused_y, n * 2), 0);
    for (uint32_t row = 0; row < rows; row++) {
        assert_int_equal(
            count_different(trial, sum + row * x_stride, x + row * x_stride, dim * sizeof(float)),
            0);
    }
}

static void run_norms(coll_rig_rank_t *self)
{
    coll_trial_t trial;
    coll_trial_open(&trial, self, self->user);
    try_norm(&trial, 1, 576);
    try_norm(&trial, 2, 4096);
    try_norm(&trial, 37, 136);
    try_norm(&trial, 1, 8192);
    const coll_norm_t few = {.rows = 1, .dim = 128, .x_stride = 128, .y_stride = 128};
    const coll_norm_t odd = {.rows = 1, .dim = 1022, .x_stride = 1024, .y_stride = 1024};
    const coll_norm_t many = {.rows = 2000, .dim = 4096, .x_stride = 4096, .y_stride = 4096};
    assert_false(coll_all_reduce_norm(trial.coll, self->queue, &few));
    assert_false(coll_all_reduce_norm(trial.coll, self->queue, &odd));
    assert_false(coll_all_reduce_norm(trial.coll, self->queue, &many));
    coll_trial_close(&trial);
}

static void a_sum_with_its_norm_has_the_bits_of_both(void **state)
{
    (void)state;
    coll_rig_run(2, run_norms, (void *)(uintptr_t)"cuda");
    coll_rig_run(3, run_norms, (void *)(uintptr_t)"cuda");
}

/* ---- pairs ------------------------------------------------------------------------------------- */

static const size_t message_sizes[] = {0, 1, 63, 4096, 100001, IS_FOR_RACES ? 2 : 1 << 20};

static void run_pairs(coll_rig_rank_t *self)
{
    coll_trial_t trial;
    coll_trial_open(&trial, self, self->user);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(message_sizes); i++) {
        coll_trial_pairs(&trial, message_sizes[i]);
    }
    coll_trial_close(&trial);
}

static void sends_go_ahead_and_arrive_in_order(void **state)
{
    (void)state;
    coll_rig_run(2, run_pairs, (void *)(uintptr_t)"cuda");
    coll_rig_run(3, run_pairs, (void *)(uintptr_t)"cuda");
}

/* A ring that is open at its end: who receives first need not send ahead. */
static void run_turns(coll_rig_rank_t *self)
{
    coll_trial_t trial;
    coll_trial_open(&trial, self, self->user);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(message_sizes); i++) {
        const size_t bytes = message_sizes[i];
        coll_model_bytes(i, 0, trial.expected, bytes);
        char *data = coll_trial_output(&trial, bytes, i % 4);
        if (self->rank == 0) {
            coll_trial_copy(&trial, data, trial.expected, bytes);
        } else {
            coll_receive(trial.coll, self->queue, self->rank - 1, data, bytes);
        }
        if (self->rank + 1 < self->size) {
            coll_send(trial.coll, self->queue, self->rank + 1, data, bytes);
        }
        coll_trial_check(&trial, data, bytes);
    }
    coll_trial_close(&trial);
}

static void what_is_received_can_be_sent_on(void **state)
{
    (void)state;
    coll_rig_run_each(3, 0, run_turns);
}

/* ---- more than any place ------------------------------------------------------------------------ */

#define HUGE_BYTES  (((size_t)18 << 20) + 3)
#define HUGE_FLOATS (HUGE_BYTES / sizeof(float))

static void run_huge(coll_rig_rank_t *self)
{
    const weft_device_ops_t *ops = self->device->ops;
    coll_t *coll = coll_rig_create(self, self->user);
    char *host = test_malloc(HUGE_BYTES);
    weft_mem_t mem;
    assert_status(ops->alloc(self->device, HUGE_BYTES, 0, &mem), WEFT_OK);
    coll_model_input(1, self->rank, COLL_F32, host, 0, HUGE_FLOATS);
    ops->copy(self->queue, mem.addr, host, HUGE_BYTES);
    coll_all_reduce(coll, self->queue, mem.addr, mem.addr, HUGE_FLOATS, COLL_F32);
    if (self->rank == 0) {
        coll_send(coll, self->queue, 1, mem.addr, HUGE_BYTES);
    } else if (self->rank == 1) {
        ops->fill(self->queue, mem.addr, 0, HUGE_BYTES);
        coll_receive(coll, self->queue, 0, mem.addr, HUGE_BYTES);
    }
    ops->copy(self->queue, host, mem.addr, HUGE_BYTES);
    assert_status(ops->sync(self->queue), WEFT_OK);
    assert_status(coll_status(coll, NULL), WEFT_OK);
    for (size_t i = 0; i < HUGE_FLOATS; i++) {
        float expected;
        float found;
        coll_model_sum(1, self->size, COLL_F32, &expected, i, 1);
        memcpy(&found, host + i * sizeof(found), sizeof(found));
        assert_true(found == expected);
    }
    coll_destroy(coll);
    ops->free(self->device, &mem);
    test_free(host);
}

static void what_fits_no_place_goes_in_pieces(void **state)
{
    (void)state;
    coll_rig_run_each(2, 0, run_huge);
    coll_rig_run_each(3, 0, run_huge);
}

/* ---- graphs ------------------------------------------------------------------------------------- */

#define GRAPH_N 3000

static void run_graph(coll_rig_rank_t *self)
{
    const cudaStream_t stream = weft_device_cuda_stream(self->queue);
    cudaGraph_t graph = NULL;
    cudaGraphExec_t replay = NULL;
    coll_trial_t trial;
    coll_trial_open(&trial, self, self->user);
    float *in = trial.in.addr;
    float *sum = trial.out.addr;
    float *all = sum + GRAPH_N;
    /* A first time without: what is set up then may not be in a graph. */
    coll_all_reduce(trial.coll, self->queue, in, sum, GRAPH_N, COLL_F32);
    await_own(self);
    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    coll_all_reduce(trial.coll, self->queue, in, sum, GRAPH_N, COLL_F32);
    coll_all_gather(trial.coll, self->queue, sum, all, 16);
    assert_cuda(cudaStreamEndCapture(stream, &graph));
    assert_cuda(cudaGraphInstantiate(&replay, graph, 0));
    for (uint64_t round = 0; round < 4; round++) {
        coll_model_input(round, self->rank, COLL_F32, trial.host, 0, GRAPH_N);
        coll_trial_copy(&trial, in, trial.host, GRAPH_N * sizeof(float));
        assert_cuda(cudaGraphLaunch(replay, stream));
        if (round == 2) { /* others come between */
            coll_trial_all_reduce(&trial, 100, (coll_variant_t){.dtype = COLL_BF16});
            continue;
        }
        coll_trial_copy(&trial, trial.host, sum, (GRAPH_N + 4 * self->size) * sizeof(float));
        await_own(self);
        coll_model_sum(round, self->size, COLL_F32, trial.expected, 0, GRAPH_N);
        assert_memory_equal(trial.host, trial.expected, GRAPH_N * sizeof(float));
        for (uint32_t rank = 0; rank < self->size; rank++) {
            assert_memory_equal(trial.host + GRAPH_N * sizeof(float) + rank * 16, trial.expected,
                                16);
        }
    }
    assert_cuda(cudaGraphExecDestroy(replay));
    assert_cuda(cudaGraphDestroy(graph));
    coll_trial_close(&trial);
}

static void a_graph_of_operations_is_replayed(void **state)
{
    (void)state;
    coll_rig_run_each(2, 0, run_graph);
    coll_rig_run_each(3, 0, run_graph);
}

/* ---- parts and feeds ----------------------------------------------------------------------------- */

static void run_parts(coll_rig_rank_t *self)
{
    coll_trial_t trial;
    coll_t *part = NULL;
    coll_feed_t *feed = NULL;
    const void *message = NULL;
    size_t bytes = 0;
    weft_diag_t diag = {.text = ""};
    coll_trial_open(&trial, self, self->user);
    assert_status(coll_split(trial.coll, self->rank % 2, &diag, &part), WEFT_OK);
    assert_string_equal(coll_backend_name(part), self->user);
    assert_int_equal(coll_size(part), self->rank % 2 == 0 ? 2 : 1);
    const float mine = (float)(self->rank + 1);
    float sum = 0;
    coll_trial_copy(&trial, trial.in.addr, &mine, sizeof(mine));
    coll_all_reduce(part, self->queue, trial.in.addr, trial.out.addr, 1, COLL_F32);
    coll_trial_copy(&trial, &sum, trial.out.addr, sizeof(sum));
    assert_status(self->device->ops->sync(self->queue), WEFT_OK);
    assert_true(sum == (self->rank % 2 == 0 ? 4.0f : 2.0f));

    assert_status(coll_feed_create(trial.coll, 64, 2, &diag, &feed), WEFT_OK);
    for (uint32_t i = 0; i < 5; i++) {
        if (self->rank == 0) {
            uint32_t *room = coll_feed_begin(feed);
            assert_non_null(room);
            *room = i;
            assert_status(coll_feed_send(feed, sizeof(*room)), WEFT_OK);
        } else {
            assert_status(coll_feed_receive(feed, -1, &message, &bytes), WEFT_OK);
            assert_int_equal(bytes, sizeof(uint32_t));
            assert_int_equal(*(const uint32_t *)message, i);
        }
    }
    coll_feed_destroy(feed);
    coll_destroy(part);
    coll_trial_close(&trial);
}

static void parts_and_feeds_are_those_of_any_group(void **state)
{
    (void)state;
    coll_rig_run_each(3, 0, run_parts);
}

/* ---- failure ------------------------------------------------------------------------------------ */

#define LOST 2

/* What ranks share. */
typedef struct board {
    _Atomic uint32_t n_failed; /* ranks that have seen what they should */
} board_t;

static bool is_named(const coll_t *coll)
{
    return strcmp(coll_backend_name(coll), "cuda") == 0; /* NCCL does not say whose fault it is */
}

static void expect_failure(coll_rig_rank_t *self, coll_t *coll, weft_status_t expected)
{
    board_t *board = self->shared;
    uint32_t rank = 0;
    assert_status(coll_status(coll, &rank), expected);
    assert_true(rank == LOST || (!is_named(coll) && rank == COLL_NO_RANK));
    atomic_fetch_add(&board->n_failed, 1);
    coll_rig_await(&board->n_failed, 2);
}

static void run_stop(coll_rig_rank_t *self)
{
    coll_config_t config = coll_rig_config(self, self->user);
    weft_diag_t diag = {.text = ""};
    coll_t *coll = NULL;
    weft_mem_t mem;
    uint32_t found = 0;
    const weft_device_ops_t *ops = self->device->ops;
    config.timeout_ns = (emu_is_emulated() ? 2 : 6) * WEFT_NS_PER_SECOND; /* NCCL connects first */
    assert_status(coll_create(&config, &diag, &coll), WEFT_OK);
    assert_status(ops->alloc(self->device, 4096, 0, &mem), WEFT_OK);
    coll_all_reduce(coll, self->queue, mem.addr, mem.addr, 1000, COLL_F32);
    await_own(self);
    assert_status(coll_status(coll, NULL), WEFT_OK);
    if (self->rank == LOST) {
        (void)raise(SIGSTOP);
        _exit(1); /* it is killed as it stands */
    }
    coll_all_reduce(coll, self->queue, mem.addr, mem.addr, 1000, COLL_F32);
    await_own(self);
    ops->fill(self->queue, mem.addr, 0x11, 4096);
    expect_failure(self, coll, WEFT_ERR_TIMEOUT);
    coll_all_reduce(coll, self->queue, mem.addr, mem.addr, 1000, COLL_F32); /* nothing happens */
    ops->copy(self->queue, &found, mem.addr, sizeof(found));
    await_own(self);
    assert_int_equal(found, 0x11111111);
    if (self->rank == 0) {
        (void)kill(self->pids[LOST], SIGKILL);
    }
    coll_destroy(coll);
    ops->free(self->device, &mem);
}

static void a_stopped_rank_is_a_timeout(void **state)
{
    (void)state;
    coll_rig_run_each(3, UINT32_C(1) << LOST, run_stop);
}

static void *abort_group(void *user)
{
    coll_abort(user, LOST);
    return NULL;
}

/* One rank is told of the loss, while both wait; the other one's kernel hears it from it. */
static void run_abort(coll_rig_rank_t *self)
{
    board_t *board = self->shared;
    coll_t *coll = coll_rig_create(self, "cuda");
    pthread_t thread;
    if (self->rank == LOST) { /* does not come */
        coll_rig_await(&board->n_failed, 2);
        coll_destroy(coll);
        return;
    }
    coll_barrier(coll, self->queue);
    if (self->rank == 0) {
        assert_int_equal(pthread_create(&thread, NULL, abort_group, coll), 0);
        await_own(self);
        assert_int_equal(pthread_join(thread, NULL), 0);
    } else {
        await_own(self);
    }
    expect_failure(self, coll, WEFT_ERR_PEER_GONE);
    coll_destroy(coll);
}

static void an_abort_on_one_rank_ends_the_waits_of_all(void **state)
{
    (void)state;
    coll_rig_run(3, run_abort, NULL);
}

/* NCCL's waits are of one rank: each is told. */
static void run_abort_of_each(coll_rig_rank_t *self)
{
    board_t *board = self->shared;
    coll_t *coll = coll_rig_create(self, self->user);
    if (self->rank == LOST) {
        coll_rig_await(&board->n_failed, 2);
        coll_destroy(coll);
        return;
    }
    pthread_t thread;
    coll_barrier(coll, self->queue);
    assert_int_equal(pthread_create(&thread, NULL, abort_group, coll), 0);
    await_own(self);
    assert_int_equal(pthread_join(thread, NULL), 0);
    expect_failure(self, coll, WEFT_ERR_PEER_GONE);
    coll_destroy(coll);
}

static void an_abort_ends_a_wait(void **state)
{
    (void)state;
    coll_rig_run_each(3, 0, run_abort_of_each);
}

/* ---- what there is not --------------------------------------------------------------------------- */

static void run_refusals(coll_rig_rank_t *self)
{
    coll_config_t config = coll_rig_config(self, "shm");
    weft_diag_t diag = {.text = ""};
    coll_t *coll = NULL;
    assert_status(coll_create(&config, &diag, &coll), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "device cuda is not host memory"));
}

static void run_auto(coll_rig_rank_t *self)
{
    coll_t *coll = coll_rig_create(self, "auto");
    assert_string_equal(coll_backend_name(coll), "cuda");
    coll_destroy(coll);
}

static void auto_maps_memory_where_it_can(void **state)
{
    (void)state;
    coll_rig_run(2, run_auto, NULL);
}

static void backends_of_the_host_refuse_the_device(void **state)
{
    (void)state;
    coll_rig_run(2, run_refusals, NULL);
}

/* ---- NCCL's answers, from the double alone ------------------------------------------------------------ */

typedef struct answer {
    const char *asked; /* of the double, in FAKE_NCCL */
    weft_status_t status;
    const char *text;
} answer_t;

static void run_answer(coll_rig_rank_t *self)
{
    const answer_t *answer = self->user;
    coll_config_t config = coll_rig_config(self, "nccl");
    weft_diag_t diag = {.text = ""};
    coll_t *coll = NULL;
    setenv("FAKE_NCCL", answer->asked, 1);
    assert_status(coll_create(&config, &diag, &coll), answer->status);
    if (strstr(diag.text, answer->text) == NULL) {
        fail_msg("\"%s\" has no \"%s\"", diag.text, answer->text);
    }
}

static void what_nccl_refuses_is_told(void **state)
{
    static const answer_t answers[] = {
        {"old", WEFT_ERR_UNSUPPORTED, "NCCL 2.12.10; 2.14.3 is the oldest"},
        {"refuse", WEFT_ERR_DEVICE, "ncclCommInitRankConfig"},
    };
    (void)state;
    for (size_t i = 0; emu_is_emulated() && i < WEFT_ARRAY_LEN(answers); i++) {
        coll_rig_run(2, run_answer, (void *)(uintptr_t)&answers[i]);
    }
}

static void run_sharing(coll_rig_rank_t *self)
{
    coll_config_t config = coll_rig_config(self, "nccl");
    weft_diag_t diag = {.text = ""};
    coll_t *coll = NULL;
    unsetenv("NCCL_MULTI_RANK_GPU_ENABLE");
    assert_status(coll_create(&config, &diag, &coll), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "NCCL_MULTI_RANK_GPU_ENABLE=1"));
}

static void ranks_that_share_a_gpu_are_told_what_it_takes(void **state)
{
    (void)state;
    if (emu_is_emulated()) {
        coll_rig_run(2, run_sharing, NULL);
    }
}

static void run_remote_error(coll_rig_rank_t *self)
{
    setenv("FAKE_NCCL", "remote", 1);
    coll_t *coll = coll_rig_create(self, "nccl");
    const uint64_t deadline = weft_clock_ns() + COLL_RIG_TIMEOUT_NS;
    coll_barrier(coll, self->queue);
    await_own(self);
    while (coll_status(coll, NULL) == WEFT_OK) {
        assert_true(weft_clock_ns() < deadline);
        sched_yield();
    }
    assert_status(coll_status(coll, NULL), WEFT_ERR_PEER_GONE);
    coll_destroy(coll);
}

static void an_error_in_the_background_fails_the_group(void **state)
{
    (void)state;
    if (emu_is_emulated()) {
        coll_rig_run(2, run_remote_error, NULL);
    }
}

/* The double adds backwards: ours would show another sum. */
static void run_other_order(coll_rig_rank_t *self)
{
    const weft_device_ops_t *ops = self->device->ops;
    coll_config_t config = coll_rig_config(self, "nccl");
    weft_diag_t diag = {.text = ""};
    coll_t *coll = NULL;
    weft_mem_t mem;
    const float mine = self->rank == 0 ? 1e8f : self->rank == 1 ? -1e8f : 1.0f;
    float sum = 0;
    config.is_deterministic = false;
    assert_status(coll_create(&config, &diag, &coll), WEFT_OK);
    assert_status(ops->alloc(self->device, sizeof(sum), 0, &mem), WEFT_OK);
    ops->copy(self->queue, mem.addr, &mine, sizeof(mine));
    coll_all_reduce(coll, self->queue, mem.addr, mem.addr, 1, COLL_F32);
    ops->copy(self->queue, &sum, mem.addr, sizeof(sum));
    await_own(self);
    assert_status(coll_status(coll, NULL), WEFT_OK);
    assert_true(sum == 0); /* (1 - 1e8) + 1e8 */
    coll_destroy(coll);
    ops->free(self->device, &mem);
}

static void without_the_promise_nccl_adds(void **state)
{
    (void)state;
    if (emu_is_emulated()) {
        coll_rig_run(3, run_other_order, NULL);
    }
}

/* In a process of its own: a context does not survive a fork. */
static void skip_without_device(void)
{
    int status = 0;
    const pid_t child = test_fork();
    if (child == 0) {
        cuda_skip_without_device();
        exit(0);
    }
    (void)waitpid(child, &status, 0);
    if (status != 0) {
        exit(77);
    }
}

int main(void)
{
    skip_without_device();
    coll_rig_use_device("cuda");
    setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 0);
    if (emu_is_emulated()) {
        setenv("WEFT_NCCL_LIBRARY", FAKE_NCCL_LIBRARY, 1);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_added_in_rank_order_bit_for_bit),
        cmocka_unit_test(gathers_and_broadcasts_bring_every_byte),
        cmocka_unit_test(sends_go_ahead_and_arrive_in_order),
        cmocka_unit_test(what_is_received_can_be_sent_on),
        cmocka_unit_test(a_graph_of_operations_is_replayed),
        cmocka_unit_test(a_sum_with_its_norm_has_the_bits_of_both),
        cmocka_unit_test(what_fits_no_place_goes_in_pieces),
        cmocka_unit_test(parts_and_feeds_are_those_of_any_group),
        cmocka_unit_test(a_stopped_rank_is_a_timeout),
        cmocka_unit_test(an_abort_ends_a_wait),
        cmocka_unit_test(an_abort_on_one_rank_ends_the_waits_of_all),
        cmocka_unit_test(what_nccl_refuses_is_told),
        cmocka_unit_test(ranks_that_share_a_gpu_are_told_what_it_takes),
        cmocka_unit_test(an_error_in_the_background_fails_the_group),
        cmocka_unit_test(without_the_promise_nccl_adds),
        cmocka_unit_test(auto_maps_memory_where_it_can),
        cmocka_unit_test(backends_of_the_host_refuse_the_device),
    };
    const struct CMUnitTest racy[] = {tests[0], tests[1], tests[2], tests[3], tests[4], tests[5]};
    return IS_FOR_RACES ? cmocka_run_group_tests(racy, NULL, NULL)
                        : cmocka_run_group_tests(tests, NULL, NULL);
}
