/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "nccl"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/device_cuda.h"
#include "base/log.h"
#include "transport/coll/nccl/coll_nccl_priv.h"

#define POLL_NS       (50 * UINT64_C(1000)) /* between two looks at what goes on in the background */
#define MULTI_RANK    "NCCL_MULTI_RANK_GPU_ENABLE"
#define COUNTS_OFFSET (COLL_MAX_RANKS * sizeof(uint32_t))

extern const coll_backend_t coll_backend_nccl;

_Static_assert(COUNTS_OFFSET + sizeof(coll_nccl_counts_t) <= COLL_NCCL_EXTRA_BYTES, "room behind");

static coll_nccl_t *nccl_of(coll_t *coll)
{
    return (coll_nccl_t *)coll;
}

void *coll_nccl_barrier_words(const coll_nccl_t *group)
{
    return (char *)group->scratch.addr + COLL_NCCL_SCRATCH_BYTES;
}

coll_nccl_counts_t *coll_nccl_counts(const coll_nccl_t *group)
{
    return (void *)((char *)coll_nccl_barrier_words(group) + COUNTS_OFFSET);
}

/* ---- what calls return ------------------------------------------------------------------------ */

static void report(coll_nccl_t *group, int result, const char *what)
{
    const nccl_functions_t *nccl = group->nccl;
    const char *last = nccl->ncclGetLastError == NULL || group->comm == NULL
                           ? ""
                           : nccl->ncclGetLastError(group->comm);
    weft_log_error("%s failed: %s (%d) %s", what, nccl->ncclGetErrorString(result), result,
                   last == NULL ? "" : last);
    (void)coll_fail(&group->base,
                    result == NCCL_REMOTE_ERROR ? WEFT_ERR_PEER_GONE : WEFT_ERR_DEVICE,
                    COLL_NO_RANK);
}

static void nap(coll_nccl_t *group)
{
    const struct timespec moment = {.tv_nsec = (long)POLL_NS};
    pthread_mutex_unlock(&group->lock);
    (void)nanosleep(&moment, NULL);
    pthread_mutex_lock(&group->lock);
}

bool coll_nccl_settle(coll_nccl_t *group, int result, const char *what)
{
    const uint64_t since = weft_clock_ns();
    while (result == NCCL_IN_PROGRESS && group->comm != NULL) {
        const int asked = group->nccl->ncclCommGetAsyncError(group->comm, &result);
        result = asked != NCCL_SUCCESS ? asked : result;
        if (result == NCCL_IN_PROGRESS) {
            if (weft_clock_ns() - since > group->base.config.timeout_ns) {
                (void)coll_fail(&group->base, WEFT_ERR_TIMEOUT, COLL_NO_RANK);
                return false;
            }
            nap(group);
        }
    }
    if (group->comm != NULL && result != NCCL_SUCCESS) {
        report(group, result, what);
    }
    return group->comm != NULL && result == NCCL_SUCCESS;
}

/* ---- who can take part ------------------------------------------------------------------------ */

static weft_status_t exchange(const coll_config_t *config, const void *mine, size_t bytes,
                              void *all, weft_diag_t *diag)
{
    return config->exchange.all_gather(config->exchange.user, mine, bytes, all, diag);
}

static bool may_share_device(const nccl_functions_t *nccl)
{
    const char *is_enabled = getenv(MULTI_RANK);
    return nccl->version >= NCCL_MULTI_RANK && is_enabled != NULL && strcmp(is_enabled, "1") == 0;
}

/* Collective. NCCL refuses ranks that share a GPU, unless it is told not to. */
static weft_status_t check_devices(const coll_config_t *config, const nccl_functions_t *nccl,
                                   weft_status_t own, weft_diag_t *diag)
{
    const weft_device_ops_t *ops = config->device->ops;
    const uint64_t mine = ops->id == NULL ? 0 : ops->id(config->device);
    uint64_t *all = weft_calloc(config->size, sizeof(*all), "coll.nccl.devices");
    if (all == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = exchange(config, &mine, sizeof(mine), all, diag);
    status = status < 0 ? status : own;
    for (uint32_t rank = 0; status >= 0 && rank < config->size; rank++) {
        if (rank != config->rank && all[rank] == mine && !may_share_device(nccl)) {
            status =
                weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                          "ranks %u and %u share a GPU, which takes NCCL 2.30 (this is %d.%d) "
                          "and " MULTI_RANK "=1",
                          rank, config->rank, nccl->version / 10000, nccl->version % 10000 / 100);
        }
    }
    weft_free(all);
    return status;
}

static weft_status_t check_own(const coll_config_t *config, weft_diag_t *diag,
                               const nccl_functions_t **nccl_out)
{
    if (strcmp(config->device->ops->name, "cuda") != 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "device %s is not CUDA memory",
                         config->device->ops->name);
    }
    return coll_nccl_load(diag, nccl_out);
}

static weft_status_t nccl_probe(const coll_config_t *config, weft_diag_t *diag)
{
    const nccl_functions_t *nccl = NULL;
    const weft_status_t own = check_own(config, diag, &nccl);
    return check_devices(config, nccl, own, diag);
}

/* ---- opening ---------------------------------------------------------------------------------- */

typedef struct meeting {
    int32_t status;
    nccl_id_t id; /* rank 0's */
} meeting_t;

/* Collective. The id of rank 0, or the first failure of all ranks. */
static weft_status_t agree(const coll_config_t *config, weft_status_t own, nccl_id_t *id,
                           weft_diag_t *diag)
{
    const meeting_t mine = {.status = own, .id = *id};
    meeting_t *all = weft_calloc(config->size, sizeof(*all), "coll.nccl.meeting");
    if (all == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = exchange(config, &mine, sizeof(mine), all, diag);
    status = status < 0 ? status : own;
    for (uint32_t rank = 0; status >= 0 && rank < config->size; rank++) {
        status = (weft_status_t)all[rank].status;
        if (status < 0) {
            status = weft_diag(diag, status, "rank %u: %s", rank, weft_strerror(status));
        }
    }
    *id = all[0].id;
    weft_free(all);
    return status;
}

static weft_status_t alloc_memory(coll_nccl_t *group, weft_diag_t *diag)
{
    weft_device_t *device = group->base.config.device;
    const weft_device_ops_t *ops = device->ops;
    weft_status_t status =
        ops->alloc(device, COLL_NCCL_SCRATCH_BYTES + COLL_NCCL_EXTRA_BYTES, 0, &group->scratch);
    status = status < 0
                 ? status
                 : ops->alloc(device, sizeof(coll_nccl_counts_t), WEFT_MEM_HOST, &group->told);
    return status < 0 ? weft_diag(diag, status, "no %zu bytes of device memory for sums",
                                  COLL_NCCL_SCRATCH_BYTES)
                      : status;
}

static weft_status_t prepare(coll_nccl_t *group, nccl_id_t *id, weft_diag_t *diag)
{
    const coll_config_t *config = &group->base.config;
    weft_status_t status = coll_nccl_load(diag, &group->nccl);
    status = status < 0 ? status : alloc_memory(group, diag);
    if (status >= 0 && config->rank == 0) {
        const int result = group->nccl->ncclGetUniqueId(id);
        if (result != NCCL_SUCCESS) {
            status = weft_diag(diag, WEFT_ERR_DEVICE, "ncclGetUniqueId: %s",
                               group->nccl->ncclGetErrorString(result));
        }
    }
    return status;
}

/* Collective. Up to the group's timeout. */
static weft_status_t join(coll_nccl_t *group, nccl_id_t id, weft_diag_t *diag)
{
    const coll_config_t *config = &group->base.config;
    nccl_config_t how = {.bytes = sizeof(how),
                         .magic = NCCL_CONFIG_MAGIC,
                         .version = NCCL_CONFIG_VERSION,
                         .is_blocking = 0};
    (void)weft_device_cuda_use(config->device);
    pthread_mutex_lock(&group->lock);
    const int result = group->nccl->ncclCommInitRankConfig(&group->comm, (int)config->size, id,
                                                           (int)config->rank, &how);
    if (group->comm == NULL && (result == NCCL_SUCCESS || result == NCCL_IN_PROGRESS)) {
        (void)coll_fail(&group->base, WEFT_ERR_DEVICE, COLL_NO_RANK);
    } else if (group->comm == NULL) {
        report(group, result, "ncclCommInitRankConfig");
    } else {
        (void)coll_nccl_settle(group, result, "ncclCommInitRankConfig");
    }
    pthread_mutex_unlock(&group->lock);
    const weft_status_t status = coll_status(&group->base, NULL);
    return status < 0 ? weft_diag(diag, status,
                                  "ncclCommInitRankConfig: %s (its reason is in the "
                                  "log; NCCL_DEBUG=WARN says more)",
                                  weft_strerror(status))
                      : status;
}

/* Operations that have begun, or will have, end first; what a failed group left is aborted. */
static void leave(coll_nccl_t *group)
{
    pthread_mutex_lock(&group->lock);
    if (group->comm != NULL && coll_has_failed(&group->base)) {
        (void)group->nccl->ncclCommAbort(group->comm);
        group->comm = NULL;
    }
    if (group->comm != NULL) {
        const int result = group->nccl->ncclCommFinalize(group->comm);
        nccl_comm_t *comm = group->comm;
        const bool is_done = coll_nccl_settle(group, result, "ncclCommFinalize");
        if (group->comm != NULL) {
            (void)(is_done ? group->nccl->ncclCommDestroy(comm) : group->nccl->ncclCommAbort(comm));
        }
        group->comm = NULL;
    }
    pthread_mutex_unlock(&group->lock);
}

static void nccl_close(coll_t *coll)
{
    coll_nccl_t *group = nccl_of(coll);
    weft_device_t *device = coll->config.device;
    (void)weft_device_cuda_use(device);
    if (group->nccl != NULL) {
        leave(group); /* the watcher still sees to it that this ends */
    }
    coll_nccl_watch_stop(group);
    if (group->scratch.addr != NULL) {
        device->ops->free(device, &group->scratch);
    }
    if (group->told.addr != NULL) {
        device->ops->free(device, &group->told);
    }
    pthread_cond_destroy(&group->wake);
    pthread_mutex_destroy(&group->lock);
    weft_free(group);
}

static weft_status_t nccl_open(const coll_config_t *config, weft_diag_t *diag, coll_t **coll_out)
{
    nccl_id_t id = {.bytes = {0}};
    coll_nccl_t *group = weft_zalloc(sizeof(*group), "coll.nccl");
    if (group == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    group->base = (coll_t){.backend = &coll_backend_nccl, .config = *config};
    pthread_mutex_init(&group->lock, NULL);
    pthread_cond_init(&group->wake, NULL);
    const weft_status_t own = prepare(group, &id, diag);
    weft_status_t status = agree(config, own, &id, diag);
    if (status >= 0) {
        const weft_status_t joined = join(group, id, diag);
        status = agree(config, joined, &id, diag);
    }
    status = status < 0 ? status : coll_nccl_watch_start(group);
    if (status < 0) {
        (void)coll_fail(&group->base, status, COLL_NO_RANK); /* others may be in it no more */
        nccl_close(&group->base);
        return status;
    }
    *coll_out = &group->base;
    return WEFT_OK;
}

const coll_backend_t coll_backend_nccl = {
    .name = "nccl",
    .probe = nccl_probe,
    .open = nccl_open,
    .close = nccl_close,
    .all_reduce = coll_nccl_all_reduce,
    .reduce_scatter = coll_nccl_reduce_scatter,
    .all_gather = coll_nccl_all_gather,
    .broadcast = coll_nccl_broadcast,
    .barrier = coll_nccl_barrier,
    .send = coll_nccl_send,
    .receive = coll_nccl_receive,
    .feed = NULL,
};
