/* SPDX-License-Identifier: Apache-2.0 */
#include "base/loop.h"

#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

static weft_loop_t *loop;

static int make_loop(void **state)
{
    (void)state;
    return weft_loop_create(&loop) == WEFT_OK ? 0 : -1;
}

static int destroy_loop(void **state)
{
    (void)state;
    weft_loop_destroy(loop);
    loop = NULL;
    return 0;
}

static void stop_loop(void *user)
{
    (void)user;
    weft_loop_stop(loop);
}

static void a_stop_before_run_counts(void **state)
{
    (void)state;
    weft_loop_stop(loop);
    assert_status(weft_loop_run(loop), WEFT_OK);
    weft_loop_post(loop, stop_loop, NULL);
    assert_status(weft_loop_run(loop), WEFT_OK);
}

typedef struct journal {
    int entries[4096];
    int count;
} journal_t;

typedef struct entry {
    journal_t *journal;
    int value;
} entry_t;

static void write_entry(void *user)
{
    const entry_t *entry = user;
    entry->journal->entries[entry->journal->count++] = entry->value;
}

static void posts_run_in_order(void **state)
{
    (void)state;
    static entry_t entries[1000];
    static journal_t journal;
    journal.count = 0;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 1000; i++) {
            entries[i] = (entry_t){&journal, i};
            assert_status(weft_loop_post(loop, write_entry, &entries[i]), WEFT_OK);
        }
        weft_loop_post(loop, stop_loop, NULL);
        assert_status(weft_loop_run(loop), WEFT_OK);
        assert_int_equal(journal.count, 1000);
        for (int i = 0; i < 1000; i++) {
            assert_int_equal(journal.entries[i], i);
        }
        journal.count = 0;
    }
}

typedef struct poster {
    pthread_t thread;
    int *total; /* the loop's */
    entry_t *entries;
} poster_t;

static void count_one(void *user)
{
    int *total = user;
    if (++*total == 4 * 5000) {
        weft_loop_stop(loop);
    }
}

static void *post_many(void *user)
{
    const poster_t *poster = user;
    for (int i = 0; i < 5000; i++) {
        if (weft_loop_post(loop, count_one, poster->total) != WEFT_OK) {
            abort();
        }
    }
    return NULL;
}

static void posts_of_many_threads_all_arrive(void **state)
{
    (void)state;
    int total = 0;
    poster_t posters[4];
    for (int i = 0; i < 4; i++) {
        posters[i].total = &total;
        assert_int_equal(pthread_create(&posters[i].thread, NULL, post_many, &posters[i]), 0);
    }
    assert_status(weft_loop_run(loop), WEFT_OK);
    for (int i = 0; i < 4; i++) {
        pthread_join(posters[i].thread, NULL);
    }
    assert_int_equal(total, 4 * 5000);
}

static void timers_fire_in_the_order_of_their_times(void **state)
{
    (void)state;
    test_random_t random = {test_seed(weft_clock_ns())};
    static entry_t entries[200];
    static journal_t journal;
    weft_loop_timer_t *timers[200];
    weft_loop_timer_t *last = NULL;
    journal.count = 0;
    int expected = 0;
    /* Distances of 100 µs keep the order of the deadlines whatever time setting them takes. */
    for (int i = 0; i < 200; i++) {
        entries[i] = (entry_t){&journal, (int)test_random_below(&random, 100)};
        assert_status(weft_loop_timer_create(loop, write_entry, &entries[i], &timers[i]), WEFT_OK);
        weft_loop_timer_set(timers[i], 10 * WEFT_NS_PER_SECOND);
    }
    for (int i = 0; i < 200; i++) {
        if (test_random_below(&random, 4) == 0) {
            weft_loop_timer_clear(timers[i]);
            entries[i].value = -1;
        } else {
            expected++;
        }
    }
    for (int value = 0; value < 100; value++) {
        for (int i = 0; i < 200; i++) {
            if (entries[i].value == value) {
                weft_loop_timer_set(timers[i], (uint64_t)value * 100000);
            }
        }
    }
    assert_status(weft_loop_timer_create(loop, stop_loop, NULL, &last), WEFT_OK);
    weft_loop_timer_set(last, 200 * WEFT_NS_PER_MS);
    assert_status(weft_loop_run(loop), WEFT_OK);
    assert_int_equal(journal.count, expected);
    for (int i = 1; i < journal.count; i++) {
        assert_true(journal.entries[i - 1] <= journal.entries[i]);
    }
    for (int i = 0; i < 100; i++) {
        weft_loop_timer_destroy(timers[i]); /* the rest goes with the loop */
    }
}

typedef struct again {
    weft_loop_timer_t *timer;
    int left;
} again_t;

static void set_again(void *user)
{
    again_t *again = user;
    if (--again->left == 0) {
        weft_loop_stop(loop);
    } else {
        weft_loop_timer_set(again->timer, 0);
    }
}

static void a_timer_is_off_after_it_fired_and_may_be_set_again_from_within(void **state)
{
    (void)state;
    again_t again = {.left = 50};
    assert_status(weft_loop_timer_create(loop, set_again, &again, &again.timer), WEFT_OK);
    weft_loop_timer_set(again.timer, UINT64_MAX); /* far, not overflowing into the past */
    weft_loop_timer_set(again.timer, 0);
    assert_status(weft_loop_run(loop), WEFT_OK);
    assert_int_equal(again.left, 0);
}

typedef struct pair {
    int fds[2];
    weft_loop_watch_t *watch;
    struct pair *other; /* unwatched by this one's callback */
    uint32_t seen;
    int calls;
} pair_t;

static void pair_open(pair_t *pair)
{
    *pair = (pair_t){0};
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair->fds), 0);
}

static void pair_close(pair_t *pair)
{
    weft_loop_unwatch(pair->watch);
    close(pair->fds[0]);
    if (pair->fds[1] >= 0) {
        close(pair->fds[1]);
    }
}

static void note_events(void *user, uint32_t events)
{
    pair_t *pair = user;
    pair->seen |= events;
    pair->calls++;
    if (pair->other != NULL) {
        weft_loop_unwatch(pair->other->watch);
        pair->other->watch = NULL;
    }
    weft_loop_stop(loop);
}

static void a_watch_tells_readable_writable_and_hangup(void **state)
{
    (void)state;
    pair_t pair;
    pair_open(&pair);
    assert_status(
        weft_loop_watch(loop, pair.fds[0], WEFT_LOOP_READ, note_events, &pair, &pair.watch),
        WEFT_OK);
    weft_loop_watch_t *second = NULL;
    assert_status(weft_loop_watch(loop, pair.fds[0], WEFT_LOOP_READ, note_events, &pair, &second),
                  WEFT_ERR_EXISTS);
    assert_status(weft_loop_watch(loop, -1, WEFT_LOOP_READ, note_events, &pair, &second),
                  WEFT_ERR_INVALID);

    assert_int_equal(write(pair.fds[1], "x", 1), 1);
    weft_loop_run(loop);
    assert_int_equal(pair.seen, WEFT_LOOP_READ);

    pair.seen = 0;
    weft_loop_watch_events(pair.watch, WEFT_LOOP_WRITE);
    weft_loop_run(loop);
    assert_int_equal(pair.seen, WEFT_LOOP_WRITE);

    pair.seen = 0;
    weft_loop_watch_events(pair.watch, 0);
    close(pair.fds[1]);
    pair.fds[1] = -1;
    weft_loop_run(loop);
    assert_int_equal(pair.seen, WEFT_LOOP_HANGUP);
    pair_close(&pair);
}

static void a_watch_removed_by_another_in_the_same_round_is_not_called(void **state)
{
    (void)state;
    pair_t a;
    pair_t b;
    pair_open(&a);
    pair_open(&b);
    a.other = &b;
    b.other = &a;
    weft_loop_watch(loop, a.fds[0], WEFT_LOOP_READ, note_events, &a, &a.watch);
    weft_loop_watch(loop, b.fds[0], WEFT_LOOP_READ, note_events, &b, &b.watch);
    assert_int_equal(write(a.fds[1], "x", 1), 1);
    assert_int_equal(write(b.fds[1], "x", 1), 1);
    weft_loop_run(loop);
    assert_int_equal(a.calls + b.calls, 1);
    pair_close(&a);
    pair_close(&b);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    weft_loop_t *other = NULL;
    weft_loop_timer_t *timer = NULL;
    weft_loop_watch_t *watch = NULL;
    pair_t pair;
    pair_open(&pair);
    weft_alloc_fail_nth(1);
    assert_status(weft_loop_create(&other), WEFT_ERR_NO_MEMORY);
    weft_alloc_fail_nth(1);
    assert_status(weft_loop_post(loop, stop_loop, NULL), WEFT_ERR_NO_MEMORY);
    weft_alloc_fail_nth(1);
    assert_status(weft_loop_timer_create(loop, stop_loop, NULL, &timer), WEFT_ERR_NO_MEMORY);
    weft_alloc_fail_nth(2);
    assert_status(weft_loop_timer_create(loop, stop_loop, NULL, &timer), WEFT_ERR_NO_MEMORY);
    weft_alloc_fail_nth(1);
    assert_status(weft_loop_watch(loop, pair.fds[0], 0, note_events, &pair, &watch),
                  WEFT_ERR_NO_MEMORY);
    weft_alloc_fail_nth(0);
    assert_status(weft_loop_post(loop, stop_loop, NULL), WEFT_OK);
    assert_status(weft_loop_run(loop), WEFT_OK);
    pair_close(&pair);
}

#define LOOP_TEST(test) cmocka_unit_test_setup_teardown(test, make_loop, destroy_loop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(a_stop_before_run_counts),
        LOOP_TEST(posts_run_in_order),
        LOOP_TEST(posts_of_many_threads_all_arrive),
        LOOP_TEST(timers_fire_in_the_order_of_their_times),
        LOOP_TEST(a_timer_is_off_after_it_fired_and_may_be_set_again_from_within),
        LOOP_TEST(a_watch_tells_readable_writable_and_hangup),
        LOOP_TEST(a_watch_removed_by_another_in_the_same_round_is_not_called),
        LOOP_TEST(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
