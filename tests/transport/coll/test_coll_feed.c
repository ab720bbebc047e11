/* SPDX-License-Identifier: Apache-2.0 */
/* Feeds of every backend: order, how far the writer runs ahead, sleepers, deaths. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/support/coll_rig.h"
#include "transport/coll/coll_feed.h"

#define N_RANKS    3
#define N_MESSAGES 5000
#define DEPTH      4
#define MAX_BYTES  3000

/* What ranks share. */
typedef struct board {
    _Atomic uint32_t n_sent;
    _Atomic uint32_t n_ready;
    _Atomic uint32_t n_done;
    _Atomic uint32_t may_go;
} board_t;

static coll_feed_t *create_feed(coll_t *coll)
{
    coll_feed_t *feed = NULL;
    weft_diag_t diag = {.text = ""};
    const weft_status_t status = coll_feed_create(coll, MAX_BYTES, DEPTH, &diag, &feed);
    if (status < 0) {
        print_error("%s\n", diag.text);
    }
    assert_status(status, WEFT_OK);
    return feed;
}

static size_t bytes_of(uint32_t i)
{
    return i * 37 % (MAX_BYTES + 1);
}

static void send_message(coll_feed_t *feed, uint32_t i)
{
    char *message = coll_feed_begin(feed);
    assert_non_null(message);
    assert_int_equal((uintptr_t)message % 64, 0);
    memset(message, (int)(i & 0x7f), bytes_of(i));
    assert_status(coll_feed_send(feed, bytes_of(i)), WEFT_OK);
}

static void check_message(const char *message, size_t bytes, uint32_t i)
{
    assert_int_equal(bytes, bytes_of(i));
    for (size_t k = 0; k < bytes; k++) {
        assert_int_equal(message[k], i & 0x7f);
    }
}

static void receive_message(coll_feed_t *feed, uint32_t i)
{
    const void *message;
    size_t bytes;
    assert_status(coll_feed_receive(feed, -1, &message, &bytes), WEFT_OK);
    check_message(message, bytes, i);
}

static void finish(coll_rig_rank_t *self, coll_t *coll, coll_feed_t *feed)
{
    coll_barrier(coll, self->queue);
    coll_feed_destroy(feed);
    coll_destroy(coll);
}

/* ---- order ------------------------------------------------------------------------------------- */

/* Two feeds of one group, and its operations meanwhile. */
static void run_order(coll_rig_rank_t *self)
{
    coll_t *coll = coll_rig_create(self, self->user);
    coll_feed_t *feeds[2] = {create_feed(coll), create_feed(coll)};
    for (uint32_t i = 0; i < N_MESSAGES; i++) {
        if (self->rank == 0) {
            send_message(feeds[i % 2], i);
        } else {
            receive_message(feeds[i % 2], i);
        }
        if (i % 64 == 0) {
            const float one = 1;
            float sum = 0;
            coll_all_reduce(coll, self->queue, &one, &sum, 1, COLL_F32);
            assert_true(sum == (float)N_RANKS);
        }
    }
    coll_feed_destroy(feeds[1]);
    finish(self, coll, feeds[0]);
}

static void every_reader_gets_every_message_in_order(void **state)
{
    (void)state;
    coll_rig_run_each(N_RANKS, 0, run_order);
}

/* ---- depth ------------------------------------------------------------------------------------- */

/* The reader of one message holds it unchanged while the writer runs as far ahead as it may. */
static void run_depth(coll_rig_rank_t *self)
{
    board_t *board = self->shared;
    coll_t *coll = coll_rig_create(self, self->user);
    coll_feed_t *feed = create_feed(coll);
    if (self->rank == 0) {
        for (uint32_t i = 0; i < DEPTH; i++) {
            send_message(feed, i);
        }
        atomic_store(&board->may_go, 1);
        for (uint32_t i = DEPTH; i < 3 * DEPTH; i++) {
            send_message(feed, i);
            atomic_store(&board->n_sent, i + 1);
        }
    } else {
        const void *message;
        size_t bytes;
        coll_rig_await(&board->may_go, 1); /* DEPTH messages were sent with nobody reading */
        assert_status(coll_feed_receive(feed, -1, &message, &bytes), WEFT_OK);
        atomic_fetch_add(&board->n_ready, 1);
        coll_rig_await(&board->n_ready, N_RANKS - 1);
        coll_rig_await(&board->n_sent, DEPTH + 1);
        assert_true(atomic_load(&board->n_sent) <= DEPTH + 1); /* one received: one more sent */
        check_message(message, bytes, 0);
        atomic_fetch_add(&board->n_done, 1);
        coll_rig_await(&board->n_done, N_RANKS - 1);
        for (uint32_t i = 1; i < 3 * DEPTH; i++) {
            receive_message(feed, i);
        }
    }
    finish(self, coll, feed);
}

static void the_writer_runs_ahead_by_depth_and_no_further(void **state)
{
    (void)state;
    coll_rig_run_each(N_RANKS, 0, run_depth);
}

/* ---- waiting ----------------------------------------------------------------------------------- */

static void run_sleep(coll_rig_rank_t *self)
{
    board_t *board = self->shared;
    const void *message;
    size_t bytes;
    coll_t *coll = coll_rig_create(self, self->user);
    coll_feed_t *feed = create_feed(coll);
    if (self->rank == 0) {
        coll_rig_await(&board->n_ready, N_RANKS - 1);
        send_message(feed, 1);
    } else {
        assert_status(coll_feed_receive(feed, 0, &message, &bytes), WEFT_ERR_TIMEOUT);
        /* Long enough to be asleep by then. */
        assert_status(coll_feed_receive(feed, 50, &message, &bytes), WEFT_ERR_TIMEOUT);
        atomic_fetch_add(&board->n_ready, 1);
        receive_message(feed, 1);
        assert_status(coll_status(coll, NULL), WEFT_OK);
    }
    finish(self, coll, feed);
}

static void a_reader_may_give_up_and_wait_again(void **state)
{
    (void)state;
    coll_rig_run_each(N_RANKS, 0, run_sleep);
}

/* ---- failure ----------------------------------------------------------------------------------- */

static void run_dead_writer(coll_rig_rank_t *self)
{
    const void *message;
    size_t bytes;
    uint32_t rank = COLL_NO_RANK;
    coll_t *coll = coll_rig_create(self, self->user);
    coll_feed_t *feed = create_feed(coll);
    if (self->rank == 0) {
        send_message(feed, 0);
        coll_barrier(coll, self->queue);
        (void)raise(SIGKILL);
    }
    receive_message(feed, 0);
    coll_barrier(coll, self->queue);
    assert_status(coll_feed_receive(feed, -1, &message, &bytes), WEFT_ERR_PEER_GONE);
    assert_status(coll_status(coll, &rank), WEFT_ERR_PEER_GONE);
    assert_int_equal(rank, 0);
    coll_feed_destroy(feed);
    coll_destroy(coll);
}

static void readers_see_the_death_of_the_writer(void **state)
{
    (void)state;
    coll_rig_run_each(N_RANKS, 1, run_dead_writer);
}

static void run_dead_reader(coll_rig_rank_t *self)
{
    coll_t *coll = coll_rig_create(self, self->user);
    coll_feed_t *feed = create_feed(coll);
    if (self->rank == 1) {
        (void)raise(SIGKILL);
    }
    if (self->rank == 0) {
        uint32_t rank = COLL_NO_RANK;
        while (coll_feed_begin(feed) != NULL) {
            (void)coll_feed_send(feed, 1); /* an error here, too, shows in the next begin */
        }
        assert_status(coll_status(coll, &rank), WEFT_ERR_PEER_GONE);
        assert_int_equal(rank, 1);
    }
    coll_feed_destroy(feed);
    coll_destroy(coll);
}

static void the_writer_sees_the_death_of_a_reader(void **state)
{
    (void)state;
    coll_rig_run_each(2, 2, run_dead_reader);
}

static void *abort_group(void *user)
{
    coll_abort(user, COLL_NO_RANK);
    return NULL;
}

static void run_abort(coll_rig_rank_t *self)
{
    board_t *board = self->shared;
    coll_t *coll = coll_rig_create(self, self->user);
    coll_feed_t *feed = create_feed(coll);
    if (self->rank == 0) { /* sends nothing */
        coll_rig_await(&board->n_done, N_RANKS - 1);
    } else {
        pthread_t thread;
        const void *message;
        size_t bytes;
        assert_int_equal(pthread_create(&thread, NULL, abort_group, coll), 0);
        assert_status(coll_feed_receive(feed, -1, &message, &bytes), WEFT_ERR_PEER_GONE);
        assert_int_equal(pthread_join(thread, NULL), 0);
        atomic_fetch_add(&board->n_done, 1);
    }
    coll_feed_destroy(feed);
    coll_destroy(coll);
}

static void an_abort_ends_the_wait_of_a_reader(void **state)
{
    (void)state;
    coll_rig_run_each(N_RANKS, 0, run_abort);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_reader_gets_every_message_in_order),
        cmocka_unit_test(the_writer_runs_ahead_by_depth_and_no_further),
        cmocka_unit_test(a_reader_may_give_up_and_wait_again),
        cmocka_unit_test(readers_see_the_death_of_the_writer),
        cmocka_unit_test(the_writer_sees_the_death_of_a_reader),
        cmocka_unit_test(an_abort_ends_the_wait_of_a_reader),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
