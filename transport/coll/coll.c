/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/coll/coll.h"

#include <assert.h>

#include "transport/coll/coll_priv.h"

#define RANK_SHIFT  32
#define STATUS_MASK UINT64_C(0xffffffff)

static weft_status_t check_config(const coll_config_t *config, weft_diag_t *diag)
{
    if (config->size == 0 || config->size > COLL_MAX_RANKS || config->rank >= config->size) {
        return weft_diag(diag, WEFT_ERR_INVALID, "rank %u of %u: a group has 1 to %d ranks",
                         config->rank, config->size, COLL_MAX_RANKS);
    }
    if (config->backend == NULL || config->device == NULL || config->timeout_ns == 0 ||
        config->exchange.all_gather == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "a group needs a backend's name, a device, a timeout and an exchange");
    }
    return WEFT_OK;
}

weft_status_t coll_create(const coll_config_t *config, weft_diag_t *diag, coll_t **coll_out)
{
    const coll_backend_t *backend;
    weft_status_t status = check_config(config, diag);
    if (status < 0) {
        return status;
    }
    status = coll_choose_backend(config, diag, &backend);
    return status < 0 ? status : backend->open(config, diag, coll_out);
}

void coll_destroy(coll_t *coll)
{
    if (coll != NULL) {
        coll_t *host = atomic_load(&coll->host);
        weft_device_t *host_device = coll->host_device;
        coll->backend->close(coll);
        coll_destroy(host);
        weft_device_close(host_device);
    }
}

uint32_t coll_rank(const coll_t *coll)
{
    return coll->config.rank;
}

uint32_t coll_size(const coll_t *coll)
{
    return coll->config.size;
}

const char *coll_backend_name(const coll_t *coll)
{
    return coll->backend->name;
}

void coll_all_reduce(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                     coll_dtype_t dtype)
{
    if (n > 0 && !coll_has_failed(coll)) {
        coll->backend->all_reduce(coll, queue, in, out, n, dtype);
    }
}

bool coll_all_reduce_norm(coll_t *coll, weft_queue_t *queue, const coll_norm_t *norm)
{
    return coll->backend->all_reduce_norm != NULL && norm->rows > 0 &&
           coll->backend->all_reduce_norm(coll, queue, norm);
}

void coll_reduce_scatter(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t n,
                         coll_dtype_t dtype)
{
    if (n > 0 && !coll_has_failed(coll)) {
        coll->backend->reduce_scatter(coll, queue, in, out, n, dtype);
    }
}

void coll_all_gather(coll_t *coll, weft_queue_t *queue, const void *in, void *out, size_t bytes)
{
    if (bytes > 0 && !coll_has_failed(coll)) {
        coll->backend->all_gather(coll, queue, in, out, bytes);
    }
}

void coll_broadcast(coll_t *coll, weft_queue_t *queue, void *buffer, size_t bytes, uint32_t root)
{
    assert(root < coll->config.size);
    if (bytes > 0 && !coll_has_failed(coll)) {
        coll->backend->broadcast(coll, queue, buffer, bytes, root);
    }
}

void coll_barrier(coll_t *coll, weft_queue_t *queue)
{
    if (!coll_has_failed(coll)) {
        coll->backend->barrier(coll, queue);
    }
}

void coll_send(coll_t *coll, weft_queue_t *queue, uint32_t to, const void *data, size_t bytes)
{
    assert(to < coll->config.size && to != coll->config.rank);
    if (!coll_has_failed(coll)) {
        coll->backend->send(coll, queue, to, data, bytes);
    }
}

void coll_receive(coll_t *coll, weft_queue_t *queue, uint32_t from, void *out, size_t bytes)
{
    assert(from < coll->config.size && from != coll->config.rank);
    if (!coll_has_failed(coll)) {
        coll->backend->receive(coll, queue, from, out, bytes);
    }
}

/* What a device has found, or what happened to the group of the feeds, becomes the failure. */
static void look(coll_t *coll)
{
    uint32_t rank;
    coll_t *host = atomic_load_explicit(&coll->host, memory_order_acquire);
    if (coll->backend->look != NULL) {
        coll->backend->look(coll);
    }
    const weft_status_t status = host == NULL ? WEFT_OK : coll_status(host, &rank);
    if (status < 0) {
        (void)coll_fail(coll, status, rank);
    }
}

static uint64_t failure_of(const coll_t *coll)
{
    const uint64_t failure = atomic_load_explicit(&coll->failure, memory_order_acquire);
    if (failure != 0) {
        return failure;
    }
    look((coll_t *)(uintptr_t)coll); /* const to callers: a failure comes by itself */
    return atomic_load_explicit(&coll->failure, memory_order_acquire);
}

bool coll_has_failed(const coll_t *coll)
{
    return failure_of(coll) != 0;
}

weft_status_t coll_fail(coll_t *coll, weft_status_t status, uint32_t rank)
{
    uint64_t none = 0;
    const uint64_t failure = (uint64_t)rank << RANK_SHIFT | (uint32_t)status;
    assert(status < 0);
    if (!atomic_compare_exchange_strong(&coll->failure, &none, failure)) {
        return (weft_status_t)(int32_t)(none & STATUS_MASK);
    }
    coll_t *host = atomic_load_explicit(&coll->host, memory_order_acquire);
    if (host != NULL) {
        (void)coll_fail(host, status, rank);
    }
    if (coll->backend->abort != NULL) {
        coll->backend->abort(coll, rank);
    }
    return status;
}

weft_status_t coll_status(const coll_t *coll, uint32_t *rank_out)
{
    const uint64_t failure = failure_of(coll);
    if (rank_out != NULL) {
        *rank_out = failure == 0 ? COLL_NO_RANK : (uint32_t)(failure >> RANK_SHIFT);
    }
    return (weft_status_t)(int32_t)(failure & STATUS_MASK);
}

void coll_abort(coll_t *coll, uint32_t rank)
{
    (void)coll_fail(coll, WEFT_ERR_PEER_GONE, rank);
}
