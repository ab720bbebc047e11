/* SPDX-License-Identifier: Apache-2.0 */
/*
 * linear_scaled: the kernel of products by wgmma, weights with scales on Hopper, from a few tokens to
 * thousands; for one matrix (linear_scaled.cu) and many (group_scaled.cu).
 *
 * The weights' rows are the M of the instruction, and come from registers: each warp has one unit of 16
 * rows and makes bf16 of its packed blocks while the scale group before is multiplied. The tokens are
 * its N. A warp group of its own fetches k blocks of both by TMA, stages ahead, so that those that multiply
 * do little else: at few tokens instructions are what they wait for, not memory.
 *
 * The sums are those of linear_mma: each scale group is summed from zero and added, scaled, to the
 * part of K it lies in; the parts are added in order. Warp groups of a block that share out the
 * parts leave theirs in shared memory for the first to add.
 */
#pragma once

#include "kernels/cuda/linear/cuda_linear_priv.h"
#include "kernels/cuda/linear/linear_store.h"
#include "kernels/cuda/linear/weight_formats.h"
#include "kernels/cuda/simt/simt.h"

#define PARTS  LINEAR_MMA_SPLITS
#define WGROUP 128 /* threads of a warp group */

#define SCALED_SHARED_BYTES (222 << 10) /* of a block; a walk over many matrices takes some more */
#define ALL_GROUPS          15          /* a named barrier; the groups' own are 1 and up */

typedef struct linear_scaled {
    uint32_t k_blocks;
    uint32_t units;
} linear_scaled_t;

/*
 * What a block multiplies. Which of them there are is a type of its own, that kernels take by value:
 * rows_of(tile, &rows) tells those of the n-th tile of so many tokens, false that there is none;
 * all threads of the block call. Its READS_FIRST says that weights may be read before the kernel
 * before has ended.
 */
typedef struct scaled_rows {
    const void *weights;
    uint32_t token;       /* first row of x */
    uint32_t column;      /* of x */
    linear_store_t store; /* of the first row on */
} scaled_rows_t;

/*
 * TOKENS of a block; SPANS × 64 rows of W; SHARES warp groups that share out the parts of K of each
 * 64 rows. In shared memory: of each share a ring of stages, a k block of x and of the spans' units
 * each; of each span the sums of parts: the first share adds up its own, the others keep each, and
 * what is the last of a share stays in registers.
 */
template <class W, int TOKENS, int SPANS, int SHARES> struct scaled_shape {
    static constexpr int tokens = TOKENS, spans = SPANS;
    static constexpr uint32_t shares = SHARES;
    static constexpr int groups = SPANS * SHARES;
    static constexpr int threads = (groups + 1) * WGROUP; /* the last group fetches */
    static constexpr int fetch_registers = 32;
    static constexpr int registers =
        ((groups + 1) * simt_launch_registers(threads) - fetch_registers) / groups / 8 * 8;
    static constexpr uint32_t parts = PARTS / SHARES; /* of a share */
    /* Many are multiplied in halves, by turns: one is while the sums of the other are added up. */
    static constexpr int pieces = TOKENS <= 64 ? 1 : 2;
    static constexpr int piece = TOKENS / pieces;

    static constexpr int sum_bytes = TOKENS / 2 * WGROUP * 4;
    static constexpr int kept = 1 + (SHARES - 1) * (parts - 1);
    /* of three blocks, which warps of a group may be at, two groups each */
    static constexpr int x_sum_bytes = W::HAS_MIN ? 3 * 2 * TOKENS * 4 : 0;
    static constexpr int fixed_bytes = SPANS * kept * sum_bytes + groups * x_sum_bytes;

    static constexpr int x_bytes = TOKENS * 128;
    static constexpr int w_bytes = SPANS * 4 * W::BYTES;
    static constexpr int barrier_bytes = 2 * 8;
    static constexpr int room = SCALED_SHARED_BYTES - fixed_bytes;
    static constexpr int fit = room / (SHARES * (x_bytes + w_bytes + barrier_bytes));
    static constexpr uint32_t stages = fit < 8 ? fit : 8;
    static_assert(stages >= 2);

    static constexpr int x_at = 0;
    static constexpr int w_at = SHARES * stages * x_bytes;
    static constexpr int sums_at = w_at + SHARES * stages * w_bytes;
    static constexpr int x_sums_at = sums_at + SPANS * kept * sum_bytes;
    static constexpr int barriers_at = x_sums_at + groups * x_sum_bytes;
    static constexpr int bytes = barriers_at + SHARES * stages * barrier_bytes;
    /* The last parts lie where the rings were. */
    static_assert((SHARES - 1) * SPANS * sum_bytes <= sums_at);
};

#if SIMT_HOPPER

SIMT_DEVICE uint32_t part_begin(const linear_scaled_t &p, uint32_t part)
{
    return p.k_blocks * part / PARTS;
}

/* ---- the rings --------------------------------------------------------------------------------- */

/* The ring of a share of K, which has n k blocks from `first` on. */
template <class S> struct scaled_ring_t {
    uint8_t *x;
    uint8_t *w;
    simt_mbarrier_t *barriers; /* full, empty of each stage */
    uint32_t first;
    uint32_t n;
};

template <class S>
SIMT_DEVICE scaled_ring_t<S> scaled_ring(const linear_scaled_t &p, uint32_t share, uint8_t *shared)
{
    scaled_ring_t<S> ring;
    ring.x = shared + S::x_at + share * S::stages * S::x_bytes;
    ring.w = shared + S::w_at + share * S::stages * S::w_bytes;
    ring.barriers = reinterpret_cast<simt_mbarrier_t *>(shared + S::barriers_at) +
                    share * S::stages * 2;
    ring.first = part_begin(p, share * S::parts);
    ring.n = part_begin(p, (share + 1) * S::parts) - ring.first;
    return ring;
}

/* A place in a ring; parity: of the phase in which it is filled. */
typedef struct scaled_stage {
    uint32_t index;
    uint32_t parity;
} scaled_stage_t;

template <class S> SIMT_DEVICE scaled_stage_t scaled_next_stage(scaled_stage_t stage)
{
    const bool wraps = stage.index + 1 == S::stages;
    return {wraps ? 0 : stage.index + 1, wraps ? stage.parity ^ 1 : stage.parity};
}

template <class S>
SIMT_DEVICE simt_mbarrier_t *scaled_full(const scaled_ring_t<S> &ring, scaled_stage_t stage)
{
    return ring.barriers + stage.index * 2;
}

template <class S>
SIMT_DEVICE simt_mbarrier_t *scaled_empty(const scaled_ring_t<S> &ring, scaled_stage_t stage)
{
    return ring.barriers + stage.index * 2 + 1;
}

template <class S>
SIMT_DEVICE uint8_t *scaled_x(const scaled_ring_t<S> &ring, scaled_stage_t stage)
{
    return ring.x + stage.index * S::x_bytes;
}

/* The block of W of the share's warp `warp`. */
template <class W, class S>
SIMT_DEVICE uint8_t *scaled_w(const scaled_ring_t<S> &ring, scaled_stage_t stage, uint32_t warp)
{
    return ring.w + stage.index * S::w_bytes + warp * W::BYTES;
}

/* ---- the warps that fetch ------------------------------------------------------------------------ */

/* What a lane fetches of each k block of a share: x, or the blocks of one warp. */
template <class S> struct scaled_lane_t {
    scaled_ring_t<S> ring;
    uint32_t warp; /* of the share */
    bool is_x;
    const uint8_t *weights;
};

template <class W, class S>
SIMT_DEVICE scaled_lane_t<S> scaled_lane(const linear_scaled_t &p, const scaled_rows_t &rows,
                                         uint32_t first_unit, uint8_t *shared)
{
    constexpr uint32_t each = S::spans * 4 + 1;
    const uint32_t job = (uint32_t)simt_lane() * 4 + (uint32_t)simt_warp() % 4;
    scaled_lane_t<S> lane;
    const uint32_t share = job / each;
    lane.ring = scaled_ring<S>(p, share, shared);
    lane.ring.n = share < S::shares ? lane.ring.n : 0;
    lane.warp = job % each;
    lane.is_x = lane.warp == each - 1;
    const uint32_t unit = first_unit + lane.warp;
    const uint32_t at = unit < p.units ? unit : p.units - 1; /* read and dropped */
    lane.weights = W::block(rows.weights, at, lane.ring.first, p.k_blocks);
    return lane;
}

template <class S>
SIMT_DEVICE void scaled_fetch_x(const scaled_lane_t<S> &lane, const scaled_rows_t &rows,
                                const simt_tensor_map_t *x, uint32_t at, scaled_stage_t stage)
{
    simt_mbarrier_t *full = scaled_full(lane.ring, stage);
    simt_mbarrier_arrive_expect(full, S::x_bytes);
    simt_tma_load_2d(scaled_x(lane.ring, stage), x,
                     (int)(rows.column + (lane.ring.first + at) * LINEAR_K_BLOCK), (int)rows.token,
                     full, SIMT_L2_EVICT_LAST);
}

template <class W, class S>
SIMT_DEVICE void scaled_fetch_w(const scaled_lane_t<S> &lane, uint32_t at, scaled_stage_t stage)
{
    simt_mbarrier_t *full = scaled_full(lane.ring, stage);
    simt_mbarrier_arrive_expect(full, W::BYTES);
    simt_tma_load(scaled_w<W>(lane.ring, stage, lane.warp), lane.weights + at * W::STRIDE, W::BYTES,
                  full);
}

/*
 * All that the block multiplies, each lane its own; weights first, x is the kernel's before. A warp's
 * copies begin one after the other, ten instructions each: all four warps of the group share them out.
 * A lane that waits may hold up the others of its warp. So each fetches its first stages before any
 * waits; then all wait at the same turn, each in its share's ring, for a stage that is free once its
 * k block and the next one have come, which all lanes have fetched by then.
 */
template <class W, class S>
SIMT_DEVICE void scaled_fetch_all(const linear_scaled_t &p, const scaled_rows_t &rows,
                                  const simt_tensor_map_t *x, uint32_t first_unit, uint8_t *shared)
{
    const scaled_lane_t<S> lane = scaled_lane<W, S>(p, rows, first_unit, shared);
    const uint32_t free = lane.ring.n < S::stages ? lane.ring.n : S::stages;
    for (uint32_t at = 0; at < free && !lane.is_x; at++) {
        scaled_fetch_w<W>(lane, at, {at, 0});
    }
    simt_sync_warp();
    simt_wait_previous();
    for (uint32_t at = 0; at < free && lane.is_x; at++) {
        scaled_fetch_x(lane, rows, x, at, {at, 0});
    }
    simt_sync_warp();
    scaled_stage_t stage = {0, 1};
    for (uint32_t at = S::stages; at < lane.ring.n; at++) {
        simt_mbarrier_wait(scaled_empty(lane.ring, stage), stage.parity ^ 1);
        if (lane.is_x) {
            scaled_fetch_x(lane, rows, x, at, stage);
        } else {
            scaled_fetch_w<W>(lane, at, stage);
        }
        stage = scaled_next_stage<S>(stage);
    }
}

/* ---- a warp group ------------------------------------------------------------------------------- */

/* Its place in the block. */
template <class S> struct scaled_group_t {
    uint32_t index;
    uint32_t span;
    uint32_t share;
    scaled_ring_t<S> ring;
    uint8_t *shared;
};

template <class S>
SIMT_DEVICE scaled_group_t<S> scaled_group(const linear_scaled_t &p, uint32_t index,
                                           uint8_t *shared)
{
    scaled_group_t<S> g;
    g.index = index;
    g.span = index % S::spans;
    g.share = index / S::spans;
    g.ring = scaled_ring<S>(p, g.share, shared);
    g.shared = shared;
    return g;
}

/* ---- sums of x ---------------------------------------------------------------------------------- */

/*
 * Sums of x of each pair of steps, as linear_mma makes them: the warps of the group have some of the
 * tokens each. at: the block's number; the group waits for all.
 */
template <class W, class S>
SIMT_DEVICE const float *scaled_x_sums(const scaled_group_t<S> &g, const uint8_t *x, uint32_t at)
{
    constexpr uint32_t one = weight_one<W>();
    const uint32_t ones[4] = {one, one, one, one};
    float *to = reinterpret_cast<float *>(g.shared + S::x_sums_at + g.index * S::x_sum_bytes) +
                at % 3 * 2 * S::tokens;
    const uint32_t row = (uint32_t)simt_lane() % 8;
    for (uint32_t n = (uint32_t)simt_warp() % 4; n < S::tokens / 8; n += 4) {
        for (uint32_t pair = 0; pair < 2; pair++) {
            float sum[4] = {0, 0, 0, 0};
            uint32_t b[4];
            const uint32_t chunk = pair * 4 + (uint32_t)simt_lane() / 8;
            simt_ldmatrix_x4(b, x + (n * 8 + row) * 128 + (chunk ^ row) * 16);
            for (int j = 0; j < 2; j++) {
                const uint32_t step[2] = {b[2 * j], b[2 * j + 1]};
                simt_mma_bf16(sum, ones, step);
            }
            if (simt_lane() < 4) {
                *reinterpret_cast<float2 *>(to + pair * S::tokens + n * 8 + simt_lane() * 2) =
                    make_float2(sum[0], sum[1]);
            }
        }
    }
    simt_barrier_sync(1 + (int)g.index, WGROUP);
    return to;
}

/* ---- sums of parts ------------------------------------------------------------------------------ */

/* A thread's own 16 bytes of sums 4i.. in slot `slot` of those that begin at `sums`. */
template <class S> SIMT_DEVICE float4 *scaled_sum(uint8_t *sums, uint32_t slot, int i)
{
    return reinterpret_cast<float4 *>(sums + slot * S::sum_bytes) + i * WGROUP +
           threadIdx.x % WGROUP;
}

template <class S> SIMT_DEVICE uint8_t *scaled_span_sums(const scaled_group_t<S> &g)
{
    return g.shared + S::sums_at + g.span * S::kept * S::sum_bytes;
}

/* The slot of a part that is not the last of its share. */
template <class S> SIMT_DEVICE uint32_t scaled_slot(uint32_t share, uint32_t part)
{
    return share == 0 ? 0 : 1 + (share - 1) * (S::parts - 1) + part;
}

/* Where a share that is not the first leaves its last part, when nobody multiplies any more. */
template <class S> SIMT_DEVICE uint8_t *scaled_last_sums(const scaled_group_t<S> &g)
{
    return g.shared + g.span * (S::shares - 1) * S::sum_bytes;
}

SIMT_DEVICE float4 scaled_add(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

SIMT_DEVICE float4 scaled_four(const float *v)
{
    return make_float4(v[0], v[1], v[2], v[3]);
}

template <class S>
SIMT_DEVICE void scaled_keep(uint8_t *sums, uint32_t slot, const float (&acc)[S::tokens / 2])
{
    SIMT_UNROLL
    for (int i = 0; i < S::tokens / 8; i++) {
        *scaled_sum<S>(sums, slot, i) = scaled_four(acc + 4 * i);
    }
}

/* A part of the share's, not the last, ends: acc goes where the parts are added, and begins anew. */
template <class S>
SIMT_DEVICE void scaled_end_part(const scaled_group_t<S> &g, uint32_t part,
                                 float (&acc)[S::tokens / 2])
{
    uint8_t *sums = scaled_span_sums(g);
    const uint32_t slot = scaled_slot<S>(g.share, part);
    const bool adds = g.share == 0 && part > 0;
    SIMT_UNROLL
    for (int i = 0; i < S::tokens / 8; i++) {
        float4 v = scaled_four(acc + 4 * i);
        float4 *to = scaled_sum<S>(sums, slot, i);
        *to = adds ? scaled_add(*to, v) : v;
        acc[4 * i] = acc[4 * i + 1] = acc[4 * i + 2] = acc[4 * i + 3] = 0;
    }
}

/* ---- the walk ---------------------------------------------------------------------------------- */

template <class W> constexpr int scaled_steps() /* of a scale group */
{
    return W::GROUP / 16;
}

template <class W> constexpr int scaled_groups() /* of a k block */
{
    return 4 / scaled_steps<W>();
}

template <class W>
SIMT_DEVICE void scaled_fragments(const typename W::raw &w, int group,
                                  uint32_t (&a)[scaled_steps<W>()][4])
{
    constexpr int STEPS = scaled_steps<W>();
    SIMT_UNROLL
    for (int j = 0; j < STEPS; j++) {
        uint32_t part[1][4];
        W::fragment(w, group * STEPS + j, part);
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            a[j][i] = part[0][i];
        }
    }
}

/* Adds the sums d of the tokens from `first` on, scaled, to acc. */
template <class W, class S>
SIMT_DEVICE void scaled_accumulate(const typename W::raw &w, int group, int first,
                                   const float (&d)[S::piece / 2], const float *x_sums,
                                   float (&acc)[S::tokens / 2])
{
    const float2 scale = W::scale(w, group);
    const float2 offset = W::offset(w, group);
    SIMT_UNROLL
    for (int n = 0; n < S::piece / 8; n++) {
        float *to = acc + first / 2 + 4 * n;
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            to[i] = fmaf(i < 2 ? scale.x : scale.y, d[4 * n + i], to[i]);
        }
        if constexpr (W::HAS_MIN != 0) {
            const float2 x = *reinterpret_cast<const float2 *>(x_sums + group * S::tokens + first +
                                                               n * 8 + simt_lane() % 4 * 2);
            SIMT_UNROLL
            for (int i = 0; i < 4; i++) {
                to[i] = fmaf(i < 2 ? offset.x : offset.y, i % 2 == 0 ? x.x : x.y, to[i]);
            }
        }
    }
}

/* Begins d = a scale group's products with the tokens from `first` on; x: their k block. */
template <class W, class S>
SIMT_DEVICE void scaled_multiply(const uint32_t (&a)[scaled_steps<W>()][4], int group, uint64_t x,
                                 int first, float (&d)[S::piece / 2])
{
    constexpr int STEPS = scaled_steps<W>();
    simt_wgmma_hold(d);
    simt_wgmma_fence();
    SIMT_UNROLL
    for (int j = 0; j < STEPS; j++) {
        simt_wgmma_bf16<S::piece>(
            d, a[j], simt_wgmma_desc_add(x, first * 128 + 32 * (group * STEPS + j)), j > 0);
    }
    simt_wgmma_commit();
}

/* What a warp walks with: a k block of W and of x, and its place. */
template <class W> struct scaled_block_t {
    typename W::raw w;
    uint64_t x;
    const float *x_sums;
    scaled_stage_t stage;
};

/* Waits for k block `at`. */
template <class W, class S>
SIMT_DEVICE void scaled_take(const scaled_group_t<S> &g, uint32_t at, scaled_stage_t stage,
                             scaled_block_t<W> *block)
{
    const uint32_t warp = g.span * 4 + (uint32_t)simt_warp() % 4;
    const uint8_t *x = scaled_x(g.ring, stage);
    simt_mbarrier_wait(scaled_full(g.ring, stage), stage.parity);
    simt_sync_warp();
    block->w = W::load(scaled_w<W>(g.ring, stage, warp), (uint32_t)simt_lane() / 4,
                       (uint32_t)simt_lane() % 4);
    block->x = simt_wgmma_desc_k(x);
    block->stage = stage;
    if constexpr (W::HAS_MIN != 0) {
        block->x_sums = scaled_x_sums<W>(g, x, at);
    }
}

template <class S> SIMT_DEVICE void scaled_free(const scaled_group_t<S> &g, scaled_stage_t stage)
{
    simt_sync_warp();
    if (simt_lane() == 0) {
        simt_mbarrier_arrive(scaled_empty(g.ring, stage));
    }
}

/*
 * One k block; a[0]: the fragments of its first scale group, then those of the next block's, for which
 * the group waits meanwhile.
 */
template <class W, class S>
SIMT_DEVICE void scaled_step(const scaled_group_t<S> &g, uint32_t at, scaled_block_t<W> *block,
                             uint32_t (&a)[2][scaled_steps<W>()][4], float (&acc)[S::tokens / 2])
{
    constexpr int GROUPS = scaled_groups<W>();
    static_assert(GROUPS % 2 == 0, "fragments of the next block end in a[0]");
    float d[S::pieces][S::piece / 2];
    scaled_block_t<W> next = *block;
    SIMT_UNROLL
    for (int i = 0; i < S::pieces; i++) {
        scaled_multiply<W, S>(a[0], 0, block->x, i * S::piece, d[i]);
    }
    SIMT_UNROLL
    for (int group = 0; group < GROUPS; group++) {
        const bool ends = group + 1 == GROUPS;
        if (ends && at + 1 < g.ring.n) {
            scaled_take<W, S>(g, at + 1, scaled_next_stage<S>(block->stage), &next);
        }
        scaled_fragments<W>(ends ? next.w : block->w, (group + 1) % GROUPS, a[(group + 1) % 2]);
        SIMT_UNROLL
        for (int i = 0; i < S::pieces; i++) {
            if (ends && i + 1 == S::pieces) {
                simt_wgmma_wait<0>();
                scaled_free(g, block->stage);
            } else {
                simt_wgmma_wait<S::pieces - 1>();
            }
            simt_wgmma_hold(d[i]);
            scaled_accumulate<W, S>(block->w, group, i * S::piece, d[i], block->x_sums, acc);
            if (!ends) {
                scaled_multiply<W, S>(a[(group + 1) % 2], group + 1, block->x, i * S::piece, d[i]);
            }
        }
    }
    *block = next;
}

/* The group's parts of K of its 64 rows; acc: the last. */
template <class W, class S>
SIMT_DEVICE void scaled_walk(const linear_scaled_t &p, const scaled_group_t<S> &g,
                             float (&acc)[S::tokens / 2])
{
    uint32_t a[2][scaled_steps<W>()][4];
    scaled_block_t<W> block = {};
    uint32_t at = 0;
    if (g.ring.n > 0) {
        scaled_take<W, S>(g, 0, {0, 0}, &block);
    }
    scaled_fragments<W>(block.w, 0, a[0]);
    for (uint32_t part = 0; part < S::parts; part++) { /* some may be empty */
        const uint32_t end = part_begin(p, g.share * S::parts + part + 1) - g.ring.first;
        for (; at < end; at++) {
            scaled_step<W, S>(g, at, &block, a, acc);
        }
        if (part + 1 < S::parts) {
            scaled_end_part(g, part, acc);
        }
    }
}

/* Sums 4i.. of all parts in order, of the first share. */
template <class S>
SIMT_DEVICE float4 scaled_total(const scaled_group_t<S> &g, int i,
                                const float (&acc)[S::tokens / 2])
{
    float4 v = scaled_four(acc + 4 * i);
    if constexpr (S::parts > 1) {
        v = scaled_add(*scaled_sum<S>(scaled_span_sums(g), 0, i), v);
    }
    SIMT_UNROLL
    for (uint32_t share = 1; share < S::shares; share++) {
        SIMT_UNROLL
        for (uint32_t part = 0; part + 1 < S::parts; part++) {
            v = scaled_add(
                v, *scaled_sum<S>(scaled_span_sums(g), scaled_slot<S>(share, part), i));
        }
        v = scaled_add(v, *scaled_sum<S>(scaled_last_sums(g), share - 1, i));
    }
    return v;
}

/* Brings the parts together; the first share stores. */
template <class W, class S>
SIMT_DEVICE void scaled_finish(const linear_scaled_t &p, const linear_store_t &store,
                               const scaled_group_t<S> &g, uint32_t unit,
                               const float (&acc)[S::tokens / 2])
{
    constexpr int TOGETHER = S::tokens / 8 < 4 ? S::tokens / 8 : 4;
    if constexpr (S::shares > 1) {
        simt_barrier_sync(ALL_GROUPS, S::groups * WGROUP);
        if (g.share > 0) {
            scaled_keep<S>(scaled_last_sums(g), g.share - 1, acc);
        }
        simt_barrier_sync(ALL_GROUPS, S::groups * WGROUP);
    }
    if (g.share > 0 || unit >= p.units) {
        return;
    }
    SIMT_UNROLL
    for (int n = 0; n < S::tokens / 8; n += TOGETHER) {
        float sum[4 * TOGETHER];
        SIMT_UNROLL
        for (int i = 0; i < TOGETHER; i++) {
            const float4 v = scaled_total(g, n + i, acc);
            sum[4 * i] = weight_whole<W>(v.x);
            sum[4 * i + 1] = weight_whole<W>(v.y);
            sum[4 * i + 2] = weight_whole<W>(v.z);
            sum[4 * i + 3] = weight_whole<W>(v.w);
        }
        if (n * 8 < (int)store.rows) {
            linear_store_fragments<TOGETHER>(store, unit, n * 8, sum);
        }
    }
}

#endif /* SIMT_HOPPER */

template <class W, class S, class Tiles>
static SIMT_KERNEL(S::threads, 1)
    linear_scaled_kernel(const linear_scaled_t p, const SIMT_GRID_CONSTANT Tiles tiles,
                         const SIMT_GRID_CONSTANT simt_tensor_map_t x)
{
#if SIMT_HOPPER
    SIMT_DYN_SHARED(uint8_t, shared);
    SIMT_SHARED(linear_store_t, store, [1]); /* the walk has better use for registers */
    scaled_rows_t rows;
    simt_launch_next();
    if constexpr (!Tiles::READS_FIRST) {
        simt_wait_previous();
    }
    if (!tiles.rows_of(blockIdx.x, S::tokens, &rows)) {
        return;
    }
    if (threadIdx.x == 0) {
        simt_mbarrier_t *barriers = reinterpret_cast<simt_mbarrier_t *>(shared + S::barriers_at);
        for (uint32_t i = 0; i < S::shares * S::stages; i++) {
            simt_mbarrier_init(&barriers[2 * i], 4 * S::spans + 1); /* lanes that fetch */
            simt_mbarrier_init(&barriers[2 * i + 1], 4 * S::spans); /* warps that are done */
        }
        simt_mbarrier_fence_init();
        simt_tma_prefetch_map(&x);
        store[0] = rows.store;
    }
    simt_sync_block();
    const uint32_t warp = simt_shfl((uint32_t)simt_warp(), 0); /* known to be uniform */
    const uint32_t first_unit = blockIdx.y * S::spans * 4;
    if (warp >= S::groups * 4) {
        simt_registers_lower<S::fetch_registers>();
        scaled_fetch_all<W, S>(p, rows, &x, first_unit, shared);
        return;
    }
    simt_registers_raise<S::registers>();
    const scaled_group_t<S> g = scaled_group<S>(p, warp / 4, shared);
    float acc[S::tokens / 2] = {};
    scaled_walk<W, S>(p, g, acc);
    simt_wait_previous(); /* who reads y may not have ended */
    scaled_finish<W>(p, store[0], g, first_unit + g.span * 4 + warp % 4, acc);
#else
    (void)p;
    (void)tiles;
    (void)x;
#endif
}

/* ---- host -------------------------------------------------------------------------------------- */

template <class W, class S, class Tiles>
static cudaError_t scaled_launch_shape(const linear_scaled_t &p, const Tiles &tiles,
                                       uint32_t n_tiles, const simt_tensor_map_t &x,
                                       cudaStream_t stream)
{
    return simt_launch((linear_scaled_kernel<W, S, Tiles>),
                       {.grid = {n_tiles, (p.units + 4 * S::spans - 1) / (4 * S::spans)},
                        .block = {S::threads},
                        .shared_bytes = S::bytes,
                        .stream = stream,
                        .overlaps_previous = true},
                       p, tiles, x);
}

/* x [rows, columns], in boxes of a k block and so many tokens. */
static inline cudaError_t scaled_map_x(const void *x, uint32_t rows, uint32_t columns,
                                       size_t stride, uint32_t tokens, simt_tensor_map_t *map_out)
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
