/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations of a link, cut in slices. An operation is in one of the link's lists by what it waits
 * for; the lowest priority number is asked for first, those of one priority by turns. A slice says by
 * itself what it is, so after a cut all that were on their way are simply asked for again.
 */
#include <assert.h>

#include "transport/xfer/tcp/xfer_tcp_priv.h"

#define MAX_TRIES    4                     /* of one slice whose sum is wrong */
#define HALVES_BYTES ((uint64_t)256 << 10) /* not worth two slices */
/* So long a cancelled write is waited for before its connection is cut. */
#define CANCEL_LIMIT_NS WEFT_NS_PER_SECOND

static uint64_t *flying(xfer_op_t *op)
{
    return &op->words[XFER_TCP_OP_FLYING];
}

static weft_status_t fate(const xfer_op_t *op)
{
    return (weft_status_t)(int64_t)op->words[XFER_TCP_OP_STATUS];
}

static xfer_tcp_note_t *note_of(const xfer_op_t *op)
{
    return (void *)(uintptr_t)op->words[XFER_TCP_OP_NOTE];
}

static void take_out(xfer_tcp_link_t *link, xfer_op_t *op)
{
    xfer_tcp_ops_t *list = &link->ops[op->words[XFER_TCP_OP_PLACE]];
    *(op->prev != NULL ? &op->prev->next : &list->head) = op->next;
    *(op->next != NULL ? &op->next->prev : &list->tail) = op->prev;
}

/* Behind `before`; NULL: at the front. */
static void put_behind(xfer_tcp_link_t *link, xfer_op_t *op, xfer_tcp_place_t place,
                       xfer_op_t *before)
{
    xfer_tcp_ops_t *list = &link->ops[place];
    op->words[XFER_TCP_OP_PLACE] = place;
    op->prev = before;
    op->next = before != NULL ? before->next : list->head;
    *(op->prev != NULL ? &op->prev->next : &list->head) = op;
    *(op->next != NULL ? &op->next->prev : &list->tail) = op;
}

static void put_last(xfer_tcp_link_t *link, xfer_op_t *op, xfer_tcp_place_t place)
{
    put_behind(link, op, place, link->ops[place].tail);
}

static void put_by_priority(xfer_tcp_link_t *link, xfer_op_t *op)
{
    xfer_op_t *before = link->ops[XFER_TCP_ISSUING].tail;
    while (before != NULL && before->priority > op->priority) {
        before = before->prev;
    }
    put_behind(link, op, XFER_TCP_ISSUING, before);
}

/* op is in no list. */
static void end_now(xfer_tcp_link_t *link, xfer_op_t *op, weft_status_t status)
{
    if (note_of(op) != NULL && note_of(op)->op == NULL) {
        xfer_tcp_note_give(&link->notes, note_of(op));
    }
    op->words[XFER_TCP_OP_NOTE] = 0;
    xfer_op_end(op, status);
}

static void end_later(xfer_tcp_link_t *link, xfer_op_t *op, weft_status_t status)
{
    op->words[XFER_TCP_OP_STATUS] = (uint64_t)(int64_t)status;
    put_last(link, op, XFER_TCP_ENDED);
    xfer_tcp_link_dirty(link);
}

/* WEFT_PENDING: the GPU still takes what came. */
static weft_status_t landed(const xfer_tcp_link_t *link, const xfer_op_t *op)
{
    const uint64_t batch = op->words[XFER_TCP_OP_BATCH];
    return batch == 0 ? WEFT_OK : xfer_vram_state(xfer_tcp_link_port(link)->vram, batch);
}

/* Its data are there, or nothing of it is on its way any more. op is in no list. */
static void settle(xfer_tcp_link_t *link, xfer_op_t *op)
{
    xfer_tcp_note_t *note = note_of(op);
    const weft_status_t status = landed(link, op);
    if (status == WEFT_PENDING) {
        put_last(link, op, XFER_TCP_LANDING);
        return;
    }
    if (status < 0 && fate(op) == WEFT_OK) {
        op->words[XFER_TCP_OP_STATUS] = (uint64_t)(int64_t)status;
    }
    if (fate(op) != WEFT_OK || note == NULL) {
        end_now(link, op, fate(op));
        return;
    }
    note->op = op;
    xfer_tcp_note_queue(&link->notes, note);
    put_last(link, op, XFER_TCP_NOTING);
}

void xfer_tcp_ask_landed(xfer_tcp_link_t *link)
{
    xfer_op_t *last = link->ops[XFER_TCP_LANDING].tail; /* what comes back is put behind it */
    bool is_last = last == NULL;
    while (!is_last) {
        xfer_op_t *op = link->ops[XFER_TCP_LANDING].head;
        is_last = op == last || op == NULL;
        if (op != NULL) {
            take_out(link, op);
            settle(link, op);
        }
    }
    xfer_tcp_link_dirty(link); /* notifications may be due */
}

void xfer_tcp_ask_end_noted(xfer_tcp_link_t *link, xfer_op_t *op, weft_status_t status)
{
    take_out(link, op);
    op->words[XFER_TCP_OP_NOTE] = 0; /* it stays queued until it is confirmed */
    end_now(link, op, status);
}

void xfer_tcp_ask_end_due(xfer_tcp_link_t *link)
{
    xfer_op_t *last = link->ops[XFER_TCP_ENDED].tail; /* what is posted meanwhile: next time */
    bool is_last = last == NULL;
    while (!is_last) {
        xfer_op_t *op = link->ops[XFER_TCP_ENDED].head;
        is_last = op == last;
        take_out(link, op);
        end_now(link, op, fate(op));
    }
}

/* ---- posting --------------------------------------------------------------------------------- */

static weft_status_t open_stage(xfer_tcp_link_t *link, const xfer_op_t *op)
{
    const xfer_tcp_slice_t whole = {.op = (xfer_op_t *)(uintptr_t)op,
                                    .n_extents = op->n_extents > 0 ? 1 : 0};
    return xfer_tcp_slice_is_vram(&whole)
               ? xfer_tcp_stage_open(&link->stage, xfer_tcp_link_port(link)->vram)
               : WEFT_OK;
}

void xfer_tcp_ask_post(xfer_link_t *base, xfer_op_t *op)
{
    xfer_tcp_link_t *link = xfer_tcp_link_of(base);
    op->link = base;
    op->position = 0;
    op->offset = 0;
    op->resumed = 0;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(op->words); i++) {
        op->words[i] = 0;
    }
    if (link->state == XFER_TCP_GONE) {
        end_later(link, op, WEFT_ERR_PEER_GONE);
        return;
    }
    if (open_stage(link, op) < 0) {
        end_later(link, op, WEFT_ERR_NO_MEMORY);
        return;
    }
    if (op->notification != NULL) {
        xfer_tcp_note_t *note =
            op->notification_bytes > XFER_TCP_MAX_BODY
                ? NULL
                : xfer_tcp_note_take(&link->notes, op->notification, op->notification_bytes);
        if (note == NULL) {
            end_later(link, op, WEFT_ERR_NO_MEMORY);
            return;
        }
        op->words[XFER_TCP_OP_NOTE] = (uintptr_t)note;
    }
    xfer_tcp_link_begin(link);
    if (op->n_extents > 0 || op->has_guard) {
        put_by_priority(link, op);
    } else if (op->notification != NULL) {
        settle(link, op);
    } else {
        end_later(link, op, WEFT_OK);
    }
    xfer_tcp_link_dirty(link);
}

/* ---- slices ---------------------------------------------------------------------------------- */

/* The payload that is being received is not wanted in its slot any more. */
static void end_received(xfer_tcp_link_t *link)
{
    xfer_tcp_stage_release(&link->stage, link->received_slot);
    link->received_slot = 0;
}

/* slice has no op afterwards; its number may be given again. */
static void free_slice(xfer_tcp_link_t *link, xfer_tcp_slice_t *slice)
{
    link->n_due -= slice->state == XFER_TCP_DUE ? 1 : 0;
    link->n_cancels -= slice->has_to_cancel ? 1 : 0;
    link->n_flying--;
    xfer_tcp_stage_release(&link->stage, slice->slot);
    slice->slot = 0;
    slice->has_to_cancel = false;
    slice->state = XFER_TCP_FREE;
    slice->op = NULL;
}

/* A slice of a read that is not wanted any more: its answer goes to the scratch memory. */
static void orphan_slice(xfer_tcp_link_t *link, xfer_tcp_slice_t *slice)
{
    xfer_tcp_port_t *port = xfer_tcp_link_port(link);
    if (slice->state == XFER_TCP_DUE) {
        free_slice(link, slice);
        return;
    }
    slice->op = NULL;
    if (link->receiving == (int)(slice - link->slices)) {
        end_received(link);
        xfer_tcp_pieces_divert(&link->stream.receive, port->scratch, XFER_TCP_SCRATCH_BYTES);
    } else {
        slice->has_to_cancel = true;
        link->n_cancels++;
    }
}

/* Reads end at once. Of writes what is on its way has to be answered before. op is in no list. */
static void end_early(xfer_tcp_link_t *link, xfer_op_t *op, weft_status_t status)
{
    op->words[XFER_TCP_OP_STATUS] = (uint64_t)(int64_t)status;
    for (size_t i = 0; i < XFER_TCP_MAX_SLICES && *flying(op) > 0; i++) {
        xfer_tcp_slice_t *slice = &link->slices[i];
        if (slice->op == op && !slice->is_write) {
            orphan_slice(link, slice);
            --*flying(op);
        } else if (slice->op == op && slice->state == XFER_TCP_DUE) {
            free_slice(link, slice);
            --*flying(op);
        }
    }
    if (*flying(op) == 0) {
        settle(link, op);
        return;
    }
    put_last(link, op, XFER_TCP_WAITING);
    op->words[XFER_TCP_OP_LIMIT] = weft_clock_ns() + CANCEL_LIMIT_NS;
    xfer_tcp_wake_at(xfer_tcp_link_port(link), op->words[XFER_TCP_OP_LIMIT]);
}

void xfer_tcp_ask_cancel(xfer_op_t *op)
{
    xfer_tcp_link_t *link = xfer_tcp_link_of(op->link);
    const xfer_tcp_place_t place = (xfer_tcp_place_t)op->words[XFER_TCP_OP_PLACE];
    if (place == XFER_TCP_ENDED || fate(op) != WEFT_OK) {
        return;
    }
    take_out(link, op);
    if (place == XFER_TCP_NOTING) {
        xfer_tcp_note_withdraw(&link->notes, note_of(op));
        op->words[XFER_TCP_OP_NOTE] = 0;
    }
    end_early(link, op, WEFT_ERR_CANCELLED);
    xfer_tcp_link_dirty(link);
}

uint64_t xfer_tcp_ask_limit(const xfer_tcp_link_t *link)
{
    uint64_t limit = XFER_TCP_NEVER;
    for (const xfer_op_t *op = link->ops[XFER_TCP_WAITING].head; op != NULL; op = op->next) {
        if (op->words[XFER_TCP_OP_LIMIT] != 0 && op->words[XFER_TCP_OP_LIMIT] < limit) {
            limit = op->words[XFER_TCP_OP_LIMIT];
        }
    }
    return limit;
}

/* The most urgent of those to be asked for again. */
static xfer_tcp_slice_t *next_due(xfer_tcp_link_t *link)
{
    xfer_tcp_slice_t *best = NULL;
    for (size_t i = 0; i < XFER_TCP_MAX_SLICES && link->n_due > 0; i++) {
        xfer_tcp_slice_t *slice = &link->slices[i];
        if (slice->state == XFER_TCP_DUE && (best == NULL || slice->priority < best->priority)) {
            best = slice;
        }
    }
    return best;
}

/*
 * Less urgent slices do not count, so what is urgent need not wait until they are here. Asking begins
 * when a quarter of the window is free and goes on until it is full: fewer and larger sends.
 */
static bool has_window(const xfer_tcp_link_t *link, const xfer_op_t *op, bool is_first)
{
    const xfer_tcp_settings_t *settings = &xfer_tcp_link_port(link)->settings;
    uint64_t bytes = 0;
    for (size_t i = 0; i < XFER_TCP_MAX_SLICES && link->n_flying > 0; i++) {
        const xfer_tcp_slice_t *slice = &link->slices[i];
        bytes +=
            slice->state != XFER_TCP_FREE && slice->priority <= op->priority ? slice->bytes : 0;
    }
    return bytes < settings->window_bytes - (is_first ? settings->window_bytes / 4 : 0);
}

static xfer_tcp_slice_t *find_free(xfer_tcp_link_t *link)
{
    for (size_t i = 0; i < XFER_TCP_MAX_SLICES; i++) {
        if (link->slices[i].state == XFER_TCP_FREE) {
            return &link->slices[i];
        }
    }
    return NULL;
}

/*
 * Large slices, since the kernels at both ends do more at a time then; but two of an operation that has
 * few, so that one is summed while the other is on its way.
 */
static uint32_t most_of_slice(const xfer_tcp_link_t *link, const xfer_op_t *op)
{
    const uint32_t most = xfer_tcp_link_port(link)->settings.slice_bytes;
    const uint64_t half = op->bytes / 2 > HALVES_BYTES ? op->bytes / 2 : HALVES_BYTES;
    return half < most ? (uint32_t)half : most;
}

/* NULL: nothing is to be asked for now. */
static xfer_tcp_slice_t *next_new(xfer_tcp_link_t *link, bool is_first)
{
    xfer_op_t *op = link->ops[XFER_TCP_ISSUING].head;
    if (op == NULL || !has_window(link, op, is_first)) {
        return NULL;
    }
    xfer_tcp_slice_t *slice = find_free(link);
    if (slice == NULL) {
        return NULL;
    }
    xfer_tcp_slice_cut(op, most_of_slice(link, op), slice);
    slice->state = XFER_TCP_DUE;
    link->n_due++;
    link->n_flying++;
    ++*flying(op);
    take_out(link, op);
    if (op->position == op->n_extents) {
        put_last(link, op, XFER_TCP_WAITING);
    } else {
        put_by_priority(link, op); /* behind those of its priority: by turns */
    }
    return slice;
}

static bool fill_cancels(xfer_tcp_link_t *link)
{
    for (uint32_t i = 0; i < XFER_TCP_MAX_SLICES && link->n_cancels > 0; i++) {
        xfer_tcp_slice_t *slice = &link->slices[i];
        const xfer_tcp_frame_t frame = {.kind = XFER_TCP_CANCEL, .slice = i};
        if (slice->has_to_cancel) {
            if (!xfer_tcp_stream_has_room(&link->stream, sizeof(frame))) {
                return false;
            }
            xfer_tcp_stream_put_frame(&link->stream, frame, NULL);
            slice->has_to_cancel = false;
            link->n_cancels--;
        }
    }
    return true;
}

/* Behind a payload that has been sent. False: it is still being sent. */
static bool end_payload(xfer_tcp_link_t *link)
{
    if (link->sending < 0) {
        return true;
    }
    if (link->stream.send.left > 0) {
        return false;
    }
    xfer_tcp_stream_put_trailer(&link->stream,
                                (xfer_tcp_trailer_t){.payload_sum = link->stream.sent_sum,
                                                     .slice = (uint32_t)link->sending});
    xfer_tcp_slice_t *slice = &link->slices[link->sending];
    xfer_tcp_stage_release(&link->stage, slice->slot);
    slice->slot = 0;
    slice->state = XFER_TCP_ASKED;
    link->sending = -1;
    return true;
}

/* The GPU fills a slot while another one is sent; one is left for what is more urgent, one to receive. */
static void load_ahead(xfer_tcp_link_t *link)
{
    const bool is_staged = link->slices[link->sending].slot > 0;
    if (!is_staged || xfer_tcp_stage_free(&link->stage) < 3) {
        return;
    }
    xfer_tcp_slice_t *next = next_due(link);
    next = next != NULL ? next : next_new(link, true);
    if (next != NULL) {
        xfer_tcp_slice_load(link, next);
    }
}

bool xfer_tcp_ask_fill(xfer_tcp_link_t *link)
{
    if (!end_payload(link) || !fill_cancels(link) || !xfer_tcp_note_fill(link)) {
        return false;
    }
    for (bool is_first = true; xfer_tcp_stream_has_room(&link->stream, XFER_TCP_ASK_BYTES);
         is_first = false) {
        xfer_tcp_slice_t *slice = next_due(link);
        slice = slice != NULL ? slice : next_new(link, is_first);
        if (slice == NULL) {
            return true;
        }
        link->n_due--;
        xfer_tcp_slice_ask(link, slice);
        if (slice->is_write && slice->bytes > 0) {
            load_ahead(link);
            return false;
        }
        (void)end_payload(link);
    }
    return false;
}

/* ---- answers --------------------------------------------------------------------------------- */

/* The slice that an answer is about; NULL: there is no such question. */
static xfer_tcp_slice_t *asked_slice(xfer_tcp_link_t *link, uint32_t number, bool is_write)
{
    xfer_tcp_slice_t *slice = &link->slices[number];
    return slice->state == XFER_TCP_ASKED && slice->is_write == is_write ? slice : NULL;
}

static void slice_is_done(xfer_tcp_link_t *link, xfer_tcp_slice_t *slice)
{
    xfer_op_t *op = slice->op;
    link->n_barren_cuts = 0;
    free_slice(link, slice);
    --*flying(op);
    if (*flying(op) == 0 && op->words[XFER_TCP_OP_PLACE] == XFER_TCP_WAITING) {
        take_out(link, op);
        settle(link, op);
    }
}

static void slice_failed(xfer_tcp_link_t *link, xfer_tcp_slice_t *slice, weft_status_t status)
{
    xfer_op_t *op = slice->op;
    free_slice(link, slice);
    --*flying(op);
    take_out(link, op);
    end_early(link, op, fate(op) != WEFT_OK ? fate(op) : status);
}

static void slice_is_damaged(xfer_tcp_link_t *link, xfer_tcp_slice_t *slice)
{
    const xfer_port_config_t *config = &link->base.port->config;
    if (config->on_checksum_error != NULL) {
        config->on_checksum_error(config->user);
    }
    if (++slice->tries == MAX_TRIES || fate(slice->op) != WEFT_OK) {
        slice_failed(link, slice, WEFT_ERR_CORRUPT);
        return;
    }
    slice->state = XFER_TCP_DUE;
    link->n_due++;
}

static weft_status_t on_data(xfer_tcp_link_t *link, const xfer_tcp_frame_t *frame)
{
    xfer_tcp_slice_t *slice = asked_slice(link, frame->slice, false);
    if (slice == NULL || (frame->payload_bytes != slice->bytes && frame->payload_bytes != 0)) {
        return WEFT_ERR_MALFORMED;
    }
    xfer_tcp_pieces_t *pieces = &link->stream.receive;
    xfer_tcp_pieces_clear(pieces);
    if (frame->payload_bytes > 0 && slice->op != NULL) {
        xfer_tcp_slice_find(slice, pieces);
        if (xfer_tcp_slice_is_vram(slice)) {
            link->received_slot = xfer_tcp_stage_take(&link->stage);
            xfer_tcp_stage_divert(&link->stage, link->received_slot, pieces);
        }
    } else {
        pieces->left = frame->payload_bytes;
        xfer_tcp_pieces_divert(pieces, xfer_tcp_link_port(link)->scratch, XFER_TCP_SCRATCH_BYTES);
    }
    link->receiving = (int)frame->slice;
    link->is_refusal = frame->payload_bytes == 0 && slice->bytes > 0;
    xfer_tcp_stream_expect(&link->stream);
    return WEFT_OK;
}

static weft_status_t on_written(xfer_tcp_link_t *link, const xfer_tcp_frame_t *frame)
{
    xfer_tcp_slice_t *slice = asked_slice(link, frame->slice, true);
    if (slice == NULL) {
        return WEFT_ERR_MALFORMED;
    }
    switch ((weft_status_t)frame->status) {
    case WEFT_OK:
        slice_is_done(link, slice);
        return WEFT_OK;
    case WEFT_ERR_CORRUPT:
        slice_is_damaged(link, slice);
        return WEFT_OK;
    case WEFT_ERR_NOT_FOUND:
        slice_failed(link, slice, WEFT_ERR_NOT_FOUND);
        return WEFT_OK;
    default:
        return WEFT_ERR_MALFORMED;
    }
}

weft_status_t xfer_tcp_ask_frame(xfer_tcp_link_t *link, const xfer_tcp_event_t *event)
{
    switch (event->frame.kind) {
    case XFER_TCP_DATA:
        return on_data(link, &event->frame);
    case XFER_TCP_WRITTEN:
        return on_written(link, &event->frame);
    case XFER_TCP_NOTIFIED:
        return xfer_tcp_note_confirm(&link->notes, event->frame.sequence) ? WEFT_OK
                                                                          : WEFT_ERR_MALFORMED;
    default:
        return WEFT_ERR_MALFORMED;
    }
}

weft_status_t xfer_tcp_ask_trailer(xfer_tcp_link_t *link, const xfer_tcp_event_t *event)
{
    xfer_tcp_slice_t *slice = &link->slices[link->receiving];
    const weft_status_t status = (weft_status_t)event->trailer.status;
    const bool is_ours = event->trailer.slice == (uint32_t)link->receiving;
    const bool is_there = slice->op != NULL && status == WEFT_OK && event->is_intact;
    link->receiving = -1;
    if (is_ours && is_there && link->received_slot > 0) {
        slice->op->words[XFER_TCP_OP_BATCH] =
            xfer_tcp_stage_land(&link->stage, link->received_slot);
        link->received_slot = 0;
    }
    end_received(link);
    if (!is_ours || (link->is_refusal && status == WEFT_OK)) {
        return WEFT_ERR_MALFORMED;
    }
    if (slice->op == NULL) {
        free_slice(link, slice);
    } else if (status == WEFT_ERR_STALE || status == WEFT_ERR_NOT_FOUND) {
        slice_failed(link, slice, status);
    } else if (status != WEFT_OK) {
        return WEFT_ERR_MALFORMED;
    } else if (!event->is_intact) {
        slice_is_damaged(link, slice);
    } else {
        slice_is_done(link, slice);
    }
    return WEFT_OK;
}

/* ---- the end of a connection, or of all ------------------------------------------------------- */

/* Cancelled writes waited for answers that do not come any more. */
static void let_go(xfer_tcp_link_t *link)
{
    for (xfer_op_t *op = link->ops[XFER_TCP_WAITING].head; op != NULL;) {
        xfer_op_t *next = op->next;
        if (fate(op) != WEFT_OK) {
            const weft_status_t status = fate(op);
            take_out(link, op);
            end_early(link, op, status);
            next = link->ops[XFER_TCP_WAITING].head; /* its end may have posted and cancelled */
        }
        op = next;
    }
}

void xfer_tcp_ask_cut(xfer_tcp_link_t *link)
{
    for (int place = XFER_TCP_ISSUING; place <= XFER_TCP_WAITING; place++) {
        for (xfer_op_t *op = link->ops[place].head; op != NULL; op = op->next) {
            op->resumed += *flying(op) > 0 ? 1 : 0;
        }
    }
    link->sending = -1;
    link->receiving = -1;
    end_received(link);
    for (size_t i = 0; i < XFER_TCP_MAX_SLICES && link->n_flying > 0; i++) {
        xfer_tcp_slice_t *slice = &link->slices[i];
        xfer_tcp_stage_release(&link->stage, slice->slot); /* loaded again in its turn */
        slice->slot = 0;
        if (slice->state == XFER_TCP_FREE || slice->state == XFER_TCP_DUE) {
            continue;
        }
        if (slice->op == NULL) {
            free_slice(link, slice);
        } else {
            slice->state = XFER_TCP_DUE;
            link->n_due++;
        }
    }
    let_go(link);
}

void xfer_tcp_ask_fail(xfer_tcp_link_t *link, weft_status_t status)
{
    xfer_tcp_ask_cut(link);
    if (link->stage.vram != NULL) {
        xfer_vram_wait_all(link->stage.vram); /* nothing lands behind its end */
    }
    for (int place = XFER_TCP_ISSUING; place <= XFER_TCP_NOTING; place++) {
        while (link->ops[place].head != NULL) {
            xfer_op_t *op = link->ops[place].head;
            if (place == XFER_TCP_NOTING) {
                xfer_tcp_note_withdraw(&link->notes, note_of(op));
                op->words[XFER_TCP_OP_NOTE] = 0;
            }
            take_out(link, op);
            end_early(link, op, status);
        }
    }
}
