/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_tcp_pieces.h"

#include <assert.h>

#include "base/crc32c.h"

void xfer_tcp_pieces_clear(xfer_tcp_pieces_t *pieces)
{
    pieces->first = 1;
    pieces->end = 1;
    pieces->left = 0;
}

void xfer_tcp_pieces_add(xfer_tcp_pieces_t *pieces, void *memory, size_t bytes)
{
    if (bytes == 0) {
        return;
    }
    struct iovec *last = &pieces->iov[pieces->end - 1];
    pieces->left += bytes;
    if (pieces->end > pieces->first && (uint8_t *)last->iov_base + last->iov_len == memory) {
        last->iov_len += bytes;
        return;
    }
    assert(pieces->end <= XFER_TCP_MAX_PIECES);
    pieces->iov[pieces->end++] = (struct iovec){memory, bytes};
}

void xfer_tcp_pieces_advance(xfer_tcp_pieces_t *pieces, size_t n, uint32_t *sum_io)
{
    assert(n <= pieces->left);
    pieces->left -= n;
    while (n > 0) {
        struct iovec *iov = &pieces->iov[pieces->first];
        const size_t taken = n < iov->iov_len ? n : iov->iov_len;
        if (sum_io != NULL) {
            *sum_io = weft_crc32c(*sum_io, iov->iov_base, taken);
        }
        iov->iov_base = (uint8_t *)iov->iov_base + taken;
        iov->iov_len -= taken;
        pieces->first += iov->iov_len == 0 ? 1 : 0;
        n -= taken;
    }
}

bool xfer_tcp_pieces_touch(const xfer_tcp_pieces_t *pieces, uint64_t addr, uint64_t bytes)
{
    for (uint32_t i = pieces->first; i < pieces->end; i++) {
        const uint64_t begin = (uintptr_t)pieces->iov[i].iov_base;
        if (begin < addr + bytes && addr < begin + pieces->iov[i].iov_len) {
            return true;
        }
    }
    return false;
}

void xfer_tcp_pieces_divert(xfer_tcp_pieces_t *pieces, void *scratch, size_t scratch_bytes)
{
    size_t left = pieces->left;
    assert(left <= XFER_TCP_MAX_PIECES * scratch_bytes);
    xfer_tcp_pieces_clear(pieces);
    pieces->left = left;
    while (left > 0) {
        const size_t n = left < scratch_bytes ? left : scratch_bytes;
        pieces->iov[pieces->end++] = (struct iovec){scratch, n};
        left -= n;
    }
}
