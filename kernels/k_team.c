/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_team.h"

#include <assert.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "kernels/k_cores.h"

/* About as long as the gap between two steps; after it a member sleeps. */
enum { SPINS = 2000 };

typedef struct worker {
    k_team_t *team;
    uint32_t member;
    pthread_t thread;
} worker_t;

/*
 * A job's items are shared out in ranges, one a member: what lies side by side in memory is read by
 * one thread, the same one from job to job. A member takes its own from the front, then those that
 * others have not come to from their backs, so that a thread that lost its core holds up no more
 * than the item it is at.
 *
 * fn, arg and the ranges are those of one job as long as an item of it is unfinished. A worker that
 * wakes late takes an item of a later job as one of that: it reads fn after it has the item.
 */
typedef struct range {
    /* [first, end) as end << 32 | first; released by k_team_run, acquired by claim */
    _Alignas(WEFT_CACHE_LINE) atomic_uint_least64_t items;
} range_t;

struct k_team {
    k_team_fn fn;
    const void *arg;
    uint32_t size;

    /* Futex: changes with every job. */
    _Alignas(WEFT_CACHE_LINE) atomic_uint_least32_t job;
    atomic_uint_least32_t sleepers;
    atomic_bool is_stopping;
    /* released by work_on, acquired by k_team_run; futex when is_caller_asleep */
    _Alignas(WEFT_CACHE_LINE) atomic_uint_least32_t unfinished;
    atomic_bool is_caller_asleep;

    uint32_t n_workers; /* started */
    range_t *ranges;    /* [size], behind the workers */
    worker_t workers[];
};

static void futex_wait(atomic_uint_least32_t *word, uint32_t expected)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake_all(atomic_uint_least32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* The first item of a range, or the last. */
static bool claim(range_t *range, bool is_own, uint32_t *item_out)
{
    uint64_t items = atomic_load_explicit(&range->items, memory_order_acquire);
    for (;;) {
        const uint32_t first = (uint32_t)items;
        const uint32_t end = (uint32_t)(items >> 32);
        if (first >= end) {
            return false;
        }
        const uint64_t left =
            is_own ? items + 1 : (uint64_t)(end - 1) << 32 | first; /* cannot carry: first < end */
        if (atomic_compare_exchange_weak_explicit(&range->items, &items, left, memory_order_acquire,
                                                  memory_order_acquire)) {
            *item_out = is_own ? first : end - 1;
            return true;
        }
    }
}

static uint32_t work_on_range(k_team_t *team, uint32_t owner, uint32_t member)
{
    uint32_t done = 0;
    uint32_t item;
    while (claim(&team->ranges[owner], owner == member, &item)) {
        team->fn(team->arg, item, member);
        done++;
    }
    return done;
}

static void work_on(k_team_t *team, uint32_t member)
{
    for (uint32_t i = 0; i < team->size; i++) {
        const uint32_t done = work_on_range(team, (member + i) % team->size, member);
        if (done > 0 && atomic_fetch_sub(&team->unfinished, done) == done &&
            atomic_load(&team->is_caller_asleep)) {
            futex_wake_all(&team->unfinished);
        }
    }
}

/* Until there is a job other than the one seen. */
static uint32_t await_job(k_team_t *team, uint32_t seen)
{
    for (uint32_t spin = 0; spin < SPINS; spin++) {
        const uint32_t job = atomic_load_explicit(&team->job, memory_order_acquire);
        if (job != seen) {
            return job;
        }
        weft_cpu_relax();
    }
    /* k_team_run changes job, then looks for sleepers; both sides are sequentially consistent. */
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->job) == seen) {
        futex_wait(&team->job, seen);
    }
    atomic_fetch_sub(&team->sleepers, 1);
    return atomic_load(&team->job);
}

static void *worker_main(void *user)
{
    const worker_t *worker = user;
    k_team_t *team = worker->team;
    uint32_t job = 0;
    while (!atomic_load_explicit(&team->is_stopping, memory_order_acquire)) {
        work_on(team, worker->member);
        job = await_job(team, job);
    }
    return NULL;
}

/* What fails leaves it unpinned. */
static void pin_worker(const worker_t *worker, int cpu)
{
    const size_t bytes = CPU_ALLOC_SIZE(K_CORES_MAX);
    cpu_set_t mask[K_CORES_MAX / CPU_SETSIZE];
    CPU_ZERO_S(bytes, mask);
    CPU_SET_S(cpu, bytes, mask);
    pthread_setaffinity_np(worker->thread, bytes, mask);
}

/* Workers take no signals: those are for the loops. */
static weft_status_t start_workers(k_team_t *team)
{
    int cpus[K_CORES_MAX];
    const bool is_pinned = k_cores_list(cpus) == team->size;
    sigset_t every;
    sigset_t before;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; i + 1 < team->size && status == WEFT_OK; i++) {
        worker_t *worker = &team->workers[i];
        *worker = (worker_t){.team = team, .member = i + 1};
        if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0) {
            status = WEFT_ERR_NO_MEMORY;
            break;
        }
        pthread_setname_np(worker->thread, "weft-kernels");
        team->n_workers++;
        if (is_pinned) {
            pin_worker(worker, cpus[worker->member]);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status;
}

weft_status_t k_team_create(uint32_t threads, k_team_t **team_out)
{
    assert(threads > 0);
    const size_t whole = sizeof(k_team_t) + (threads - 1) * sizeof(worker_t);
    const size_t ranges_at = (whole + WEFT_CACHE_LINE - 1) / WEFT_CACHE_LINE * WEFT_CACHE_LINE;
    k_team_t *team =
        weft_alloc_aligned(WEFT_CACHE_LINE, ranges_at + threads * sizeof(range_t), "kernels.team");
    if (team == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *team = (k_team_t){.size = threads, .ranges = (range_t *)(void *)((char *)team + ranges_at)};
    memset(team->ranges, 0, threads * sizeof(range_t));
    const weft_status_t status = start_workers(team);
    if (status < 0) {
        k_team_destroy(team);
        return status;
    }
    *team_out = team;
    return WEFT_OK;
}

void k_team_destroy(k_team_t *team)
{
    if (team == NULL) {
        return;
    }
    atomic_store(&team->is_stopping, true);
    atomic_fetch_add(&team->job, 1);
    futex_wake_all(&team->job);
    for (uint32_t i = 0; i < team->n_workers; i++) {
        pthread_join(team->workers[i].thread, NULL);
    }
    weft_free(team);
}

uint32_t k_team_size(const k_team_t *team)
{
    return team->size;
}

static void await_finish(k_team_t *team)
{
    for (uint32_t spin = 0; spin < SPINS; spin++) {
        if (atomic_load_explicit(&team->unfinished, memory_order_acquire) == 0) {
            return;
        }
        weft_cpu_relax();
    }
    atomic_store(&team->is_caller_asleep, true);
    uint32_t unfinished;
    while ((unfinished = atomic_load(&team->unfinished)) != 0) {
        futex_wait(&team->unfinished, unfinished);
    }
    atomic_store(&team->is_caller_asleep, false);
}

static void share_out(k_team_t *team, uint32_t items)
{
    uint32_t first = 0;
    for (uint32_t i = 0; i < team->size; i++) {
        const uint64_t end = (uint64_t)items * (i + 1) / team->size;
        atomic_store_explicit(&team->ranges[i].items, end << 32 | first, memory_order_release);
        first = (uint32_t)end;
    }
}

void k_team_run(k_team_t *team, uint32_t items, k_team_fn fn, const void *arg)
{
    if (items <= 1 || team->n_workers == 0) {
        for (uint32_t item = 0; item < items; item++) {
            fn(arg, item, 0);
        }
        return;
    }
    team->fn = fn;
    team->arg = arg;
    atomic_store_explicit(&team->unfinished, items, memory_order_relaxed);
    share_out(team, items);
    atomic_fetch_add(&team->job, 1);
    if (atomic_load(&team->sleepers) > 0) {
        futex_wake_all(&team->job);
    }
    work_on(team, 0);
    await_finish(team);
}
