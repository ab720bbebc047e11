/* SPDX-License-Identifier: Apache-2.0 */
/*
 * linear_ring: a warp's own ring of blocks of W in shared memory, filled by cp.async while it
 * multiplies. For linear_mma.cuh's kernels of few tokens.
 */
#pragma once

#include "kernels/cuda/linear_mma.cuh"

/* Blocks of a warp's own ring: all but one are on their way. */
template <class W> constexpr uint32_t ring_depth()
{
    return W::BYTES <= 1152 ? 8 : 8192 / W::BYTES;
}

/* Where the ring's copies have come to in the walk over all of this block's units. */
typedef struct ahead {
    const uint8_t *from; /* NULL: past the end */
    uint32_t unit;
    uint32_t kb;
    uint32_t stage;
} ahead_t;

/* Begins to copy the next block; past the end a group of no copies. next(at): on to the next unit. */
template <class W, class Next>
SIMT_DEVICE void ring_copy(const part_t &part, uint8_t *ring, ahead_t &at, Next next)
{
    if (at.from != nullptr) {
        uint8_t *to = ring + at.stage * W::BYTES;
        SIMT_UNROLL
        for (uint32_t i = 0; i < W::BYTES; i += 16 * SIMT_WARP) {
            const uint32_t piece = i + (uint32_t)simt_lane() * 16;
            if (i + 16 * SIMT_WARP <= W::BYTES || piece < W::BYTES) {
                simt_cp_async<16>(to + piece, at.from + piece);
            }
        }
        at.stage = (at.stage + 1) % ring_depth<W>();
        at.from += W::STRIDE;
        if (++at.kb == part.last) {
            next(at);
        }
    }
    simt_cp_async_commit();
}

/* Multiplies the warp's part of a unit, while the ring runs on. stage: of the part's first block. */
template <class W, int NT, class Next>
SIMT_DEVICE void multiply_part(const part_t &part, uint8_t *ring, uint32_t &stage, ahead_t &at,
                               const uint8_t *const (&x)[NT], float (&acc)[NT][4], Next next)
{
    for (uint32_t kb = 0; kb < part.last - part.first; kb++) {
        simt_cp_async_wait<ring_depth<W>() - 2>();
        simt_sync_warp(); /* the block is there for all lanes; the stage before is free */
        ring_copy<W>(part, ring, at, next);
        const typename W::raw w =
            W::load(ring + stage * W::BYTES, (uint32_t)simt_lane() / 4, (uint32_t)simt_lane() % 4);
        multiply<W, NT>(w, acc, [&](int n, int j) {
            return *reinterpret_cast<const uint2 *>(x[n] + kb * 128 + j * 32);
        });
        stage = (stage + 1) % ring_depth<W>();
    }
}

/* ---- host ------------------------------------------------------------------------------------ */

/* Rows whose x a block's shared memory can hold beside the ring and the parts. */
template <class W> static uint32_t few_rows(uint32_t k_blocks, uint32_t shared_bytes)
{
    const uint32_t parts = 2 * SPLITS * 2 * 4 * SIMT_WARP * 4;
    const uint32_t taken = SPLITS * ring_depth<W>() * W::BYTES + parts;
    return taken < shared_bytes ? (shared_bytes - taken) / shared_x_bytes(1, k_blocks) : 0;
}
