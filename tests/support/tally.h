/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tally: how often something happened on another thread, for a test that waits until it has.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <time.h>

#include "tests/support/check.h"

#define TALLY_PATIENCE_S 60 /* then the test fails instead of hanging */

typedef struct tally {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int count; /* guarded by lock */
} tally_t;

#define TALLY_INIT {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER}

static inline void tally_add(tally_t *tally)
{
    pthread_mutex_lock(&tally->lock);
    tally->count++;
    pthread_cond_broadcast(&tally->changed);
    pthread_mutex_unlock(&tally->lock);
}

static inline void tally_reset(tally_t *tally)
{
    pthread_mutex_lock(&tally->lock);
    tally->count = 0;
    pthread_mutex_unlock(&tally->lock);
}

static inline int tally_count(tally_t *tally)
{
    pthread_mutex_lock(&tally->lock);
    const int count = tally->count;
    pthread_mutex_unlock(&tally->lock);
    return count;
}

/* By a clock that nobody sets. False: the count did not come. */
static inline bool tally_reaches_locked(tally_t *tally, int count)
{
    struct timespec until;
    int error = 0;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += TALLY_PATIENCE_S;
    while (tally->count < count && error == 0) {
        error = pthread_cond_clockwait(&tally->changed, &tally->lock, CLOCK_MONOTONIC, &until);
    }
    return tally->count >= count;
}

/* Returns once the count is there; more is a fault, and so is not getting there. */
static inline void tally_wait(tally_t *tally, int count)
{
    pthread_mutex_lock(&tally->lock);
    (void)tally_reaches_locked(tally, count);
    const int counted = tally->count;
    pthread_mutex_unlock(&tally->lock);
    assert_int_equal(counted, count);
}

/* Waits for one and takes it, as from a semaphore; that none comes is a fault. */
static inline void tally_take(tally_t *tally)
{
    pthread_mutex_lock(&tally->lock);
    const bool has_come = tally_reaches_locked(tally, 1);
    tally->count -= has_come;
    pthread_mutex_unlock(&tally->lock);
    assert_true(has_come);
}
