/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_stripe.h"

#include <assert.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/xfer/xfer_choose.h"

#define WEFT_LOG_MODULE "xfer"
#include "base/log.h"

#define CHUNK_BYTES ((uint64_t)4 << 20)
#define MAX_CHUNKS  256 /* of a request; chunks of larger ones are larger */
#define RAIL_DEPTH  2   /* chunks that a rail has: one moves, one is next */
#define HELPS_BY    1.1
#define LOOK_AGAIN  64 /* requests, while rails together do not help */
#define LATE_FACTOR 4  /* times what a chunk takes elsewhere, at least, is late */
#define DOUBT_NS    (5 * WEFT_NS_PER_SECOND) /* a rail that was late or lost is tried again */
#define WATCH_MS    20

typedef enum chunk_state {
    CHUNK_IDLE,    /* nobody has it */
    CHUNK_FLYING,  /* a backend has it */
    CHUNK_LEAVING, /* so, and it was told to give it back */
    CHUNK_DONE
} chunk_state_t;

typedef struct chunk {
    xfer_op_t op;
    xfer_stripe_t *stripe;
    chunk_state_t state;
    size_t way; /* that has it, or had it last */
    uint64_t posted_ns;
} chunk_t;

typedef struct rail {
    uint32_t n_flying;
    uint64_t heard_ns; /* when it last was done with one of this request */
    uint64_t chunk_ns; /* what that took; 0: not known */
} rail_t;

struct xfer_stripe {
    xfer_request_t *request;
    xfer_stripe_t *next; /* in agent->stripes, while it runs */
    xfer_extent_t *extents;
    uint32_t n_chunks;
    uint32_t n_done;
    uint32_t n_flying;
    uint32_t ways;        /* bit w: rail w may be given chunks */
    weft_status_t status; /* WEFT_OK so far */
    bool is_cancelled;    /* what flies was told */
    bool has_news;
    bool was_alone;
    rail_t rails[XFER_MAX_WAYS];
    chunk_t note; /* the notification; DONE where there is none */
    chunk_t chunks[];
};

/* ---- cutting --------------------------------------------------------------------------------- */

static uint32_t rails_of(const xfer_request_t *request)
{
    uint32_t ways = 0;
    for (size_t w = 0; w < request->agent->n_ways; w++) {
        if ((request->agent->ways[w].backend->caps & XFER_CAP_RAIL) != 0) {
            ways |= request->ways & UINT32_C(1) << w;
        }
    }
    return ways;
}

static bool is_several(uint32_t ways)
{
    return (ways & (ways - 1)) != 0;
}

/* Of chunk_bytes each, but the last: an extent that two chunks share is cut in two. */
static void cut(xfer_stripe_t *stripe, uint64_t chunk_bytes)
{
    const xfer_extents_t *all = &stripe->request->extents;
    xfer_extent_t *to = stripe->extents;
    xfer_op_t *op = NULL;
    for (size_t i = 0; i < all->n; i++) {
        xfer_extent_t left = all->items[i];
        while (left.bytes > 0) {
            if (op == NULL || op->bytes == chunk_bytes) {
                op = &stripe->chunks[stripe->n_chunks++].op;
                op->extents = to;
            }
            const uint64_t room = chunk_bytes - op->bytes;
            *to = left;
            to->bytes = left.bytes < room ? left.bytes : room;
            op->n_extents++;
            op->bytes += to->bytes;
            left.local += to->bytes;
            left.peer += to->bytes;
            left.bytes -= to->bytes;
            to++;
        }
    }
}

static void chunk_ended(xfer_op_t *op, weft_status_t status);

static void fill_chunk(xfer_stripe_t *stripe, chunk_t *chunk)
{
    const xfer_op_t *whole = &stripe->request->op;
    chunk->stripe = stripe;
    chunk->op.direction = whole->direction;
    chunk->op.has_guard = whole->has_guard;
    chunk->op.guard = whole->guard;
    chunk->op.priority = whole->priority;
    chunk->op.end = chunk_ended;
}

static void fill(xfer_stripe_t *stripe, uint64_t chunk_bytes)
{
    const xfer_op_t *whole = &stripe->request->op;
    cut(stripe, chunk_bytes);
    for (uint32_t i = 0; i < stripe->n_chunks; i++) {
        fill_chunk(stripe, &stripe->chunks[i]);
    }
    fill_chunk(stripe, &stripe->note);
    stripe->note.op.has_guard = false;
    stripe->note.op.notification = whole->notification;
    stripe->note.op.notification_bytes = whole->notification_bytes;
}

static uint64_t chunk_bytes_of(uint64_t bytes)
{
    const uint64_t least = (bytes + MAX_CHUNKS - 1) / MAX_CHUNKS;
    if (bytes < XFER_STRIPE_BYTES_MIN) {
        return bytes;
    }
    return least > CHUNK_BYTES ? least : CHUNK_BYTES;
}

weft_status_t xfer_stripe_create(xfer_request_t *request)
{
    const uint64_t bytes = request->op.bytes;
    if (bytes < XFER_RAIL_BYTES_MIN || !is_several(rails_of(request))) {
        return WEFT_OK;
    }
    const uint64_t chunk_bytes = chunk_bytes_of(bytes);
    const size_t n = (size_t)((bytes + chunk_bytes - 1) / chunk_bytes);
    xfer_stripe_t *stripe =
        weft_zalloc(sizeof(*stripe) + n * sizeof(stripe->chunks[0]), "xfer.stripe");
    if (stripe == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    stripe->request = request;
    stripe->extents = weft_calloc(request->extents.n + n, sizeof(xfer_extent_t), "xfer.stripe");
    if (stripe->extents == NULL) {
        xfer_stripe_destroy(stripe);
        return WEFT_ERR_NO_MEMORY;
    }
    fill(stripe, chunk_bytes);
    assert(stripe->n_chunks == n);
    request->stripe = stripe;
    return WEFT_OK;
}

void xfer_stripe_destroy(xfer_stripe_t *stripe)
{
    if (stripe != NULL) {
        weft_free(stripe->extents);
        weft_free(stripe);
    }
}

/* ---- when ------------------------------------------------------------------------------------ */

/* Those that may be given chunks now: one that is in doubt only now and then. */
static uint32_t usable_rails(const xfer_request_t *request, uint64_t now_ns)
{
    uint32_t ways = rails_of(request);
    for (size_t w = 0; w < request->agent->n_ways; w++) {
        const xfer_route_t *route = &request->peer->routes[w];
        if (route->is_doubtful && now_ns < route->doubted_until_ns) {
            ways &= ~(UINT32_C(1) << w);
        }
    }
    return ways;
}

static bool is_alone(const xfer_request_t *request, uint32_t ways)
{
    for (size_t w = 0; w < request->agent->n_ways; w++) {
        if ((ways & UINT32_C(1) << w) != 0 && request->peer->routes[w].in_flight > 0) {
            return false;
        }
    }
    return true;
}

/* One that xfer_choose would measure a way by. */
static bool is_measuring(const xfer_request_t *request, uint32_t ways)
{
    return request->op.bytes >= XFER_MEASURED_BYTES_MIN &&
           request->op.bytes <= XFER_TRIED_BYTES_MAX && is_alone(request, ways);
}

/* Each is measured alone first, by xfer_choose, where requests are not too large for that. */
static bool is_measured(const xfer_request_t *request, uint32_t ways, double *best_out)
{
    const bool measures = is_measuring(request, ways);
    bool is_so = true;
    *best_out = 0;
    for (size_t w = 0; w < request->agent->n_ways; w++) {
        const xfer_route_t *route = &request->peer->routes[w];
        if ((ways & UINT32_C(1) << w) != 0 && !route->is_doubtful) {
            is_so = is_so && (route->is_tried || !measures);
            *best_out = route->bytes_per_second > *best_out ? route->bytes_per_second : *best_out;
        }
    }
    return is_so && (*best_out > 0 || !measures);
}

static bool is_worth(const xfer_request_t *request, uint32_t ways)
{
    xfer_peer_t *peer = request->peer;
    double best;
    if (!is_several(ways) || !is_measured(request, ways, &best)) {
        return false;
    }
    return peer->rails_bytes_per_second == 0 || peer->rails_bytes_per_second >= HELPS_BY * best ||
           ++peer->rails_left_out % LOOK_AGAIN == 0;
}

/* ---- chunks ---------------------------------------------------------------------------------- */

static xfer_route_t *route_of(const xfer_stripe_t *stripe, size_t w)
{
    return &stripe->request->peer->routes[w];
}

static void drop_rail(xfer_stripe_t *stripe, size_t w)
{
    stripe->ways &= ~(UINT32_C(1) << w);
    route_of(stripe, w)->is_doubtful = true;
    route_of(stripe, w)->doubted_until_ns = weft_clock_ns() + DOUBT_NS;
}

static void set_status(xfer_stripe_t *stripe, weft_status_t status)
{
    if (stripe->status == WEFT_OK) {
        stripe->status = status;
    }
}

static void note_done(chunk_t *chunk)
{
    xfer_stripe_t *stripe = chunk->stripe;
    rail_t *rail = &stripe->rails[chunk->way];
    xfer_route_t *route = route_of(stripe, chunk->way);
    xfer_backend_stats_t *stats = &route->way->stats;
    const uint64_t now = weft_clock_ns();
    const uint64_t since = chunk->posted_ns > rail->heard_ns ? chunk->posted_ns : rail->heard_ns;
    rail->chunk_ns = now - since;
    rail->heard_ns = route->heard_ns = now;
    route->is_up = true;
    route->is_doubtful = false;
    stats->resumed += chunk->op.resumed;
    stats->notifications_sent += chunk->op.notification != NULL;
    *(chunk->op.direction == XFER_READ ? &stats->read_bytes : &stats->written_bytes) +=
        chunk->op.bytes;
    chunk->state = CHUNK_DONE;
    stripe->n_done += chunk != &stripe->note;
}

/* It goes by another rail. */
static void give_back(chunk_t *chunk, weft_status_t status)
{
    xfer_stripe_t *stripe = chunk->stripe;
    chunk->state = CHUNK_IDLE;
    stripe->request->op.resumed++;
    if (status == WEFT_ERR_UNSUPPORTED) {
        stripe->request->ways &= ~(UINT32_C(1) << chunk->way); /* nor will it ever */
    }
    if (status != WEFT_ERR_CANCELLED) {
        drop_rail(stripe, chunk->way);
    }
    if (stripe->ways == 0) {
        set_status(stripe, status);
    }
}

/* From within a backend: what follows is for the next poll. */
static void chunk_ended(xfer_op_t *op, weft_status_t status)
{
    chunk_t *chunk = WEFT_CONTAINER(op, chunk_t, op);
    xfer_stripe_t *stripe = chunk->stripe;
    route_of(stripe, chunk->way)->in_flight--;
    stripe->rails[chunk->way].n_flying--;
    stripe->n_flying--;
    stripe->has_news = true;
    if (status == WEFT_OK) {
        note_done(chunk);
    } else if (status == WEFT_ERR_PEER_GONE || status == WEFT_ERR_UNSUPPORTED ||
               (status == WEFT_ERR_CANCELLED && chunk->state == CHUNK_LEAVING)) {
        give_back(chunk, status);
    } else {
        chunk->state = CHUNK_IDLE;
        set_status(stripe, status);
    }
}

static bool give(xfer_stripe_t *stripe, chunk_t *chunk, size_t w)
{
    xfer_request_t *request = stripe->request;
    xfer_route_t *route = route_of(stripe, w);
    xfer_op_t *op = &chunk->op;
    if (xfer_request_prepare(request, w) < 0) {
        drop_rail(stripe, w);
        if (stripe->ways == 0) {
            set_status(stripe, WEFT_ERR_PEER_GONE);
        }
        return false;
    }
    op->local_handles = &request->local_cover->handles[w * request->local_cover->n];
    op->peer_handles = &request->peer_cover->handles[w * request->peer_cover->n];
    op->guard_handle = request->op.guard_handle;
    op->link = route->link;
    op->next = op->prev = NULL;
    op->position = 0;
    op->offset = 0;
    memset(op->words, 0, sizeof(op->words));
    op->resumed = 0;
    chunk->way = w;
    chunk->state = CHUNK_FLYING;
    chunk->posted_ns = weft_clock_ns();
    stripe->n_flying++;
    stripe->rails[w].n_flying++;
    request->last_way = w;
    route->in_flight++;
    route->posts++;
    route->way->backend->post(route->link, op);
    return true;
}

static chunk_t *next_idle(xfer_stripe_t *stripe)
{
    for (uint32_t i = 0;
         stripe->n_done + stripe->n_flying < stripe->n_chunks && i < stripe->n_chunks; i++) {
        if (stripe->chunks[i].state == CHUNK_IDLE) {
            return &stripe->chunks[i];
        }
    }
    return NULL;
}

/* One in doubt has one chunk, until that is done. */
static uint32_t depth_of(const xfer_stripe_t *stripe, size_t w)
{
    return route_of(stripe, w)->is_doubtful ? 1 : RAIL_DEPTH;
}

/* The rail with the least to do, of this request first and then of others; XFER_MAX_WAYS: none. */
static size_t next_rail(const xfer_stripe_t *stripe)
{
    size_t best = XFER_MAX_WAYS;
    for (size_t w = 0; w < stripe->request->agent->n_ways; w++) {
        const uint32_t mine = stripe->rails[w].n_flying;
        if ((stripe->ways & UINT32_C(1) << w) == 0 || mine >= depth_of(stripe, w)) {
            continue;
        }
        if (best == XFER_MAX_WAYS || mine < stripe->rails[best].n_flying ||
            (mine == stripe->rails[best].n_flying &&
             route_of(stripe, w)->in_flight < route_of(stripe, best)->in_flight)) {
            best = w;
        }
    }
    return best;
}

static bool hand_out(xfer_stripe_t *stripe)
{
    bool has_given = false;
    chunk_t *chunk = next_idle(stripe);
    size_t w = next_rail(stripe);
    while (chunk != NULL && w < XFER_MAX_WAYS) {
        has_given |= give(stripe, chunk, w);
        chunk = next_idle(stripe);
        w = next_rail(stripe);
    }
    return has_given;
}

/* ---- what holds up the end ------------------------------------------------------------------- */

/* What so many bytes take on the fastest of the rails but w, as far as that is known. */
static uint64_t usual_ns(const xfer_stripe_t *stripe, size_t w, uint64_t bytes)
{
    uint64_t best = 0;
    for (size_t other = 0; other < stripe->request->agent->n_ways; other++) {
        const double rate = route_of(stripe, other)->bytes_per_second;
        uint64_t ns = stripe->rails[other].chunk_ns;
        if (ns == 0 && rate > 0) {
            ns = (uint64_t)((double)bytes / rate * (double)WEFT_NS_PER_SECOND);
        }
        if (other != w && (stripe->ways & UINT32_C(1) << other) != 0 && ns > 0 &&
            (best == 0 || ns < best)) {
            best = ns;
        }
    }
    return best;
}

static void recall(xfer_stripe_t *stripe, size_t w)
{
    weft_log_debug("peer=%s backend=%s is late: its part goes by another way",
                   stripe->request->peer->name, route_of(stripe, w)->way->backend->name);
    drop_rail(stripe, w);
    for (uint32_t i = 0; i < stripe->n_chunks; i++) {
        chunk_t *chunk = &stripe->chunks[i];
        if (chunk->state == CHUNK_FLYING && chunk->way == w) {
            chunk->state = CHUNK_LEAVING;
            route_of(stripe, w)->way->backend->cancel(&chunk->op);
        }
    }
}

/* Its rail has ended nothing for as long as another would not have taken, or was given up meanwhile. */
static bool is_late(const xfer_stripe_t *stripe, const chunk_t *chunk, uint64_t now_ns)
{
    const xfer_route_t *route = route_of(stripe, chunk->way);
    const uint64_t heard = route->heard_ns;
    const uint64_t since = chunk->posted_ns > heard ? chunk->posted_ns : heard;
    const uint64_t usual = usual_ns(stripe, chunk->way, chunk->op.bytes);
    const uint64_t least = stripe->request->agent->rail_late_ns;
    const uint64_t late = usual * LATE_FACTOR > least ? usual * LATE_FACTOR : least;
    const bool is_given_up = route->is_doubtful && route->doubted_until_ns > since + DOUBT_NS;
    return is_given_up || (now_ns > since && now_ns - since > late);
}

/* Once nothing is left to hand out, and while there is another rail. */
static bool recall_late(xfer_stripe_t *stripe, uint64_t now_ns)
{
    if (!is_several(stripe->ways) || next_idle(stripe) != NULL) {
        return false;
    }
    for (uint32_t i = 0; i < stripe->n_chunks; i++) {
        const chunk_t *chunk = &stripe->chunks[i];
        if (chunk->state == CHUNK_FLYING && is_late(stripe, chunk, now_ns)) {
            recall(stripe, chunk->way);
            return true;
        }
    }
    return false;
}

/* ---- the life of a posting ------------------------------------------------------------------- */

static void cancel_flying(xfer_stripe_t *stripe)
{
    stripe->is_cancelled = true;
    for (uint32_t i = 0; i <= stripe->n_chunks; i++) {
        chunk_t *chunk = i < stripe->n_chunks ? &stripe->chunks[i] : &stripe->note;
        if (chunk->state == CHUNK_FLYING) {
            route_of(stripe, chunk->way)->way->backend->cancel(&chunk->op);
        }
    }
}

static bool send_note(xfer_stripe_t *stripe)
{
    for (size_t w = 0; w < stripe->request->agent->n_ways; w++) {
        if ((stripe->ways & UINT32_C(1) << w) != 0 && give(stripe, &stripe->note, w)) {
            return true;
        }
    }
    return false;
}

static void finish(xfer_stripe_t *stripe)
{
    xfer_request_t *request = stripe->request;
    xfer_peer_t *peer = request->peer;
    xfer_backend_stats_t *stats = &route_of(stripe, request->last_way)->way->stats;
    if (stripe->status == WEFT_OK && stripe->was_alone && stripe->n_chunks > 1) {
        peer->rails_bytes_per_second = xfer_choose_smooth(
            peer->rails_bytes_per_second, request->op.bytes, weft_clock_ns() - request->started_ns);
    }
    stats->requests++;
    stats->failed += stripe->status < 0;
    request->is_striped = false;
    xfer_request_end(request, stripe->status);
}

/* False: it ended. */
static bool move(xfer_stripe_t *stripe, uint64_t now_ns, bool *has_moved)
{
    if (atomic_load(&stripe->request->peer->is_forgotten) || stripe->request->is_cancelled) {
        set_status(stripe, WEFT_ERR_CANCELLED);
    }
    if (stripe->status < 0) {
        if (!stripe->is_cancelled) {
            cancel_flying(stripe);
        }
        return stripe->n_flying > 0;
    }
    if (stripe->n_done < stripe->n_chunks) {
        *has_moved |= hand_out(stripe);
        *has_moved |= recall_late(stripe, now_ns);
    } else if (stripe->note.state == CHUNK_IDLE) {
        *has_moved |= send_note(stripe);
    }
    return stripe->n_done < stripe->n_chunks || stripe->note.state != CHUNK_DONE;
}

bool xfer_stripe_poll(xfer_agent_t *agent)
{
    bool has_moved = false;
    const uint64_t now = agent->stripes == NULL ? 0 : weft_clock_ns();
    xfer_stripe_t **at = &agent->stripes;
    while (*at != NULL) {
        xfer_stripe_t *stripe = *at;
        has_moved |= stripe->has_news;
        stripe->has_news = false;
        if (move(stripe, now, &has_moved) || stripe->n_flying > 0) {
            at = &stripe->next;
        } else {
            *at = stripe->next;
            finish(stripe);
            has_moved = true;
        }
    }
    return has_moved;
}

bool xfer_stripe_start(xfer_request_t *request)
{
    xfer_stripe_t *stripe = request->stripe;
    const uint32_t ways = stripe == NULL ? 0 : usable_rails(request, weft_clock_ns());
    if (stripe == NULL || !is_worth(request, ways)) {
        return false;
    }
    stripe->ways = ways;
    stripe->status = WEFT_OK;
    stripe->is_cancelled = stripe->has_news = false;
    stripe->n_done = stripe->n_flying = 0;
    memset(stripe->rails, 0, sizeof(stripe->rails));
    for (uint32_t i = 0; i < stripe->n_chunks; i++) {
        stripe->chunks[i].state = CHUNK_IDLE;
    }
    stripe->note.state = stripe->note.op.notification == NULL ? CHUNK_DONE : CHUNK_IDLE;
    stripe->was_alone = is_alone(request, ways);
    request->is_striped = true;
    request->op.resumed = 0;
    stripe->next = request->agent->stripes;
    request->agent->stripes = stripe;
    (void)hand_out(stripe);
    stripe->has_news = true; /* its end, too, is for poll */
    return true;
}

void xfer_stripe_cancel(xfer_request_t *request)
{
    request->stripe->has_news = true; /* is_cancelled says the rest */
}

int xfer_stripe_sleep_ms(const xfer_agent_t *agent, int most_ms)
{
    const bool is_longer = most_ms < 0 || most_ms > WATCH_MS;
    return agent->stripes != NULL && is_longer ? WATCH_MS : most_ms;
}
