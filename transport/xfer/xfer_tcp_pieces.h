/* SPDX-License-Identifier: Apache-2.0 */
/* xfer_tcp_pieces: the memory of one slice, worked off from its front by readv and writev. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "transport/xfer/xfer_tcp_wire.h"

typedef struct xfer_tcp_pieces {
    uint32_t first; /* of those left, from 1: the one before it is for a caller to put something */
    uint32_t end;
    size_t left;                               /* bytes */
    struct iovec iov[XFER_TCP_MAX_PIECES + 2]; /* and one for a caller behind the last */
} xfer_tcp_pieces_t;

void xfer_tcp_pieces_clear(xfer_tcp_pieces_t *pieces);
/* What continues the last one is merged with it. At most XFER_TCP_MAX_PIECES calls. */
void xfer_tcp_pieces_add(xfer_tcp_pieces_t *pieces, void *memory, size_t bytes);
/* The next n bytes are done; sum_io goes on over them unless NULL. */
void xfer_tcp_pieces_advance(xfer_tcp_pieces_t *pieces, size_t n, uint32_t *sum_io);
bool xfer_tcp_pieces_touch(const xfer_tcp_pieces_t *pieces, uint64_t addr, uint64_t bytes);
/* As many bytes as are left, but of scratch again and again. */
void xfer_tcp_pieces_divert(xfer_tcp_pieces_t *pieces, void *scratch, size_t scratch_bytes);
