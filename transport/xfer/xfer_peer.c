/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_peer_priv.h"

#include <string.h>

#include "base/alloc.h"
#include "transport/xfer/xfer_request_priv.h"
#include "transport/xfer/xfer_stripe.h"

void xfer_peer_acquire(xfer_peer_t *peer)
{
    atomic_fetch_add_explicit(&peer->references, 1, memory_order_relaxed);
}

static void peer_destroy(xfer_peer_t *peer)
{
    const size_t n_ways = peer->agent->n_ways;
    for (size_t i = 0; i < peer->regions.n; i++) {
        xfer_peer_region_destroy((xfer_peer_region_t *)peer->regions.items[i], n_ways);
    }
    for (size_t w = 0; w < n_ways; w++) {
        weft_free(peer->routes[w].address);
    }
    xfer_ranges_fini(&peer->regions);
    weft_free(peer);
}

void xfer_peer_release(xfer_peer_t *peer)
{
    if (peer != NULL && atomic_fetch_sub(&peer->references, 1) == 1) {
        peer_destroy(peer);
    }
}

const char *xfer_peer_name(const xfer_peer_t *peer)
{
    return peer->name;
}

xfer_peer_t *xfer_find_peer(xfer_agent_t *agent, const char *name)
{
    pthread_mutex_lock(&agent->tables);
    xfer_peer_t *peer = agent->peers;
    while (peer != NULL && strcmp(peer->name, name) != 0) {
        peer = peer->next;
    }
    pthread_mutex_unlock(&agent->tables);
    return peer;
}

bool xfer_peer_has(xfer_peer_t *peer, xfer_space_t space, uint64_t addr, uint64_t bytes)
{
    /* A peer has few devices, and mostly one. */
    pthread_mutex_lock(&peer->agent->tables);
    bool has = false;
    for (size_t i = 0; i < peer->regions.n && !has; i++) {
        const xfer_range_t *range = peer->regions.items[i];
        has = range->space == (int32_t)space && addr >= range->addr && bytes <= range->bytes &&
              addr - range->addr <= range->bytes - bytes;
    }
    pthread_mutex_unlock(&peer->agent->tables);
    return has;
}

void xfer_forget(xfer_agent_t *agent, xfer_peer_t *peer)
{
    xfer_agent_enter(agent);
    pthread_mutex_lock(&agent->tables);
    xfer_peer_t **link = &agent->peers;
    while (*link != peer) {
        link = &(*link)->next;
    }
    *link = peer->next;
    pthread_mutex_unlock(&agent->tables);
    atomic_store(&peer->is_forgotten, true);
    /* Those posted but not begun end here, those that run with their links. */
    xfer_request_start_incoming(agent);
    xfer_route_close_lost(agent);
    for (size_t w = 0; w < agent->n_ways; w++) {
        xfer_route_close(&peer->routes[w]);
    }
    xfer_stripe_poll(agent);
    xfer_agent_leave(agent);
    xfer_peer_release(peer);
}

weft_status_t xfer_connect(xfer_peer_t *peer)
{
    xfer_agent_t *agent = peer->agent;
    weft_status_t status = WEFT_ERR_UNSUPPORTED;
    xfer_agent_enter(agent);
    for (size_t w = 0; w < agent->n_ways; w++) {
        const weft_status_t one = xfer_route_open(&peer->routes[w]);
        if (one == WEFT_OK || status == WEFT_ERR_UNSUPPORTED) {
            status = one == WEFT_OK ? WEFT_OK : one;
        }
        if (status == WEFT_OK) {
            break; /* others are slower, and connect when they are needed */
        }
    }
    xfer_agent_leave(agent);
    return status;
}

weft_status_t xfer_peer_status(xfer_peer_t *peer)
{
    xfer_agent_t *agent = peer->agent;
    bool is_up = false;
    bool is_open = false;
    bool is_lost = false;
    xfer_agent_enter(agent);
    for (size_t w = 0; w < agent->n_ways; w++) {
        const xfer_route_t *route = &peer->routes[w];
        const bool is_alive = route->link != NULL && !route->is_lost;
        is_open |= is_alive;
        is_up |= is_alive && route->is_up;
        is_lost |= !is_alive && route->is_doubtful;
    }
    xfer_agent_leave_idle(agent);
    if (is_up) {
        return WEFT_OK;
    }
    return is_open || !is_lost ? WEFT_PENDING : WEFT_ERR_PEER_GONE;
}
