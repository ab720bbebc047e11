/* SPDX-License-Identifier: Apache-2.0 */
/* A rank that dies, stops or is given up: an error with its number, never a hang, on every backend. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/support/coll_rig.h"
#include "tests/support/random.h"
#include "tests/support/test_fork.h"

#define LOST       2 /* the rank that something happens to */
#define N_RANKS    4
#define N_ELEMENTS 50000

/* What ranks and the test share. */
typedef struct board {
    _Atomic uint32_t n_rounds; /* that rank 0 has done */
    _Atomic uint32_t n_failed; /* ranks that have seen what they should */
    _Atomic uint32_t is_ready;
} board_t;

static float in[N_ELEMENTS];
static float out[N_ELEMENTS];

/* Operations of all sizes until the group fails. */
static void work_until_failure(coll_rig_rank_t *self, coll_t *coll)
{
    board_t *board = self->shared;
    for (uint32_t i = 0; coll_status(coll, NULL) == WEFT_OK; i++) {
        switch (i % 4) {
        case 0:
            coll_all_reduce(coll, self->queue, in, out, N_ELEMENTS, COLL_F32);
            break;
        case 1:
            coll_broadcast(coll, self->queue, out, 10000, i % N_RANKS);
            break;
        case 2:
            coll_all_gather(coll, self->queue, in, out, sizeof(out) / N_RANKS);
            break;
        default:
            coll_all_reduce(coll, self->queue, in, out, 4, COLL_F32);
            break;
        }
        if (self->rank == 0) {
            atomic_fetch_add(&board->n_rounds, 1);
        }
    }
}

/* Returns when all n survivors have seen it: who ended before would look like a death. */
static void expect_failure(coll_rig_rank_t *self, coll_t *coll, weft_status_t expected, uint32_t n)
{
    board_t *board = self->shared;
    uint32_t rank = COLL_NO_RANK;
    assert_status(coll_status(coll, &rank), expected);
    assert_int_equal(rank, LOST);
    atomic_fetch_add(&board->n_failed, 1);
    coll_rig_await(&board->n_failed, n);
}

/* ---- death ------------------------------------------------------------------------------------- */

typedef struct death {
    uint64_t seed;
    const char *backend;
} death_t;

/* A process beside the ranks, so that the lost one is hit wherever it is. */
static void start_killer(const coll_rig_rank_t *self, uint32_t n_rounds)
{
    const board_t *board = self->shared;
    const pid_t lost = self->pids[LOST];
    if (test_fork() == 0) {
        coll_rig_await(&board->n_rounds, n_rounds);
        (void)kill(lost, SIGKILL);
        _exit(0);
    }
}

static void run_death(coll_rig_rank_t *self)
{
    const death_t *death = self->user;
    test_random_t random = {.state = death->seed};
    coll_t *coll = coll_rig_create(self, death->backend);
    if (self->rank == 1) {
        start_killer(self, 1 + test_random_below(&random, 60));
    }
    work_until_failure(self, coll);
    expect_failure(self, coll, WEFT_ERR_PEER_GONE, N_RANKS - 1);
    coll_destroy(coll);
}

static void claim_death(const char *backend)
{
    death_t death = {.seed = test_seed(71), .backend = backend};
    for (uint32_t round = 0; round < test_rounds(200); round++, death.seed++) {
        coll_rig_run_with_deaths(N_RANKS, UINT32_C(1) << LOST, run_death, &death);
    }
}

static void a_killed_rank_is_named_by_all_others(void **state)
{
    (void)state;
    coll_rig_each_backend(claim_death);
}

/* ---- a receiver's and a sender's peer ---------------------------------------------------------- */

static void run_pair_death(coll_rig_rank_t *self)
{
    static char big[100000];
    coll_t *coll = coll_rig_create(self, self->user);
    if (self->rank == LOST) {
        coll_receive(coll, self->queue, 0, big, sizeof(big));
        (void)raise(SIGKILL);
    }
    if (self->rank == 0) {
        while (coll_status(coll, NULL) == WEFT_OK) {
            coll_send(coll, self->queue, LOST, big, sizeof(big));
        }
    } else {
        coll_receive(coll, self->queue, LOST, big, sizeof(big));
    }
    expect_failure(self, coll, WEFT_ERR_PEER_GONE, 2);
    coll_destroy(coll);
}

static void senders_and_receivers_see_the_death_of_their_peer(void **state)
{
    (void)state;
    coll_rig_run_each(3, UINT32_C(1) << LOST, run_pair_death);
}

/* ---- a rank that stops ------------------------------------------------------------------------- */

static void run_stop(coll_rig_rank_t *self)
{
    coll_config_t config = coll_rig_config(self, self->user);
    weft_diag_t diag = {.text = ""};
    coll_t *coll = NULL;
    config.timeout_ns = 2 * WEFT_NS_PER_SECOND; /* longer than those who run may be kept from it */
    assert_status(coll_create(&config, &diag, &coll), WEFT_OK);
    coll_all_reduce(coll, self->queue, in, out, N_ELEMENTS, COLL_F32);
    if (self->rank == LOST) {
        (void)raise(SIGSTOP);
        _exit(1); /* it is killed as it stands */
    }
    memset(out, 0x11, sizeof(out));
    coll_all_reduce(coll, self->queue, in, out, N_ELEMENTS, COLL_F32);
    expect_failure(self, coll, WEFT_ERR_TIMEOUT, N_RANKS - 1);
    coll_all_reduce(coll, self->queue, in, out, 1, COLL_F32); /* nothing happens any more */
    assert_int_equal(*(const unsigned char *)out, 0x11);
    if (self->rank == 0) {
        (void)kill(self->pids[LOST], SIGKILL);
    }
    coll_destroy(coll);
}

static void a_stopped_rank_is_a_timeout_with_its_number(void **state)
{
    (void)state;
    coll_rig_run_each(N_RANKS, UINT32_C(1) << LOST, run_stop);
}

/* ---- abort ------------------------------------------------------------------------------------- */

static void *abort_group(void *user)
{
    coll_abort(user, LOST);
    return NULL;
}

static void run_abort(coll_rig_rank_t *self)
{
    board_t *board = self->shared;
    coll_t *coll = coll_rig_create(self, self->user);
    if (self->rank == LOST) { /* does not come */
        coll_rig_await(&board->n_failed, N_RANKS - 1);
        coll_destroy(coll);
        return;
    }
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, abort_group, coll), 0);
    coll_barrier(coll, self->queue);
    expect_failure(self, coll, WEFT_ERR_PEER_GONE, N_RANKS - 1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    coll_destroy(coll);
}

static void an_abort_from_another_thread_ends_a_wait(void **state)
{
    (void)state;
    coll_rig_run_each(N_RANKS, 0, run_abort);
}

/* ---- leaving in peace -------------------------------------------------------------------------- */

static void run_leave(coll_rig_rank_t *self)
{
    for (int i = 0; i < 20; i++) {
        coll_t *coll = coll_rig_create(self, self->user);
        coll_all_reduce(coll, self->queue, in, out, N_ELEMENTS, COLL_F32);
        coll_barrier(coll, self->queue);
        assert_status(coll_status(coll, NULL), WEFT_OK);
        coll_destroy(coll);
    }
}

static void who_leaves_after_the_last_operation_harms_nobody(void **state)
{
    (void)state;
    coll_rig_run_each(3, 0, run_leave);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_rank_is_named_by_all_others),
        cmocka_unit_test(senders_and_receivers_see_the_death_of_their_peer),
        cmocka_unit_test(a_stopped_rank_is_a_timeout_with_its_number),
        cmocka_unit_test(an_abort_from_another_thread_ends_a_wait),
        cmocka_unit_test(who_leaves_after_the_last_operation_harms_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
