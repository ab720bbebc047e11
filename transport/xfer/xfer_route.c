/* SPDX-License-Identifier: Apache-2.0 */
/* A way to one peer: its link, made when needed, and what was imported by it. */
#include <assert.h>

#include "transport/xfer/xfer_peer_priv.h"

#define WEFT_LOG_MODULE "xfer"
#include "base/log.h"

static size_t number_of(const xfer_route_t *route)
{
    return (size_t)(route->way - route->way->agent->ways);
}

weft_status_t xfer_route_open(xfer_route_t *route)
{
    if (route->is_lost) {
        xfer_route_close_lost(route->way->agent);
    }
    if (route->link != NULL) {
        return WEFT_OK;
    }
    if (route->is_refused || route->address == NULL) {
        return WEFT_ERR_UNSUPPORTED;
    }
    const xfer_way_t *way = route->way;
    xfer_link_t *link = NULL;
    weft_status_t status = way->backend->connect(way->port, route->peer->name, route->address,
                                                 route->address_bytes, &link);
    if (status < 0) {
        route->is_refused = status == WEFT_ERR_UNSUPPORTED || status == WEFT_ERR_MALFORMED;
        route->is_doubtful = true;
        weft_log_debug("peer=%s backend=%s not connected: %s", route->peer->name,
                       way->backend->name, weft_strerror(status));
        return route->is_refused ? WEFT_ERR_UNSUPPORTED : status;
    }
    link->port = way->port;
    link->user = route;
    route->link = link;
    route->epoch++;
    return WEFT_OK;
}

weft_status_t xfer_route_import(xfer_route_t *route, xfer_peer_region_t *region, void **handle_out)
{
    const size_t w = number_of(route);
    xfer_peer_mapping_t *mapping = &region->at[w];
    if ((region->range.ways & UINT32_C(1) << w) == 0) {
        return WEFT_ERR_UNSUPPORTED;
    }
    if (mapping->epoch != route->epoch) {
        const xfer_memory_t memory = {.space = (xfer_space_t)region->range.space,
                                      .addr = region->range.addr,
                                      .bytes = region->range.bytes,
                                      .device = region->range.device,
                                      .fd = -1};
        weft_status_t status = route->way->backend->import(route->link, &memory, mapping->key,
                                                           mapping->key_bytes, &mapping->handle);
        if (status < 0) {
            return status;
        }
        mapping->epoch = route->epoch;
    }
    *handle_out = mapping->handle;
    return WEFT_OK;
}

static void release_handles(xfer_route_t *route)
{
    const size_t w = number_of(route);
    const xfer_ranges_t *regions = &route->peer->regions;
    for (size_t i = 0; i < regions->n; i++) {
        xfer_peer_mapping_t *mapping = &((xfer_peer_region_t *)regions->items[i])->at[w];
        if (mapping->epoch == route->epoch && route->epoch > 0) {
            route->way->backend->release(route->way->port, mapping->handle);
            mapping->epoch = 0;
        }
    }
}

void xfer_route_close(xfer_route_t *route)
{
    if (route->link == NULL) {
        return;
    }
    route->way->backend->disconnect(route->link);
    assert(route->in_flight == 0);
    route->link = NULL;
    route->is_up = false;
    release_handles(route);
}

void xfer_route_close_lost(xfer_agent_t *agent)
{
    while (agent->lost != NULL) {
        xfer_route_t *route = agent->lost;
        agent->lost = route->next_lost;
        route->is_lost = false;
        xfer_route_close(route);
    }
}

void xfer_route_is_up(void *user, xfer_link_t *link)
{
    (void)user;
    xfer_route_t *route = link->user;
    if (route != NULL) { /* else said from within connect */
        route->is_up = true;
    }
}

void xfer_route_is_lost(void *user, xfer_link_t *link)
{
    xfer_way_t *way = user;
    xfer_route_t *route = link->user;
    if (!route->is_lost) {
        route->is_lost = true;
        route->is_doubtful = true;
        route->next_lost = way->agent->lost;
        way->agent->lost = route;
    }
}
