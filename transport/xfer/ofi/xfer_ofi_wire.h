/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_ofi_wire: what the ofi backend puts into blobs and sends beside the bytes it moves.
 *
 * Bytes are moved by the initiator alone; the other side hears of it by messages:
 *
 *     NOTE   a notification: the agent's name, then its data
 *     ASK    for the sums of pieces of its memory: where to answer, then the pieces
 *     SUMS   the answer, a CRC32C for each piece
 *
 * Each message carries the token of whom it is for; one with another is dropped. Numbers are
 * little-endian, as the machines are that libfabric's RMA makes sense between: big-endian ones
 * fail at the magic number.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "transport/xfer/xfer.h"

#define XFER_OFI_MAGIC        UINT32_C(0x494f4657) /* "WFOI" */
#define XFER_OFI_VERSION      UINT16_C(1)
#define XFER_OFI_MAX_ADDRESS  256 /* of a provider */
#define XFER_OFI_MAX_PROVIDER 32
#define XFER_OFI_MAX_PIECES   512                 /* of an ASK */
#define XFER_OFI_MAX_WINDOW   ((uint64_t)2 << 20) /* bytes that one ASK is about */

/* From address(): bytes of the provider's address follow. */
typedef struct xfer_ofi_address {
    uint32_t magic;
    uint16_t version;
    uint16_t bytes;
    uint32_t format; /* enum of fi_info.addr_format */
    uint32_t zero;
    uint8_t token[16];
    char provider[XFER_OFI_MAX_PROVIDER]; /* zero-padded; both ends need the same one */
} xfer_ofi_address_t;
_Static_assert(sizeof(xfer_ofi_address_t) == 64, "on the wire");

/* From map(). */
typedef struct xfer_ofi_key {
    uint32_t version;
    uint32_t region; /* never that of another region of the same port */
    uint64_t key;    /* the provider's */
    uint64_t origin; /* what its addresses begin with: 0, or the memory's own */
} xfer_ofi_key_t;
_Static_assert(sizeof(xfer_ofi_key_t) == 24, "on the wire");

typedef enum xfer_ofi_kind {
    XFER_OFI_NOTE = 1,
    XFER_OFI_ASK = 2,
    XFER_OFI_SUMS = 3,
} xfer_ofi_kind_t;

/* first_bytes, then rest_bytes follow: name and data, address and pieces, nothing and sums. */
typedef struct xfer_ofi_message {
    uint32_t magic;
    uint16_t version;
    uint16_t kind;
    uint8_t token[16];
    uint64_t tag;     /* of ASK, given back by SUMS */
    uint8_t back[16]; /* of ASK: the token that the answer carries */
    uint32_t first_bytes;
    uint32_t rest_bytes;
} xfer_ofi_message_t;
_Static_assert(sizeof(xfer_ofi_message_t) == 56, "on the wire");

typedef struct xfer_ofi_piece {
    uint64_t addr;
    uint32_t bytes;
    uint32_t region;
} xfer_ofi_piece_t;
_Static_assert(sizeof(xfer_ofi_piece_t) == 16, "on the wire");

#define XFER_OFI_MAX_MESSAGE                                                                       \
    (sizeof(xfer_ofi_message_t) + XFER_OFI_MAX_ADDRESS + XFER_MAX_NOTIFICATION)

/* provider_address_out points into data. WEFT_ERR_UNSUPPORTED: of another version or byte order. */
weft_status_t xfer_ofi_decode_address(const void *data, size_t bytes,
                                      xfer_ofi_address_t *address_out,
                                      const void **provider_address_out);
weft_status_t xfer_ofi_decode_key(const void *data, size_t bytes, xfer_ofi_key_t *key_out);
/* first_out and rest_out point into data, of the bytes that the message says. */
weft_status_t xfer_ofi_decode_message(const void *data, size_t bytes,
                                      xfer_ofi_message_t *message_out, const char **first_out,
                                      const char **rest_out);
