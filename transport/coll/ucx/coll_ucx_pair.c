/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From one rank to another: sent from a copy, so that the caller's memory is its own again at once.
 * The copies' memory grows with the largest message.
 */
#include <string.h>

#include "base/alloc.h"
#include "transport/coll/ucx/coll_ucx_priv.h"

/* Behind those of the outboxes. */
static coll_ucx_request_t *receive_request(coll_ucx_t *coll)
{
    return &coll->pairs->requests[coll->base.config.size * COLL_SEND_AHEAD];
}

weft_status_t coll_ucx_pairs_open(coll_ucx_t *coll, weft_diag_t *diag)
{
    const coll_config_t *config = &coll->base.config;

    coll->outboxes = weft_calloc(config->size, sizeof(*coll->outboxes), "coll.ucx_outboxes");
    return coll->outboxes == NULL
               ? WEFT_ERR_NO_MEMORY
               : coll_ucx_lane_open(coll, &config->exchange, config->size * COLL_SEND_AHEAD + 1,
                                    false, true, diag, &coll->pairs);
}

void coll_ucx_pairs_close(coll_ucx_t *coll)
{
    coll_ucx_lane_close(coll->pairs);
    for (uint32_t rank = 0; coll->outboxes != NULL && rank < coll->base.config.size; rank++) {
        for (unsigned slot = 0; slot < COLL_SEND_AHEAD; slot++) {
            weft_free(coll->outboxes[rank].data[slot]);
        }
    }
    weft_free(coll->outboxes);
}

static bool make_room(coll_ucx_outbox_t *outbox, unsigned slot, size_t bytes)
{
    if (outbox->room[slot] >= bytes) {
        return true;
    }
    weft_free(outbox->data[slot]);
    outbox->data[slot] = weft_alloc(bytes, "coll.ucx_outbox");
    outbox->room[slot] = outbox->data[slot] != NULL ? bytes : 0;
    return outbox->data[slot] != NULL;
}

void coll_ucx_pair_send(coll_t *base, weft_queue_t *queue, uint32_t to, const void *data,
                        size_t bytes)
{
    coll_ucx_t *coll = coll_ucx_of(base);
    coll_ucx_outbox_t *outbox = &coll->outboxes[to];
    const unsigned slot = (unsigned)(outbox->sent % COLL_SEND_AHEAD);
    coll_ucx_request_t *request = &coll->pairs->requests[to * COLL_SEND_AHEAD + slot];

    (void)queue;
    if (!coll_ucx_wait(coll->pairs, request, 1)) {
        return;
    }
    if (!make_room(outbox, slot, bytes)) {
        (void)coll_fail(base, WEFT_ERR_NO_MEMORY, COLL_NO_RANK);
        return;
    }
    if (bytes > 0) {
        memcpy(outbox->data[slot], data, bytes);
    }
    coll_ucx_send(request, to, outbox->data[slot], bytes);
    outbox->sent++;
}

void coll_ucx_pair_receive(coll_t *base, weft_queue_t *queue, uint32_t from, void *out,
                           size_t bytes)
{
    coll_ucx_t *coll = coll_ucx_of(base);
    coll_ucx_request_t *request = receive_request(coll);

    (void)queue;
    coll_ucx_receive(request, from, out, bytes);
    (void)coll_ucx_wait(coll->pairs, request, 1);
}
