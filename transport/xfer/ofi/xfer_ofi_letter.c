/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "xfer"
#include "transport/xfer/ofi/xfer_ofi_priv.h"

#ifdef WEFT_HAS_OFI

#include <string.h>

#include "base/crc32c.h"
#include "base/log.h"

/* ---- out ------------------------------------------------------------------------------------- */

/* The message's parts are in slot->room, behind the header. */
static size_t seal(ofi_slot_t *slot, xfer_ofi_kind_t kind, const uint8_t *token, uint64_t tag,
                   const uint8_t *back, size_t first_bytes, size_t rest_bytes)
{
    xfer_ofi_message_t message = {.magic = XFER_OFI_MAGIC,
                                  .version = XFER_OFI_VERSION,
                                  .kind = (uint16_t)kind,
                                  .tag = tag,
                                  .first_bytes = (uint32_t)first_bytes,
                                  .rest_bytes = (uint32_t)rest_bytes};
    memcpy(message.token, token, sizeof(message.token));
    memcpy(message.back, back, sizeof(message.back));
    memcpy(slot->room, &message, sizeof(message));
    slot->bytes = sizeof(message) + first_bytes + rest_bytes;
    return slot->bytes;
}

void ofi_letter_send_unsent(ofi_link_t *link)
{
    while (link->unsent != NULL && !link->has_failed) {
        ofi_slot_t *slot = link->unsent;
        const ssize_t result = fi_send(link->door.ep, slot->room, slot->bytes,
                                       ofi_slots_desc(&link->letters), link->peer, &slot->context);
        if (result == -FI_EAGAIN) {
            return;
        }
        if (result != 0) {
            link->has_failed = true;
            return;
        }
        link->flight++;
        link->unsent = slot->next;
        if (link->unsent == NULL) {
            link->last_unsent = NULL;
        }
    }
}

static void enqueue(ofi_link_t *link, ofi_slot_t *slot)
{
    slot->kind = OFI_LETTER;
    slot->link = link;
    slot->next = NULL;
    if (link->last_unsent != NULL) {
        link->last_unsent->next = slot;
    } else {
        link->unsent = slot;
    }
    link->last_unsent = slot;
    ofi_letter_send_unsent(link);
}

weft_status_t ofi_letter_note(ofi_link_t *link, const void *data, size_t bytes)
{
    const ofi_port_t *port = ofi_port_of(link);
    const char *name = port->base.config.agent;
    const size_t name_bytes = strlen(name);
    ofi_slot_t *slot = ofi_slot_take(&link->letters);
    if (slot == NULL) {
        return WEFT_ERR_QUEUE_FULL;
    }
    char *first = slot->room + sizeof(xfer_ofi_message_t);
    memcpy(first, name, name_bytes);
    if (bytes > 0) {
        memcpy(first + name_bytes, data, bytes);
    }
    (void)seal(slot, XFER_OFI_NOTE, link->token, 0, port->address.token, name_bytes, bytes);
    enqueue(link, slot);
    return WEFT_OK;
}

weft_status_t ofi_notify(xfer_link_t *base, const void *data, size_t bytes)
{
    ofi_link_t *link = (ofi_link_t *)base;
    if (link->door.ep == NULL || link->has_failed) {
        return WEFT_ERR_PEER_GONE;
    }
    return bytes > XFER_MAX_NOTIFICATION ? WEFT_ERR_TOO_LARGE : ofi_letter_note(link, data, bytes);
}

weft_status_t ofi_letter_ask(ofi_link_t *link, const xfer_op_t *op, uint64_t tag)
{
    const ofi_port_t *port = ofi_port_of(link);
    xfer_extent_t pieces[XFER_OFI_MAX_PIECES];
    ofi_slot_t *slot = ofi_slot_take(&link->letters);
    if (slot == NULL) {
        return WEFT_ERR_QUEUE_FULL;
    }
    const size_t n = ofi_move_window(op, pieces);
    char *first = slot->room + sizeof(xfer_ofi_message_t);
    char *rest = first + port->address.bytes;
    memcpy(first, port->provider_address, port->address.bytes);
    for (size_t i = 0; i < n; i++) {
        const ofi_import_t *import = op->peer_handles[pieces[i].peer_region];
        const xfer_ofi_piece_t piece = {.addr = pieces[i].peer,
                                        .bytes = (uint32_t)pieces[i].bytes,
                                        .region = import->key.region};
        memcpy(rest + i * sizeof(piece), &piece, sizeof(piece));
    }
    (void)seal(slot, XFER_OFI_ASK, link->token, tag, port->address.token, port->address.bytes,
               n * sizeof(xfer_ofi_piece_t));
    enqueue(link, slot);
    return WEFT_OK;
}

/* ---- in -------------------------------------------------------------------------------------- */

static bool find_peer(ofi_port_t *port, const char *address, size_t bytes, fi_addr_t *handle_out)
{
    for (size_t i = 0; i < port->n_peers; i++) {
        const ofi_peer_t *peer = &port->peers[i];
        if (peer->bytes == bytes && memcmp(peer->address, address, bytes) == 0) {
            *handle_out = peer->handle;
            return true;
        }
    }
    if (bytes != port->address.bytes) {
        return false;
    }
    /* Full: the oldest makes room, and is met again as a new one. */
    ofi_peer_t *peer = &port->peers[port->next_peer % OFI_MAX_PEERS];
    if (port->n_peers == OFI_MAX_PEERS) {
        (void)fi_av_remove(port->av, &peer->handle, 1, 0);
    }
    if (fi_av_insert(port->av, address, 1, &peer->handle, 0, NULL) != 1) {
        port->n_peers = port->n_peers == OFI_MAX_PEERS ? 0 : port->n_peers;
        return false;
    }
    peer->bytes = (uint16_t)bytes;
    memcpy(peer->address, address, bytes);
    port->next_peer++;
    port->n_peers += port->n_peers < OFI_MAX_PEERS;
    *handle_out = peer->handle;
    return true;
}

/* False: no such memory of ours. */
static bool sum_piece(const ofi_port_t *port, const xfer_ofi_piece_t *piece, uint32_t *sum_out)
{
    const ofi_region_t *region = port->regions;
    while (region != NULL && region->number != piece->region) {
        region = region->next;
    }
    if (region == NULL || piece->bytes > region->bytes || piece->addr < region->addr ||
        piece->addr - region->addr > region->bytes - piece->bytes) {
        return false;
    }
    *sum_out = weft_crc32c(0, (const void *)(uintptr_t)piece->addr, piece->bytes);
    return true;
}

/* How many sums; 0: not all of the pieces are ours. */
static size_t sum_pieces(const ofi_port_t *port, const char *pieces, size_t n, char *sums_out)
{
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) {
        xfer_ofi_piece_t piece;
        uint32_t sum;
        memcpy(&piece, pieces + i * sizeof(piece), sizeof(piece));
        total += piece.bytes;
        if (total > XFER_OFI_MAX_WINDOW || !sum_piece(port, &piece, &sum)) {
            return 0;
        }
        memcpy(sums_out + i * sizeof(sum), &sum, sizeof(sum));
    }
    return n;
}

/* What cannot be answered now is asked again. */
static void answer_ask(ofi_port_t *port, const xfer_ofi_message_t *ask, const char *address,
                       const char *pieces)
{
    fi_addr_t peer;
    ofi_slot_t *slot = ofi_slot_take(&port->answers);
    if (slot == NULL) {
        return;
    }
    const size_t n = sum_pieces(port, pieces, ask->rest_bytes / sizeof(xfer_ofi_piece_t),
                                slot->room + sizeof(xfer_ofi_message_t));
    const size_t bytes = seal(slot, XFER_OFI_SUMS, ask->back, ask->tag, port->address.token, 0,
                              n * sizeof(uint32_t));
    slot->kind = OFI_ANSWER;
    if (!find_peer(port, address, ask->first_bytes, &peer) ||
        fi_send(port->door.ep, slot->room, bytes, ofi_slots_desc(&port->answers), peer,
                &slot->context) != 0) {
        ofi_slot_give(&port->answers, slot);
    }
}

static void take_note(ofi_port_t *port, const xfer_ofi_message_t *note, const char *name,
                      const char *data)
{
    const xfer_port_config_t *config = &port->base.config;
    char text[XFER_MAX_NAME + 1];
    memcpy(text, name, note->first_bytes);
    text[note->first_bytes] = '\0';
    config->on_notification(config->user, text, data, note->rest_bytes);
}

void ofi_letter_post_receives(ofi_port_t *port)
{
    while (port->receives.free != NULL) {
        ofi_slot_t *slot = ofi_slot_take(&port->receives);
        slot->kind = OFI_RECEIVE;
        if (fi_recv(port->door.ep, slot->room, XFER_OFI_MAX_MESSAGE,
                    ofi_slots_desc(&port->receives), FI_ADDR_UNSPEC, &slot->context) != 0) {
            ofi_slot_give(&port->receives, slot);
            return;
        }
    }
}

void ofi_letter_received(ofi_port_t *port, const ofi_slot_t *slot, size_t bytes)
{
    xfer_ofi_message_t message;
    const char *first;
    const char *rest;
    if (xfer_ofi_decode_message(slot->room, bytes, &message, &first, &rest) < 0 ||
        memcmp(message.token, port->address.token, sizeof(message.token)) != 0) {
        weft_log_warn("ofi message of a stranger dropped: %zu bytes", bytes);
        return;
    }
    if (message.kind == XFER_OFI_NOTE) {
        take_note(port, &message, first, rest);
    } else if (message.kind == XFER_OFI_ASK) {
        answer_ask(port, &message, first, rest);
    } else {
        ofi_move_sums(port, message.tag, rest, message.rest_bytes / sizeof(uint32_t));
    }
}
#endif
