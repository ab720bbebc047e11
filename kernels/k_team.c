/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_team.h"

#include <assert.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "kernels/k_cores.h"

/* About as long as the gap between two steps; after it a member sleeps. */
enum { SPINS = 2000, CPUS = 4096 };

typedef struct worker {
    k_team_t *team;
    uint32_t member;
    pthread_t thread;
} worker_t;

/*
 * A job is claimed item by item out of `work`: its low half counts the items nobody has taken, its
 * high half is the job's number, so that a worker that wakes late cannot take an item of the next
 * job for one of the last. fn, arg and items stay as they are while an item is unfinished.
 */
struct k_team {
    k_team_fn fn;
    const void *arg;
    uint32_t items;
    uint32_t size;

    /* released by k_team_run, acquired by claim */
    _Alignas(WEFT_CACHE_LINE) atomic_uint_least64_t work;
    /* Futex: changes with every job. */
    _Alignas(WEFT_CACHE_LINE) atomic_uint_least32_t job;
    atomic_uint_least32_t sleepers;
    atomic_bool is_stopping;
    /* released by work_on, acquired by k_team_run; futex when is_caller_asleep */
    _Alignas(WEFT_CACHE_LINE) atomic_uint_least32_t unfinished;
    atomic_bool is_caller_asleep;

    uint32_t n_workers; /* started */
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

static bool claim(k_team_t *team, uint32_t *item_out)
{
    uint64_t work = atomic_load_explicit(&team->work, memory_order_acquire);
    while ((uint32_t)work > 0) {
        if (atomic_compare_exchange_weak_explicit(&team->work, &work, work - 1,
                                                  memory_order_acquire, memory_order_acquire)) {
            *item_out = team->items - (uint32_t)work;
            return true;
        }
    }
    return false;
}

static void work_on(k_team_t *team, uint32_t member)
{
    uint32_t item;
    while (claim(team, &item)) {
        team->fn(team->arg, item, member);
        if (atomic_fetch_sub(&team->unfinished, 1) == 1 && atomic_load(&team->is_caller_asleep)) {
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

/* Member i of a team that has the whole mask gets its i-th core; what fails leaves it unpinned. */
static void pin_worker(const worker_t *worker)
{
    const size_t bytes = CPU_ALLOC_SIZE(CPUS);
    cpu_set_t mask[CPUS / CPU_SETSIZE];
    CPU_ZERO_S(bytes, mask);
    if (sched_getaffinity(0, bytes, mask) != 0) {
        return;
    }
    uint32_t nth = 0;
    for (int cpu = 0; cpu < CPUS; cpu++) {
        if (CPU_ISSET_S(cpu, bytes, mask) && nth++ == worker->member) {
            CPU_ZERO_S(bytes, mask);
            CPU_SET_S(cpu, bytes, mask);
            pthread_setaffinity_np(worker->thread, bytes, mask);
            return;
        }
    }
}

/* Workers take no signals: those are for the loops. */
static weft_status_t start_workers(k_team_t *team)
{
    const bool is_pinned = team->size == k_cores_in_mask();
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
            pin_worker(worker);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status;
}

weft_status_t k_team_create(uint32_t threads, k_team_t **team_out)
{
    assert(threads > 0);
    const size_t bytes = sizeof(k_team_t) + (threads - 1) * sizeof(worker_t);
    k_team_t *team = weft_alloc_aligned(WEFT_CACHE_LINE, bytes, "kernels.team");
    if (team == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *team = (k_team_t){.size = threads};
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
    team->items = items;
    atomic_store_explicit(&team->unfinished, items, memory_order_relaxed);
    const uint64_t job = atomic_load_explicit(&team->job, memory_order_relaxed) + UINT64_C(1);
    atomic_store_explicit(&team->work, job << 32 | items, memory_order_release);
    atomic_store(&team->job, (uint32_t)job);
    if (atomic_load(&team->sleepers) > 0) {
        futex_wake_all(&team->job);
    }
    work_on(team, 0);
    await_finish(team);
}
