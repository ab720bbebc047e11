/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "nccl"

#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/coll/nccl/coll_nccl_priv.h"

#define WATCH_NS (10 * WEFT_NS_PER_MS)

/* Of the operation that the device is in. */
typedef struct progress {
    uint32_t begun;
    uint64_t since; /* 0: it is in none */
} progress_t;

static bool is_overdue(const coll_nccl_t *group, progress_t *progress)
{
    const coll_nccl_counts_t *told = group->told.addr;
    const uint32_t ended = __atomic_load_n(&told->ended, __ATOMIC_ACQUIRE);
    const uint32_t begun = __atomic_load_n(&told->begun, __ATOMIC_ACQUIRE);
    const uint64_t now = weft_clock_ns();
    if (begun == ended) {
        progress->since = 0;
    } else if (progress->since == 0 || begun != progress->begun) {
        *progress = (progress_t){.begun = begun, .since = now};
    }
    return progress->since != 0 && now - progress->since > group->base.config.timeout_ns;
}

/* Becomes the group's failure; with the lock. */
static void check(coll_nccl_t *group, progress_t *progress)
{
    int error = NCCL_SUCCESS;
    if (is_overdue(group, progress)) {
        weft_log_error("an operation has not ended within the timeout");
        (void)coll_fail(&group->base, WEFT_ERR_TIMEOUT, COLL_NO_RANK);
        return;
    }
    (void)group->nccl->ncclCommGetAsyncError(group->comm, &error);
    if (error != NCCL_SUCCESS && error != NCCL_IN_PROGRESS) {
        weft_log_error("the communicator failed: %s (%d)", group->nccl->ncclGetErrorString(error),
                       error);
        (void)coll_fail(&group->base,
                        error == NCCL_REMOTE_ERROR ? WEFT_ERR_PEER_GONE : WEFT_ERR_DEVICE,
                        COLL_NO_RANK);
    }
}

static void wait_a_moment(coll_nccl_t *group)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)WATCH_NS;
    until.tv_sec += until.tv_nsec / (long)WEFT_NS_PER_SECOND;
    until.tv_nsec %= (long)WEFT_NS_PER_SECOND;
    (void)pthread_cond_timedwait(&group->wake, &group->lock, &until);
}

static void *watch(void *user)
{
    coll_nccl_t *group = user;
    progress_t progress = {.since = 0};
    pthread_mutex_lock(&group->lock);
    while (!group->is_leaving) {
        if (group->comm != NULL) {
            check(group, &progress);
        }
        if (group->comm != NULL && coll_has_failed(&group->base)) {
            (void)group->nccl->ncclCommAbort(group->comm);
            group->comm = NULL;
        }
        wait_a_moment(group);
    }
    pthread_mutex_unlock(&group->lock);
    return NULL;
}

weft_status_t coll_nccl_watch_start(coll_nccl_t *group)
{
    group->is_watched = pthread_create(&group->watcher, NULL, watch, group) == 0;
    return group->is_watched ? WEFT_OK : WEFT_ERR_NO_MEMORY;
}

void coll_nccl_watch_stop(coll_nccl_t *group)
{
    if (group->is_watched) {
        pthread_mutex_lock(&group->lock);
        group->is_leaving = true;
        pthread_cond_signal(&group->wake);
        pthread_mutex_unlock(&group->lock);
        (void)pthread_join(group->watcher, NULL);
    }
}
