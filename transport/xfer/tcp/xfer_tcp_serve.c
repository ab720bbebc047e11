/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What guests ask for. Reads wait in a table by their slice's number; the most urgent is answered
 * next, straight from memory. Writes are received straight into it. Whatever a guest names is looked
 * up when it is its turn; a region that goes meanwhile is replaced by memory of no meaning, and the
 * trailer says so.
 */
#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "transport/xfer/tcp/xfer_tcp_priv.h"

/* ---- questions ------------------------------------------------------------------------------- */

static weft_status_t keep_pieces(xfer_tcp_request_t *request, const xfer_tcp_piece_t *pieces,
                                 uint32_t n)
{
    if (n > request->max_pieces) {
        xfer_tcp_piece_t *grown =
            weft_realloc(request->pieces, n * sizeof(*pieces), "xfer_tcp.request");
        if (grown == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
        request->pieces = grown;
        request->max_pieces = n;
    }
    if (n > 0) {
        memcpy(request->pieces, pieces, n * sizeof(*pieces));
    }
    request->n_pieces = n;
    return WEFT_OK;
}

static weft_status_t on_read(xfer_tcp_guest_t *guest, const xfer_tcp_event_t *event)
{
    xfer_tcp_request_t *request = &guest->requests[event->frame.slice];
    xfer_tcp_piece_t pieces[XFER_TCP_MAX_PIECES];
    uint32_t n;
    weft_status_t status =
        request->state != XFER_TCP_NO_REQUEST
            ? WEFT_ERR_MALFORMED
            : xfer_tcp_wire_get_pieces(&event->frame, event->body, &request->guard, pieces, &n);
    status = status < 0 ? status : keep_pieces(request, pieces, n);
    if (status < 0) {
        return status;
    }
    request->state = XFER_TCP_QUEUED;
    request->priority = event->frame.priority;
    request->has_guard = (event->frame.flags & XFER_TCP_HAS_GUARD) != 0;
    request->is_cancelled = false;
    request->arrival = guest->arrivals++;
    request->bytes = event->frame.payload_bytes;
    guest->n_queued++;
    return WEFT_OK;
}

/* False: one of them is nowhere. *is_vram_out: they have to be staged. */
static bool find_pieces(xfer_tcp_guest_t *guest, const xfer_tcp_piece_t *from, uint32_t n,
                        xfer_tcp_pieces_t *to, bool *is_vram_out)
{
    *is_vram_out = false;
    xfer_tcp_pieces_clear(to);
    for (uint32_t i = 0; i < n; i++) {
        void *memory = xfer_tcp_find_memory(guest->port, &from[i], is_vram_out);
        if (memory == NULL) {
            xfer_tcp_pieces_clear(to);
            return false;
        }
        xfer_tcp_pieces_add(to, memory, from[i].bytes);
    }
    if (*is_vram_out && xfer_tcp_stage_open(&guest->stage, guest->port->vram) < 0) {
        xfer_tcp_pieces_clear(to);
        return false;
    }
    return true;
}

static weft_status_t on_write(xfer_tcp_guest_t *guest, const xfer_tcp_event_t *event)
{
    xfer_tcp_piece_t pieces[XFER_TCP_MAX_PIECES];
    uint32_t n;
    const weft_status_t status =
        xfer_tcp_wire_get_pieces(&event->frame, event->body, NULL, pieces, &n);
    if (status < 0) {
        return status;
    }
    guest->written = event->frame.slice;
    guest->written_status = WEFT_OK;
    bool is_vram;
    if (!find_pieces(guest, pieces, n, &guest->stream.receive, &is_vram)) {
        guest->written_status = WEFT_ERR_NOT_FOUND;
        guest->stream.receive.left = event->frame.payload_bytes;
        xfer_tcp_pieces_divert(&guest->stream.receive, guest->port->scratch,
                               XFER_TCP_SCRATCH_BYTES);
    } else if (is_vram) {
        guest->received_slot = xfer_tcp_stage_take(&guest->stage);
        xfer_tcp_stage_divert(&guest->stage, guest->received_slot, &guest->stream.receive);
    }
    xfer_tcp_stream_expect(&guest->stream);
    return WEFT_OK;
}

static weft_status_t on_notify(xfer_tcp_guest_t *guest, const xfer_tcp_event_t *event)
{
    const xfer_port_config_t *config = &guest->port->base.config;
    xfer_tcp_session_t *session = guest->session;
    if (event->frame.sequence > session->sequence + 1) {
        return WEFT_ERR_MALFORMED;
    }
    if (event->frame.sequence == session->sequence + 1) {
        session->sequence++;
        config->on_notification(config->user, guest->agent, event->body, event->frame.body_bytes);
    }
    guest->has_to_confirm = true;
    return WEFT_OK;
}

static void drop_slot(xfer_tcp_guest_t *guest, unsigned *slot)
{
    xfer_tcp_stage_release(&guest->stage, *slot);
    *slot = 0;
}

static void on_cancel(xfer_tcp_guest_t *guest, uint32_t slice)
{
    xfer_tcp_request_t *request = &guest->requests[slice];
    request->is_cancelled = request->state == XFER_TCP_QUEUED;
}

weft_status_t xfer_tcp_serve_frame(xfer_tcp_guest_t *guest, const xfer_tcp_event_t *event)
{
    switch (event->frame.kind) {
    case XFER_TCP_READ:
        return on_read(guest, event);
    case XFER_TCP_WRITE:
        return on_write(guest, event);
    case XFER_TCP_NOTIFY:
        return on_notify(guest, event);
    case XFER_TCP_CANCEL:
        on_cancel(guest, event->frame.slice);
        return WEFT_OK;
    default:
        return WEFT_ERR_MALFORMED;
    }
}

weft_status_t xfer_tcp_serve_trailer(xfer_tcp_guest_t *guest, const xfer_tcp_event_t *event)
{
    const xfer_port_config_t *config = &guest->port->base.config;
    weft_status_t status = guest->written_status;
    if (event->trailer.slice != guest->written || guest->n_acks == XFER_TCP_MAX_SLICES) {
        return WEFT_ERR_MALFORMED;
    }
    if (status == WEFT_OK && !event->is_intact) {
        status = WEFT_ERR_CORRUPT;
        if (config->on_checksum_error != NULL) {
            config->on_checksum_error(config->user);
        }
    }
    guest->acks[guest->n_acks].batch = 0;
    if (status == WEFT_OK && guest->received_slot > 0) {
        guest->acks[guest->n_acks].batch = xfer_tcp_stage_land(&guest->stage, guest->received_slot);
        guest->received_slot = 0;
    }
    drop_slot(guest, &guest->received_slot);
    guest->acks[guest->n_acks].slice = (uint8_t)guest->written;
    guest->acks[guest->n_acks].status = (int8_t)status;
    guest->n_acks++;
    return WEFT_OK;
}

/* ---- answers --------------------------------------------------------------------------------- */

/* Acquires what the owner released by changing it. */
static bool is_stale(const xfer_tcp_guest_t *guest, const xfer_tcp_request_t *request)
{
    if (!request->has_guard) {
        return false;
    }
    const void *word = xfer_tcp_find_memory(guest->port, &request->guard.word, NULL);
    if (word == NULL) {
        return true;
    }
    return atomic_load_explicit((const _Atomic uint64_t *)word, memory_order_acquire) !=
           request->guard.expected;
}

static bool is_guard_possible(const xfer_tcp_guest_t *guest, const xfer_tcp_request_t *request)
{
    const void *word = xfer_tcp_find_memory(guest->port, &request->guard.word, NULL);
    return !request->has_guard || (word != NULL && request->guard.word.bytes == sizeof(uint64_t) &&
                                   (uintptr_t)word % sizeof(uint64_t) == 0);
}

static xfer_tcp_request_t *most_urgent(xfer_tcp_guest_t *guest)
{
    xfer_tcp_request_t *best = NULL;
    for (size_t i = 0; i < XFER_TCP_MAX_SLICES && guest->n_queued > 0; i++) {
        xfer_tcp_request_t *request = &guest->requests[i];
        if (request->state == XFER_TCP_QUEUED &&
            (best == NULL || request->priority < best->priority ||
             (request->priority == best->priority && request->arrival < best->arrival))) {
            best = request;
        }
    }
    return best;
}

/* Whether it can be answered, as far as is known now. */
static weft_status_t check_request(const xfer_tcp_guest_t *guest, const xfer_tcp_request_t *request)
{
    if (request->is_cancelled) {
        return WEFT_ERR_CANCELLED;
    }
    if (!is_guard_possible(guest, request)) {
        return WEFT_ERR_NOT_FOUND;
    }
    return is_stale(guest, request) ? WEFT_ERR_STALE : WEFT_OK;
}

/* Finds its bytes, if they are a GPU's in a slot that the GPU begins to fill: pieces are then empty. */
static weft_status_t find_request(xfer_tcp_guest_t *guest, xfer_tcp_request_t *request,
                                  xfer_tcp_pieces_t *pieces)
{
    bool is_vram;
    if (!find_pieces(guest, request->pieces, request->n_pieces, pieces, &is_vram)) {
        return WEFT_ERR_NOT_FOUND;
    }
    if (is_vram && request->slot == 0) {
        request->slot = xfer_tcp_stage_take(&guest->stage);
        xfer_tcp_stage_load(&guest->stage, request->slot, pieces);
    }
    if (is_vram) {
        xfer_tcp_pieces_clear(pieces);
    }
    return WEFT_OK;
}

/* While one answer is sent the GPU loads the next; one slot is left for what may be more urgent, one to
 * receive. */
static void load_ahead(xfer_tcp_guest_t *guest)
{
    xfer_tcp_pieces_t pieces;
    if (guest->requests[guest->answering].slot == 0 || xfer_tcp_stage_free(&guest->stage) < 3) {
        return;
    }
    xfer_tcp_request_t *next = most_urgent(guest);
    if (next != NULL && check_request(guest, next) == WEFT_OK) {
        (void)find_request(guest, next, &pieces); /* it is looked up again when it is its turn */
    }
}

/* Looks everything up and begins the answer: with a payload only if all is well. */
static void begin_answer(xfer_tcp_guest_t *guest, xfer_tcp_request_t *request)
{
    xfer_tcp_pieces_t *pieces = &guest->stream.send;
    weft_status_t status = check_request(guest, request);
    xfer_tcp_pieces_clear(pieces);
    if (status == WEFT_OK) {
        status = find_request(guest, request, pieces);
    }
    if (status == WEFT_OK && request->slot > 0) {
        xfer_tcp_stage_show(&guest->stage, request->slot, pieces);
    }
    if (status < 0) {
        xfer_tcp_pieces_clear(pieces);
    }
    guest->answering = (int)(request - guest->requests);
    guest->answer_status = status;
    guest->stream.sent_sum = 0;
    request->state = XFER_TCP_ANSWERING;
    guest->n_queued--;
    xfer_tcp_stream_put_frame(&guest->stream,
                              (xfer_tcp_frame_t){.kind = XFER_TCP_DATA,
                                                 .slice = (uint32_t)guest->answering,
                                                 .payload_bytes = (uint32_t)pieces->left},
                              NULL);
    load_ahead(guest);
}

/* The payload has been copied by the kernel. False: not all of it yet. */
static bool end_answer(xfer_tcp_guest_t *guest)
{
    if (guest->answering < 0) {
        return true;
    }
    xfer_tcp_request_t *request = &guest->requests[guest->answering];
    if (guest->stream.send.left > 0) {
        return false;
    }
    atomic_thread_fence(memory_order_acquire); /* the guard is read after the data */
    if (guest->answer_status == WEFT_OK && is_stale(guest, request)) {
        guest->answer_status = WEFT_ERR_STALE;
    }
    xfer_tcp_stream_put_trailer(&guest->stream,
                                (xfer_tcp_trailer_t){.payload_sum = guest->stream.sent_sum,
                                                     .slice = (uint32_t)guest->answering,
                                                     .status = guest->answer_status});
    drop_slot(guest, &request->slot);
    request->state = XFER_TCP_NO_REQUEST;
    guest->answering = -1;
    return true;
}

/* A GPU that failed has lost its memory's meaning as well: its owner ends. */
static bool has_landed(const xfer_tcp_guest_t *guest, uint64_t batch)
{
    return batch == 0 || xfer_vram_state(guest->port->vram, batch) != WEFT_PENDING;
}

static bool fill_acks(xfer_tcp_guest_t *guest)
{
    xfer_tcp_frame_t frame = {.kind = XFER_TCP_WRITTEN};
    const size_t needed = (guest->n_acks + 1) * sizeof(frame);
    if (!xfer_tcp_stream_has_room(&guest->stream, needed)) {
        return false;
    }
    unsigned n_left = 0;
    for (unsigned i = 0; i < guest->n_acks; i++) {
        if (has_landed(guest, guest->acks[i].batch)) {
            frame.slice = guest->acks[i].slice;
            frame.status = guest->acks[i].status;
            xfer_tcp_stream_put_frame(&guest->stream, frame, NULL);
        } else {
            guest->acks[n_left++] = guest->acks[i]; /* the GPU's end is looked for */
        }
    }
    guest->n_acks = n_left;
    if (guest->has_to_confirm) {
        frame = (xfer_tcp_frame_t){.kind = XFER_TCP_NOTIFIED, .sequence = guest->session->sequence};
        xfer_tcp_stream_put_frame(&guest->stream, frame, NULL);
        guest->has_to_confirm = false;
    }
    return true;
}

bool xfer_tcp_serve_fill(xfer_tcp_guest_t *guest)
{
    const size_t needed = sizeof(xfer_tcp_frame_t) + sizeof(xfer_tcp_trailer_t);
    if (!end_answer(guest) || !fill_acks(guest)) {
        return false;
    }
    while (xfer_tcp_stream_has_room(&guest->stream, needed)) {
        xfer_tcp_request_t *request = most_urgent(guest);
        if (request == NULL) {
            return true;
        }
        begin_answer(guest, request);
        if (guest->stream.send.left > 0) {
            return false;
        }
        (void)end_answer(guest);
    }
    return false;
}

void xfer_tcp_serve_unmap(xfer_tcp_guest_t *guest, const xfer_tcp_region_t *region)
{
    const xfer_tcp_port_t *port = guest->port;
    xfer_tcp_stream_t *stream = &guest->stream;
    if (stream->is_receiving &&
        (xfer_tcp_pieces_touch(&stream->receive, region->addr, region->bytes) ||
         xfer_tcp_stage_touches(&guest->stage, guest->received_slot, region->addr,
                                region->bytes))) {
        guest->written_status = WEFT_ERR_NOT_FOUND;
        drop_slot(guest, &guest->received_slot);
        xfer_tcp_pieces_divert(&stream->receive, port->scratch, XFER_TCP_SCRATCH_BYTES);
    }
    if (guest->answering >= 0 &&
        xfer_tcp_pieces_touch(&stream->send, region->addr, region->bytes)) {
        guest->answer_status = WEFT_ERR_NOT_FOUND;
        xfer_tcp_pieces_divert(&stream->send, port->zeros, XFER_TCP_SCRATCH_BYTES);
    }
}
