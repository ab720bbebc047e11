/* SPDX-License-Identifier: Apache-2.0 */
/*
 * linear_mma: the steps of products by mma.sync, for the kernels of one matrix (linear_mma.cu) and of
 * many (expert_mma.cu).
 *
 * multiply() adds one block of W times a block of x to a lane's sums. For few tokens, each of the 8
 * warps of a block walks one of the fixed parts of K: copy_x() brings its part of x, ring_copy() its
 * blocks of W, finish() adds the parts in order. For many, wide_copy() brings stages of x that
 * warps share.
 */
#pragma once

#include "kernels/cuda/cuda_linear_priv.h"
#include "kernels/cuda/linear_store.h"
#include "kernels/cuda/simt.h"
#include "kernels/cuda/weight_formats.h"

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

/* acc += the block's part of the sum; x(n, j) gives a lane's b of token group n in step j. */
template <class W, int NT, class X>
SIMT_DEVICE void multiply(const typename W::raw &w, float (&acc)[NT][4], X x)
{
    const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
    constexpr int STEPS = W::GROUP == 0 ? 4 : W::GROUP / 16; /* of a group */
    SIMT_UNROLL
    for (int group = 0; group < 4 / STEPS; group++) {
        uint32_t a[STEPS][W::PARTS][4];
        SIMT_UNROLL
        for (int j = 0; j < STEPS; j++) {
            W::fragment(w, group * STEPS + j, a[j]);
        }
        float2 scale, offset;
        if constexpr (W::GROUP != 0) {
            scale = W::scale(w, group);
            offset = W::offset(w, group);
        }
        SIMT_UNROLL
        for (int n = 0; n < NT; n++) {
            float sum[4] = {0, 0, 0, 0}, x_sum[4] = {0, 0, 0, 0};
            float(&to)[4] = W::GROUP == 0 ? acc[n] : sum;
            SIMT_UNROLL
            for (int j = 0; j < STEPS; j++) {
                const uint2 piece = x(n, group * STEPS + j);
                const uint32_t b[2] = {piece.x, piece.y};
                SIMT_UNROLL
                for (int part = 0; part < W::PARTS; part++) {
                    simt_mma_bf16(to, a[j][part], b);
                }
                if constexpr (W::HAS_MIN != 0) {
                    simt_mma_bf16(x_sum, ones, b);
                }
            }
            if constexpr (W::GROUP != 0) {
                SIMT_UNROLL
                for (int i = 0; i < 4; i++) {
                    acc[n][i] = fmaf(i < 2 ? scale.x : scale.y, sum[i], acc[n][i]);
                    if constexpr (W::HAS_MIN != 0) {
                        acc[n][i] = fmaf(i < 2 ? offset.x : offset.y, x_sum[i], acc[n][i]);
                    }
                }
            }
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

/* Bytes of x in shared memory: rows are 32 bytes apart beyond a multiple of 128, so that lanes that
 * read together meet no bank twice. */
static uint32_t shared_x_bytes(uint32_t rows, uint32_t k_blocks)
{
    return rows * (k_blocks * 128 + SPLITS * 32);
}

/* rows: that there is room for. */
SIMT_DEVICE part_t part_of(const linear_mma_t &p, uint32_t split, uint32_t rows, uint8_t *shared)
{
    part_t part;
    part.first = p.k_blocks * split / SPLITS;
    part.last = p.k_blocks * (split + 1) / SPLITS;
    part.row_bytes = (part.last - part.first) * 128 + 32;
    part.x = shared + rows * (part.first * 128 + split * 32);
    return part;
}

/* Copies the warp's part of x, row i of which begins at row_at(i); a piece is 4 elements. */
template <class Row>
SIMT_DEVICE void copy_x(const linear_mma_t &p, const part_t &part, uint32_t rows, Row row_at)
{
    const uint32_t pieces = (part.last - part.first) * 16;
    for (uint32_t i = (uint32_t)simt_lane(); i < pieces * rows; i += SIMT_WARP) {
        const uint32_t row = i / pieces;
        const uint32_t k = part.first * LINEAR_K_BLOCK + i % pieces * 4;
        uint8_t *to = part.x + row * part.row_bytes + i % pieces * 8;
        const uint16_t *from = row_at(row);
        if (p.x_pieces && k + 4 <= p.columns) {
            simt_cp_async<8>(to, from + k);
        } else {
            *reinterpret_cast<uint2 *>(to) = load_x(p, from, k);
        }
    }
    simt_cp_async_commit();
    simt_cp_async_wait<0>();
    simt_sync_warp();
}

/* A lane's places in the part; of a token that is not there any other's: its sums are dropped. */
template <int NT>
SIMT_DEVICE void point_x(const part_t &part, uint32_t rows, const uint8_t *(&x)[NT])
{
    SIMT_UNROLL
    for (uint32_t n = 0; n < NT; n++) {
        const uint32_t row = n * 8 + (uint32_t)simt_lane() / 4;
        x[n] = part.x + (row < rows ? row : 0) * part.row_bytes + (uint32_t)simt_lane() % 4 * 8;
    }
}

/* Adds the parts of a unit in order and stores; the warps take turns. acc begins anew. */
template <int NT>
SIMT_DEVICE void finish(const linear_store_t &store, float (&parts)[SPLITS][NT][4][SIMT_WARP],
                        uint32_t unit, uint32_t turn, float (&acc)[NT][4])
{
    const uint32_t split = (uint32_t)simt_warp();
    const uint32_t lane = (uint32_t)simt_lane();
    SIMT_UNROLL
    for (int i = 0; i < 4 * NT; i++) {
        parts[split][i / 4][i % 4][lane] = acc[i / 4][i % 4];
        acc[i / 4][i % 4] = 0;
    }
    simt_sync_block();
    const uint32_t n = (split + turn) % SPLITS;
    if (n < NT) {
        float sum[4];
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            sum[i] = parts[0][n][i][lane];
            SIMT_UNROLL
            for (int s = 1; s < SPLITS; s++) {
                sum[i] += parts[s][n][i][lane];
            }
        }
        linear_store_fragments<1>(store, unit, n * 8, sum);
    }
}

/* Blocks that should share a multiprocessor. */
template <class W> constexpr int few_blocks()
{
    return W::PARTS > 1 ? 1 : W::BYTES <= 640 ? 4 : W::BYTES <= 1152 ? 3 : 2;
}

/* ---- many tokens ----------------------------------------------------------------------------- */

#define WIDE_UNITS  8 /* at most; a warp each */
#define WIDE_TOKENS 64
#define WIDE_STAGES 4
#define WIDE_STAGE  (WIDE_TOKENS * 128)

/* Where 16-byte chunk c of a token's k block lies: lanes that read together meet no bank twice. */
SIMT_DEVICE uint32_t wide_chunk(uint32_t token, uint32_t c)
{
    return token * 128 + (c ^ token % 4 * 2) * 16;
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
    const uint32_t g = (uint32_t)simt_lane() / 4;
    const uint32_t t = (uint32_t)simt_lane() % 4;
    float acc[NT][4] = {};
    for (uint32_t kb = 0; kb < WIDE_STAGES - 1; kb++) {
        wide_copy(p, stages + kb * WIDE_STAGE, kb, row_at);
    }
    for (uint32_t split = 0, kb = 0; split < SPLITS; split++) {
        for (; kb < p.k_blocks * (split + 1) / SPLITS; kb++) {
            const typename W::raw w = next;
            if (kb + 1 < p.k_blocks) {
                next = W::load(W::block(p.weights, unit, kb + 1, p.k_blocks), g, t);
            }
            simt_cp_async_wait<WIDE_STAGES - 2>();
            simt_sync_block(); /* the stage is there for all; the one before is free */
            const uint32_t ahead = kb + WIDE_STAGES - 1;
            wide_copy(p, stages + ahead % WIDE_STAGES * WIDE_STAGE, ahead, row_at);
            const uint8_t *stage = stages + kb % WIDE_STAGES * WIDE_STAGE;
            multiply<W, NT>(w, acc, [&](int n, int j) {
                return *reinterpret_cast<const uint2 *>(
                    stage + wide_chunk(n * 8 + g, j * 2 + t / 2) + t % 2 * 8);
            });
        }
        SIMT_UNROLL
        for (int i = 0; i < 4 * NT; i++) {
            float &part = acc[i / 4][i % 4];
            sum[i] = split == 0 ? part : sum[i] + part;
            part = 0;
        }
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
