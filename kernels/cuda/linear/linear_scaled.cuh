/* SPDX-License-Identifier: Apache-2.0 */
/*
 * linear_scaled: the kernel of products by wgmma, weights with scales on Hopper, from a few tokens to
 * thousands; for one matrix (linear_scaled.cu) and many (group_scaled.cu).
 *
 * The weights' rows are the M of the instruction, and come from registers: each warp has one unit of 16
 * rows, brings its packed blocks there, with many tokens by way of a ring in shared memory, and makes
 * bf16 of them while the group before is multiplied. The tokens are its N: their k blocks come to
 * shared memory by TMA, for all warp groups that share a part of K. Many are multiplied in halves, by
 * turns: one is while the sums of the other are scaled and added.
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
 * 64 rows.
 */
template <int TOKENS, int SPANS, int SHARES> struct scaled_shape {
    static constexpr int tokens = TOKENS, spans = SPANS, shares = SHARES;
    static constexpr int groups = SPANS * SHARES;
    static constexpr int threads = groups * WGROUP;
    static constexpr int stages = TOKENS <= 32 ? 8 : SHARES > 1 ? 4 : 6;
    static constexpr int stage_bytes = TOKENS * 128;
    /* sums of parts: the first share adds up its own, the others keep each */
    static constexpr int kept = 1 + (SHARES - 1) * PARTS / SHARES;
    static constexpr int sum_bytes = TOKENS / 2 * WGROUP * 4;
    static constexpr int ring_at = 0;
    static constexpr int sums_at = SHARES * stages * stage_bytes;
    static constexpr int x_sums_at = sums_at + SPANS * kept * sum_bytes;
    static constexpr int x_sum_bytes = 2 * 2 * TOKENS * 4; /* two blocks, two pairs of steps */
    static constexpr int barriers_at = x_sums_at + groups * x_sum_bytes;
    static constexpr int blocks_at = (barriers_at + SHARES * stages * 2 * 8 + 127) / 128 * 128;
};

/*
 * Blocks of W that a warp has on their way. Sums of many tokens take the registers: their blocks come
 * to shared memory.
 */
template <class S> constexpr bool scaled_has_ring()
{
    return S::tokens >= 64;
}

template <class W, class S> constexpr int scaled_held()
{
    if (scaled_has_ring<S>()) {
        return 4;
    }
    /* Minima take registers, of which many warps have few. */
    return sizeof(typename W::raw) <= 32 && !(W::HAS_MIN && S::groups > 2) ? 4 : 2;
}

template <class W, class S> constexpr int scaled_bytes()
{
    const int rings = S::groups * 4 * scaled_held<W, S>() * W::BYTES;
    return S::blocks_at + (scaled_has_ring<S>() ? rings : 0);
}

#if SIMT_HOPPER

/* A warp group's place in the block, and what it walks. */
template <class S> struct scaled_group_t {
    uint32_t index;
    uint32_t span;
    uint32_t share;
    uint32_t first; /* k blocks */
    uint32_t last;
    uint8_t *ring;
    simt_mbarrier_t *full;
    simt_mbarrier_t *empty;
    uint8_t *sums;
    float *x_sums;
    uint32_t token; /* of x */
    uint32_t column;
};

SIMT_DEVICE uint32_t part_begin(const linear_scaled_t &p, uint32_t part)
{
    return p.k_blocks * part / PARTS;
}

template <class S>
SIMT_DEVICE scaled_group_t<S> scaled_group(const linear_scaled_t &p, const scaled_rows_t &rows,
                                           uint8_t *shared)
{
    scaled_group_t<S> g;
    g.index = simt_shfl((uint32_t)simt_warp() / 4, 0); /* known to be uniform */
    g.span = g.index % S::spans;
    g.share = g.index / S::spans;
    g.first = part_begin(p, g.share * PARTS / S::shares);
    g.last = part_begin(p, (g.share + 1) * PARTS / S::shares);
    g.ring = shared + g.share * S::stages * S::stage_bytes;
    simt_mbarrier_t *barriers = reinterpret_cast<simt_mbarrier_t *>(shared + S::barriers_at);
    g.full = barriers + g.share * S::stages * 2;
    g.empty = g.full + S::stages;
    g.sums = shared + S::sums_at + g.span * S::kept * S::sum_bytes;
    g.x_sums = reinterpret_cast<float *>(shared + S::x_sums_at + g.index * S::x_sum_bytes);
    g.token = rows.token;
    g.column = rows.column;
    return g;
}

/* ---- x ----------------------------------------------------------------------------------------- */

/* One thread of a share begins to copy its k block `at` (0: the first). */
template <class S>
SIMT_DEVICE void scaled_copy_x(const scaled_group_t<S> &g, const simt_tensor_map_t *x, uint32_t at)
{
    const uint32_t stage = at % S::stages;
    if (g.first + at >= g.last) {
        return;
    }
    if (at >= S::stages) {
        simt_mbarrier_wait(&g.empty[stage], (at / S::stages - 1) % 2);
    }
    simt_mbarrier_arrive_expect(&g.full[stage], S::stage_bytes);
    simt_tma_load_2d(g.ring + stage * S::stage_bytes, x,
                     (int)(g.column + (g.first + at) * LINEAR_K_BLOCK), (int)g.token,
                     &g.full[stage], SIMT_L2_EVICT_LAST);
}

/*
 * Sums of x of each pair of steps, as linear_mma makes them: the warps of the group have some of the
 * tokens each. at: as above; the group waits for all.
 */
template <class W, class S>
SIMT_DEVICE const float *scaled_x_sums(const scaled_group_t<S> &g, const uint8_t *x, uint32_t at)
{
    constexpr uint32_t one = weight_one<W>();
    const uint32_t ones[4] = {one, one, one, one};
    float *to = g.x_sums + at % 2 * 2 * S::tokens;
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

/* ---- sums -------------------------------------------------------------------------------------- */

/* A thread's own 16 bytes of sums 4i.. in slot `slot`. */
template <class S> SIMT_DEVICE float4 *scaled_sum(const scaled_group_t<S> &g, int slot, int i)
{
    return reinterpret_cast<float4 *>(g.sums + slot * S::sum_bytes) + i * WGROUP +
           threadIdx.x % WGROUP;
}

SIMT_DEVICE float4 scaled_add(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/* A part of K ends: acc goes where the parts are added, and begins anew. */
template <class S>
SIMT_DEVICE void scaled_end_part(const scaled_group_t<S> &g, uint32_t part,
                                 float (&acc)[S::tokens / 2])
{
    constexpr int each = PARTS / S::shares;
    const bool adds = part > 0 && part < each;
    const int slot = part < each ? 0 : (int)part - each + 1;
    SIMT_UNROLL
    for (int i = 0; i < S::tokens / 8; i++) {
        float4 v = make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]);
        float4 *to = scaled_sum(g, slot, i);
        *to = adds ? scaled_add(*to, v) : v;
        acc[4 * i] = acc[4 * i + 1] = acc[4 * i + 2] = acc[4 * i + 3] = 0;
    }
}

/* ---- the walk ---------------------------------------------------------------------------------- */

template <class W> constexpr int scaled_steps() /* of a scale group */
{
    return W::GROUP / 16;
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

/* Adds the sums d of N tokens from `first` on, scaled, to acc [N / 2]. */
template <class W, class S, int N>
SIMT_DEVICE void scaled_accumulate(const typename W::raw &w, int group, int first,
                                   const float (&d)[N / 2], const float *x_sums, float *acc)
{
    const float2 scale = W::scale(w, group);
    const float2 offset = W::offset(w, group);
    SIMT_UNROLL
    for (int n = 0; n < N / 8; n++) {
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            float &to = acc[4 * n + i];
            to = fmaf(i < 2 ? scale.x : scale.y, d[4 * n + i], to);
        }
        if constexpr (W::HAS_MIN != 0) {
            const float2 x = *reinterpret_cast<const float2 *>(x_sums + group * S::tokens + first +
                                                               n * 8 + simt_lane() % 4 * 2);
            SIMT_UNROLL
            for (int i = 0; i < 4; i++) {
                float &to = acc[4 * n + i];
                to = fmaf(i < 2 ? offset.x : offset.y, i % 2 == 0 ? x.x : x.y, to);
            }
        }
    }
}

/* Begins d = a scale group's products with N tokens, whose k block lies at x. */
template <class W, int N>
SIMT_DEVICE void scaled_multiply(const uint32_t (&a)[scaled_steps<W>()][4], int group,
                                 const uint8_t *x, float (&d)[N / 2])
{
    constexpr int STEPS = scaled_steps<W>();
    simt_wgmma_hold(d);
    simt_wgmma_fence();
    SIMT_UNROLL
    for (int j = 0; j < STEPS; j++) {
        simt_wgmma_bf16<N>(d, a[j], simt_wgmma_desc_k(x + 32 * (group * STEPS + j)), j > 0);
    }
    simt_wgmma_commit();
}

/* All multiplications but LEFT are done. */
template <int LEFT, int N> SIMT_DEVICE void scaled_await(float (&d)[N])
{
    simt_wgmma_wait<LEFT>();
    simt_wgmma_hold(d);
}

SIMT_DEVICE void scaled_free_stage(simt_mbarrier_t *empty)
{
    if (simt_lane() == 0) {
        simt_mbarrier_arrive(empty);
    }
}

/*
 * What a warp walks with: its blocks of W, and the fragments of this scale group and the next, by turns.
 */
template <class W> struct scaled_walk_t {
    const typename W::raw &w;
    const typename W::raw &next;
    uint32_t (&a)[2][scaled_steps<W>()][4];
};

/* Makes the fragments of the group behind `group`. */
template <class W> SIMT_DEVICE void scaled_look_ahead(const scaled_walk_t<W> &walk, int group)
{
    constexpr int GROUPS = 4 / scaled_steps<W>();
    scaled_fragments<W>(group + 1 < GROUPS ? walk.w : walk.next, (group + 1) % GROUPS,
                        walk.a[(group + 1) % 2]);
}

/* Few tokens: other warps multiply while this one adds up. */
template <class W, class S>
SIMT_DEVICE void scaled_whole(const scaled_walk_t<W> &walk, const uint8_t *x, const float *x_sums,
                              simt_mbarrier_t *empty, float (&acc)[S::tokens / 2])
{
    constexpr int GROUPS = 4 / scaled_steps<W>();
    float d[S::tokens / 2];
    SIMT_UNROLL
    for (int group = 0; group < GROUPS; group++) {
        scaled_multiply<W, S::tokens>(walk.a[group % 2], group, x, d);
        scaled_look_ahead<W>(walk, group);
        scaled_await<0>(d);
        if (group + 1 == GROUPS) {
            scaled_free_stage(empty);
        }
        scaled_accumulate<W, S, S::tokens>(walk.w, group, 0, d, x_sums, acc);
    }
}

/* Many: one half of the tokens is multiplied while the sums of the other are added up. */
template <class W, class S>
SIMT_DEVICE void scaled_halves(const scaled_walk_t<W> &walk, const uint8_t *x, const float *x_sums,
                               simt_mbarrier_t *empty, float (&acc)[S::tokens / 2])
{
    constexpr int GROUPS = 4 / scaled_steps<W>();
    constexpr int N = S::tokens / 2;
    float low[N / 2], high[N / 2];
    scaled_multiply<W, N>(walk.a[0], 0, x, low);
    scaled_multiply<W, N>(walk.a[0], 0, x + N * 128, high);
    SIMT_UNROLL
    for (int group = 0; group < GROUPS; group++) {
        scaled_look_ahead<W>(walk, group);
        scaled_await<1>(low);
        scaled_accumulate<W, S, N>(walk.w, group, 0, low, x_sums, acc);
        if (group + 1 < GROUPS) {
            scaled_multiply<W, N>(walk.a[(group + 1) % 2], group + 1, x, low);
            scaled_await<1>(high);
        } else {
            scaled_await<0>(high);
            scaled_free_stage(empty);
        }
        scaled_accumulate<W, S, N>(walk.w, group, N, high, x_sums, acc + N / 2);
        if (group + 1 < GROUPS) {
            scaled_multiply<W, N>(walk.a[(group + 1) % 2], group + 1, x + N * 128, high);
        }
    }
}

/* One k block; a[0]: the fragments of its first scale group, then those of `next`'s. */
template <class W, class S>
SIMT_DEVICE void scaled_block(const scaled_group_t<S> &g, const scaled_walk_t<W> &walk, uint32_t at,
                              float (&acc)[S::tokens / 2])
{
    static_assert(4 / scaled_steps<W>() % 2 == 0, "fragments of the next block end in a[0]");
    const uint32_t stage = at % S::stages;
    const uint8_t *x = g.ring + stage * S::stage_bytes;
    const float *x_sums = nullptr;
    simt_mbarrier_wait(&g.full[stage], at / S::stages % 2);
    simt_sync_warp();
    if constexpr (W::HAS_MIN != 0) {
        x_sums = scaled_x_sums<W>(g, x, at);
    }
    if constexpr (S::tokens < 64) {
        scaled_whole<W, S>(walk, x, x_sums, &g.empty[stage], acc);
    } else {
        scaled_halves<W, S>(walk, x, x_sums, &g.empty[stage], acc);
    }
}

/* A warp's blocks of W: where they come from, and those on their way, in registers or a ring. */
template <class W, class S> struct scaled_blocks_t {
    const uint8_t *from;
    uint32_t n;
    uint8_t *ring;
    typename W::raw held[scaled_has_ring<S>() ? 1 : scaled_held<W, S>()];
};

template <class W> SIMT_DEVICE typename W::raw scaled_load(const uint8_t *block)
{
    return W::load(block, (uint32_t)simt_lane() / 4, (uint32_t)simt_lane() % 4);
}

/* Begins to copy block `at` to the ring. */
template <class W, class S>
SIMT_DEVICE void scaled_copy_block(const scaled_blocks_t<W, S> &blocks, uint32_t at)
{
    constexpr int STEP = 16 * SIMT_WARP;
    const int lane = simt_lane() * 16;
    uint8_t *to = blocks.ring + at % scaled_held<W, S>() * W::BYTES + lane;
    const uint8_t *from = blocks.from + at * (uint32_t)W::STRIDE + lane;
    SIMT_UNROLL
    for (int i = 0; i < W::BYTES; i += STEP) {
        if (at < blocks.n && (i + STEP <= W::BYTES || lane + i < W::BYTES)) {
            simt_cp_async<16>(to + i, from + i);
        }
    }
    simt_cp_async_commit();
}

/* Block `at`, which is on its way. */
template <class W, class S>
SIMT_DEVICE typename W::raw scaled_take_block(const scaled_blocks_t<W, S> &blocks, uint32_t at)
{
    constexpr int HELD = scaled_held<W, S>();
    simt_cp_async_wait<HELD - 2>();
    simt_sync_warp(); /* it is there for all lanes; they have what lay in the place filled next */
    return scaled_load<W>(blocks.ring + at % HELD * W::BYTES);
}

template <class W, class S>
SIMT_DEVICE void scaled_begin_blocks(scaled_blocks_t<W, S> &blocks, uint8_t *rings)
{
    constexpr int HELD = scaled_held<W, S>();
    blocks.ring = rings + simt_warp() * HELD * W::BYTES;
    SIMT_UNROLL
    for (int i = 0; i < HELD; i++) {
        if constexpr (!scaled_has_ring<S>()) {
            blocks.held[i] = {};
            if ((uint32_t)i < blocks.n) {
                blocks.held[i] = scaled_load<W>(blocks.from + i * W::STRIDE);
            }
        } else if (i + 1 < HELD) {
            scaled_copy_block(blocks, (uint32_t)i);
        }
    }
}

/* Where the group's walk over K has come to. */
template <class S> struct scaled_walker_t {
    const linear_scaled_t &p;
    const scaled_group_t<S> &g;
    const simt_tensor_map_t *x;
    bool copies;
    uint32_t part;
};

/* Block `at`, after what ends or begins before it. */
template <class W, class S>
SIMT_DEVICE void scaled_step(scaled_walker_t<S> &walker, const scaled_walk_t<W> &walk, uint32_t at,
                             float (&acc)[S::tokens / 2])
{
    while (part_begin(walker.p, walker.part + 1) == walker.g.first + at) { /* parts may be empty */
        scaled_end_part(walker.g, walker.part++, acc);
    }
    if (walker.copies) {
        scaled_copy_x(walker.g, walker.x, at + S::stages - 2);
    }
    simt_sync_warp();
    scaled_block<W, S>(walker.g, walk, at, acc);
}

/* Blocks in registers: each is replaced when it is done with. */
template <class W, class S>
SIMT_DEVICE void scaled_walk_held(scaled_walker_t<S> &walker, scaled_blocks_t<W, S> &blocks,
                                  float (&acc)[S::tokens / 2])
{
    constexpr int HELD = scaled_held<W, S>();
    typename W::raw(&held)[HELD] = blocks.held;
    uint32_t a[2][scaled_steps<W>()][4];
    scaled_fragments<W>(held[0], 0, a[0]);
    for (uint32_t kb = 0; kb < blocks.n; kb += HELD) {
        SIMT_UNROLL
        for (int i = 0; i < HELD; i++) {
            const uint32_t at = kb + i;
            if (at >= blocks.n) {
                continue;
            }
            scaled_step<W, S>(walker, {held[i], held[(i + 1) % HELD], a}, at, acc);
            if (at + HELD < blocks.n) {
                held[i] = scaled_load<W>(blocks.from + (at + HELD) * W::STRIDE);
            }
        }
    }
}

/* Blocks in the ring: this one and the next are in registers. */
template <class W, class S>
SIMT_DEVICE void scaled_walk_ring(scaled_walker_t<S> &walker, const scaled_blocks_t<W, S> &blocks,
                                  float (&acc)[S::tokens / 2])
{
    uint32_t a[2][scaled_steps<W>()][4];
    typename W::raw next = {};
    if (blocks.n > 0) {
        next = scaled_take_block(blocks, 0);
    }
    scaled_fragments<W>(next, 0, a[0]);
    for (uint32_t at = 0; at < blocks.n; at++) {
        const typename W::raw w = next;
        scaled_copy_block(blocks, at + scaled_held<W, S>() - 1);
        if (at + 1 < blocks.n) {
            next = scaled_take_block(blocks, at + 1);
        }
        scaled_step<W, S>(walker, {w, next, a}, at, acc);
    }
}

/* The group's parts of K of its 64 rows, to the sums in shared memory. */
template <class W, class S>
SIMT_DEVICE void scaled_walk(const linear_scaled_t &p, const scaled_group_t<S> &g,
                             const simt_tensor_map_t *x, scaled_blocks_t<W, S> &blocks)
{
    scaled_walker_t<S> walker = {p, g, x, g.span == 0 && threadIdx.x % WGROUP == 0,
                                 g.share * PARTS / S::shares};
    float acc[S::tokens / 2] = {};
    for (uint32_t i = 0; walker.copies && i < S::stages - 2; i++) {
        scaled_copy_x(g, x, i);
    }
    simt_sync_warp();
    if constexpr (scaled_has_ring<S>()) {
        scaled_walk_ring<W, S>(walker, blocks, acc);
    } else {
        scaled_walk_held<W, S>(walker, blocks, acc);
    }
    for (const uint32_t end = (g.share + 1) * PARTS / S::shares; walker.part < end; walker.part++) {
        scaled_end_part(g, walker.part, acc);
    }
}

/* The first share adds what the others kept, in order, and stores. */
template <class W, class S>
SIMT_DEVICE void scaled_finish(const linear_store_t &store, const scaled_group_t<S> &g,
                               uint32_t unit)
{
    constexpr int TOGETHER = S::tokens / 8 < 4 ? S::tokens / 8 : 4;
    SIMT_UNROLL
    for (int n = 0; n < S::tokens / 8; n += TOGETHER) {
        float sum[4 * TOGETHER];
        SIMT_UNROLL
        for (int i = 0; i < TOGETHER; i++) {
            float4 v = *scaled_sum(g, 0, n + i);
            for (int slot = 1; slot < S::kept; slot++) {
                v = scaled_add(v, *scaled_sum(g, slot, n + i));
            }
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
    scaled_rows_t rows;
    simt_launch_next();
    if constexpr (!Tiles::READS_FIRST) {
        simt_wait_previous();
    }
    if (!tiles.rows_of(blockIdx.x, S::tokens, &rows)) {
        return;
    }
    const scaled_group_t<S> g = scaled_group<S>(p, rows, shared);
    const uint32_t unit =
        (blockIdx.y * S::spans + g.span) * 4 + simt_shfl((uint32_t)simt_warp() % 4, 0);
    const uint32_t at = unit < p.units ? unit : p.units - 1; /* read and dropped */
    scaled_blocks_t<W, S> blocks;
    blocks.from = W::block(rows.weights, at, g.first, p.k_blocks);
    blocks.n = g.last - g.first;
    scaled_begin_blocks(blocks, shared + S::blocks_at);
    if (threadIdx.x == 0) {
        simt_mbarrier_t *barriers = reinterpret_cast<simt_mbarrier_t *>(shared + S::barriers_at);
        for (int i = 0; i < S::shares * S::stages * 2; i++) {
            simt_mbarrier_init(&barriers[i], i / S::stages % 2 == 0 ? 1 : 4 * S::spans);
        }
        simt_mbarrier_fence_init();
        simt_tma_prefetch_map(&x);
    }
    simt_sync_block();
    simt_wait_previous(); /* x and y are its; the weights are nobody's */
    scaled_walk<W, S>(p, g, &x, blocks);
    simt_sync_block();
    if (g.share == 0 && unit < p.units) {
        scaled_finish<W>(rows.store, g, unit);
    }
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
                        .shared_bytes = scaled_bytes<W, S>(),
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
