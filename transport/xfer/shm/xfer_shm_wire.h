/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_shm_wire: what two processes of one host say to each other: the address of a port, the key
 * of a region, and the frames on the Unix socket between them.
 *
 * One frame is one message of a SOCK_SEQPACKET socket: the struct, then frame.bytes of payload.
 * Who connected asks and notifies; who listens answers:
 *
 *     HELLO   →  the name of the connecting agent; the first frame
 *     ASK     →  for the descriptor of a region
 *     NOTE    →  a notification
 *     WELCOME ←  answers HELLO
 *     REGION  ←  answers ASK: the region's first byte is at offset of the file whose descriptor
 *                comes along; without a descriptor: there is no such region
 *     GONE    ←  a region is no longer to be used
 *
 * Bytes are in the host's order: whoever has another one is not on this host, and the first word
 * says so.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "transport/xfer/xfer.h"

#define XFER_SHM_MAGIC   UINT32_C(0x4d485357) /* "WSHM" */
#define XFER_SHM_VERSION UINT32_C(1)

/* Where a socket listens; pids are not in it: the kernel says who is at its other end. */
typedef struct xfer_shm_address {
    uint32_t magic;
    uint32_t version;
    uint8_t boot[16];           /* the host since it started, as the kernel names it */
    uint64_t network_namespace; /* abstract sockets are seen in their own only */
    uint8_t socket[16];         /* drawn at random; the name is "\0weft-shm-" and these in hex */
} xfer_shm_address_t;
_Static_assert(sizeof(xfer_shm_address_t) == 48, "on the wire");

typedef struct xfer_shm_key {
    uint32_t version;
    uint32_t is_mappable; /* 1: ask for its descriptor; 0: read it through the kernel */
    uint64_t region;      /* its number, of this port only once */
} xfer_shm_key_t;
_Static_assert(sizeof(xfer_shm_key_t) == 16, "on the wire");

typedef enum xfer_shm_kind {
    XFER_SHM_HELLO = 1,
    XFER_SHM_ASK = 2,
    XFER_SHM_NOTE = 3,
    XFER_SHM_REGION = 4,
    XFER_SHM_GONE = 5,
    XFER_SHM_WELCOME = 6,
} xfer_shm_kind_t;

typedef struct xfer_shm_frame {
    uint16_t version;
    uint16_t kind;
    uint32_t bytes;  /* of the payload: the name, the notification, else 0 */
    uint64_t region; /* ASK, REGION, GONE */
    uint64_t offset; /* REGION */
} xfer_shm_frame_t;
_Static_assert(sizeof(xfer_shm_frame_t) == 24, "on the wire");

#define XFER_SHM_MAX_FRAME (sizeof(xfer_shm_frame_t) + XFER_MAX_NOTIFICATION)

/* WEFT_ERR_MALFORMED: no address. WEFT_ERR_UNSUPPORTED: of another version, or byte order. */
weft_status_t xfer_shm_decode_address(const void *data, size_t bytes,
                                      xfer_shm_address_t *address_out);
weft_status_t xfer_shm_decode_key(const void *data, size_t bytes, xfer_shm_key_t *key_out);

xfer_shm_frame_t xfer_shm_frame(xfer_shm_kind_t kind, uint64_t region, size_t payload_bytes);
/*
 * data is one whole message. payload_out points into it, [frame_out->bytes].
 * WEFT_ERR_MALFORMED: not a frame of this version, or longer or shorter than its kind may be.
 */
weft_status_t xfer_shm_decode_frame(const void *data, size_t bytes, xfer_shm_frame_t *frame_out,
                                    const char **payload_out);
