/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_tcp_wire: what the tcp backend writes on its connections and in blobs.
 *
 * Who has a link connects and asks; the target answers. Both ends say hello, then each sends frames:
 *
 *     asks     READ [guard] piece…                   answers  DATA payload… trailer
 *              WRITE piece… payload… trailer                  WRITTEN
 *              NOTIFY bytes                                   NOTIFIED (all up to sequence)
 *              CANCEL (of a READ not yet answered)
 *
 * An operation is cut in slices of bounded size, each asked for by a frame of its own and answered in
 * any order, so that operations interleave, and what is missing after a cut is asked for again. Sums
 * are CRC32C. Frames, bodies and trailers always carry one: a damaged one ends the connection.
 * Payloads do if both ends want it: a damaged one is sent again.
 *
 * Numbers are little-endian. Decoders trust nothing; what they give is in the machine's order.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define XFER_TCP_VERSION     UINT32_C(1)
#define XFER_TCP_MAGIC       "WEFTTCP" /* with its NUL */
#define XFER_TCP_TOKEN_BYTES 16
#define XFER_TCP_MAX_HOSTS   16                  /* addresses of one port */
#define XFER_TCP_MAX_SLICES  128                 /* on their way at once, of one connection */
#define XFER_TCP_MAX_PIECES  512                 /* of one slice */
#define XFER_TCP_MAX_SLICE   (UINT32_C(1) << 20) /* bytes */
#define XFER_TCP_MAX_BODY    (UINT32_C(64) * 1024)

/* ---- blobs ----------------------------------------------------------------------------------- */

typedef struct xfer_tcp_host {
    uint8_t family; /* 4 or 6 */
    uint8_t is_loopback;
    uint8_t zero[2];
    uint8_t bytes[16]; /* as in IP headers; the first 4 of family 4 */
} xfer_tcp_host_t;

/* From address(). n_hosts hosts follow. */
typedef struct xfer_tcp_address {
    char magic[8];
    uint32_t version;
    uint16_t port;
    uint16_t n_hosts;
    uint8_t token[XFER_TCP_TOKEN_BYTES]; /* who has it may connect */
    uint8_t machine[16]; /* where loopback addresses lead here: boot id and network namespace */
} xfer_tcp_address_t;

/* From map(). */
typedef struct xfer_tcp_region_blob {
    uint32_t version;
    uint32_t region; /* never that of another region of the same port */
} xfer_tcp_region_blob_t;

/* ---- hello ----------------------------------------------------------------------------------- */

#define XFER_TCP_WANTS_SUMS UINT32_C(1)
#define XFER_TCP_IS_RESUMED UINT32_C(2) /* the session must be known */

typedef struct xfer_tcp_hello {
    char magic[8];
    uint32_t version;
    uint32_t sum; /* of what follows */
    uint8_t token[XFER_TCP_TOKEN_BYTES];
    uint8_t session[16]; /* a link, whatever its connection; random */
    uint64_t attempt;    /* grows: a later connection replaces those before */
    uint32_t keep_ms;    /* how long the session may be without a connection */
    uint32_t flags;
    char agent[256]; /* the asking agent's name, with its NUL */
} xfer_tcp_hello_t;

typedef enum xfer_tcp_verdict {
    XFER_TCP_WELCOME,
    XFER_TCP_OTHER_VERSION, /* welcome.version says which */
    XFER_TCP_STRANGER,      /* the token is not ours */
    XFER_TCP_FORGOTTEN,     /* the session to be resumed, or a later attempt came before */
} xfer_tcp_verdict_t;

typedef struct xfer_tcp_welcome {
    char magic[8];
    uint32_t version;
    uint32_t sum; /* of what follows */
    uint32_t verdict;
    uint32_t flags;
    uint64_t sequence; /* the last notification that came */
} xfer_tcp_welcome_t;

/* ---- frames ---------------------------------------------------------------------------------- */

typedef enum xfer_tcp_kind {
    XFER_TCP_READ = 1,
    XFER_TCP_WRITE,
    XFER_TCP_NOTIFY,
    XFER_TCP_CANCEL,
    XFER_TCP_DATA,
    XFER_TCP_WRITTEN,
    XFER_TCP_NOTIFIED,
} xfer_tcp_kind_t;

#define XFER_TCP_HAS_GUARD UINT8_C(1)

typedef struct xfer_tcp_frame {
    uint32_t sum;      /* of what follows */
    uint32_t body_sum; /* of body_bytes behind the frame */
    uint8_t kind;
    uint8_t flags;
    uint8_t priority;
    int8_t status;          /* weft_status_t, of WRITTEN */
    uint32_t slice;         /* a number that the asking side gave; < XFER_TCP_MAX_SLICES */
    uint32_t body_bytes;    /* behind the frame */
    uint32_t payload_bytes; /* of the slice; of READ: asked for. Of DATA 0 when it failed */
    uint64_t sequence;      /* of notifications, from 1 */
} xfer_tcp_frame_t;

typedef struct xfer_tcp_piece {
    uint64_t offset; /* in the region */
    uint32_t region;
    uint32_t bytes;
} xfer_tcp_piece_t;

/* Before the pieces of a READ with XFER_TCP_HAS_GUARD. */
typedef struct xfer_tcp_guard {
    xfer_tcp_piece_t word;
    uint64_t expected;
} xfer_tcp_guard_t;

typedef struct xfer_tcp_trailer {
    uint32_t sum; /* of what follows */
    uint32_t payload_sum;
    uint32_t slice;
    int32_t status; /* weft_status_t; of DATA: OK, ERR_STALE, ERR_NOT_FOUND or ERR_CANCELLED */
} xfer_tcp_trailer_t;

_Static_assert(sizeof(xfer_tcp_host_t) == 20, "wire format");
_Static_assert(sizeof(xfer_tcp_address_t) == 48, "wire format");
_Static_assert(sizeof(xfer_tcp_region_blob_t) == 8, "wire format");
_Static_assert(sizeof(xfer_tcp_hello_t) == 320, "wire format");
_Static_assert(sizeof(xfer_tcp_welcome_t) == 32, "wire format");
_Static_assert(sizeof(xfer_tcp_frame_t) == 32, "wire format");
_Static_assert(sizeof(xfer_tcp_piece_t) == 16, "wire format");
_Static_assert(sizeof(xfer_tcp_guard_t) == 24, "wire format");
_Static_assert(sizeof(xfer_tcp_trailer_t) == 16, "wire format");

/* ---- encoders: from the machine's order to the wire's, in place; sums are filled in ----------- */

void xfer_tcp_wire_put_address(xfer_tcp_address_t *address);
void xfer_tcp_wire_put_region(xfer_tcp_region_blob_t *blob);
void xfer_tcp_wire_put_hello(xfer_tcp_hello_t *hello);
void xfer_tcp_wire_put_welcome(xfer_tcp_welcome_t *welcome);
void xfer_tcp_wire_put_piece(xfer_tcp_piece_t *piece);
void xfer_tcp_wire_put_guard(xfer_tcp_guard_t *guard);
void xfer_tcp_wire_put_frame(xfer_tcp_frame_t *frame, const void *body);
void xfer_tcp_wire_put_trailer(xfer_tcp_trailer_t *trailer);

/*
 * ---- decoders: the other way, from bytes at any alignment ---------------------------------------
 *
 * WEFT_ERR_MALFORMED: not what it should be. WEFT_ERR_UNSUPPORTED: another version, which is set.
 * WEFT_ERR_CORRUPT: the sum differs.
 */

/* hosts_out [XFER_TCP_MAX_HOSTS] */
weft_status_t xfer_tcp_wire_get_address(const void *blob, size_t bytes,
                                        xfer_tcp_address_t *address_out,
                                        xfer_tcp_host_t *hosts_out);
weft_status_t xfer_tcp_wire_get_region(const void *blob, size_t bytes,
                                       xfer_tcp_region_blob_t *region_out);
/* The first 12 bytes of hello and welcome, the same in every version. */
weft_status_t xfer_tcp_wire_get_greeting(const void *wire, uint32_t *version_out);
weft_status_t xfer_tcp_wire_get_hello(const void *wire, xfer_tcp_hello_t *hello_out);
weft_status_t xfer_tcp_wire_get_welcome(const void *wire, xfer_tcp_welcome_t *welcome_out);
/* Also: kind, slice, lengths are possible ones, and the body has room for what its kind says. */
weft_status_t xfer_tcp_wire_get_frame(const void *wire, xfer_tcp_frame_t *frame_out);
weft_status_t xfer_tcp_wire_check_body(const xfer_tcp_frame_t *frame, const void *body);
weft_status_t xfer_tcp_wire_get_trailer(const void *wire, xfer_tcp_trailer_t *trailer_out);
/*
 * The pieces of a READ or WRITE, whose bytes sum up to those of the frame; guard_out is set with
 * XFER_TCP_HAS_GUARD. pieces_out [XFER_TCP_MAX_PIECES]
 */
weft_status_t xfer_tcp_wire_get_pieces(const xfer_tcp_frame_t *frame, const void *body,
                                       xfer_tcp_guard_t *guard_out, xfer_tcp_piece_t *pieces_out,
                                       uint32_t *n_out);
