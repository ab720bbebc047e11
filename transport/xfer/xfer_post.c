/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a posting: handed over, given to a backend, ended, told. */
#include <assert.h>
#include <string.h>

#include "base/clock.h"
#include "transport/xfer/xfer_choose.h"
#include "transport/xfer/xfer_request_priv.h"
#include "transport/xfer/xfer_stripe.h"

/* Callbacks may post what ends at once: others get their turn in between. */
#define CALLS_IN_A_ROUND 64

/* ---- the end --------------------------------------------------------------------------------- */

static void queue_call(xfer_request_t *request)
{
    xfer_agent_t *agent = request->agent;
    if (request->ends_due++ > 0) {
        return;
    }
    request->next_called = NULL;
    if (agent->called == NULL) {
        agent->called = request;
    } else {
        agent->called_last->next_called = request;
    }
    agent->called_last = request;
}

/* lock is held. Once the status is out the request may be posted again: it is not touched then. */
void xfer_request_end(xfer_request_t *request, weft_status_t status)
{
    xfer_agent_t *agent = request->agent;
    xfer_batch_t *batch = request->batch;
    request->ended_ns = weft_clock_ns();
    request->route = NULL;
    request->is_cancelled = false;
    if (request->on_end != NULL) {
        queue_call(request);
    }
    agent->has_event = agent->has_event || agent->on_event != NULL;
    atomic_store_explicit(&request->status, status, memory_order_release);
    if (batch != NULL) {
        xfer_batch_one_ended(batch, status);
    }
    if (agent->end_watchers > 0) {
        pthread_cond_broadcast(&agent->ended);
    }
}

static void measure(const xfer_request_t *request, xfer_route_t *route)
{
    if (request->op.bytes < XFER_MEASURED_BYTES_MIN || !request->was_alone ||
        route->posts != request->route_posts) {
        return;
    }
    const uint64_t ns = weft_clock_ns() - request->started_ns;
    route->bytes_per_second = xfer_choose_smooth(route->bytes_per_second, request->op.bytes, ns);
    route->way->stats.bytes_per_second =
        xfer_choose_smooth(route->way->stats.bytes_per_second, request->op.bytes, ns);
}

static void count_end(const xfer_request_t *request, xfer_backend_stats_t *stats,
                      weft_status_t status)
{
    stats->requests++;
    stats->resumed += request->op.resumed;
    if (status < 0) {
        stats->failed++;
        return;
    }
    *(request->op.direction == XFER_READ ? &stats->read_bytes : &stats->written_bytes) +=
        request->op.bytes;
    stats->notifications_sent += request->op.notification != NULL;
}

void xfer_op_end(xfer_op_t *op, weft_status_t status)
{
    op->end(op, status);
}

bool xfer_request_call_ended(xfer_agent_t *agent)
{
    const bool has_any = agent->called != NULL;
    for (int n = 0; n < CALLS_IN_A_ROUND && agent->called != NULL; n++) {
        xfer_request_t *request = agent->called;
        agent->called = request->next_called;
        const uint32_t calls = request->ends_due;
        request->ends_due = 0;
        request->callers++;
        xfer_agent_leave_idle(agent);
        for (uint32_t i = 0; i < calls; i++) {
            request->on_end(request->user, request);
        }
        xfer_agent_enter(agent);
        request->callers--;
        pthread_cond_broadcast(&agent->ended);
    }
    return has_any;
}

/* ---- the start ------------------------------------------------------------------------------- */

static size_t choose_way(const xfer_request_t *request, uint32_t ways)
{
    if ((ways & (ways - 1)) == 0) { /* one, or none */
        size_t w = 0;
        while (w < request->agent->n_ways && ways >> w != 1) {
            w++;
        }
        return w;
    }
    xfer_choice_t choices[XFER_MAX_WAYS];
    const size_t n = request->agent->n_ways;
    for (size_t w = 0; w < n; w++) {
        const xfer_route_t *route = &request->peer->routes[w];
        const uint32_t caps = route->way->backend->caps;
        choices[w] = (xfer_choice_t){.is_usable = (ways & UINT32_C(1) << w) != 0,
                                     .is_on_host = (caps & XFER_CAP_HOSTS) == 0,
                                     .is_doubtful = route->is_doubtful,
                                     .is_tried = route->is_tried,
                                     .bytes_per_second = route->bytes_per_second};
    }
    return xfer_choose(choices, n, request->peer->last_way, request->op.bytes);
}

weft_status_t xfer_estimate(const xfer_request_t *request, uint64_t *ns_out)
{
    xfer_agent_t *agent = request->agent;
    xfer_agent_enter(agent);
    const size_t w = choose_way(request, request->ways);
    const double rate = w < agent->n_ways ? request->peer->routes[w].bytes_per_second : 0;
    xfer_agent_leave_idle(agent);
    if (w == agent->n_ways) {
        return WEFT_ERR_PEER_GONE;
    }
    if (rate == 0) {
        return WEFT_ERR_NOT_FOUND;
    }
    *ns_out = (uint64_t)((double)request->op.bytes / rate * (double)WEFT_NS_PER_SECOND);
    return WEFT_OK;
}

static void hand_over(xfer_request_t *request, size_t w)
{
    xfer_route_t *route = &request->peer->routes[w];
    xfer_op_t *op = &request->op;
    op->local_handles = &request->local_cover->handles[w * request->local_cover->n];
    op->peer_handles = &request->peer_cover->handles[w * request->peer_cover->n];
    op->link = route->link;
    op->next = NULL;
    op->prev = NULL;
    op->position = 0;
    op->offset = 0;
    memset(op->words, 0, sizeof(op->words));
    op->resumed = 0;
    request->route = route;
    request->last_way = w;
    request->peer->last_way = w;
    request->was_alone = route->in_flight == 0;
    request->route_posts = ++route->posts;
    route->in_flight++;
    route->is_tried |= op->bytes >= XFER_MEASURED_BYTES_MIN;
    route->way->backend->post(route->link, op);
}

static weft_status_t start_by_some_way(xfer_request_t *request)
{
    weft_status_t status = WEFT_ERR_PEER_GONE;
    uint32_t ways = request->ways;
    while (ways != 0) {
        const size_t w = choose_way(request, ways);
        status = xfer_request_prepare(request, w);
        if (status == WEFT_OK) {
            hand_over(request, w);
            return WEFT_OK;
        }
        ways &= ~(UINT32_C(1) << w);
        if (status == WEFT_ERR_UNSUPPORTED || status == WEFT_ERR_MALFORMED) {
            request->ways &= ~(UINT32_C(1) << w); /* nor will it ever */
            status = WEFT_ERR_PEER_GONE;
        }
    }
    return status;
}

/* A backend may find out late that it cannot: memory that was imported could not be mapped. */
static bool start_by_another_way(xfer_request_t *request, const xfer_route_t *route)
{
    request->ways &= ~(UINT32_C(1) << (route->way - request->agent->ways));
    return start_by_some_way(request) == WEFT_OK;
}

void xfer_request_op_ended(xfer_op_t *op, weft_status_t status)
{
    xfer_request_t *request = WEFT_CONTAINER(op, xfer_request_t, op);
    xfer_route_t *route = request->route;
    assert(route != NULL && status != WEFT_PENDING);
    route->in_flight--;
    if (status == WEFT_ERR_UNSUPPORTED && start_by_another_way(request, route)) {
        return;
    }
    if (status == WEFT_OK) {
        route->heard_ns = weft_clock_ns();
        route->is_up = true;
        route->is_doubtful = false;
        measure(request, route);
    }
    count_end(request, &route->way->stats, status);
    xfer_request_end(request, status);
}

void xfer_request_start(xfer_request_t *request)
{
    weft_status_t status = WEFT_OK;
    const xfer_op_t *op = &request->op;
    request->started_ns = weft_clock_ns();
    if (request->is_cancelled || atomic_load(&request->peer->is_forgotten)) {
        status = WEFT_ERR_CANCELLED;
    } else if (xfer_stripe_start(request)) {
        return; /* xfer_stripe_poll ends it */
    } else if (op->n_extents > 0 || op->notification != NULL || op->has_guard) {
        status = start_by_some_way(request);
        if (status == WEFT_OK) {
            return; /* the backend ends it */
        }
    }
    xfer_request_end(request, status);
}

/* ---- handing over ---------------------------------------------------------------------------- */

static xfer_request_t *merge(xfer_request_t *a, xfer_request_t *b)
{
    xfer_request_t *head = NULL;
    xfer_request_t **end = &head;
    while (a != NULL && b != NULL) {
        xfer_request_t **from = b->op.priority < a->op.priority ? &b : &a;
        *end = *from;
        end = &(*from)->next;
        *from = *end;
    }
    *end = a != NULL ? a : b;
    return head;
}

/* By priority, equals as they came: `list` is last in first out. */
static xfer_request_t *in_turn(xfer_request_t *list)
{
    xfer_request_t *sorted[32] = {NULL}; /* sorted[i]: 2^i requests */
    xfer_request_t *reversed = NULL;
    while (list != NULL) {
        xfer_request_t *next = list->next;
        list->next = reversed;
        reversed = list;
        list = next;
    }
    while (reversed != NULL) {
        xfer_request_t *one = reversed;
        size_t i = 0;
        reversed = reversed->next;
        one->next = NULL;
        for (; i < WEFT_ARRAY_LEN(sorted) - 1 && sorted[i] != NULL; i++) {
            one = merge(sorted[i], one);
            sorted[i] = NULL;
        }
        sorted[i] = one;
    }
    xfer_request_t *all = NULL;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sorted); i++) {
        all = merge(sorted[i], all);
    }
    return all;
}

bool xfer_request_start_incoming(xfer_agent_t *agent)
{
    if (atomic_load_explicit(&agent->incoming, memory_order_relaxed) == NULL) {
        return false;
    }
    xfer_request_t *request = in_turn(atomic_exchange(&agent->incoming, NULL));
    const bool has_any = request != NULL;
    while (request != NULL) {
        xfer_request_t *next = request->next;
        xfer_request_start(request);
        request = next;
    }
    return has_any;
}

static void push(xfer_agent_t *agent, xfer_request_t *request)
{
    xfer_request_t *head = atomic_load_explicit(&agent->incoming, memory_order_relaxed);
    do {
        request->next = head;
    } while (!atomic_compare_exchange_weak(&agent->incoming, &head, request));
    xfer_sleep_wake(agent);
}

weft_status_t xfer_request_post(xfer_request_t *request, xfer_batch_t *batch)
{
    xfer_agent_t *agent = request->agent;
    if (atomic_load_explicit(&request->peer->is_forgotten, memory_order_relaxed)) {
        return WEFT_ERR_NOT_FOUND;
    }
    int before = atomic_load_explicit(&request->status, memory_order_relaxed);
    do {
        if (before == WEFT_PENDING) {
            return WEFT_ERR_IN_USE;
        }
    } while (!atomic_compare_exchange_weak(&request->status, &before, WEFT_PENDING));
    atomic_store_explicit(&request->posted_ns, weft_clock_ns(), memory_order_relaxed);
    request->batch = batch;
    if (agent->has_thread) {
        push(agent, request);
        return WEFT_OK;
    }
    xfer_agent_enter(agent);
    xfer_request_start(request);
    xfer_agent_leave(agent);
    return WEFT_OK;
}

weft_status_t xfer_post(xfer_request_t *request)
{
    return xfer_request_post(request, NULL);
}
