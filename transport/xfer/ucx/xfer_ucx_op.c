/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>

#include "transport/xfer/ucx/xfer_ucx_priv.h"

/*
 * An op goes through stages. One begins when all requests of the one before have ended, so the guard
 * is read before the data and after them, and the notification leaves behind both.
 */
typedef struct stage {
    /* Gives requests to UCX; false: not all, there is no room now. */
    bool (*issue)(ucx_link_t *link, xfer_op_t *op);
    /* All have ended well: is the result good? May be NULL. */
    weft_status_t (*check)(const xfer_op_t *op);
} stage_t;

/* ---- ordered lists --------------------------------------------------------------------------- */

static void insert_op(ucx_ops_t *ops, xfer_op_t *op)
{
    xfer_op_t *after = ops->last;
    while (after != NULL && after->priority > op->priority) {
        after = after->prev;
    }
    op->prev = after;
    op->next = after != NULL ? after->next : ops->first;
    *(op->prev != NULL ? &op->prev->next : &ops->first) = op;
    *(op->next != NULL ? &op->next->prev : &ops->last) = op;
    ops->n++;
}

static void remove_op(ucx_ops_t *ops, xfer_op_t *op)
{
    *(op->prev != NULL ? &op->prev->next : &ops->first) = op->next;
    *(op->next != NULL ? &op->next->prev : &ops->last) = op->prev;
    op->prev = NULL;
    op->next = NULL;
    ops->n--;
}

/* ---- ends of requests ------------------------------------------------------------------------ */

static weft_status_t status_of(ucs_status_t status)
{
    switch (status) {
    case UCS_OK:
        return WEFT_OK;
    case UCS_ERR_NO_MEMORY:
        return WEFT_ERR_NO_MEMORY;
    case UCS_ERR_UNSUPPORTED:
    case UCS_ERR_INVALID_PARAM:
        return WEFT_ERR_UNSUPPORTED;
    case UCS_ERR_CANCELED:
        return WEFT_ERR_CANCELLED;
    default:
        return WEFT_ERR_PEER_GONE;
    }
}

static bool has_outcome(const xfer_op_t *op)
{
    return op->words[UCX_OP_OUTCOME] != 0;
}

static weft_status_t outcome_of(const xfer_op_t *op)
{
    return (weft_status_t)(int64_t)op->words[UCX_OP_OUTCOME];
}

/* The first reason stays. */
static void set_outcome(xfer_op_t *op, weft_status_t status)
{
    if (status < 0 && !has_outcome(op)) {
        op->words[UCX_OP_OUTCOME] = (uint64_t)(int64_t)status;
    }
}

static void note_status(xfer_op_t *op, ucs_status_t status)
{
    const weft_status_t result = status_of(status);
    if (result == WEFT_ERR_PEER_GONE) {
        xfer_ucx_link_lose((ucx_link_t *)op->link, status);
    }
    set_outcome(op, result);
}

void xfer_ucx_op_ended(xfer_op_t *op, ucs_status_t status)
{
    assert(op->words[UCX_OP_PENDING] > 0);
    op->words[UCX_OP_PENDING]--;
    note_status(op, status);
    ((ucx_link_t *)op->link)->is_dirty = true;
}

static void end_request(xfer_op_t *op, void *request, ucs_status_t status, unsigned credits)
{
    ucx_link_t *link = (ucx_link_t *)op->link;
    link->credits += credits;
    ucx_port_of(link)->ucx->ucp_request_free(request);
    xfer_ucx_op_ended(op, status);
}

/* UCX does not say how large the slice was that it ended, so each class has its own callback. */
static void on_small_slice(void *request, ucs_status_t status, void *op)
{
    end_request(op, request, status, 1);
}

static void on_middle_slice(void *request, ucs_status_t status, void *op)
{
    end_request(op, request, status, 8);
}

static void on_large_slice(void *request, ucs_status_t status, void *op)
{
    end_request(op, request, status, 64);
}

typedef struct slice_class {
    uint64_t bytes; /* up to so many */
    unsigned credits;
    ucp_send_nbx_callback_t on_end;
} slice_class_t;

static const slice_class_t slice_classes[] = {
    {4 * 1024, 1, on_small_slice},
    {32 * 1024, 8, on_middle_slice},
    {UCX_SLICE_BYTES, 64, on_large_slice},
};

static const slice_class_t *class_of(uint64_t bytes)
{
    const slice_class_t *class = slice_classes;
    while (bytes > class->bytes) {
        class ++;
    }
    return class;
}

static void on_free_request(void *request, ucs_status_t status, void *op)
{
    end_request(op, request, status, 0);
}

bool xfer_ucx_op_note_request(xfer_op_t *op, ucs_status_ptr_t request)
{
    if (UCS_PTR_IS_PTR(request)) {
        op->words[UCX_OP_PENDING]++;
        return true;
    }
    note_status(op, UCS_PTR_STATUS(request));
    return false;
}

/* ---- stages ---------------------------------------------------------------------------------- */

static bool issue_guard(ucx_link_t *link, xfer_op_t *op)
{
    const ucp_request_param_t params = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .cb.send = on_free_request,
        .user_data = op,
    };
    if (op->has_guard) {
        xfer_ucx_op_note_request(op, ucx_port_of(link)->ucx->ucp_get_nbx(
                                         link->endpoint, &op->words[UCX_OP_WORD], sizeof(uint64_t),
                                         op->guard.addr, op->guard_handle, &params));
    }
    return true;
}

static weft_status_t check_guard(const xfer_op_t *op)
{
    const bool is_good = !op->has_guard || op->words[UCX_OP_WORD] == op->guard.expected;
    return is_good ? WEFT_OK : WEFT_ERR_STALE;
}

static ucs_status_ptr_t issue_slice(ucx_link_t *link, xfer_op_t *op, const xfer_extent_t *extent,
                                    uint64_t bytes)
{
    const ucx_functions_t *ucx = ucx_port_of(link)->ucx;
    void *local = (void *)(uintptr_t)(extent->local + op->offset);
    const uint64_t peer = extent->peer + op->offset;
    const ucp_rkey_h key = op->peer_handles[extent->peer_region];
    const ucp_request_param_t params = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                        UCP_OP_ATTR_FIELD_MEMH | UCP_OP_ATTR_FLAG_MULTI_SEND,
        .cb.send = class_of(bytes)->on_end,
        .user_data = op,
        .memh = op->local_handles[extent->local_region],
    };

    if (op->direction == XFER_READ) {
        return ucx->ucp_get_nbx(link->endpoint, local, bytes, peer, key, &params);
    }
    return ucx->ucp_put_nbx(link->endpoint, local, bytes, peer, key, &params);
}

static void advance(xfer_op_t *op, const xfer_extent_t *extent, uint64_t bytes)
{
    op->offset += bytes;
    if (op->offset == extent->bytes) {
        op->offset = 0;
        op->position++;
    }
}

static bool issue_data(ucx_link_t *link, xfer_op_t *op)
{
    while (op->position < op->n_extents && !has_outcome(op)) {
        const xfer_extent_t *extent = &op->extents[op->position];
        const uint64_t left = extent->bytes - op->offset;
        const uint64_t bytes = left < UCX_SLICE_BYTES ? left : UCX_SLICE_BYTES;
        const unsigned cost = class_of(bytes)->credits;

        /* Whoever comes later in the order must not take the credits that this one waits for. */
        link->is_full = link->is_full || link->credits < cost;
        if (link->is_full) {
            return false;
        }
        if (xfer_ucx_op_note_request(op, issue_slice(link, op, extent, bytes))) {
            link->credits -= cost;
        }
        advance(op, extent, bytes);
    }
    return true;
}

/* A put ends when its memory can be used again; the flush when the data are there. */
static bool issue_flush(ucx_link_t *link, xfer_op_t *op)
{
    const ucp_request_param_t params = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .cb.send = on_free_request,
        .user_data = op,
    };
    if (op->direction == XFER_WRITE && op->n_extents > 0) {
        xfer_ucx_op_note_request(op,
                                 ucx_port_of(link)->ucx->ucp_ep_flush_nbx(link->endpoint, &params));
    }
    return true;
}

/* Data came, or are known to be there. */
static weft_status_t note_answer(const xfer_op_t *op)
{
    ucx_link_t *link = (ucx_link_t *)op->link;
    const xfer_port_config_t *config = &link->base.port->config;

    if (op->n_extents > 0 && !link->is_up) {
        link->is_up = true;
        config->on_link_up(config->user, &link->base);
    }
    return WEFT_OK;
}

static bool issue_notification(ucx_link_t *link, xfer_op_t *op)
{
    return op->notification == NULL || xfer_ucx_send_notification(link, op);
}

static const stage_t stages[] = {
    {issue_guard, check_guard}, {issue_data, NULL},         {issue_flush, note_answer},
    {issue_guard, check_guard}, {issue_notification, NULL},
};

/* ---- running --------------------------------------------------------------------------------- */

/* The stage's requests have ended: to the next. */
static void finish_stage(xfer_op_t *op)
{
    const stage_t *stage = &stages[op->words[UCX_OP_STAGE]];
    if (stage->check != NULL) {
        set_outcome(op, stage->check(op));
    }
    op->words[UCX_OP_STAGE]++;
    op->words[UCX_OP_ISSUED] = 0;
}

/* As far as it goes now. True: the op has come to its end. */
static bool run_op(ucx_link_t *link, xfer_op_t *op)
{
    while (!has_outcome(op) && op->words[UCX_OP_STAGE] < WEFT_ARRAY_LEN(stages)) {
        if (op->words[UCX_OP_ISSUED] == 0) {
            op->words[UCX_OP_ISSUED] = stages[op->words[UCX_OP_STAGE]].issue(link, op);
        }
        if (has_outcome(op)) {
            break;
        }
        if (op->words[UCX_OP_ISSUED] == 0 || op->words[UCX_OP_PENDING] > 0) {
            return false;
        }
        finish_stage(op);
    }
    return op->words[UCX_OP_PENDING] == 0;
}

static bool may_begin(const ucx_link_t *link)
{
    const xfer_op_t *first = link->waiting.first;
    const xfer_op_t *last = link->running.last;
    return first != NULL && (link->running.n < UCX_RUNNING_MAX || first->priority < last->priority);
}

static void begin_op(ucx_link_t *link, xfer_op_t *op)
{
    remove_op(&link->waiting, op);
    op->words[UCX_OP_BEGUN] = 1;
    insert_op(&link->running, op);
}

static void begin_ops(ucx_link_t *link)
{
    while (may_begin(link)) {
        begin_op(link, link->waiting.first);
    }
}

static void end_op(ucx_ops_t *ops, xfer_op_t *op)
{
    remove_op(ops, op);
    xfer_op_end(op, outcome_of(op));
}

static void run_ops(ucx_link_t *link)
{
    xfer_op_t *next;

    link->is_full = false;
    begin_ops(link);
    for (xfer_op_t *op = link->running.first; op != NULL; op = next) {
        const bool is_over = run_op(link, op);
        next = op->next;
        if (is_over) {
            /* From within, ops are posted at most, and those wait. */
            end_op(&link->running, op);
        }
    }
    if (may_begin(link)) {
        link->is_dirty = true;
    }
}

static void fail_ops(ucx_ops_t *ops, weft_status_t status)
{
    xfer_op_t *next;
    for (xfer_op_t *op = ops->first; op != NULL; op = next) {
        next = op->next;
        op->words[UCX_OP_OUTCOME] = (uint64_t)(int64_t)status;
        if (op->words[UCX_OP_PENDING] == 0) {
            end_op(ops, op);
        }
    }
}

void xfer_ucx_link_end(ucx_link_t *link, weft_status_t status)
{
    while (link->running.first != NULL) {
        link->running.first->words[UCX_OP_OUTCOME] = (uint64_t)(int64_t)status;
        end_op(&link->running, link->running.first);
    }
    while (link->waiting.first != NULL) {
        link->waiting.first->words[UCX_OP_OUTCOME] = (uint64_t)(int64_t)status;
        end_op(&link->waiting, link->waiting.first);
    }
}

static void run_lost_link(ucx_link_t *link)
{
    xfer_port_t *port = link->base.port;

    xfer_ucx_link_close(link, true);
    fail_ops(&link->running, WEFT_ERR_PEER_GONE);
    fail_ops(&link->waiting, WEFT_ERR_PEER_GONE);
    if (link->running.n == 0 && !link->is_lost_told) {
        link->is_lost_told = true;
        port->config.on_link_lost(port->config.user, &link->base);
    }
}

bool xfer_ucx_link_run(ucx_link_t *link)
{
    if (!link->is_dirty) {
        return false;
    }
    link->is_dirty = false;
    if (!link->is_lost) {
        run_ops(link);
    }
    if (link->is_lost) {
        run_lost_link(link);
    }
    return true;
}

/* ---- the backend's functions ----------------------------------------------------------------- */

void xfer_ucx_post(xfer_link_t *base, xfer_op_t *op)
{
    ucx_link_t *link = (ucx_link_t *)base;

    op->link = base;
    op->position = 0;
    op->offset = 0;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(op->words); i++) {
        op->words[i] = 0;
    }
    insert_op(&link->waiting, op);
    link->is_dirty = true;
}

/* UCX cannot take a get back; the op issues no more, and ends when what is under way has ended. */
void xfer_ucx_cancel(xfer_op_t *op)
{
    ucx_link_t *link = (ucx_link_t *)op->link;
    set_outcome(op, WEFT_ERR_CANCELLED);
    if (op->words[UCX_OP_BEGUN] == 0) {
        begin_op(link, op);
    }
    link->is_dirty = true;
}
