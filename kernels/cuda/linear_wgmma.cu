/* SPDX-License-Identifier: Apache-2.0 */
/*
 * y = x Wᵀ by wgmma, BF16 weights on Hopper, from one token to thousands.
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
#include "kernels/cuda/cuda_linear_priv.h"
#include "kernels/cuda/linear_store.h"
#include "kernels/cuda/simt.h"

#define UNIT_BYTES 2048 /* 16 rows of 128 bytes */
#define TILE_BYTES 8192 /* 4 units: what lies together in memory */
#define MAX_STAGES 32

typedef struct linear_wgmma {
    const uint8_t *weights;
    linear_wgmma_plan_t plan;
    uint32_t k_blocks;
    uint32_t units;
    uint32_t spans;        /* tiles along W */
    uint32_t token_blocks; /* tiles along x */
    uint32_t
        token_group; /* token blocks that a span of W meets before the next span: they fit in L2 */
    linear_store_t store;
} linear_wgmma_t;

#if SIMT_HOPPER

typedef struct tile {
    uint32_t unit; /* first of W */
    uint32_t units;
    uint32_t token;
} tile_t;

SIMT_DEVICE tile_t tile_at(const linear_wgmma_t &p, uint32_t index)
{
    const uint32_t group = index / (p.spans * p.token_group);
    const uint32_t inside = index % (p.spans * p.token_group);
    const uint32_t left = p.token_blocks - group * p.token_group;
    const uint32_t width = left < p.token_group ? left : p.token_group;
    tile_t tile;
    tile.unit = inside / width * p.plan.span;
    tile.units = p.units - tile.unit < p.plan.span ? p.units - tile.unit : p.plan.span;
    tile.token = (group * p.token_group + inside % width) * p.plan.tokens;
    return tile;
}

/* One stage's worth of the walk over this block's tiles. */
typedef struct cursor {
    uint32_t index; /* of the tile */
    tile_t tile;
    uint32_t kb;
    uint32_t stage;
    uint32_t parity;
} cursor_t;

SIMT_DEVICE bool cursor_is_valid(const linear_wgmma_t &p, const cursor_t &c)
{
    return c.index < p.spans * p.token_blocks;
}

SIMT_DEVICE uint32_t cursor_blocks(const linear_wgmma_t &p, const cursor_t &c)
{
    const uint32_t left = p.k_blocks - c.kb;
    return left < p.plan.stage_blocks ? left : p.plan.stage_blocks;
}

SIMT_DEVICE void cursor_begin(const linear_wgmma_t &p, cursor_t &c, uint32_t parity)
{
    c.index = blockIdx.x;
    c.kb = 0;
    c.stage = 0;
    c.parity = parity;
    if (cursor_is_valid(p, c)) {
        c.tile = tile_at(p, c.index);
    }
}

SIMT_DEVICE void cursor_next_stage(const linear_wgmma_t &p, cursor_t &c)
{
    if (++c.stage == p.plan.stages) {
        c.stage = 0;
        c.parity ^= 1;
    }
}

SIMT_DEVICE void cursor_next(const linear_wgmma_t &p, cursor_t &c)
{
    cursor_next_stage(p, c);
    c.kb += p.plan.stage_blocks;
    if (c.kb >= p.k_blocks) {
        c.kb = 0;
        c.index += gridDim.x;
        if (cursor_is_valid(p, c)) {
            c.tile = tile_at(p, c.index);
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
SIMT_DEVICE void load_weights(const linear_wgmma_t &p, const ring_t &ring, const cursor_t &c)
{
    const uint64_t hint = p.token_blocks == 1 ? SIMT_L2_EVICT_FIRST : SIMT_L2_NORMAL;
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
                      p.weights + ((size_t)piece * p.k_blocks + c.kb + b) * TILE_BYTES +
                          from % 4 * UNIT_BYTES,
                      (until - from) * UNIT_BYTES, &ring.full[c.stage], hint);
    }
}

SIMT_DEVICE void load_x(const linear_wgmma_t &p, const simt_tensor_map_t *x, const ring_t &ring,
                        const cursor_t &c)
{
    uint8_t *to = stage_x(p, ring.stages + c.stage * p.plan.stage_bytes);
    for (uint32_t b = (uint32_t)simt_lane(); b < cursor_blocks(p, c); b += SIMT_WARP) {
        simt_tma_load_2d(to + b * p.plan.tokens * 128, x, (int)((c.kb + b) * LINEAR_K_BLOCK),
                         (int)c.tile.token, &ring.full[c.stage], SIMT_L2_EVICT_LAST);
    }
}

/* A warp. Weights are nobody's result: their first stages do not wait for the kernel before. */
SIMT_DEVICE void produce_weights(const linear_wgmma_t &p, const ring_t &ring)
{
    cursor_t c = {};
    for (cursor_begin(p, c, 1); cursor_is_valid(p, c); cursor_next(p, c)) {
        simt_mbarrier_wait(&ring.empty[c.stage], c.parity);
        if (simt_lane() == 0) {
            simt_mbarrier_arrive_expect(&ring.full[c.stage],
                                        cursor_blocks(p, c) * c.tile.units * UNIT_BYTES);
        }
        simt_sync_warp();
        load_weights(p, ring, c);
    }
}

/* Another warp. */
SIMT_DEVICE void produce_x(const linear_wgmma_t &p, const simt_tensor_map_t *x, const ring_t &ring)
{
    cursor_t c = {};
    simt_tma_prefetch_map(x);
    simt_wait_previous();
    for (cursor_begin(p, c, 1); cursor_is_valid(p, c); cursor_next(p, c)) {
        simt_mbarrier_wait(&ring.empty[c.stage], c.parity);
        if (simt_lane() == 0) {
            simt_mbarrier_arrive_expect(&ring.full[c.stage],
                                        cursor_blocks(p, c) * p.plan.tokens * 128);
        }
        simt_sync_warp();
        load_x(p, x, ring, c);
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

template <int N>
SIMT_DEVICE void store_tile(const linear_wgmma_t &p, const tile_t &tile, uint32_t group,
                            const float (&d)[N / 2])
{
    constexpr int TOGETHER = N / 8 < 4 ? N / 8 : 4;
    const uint32_t unit = group * 4 + (uint32_t)simt_warp() % 4;
    if (unit >= tile.units) {
        return;
    }
    SIMT_UNROLL
    for (int n = 0; n < N / 8; n += TOGETHER) {
        if (tile.token + n * 8 < p.store.rows) {
            linear_store_fragments<TOGETHER>(p.store, tile.unit + unit, tile.token + n * 8,
                                             d + 4 * n);
        }
    }
}

/* A warp group. */
template <int N>
SIMT_DEVICE void consume(const linear_wgmma_t &p, const ring_t &ring, uint32_t group)
{
    const bool is_first = simt_lane() == 0;
    cursor_t c = {};
    simt_wait_previous(); /* y may be the one before's */
    cursor_begin(p, c, 0);
    while (cursor_is_valid(p, c)) {
        const tile_t tile = c.tile;
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
            cursor_next(p, c);
        } while (kb + p.plan.stage_blocks < p.k_blocks);
        simt_wgmma_wait<0>();
        simt_wgmma_hold(d);
        if (is_first) {
            simt_mbarrier_arrive(&ring.empty[held]);
        }
        store_tile<N>(p, tile, group, d);
    }
}

#endif /* SIMT_HOPPER */

template <int N, int GROUPS>
static SIMT_KERNEL(128 * (GROUPS + 1), 1)
    linear_wgmma_kernel(const linear_wgmma_t p, const SIMT_GRID_CONSTANT simt_tensor_map_t x)
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
    if (group == GROUPS) {
        if constexpr (N == 256) {
            simt_registers_lower<40>();
        }
        const uint32_t warp = simt_shfl((uint32_t)simt_warp() % 4, 0);
        if (warp == 0) {
            produce_weights(p, ring);
        } else if (warp == 1) {
            produce_x(p, &x, ring);
        }
    } else {
        if constexpr (N == 256) {
            simt_registers_raise<232>();
        }
        consume<N>(p, ring, group);
    }
#else
    (void)p;
    (void)x;
#endif
}

template <int N, int GROUPS>
static cudaError_t launch(const linear_wgmma_t &p, const simt_tensor_map_t &x, cudaStream_t stream)
{
    const size_t barriers = p.plan.stages * 2 * sizeof(simt_mbarrier_t);
    return simt_launch(linear_wgmma_kernel<N, GROUPS>,
                       {.grid = {p.plan.blocks},
                        .block = {128 * (GROUPS + 1)},
                        .shared_bytes = p.plan.stages * p.plan.stage_bytes + barriers,
                        .stream = stream,
                        .overlaps_previous = true},
                       p, x);
}

static cudaError_t map_x(const k_cuda_linear_t *args, uint32_t tokens, simt_tensor_map_t *map_out)
{
    simt_tensor_t x = {};
    x.data = const_cast<void *>(args->x);
    x.element_bytes = 2;
    x.rank = 2;
    x.dims[0] = args->w.columns;
    x.dims[1] = args->rows;
    x.strides[0] = args->x_stride * 2;
    x.box[0] = LINEAR_K_BLOCK;
    x.box[1] = tokens;
    x.swizzle = SIMT_SWIZZLE_128;
    return simt_tensor_map_encode(&x, map_out);
}

extern "C" int k_cuda_linear_wgmma(const k_cuda_linear_t *args, const linear_wgmma_plan_t *plan,
                                   cudaStream_t stream)
{
    linear_wgmma_t p = {};
    p.weights = static_cast<const uint8_t *>(args->w.data);
    p.plan = *plan;
    p.k_blocks = linear_k_blocks(args->w.columns);
    p.units = linear_units(args->w.is_gate_up, args->w.rows);
    p.spans = (p.units + plan->span - 1) / plan->span;
    p.token_blocks = (args->rows + plan->tokens - 1) / plan->tokens;
    p.token_group = p.token_blocks < 8 ? p.token_blocks : 8;
    p.store = linear_store_of(args);

    simt_tensor_map_t x;
    const cudaError_t error = map_x(args, plan->tokens, &x);
    if (error != cudaSuccess) {
        return error;
    }
    switch (plan->tokens * 10 + plan->groups) {
#define CASE(tokens, groups)                                                                       \
    case tokens * 10 + groups:                                                                     \
        return launch<tokens, groups>(p, x, stream);
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
