/* SPDX-License-Identifier: Apache-2.0 */
#include <sched.h>

#include "base/alloc.h"
#include "transport/coll/shm/coll_shm_priv.h"

#define SPINS 1000 /* some ten microseconds */

extern const coll_backend_t coll_backend_shm;

/* With more ranks than processors, who spins keeps the processor from the one that it waits for. */
static uint32_t choose_spins(uint32_t size)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    const bool is_known = sched_getaffinity(0, sizeof(set), &set) == 0;
    /* Bound to one processor each, ranks do not share it: so 1 says nothing. */
    const int n = is_known ? CPU_COUNT(&set) : 1;
    return n > 1 && (uint32_t)n < size ? 0 : SPINS;
}

static void shm_close(coll_t *coll)
{
    coll_shm_t *shm = (coll_shm_t *)coll;
    coll_shm_close_channels(shm);
    coll_shm_leave(shm);
    weft_free(shm->from);
    weft_free(shm->to);
    weft_free(shm->sources);
    weft_free(shm);
}

static weft_status_t shm_open(const coll_config_t *config, weft_diag_t *diag, coll_t **coll_out)
{
    coll_shm_t *shm = weft_zalloc(sizeof(*shm), "coll.shm");
    if (shm == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    shm->base = (coll_t){.backend = &coll_backend_shm, .config = *config};
    shm->fd = -1;
    shm->spins = choose_spins(config->size);
    shm->sources = weft_calloc(config->size, sizeof(*shm->sources), "coll.shm.sources");
    shm->to = weft_calloc(config->size, sizeof(*shm->to), "coll.shm.channels");
    shm->from = weft_calloc(config->size, sizeof(*shm->from), "coll.shm.channels");
    /* Also without memory: the others learn it there instead of waiting. */
    const weft_status_t status = coll_shm_meet(shm, diag);
    if (status < 0) {
        shm_close(&shm->base);
        return status;
    }
    *coll_out = &shm->base;
    return WEFT_OK;
}

const coll_backend_t coll_backend_shm = {
    .name = "shm",
    .probe = coll_shm_probe,
    .open = shm_open,
    .close = shm_close,
    .all_reduce = coll_shm_all_reduce,
    .reduce_scatter = coll_shm_reduce_scatter,
    .all_gather = coll_shm_all_gather,
    .broadcast = coll_shm_broadcast,
    .barrier = coll_shm_barrier,
    .send = coll_shm_send,
    .receive = coll_shm_receive,
    .feed = &coll_shm_feed_ops,
};
