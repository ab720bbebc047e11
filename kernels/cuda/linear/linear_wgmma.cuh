/* SPDX-License-Identifier: Apache-2.0 */
/*
 * linear_wgmma: the kernel of products by wgmma, BF16 weights on Hopper, from one token to thousands;
 * for one matrix (linear_wgmma.cu) and many (group_wgmma.cu).
 *
 * The weights' rows are the M of the instruction, the tokens its N: one token costs no more of the
 * tensor cores than it must, and a thousand fill them. Two producer warps copy stages of W (already
 * in the order wgmma reads) and of x into a ring; each consumer warp group multiplies 64 rows of W.
 * Blocks of the grid are persistent: the ring runs on over the ends of tiles, and its first
 * fill of weights does not wait for the kernel before this one.
 *
 * Each element of y is one accumulator, to which K is added in steps of 16 from first to last:
 * the cut into tiles and stages changes nothing. A consumer whose part of a tile has fewer than 64
 * rows multiplies what lies behind them in the stage too and drops the result.
 */
#pragma once

#include "kernels/cuda/linear/cuda_linear_priv.h"
#include "kernels/cuda/linear/linear_store.h"
#include "kernels/cuda/simt/simt.h"

#define UNIT_BYTES 2048 /* 16 rows of 128 bytes */
#define TILE_BYTES 8192 /* 4 units: what lies together in memory */
#define MAX_STAGES 32

typedef struct linear_wgmma {
    linear_wgmma_plan_t plan;
    uint32_t k_blocks;
    uint32_t units;
    uint32_t spans; /* tiles along W */
} linear_wgmma_t;

/*
 * Which tiles there are is a type of its own, that kernels take by value:
 *
 *   begin(p)      what a block knows of them, a `known`: all its threads call, once
 *
 * and of that one
 *
 *   n             tiles
 *   at(p, i)      a tile
 *   weights(tile), column(tile)   where its matrix and its columns of x begin
 *   store(tile)   where its sums go, and with how many rows from `token` on
 *   streams       each weight is read once
 */
typedef struct wgmma_tile {
    uint32_t unit; /* first of W */
    uint32_t units;
    uint32_t token; /* row of x */
    uint32_t group; /* matrix, where there are many */
} wgmma_tile_t;

#if SIMT_HOPPER

/* One stage's worth of the walk over this block's tiles. */
typedef struct cursor {
    uint32_t index; /* of the tile */
    wgmma_tile_t tile;
    uint32_t kb;
    uint32_t stage;
    uint32_t parity;
} cursor_t;

template <class Known> SIMT_DEVICE bool cursor_is_valid(const Known &tiles, const cursor_t &c)
{
    return tiles.n > c.index;
}

SIMT_DEVICE uint32_t cursor_blocks(const linear_wgmma_t &p, const cursor_t &c)
{
    const uint32_t left = p.k_blocks - c.kb;
    return left < p.plan.stage_blocks ? left : p.plan.stage_blocks;
}

template <class Known>
SIMT_DEVICE void cursor_begin(const linear_wgmma_t &p, const Known &tiles, cursor_t &c,
                              uint32_t parity)
{
    c.index = blockIdx.x;
    c.kb = 0;
    c.stage = 0;
    c.parity = parity;
    if (cursor_is_valid(tiles, c)) {
        c.tile = tiles.at(p, c.index);
    }
}

SIMT_DEVICE void cursor_next_stage(const linear_wgmma_t &p, cursor_t &c)
{
    if (++c.stage == p.plan.stages) {
        c.stage = 0;
        c.parity ^= 1;
    }
}

template <class Known>
SIMT_DEVICE void cursor_next(const linear_wgmma_t &p, const Known &tiles, cursor_t &c)
{
    cursor_next_stage(p, c);
    c.kb += p.plan.stage_blocks;
    if (c.kb >= p.k_blocks) {
        c.kb = 0;
        c.index += gridDim.x;
        if (cursor_is_valid(tiles, c)) {
            c.tile = tiles.at(p, c.index);
        }
    }
}

typedef struct ring {
    uint8_t *stages; /* each: span units of W a k block, then tokens of x a k block */
    simt_mbarrier_t *full;
    simt_mbarrier_t *empty;
} ring_t;

SIMT_DEVICE uint8_t *stage_x(const linear_wgmma_t &p, uint8_t *stage)
{
    return stage + p.plan.stage_blocks * p.plan.span * UNIT_BYTES;
}

/*
 * Copies a stage's weights: one copy for each k block and each 64 rows of memory that the tile touches,
 * shared out over the lanes, for one lane alone would spend more time on addresses than the copy
 * takes.
 */
template <class Known>
SIMT_DEVICE void load_weights(const linear_wgmma_t &p, const Known &tiles, const ring_t &ring,
                              const cursor_t &c)
{
    const uint64_t hint = tiles.streams() ? SIMT_L2_EVICT_FIRST : SIMT_L2_NORMAL;
    const uint32_t end = c.tile.unit + c.tile.units;
    const uint32_t first = c.tile.unit / 4;
    const uint32_t pieces = (end + 3) / 4 - first;
    const uint32_t shift = pieces <= 2 ? 1 : 3; /* 5 at most; a division would take as long */
    const uint32_t copies = cursor_blocks(p, c) << shift;
    uint8_t *to = ring.stages + c.stage * p.plan.stage_bytes;
    for (uint32_t i = (uint32_t)simt_lane(); i < copies; i += SIMT_WARP) {
        const uint32_t b = i >> shift;
        const uint32_t piece = first + (i & ((1u << shift) - 1));
        if (piece * 4 >= end) {
            continue;
        }
        const uint32_t from = piece * 4 > c.tile.unit ? piece * 4 : c.tile.unit;
        const uint32_t until = piece * 4 + 4 < end ? piece * 4 + 4 : end;
        simt_tma_load(to + (b * p.plan.span + from - c.tile.unit) * UNIT_BYTES,
                      tiles.weights(c.tile) + ((size_t)piece * p.k_blocks + c.kb + b) * TILE_BYTES +
                          from % 4 * UNIT_BYTES,
                      (until - from) * UNIT_BYTES, &ring.full[c.stage], hint);
    }
}

template <class Known>
SIMT_DEVICE void load_x(const linear_wgmma_t &p, const Known &tiles, const simt_tensor_map_t *x,
                        const ring_t &ring, const cursor_t &c)
{
    const uint32_t column = tiles.column(c.tile) + c.kb * LINEAR_K_BLOCK;
    uint8_t *to = stage_x(p, ring.stages + c.stage * p.plan.stage_bytes);
    for (uint32_t b = (uint32_t)simt_lane(); b < cursor_blocks(p, c); b += SIMT_WARP) {
        simt_tma_load_2d(to + b * p.plan.tokens * 128, x, (int)(column + b * LINEAR_K_BLOCK),
                         (int)c.tile.token, &ring.full[c.stage], SIMT_L2_EVICT_LAST);
    }
}

/* A warp. Weights are nobody's result: their first stages do not wait for the kernel before. */
template <class Known>
SIMT_DEVICE void produce_weights(const linear_wgmma_t &p, const Known &tiles, const ring_t &ring)
{
    cursor_t c = {};
    for (cursor_begin(p, tiles, c, 1); cursor_is_valid(tiles, c); cursor_next(p, tiles, c)) {
        simt_mbarrier_wait(&ring.empty[c.stage], c.parity);
        if (simt_lane() == 0) {
            simt_mbarrier_arrive_expect(&ring.full[c.stage],
                                        cursor_blocks(p, c) * c.tile.units * UNIT_BYTES);
        }
        simt_sync_warp();
        load_weights(p, tiles, ring, c);
    }
}

/* Another warp. */
template <class Known>
SIMT_DEVICE void produce_x(const linear_wgmma_t &p, const Known &tiles, const simt_tensor_map_t *x,
                           const ring_t &ring)
{
    cursor_t c = {};
    simt_tma_prefetch_map(x);
    simt_wait_previous();
    for (cursor_begin(p, tiles, c, 1); cursor_is_valid(tiles, c); cursor_next(p, tiles, c)) {
        simt_mbarrier_wait(&ring.empty[c.stage], c.parity);
        if (simt_lane() == 0) {
            simt_mbarrier_arrive_expect(&ring.full[c.stage],
                                        cursor_blocks(p, c) * p.plan.tokens * 128);
        }
        simt_sync_warp();
        load_x(p, tiles, x, ring, c);
    }
}

/* Adds a stage's k blocks to d; `adds` is false where d is yet to begin. */
template <int N>
SIMT_DEVICE void multiply(const linear_wgmma_t &p, uint8_t *stage, uint32_t group, uint32_t blocks,
                          bool adds, float (&d)[N / 2])
{
    for (uint32_t b = 0; b < blocks; b++) {
        const uint8_t *w = stage + b * p.plan.span * UNIT_BYTES + group * TILE_BYTES;
        const uint8_t *x = stage_x(p, stage) + b * N * 128;
        simt_wgmma_hold(d);
        simt_wgmma_fence();
        SIMT_UNROLL
        for (int j = 0; j < 4; j++) {
            simt_wgmma_bf16<N>(d, simt_wgmma_desc_k(w + 32 * j), simt_wgmma_desc_k(x + 32 * j),
                               adds || b > 0 || j > 0);
        }
        simt_wgmma_commit();
        simt_wgmma_hold(d);
    }
}

template <int N, class Known>
SIMT_DEVICE void store_tile(const Known &tiles, const wgmma_tile_t &tile, uint32_t group,
                            const float (&d)[N / 2])
{
    constexpr int TOGETHER = N / 8 < 4 ? N / 8 : 4;
    const uint32_t unit = group * 4 + (uint32_t)simt_warp() % 4;
    if (unit >= tile.units) {
        return;
    }
    const linear_store_t &store = tiles.store(tile);
    SIMT_UNROLL
    for (int n = 0; n < N / 8; n += TOGETHER) {
        if (tile.token + n * 8 < store.rows) {
            linear_store_fragments<TOGETHER>(store, tile.unit + unit, tile.token + n * 8,
                                             d + 4 * n);
        }
    }
}

/* A warp group. */
template <int N, class Known>
SIMT_DEVICE void consume(const linear_wgmma_t &p, const Known &tiles, const ring_t &ring,
                         uint32_t group)
{
    const bool is_first = simt_lane() == 0;
    cursor_t c = {};
    simt_wait_previous(); /* y may be the one before's */
    cursor_begin(p, tiles, c, 0);
    while (cursor_is_valid(tiles, c)) {
        const wgmma_tile_t tile = c.tile;
        float d[N / 2];
        uint32_t held = MAX_STAGES; /* the stage whose product may still run */
        uint32_t kb;
        do {
            kb = c.kb;
            simt_mbarrier_wait(&ring.full[c.stage], c.parity);
            multiply<N>(p, ring.stages + c.stage * p.plan.stage_bytes, group, cursor_blocks(p, c),
                        kb > 0, d);
            simt_wgmma_wait<1>();
            if (held != MAX_STAGES && is_first) {
                simt_mbarrier_arrive(&ring.empty[held]);
            }
            held = c.stage;
            cursor_next(p, tiles, c);
        } while (kb + p.plan.stage_blocks < p.k_blocks);
        simt_wgmma_wait<0>();
        simt_wgmma_hold(d);
        if (is_first) {
            simt_mbarrier_arrive(&ring.empty[held]);
        }
        store_tile<N>(tiles, tile, group, d);
    }
}

#endif /* SIMT_HOPPER */

template <int N, int GROUPS, class Tiles>
static SIMT_KERNEL(128 * (GROUPS + 1), 1)
    linear_wgmma_kernel(const linear_wgmma_t p, const SIMT_GRID_CONSTANT Tiles all,
                        const SIMT_GRID_CONSTANT simt_tensor_map_t x)
{
#if SIMT_HOPPER
    SIMT_DYN_SHARED(uint8_t, shared);
    ring_t ring;
    ring.stages = shared;
    ring.full = reinterpret_cast<simt_mbarrier_t *>(shared + p.plan.stages * p.plan.stage_bytes);
    ring.empty = ring.full + p.plan.stages;
    const uint32_t group = simt_shfl((uint32_t)simt_warp() / 4, 0); /* known to be uniform */

    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < p.plan.stages; i++) {
            simt_mbarrier_init(&ring.full[i], 2);           /* weights and x */
            simt_mbarrier_init(&ring.empty[i], 4 * GROUPS); /* one arrival a consumer warp */
        }
        simt_mbarrier_fence_init();
    }
    simt_launch_next();
    simt_sync_block();
    const typename Tiles::known tiles = all.begin(p);
    if (group == GROUPS) {
        if constexpr (N == 256) {
            simt_registers_lower<40>();
        }
        const uint32_t warp = simt_shfl((uint32_t)simt_warp() % 4, 0);
        if (warp == 0) {
            produce_weights(p, tiles, ring);
        } else if (warp == 1) {
            produce_x(p, tiles, &x, ring);
        }
    } else {
        if constexpr (N == 256) {
            simt_registers_raise<232>();
        }
        consume<N>(p, tiles, ring, group);
    }
#else
    (void)p;
    (void)all;
    (void)x;
#endif
}

/* ---- host ------------------------------------------------------------------------------------ */

template <int N, int GROUPS, class Tiles>
static cudaError_t wgmma_launch_cut(const linear_wgmma_t &p, const Tiles &tiles,
                                    const simt_tensor_map_t &x, cudaStream_t stream)
{
    const size_t barriers = p.plan.stages * 2 * sizeof(simt_mbarrier_t);
    return simt_launch((linear_wgmma_kernel<N, GROUPS, Tiles>),
                       {.grid = {p.plan.blocks},
                        .block = {128 * (GROUPS + 1)},
                        .shared_bytes = p.plan.stages * p.plan.stage_bytes + barriers,
                        .stream = stream,
                        .overlaps_previous = true},
                       p, tiles, x);
}

template <class Tiles>
static cudaError_t wgmma_launch(const linear_wgmma_t &p, const Tiles &tiles,
                                const simt_tensor_map_t &x, cudaStream_t stream)
{
    switch (p.plan.tokens * 10 + p.plan.groups) {
#define CASE(tokens, groups)                                                                       \
    case tokens * 10 + groups:                                                                     \
        return wgmma_launch_cut<tokens, groups>(p, tiles, x, stream);
        CASE(8, 1)
        CASE(8, 2)
        CASE(8, 3)
        CASE(8, 4)
        CASE(16, 1)
        CASE(16, 2)
        CASE(16, 3)
        CASE(16, 4)
        CASE(32, 1)
        CASE(32, 2)
        CASE(32, 3)
        CASE(32, 4)
        CASE(64, 1)
        CASE(64, 2)
        CASE(64, 3)
        CASE(64, 4)
        CASE(128, 1)
        CASE(128, 2)
        CASE(256, 1)
        CASE(256, 2)
#undef CASE
    default:
        return cudaErrorNotSupported;
    }
}

/* x [rows, columns], in boxes of a k block and so many tokens. */
static inline cudaError_t wgmma_map_x(const void *x, uint32_t rows, uint32_t columns, size_t stride,
                                      uint32_t tokens, simt_tensor_map_t *map_out)
{
    simt_tensor_t tensor = {};
    tensor.data = const_cast<void *>(x);
    tensor.element_bytes = 2;
    tensor.rank = 2;
    tensor.dims[0] = columns;
    tensor.dims[1] = rows;
    tensor.strides[0] = stride * 2;
    tensor.box[0] = LINEAR_K_BLOCK;
    tensor.box[1] = tokens;
    tensor.swizzle = SIMT_SWIZZLE_128;
    return simt_tensor_map_encode(&tensor, map_out);
}
