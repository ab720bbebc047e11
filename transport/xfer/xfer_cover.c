/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/alloc.h"
#include "transport/xfer/xfer_list_priv.h"
#include "transport/xfer/xfer_peer_priv.h"
#include "transport/xfer/xfer_region_priv.h"

/* Our own regions have their handles since they were registered. */
static void fill_own_handles(xfer_cover_t *cover)
{
    for (size_t w = 0; w < cover->agent->n_ways; w++) {
        for (size_t i = 0; i < cover->n; i++) {
            cover->handles[w * cover->n + i] = ((xfer_region_t *)cover->ranges[i])->at[w].handle;
        }
        cover->epochs[w] = 1;
    }
}

static void count_users(xfer_cover_t *cover, bool is_more)
{
    for (size_t i = 0; i < cover->n; i++) {
        xfer_region_t *region = (xfer_region_t *)cover->ranges[i];
        region->users += is_more ? 1 : UINT32_MAX;
    }
}

weft_status_t xfer_cover_create(xfer_agent_t *agent, xfer_peer_t *peer, xfer_range_t *const *ranges,
                                size_t n, xfer_cover_t **cover_out)
{
    xfer_cover_t *cover = weft_zalloc(sizeof(*cover) + n * sizeof(cover->ranges[0]), "xfer.cover");
    void **handles = weft_calloc(agent->n_ways * n + 1, sizeof(*handles), "xfer.cover");
    if (cover == NULL || handles == NULL) {
        weft_free(cover);
        weft_free(handles);
        return WEFT_ERR_NO_MEMORY;
    }
    atomic_init(&cover->references, 1);
    cover->agent = agent;
    cover->peer = peer;
    cover->handles = handles;
    cover->n = n;
    cover->ways = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        cover->ranges[i] = ranges[i];
        cover->ways &= ranges[i]->ways;
    }
    if (peer == NULL) {
        fill_own_handles(cover);
        count_users(cover, true);
    } else {
        xfer_peer_acquire(peer);
    }
    *cover_out = cover;
    return WEFT_OK;
}

void xfer_cover_acquire(xfer_cover_t *cover)
{
    atomic_fetch_add_explicit(&cover->references, 1, memory_order_relaxed);
}

void xfer_cover_release(xfer_cover_t *cover)
{
    if (cover == NULL || atomic_fetch_sub(&cover->references, 1) != 1) {
        return;
    }
    if (cover->peer == NULL) {
        pthread_mutex_lock(&cover->agent->tables);
        count_users(cover, false);
        pthread_mutex_unlock(&cover->agent->tables);
    }
    xfer_peer_release(cover->peer);
    weft_free(cover->handles);
    weft_free(cover);
}
