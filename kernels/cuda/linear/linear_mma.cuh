/* SPDX-License-Identifier: Apache-2.0 */
/*
 * linear_mma: the steps of products by mma.sync, for the kernels of one matrix (linear_mma.cu) and of
 * many (expert_mma.cu).
 *
 * multiply() adds one block of W times a block of x to a lane's sums. For few tokens, each of the 8
 * warps of a block walks one of the fixed parts of K: copy_x() brings its part of x, ring_copy() its
 * blocks of W, multiply_part() multiplies them, finish() adds the parts in order. For many, wide_copy()
 * brings stages of x that warps share.
 */
#pragma once

#include "kernels/cuda/linear/cuda_linear_priv.h"
#include "kernels/cuda/linear/linear_store.h"
#include "kernels/cuda/linear/weight_formats.h"
#include "kernels/cuda/simt/simt.h"

#define SPLITS LINEAR_MMA_SPLITS

typedef struct linear_mma {
    const void *weights;
    const uint16_t *x;
    size_t x_stride;
    uint32_t columns;
    uint32_t k_blocks;
    uint32_t units;
    bool x_pieces; /* 8-byte loads of x are aligned */
    bool x_chunks; /* 16-byte ones */
    linear_store_t store;
} linear_mma_t;

/* row[k .. k + 3], zeroes past its end; row NULL: zeroes. */
SIMT_DEVICE uint2 load_x(const linear_mma_t &p, const uint16_t *row, uint32_t k)
{
    if (row == nullptr || k >= p.columns) {
        return make_uint2(0, 0);
    }
    const uint16_t *x = row + k;
    if (p.x_pieces && k + 4 <= p.columns) {
        return *reinterpret_cast<const uint2 *>(x);
    }
    uint32_t v[4] = {x[0], 0, 0, 0};
    for (uint32_t i = 1; i < 4 && k + i < p.columns; i++) {
        v[i] = x[i];
    }
    return make_uint2(v[0] | v[1] << 16, v[2] | v[3] << 16);
}

/* A group's sum of products and, of weights with an offset, its sum of x; acc += both, scaled. */
template <class W>
SIMT_DEVICE void add_group(const typename W::raw &w, int group, const float (&sum)[4],
                           const float (&x_sum)[4], float (&acc)[4])
{
    const float2 scale = W::scale(w, group);
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
        acc[i] = fmaf(i < 2 ? scale.x : scale.y, sum[i], acc[i]);
    }
    if constexpr (W::HAS_MIN != 0) {
        const float2 offset = W::offset(w, group);
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            acc[i] = fmaf(i < 2 ? offset.x : offset.y, x_sum[i], acc[i]);
        }
    }
}

/* Steps 2 · pair and the next of one group of tokens; b: the fragments of x. */
template <class W>
SIMT_DEVICE void multiply_pair(const typename W::raw &w, int pair,
                               const uint32_t (&a)[2][W::PARTS][4], const uint32_t (&b)[4],
                               float (&acc)[4])
{
    constexpr uint32_t one = weight_one<W>();
    const uint32_t ones[4] = {one, one, one, one};
    float sum[4] = {0, 0, 0, 0}, x_sum[4] = {0, 0, 0, 0};
    SIMT_UNROLL
    for (int j = 0; j < 2; j++) {
        const uint32_t step[2] = {b[2 * j], b[2 * j + 1]};
        SIMT_UNROLL
        for (int part = 0; part < W::PARTS; part++) {
            simt_mma_bf16(W::GROUP == 0 ? acc : sum, a[j][part], step);
        }
        if constexpr (W::HAS_MIN != 0) {
            simt_mma_bf16(x_sum, ones, step);
        }
        if constexpr (W::GROUP == 16) {
            add_group<W>(w, pair * 2 + j, sum, x_sum, acc);
            SIMT_UNROLL
            for (int i = 0; i < 4; i++) {
                sum[i] = 0;
            }
        }
    }
    if constexpr (W::GROUP == 32) {
        add_group<W>(w, pair, sum, x_sum, acc);
    }
}

/*
 * acc += the block's part of the sum; x(n, pair, b) gives a lane's fragments of token group n in steps
 * 2 · pair and the next.
 */
template <class W, int NT, class X>
SIMT_DEVICE void multiply(const typename W::raw &w, float (&acc)[NT][4], X x)
{
    SIMT_UNROLL
    for (int pair = 0; pair < 2; pair++) {
        uint32_t a[2][W::PARTS][4];
        W::fragment(w, pair * 2, a[0]);
        W::fragment(w, pair * 2 + 1, a[1]);
        SIMT_UNROLL
        for (int n = 0; n < NT; n++) {
            uint32_t b[4];
            x(n, pair, b);
            multiply_pair<W>(w, pair, a, b, acc[n]);
        }
    }
}

/* ---- few tokens ------------------------------------------------------------------------------ */

/* A warp's part of K of the tokens, in shared memory. */
typedef struct part {
    uint32_t first; /* k block */
    uint32_t last;
    uint8_t *x; /* [rows][row_bytes] */
    uint32_t row_bytes;
} part_t;

/* Bytes of x in shared memory: rows are 16 bytes apart beyond a multiple of 128, so that eight that
 * are read together meet no bank twice. */
#define PART_PAD 16

static uint32_t shared_x_bytes(uint32_t rows, uint32_t k_blocks)
{
    return rows * (k_blocks * 128 + SPLITS * PART_PAD);
}

/* rows: that there is room for. */
SIMT_DEVICE part_t part_of(const linear_mma_t &p, uint32_t split, uint32_t rows, uint8_t *shared)
{
    part_t part;
    part.first = p.k_blocks * split / SPLITS;
    part.last = p.k_blocks * (split + 1) / SPLITS;
    part.row_bytes = (part.last - part.first) * 128 + PART_PAD;
    part.x = shared + rows * (part.first * 128 + split * PART_PAD);
    return part;
}

/* 16 bytes of x from element k of a row on, zeroes past its end. */
SIMT_DEVICE uint4 load_x_chunk(const linear_mma_t &p, const uint16_t *row, uint32_t k)
{
    if (p.x_chunks && k + 8 <= p.columns) {
        return simt_load_16(row + k);
    }
    const uint2 low = load_x(p, row, k);
    const uint2 high = load_x(p, row, k + 4);
    return make_uint4(low.x, low.y, high.x, high.y);
}

/* Copies the warp's part of x, row i of which begins at row_at(i). */
template <class Row>
SIMT_DEVICE void copy_x(const linear_mma_t &p, const part_t &part, uint32_t rows, Row row_at)
{
    const uint32_t bytes = part.row_bytes - PART_PAD;
    for (uint32_t row = 0; row < rows; row++) {
        uint8_t *to = part.x + row * part.row_bytes;
        const uint16_t *from = row_at(row);
        for (uint32_t at = (uint32_t)simt_lane() * 16; at < bytes; at += 16 * SIMT_WARP) {
            const uint32_t k = part.first * LINEAR_K_BLOCK + at / 2;
            if (p.x_chunks && k + 8 <= p.columns) {
                simt_cp_async<16>(to + at, from + k);
            } else {
                *reinterpret_cast<uint4 *>(to + at) = load_x_chunk(p, from, k);
            }
        }
    }
    simt_cp_async_commit();
    simt_cp_async_wait<0>();
    simt_sync_warp();
}

/*
 * The same of one row, by loads: waiting for copies of x is waiting for those of W as well, of which
 * all processors' take a while; now the first can be multiplied before the others have come.
 */
SIMT_DEVICE void copy_x_row(const linear_mma_t &p, const part_t &part)
{
    constexpr uint32_t TOGETHER = 8; /* on their way */
    const uint32_t bytes = part.row_bytes - PART_PAD;
    for (uint32_t first = 0; first < bytes; first += TOGETHER * 16 * SIMT_WARP) {
        uint4 v[TOGETHER];
        SIMT_UNROLL
        for (uint32_t i = 0; i < TOGETHER; i++) {
            const uint32_t at = first + (i * SIMT_WARP + (uint32_t)simt_lane()) * 16;
            if (at < bytes) {
                v[i] = load_x_chunk(p, p.x, part.first * LINEAR_K_BLOCK + at / 2);
            }
        }
        SIMT_UNROLL
        for (uint32_t i = 0; i < TOGETHER; i++) {
            const uint32_t at = first + (i * SIMT_WARP + (uint32_t)simt_lane()) * 16;
            if (at < bytes) {
                *reinterpret_cast<uint4 *>(part.x + at) = v[i];
            }
        }
    }
    simt_sync_warp();
}

/* Where a lane's row of a matrix of x begins in the part (simt_ldmatrix_x4: a pair of steps); of a
 * token that is not there any other's: its sums are dropped. */
template <int NT>
SIMT_DEVICE void point_x(const part_t &part, uint32_t rows, const uint8_t *(&x)[NT])
{
    SIMT_UNROLL
    for (uint32_t n = 0; n < NT; n++) {
        const uint32_t row = n * 8 + (uint32_t)simt_lane() % 8;
        x[n] = part.x + (row < rows ? row : 0) * part.row_bytes + (uint32_t)simt_lane() / 8 * 16;
    }
}

/*
 * Adds the parts of a unit in order and stores; the warps take turns. acc begins anew. STEP 2: of one
 * token, which has every second number of the fragments.
 */
template <class W, int NT, int STEP>
SIMT_DEVICE void finish(const linear_store_t &store,
                        float (&parts)[SPLITS][NT][4 / STEP][SIMT_WARP], uint32_t unit,
                        uint32_t turn, float (&acc)[NT][4])
{
    const uint32_t split = (uint32_t)simt_warp();
    const uint32_t lane = (uint32_t)simt_lane();
    SIMT_UNROLL
    for (int i = 0; i < 4 * NT; i += STEP) {
        parts[split][i / 4][i % 4 / STEP][lane] = acc[i / 4][i % 4];
        acc[i / 4][i % 4] = 0;
    }
    simt_sync_block();
    const uint32_t n = (split + turn) % SPLITS;
    if (n < NT) {
        float sum[4] = {0, 0, 0, 0};
        SIMT_UNROLL
        for (int i = 0; i < 4; i += STEP) {
            sum[i] = parts[0][n][i / STEP][lane];
            SIMT_UNROLL
            for (int s = 1; s < SPLITS; s++) {
                sum[i] += parts[s][n][i / STEP][lane];
            }
            sum[i] = weight_whole<W>(sum[i]);
        }
        linear_store_fragments<1>(store, unit, n * 8, sum);
    }
}

/*
 * A warp's ring of copies of W: blocks that lie together are copied at once, as few instructions as
 * that takes; all copies but one are on their way. (Loads to registers, tried, were slower: warps
 * waited for the newest with the oldest.)
 */
template <class W> constexpr int ring_blocks()
{
    return W::BYTES <= 640 ? 4 : W::BYTES <= 1152 ? 2 : 1;
}
template <class W> constexpr int ring_stages()
{
    return W::BYTES <= 2048 ? 4 : 3;
}
template <class W> constexpr int ring_bytes()
{
    return ring_stages<W>() * ring_blocks<W>() * W::BYTES;
}

typedef struct ring_place {
    uint8_t *at;
    int stage;
} ring_place_t;

typedef struct block_ring {
    ring_place_t filled; /* next, by this lane: 16 bytes of every 512 */
    ring_place_t used;   /* … read next */
} block_ring_t;

/* Where the copies have come to in the walk over all of this block's units. */
typedef struct ahead {
    const uint8_t *from;
    uint32_t unit;
    int left; /* blocks of the warp's part of it; 0: past the end */
} ahead_t;

SIMT_DEVICE block_ring_t ring_at(uint8_t *stages)
{
    return {{stages + simt_lane() * 16, 0}, {stages, 0}};
}

/* To the next stage. (Addresses are carried along: the compiler would make them anew each time.) */
template <class W> SIMT_DEVICE void ring_step(ring_place_t &place)
{
    place.at += ring_blocks<W>() * W::BYTES;
    if (++place.stage == ring_stages<W>()) {
        place.stage = 0;
        place.at -= ring_bytes<W>();
    }
}

/* Begins to copy `bytes` of a stage; known to be all of them when IS_FULL. */
template <class W, bool IS_FULL>
SIMT_DEVICE void ring_copy_bytes(uint8_t *to, const uint8_t *from, int bytes)
{
    constexpr int STAGE = ring_blocks<W>() * W::BYTES;
    constexpr int STEP = 16 * SIMT_WARP;
    const int first = simt_lane() * 16;
    from += first;
    if constexpr (IS_FULL) {
        SIMT_UNROLL
        for (int i = 0; i < STAGE; i += STEP) {
            if (i + STEP <= STAGE || first + i < STAGE) {
                simt_cp_async<16>(to + i, from + i);
            }
        }
    } else {
        SIMT_NO_UNROLL
        for (int i = 0; first + i < bytes; i += STEP) {
            simt_cp_async<16>(to + i, from + i);
        }
    }
}

/* Begins the next copy; past the end a group of none. next(at): to the next unit's first block. */
template <class W, class Next>
SIMT_DEVICE void ring_copy(block_ring_t &ring, ahead_t &at, Next next)
{
    constexpr int BLOCKS = ring_blocks<W>();
    if (at.left > 0) {
        if (at.left >= BLOCKS) {
            ring_copy_bytes<W, true>(ring.filled.at, at.from, 0);
        } else {
            ring_copy_bytes<W, false>(ring.filled.at, at.from, at.left * W::BYTES);
        }
        ring_step<W>(ring.filled);
        at.from += BLOCKS * (int)W::STRIDE;
        at.left -= BLOCKS;
        if (at.left <= 0) {
            next(at);
        }
    }
    simt_cp_async_commit();
}

/* All copies but one. */
template <class W, class Next>
SIMT_DEVICE void ring_begin(block_ring_t &ring, ahead_t &at, Next next)
{
    for (int i = 0; i + 1 < ring_stages<W>(); i++) {
        ring_copy<W>(ring, at, next);
    }
}

template <class W> SIMT_DEVICE typename W::raw load_block(const uint8_t *block)
{
    return W::load(block, (uint32_t)simt_lane() / 4, (uint32_t)simt_lane() % 4);
}

/* A block of the stage times the part's k block `kb` of x. */
template <class W, int NT>
SIMT_DEVICE void multiply_block(const uint8_t *block, const uint8_t *const (&x)[NT], int kb,
                                float (&acc)[NT][4])
{
    multiply<W, NT>(load_block<W>(block), acc, [&](int n, int pair, uint32_t(&b)[4]) {
        simt_ldmatrix_x4(b, x[n] + kb * 128 + pair * 64);
    });
}

/*
 * Multiplies the warp's part of a unit, while the ring runs on. Nothing parts the blocks of a full
 * stage: one is unpacked while another is multiplied.
 */
template <class W, int NT, class Next>
SIMT_DEVICE void multiply_part(const part_t &part, block_ring_t &ring, ahead_t &at,
                               const uint8_t *const (&x)[NT], float (&acc)[NT][4], Next next)
{
    constexpr int BLOCKS = ring_blocks<W>();
    const int n_blocks = (int)(part.last - part.first);
    for (int kb = 0; kb < n_blocks; kb += BLOCKS) {
        simt_cp_async_wait<ring_stages<W>() - 2>();
        simt_sync_warp(); /* the copy is there for all lanes; the stage before is free */
        const uint8_t *stage = ring.used.at;
        ring_copy<W>(ring, at, next);
        if (n_blocks - kb >= BLOCKS) {
            SIMT_UNROLL
            for (int i = 0; i < BLOCKS; i++) {
                multiply_block<W, NT>(stage + i * W::BYTES, x, kb + i, acc);
            }
        } else {
            SIMT_NO_UNROLL
            for (int i = 0; i < n_blocks - kb; i++) {
                multiply_block<W, NT>(stage + i * W::BYTES, x, kb + i, acc);
            }
        }
        ring_step<W>(ring.used);
    }
}

/*
 * Blocks that should share a multiprocessor. (An H200, one row, a layer of q4_0: two with four copies of
 * four blocks 47.1 us, three with six of two 49.5, four with four of two 55.2.)
 */
template <class W, int NT> constexpr int few_blocks()
{
    return NT > 1 || W::PARTS > 1 ? 1 : 2;
}

/* Of finish(). */
template <int NT> constexpr uint32_t few_parts_bytes()
{
    return 2 * SPLITS * NT * 4 * SIMT_WARP * 4;
}

/* ---- many tokens ----------------------------------------------------------------------------- */

#define WIDE_UNITS  8 /* at most; a warp each */
#define WIDE_TOKENS 64
#define WIDE_STAGES 4
#define WIDE_STAGE  (WIDE_TOKENS * 128)

/* Where 16-byte chunk c of a token's k block lies: eight that are read together meet no bank twice. */
SIMT_DEVICE uint32_t wide_chunk(uint32_t token, uint32_t c)
{
    return token * 128 + (c ^ token % 8) * 16;
}

/* Begins to copy k block kb of x to a stage; row_at(i): of token i of the tile, NULL: none. */
template <class Row>
SIMT_DEVICE void wide_copy(const linear_mma_t &p, uint8_t *stage, uint32_t kb, Row row_at)
{
    for (uint32_t i = threadIdx.x; i < WIDE_TOKENS * 8 && kb < p.k_blocks; i += blockDim.x) {
        const uint32_t k = kb * LINEAR_K_BLOCK + i % 8 * 8;
        const uint16_t *row = row_at(i / 8);
        uint8_t *to = stage + wide_chunk(i / 8, i % 8);
        if (p.x_chunks) {
            const uint32_t left = row != nullptr && k < p.columns ? (p.columns - k) * 2 : 0;
            simt_cp_async_zfill<16>(to, left != 0 ? row + k : p.x, left < 16 ? left : 16);
        } else {
            *reinterpret_cast<uint2 *>(to) = load_x(p, row, k);
            *reinterpret_cast<uint2 *>(to + 8) = load_x(p, row, k + 4);
        }
    }
    simt_cp_async_commit();
}

/*
 * A unit of W for each warp × WIDE_TOKENS tokens: a warp walks all parts of K one after the other, the
 * same sums as those of 8 warps that take a part each. The whole block calls; next: the unit's first
 * block.
 */
template <class W, class Row>
SIMT_DEVICE void wide_multiply(const linear_mma_t &p, uint8_t *stages, uint32_t unit,
                               typename W::raw next, float (&sum)[WIDE_TOKENS / 2], Row row_at)
{
    constexpr int NT = WIDE_TOKENS / 8;
    const uint32_t row = (uint32_t)simt_lane() % 8;
    const uint32_t chunk = (uint32_t)simt_lane() / 8;
    float acc[NT][4] = {};
    for (uint32_t kb = 0; kb < WIDE_STAGES - 1; kb++) {
        wide_copy(p, stages + kb * WIDE_STAGE, kb, row_at);
    }
    for (uint32_t split = 0, kb = 0; split < SPLITS; split++) {
        for (; kb < p.k_blocks * (split + 1) / SPLITS; kb++) {
            const typename W::raw w = next;
            if (kb + 1 < p.k_blocks) {
                next = load_block<W>(W::block(p.weights, unit, kb + 1, p.k_blocks));
            }
            simt_cp_async_wait<WIDE_STAGES - 2>();
            simt_sync_block(); /* the stage is there for all; the one before is free */
            const uint32_t ahead = kb + WIDE_STAGES - 1;
            wide_copy(p, stages + ahead % WIDE_STAGES * WIDE_STAGE, ahead, row_at);
            const uint8_t *stage = stages + kb % WIDE_STAGES * WIDE_STAGE;
            multiply<W, NT>(w, acc, [&](int n, int pair, uint32_t(&b)[4]) {
                simt_ldmatrix_x4(b, stage + wide_chunk(n * 8 + row, pair * 4 + chunk));
            });
        }
        SIMT_UNROLL
        for (int i = 0; i < 4 * NT; i++) {
            float &part = acc[i / 4][i % 4];
            sum[i] = split == 0 ? part : sum[i] + part;
            part = 0;
        }
    }
    SIMT_UNROLL
    for (int i = 0; i < 4 * NT; i++) {
        sum[i] = weight_whole<W>(sum[i]);
    }
}

/* Stores the sums of `token` and those behind it. */
SIMT_DEVICE void wide_store(const linear_store_t &store, uint32_t unit, uint32_t token,
                            const float (&sum)[WIDE_TOKENS / 2])
{
    SIMT_UNROLL
    for (int n = 0; n < WIDE_TOKENS / 8; n += 4) {
        linear_store_fragments<4>(store, unit, token + n * 8, sum + n * 4);
    }
}

/* ---- host ------------------------------------------------------------------------------------ */

/* Rows whose x a block's shared memory can hold beside the rings and the parts. */
template <class W> static uint32_t few_rows(uint32_t k_blocks, uint32_t shared_bytes)
{
    const uint32_t taken = few_parts_bytes<2>() + SPLITS * ring_bytes<W>();
    return taken < shared_bytes ? (shared_bytes - taken) / shared_x_bytes(1, k_blocks) : 0;
}
