/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Notifications of a link: numbered, kept until the peer confirms them, sent again on a new
 * connection. The peer tells each number once.
 */
#include <string.h>

#include "base/alloc.h"
#include "transport/xfer/xfer_tcp_priv.h"

#define MAX_QUEUED       4096
#define MAX_QUEUED_BYTES ((size_t)16 * 1024 * 1024)
#define MAX_FREE         64

/* One of the kept ones, or a new one. */
static xfer_tcp_note_t *find_room(xfer_tcp_notes_t *notes, size_t bytes)
{
    for (xfer_tcp_note_t **at = &notes->free; *at != NULL; at = &(*at)->next) {
        xfer_tcp_note_t *note = *at;
        if (note->capacity >= bytes) {
            *at = note->next;
            notes->n_free--;
            return note;
        }
    }
    const size_t capacity = bytes < 256 ? 256 : bytes;
    xfer_tcp_note_t *note = weft_alloc(sizeof(*note) + capacity, "xfer_tcp.note");
    if (note != NULL) {
        note->capacity = capacity;
    }
    return note;
}

xfer_tcp_note_t *xfer_tcp_note_take(xfer_tcp_notes_t *notes, const void *data, size_t bytes)
{
    xfer_tcp_note_t *note = find_room(notes, bytes);
    if (note == NULL) {
        return NULL;
    }
    note->next = NULL;
    note->op = NULL;
    note->bytes = bytes;
    if (bytes > 0) {
        memcpy(note->data, data, bytes);
    }
    return note;
}

void xfer_tcp_note_give(xfer_tcp_notes_t *notes, xfer_tcp_note_t *note)
{
    if (notes->n_free == MAX_FREE) {
        weft_free(note);
        return;
    }
    note->next = notes->free;
    notes->free = note;
    notes->n_free++;
}

void xfer_tcp_note_queue(xfer_tcp_notes_t *notes, xfer_tcp_note_t *note)
{
    note->sequence = ++notes->sequence;
    note->next = NULL;
    *notes->tail = note;
    notes->tail = &note->next;
    notes->n++;
    notes->bytes += note->bytes;
    if (notes->unsent == NULL) {
        notes->unsent = note;
    }
}

/* Its number is not given up: those behind it move up by one, none of them was sent. */
void xfer_tcp_note_withdraw(xfer_tcp_notes_t *notes, xfer_tcp_note_t *note)
{
    xfer_tcp_note_t **at = &notes->head;
    while (*at != note) {
        at = &(*at)->next;
    }
    *at = note->next;
    if (notes->unsent == note) {
        notes->unsent = note->next;
    }
    if (note->next == NULL) {
        notes->tail = at;
    }
    for (xfer_tcp_note_t *later = note->next; later != NULL; later = later->next) {
        later->sequence--;
    }
    notes->sequence--;
    notes->n--;
    notes->bytes -= note->bytes;
    xfer_tcp_note_give(notes, note);
}

bool xfer_tcp_note_fill(xfer_tcp_link_t *link)
{
    xfer_tcp_notes_t *notes = &link->notes;
    for (; notes->unsent != NULL; notes->unsent = notes->unsent->next) {
        const xfer_tcp_note_t *note = notes->unsent;
        const xfer_tcp_frame_t frame = {.kind = XFER_TCP_NOTIFY,
                                        .body_bytes = (uint32_t)note->bytes,
                                        .sequence = note->sequence};
        if (!xfer_tcp_stream_has_room(&link->stream, sizeof(frame) + note->bytes)) {
            return false;
        }
        xfer_tcp_stream_put_frame(&link->stream, frame, note->data);
    }
    return true;
}

void xfer_tcp_note_end_sent(xfer_tcp_link_t *link)
{
    while (link->ops[XFER_TCP_NOTING].head != NULL) {
        xfer_op_t *op = link->ops[XFER_TCP_NOTING].head;
        xfer_tcp_note_t *note = (void *)(uintptr_t)op->words[XFER_TCP_OP_NOTE];
        if (link->notes.unsent != NULL && note->sequence >= link->notes.unsent->sequence) {
            return; /* in the order of their numbers */
        }
        note->op = NULL;
        xfer_tcp_ask_end_noted(link, op, WEFT_OK);
    }
}

bool xfer_tcp_note_confirm(xfer_tcp_notes_t *notes, uint64_t sequence)
{
    if (sequence > notes->sequence) {
        return false;
    }
    while (notes->head != NULL && notes->head->sequence <= sequence) {
        xfer_tcp_note_t *note = notes->head;
        if (note->op != NULL) {
            return false; /* it was never sent */
        }
        notes->head = note->next;
        if (notes->unsent == note) {
            notes->unsent = note->next;
        }
        notes->n--;
        notes->bytes -= note->bytes;
        xfer_tcp_note_give(notes, note);
    }
    if (notes->head == NULL) {
        notes->tail = &notes->head;
    }
    return true;
}

void xfer_tcp_note_rewind(xfer_tcp_notes_t *notes)
{
    notes->unsent = notes->head;
}

static void free_list(xfer_tcp_note_t *note)
{
    while (note != NULL) {
        xfer_tcp_note_t *next = note->next;
        weft_free(note);
        note = next;
    }
}

void xfer_tcp_note_clear(xfer_tcp_notes_t *notes)
{
    free_list(notes->head);
    free_list(notes->free);
    *notes = (xfer_tcp_notes_t){.sequence = notes->sequence};
    notes->tail = &notes->head;
}

weft_status_t xfer_tcp_note_send(xfer_link_t *base, const void *data, size_t bytes)
{
    xfer_tcp_link_t *link = xfer_tcp_link_of(base);
    xfer_tcp_notes_t *notes = &link->notes;
    if (link->state == XFER_TCP_GONE) {
        return WEFT_ERR_PEER_GONE;
    }
    if (bytes > XFER_TCP_MAX_BODY) {
        return WEFT_ERR_TOO_LARGE;
    }
    if (notes->n >= MAX_QUEUED || notes->bytes + bytes > MAX_QUEUED_BYTES) {
        return WEFT_ERR_QUEUE_FULL;
    }
    xfer_tcp_note_t *note = xfer_tcp_note_take(notes, data, bytes);
    if (note == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    xfer_tcp_link_begin(link);
    xfer_tcp_note_queue(notes, note);
    xfer_tcp_link_dirty(link);
    return WEFT_OK;
}
