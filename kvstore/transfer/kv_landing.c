/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_landing.h"

#include "base/alloc.h"

#define BATCHES   4
#define MAX_MOVES 32768 /* of one */

struct kv_landing {
    weft_device_t *device;
    weft_queue_t *queue;
    kv_landing_convert_fn convert;
    void *user;
    kv_head_form_t to;
    kv_head_form_t from;   /* of the batch that is being made */
    weft_mem_t moves;      /* kv_head_move_t [BATCHES][MAX_MOVES], for the device */
    weft_mem_t host_moves; /* the same, as they are written */
    weft_event_t *ends[BATCHES];
    uint32_t n; /* moves of the batch that is being made */
    uint64_t committed;
    uint64_t done;
    weft_status_t failure;
};

weft_status_t kv_landing_create(weft_device_t *device, kv_landing_convert_fn convert, void *user,
                                const kv_head_form_t *to, kv_landing_t **landing_out)
{
    const size_t bytes = (size_t)BATCHES * MAX_MOVES * sizeof(kv_head_move_t);
    kv_landing_t *landing = weft_zalloc(sizeof(*landing), "kv_landing");
    if (landing == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    landing->device = device;
    landing->convert = convert;
    landing->user = user;
    landing->to = *to;
    weft_status_t status = device->ops->open_queue(device, &landing->queue);
    if (status >= 0) {
        status = device->ops->alloc(device, bytes, 0, &landing->moves);
    }
    if (status >= 0) {
        status = device->ops->alloc(device, bytes, WEFT_MEM_HOST, &landing->host_moves);
    }
    if (status < 0) {
        kv_landing_destroy(landing);
        return status;
    }
    *landing_out = landing;
    return WEFT_OK;
}

void kv_landing_destroy(kv_landing_t *landing)
{
    if (landing == NULL) {
        return;
    }
    if (landing->queue != NULL) {
        landing->device->ops->close_queue(landing->queue); /* waits */
    }
    if (landing->moves.addr != NULL) {
        landing->device->ops->free(landing->device, &landing->moves);
    }
    if (landing->host_moves.addr != NULL) {
        landing->device->ops->free(landing->device, &landing->host_moves);
    }
    weft_free(landing);
}

static void end_oldest(kv_landing_t *landing)
{
    const weft_status_t status = landing->device->ops->wait(landing->ends[landing->done % BATCHES]);
    landing->done++;
    landing->failure = status < 0 ? status : landing->failure;
}

static size_t place_of(const kv_landing_t *landing)
{
    return landing->committed % BATCHES * MAX_MOVES * sizeof(kv_head_move_t);
}

void kv_landing_add(kv_landing_t *landing, const kv_head_form_t *from, const kv_head_move_t *move)
{
    if (landing->n == MAX_MOVES) {
        (void)kv_landing_commit(landing);
    }
    if (landing->committed - landing->done == BATCHES) {
        end_oldest(landing);
    }
    kv_head_move_t *moves = (void *)((char *)landing->host_moves.addr + place_of(landing));
    landing->from = *from;
    moves[landing->n++] = *move;
}

uint64_t kv_landing_commit(kv_landing_t *landing)
{
    const weft_device_ops_t *ops = landing->device->ops;
    if (landing->n == 0) {
        return landing->committed;
    }
    char *moves = (char *)landing->moves.addr + place_of(landing);
    ops->copy(landing->queue, moves, (char *)landing->host_moves.addr + place_of(landing),
              landing->n * sizeof(kv_head_move_t));
    landing->convert(landing->user, landing->queue, &landing->to, &landing->from,
                     (const kv_head_move_t *)(void *)moves, landing->n);
    landing->ends[landing->committed % BATCHES] = ops->record(landing->queue);
    landing->n = 0;
    return ++landing->committed;
}

weft_status_t kv_landing_state(kv_landing_t *landing, uint64_t batch)
{
    while (landing->done < batch &&
           landing->device->ops->is_done(landing->ends[landing->done % BATCHES])) {
        end_oldest(landing);
    }
    return landing->done < batch ? WEFT_PENDING : landing->failure;
}

weft_status_t kv_landing_wait(kv_landing_t *landing, uint64_t batch)
{
    while (landing->done < batch) {
        end_oldest(landing);
    }
    return landing->failure;
}
