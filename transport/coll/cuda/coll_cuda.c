/* SPDX-License-Identifier: Apache-2.0 */
#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "base/device_cuda.h"
#include "transport/coll/coll_place.h"
#include "transport/coll/cuda/coll_cuda_priv.h"

#define PAGE_BYTES   ((size_t)4096)
#define PLACES_BYTES ((size_t)16 << 20) /* of a region, for steps of all channels */
#define PAIRS_BYTES  ((size_t)32 << 20) /* of a region, for what others send ahead */
#define PROBE_BYTES  PAGE_BYTES

typedef struct coll_cuda {
    coll_t base;
    coll_cuda_regions_t regions;
    weft_mem_t told;
    cuda_ranks_t ranks;
} coll_cuda_t;

extern const coll_backend_t coll_backend_cuda;

static coll_cuda_t *cuda_of(coll_t *coll)
{
    return (coll_cuda_t *)coll;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* What this rank can say by itself. */
static weft_status_t check_own(const coll_config_t *config, weft_diag_t *diag)
{
    if (strcmp(config->device->ops->name, "cuda") != 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "device %s is not CUDA memory",
                         config->device->ops->name);
    }
    if (config->size > CUDA_RANKS_MAX) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "%u ranks: at most %d on one host",
                         config->size, CUDA_RANKS_MAX);
    }
    return WEFT_OK;
}

static weft_status_t cuda_probe(const coll_config_t *config, weft_diag_t *diag)
{
    coll_cuda_regions_t regions;
    if (config->size > CUDA_RANKS_MAX) {
        return check_own(config, diag); /* as all other ranks do */
    }
    const weft_status_t place = coll_place_check(config, diag);
    const weft_status_t own = place < 0 ? place : check_own(config, diag);
    const weft_status_t status = coll_cuda_regions_open(&regions, config, PROBE_BYTES, own, diag);
    if (status >= 0) {
        coll_cuda_regions_close(&regions);
    }
    return status;
}

/* Divides a budget among so many, in whole pages. */
static size_t share_of(size_t bytes, size_t n)
{
    return n == 0 ? PAGE_BYTES : bytes / n & ~(PAGE_BYTES - 1);
}

static void describe(coll_cuda_t *cuda)
{
    const coll_config_t *config = &cuda->base.config;
    cuda->ranks.rank = config->rank;
    cuda->ranks.size = config->size;
    cuda->ranks.timeout_ns = config->timeout_ns;
    cuda->ranks.place_bytes = share_of(PLACES_BYTES, 2 * CUDA_RANKS_CHANNELS * config->size);
    cuda->ranks.pair_bytes =
        share_of(PAIRS_BYTES, 2 * CUDA_RANKS_PAIR_CHANNELS * (size_t)(config->size - 1));
}

static void cuda_close(coll_t *coll)
{
    coll_cuda_t *cuda = cuda_of(coll);
    weft_device_t *device = coll->config.device;
    coll_cuda_regions_close(&cuda->regions); /* waits for the kernels that use them */
    if (cuda->told.addr != NULL) {
        device->ops->free(device, &cuda->told);
    }
    weft_free(cuda);
}

static weft_status_t alloc_told(const coll_config_t *config, coll_cuda_t *cuda, weft_diag_t *diag)
{
    const weft_status_t status = config->device->ops->alloc(
        config->device, sizeof(cuda_ranks_told_t), WEFT_MEM_HOST, &cuda->told);
    return status >= 0 ? status : weft_diag(diag, status, "no pinned memory for collectives");
}

static weft_status_t cuda_open(const coll_config_t *config, weft_diag_t *diag, coll_t **coll_out)
{
    coll_cuda_t *cuda = weft_zalloc(sizeof(*cuda), "coll.cuda");
    if (cuda == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    cuda->base = (coll_t){.backend = &coll_backend_cuda, .config = *config};
    describe(cuda);
    const size_t bytes =
        cuda_ranks_region_bytes(config->size, cuda->ranks.place_bytes, cuda->ranks.pair_bytes);
    const weft_status_t own = alloc_told(config, cuda, diag);
    const weft_status_t status = coll_cuda_regions_open(&cuda->regions, config, bytes, own, diag);
    if (status < 0) {
        cuda_close(&cuda->base);
        return status;
    }
    for (uint32_t rank = 0; rank < config->size; rank++) {
        cuda->ranks.regions[rank] = cuda->regions.mems[rank].addr;
    }
    cuda->ranks.told = cuda->told.addr;
    *coll_out = &cuda->base;
    return WEFT_OK;
}

/* ---- failure --------------------------------------------------------------------------------- */

static void cuda_look(coll_t *coll)
{
    const cuda_ranks_told_t *told = cuda_of(coll)->told.addr;
    const uint32_t failure = __atomic_load_n(&told->failure, __ATOMIC_ACQUIRE);
    if (failure != 0) {
        (void)coll_fail(coll,
                        (failure & CUDA_RANKS_TIMEOUT) != 0 ? WEFT_ERR_TIMEOUT : WEFT_ERR_PEER_GONE,
                        CUDA_RANKS_RANK_OF(failure));
    }
}

static void cuda_abort(coll_t *coll, uint32_t rank)
{
    cuda_ranks_told_t *told = cuda_of(coll)->told.addr;
    __atomic_store_n(&told->abort, CUDA_RANKS_FAILED(rank), __ATOMIC_RELEASE);
}

/* ---- operations ------------------------------------------------------------------------------ */

_Static_assert((int)COLL_F32 == (int)CUDA_RANKS_F32 && (int)COLL_F16 == (int)CUDA_RANKS_F16 &&
                   (int)COLL_BF16 == (int)CUDA_RANKS_BF16,
               "element types are numbered alike");

/* A launch that did not come about has ended the device's work, and the group with it. */
static void note(coll_t *coll, int error, const char *what)
{
    if (!weft_device_cuda_note(coll->config.device, error, what)) {
        (void)coll_fail(coll, WEFT_ERR_DEVICE, coll->config.rank);
    }
}

static void *stream_of(const coll_t *coll, const weft_queue_t *queue)
{
    (void)weft_device_cuda_use(coll->config.device);
    return weft_device_cuda_stream(queue);
}

static void cuda_all_reduce(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                            coll_dtype_t dtype)
{
    note(coll,
         cuda_ranks_all_reduce(&cuda_of(coll)->ranks, in, out, n, (cuda_ranks_dtype_t)dtype,
                               stream_of(coll, queue)),
         "all_reduce");
}

/* Of a failed group nothing happens: that is in one go as well. */
static bool cuda_all_reduce_norm(coll_t *coll, weft_queue_t *queue, const coll_norm_t *norm)
{
    const cuda_ranks_t *ranks = &cuda_of(coll)->ranks;
    const cuda_ranks_norm_t args = {.x = norm->x,
                                    .w = norm->w,
                                    .y = norm->y,
                                    .rows = norm->rows,
                                    .dim = norm->dim,
                                    .x_stride = norm->x_stride,
                                    .y_stride = norm->y_stride,
                                    .eps = norm->eps};
    if (!cuda_ranks_can_norm(ranks, &args)) {
        return false;
    }
    if (!coll_has_failed(coll)) {
        note(coll, cuda_ranks_all_reduce_norm(ranks, &args, stream_of(coll, queue)),
             "all_reduce_norm");
    }
    return true;
}

static void cuda_reduce_scatter(coll_t *coll, weft_queue_t *queue, const void *in, void *out,
                                size_t n, coll_dtype_t dtype)
{
    note(coll,
         cuda_ranks_reduce_scatter(&cuda_of(coll)->ranks, in, out, n, (cuda_ranks_dtype_t)dtype,
                                   stream_of(coll, queue)),
         "reduce_scatter");
}

static void cuda_all_gather(coll_t *coll, weft_queue_t *queue, const void *in, void *out,
                            size_t bytes)
{
    note(coll, cuda_ranks_all_gather(&cuda_of(coll)->ranks, in, out, bytes, stream_of(coll, queue)),
         "all_gather");
}

static void cuda_broadcast(coll_t *coll, weft_queue_t *queue, void *buffer, size_t bytes,
                           uint32_t root)
{
    note(coll,
         cuda_ranks_broadcast(&cuda_of(coll)->ranks, buffer, bytes, root, stream_of(coll, queue)),
         "broadcast");
}

static void cuda_barrier(coll_t *coll, weft_queue_t *queue)
{
    note(coll, cuda_ranks_barrier(&cuda_of(coll)->ranks, stream_of(coll, queue)), "barrier");
}

static void cuda_send(coll_t *coll, weft_queue_t *queue, uint32_t to, const void *data,
                      size_t bytes)
{
    note(coll, cuda_ranks_send(&cuda_of(coll)->ranks, to, data, bytes, stream_of(coll, queue)),
         "send");
}

static void cuda_receive(coll_t *coll, weft_queue_t *queue, uint32_t from, void *out, size_t bytes)
{
    note(coll, cuda_ranks_receive(&cuda_of(coll)->ranks, from, out, bytes, stream_of(coll, queue)),
         "receive");
}

const coll_backend_t coll_backend_cuda = {
    .name = "cuda",
    .probe = cuda_probe,
    .open = cuda_open,
    .close = cuda_close,
    .all_reduce = cuda_all_reduce,
    .all_reduce_norm = cuda_all_reduce_norm,
    .reduce_scatter = cuda_reduce_scatter,
    .all_gather = cuda_all_gather,
    .broadcast = cuda_broadcast,
    .barrier = cuda_barrier,
    .send = cuda_send,
    .receive = cuda_receive,
    .feed = NULL,
    .look = cuda_look,
    .abort = cuda_abort,
};
