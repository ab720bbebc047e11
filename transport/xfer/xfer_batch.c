/* SPDX-License-Identifier: Apache-2.0 */
#include "base/alloc.h"
#include "transport/xfer/xfer_request_priv.h"

weft_status_t xfer_batch_create(xfer_request_t *const *requests, size_t n, xfer_batch_t **batch_out)
{
    if (n == 0) {
        return WEFT_ERR_INVALID;
    }
    xfer_batch_t *batch =
        weft_zalloc(sizeof(*batch) + n * sizeof(batch->requests[0]), "xfer.batch");
    if (batch == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    batch->agent = requests[0]->agent;
    batch->n = n;
    for (size_t i = 0; i < n; i++) {
        batch->requests[i] = requests[i];
    }
    *batch_out = batch;
    return WEFT_OK;
}

/* Requests of it that still run go on alone. */
void xfer_batch_destroy(xfer_batch_t *batch)
{
    if (batch == NULL) {
        return;
    }
    xfer_agent_enter(batch->agent);
    const bool is_running = atomic_load(&batch->running) > 0;
    for (size_t i = 0; is_running && i < batch->n; i++) {
        if (batch->requests[i]->batch == batch) {
            batch->requests[i]->batch = NULL;
        }
    }
    xfer_agent_leave(batch->agent);
    weft_free(batch);
}

static void keep_error(xfer_batch_t *batch, weft_status_t status)
{
    int none = WEFT_OK;
    if (status < 0) {
        atomic_compare_exchange_strong(&batch->status, &none, (int)status);
    }
}

void xfer_batch_one_ended(xfer_batch_t *batch, weft_status_t status)
{
    keep_error(batch, status);
    atomic_fetch_sub_explicit(&batch->running, 1, memory_order_release);
}

weft_status_t xfer_batch_post(xfer_batch_t *batch)
{
    size_t idle = 0;
    if (!atomic_compare_exchange_strong(&batch->running, &idle, batch->n)) {
        return WEFT_ERR_IN_USE;
    }
    batch->was_posted = true;
    atomic_store(&batch->status, WEFT_OK);
    for (size_t i = 0; i < batch->n; i++) {
        weft_status_t status = xfer_request_post(batch->requests[i], batch);
        if (status < 0) {
            xfer_batch_one_ended(batch, status);
        }
    }
    return WEFT_OK;
}

weft_status_t xfer_batch_poll(const xfer_batch_t *batch)
{
    if (atomic_load_explicit(&batch->running, memory_order_acquire) > 0) {
        return WEFT_PENDING;
    }
    return batch->was_posted ? (weft_status_t)atomic_load(&batch->status) : WEFT_ERR_INVALID;
}
