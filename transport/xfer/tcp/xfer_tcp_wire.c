/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/tcp/xfer_tcp_wire.h"

#include <endian.h>
#include <string.h>

#include "base/crc32c.h"

/* What stands behind a struct's member `sum`, to its end. */
#define SUM_OF(wire)                                                                               \
    weft_crc32c(0, (const uint8_t *)(wire) + offsetof_sum(wire) + sizeof((wire)->sum),             \
                sizeof(*(wire)) - offsetof_sum(wire) - sizeof((wire)->sum))
#define offsetof_sum(wire) ((size_t)((const uint8_t *)&(wire)->sum - (const uint8_t *)(wire)))

/* The same both ways. */
static void swap_address(xfer_tcp_address_t *address)
{
    address->version = htole32(address->version);
    address->port = htole16(address->port);
    address->n_hosts = htole16(address->n_hosts);
}

static void swap_region(xfer_tcp_region_blob_t *blob)
{
    blob->version = htole32(blob->version);
    blob->region = htole32(blob->region);
}

static void swap_hello(xfer_tcp_hello_t *hello)
{
    hello->version = htole32(hello->version);
    hello->attempt = htole64(hello->attempt);
    hello->keep_ms = htole32(hello->keep_ms);
    hello->flags = htole32(hello->flags);
}

static void swap_welcome(xfer_tcp_welcome_t *welcome)
{
    welcome->version = htole32(welcome->version);
    welcome->verdict = htole32(welcome->verdict);
    welcome->flags = htole32(welcome->flags);
    welcome->sequence = htole64(welcome->sequence);
}

static void swap_piece(xfer_tcp_piece_t *piece)
{
    piece->offset = htole64(piece->offset);
    piece->region = htole32(piece->region);
    piece->bytes = htole32(piece->bytes);
}

static void swap_frame(xfer_tcp_frame_t *frame)
{
    frame->body_sum = htole32(frame->body_sum);
    frame->slice = htole32(frame->slice);
    frame->body_bytes = htole32(frame->body_bytes);
    frame->payload_bytes = htole32(frame->payload_bytes);
    frame->sequence = htole64(frame->sequence);
}

static void swap_trailer(xfer_tcp_trailer_t *trailer)
{
    trailer->payload_sum = htole32(trailer->payload_sum);
    trailer->slice = htole32(trailer->slice);
    trailer->status = (int32_t)htole32((uint32_t)trailer->status);
}

void xfer_tcp_wire_put_address(xfer_tcp_address_t *address)
{
    memcpy(address->magic, XFER_TCP_MAGIC, sizeof(address->magic));
    address->version = XFER_TCP_VERSION;
    swap_address(address);
}

void xfer_tcp_wire_put_region(xfer_tcp_region_blob_t *blob)
{
    blob->version = XFER_TCP_VERSION;
    swap_region(blob);
}

void xfer_tcp_wire_put_hello(xfer_tcp_hello_t *hello)
{
    memcpy(hello->magic, XFER_TCP_MAGIC, sizeof(hello->magic));
    hello->version = XFER_TCP_VERSION;
    swap_hello(hello);
    hello->sum = htole32(SUM_OF(hello));
}

void xfer_tcp_wire_put_welcome(xfer_tcp_welcome_t *welcome)
{
    memcpy(welcome->magic, XFER_TCP_MAGIC, sizeof(welcome->magic));
    welcome->version = XFER_TCP_VERSION;
    swap_welcome(welcome);
    welcome->sum = htole32(SUM_OF(welcome));
}

void xfer_tcp_wire_put_piece(xfer_tcp_piece_t *piece)
{
    swap_piece(piece);
}

void xfer_tcp_wire_put_guard(xfer_tcp_guard_t *guard)
{
    swap_piece(&guard->word);
    guard->expected = htole64(guard->expected);
}

void xfer_tcp_wire_put_frame(xfer_tcp_frame_t *frame, const void *body)
{
    frame->body_sum = weft_crc32c(0, body, frame->body_bytes);
    swap_frame(frame);
    frame->sum = htole32(SUM_OF(frame));
}

void xfer_tcp_wire_put_trailer(xfer_tcp_trailer_t *trailer)
{
    swap_trailer(trailer);
    trailer->sum = htole32(SUM_OF(trailer));
}

static bool is_host(const xfer_tcp_host_t *host)
{
    return (host->family == 4 || host->family == 6) && host->is_loopback <= 1;
}

weft_status_t xfer_tcp_wire_get_address(const void *blob, size_t bytes,
                                        xfer_tcp_address_t *address_out, xfer_tcp_host_t *hosts_out)
{
    xfer_tcp_address_t address;
    if (bytes < sizeof(address)) {
        return WEFT_ERR_MALFORMED;
    }
    memcpy(&address, blob, sizeof(address));
    swap_address(&address);
    if (memcmp(address.magic, XFER_TCP_MAGIC, sizeof(address.magic)) != 0) {
        return WEFT_ERR_MALFORMED;
    }
    if (address.version != XFER_TCP_VERSION) {
        address_out->version = address.version;
        return WEFT_ERR_UNSUPPORTED;
    }
    const size_t host_bytes = address.n_hosts * sizeof(*hosts_out);
    if (address.port == 0 || address.n_hosts == 0 || address.n_hosts > XFER_TCP_MAX_HOSTS ||
        bytes != sizeof(address) + host_bytes) {
        return WEFT_ERR_MALFORMED;
    }
    memcpy(hosts_out, (const uint8_t *)blob + sizeof(address), host_bytes);
    for (unsigned i = 0; i < address.n_hosts; i++) {
        if (!is_host(&hosts_out[i])) {
            return WEFT_ERR_MALFORMED;
        }
    }
    *address_out = address;
    return WEFT_OK;
}

weft_status_t xfer_tcp_wire_get_region(const void *blob, size_t bytes,
                                       xfer_tcp_region_blob_t *region_out)
{
    if (bytes != sizeof(*region_out)) {
        return WEFT_ERR_MALFORMED;
    }
    memcpy(region_out, blob, sizeof(*region_out));
    swap_region(region_out);
    return region_out->version == XFER_TCP_VERSION ? WEFT_OK : WEFT_ERR_UNSUPPORTED;
}

weft_status_t xfer_tcp_wire_get_greeting(const void *wire, uint32_t *version_out)
{
    if (memcmp(wire, XFER_TCP_MAGIC, sizeof(XFER_TCP_MAGIC)) != 0) {
        return WEFT_ERR_MALFORMED;
    }
    memcpy(version_out, (const uint8_t *)wire + sizeof(XFER_TCP_MAGIC), sizeof(*version_out));
    *version_out = le32toh(*version_out);
    return *version_out == XFER_TCP_VERSION ? WEFT_OK : WEFT_ERR_UNSUPPORTED;
}

weft_status_t xfer_tcp_wire_get_hello(const void *wire, xfer_tcp_hello_t *hello_out)
{
    xfer_tcp_hello_t *hello = hello_out;
    memcpy(hello, wire, sizeof(*hello));
    const uint32_t sum = SUM_OF(hello);
    swap_hello(hello);
    const weft_status_t status = xfer_tcp_wire_get_greeting(wire, &hello->version);
    if (status < 0) {
        return status;
    }
    if (le32toh(hello->sum) != sum) {
        return WEFT_ERR_CORRUPT;
    }
    return memchr(hello->agent, '\0', sizeof(hello->agent)) != NULL ? WEFT_OK : WEFT_ERR_MALFORMED;
}

weft_status_t xfer_tcp_wire_get_welcome(const void *wire, xfer_tcp_welcome_t *welcome_out)
{
    xfer_tcp_welcome_t *welcome = welcome_out;
    memcpy(welcome, wire, sizeof(*welcome));
    const uint32_t sum = SUM_OF(welcome);
    swap_welcome(welcome);
    const weft_status_t status = xfer_tcp_wire_get_greeting(wire, &welcome->version);
    if (status < 0) {
        return status;
    }
    return le32toh(welcome->sum) == sum ? WEFT_OK : WEFT_ERR_CORRUPT;
}

/* READ and WRITE: the pieces, a guard before them. */
static bool are_lengths_of_pieces(const xfer_tcp_frame_t *frame)
{
    const bool has_guard = (frame->flags & XFER_TCP_HAS_GUARD) != 0;
    const uint32_t guard_bytes = has_guard ? sizeof(xfer_tcp_guard_t) : 0;
    if (frame->body_bytes < guard_bytes || (has_guard && frame->kind != XFER_TCP_READ)) {
        return false;
    }
    const uint32_t piece_bytes = frame->body_bytes - guard_bytes;
    return piece_bytes % sizeof(xfer_tcp_piece_t) == 0 &&
           piece_bytes / sizeof(xfer_tcp_piece_t) <= XFER_TCP_MAX_PIECES;
}

static bool are_lengths_possible(const xfer_tcp_frame_t *frame)
{
    switch (frame->kind) {
    case XFER_TCP_READ:
    case XFER_TCP_WRITE:
        return frame->payload_bytes <= XFER_TCP_MAX_SLICE && are_lengths_of_pieces(frame);
    case XFER_TCP_NOTIFY:
        return frame->payload_bytes == 0 && frame->body_bytes <= XFER_TCP_MAX_BODY;
    case XFER_TCP_DATA:
        return frame->payload_bytes <= XFER_TCP_MAX_SLICE && frame->body_bytes == 0;
    case XFER_TCP_CANCEL:
    case XFER_TCP_WRITTEN:
    case XFER_TCP_NOTIFIED:
        return frame->payload_bytes == 0 && frame->body_bytes == 0;
    default:
        return false;
    }
}

weft_status_t xfer_tcp_wire_get_frame(const void *wire, xfer_tcp_frame_t *frame_out)
{
    xfer_tcp_frame_t *frame = frame_out;
    memcpy(frame, wire, sizeof(*frame));
    const uint32_t sum = SUM_OF(frame);
    if (le32toh(frame->sum) != sum) {
        return WEFT_ERR_CORRUPT;
    }
    swap_frame(frame);
    return frame->slice < XFER_TCP_MAX_SLICES && are_lengths_possible(frame) ? WEFT_OK
                                                                             : WEFT_ERR_MALFORMED;
}

weft_status_t xfer_tcp_wire_check_body(const xfer_tcp_frame_t *frame, const void *body)
{
    return weft_crc32c(0, body, frame->body_bytes) == frame->body_sum ? WEFT_OK : WEFT_ERR_CORRUPT;
}

weft_status_t xfer_tcp_wire_get_trailer(const void *wire, xfer_tcp_trailer_t *trailer_out)
{
    xfer_tcp_trailer_t *trailer = trailer_out;
    memcpy(trailer, wire, sizeof(*trailer));
    const uint32_t sum = SUM_OF(trailer);
    if (le32toh(trailer->sum) != sum) {
        return WEFT_ERR_CORRUPT;
    }
    swap_trailer(trailer);
    return WEFT_OK;
}

weft_status_t xfer_tcp_wire_get_pieces(const xfer_tcp_frame_t *frame, const void *body,
                                       xfer_tcp_guard_t *guard_out, xfer_tcp_piece_t *pieces_out,
                                       uint32_t *n_out)
{
    const uint8_t *at = body;
    uint32_t left = frame->body_bytes;
    if ((frame->flags & XFER_TCP_HAS_GUARD) != 0) {
        memcpy(guard_out, at, sizeof(*guard_out));
        swap_piece(&guard_out->word);
        guard_out->expected = le64toh(guard_out->expected);
        at += sizeof(*guard_out);
        left -= (uint32_t)sizeof(*guard_out);
    }
    const uint32_t n = left / (uint32_t)sizeof(*pieces_out);
    uint64_t total = 0;
    for (uint32_t i = 0; i < n; i++) {
        memcpy(&pieces_out[i], at + i * sizeof(*pieces_out), sizeof(*pieces_out));
        swap_piece(&pieces_out[i]);
        total += pieces_out[i].bytes;
    }
    *n_out = n;
    return total == frame->payload_bytes ? WEFT_OK : WEFT_ERR_MALFORMED;
}
