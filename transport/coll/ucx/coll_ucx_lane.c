/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/coll/ucx/coll_ucx_priv.h"

#define WEFT_LOG_MODULE "coll.ucx"
#include "base/log.h"

/* Looks in vain, then for how long the processor is offered to others between looks, then sleep. */
#define SPINS    16
#define YIELD_NS WEFT_NS_PER_MS
#define SLEEP_MS 100 /* at a time: then coll_abort is noticed */

/*
 * A peer that closed its end may just be done with the group. It is a loss if it is waited for, or if
 * so long after it any other is: that one is likely to have failed for the first one's sake.
 */
#define GRACE_NS WEFT_NS_PER_SECOND

/* How long a lane that closes lets what was sent last go out, and gets memory back from UCX. */
#define CLOSE_NS   (200 * WEFT_NS_PER_MS)
#define ABANDON_NS (2 * WEFT_NS_PER_SECOND) /* nothing of it waits for a peer */

/* ---- endpoints ------------------------------------------------------------------------------- */

static void on_endpoint_error(void *arg, ucp_ep_h endpoint, ucs_status_t status)
{
    coll_ucx_end_t *end = arg;
    coll_ucx_lane_t *lane = end->lane;

    (void)endpoint;
    weft_log_debug("rank=%u closed: %s", end->rank, lane->coll->ucx->ucs_status_string(status));
    end->is_lost = true;
    if (lane->lost == COLL_NO_RANK) {
        lane->lost = end->rank;
    }
}

static weft_status_t reach(coll_ucx_end_t *end, const void *address, weft_diag_t *diag)
{
    const ucx_functions_t *ucx = end->lane->coll->ucx;
    const ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = address,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {.cb = on_endpoint_error, .arg = end},
    };
    const ucs_status_t status = ucx->ucp_ep_create(end->lane->worker, &params, &end->endpoint);

    if (status == UCS_OK) {
        return WEFT_OK;
    }
    end->endpoint = NULL;
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "ucx: rank %u cannot be reached: %s", end->rank,
                     ucx->ucs_status_string(status));
}

static void on_closed(void *handle, ucs_status_t status, void *user)
{
    coll_ucx_lane_t *lane = user;
    (void)status;
    lane->closing--;
    lane->coll->ucx->ucp_request_free(handle);
}

/* By force UCX gives up what is pending; else what was sent still goes out. */
static void disconnect(coll_ucx_lane_t *lane, bool by_force)
{
    const ucx_functions_t *ucx = lane->coll->ucx;

    for (uint32_t rank = 0; lane->ends != NULL && rank < lane->coll->base.config.size; rank++) {
        coll_ucx_end_t *end = &lane->ends[rank];
        const ucp_request_param_t params = {
            .op_attr_mask =
                UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
            .flags = by_force || end->is_lost ? UCP_EP_CLOSE_FLAG_FORCE : 0,
            .cb.send = on_closed,
            .user_data = lane,
        };
        if (end->endpoint != NULL &&
            UCS_PTR_IS_PTR(ucx->ucp_ep_close_nbx(end->endpoint, &params))) {
            lane->closing++;
        }
        end->endpoint = NULL;
    }
}

/* ---- messages -------------------------------------------------------------------------------- */

/* Who is to blame when rank does not come. */
static uint32_t culprit(const coll_ucx_lane_t *lane, uint32_t rank)
{
    return lane->lost != COLL_NO_RANK ? lane->lost : rank;
}

/* The first to say so logs it. */
static weft_status_t lose(coll_ucx_lane_t *lane, weft_status_t status, uint32_t rank)
{
    coll_t *coll = &lane->coll->base;

    if (!coll_has_failed(coll)) {
        weft_log_warn("rank=%u lost: %s", rank, weft_strerror(status));
    }
    return coll_fail(coll, status, rank);
}

static void note_end(coll_ucx_request_t *request, ucs_status_t status)
{
    coll_ucx_lane_t *lane = request->lane;
    coll_t *coll = &lane->coll->base;

    if (status == UCS_OK || status == UCS_ERR_CANCELED) {
        return; /* cancelled: the group has failed already, or the lane is being closed */
    }
    if (status == UCS_ERR_MESSAGE_TRUNCATED) {
        weft_log_error("rank=%u sent more than the %zu bytes that were expected", request->peer,
                       request->bytes);
        (void)coll_fail(coll, WEFT_ERR_INVALID, request->peer);
        return;
    }
    weft_log_debug("rank=%u %s failed: %s", request->peer, request->is_receive ? "receive" : "send",
                   lane->coll->ucx->ucs_status_string(status));
    (void)lose(lane, WEFT_ERR_PEER_GONE, culprit(lane, request->peer));
}

static void note_received(coll_ucx_request_t *request, ucs_status_t status, size_t bytes)
{
    if (status == UCS_OK && bytes != request->bytes && !request->may_be_shorter) {
        weft_log_error("rank=%u sent %zu bytes, %zu were expected", request->peer, bytes,
                       request->bytes);
        (void)coll_fail(&request->lane->coll->base, WEFT_ERR_INVALID, request->peer);
    }
    note_end(request, status);
    request->bytes = bytes;
}

static void on_sent(void *handle, ucs_status_t status, void *user)
{
    coll_ucx_request_t *request = user;

    request->handle = NULL;
    request->lane->sending--;
    request->lane->coll->ucx->ucp_request_free(handle);
    note_end(request, status);
}

static void on_received(void *handle, ucs_status_t status, const ucp_tag_recv_info_t *info,
                        void *user)
{
    coll_ucx_request_t *request = user;

    request->handle = NULL;
    request->lane->coll->ucx->ucp_request_free(handle);
    note_received(request, status, info->length);
}

void coll_ucx_send(coll_ucx_request_t *request, uint32_t to, const void *data, size_t bytes)
{
    coll_ucx_lane_t *lane = request->lane;
    const ucp_request_param_t params = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                        UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.send = on_sent,
        .user_data = request,
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };

    request->peer = to;
    request->is_receive = false;
    request->bytes = bytes;
    coll_ucx_lock(lane);
    if (lane->ends[to].endpoint == NULL) { /* given up, with the group */
        coll_ucx_unlock(lane);
        return;
    }
    const ucs_status_ptr_t handle = lane->coll->ucx->ucp_tag_send_nbx(
        lane->ends[to].endpoint, data, bytes, lane->coll->base.config.rank, &params);
    if (UCS_PTR_IS_PTR(handle)) {
        request->handle = handle;
        lane->sending++;
    } else {
        note_end(request, UCS_PTR_STATUS(handle));
    }
    coll_ucx_unlock(lane);
}

void coll_ucx_receive(coll_ucx_request_t *request, uint32_t from, void *out, size_t bytes)
{
    coll_ucx_lane_t *lane = request->lane;
    ucp_tag_recv_info_t info = {0};
    const ucp_request_param_t params = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                        UCP_OP_ATTR_FIELD_RECV_INFO | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.recv = on_received,
        .user_data = request,
        .recv_info.tag_info = &info,
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };

    request->peer = from;
    request->is_receive = true;
    request->bytes = bytes;
    coll_ucx_lock(lane);
    const ucs_status_ptr_t handle =
        lane->coll->ucx->ucp_tag_recv_nbx(lane->worker, out, bytes, from, UINT64_MAX, &params);
    if (UCS_PTR_IS_PTR(handle)) {
        request->handle = handle;
    } else {
        note_received(request, UCS_PTR_STATUS(handle), info.length);
    }
    coll_ucx_unlock(lane);
}

/* ---- giving up ------------------------------------------------------------------------------- */

static bool has_pending(const coll_ucx_lane_t *lane)
{
    for (uint32_t i = 0; i < lane->n_requests; i++) {
        if (lane->requests[i].handle != NULL) {
            return true;
        }
    }
    return false;
}

static void cancel_receives(coll_ucx_lane_t *lane)
{
    for (uint32_t i = 0; i < lane->n_requests; i++) {
        if (lane->requests[i].handle != NULL && lane->requests[i].is_receive) {
            lane->coll->ucx->ucp_request_cancel(lane->worker, lane->requests[i].handle);
        }
    }
}

/* Until nothing is pending; a receive whose message broke off in its midst does not end before its lane. */
static void drain(coll_ucx_lane_t *lane, uint64_t limit_ns)
{
    const uint64_t deadline = weft_clock_ns() + limit_ns;

    while ((lane->closing > 0 || lane->sending > 0 || has_pending(lane)) &&
           weft_clock_ns() < deadline) {
        if (lane->coll->ucx->ucp_worker_progress(lane->worker) == 0) {
            if (lane->closing == 0 && lane->sending == 0) {
                return; /* no endpoint is left that could write */
            }
            sched_yield();
        }
    }
}

/* The group has failed: the caller's memory is to be touched no more. */
static void abandon(coll_ucx_lane_t *lane)
{
    coll_ucx_lock(lane);
    cancel_receives(lane);
    disconnect(lane, true);
    drain(lane, ABANDON_NS);
    coll_ucx_unlock(lane);
}

/* ---- waiting --------------------------------------------------------------------------------- */

typedef struct patience {
    uint64_t limit_ns;
    uint64_t since; /* when it was first looked in vain for a while; 0: not yet */
    unsigned idle;  /* looks in vain since something came */
} patience_t;

/* Something has come, or SLEEP_MS are over. */
static void sleep_until_event(coll_ucx_lane_t *lane, uint64_t left_ns)
{
    struct pollfd event = {.fd = lane->event_fd, .events = POLLIN};
    const uint64_t left_ms = left_ns / WEFT_NS_PER_MS + 1;

    coll_ucx_lock(lane);
    const bool is_armed = lane->coll->ucx->ucp_worker_arm(lane->worker) == UCS_OK;
    coll_ucx_unlock(lane);
    if (is_armed) {
        (void)poll(&event, 1, left_ms < SLEEP_MS ? (int)left_ms : SLEEP_MS);
    }
}

/* Nothing came. WEFT_OK: look again. */
static weft_status_t be_patient(coll_ucx_lane_t *lane, patience_t *patience, uint32_t peer)
{
    coll_t *coll = &lane->coll->base;

    if (coll_has_failed(coll)) {
        return coll_status(coll, NULL);
    }
    coll_ucx_lock(lane);
    const bool is_lost = lane->ends[peer].is_lost;
    const uint32_t lost = lane->lost;
    coll_ucx_unlock(lane);
    if (is_lost) {
        return lose(lane, WEFT_ERR_PEER_GONE, lost);
    }
    if (++patience->idle < SPINS) {
        weft_cpu_relax();
        return WEFT_OK;
    }
    const uint64_t now = weft_clock_ns();
    if (patience->since == 0) {
        patience->since = now;
    }
    const uint64_t waited = now - patience->since;
    if (waited >= patience->limit_ns) {
        return WEFT_ERR_TIMEOUT;
    }
    if (lost != COLL_NO_RANK && waited > GRACE_NS) {
        return lose(lane, WEFT_ERR_PEER_GONE, lost);
    }
    if (waited < YIELD_NS) {
        sched_yield();
    } else {
        sleep_until_event(lane, patience->limit_ns - waited);
    }
    return WEFT_OK;
}

static weft_status_t wait_for_one(coll_ucx_lane_t *lane, const coll_ucx_request_t *request,
                                  patience_t *patience)
{
    for (;;) {
        coll_ucx_lock(lane);
        const bool is_pending = request->handle != NULL;
        const bool was_something =
            is_pending && lane->coll->ucx->ucp_worker_progress(lane->worker) != 0;
        coll_ucx_unlock(lane);
        if (!is_pending) {
            return WEFT_OK;
        }
        if (was_something) {
            patience->idle = 0;
            continue;
        }
        const weft_status_t status = be_patient(lane, patience, request->peer);
        if (status < 0) {
            return status;
        }
    }
}

weft_status_t coll_ucx_wait_for(coll_ucx_lane_t *lane, const coll_ucx_request_t *requests,
                                uint32_t n, uint64_t limit_ns)
{
    patience_t patience = {.limit_ns = limit_ns};
    weft_status_t status = WEFT_OK;

    for (uint32_t i = 0; i < n && status >= 0; i++) {
        status = wait_for_one(lane, &requests[i], &patience);
    }
    if (status >= 0 && coll_has_failed(&lane->coll->base)) {
        status = coll_status(&lane->coll->base, NULL); /* a request ended badly */
    }
    if (status < 0 && coll_has_failed(&lane->coll->base)) {
        abandon(lane);
    }
    return status;
}

/* Who is to blame for the first of them that is pending. */
static uint32_t find_late(coll_ucx_lane_t *lane, const coll_ucx_request_t *requests, uint32_t n)
{
    uint32_t i = 0;

    coll_ucx_lock(lane);
    while (i + 1 < n && requests[i].handle == NULL) {
        i++;
    }
    const uint32_t rank = culprit(lane, requests[i].peer);
    coll_ucx_unlock(lane);
    return rank;
}

bool coll_ucx_wait(coll_ucx_lane_t *lane, const coll_ucx_request_t *requests, uint32_t n)
{
    const weft_status_t status =
        coll_ucx_wait_for(lane, requests, n, lane->coll->base.config.timeout_ns);

    if (status == WEFT_ERR_TIMEOUT) { /* whether or not the group has failed meanwhile */
        (void)lose(lane, WEFT_ERR_TIMEOUT, find_late(lane, requests, n));
        abandon(lane);
    }
    return status >= 0;
}

/* ---- open and close -------------------------------------------------------------------------- */

static weft_status_t open_worker(coll_ucx_lane_t *lane, weft_diag_t *diag)
{
    const ucx_functions_t *ucx = lane->coll->ucx;
    const ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SERIALIZED,
    };
    ucs_status_t result = ucx->ucp_worker_create(lane->coll->context, &params, &lane->worker);

    if (result != UCS_OK) {
        lane->worker = NULL;
    } else {
        result = ucx->ucp_worker_get_efd(lane->worker, &lane->event_fd);
    }
    return result == UCS_OK ? WEFT_OK
                            : weft_diag(diag, WEFT_ERR_UNSUPPORTED, "ucx: no worker: %s",
                                        ucx->ucs_status_string(result));
}

static weft_status_t create_lane(coll_ucx_t *coll, uint32_t n_requests, weft_diag_t *diag,
                                 coll_ucx_lane_t **lane_out)
{
    const uint32_t size = coll->base.config.size;
    coll_ucx_lane_t *lane = weft_zalloc(sizeof(*lane), "coll.ucx_lane");

    if (lane == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *lane_out = lane; /* also half-built: the caller closes it */
    lane->coll = coll;
    lane->lost = COLL_NO_RANK;
    lane->n_requests = n_requests;
    lane->ends = weft_calloc(size, sizeof(*lane->ends), "coll.ucx_ends");
    lane->requests = weft_calloc(n_requests, sizeof(*lane->requests), "coll.ucx_requests");
    if (lane->ends == NULL || lane->requests == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t rank = 0; rank < size; rank++) {
        lane->ends[rank] = (coll_ucx_end_t){.lane = lane, .rank = rank};
    }
    for (uint32_t i = 0; i < n_requests; i++) {
        lane->requests[i].lane = lane;
    }
    return open_worker(lane, diag);
}

/* An address of no bytes: its rank has failed. */
static weft_status_t exchange_lengths(const coll_exchange_t *exchange, uint32_t size, uint64_t mine,
                                      uint64_t *longest_out, weft_diag_t *diag)
{
    uint64_t *lengths = weft_calloc(size, sizeof(*lengths), "coll.ucx_lengths");

    if (lengths == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = exchange->all_gather(exchange->user, &mine, sizeof(mine), lengths, diag);
    *longest_out = 0;
    for (uint32_t rank = 0; status >= 0 && rank < size; rank++) {
        *longest_out = lengths[rank] > *longest_out ? lengths[rank] : *longest_out;
        if (lengths[rank] == 0) {
            status = weft_diag(diag, WEFT_ERR_PEER_GONE, "ucx: rank %u has no address", rank);
        }
    }
    weft_free(lengths);
    return status;
}

static weft_status_t connect_all(coll_ucx_lane_t *lane, const uint8_t *addresses, size_t stride,
                                 bool is_star, weft_diag_t *diag)
{
    const coll_config_t *config = &lane->coll->base.config;
    weft_status_t status = WEFT_OK;

    for (uint32_t rank = 0; rank < config->size && status >= 0; rank++) {
        if (rank != config->rank && (!is_star || rank == 0 || config->rank == 0)) {
            status = reach(&lane->ends[rank], addresses + rank * stride, diag);
        }
    }
    return status;
}

static weft_status_t exchange_addresses(coll_ucx_lane_t *lane, const coll_exchange_t *exchange,
                                        const void *mine, size_t bytes, uint64_t longest,
                                        bool is_star, weft_diag_t *diag)
{
    const uint32_t size = lane->coll->base.config.size;
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    uint8_t *padded = weft_zalloc(longest, "coll.ucx_address");
    uint8_t *all = weft_calloc(size, longest, "coll.ucx_addresses");
    if (padded != NULL && all != NULL) {
        memcpy(padded, mine, bytes);
        status = exchange->all_gather(exchange->user, padded, longest, all, diag);
    }
    if (status >= 0) {
        status = connect_all(lane, all, longest, is_star, diag);
    }
    weft_free(padded);
    weft_free(all);
    return status;
}

weft_status_t coll_ucx_lane_open(coll_ucx_t *coll, const coll_exchange_t *exchange,
                                 uint32_t n_requests, bool is_star, bool has_pump,
                                 weft_diag_t *diag, coll_ucx_lane_t **lane_out)
{
    coll_ucx_lane_t *lane = NULL;
    ucp_worker_attr_t attributes = {.field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS};
    uint64_t longest;

    weft_status_t status = create_lane(coll, n_requests, diag, &lane);
    if (status >= 0 && has_pump) {
        status = coll_ucx_pump_start(lane);
    }
    if (status >= 0 && coll->ucx->ucp_worker_query(lane->worker, &attributes) != UCS_OK) {
        status = WEFT_ERR_NO_MEMORY;
    }
    /* Also after a failure: the others are waiting in the exchange. */
    const size_t bytes = status < 0 ? 0 : attributes.address_length;
    const weft_status_t met = exchange_lengths(exchange, coll->base.config.size, bytes, &longest,
                                               status < 0 ? NULL : diag);
    if (status >= 0) {
        status = met < 0 ? met
                         : exchange_addresses(lane, exchange, attributes.address, bytes, longest,
                                              is_star, diag);
        coll->ucx->ucp_worker_release_address(lane->worker, attributes.address);
    }
    if (status < 0) {
        coll_ucx_lane_close(lane);
        return status;
    }
    *lane_out = lane;
    return WEFT_OK;
}

void coll_ucx_lane_close(coll_ucx_lane_t *lane)
{
    if (lane == NULL) {
        return;
    }
    coll_ucx_pump_stop(lane);
    if (lane->worker != NULL) {
        cancel_receives(lane);
        disconnect(lane, coll_has_failed(&lane->coll->base));
        drain(lane, CLOSE_NS);
        lane->coll->ucx->ucp_worker_destroy(lane->worker);
    }
    weft_free(lane->ends);
    weft_free(lane->requests);
    weft_free(lane);
}
