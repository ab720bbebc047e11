/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "transport/coll/cuda/coll_cuda_priv.h"
#include "transport/coll/shm/coll_shm_pass.h"

/* What each rank says to all before they call on each other. */
typedef struct meeting {
    int32_t status;
    coll_shm_name_t name; /* of its door */
} meeting_t;

static weft_status_t exchange(const coll_config_t *config, const void *mine, size_t bytes,
                              void *all, weft_diag_t *diag)
{
    return config->exchange.all_gather(config->exchange.user, mine, bytes, all, diag);
}

/* Collective. The first failure of all ranks, in their order. */
static weft_status_t agree(const coll_config_t *config, const meeting_t *mine, meeting_t *all,
                           weft_diag_t *diag)
{
    const weft_status_t status = exchange(config, mine, sizeof(*mine), all, diag);
    for (uint32_t rank = 0; status >= 0 && mine->status >= 0 && rank < config->size; rank++) {
        if (all[rank].status < 0) {
            return weft_diag(diag, (weft_status_t)all[rank].status, "rank %u: %s", rank,
                             weft_strerror((weft_status_t)all[rank].status));
        }
    }
    return status < 0 ? status : (weft_status_t)mine->status;
}

static weft_status_t alloc_own(const coll_config_t *config, size_t bytes, weft_mem_t *mem,
                               weft_diag_t *diag)
{
    const weft_status_t status =
        config->device->ops->alloc(config->device, bytes, WEFT_MEM_EXPORTABLE, mem);
    if (status < 0) {
        return weft_diag(diag, status, "no %zu bytes of device memory for collectives", bytes);
    }
    if (mem->fd < 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "the driver exports no memory of device %d to other processes",
                         config->device->index);
    }
    return WEFT_OK;
}

static weft_status_t map_theirs(const coll_config_t *config, uint32_t rank,
                                const coll_shm_name_t *name, size_t bytes, weft_mem_t *mem,
                                weft_diag_t *diag)
{
    int fd;
    weft_status_t status = coll_shm_door_enter(name, config->timeout_ns, diag, &fd);
    if (status < 0) {
        return status;
    }
    status = config->device->ops->import(config->device, fd, bytes, mem);
    close(fd);
    return status >= 0 ? status
                       : weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                                   "the memory of rank %u cannot be mapped on device %d: the GPUs "
                                   "do not reach each other",
                                   rank, config->device->index);
}

/* By turns each rank serves all others; goes on after a failure, since the others count on us. */
static weft_status_t pass_round(coll_cuda_regions_t *regions, const coll_config_t *config,
                                coll_shm_door_t *door, const meeting_t *all, size_t bytes,
                                weft_diag_t *diag)
{
    weft_status_t first = WEFT_OK;
    for (uint32_t rank = 0; rank < config->size; rank++) {
        weft_mem_t *mem = &regions->mems[rank];
        const weft_status_t status =
            rank == config->rank
                ? coll_shm_door_serve(door, mem->fd, config->size - 1, config->timeout_ns, diag)
                : map_theirs(config, rank, &all[rank].name, bytes, mem, diag);
        first = first < 0 ? first : status;
    }
    return first;
}

weft_status_t coll_cuda_regions_open(coll_cuda_regions_t *regions, const coll_config_t *config,
                                     size_t bytes, weft_status_t mine, weft_diag_t *diag)
{
    meeting_t all[CUDA_RANKS_MAX];
    meeting_t own = {.status = mine};
    coll_shm_door_t door = {.fd = -1};
    *regions =
        (coll_cuda_regions_t){.device = config->device, .rank = config->rank, .size = config->size};
    if (own.status >= 0) {
        own.status = alloc_own(config, bytes, &regions->mems[config->rank], diag);
    }
    if (own.status >= 0) {
        own.status = coll_shm_door_open(&door, &own.name, diag);
    }
    weft_status_t status = agree(config, &own, all, diag);
    if (status >= 0) {
        own.status = pass_round(regions, config, &door, all, bytes, diag);
        status = agree(config, &own, all, diag);
    }
    coll_shm_door_close(&door);
    if (status < 0) {
        coll_cuda_regions_close(regions);
    }
    return status;
}

void coll_cuda_regions_close(coll_cuda_regions_t *regions)
{
    /* This rank's own first: that waits for what runs on the device, which may use the others'. */
    for (uint32_t i = 0; i < regions->size; i++) {
        weft_mem_t *mem = &regions->mems[(regions->rank + i) % regions->size];
        if (mem->addr != NULL) {
            regions->device->ops->free(regions->device, mem);
        }
    }
}
