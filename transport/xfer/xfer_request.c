/* SPDX-License-Identifier: Apache-2.0 */
/* Requests are described here; xfer_post.c runs them. */
#include "transport/xfer/xfer_request_priv.h"

#include <string.h>

#include "base/alloc.h"
#include "transport/xfer/xfer_stripe.h"

/* ---- what config says ------------------------------------------------------------------------ */

static weft_status_t check_config(const xfer_agent_t *agent, const xfer_request_config_t *config,
                                  weft_diag_t *diag)
{
    const xfer_cover_t *local = config->local->cover;
    const xfer_cover_t *peer = config->peer->cover;
    if (local->agent != agent || peer->agent != agent || local->peer != NULL ||
        peer->peer == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "a request pairs a list of its agent with one of a peer");
    }
    if (atomic_load(&peer->peer->is_forgotten)) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "peer \"%s\" was forgotten", peer->peer->name);
    }
    if (config->notification_bytes > XFER_MAX_NOTIFICATION) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "a notification of %zu bytes, %zu at most",
                         config->notification_bytes, XFER_MAX_NOTIFICATION);
    }
    return WEFT_OK;
}

static weft_status_t count_pairs(const xfer_request_config_t *config, xfer_pairs_t *pairs,
                                 weft_diag_t *diag)
{
    *pairs = (xfer_pairs_t){.local = config->local,
                            .peer = config->peer,
                            .local_ids = config->local_ids,
                            .peer_ids = config->peer_ids,
                            .n = config->n};
    if (config->local_ids != NULL || config->peer_ids != NULL) {
        return WEFT_OK;
    }
    if (config->n == 0 && config->notification == NULL) {
        if (config->local->pieces != config->peer->pieces) {
            return weft_diag(diag, WEFT_ERR_INVALID, "%llu pieces here, %llu there",
                             (unsigned long long)config->local->pieces,
                             (unsigned long long)config->peer->pieces);
        }
        pairs->n = (size_t)config->local->pieces;
    }
    return WEFT_OK;
}

static weft_status_t add_pieces(xfer_request_t *request, const xfer_request_config_t *config,
                                weft_diag_t *diag)
{
    xfer_pairs_t pairs;
    weft_status_t status = count_pairs(config, &pairs, diag);
    if (status == WEFT_OK) {
        status = xfer_pair(&pairs, diag, &request->extents);
    }
    if (status < 0) {
        return status;
    }
    request->pieces = pairs.n;
    request->op.direction = config->direction;
    request->op.extents = request->extents.items;
    request->op.n_extents = request->extents.n;
    request->op.bytes = request->extents.bytes;
    request->op.priority = config->priority;
    return WEFT_OK;
}

static weft_status_t add_notification(xfer_request_t *request, const xfer_request_config_t *config)
{
    if (config->notification == NULL) {
        return WEFT_OK;
    }
    void *copy = weft_alloc(config->notification_bytes + 1, "xfer.request");
    if (copy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    memcpy(copy, config->notification, config->notification_bytes);
    request->op.notification = copy;
    request->op.notification_bytes = config->notification_bytes;
    return WEFT_OK;
}

static weft_status_t add_guard(xfer_request_t *request, const xfer_request_config_t *config,
                               weft_diag_t *diag)
{
    const xfer_guard_t *guard = config->guard;
    if (guard == NULL) {
        return WEFT_OK;
    }
    if (config->direction != XFER_READ || guard->addr % sizeof(uint64_t) != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "a guard is an aligned word, of a read");
    }
    xfer_peer_t *peer = request->peer;
    pthread_mutex_lock(&peer->agent->tables);
    for (size_t i = 0; i < peer->regions.n && request->guard_region == NULL; i++) {
        xfer_range_t *range = peer->regions.items[i];
        if (range->space == XFER_DRAM && guard->addr >= range->addr &&
            range->bytes >= sizeof(uint64_t) &&
            guard->addr - range->addr <= range->bytes - sizeof(uint64_t)) {
            request->guard_region = (xfer_peer_region_t *)range;
        }
    }
    pthread_mutex_unlock(&peer->agent->tables);
    if (request->guard_region == NULL) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "the guard at 0x%llx is in no region",
                         (unsigned long long)guard->addr);
    }
    request->op.has_guard = true;
    request->op.guard = *guard;
    return WEFT_OK;
}

/* ---- by what way ----------------------------------------------------------------------------- */

static uint32_t needed_caps(const xfer_request_t *request)
{
    return (request->op.has_guard ? XFER_CAP_GUARD : 0) |
           (request->op.notification != NULL ? XFER_CAP_NOTIFY : 0);
}

static uint32_t find_ways(const xfer_request_t *request, const char *backend)
{
    const xfer_agent_t *agent = request->agent;
    const uint32_t caps = needed_caps(request);
    uint32_t ways = request->peer->ways;
    if (request->extents.n > 0) {
        ways &= request->local_cover->ways & request->peer_cover->ways;
    }
    if (request->guard_region != NULL) {
        ways &= request->guard_region->range.ways;
    }
    for (size_t w = 0; w < agent->n_ways; w++) {
        const xfer_backend_t *row = agent->ways[w].backend;
        if ((row->caps & caps) != caps || (backend != NULL && strcmp(row->name, backend) != 0)) {
            ways &= ~(UINT32_C(1) << w);
        }
    }
    return ways;
}

static weft_status_t prepare_cover(xfer_cover_t *cover, xfer_route_t *route, size_t w)
{
    if (cover->epochs[w] == route->epoch) {
        return WEFT_OK;
    }
    for (size_t i = 0; i < cover->n; i++) {
        weft_status_t status = xfer_route_import(route, (xfer_peer_region_t *)cover->ranges[i],
                                                 &cover->handles[w * cover->n + i]);
        if (status < 0) {
            return status;
        }
    }
    cover->epochs[w] = route->epoch;
    return WEFT_OK;
}

weft_status_t xfer_request_prepare(xfer_request_t *request, size_t w)
{
    xfer_route_t *route = &request->peer->routes[w];
    weft_status_t status = xfer_route_open(route);
    if (status == WEFT_OK && request->extents.n > 0) {
        status = prepare_cover(request->peer_cover, route, w);
    }
    if (status == WEFT_OK && request->guard_region != NULL) {
        status = xfer_route_import(route, request->guard_region, &request->op.guard_handle);
    }
    return status;
}

/* Whether one way can take it at all. That a peer is gone now is for a posting to find. */
static weft_status_t find_way(xfer_request_t *request, const char *backend, weft_diag_t *diag)
{
    request->ways = find_ways(request, backend);
    for (size_t w = 0; w < request->agent->n_ways; w++) {
        const uint32_t bit = UINT32_C(1) << w;
        if ((request->ways & bit) == 0) {
            continue;
        }
        weft_status_t status = xfer_request_prepare(request, w);
        if (status == WEFT_OK || status == WEFT_ERR_PEER_GONE) {
            return WEFT_OK;
        }
        if (status != WEFT_ERR_UNSUPPORTED && status != WEFT_ERR_MALFORMED) {
            return status;
        }
        request->ways &= ~bit;
    }
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "%s%s can take this to peer \"%s\"",
                     backend == NULL ? "no backend" : "not even backend ",
                     backend == NULL ? "" : backend, request->peer->name);
}

/* ---- the request ----------------------------------------------------------------------------- */

static void request_free(xfer_request_t *request)
{
    xfer_stripe_destroy(request->stripe);
    weft_free(request->extents.items);
    weft_free((void *)request->op.notification);
    xfer_cover_release(request->local_cover);
    xfer_cover_release(request->peer_cover);
    weft_free(request);
}

static weft_status_t request_fill(xfer_request_t *request, const xfer_request_config_t *config,
                                  weft_diag_t *diag)
{
    weft_status_t status = add_pieces(request, config, diag);
    if (status == WEFT_OK) {
        status = add_notification(request, config);
    }
    if (status == WEFT_OK) {
        status = add_guard(request, config, diag);
    }
    if (status < 0) {
        return status;
    }
    xfer_agent_enter(request->agent);
    status = find_way(request, config->backend, diag);
    xfer_agent_leave(request->agent);
    return status < 0 ? status : xfer_stripe_create(request);
}

weft_status_t xfer_request_create(xfer_agent_t *agent, const xfer_request_config_t *config,
                                  weft_diag_t *diag, xfer_request_t **request_out)
{
    weft_status_t status = check_config(agent, config, diag);
    if (status < 0) {
        return status;
    }
    xfer_request_t *request = weft_zalloc(sizeof(*request), "xfer.request");
    if (request == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    request->agent = agent;
    request->local_cover = config->local->cover;
    request->peer_cover = config->peer->cover;
    request->peer = request->peer_cover->peer;
    request->last_way = XFER_MAX_WAYS;
    request->on_end = config->on_end;
    request->user = config->user;
    request->op.end = xfer_request_op_ended;
    atomic_init(&request->status, WEFT_ERR_INVALID);
    xfer_cover_acquire(request->local_cover);
    xfer_cover_acquire(request->peer_cover);
    status = request_fill(request, config, diag);
    if (status < 0) {
        request_free(request);
        return status;
    }
    *request_out = request;
    return WEFT_OK;
}

weft_status_t xfer_poll(const xfer_request_t *request)
{
    return (weft_status_t)atomic_load_explicit(&request->status, memory_order_acquire);
}

/* ---- cancel and destroy; lock is held -------------------------------------------------------- */

static void cancel(xfer_request_t *request)
{
    if (xfer_poll(request) != WEFT_PENDING || request->is_cancelled) {
        return;
    }
    request->is_cancelled = true; /* if it has not begun it ends in its turn, which is now */
    xfer_request_start_incoming(request->agent);
    if (request->is_striped) {
        xfer_stripe_cancel(request);
    } else if (request->route != NULL) {
        request->route->way->backend->cancel(&request->op);
    }
}

void xfer_cancel(xfer_request_t *request)
{
    xfer_agent_enter(request->agent);
    cancel(request);
    xfer_agent_leave(request->agent);
}

static bool is_in_use(const xfer_request_t *request)
{
    return xfer_poll(request) == WEFT_PENDING || request->callers > 0;
}

/* Without a thread nobody else may make the progress that the end takes. Its callback may post it
 * again before that. */
static void cancel_and_wait(xfer_request_t *request)
{
    xfer_agent_t *agent = request->agent;
    agent->end_watchers++;
    while (is_in_use(request)) {
        cancel(request);
        if (!is_in_use(request)) {
            break;
        }
        if (agent->has_thread) {
            xfer_agent_wait_for_end(agent);
        } else {
            xfer_agent_leave(agent);
            xfer_progress(agent, 10);
            xfer_agent_enter(agent);
        }
    }
    agent->end_watchers--;
}

static void drop_calls(xfer_request_t *request)
{
    xfer_request_t **link = &request->agent->called;
    xfer_request_t *last = NULL;
    while (*link != NULL && *link != request) {
        last = *link;
        link = &(*link)->next_called;
    }
    if (*link == request) {
        *link = request->next_called;
        if (request->agent->called_last == request) {
            request->agent->called_last = last;
        }
    }
}

void xfer_request_destroy(xfer_request_t *request)
{
    if (request == NULL) {
        return;
    }
    xfer_agent_t *agent = request->agent;
    xfer_agent_enter(agent);
    const bool was_in_use = is_in_use(request);
    cancel_and_wait(request);
    drop_calls(request);
    if (was_in_use) {
        xfer_agent_leave(agent);
    } else {
        xfer_agent_leave_idle(agent); /* wakes nobody for what had ended */
    }
    request_free(request);
}

xfer_request_stats_t xfer_request_stats(const xfer_request_t *request)
{
    xfer_agent_t *agent = request->agent;
    xfer_agent_enter(agent);
    const bool is_running = xfer_poll(request) == WEFT_PENDING;
    const xfer_request_stats_t stats = {
        .backend =
            request->last_way < agent->n_ways ? agent->ways[request->last_way].backend->name : NULL,
        .posted_ns = atomic_load_explicit(&request->posted_ns, memory_order_relaxed),
        .started_ns = request->started_ns,
        .ended_ns = is_running ? 0 : request->ended_ns,
        .bytes = request->op.bytes,
        .pieces = request->pieces,
        .extents = request->op.n_extents,
        .resumed = request->op.resumed,
    };
    xfer_agent_leave_idle(agent);
    return stats;
}
