/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/ofi/xfer_ofi_priv.h"

#ifdef WEFT_HAS_OFI

#include <string.h>

#include "base/clock.h"
#include "base/crc32c.h"

#define MAX_TRIES 4 /* of one window whose sums differ */

/* What a posted op's words mean. With sums its bytes go by windows: moved, then compared. */
enum {
    STAGE,
    FLIGHT,   /* slots that libfabric has */
    POSITION, /* of what comes after the pieces given to libfabric; op->position and */
    OFFSET,   /* op->offset are where the window begins */
    TAG,      /* of an ASK; before: what the window has, pieces << 32 | bytes; of a draining op the
                 status it ends with */
    TRIES,
};

/* Even ones are in link->ready, odd ones in link->busy. */
enum {
    GIVE_GUARD = 0,
    WAIT_GUARD = 1,
    GIVE_DATA = 2,
    WAIT_DATA = 3,
    GIVE_ASK = 4,
    WAIT_SUMS = 5,
    GIVE_GUARD_AGAIN = 6,
    WAIT_GUARD_AGAIN = 7,
    GIVE_NOTE = 8,
    DRAIN = 9, /* ends when nothing is under way */
};

static ofi_link_t *link_of(const xfer_op_t *op)
{
    return (ofi_link_t *)op->link;
}

static bool is_ready(uint64_t stage)
{
    return stage % 2 == 0;
}

static void take(xfer_op_t *op)
{
    ofi_link_t *link = link_of(op);
    if (is_ready(op->words[STAGE])) {
        xfer_op_queue_remove(&link->ready, op);
    } else {
        xfer_op_list_remove(&link->busy, op);
    }
}

static void put(xfer_op_t *op, uint64_t stage)
{
    ofi_link_t *link = link_of(op);
    op->words[STAGE] = stage;
    if (is_ready(stage)) {
        xfer_op_queue_append(&link->ready, op);
    } else {
        xfer_op_list_append(&link->busy, op);
    }
}

static void go_to(xfer_op_t *op, uint64_t stage)
{
    if (is_ready(op->words[STAGE]) && is_ready(stage)) {
        op->words[STAGE] = stage; /* keeps its turn */
        return;
    }
    take(op);
    put(op, stage);
}

static void end(xfer_op_t *op, weft_status_t status)
{
    take(op);
    xfer_op_end(op, status);
}

/* Ends it, but not before libfabric has given back its memory. */
static void give_up(xfer_op_t *op, weft_status_t status)
{
    if (op->words[FLIGHT] == 0) {
        end(op, status);
        return;
    }
    go_to(op, DRAIN);
    op->words[TAG] = (uint64_t)(int64_t)status;
}

void ofi_post(xfer_link_t *base, xfer_op_t *op)
{
    const ofi_link_t *link = (const ofi_link_t *)base;
    op->link = base;
    op->position = 0;
    op->offset = 0;
    memset(op->words, 0, sizeof(op->words));
    if (link->door.ep == NULL || link->has_failed) {
        xfer_op_end(op, WEFT_ERR_PEER_GONE);
        return;
    }
    put(op, op->has_guard ? GIVE_GUARD : op->n_extents > 0 ? GIVE_DATA : GIVE_NOTE);
}

void ofi_cancel(xfer_op_t *op)
{
    give_up(op, WEFT_ERR_CANCELLED);
}

void ofi_move_end_all(ofi_link_t *link, weft_status_t status)
{
    for (;;) {
        xfer_op_t *op = xfer_op_queue_first(&link->ready);
        op = op != NULL ? op : link->busy.first;
        if (op == NULL) {
            return;
        }
        /* One that was cancelled before ends so. */
        end(op, op->words[STAGE] == DRAIN ? (weft_status_t)(int64_t)op->words[TAG] : status);
    }
}

static bool next_piece(const xfer_op_t *op, size_t *position, uint64_t *offset,
                       xfer_extent_t *piece_out)
{
    if (*position >= op->n_extents) {
        return false;
    }
    const xfer_extent_t *extent = &op->extents[*position];
    const uint64_t left = extent->bytes - *offset;
    *piece_out = *extent;
    piece_out->local += *offset;
    piece_out->peer += *offset;
    piece_out->bytes = left < OFI_MAX_BYTES ? left : OFI_MAX_BYTES;
    *offset += piece_out->bytes;
    if (*offset == extent->bytes) {
        *offset = 0;
        (*position)++;
    }
    return true;
}

static bool has_room(const ofi_port_t *port, const xfer_op_t *op)
{
    const uint64_t pieces = op->words[TAG] >> 32;
    const uint64_t bytes = (uint32_t)op->words[TAG];
    return !port->has_sums ||
           (pieces < XFER_OFI_MAX_PIECES && bytes + OFI_MAX_BYTES <= XFER_OFI_MAX_WINDOW);
}

static ssize_t give_piece(ofi_link_t *link, const xfer_op_t *op, const xfer_extent_t *piece,
                          ofi_slot_t *slot)
{
    const ofi_region_t *region = op->local_handles[piece->local_region];
    const ofi_import_t *import = op->peer_handles[piece->peer_region];
    void *local = (void *)(uintptr_t)piece->local;
    const uint64_t peer = import->key.origin + (piece->peer - import->addr);
    void *desc = fi_mr_desc(region->mr);
    if (op->direction == XFER_READ) {
        return fi_read(link->door.ep, local, piece->bytes, desc, link->peer, peer, import->key.key,
                       &slot->context);
    }
    const struct iovec iov = {.iov_base = local, .iov_len = piece->bytes};
    const struct fi_rma_iov rma = {.addr = peer, .len = piece->bytes, .key = import->key.key};
    const struct fi_msg_rma message = {.msg_iov = &iov,
                                       .desc = &desc,
                                       .iov_count = 1,
                                       .addr = link->peer,
                                       .rma_iov = &rma,
                                       .rma_iov_count = 1,
                                       .context = &slot->context};
    /* Complete is what the peer can see: its notification comes after. */
    return fi_writemsg(link->door.ep, &message, FI_COMPLETION | FI_DELIVERY_COMPLETE);
}

static ssize_t give_word(ofi_link_t *link, const xfer_op_t *op, ofi_slot_t *slot)
{
    const ofi_import_t *import = op->guard_handle;
    const uint64_t peer = import->key.origin + (op->guard.addr - import->addr);
    return fi_read(link->door.ep, slot->room, sizeof(uint64_t), ofi_slots_desc(&link->moves),
                   link->peer, peer, import->key.key, &slot->context);
}

/* False: not now, a slot or libfabric has no room. piece: NULL: the guard. */
static bool give(ofi_link_t *link, xfer_op_t *op, const xfer_extent_t *piece)
{
    ofi_slot_t *slot = ofi_slot_take(&link->moves);
    if (slot == NULL) {
        return false;
    }
    slot->kind = piece != NULL ? OFI_MOVE : OFI_WORD;
    slot->link = link;
    slot->op = op;
    const ssize_t result =
        piece != NULL ? give_piece(link, op, piece, slot) : give_word(link, op, slot);
    if (result == 0) {
        op->words[FLIGHT]++;
        link->flight++;
        return true;
    }
    ofi_slot_give(&link->moves, slot);
    link->has_failed = link->has_failed || result != -FI_EAGAIN;
    return false;
}

static bool give_data(ofi_link_t *link, xfer_op_t *op)
{
    const ofi_port_t *port = ofi_port_of(link);
    for (;;) {
        size_t position = op->words[POSITION];
        uint64_t offset = op->words[OFFSET];
        xfer_extent_t piece;
        if (!has_room(port, op) || !next_piece(op, &position, &offset, &piece)) {
            go_to(op, WAIT_DATA);
            return true;
        }
        if (!give(link, op, &piece)) {
            return false;
        }
        op->words[POSITION] = position;
        op->words[OFFSET] = offset;
        op->words[TAG] += UINT64_C(1) << 32 | piece.bytes;
    }
}

static bool give_guard(ofi_link_t *link, xfer_op_t *op, uint64_t then)
{
    if (!give(link, op, NULL)) {
        return false;
    }
    go_to(op, then);
    return true;
}

static bool give_ask(ofi_link_t *link, xfer_op_t *op)
{
    const uint64_t tag = ++ofi_port_of(link)->tags_made;
    if (ofi_letter_ask(link, op, tag) < 0) {
        return false;
    }
    op->words[TAG] = tag;
    go_to(op, WAIT_SUMS);
    return true;
}

static bool give_note(ofi_link_t *link, xfer_op_t *op)
{
    if (op->notification != NULL &&
        ofi_letter_note(link, op->notification, op->notification_bytes) < 0) {
        return false;
    }
    end(op, WEFT_OK);
    return true;
}

static bool give_some(ofi_link_t *link, xfer_op_t *op)
{
    switch (op->words[STAGE]) {
    case GIVE_GUARD:
        return give_guard(link, op, WAIT_GUARD);
    case GIVE_DATA:
        return give_data(link, op);
    case GIVE_ASK:
        return give_ask(link, op);
    case GIVE_GUARD_AGAIN:
        return give_guard(link, op, WAIT_GUARD_AGAIN);
    default:
        return give_note(link, op);
    }
}

bool ofi_move(ofi_link_t *link)
{
    bool did_something = false;
    const uint64_t until_ns = weft_clock_ns() + 100000;
    xfer_op_t *op;
    link->is_stuck = false;
    while (link->door.ep != NULL && !link->has_failed &&
           (op = xfer_op_queue_first(&link->ready)) != NULL) {
        if (!give_some(link, op)) {
            link->is_stuck = true;
            break;
        }
        did_something = true;
        if (weft_clock_ns() >= until_ns) {
            break;
        }
    }
    return did_something;
}

/* All bytes are there, and as the peer has them. */
static void after_data(xfer_op_t *op)
{
    op->position = op->words[POSITION];
    op->offset = op->words[OFFSET];
    op->words[TAG] = 0;
    op->words[TRIES] = 0;
    go_to(op, op->position < op->n_extents ? GIVE_DATA
              : op->has_guard              ? GIVE_GUARD_AGAIN
                                           : GIVE_NOTE);
}

static void after_word(xfer_op_t *op, uint64_t word)
{
    if (word != op->guard.expected) {
        end(op, WEFT_ERR_STALE);
    } else if (op->words[TRIES] == MAX_TRIES) {
        end(op, WEFT_ERR_CORRUPT);
    } else if (op->words[STAGE] == WAIT_GUARD && op->n_extents > 0) {
        go_to(op, GIVE_DATA);
    } else {
        go_to(op, GIVE_NOTE);
    }
}

void ofi_move_completed(ofi_slot_t *slot)
{
    xfer_op_t *op = slot->op;
    ofi_link_t *link = slot->link;
    uint64_t word;
    const bool is_word = slot->kind == OFI_WORD;
    memcpy(&word, slot->room, sizeof(word));
    ofi_slot_give(&link->moves, slot);
    ofi_link_up(link);
    op->words[FLIGHT]--;
    if (op->words[STAGE] == DRAIN) {
        give_up(op, (weft_status_t)(int64_t)op->words[TAG]);
    } else if (is_word) {
        after_word(op, word);
    } else if (op->words[STAGE] == WAIT_DATA && op->words[FLIGHT] == 0) {
        if (ofi_port_of(link)->has_sums) {
            go_to(op, GIVE_ASK);
        } else {
            after_data(op);
        }
    }
}

/* ---- sums ------------------------------------------------------------------------------------ */

static xfer_op_t *find_asking(ofi_port_t *port, uint64_t tag)
{
    for (ofi_link_t *link = port->links; link != NULL; link = link->next) {
        for (xfer_op_t *op = link->busy.first; op != NULL; op = op->next) {
            if (op->words[STAGE] == WAIT_SUMS && op->words[TAG] == tag) {
                return op;
            }
        }
    }
    return NULL;
}

static bool is_in_window(const xfer_op_t *op, size_t position, uint64_t offset)
{
    return position < op->words[POSITION] ||
           (position == op->words[POSITION] && offset < op->words[OFFSET]);
}

size_t ofi_move_window(const xfer_op_t *op, xfer_extent_t *pieces_out)
{
    size_t position = op->position;
    uint64_t offset = op->offset;
    size_t n = 0;
    while (n < XFER_OFI_MAX_PIECES && is_in_window(op, position, offset) &&
           next_piece(op, &position, &offset, &pieces_out[n])) {
        n++;
    }
    return n;
}

static bool sums_agree(const xfer_op_t *op, const char *sums, size_t n)
{
    xfer_extent_t pieces[XFER_OFI_MAX_PIECES];
    if (ofi_move_window(op, pieces) != n) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t sum;
        memcpy(&sum, sums + i * sizeof(sum), sizeof(sum));
        if (weft_crc32c(0, (const void *)(uintptr_t)pieces[i].local, pieces[i].bytes) != sum) {
            return false;
        }
    }
    return true;
}

void ofi_move_sums(ofi_port_t *port, uint64_t tag, const void *sums, size_t n)
{
    const xfer_port_config_t *config = &port->base.config;
    xfer_op_t *op = find_asking(port, tag);
    if (op == NULL) {
        return; /* of an op that was cancelled, or asked twice */
    }
    if (n == 0) {
        end(op, WEFT_ERR_NOT_FOUND); /* the peer has taken the memory back */
        return;
    }
    if (sums_agree(op, sums, n)) {
        after_data(op);
        return;
    }
    config->on_checksum_error(config->user);
    if (++op->words[TRIES] < MAX_TRIES) {
        op->words[POSITION] = op->position;
        op->words[OFFSET] = op->offset;
        op->words[TAG] = 0;
        go_to(op, GIVE_DATA);
    } else if (op->has_guard) {
        go_to(op, GIVE_GUARD_AGAIN); /* damaged, or used for something else meanwhile? */
    } else {
        end(op, WEFT_ERR_CORRUPT);
    }
}

void ofi_move_ask_again(ofi_link_t *link)
{
    for (xfer_op_t *op = link->busy.first, *next; op != NULL; op = next) {
        next = op->next;
        if (op->words[STAGE] == WAIT_SUMS) {
            go_to(op, GIVE_ASK);
        }
    }
}
#endif
