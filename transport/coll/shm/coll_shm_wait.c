/* SPDX-License-Identifier: Apache-2.0 */
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "transport/coll/shm/coll_shm_priv.h"

#define HOT_LOOKS 200                    /* without a pause in between */
#define YIELDS    20                     /* between two looks at the clock */
#define AWAKE_NS  (200 * UINT64_C(1000)) /* of yielding before sleeping */
#define NAP_NS    WEFT_NS_PER_MS         /* after which peers are looked at again */

static bool has_come(atomic_uint *word, uint32_t target)
{
    return (int32_t)(atomic_load_explicit(word, memory_order_acquire) - target) >= 0;
}

bool coll_shm_has_failed(coll_shm_t *shm)
{
    if (coll_has_failed(&shm->base)) {
        return true;
    }
    const uint64_t failure = atomic_load_explicit(&shm->head->failure, memory_order_acquire);
    if (failure != 0) {
        (void)coll_fail(&shm->base, (weft_status_t)(int32_t)(uint32_t)failure,
                        (uint32_t)(failure >> 32));
    }
    return failure != 0;
}

void coll_shm_tell_failure(coll_shm_t *shm)
{
    uint64_t none = 0;
    const uint64_t failure = atomic_load(&shm->base.failure);
    if (failure != 0) {
        (void)atomic_compare_exchange_strong(&shm->head->failure, &none, failure);
    }
}

void coll_shm_fail(coll_shm_t *shm, weft_status_t status, uint32_t rank)
{
    (void)coll_fail(&shm->base, status, rank);
    coll_shm_tell_failure(shm);
}

void coll_shm_wake(coll_shm_t *shm, atomic_uint *word)
{
    if (atomic_load_explicit(&shm->head->n_asleep, memory_order_relaxed) != 0) {
        (void)syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    }
}

static bool spin(atomic_uint *word, uint32_t target, uint32_t spins)
{
    for (uint32_t i = 0; i < HOT_LOOKS; i++) {
        if (has_come(word, target)) {
            return true;
        }
    }
    for (uint32_t i = 0; i < spins; i++) {
        if (has_come(word, target)) {
            return true;
        }
        weft_cpu_relax();
    }
    return false;
}

/*
 * A say looks at n_asleep without a fence, so it may miss who just came; that one looks at the word once
 * more when the store must have arrived, and sleeps no longer than a nap anyway.
 */
static void nap(coll_shm_t *shm, atomic_uint *word, uint32_t target)
{
    const struct timespec limit = {.tv_nsec = (long)NAP_NS};
    atomic_fetch_add(&shm->head->n_asleep, 1);
    if (!spin(word, target, 0)) {
        const uint32_t seen = atomic_load_explicit(word, memory_order_acquire);
        if ((int32_t)(seen - target) < 0) {
            (void)syscall(SYS_futex, word, FUTEX_WAIT, seen, &limit, NULL, 0);
        }
    }
    atomic_fetch_sub(&shm->head->n_asleep, 1);
}

static bool yield(atomic_uint *word, uint32_t target)
{
    for (int i = 0; i < YIELDS; i++) {
        if (has_come(word, target)) {
            return true;
        }
        sched_yield();
    }
    return false;
}

/* Whether it is still worth waiting for rank; `since` begins the wait. */
static bool check_peer(coll_shm_t *shm, atomic_uint *word, uint32_t target, uint32_t rank,
                       uint64_t since)
{
    weft_status_t status = WEFT_OK;
    if (coll_shm_has_failed(shm)) {
        status = coll_status(&shm->base, &rank);
    } else if (!coll_shm_is_alive(shm, rank)) {
        status = WEFT_ERR_PEER_GONE;
    } else if (weft_clock_ns() - since > shm->base.config.timeout_ns) {
        status = WEFT_ERR_TIMEOUT;
    }
    /* It may have done its part, and then ended. */
    if (status < 0 && !has_come(word, target)) {
        coll_shm_fail(shm, status, rank);
    }
    return !coll_has_failed(&shm->base);
}

bool coll_shm_wait(coll_shm_t *shm, atomic_uint *word, uint32_t target, uint32_t rank)
{
    if (WEFT_LIKELY(has_come(word, target)) || spin(word, target, shm->spins)) {
        return true;
    }
    const uint64_t since = weft_clock_ns();
    uint64_t checked = since;
    while (!yield(word, target)) {
        const uint64_t now = weft_clock_ns();
        if (now - since > AWAKE_NS) {
            nap(shm, word, target);
        }
        if (now - checked > NAP_NS || coll_has_failed(&shm->base)) {
            checked = now;
            if (!check_peer(shm, word, target, rank, since)) {
                return false;
            }
        }
    }
    return true;
}

bool coll_shm_begin(coll_shm_t *shm)
{
    const uint32_t before = shm->step;
    for (uint32_t rank = 0; shm->settled != before && rank < shm->base.config.size; rank++) {
        if (!coll_shm_wait(shm, &coll_shm_line(shm, rank, before)->step, before, rank)) {
            return false;
        }
    }
    shm->settled = before;
    return true;
}

void coll_shm_say(coll_shm_t *shm)
{
    atomic_uint *word = &coll_shm_line(shm, shm->base.config.rank, ++shm->step)->step;
    atomic_store_explicit(word, shm->step, memory_order_release);
    coll_shm_wake(shm, word);
}

bool coll_shm_await(coll_shm_t *shm, uint32_t rank)
{
    return coll_shm_wait(shm, &coll_shm_line(shm, rank, shm->step)->step, shm->step, rank);
}

bool coll_shm_await_all(coll_shm_t *shm)
{
    const uint32_t size = shm->base.config.size;
    for (uint32_t i = 1; i < size; i++) {
        if (!coll_shm_await(shm, (shm->base.config.rank + i) % size)) {
            return false;
        }
    }
    shm->settled = shm->step;
    return true;
}
