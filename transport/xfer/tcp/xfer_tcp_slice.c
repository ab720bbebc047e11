/* SPDX-License-Identifier: Apache-2.0 */
/* A slice of an operation: which bytes of both sides it is, and the frame that asks for it. */
#include "transport/xfer/tcp/xfer_tcp_priv.h"

void xfer_tcp_slice_cut(xfer_op_t *op, uint32_t max, xfer_tcp_slice_t *slice)
{
    slice->op = op;
    slice->position = op->position;
    slice->offset = op->offset;
    slice->priority = op->priority;
    slice->is_write = op->direction == XFER_WRITE;
    slice->tries = 0;
    slice->bytes = 0;
    slice->n_extents = 0;
    slice->slot = 0;
    while (op->position < op->n_extents && slice->bytes < max &&
           slice->n_extents < XFER_TCP_MAX_PIECES) {
        const uint64_t left = op->extents[op->position].bytes - op->offset;
        const uint64_t n = left < max - slice->bytes ? left : max - slice->bytes;
        slice->bytes += (uint32_t)n;
        slice->n_extents++;
        op->offset += n;
        if (n == left) {
            op->position++;
            op->offset = 0;
        }
    }
}

/* Of one extent the part that is in the slice, `done` bytes of which come before. */
static xfer_extent_t part_of(const xfer_tcp_slice_t *slice, uint32_t i, uint32_t done)
{
    xfer_extent_t part = slice->op->extents[slice->position + i];
    const uint64_t skipped = i == 0 ? slice->offset : 0;
    const uint64_t left = part.bytes - skipped;
    part.local += skipped;
    part.peer += skipped;
    part.bytes = left < slice->bytes - done ? left : slice->bytes - done;
    return part;
}

void xfer_tcp_slice_find(const xfer_tcp_slice_t *slice, xfer_tcp_pieces_t *pieces)
{
    uint32_t done = 0;
    xfer_tcp_pieces_clear(pieces);
    for (uint32_t i = 0; i < slice->n_extents; i++) {
        const xfer_extent_t part = part_of(slice, i, done);
        /* An address of ours, as the agent checked. */
        xfer_tcp_pieces_add(pieces, (void *)(uintptr_t)part.local, part.bytes);
        done += (uint32_t)part.bytes;
    }
}

/* A list is of one kind of memory, so the first piece tells. */
bool xfer_tcp_slice_is_vram(const xfer_tcp_slice_t *slice)
{
    const xfer_op_t *op = slice->op;
    if (slice->n_extents == 0) {
        return false;
    }
    const xfer_tcp_region_t *region = op->local_handles[op->extents[slice->position].local_region];
    return region->is_vram;
}

void xfer_tcp_slice_load(xfer_tcp_link_t *link, xfer_tcp_slice_t *slice)
{
    xfer_tcp_pieces_t pieces;
    if (slice->is_write && slice->slot == 0 && xfer_tcp_slice_is_vram(slice)) {
        xfer_tcp_slice_find(slice, &pieces);
        slice->slot = xfer_tcp_stage_take(&link->stage);
        xfer_tcp_stage_load(&link->stage, slice->slot, &pieces);
    }
}

/* [XFER_TCP_MAX_PIECES], in the wire's order; what touches at the peer becomes one. */
static uint32_t peer_pieces(const xfer_tcp_slice_t *slice, xfer_tcp_piece_t *out)
{
    uint32_t done = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < slice->n_extents; i++) {
        const xfer_extent_t part = part_of(slice, i, done);
        const xfer_tcp_import_t *import = slice->op->peer_handles[part.peer_region];
        const uint64_t offset = part.peer - import->addr;
        xfer_tcp_piece_t *last = n > 0 ? &out[n - 1] : NULL;
        done += (uint32_t)part.bytes;
        if (last != NULL && last->region == import->number &&
            last->offset + last->bytes == offset) {
            last->bytes += (uint32_t)part.bytes;
        } else {
            out[n++] = (xfer_tcp_piece_t){offset, import->number, (uint32_t)part.bytes};
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        xfer_tcp_wire_put_piece(&out[i]);
    }
    return n;
}

/* A guard is put directly before the pieces. */
typedef struct ask_body {
    xfer_tcp_guard_t guard;
    xfer_tcp_piece_t pieces[XFER_TCP_MAX_PIECES];
} ask_body_t;

_Static_assert(offsetof(ask_body_t, pieces) == sizeof(xfer_tcp_guard_t), "one behind the other");
_Static_assert(sizeof(ask_body_t) + sizeof(xfer_tcp_frame_t) == XFER_TCP_ASK_BYTES, "is that much");

void xfer_tcp_slice_ask(xfer_tcp_link_t *link, xfer_tcp_slice_t *slice)
{
    ask_body_t body;
    xfer_tcp_frame_t frame = {.kind = slice->is_write ? XFER_TCP_WRITE : XFER_TCP_READ,
                              .priority = slice->priority,
                              .slice = (uint32_t)(slice - link->slices),
                              .payload_bytes = slice->bytes};
    const void *begin = body.pieces;
    frame.body_bytes = peer_pieces(slice, body.pieces) * (uint32_t)sizeof(*body.pieces);
    if (!slice->is_write && slice->op->has_guard) {
        const xfer_guard_t *guard = &slice->op->guard;
        const xfer_tcp_import_t *import = slice->op->guard_handle;
        body.guard = (xfer_tcp_guard_t){
            {guard->addr - import->addr, import->number, sizeof(uint64_t)}, guard->expected};
        xfer_tcp_wire_put_guard(&body.guard);
        begin = &body;
        frame.flags = XFER_TCP_HAS_GUARD;
        frame.body_bytes += (uint32_t)sizeof(body.guard);
    }
    xfer_tcp_stream_put_frame(&link->stream, frame, begin);
    slice->state = XFER_TCP_ASKED;
    if (slice->is_write) {
        xfer_tcp_slice_load(link, slice);
        if (slice->slot > 0) {
            xfer_tcp_stage_show(&link->stage, slice->slot, &link->stream.send);
        } else {
            xfer_tcp_slice_find(slice, &link->stream.send);
        }
        slice->state = XFER_TCP_SENDING;
        link->sending = (int)frame.slice;
        link->stream.sent_sum = 0;
    }
}
