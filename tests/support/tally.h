/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tally: how often something happened on another thread, for a test that waits until it has.
 */
#pragma once

#include <pthread.h>
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

/* Returns once the count is there; more is a fault, and so is not getting there. */
static inline void tally_wait(tally_t *tally, int count)
{
    struct timespec until;
    int error = 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += TALLY_PATIENCE_S;
    pthread_mutex_lock(&tally->lock);
    while (tally->count < count && error == 0) {
        error = pthread_cond_timedwait(&tally->changed, &tally->lock, &until);
    }
    const int counted = tally->count;
    pthread_mutex_unlock(&tally->lock);
    assert_int_equal(counted, count);
}
