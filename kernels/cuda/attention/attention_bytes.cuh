/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attention_bytes: caches of bytes, E4M3 and int8, as tensor cores take them.
 *
 * Tiles keep the cache's bytes in shared memory; fragments are widened in registers. ldmatrix hands a
 * lane four bytes of a row:
 *
 *   K   elements 4t..4t+3 of 16. They are taken as columns 2t, 2t+1, 2t+8, 2t+9 of the product, and so
 *       are q's, which attention_load_q stores in that order: the sum is over the same pairs
 *   V   head dims 2c, 2c+1 of 16 of two tokens. Even dims make one tile of 8 columns, odd ones the next;
 *       attention_bytes_dim says which dim a column is
 *
 * E4M3 is exact in f16, and so are the codes of int8. As V they are taken as bf16, just as exactly: f16
 * would be too short for weights times scales.
 */
#pragma once

#include "kernels/cuda/attention/attention_common.cuh"

/* Bytes lo and hi of a word of K as a pair of the tensor cores' elements. */
template <class T> SIMT_DEVICE uint32_t attention_widen_k(uint32_t word, int lo, int hi)
{
    if constexpr (attention_element<T>::has_scales) {
        /* 1024 + 128 + the code, exact in f16. */
        const uint32_t codes = simt_byte_perm(word ^ 0x80808080u, 0x64646464u,
                                              (uint32_t)(lo | 4 << 4 | hi << 8 | 4 << 12));
        return simt_sub_f16(codes, 0x64806480u);
    } else {
        return simt_widen_e4m3((uint16_t)simt_byte_perm(word, 0, (uint32_t)(lo | hi << 4)));
    }
}

/* The same of V. */
template <class T> SIMT_DEVICE uint32_t attention_widen_v(uint32_t word, int lo, int hi)
{
    if constexpr (attention_element<T>::has_scales) {
        /* 128 or 256 by the sign, and 128 plus the other bits: exact in bf16, so is the difference. */
        const uint32_t codes =
            simt_byte_perm(word, 0x43434343u, (uint32_t)(lo | 4 << 4 | hi << 8 | 4 << 12));
        return simt_fma_bf16(codes & 0xff7fff7fu, 0x3f803f80u, (codes & 0xff80ff80u) ^ 0x80008000u);
    } else {
        return attention_widen_k<T>(word, lo, hi);
    }
}

/* Of column pair t of tile `tile` of 8 head dims: its first dim; the second is 2 further. */
SIMT_DEVICE int attention_bytes_dim(int tile, int t)
{
    return tile / 2 * 16 + t * 4 + tile % 2;
}

/* As mma_scores, of a tile of bytes. */
template <int D, int MT, class T>
SIMT_DEVICE void attention_bytes_scores(float (&score)[MT][attention_shape<D>::quarter / 8][4],
                                        const uint8_t *q, int rows, int first_row, int quarter,
                                        const uint8_t *k)
{
    constexpr int chunk = attention_shape<D>::chunk;
    constexpr int tiles = attention_shape<D>::quarter / 8;
    constexpr int at_once = 4 / tiles; /* steps of 16 elements */
    static_assert(D / 16 % at_once == 0);
    const int matrix = simt_lane() / 8;
    const int row = quarter * attention_shape<D>::quarter + matrix % tiles * 8 + simt_lane() % 8;
    SIMT_UNROLL
    for (int first = 0; first < D / 16; first += at_once) {
        uint32_t raw[4];
        simt_ldmatrix_x4(raw, k + attention_tile_at(chunk, row, first + matrix / tiles));
        SIMT_UNROLL
        for (int step = 0; step < at_once; step++) {
            uint32_t a[MT][4];
            SIMT_UNROLL
            for (int m = 0; m < MT; m++) {
                const int at = first_row + m * 16 + simt_lane() % 16;
                const int unit = (first + step) * 2 + simt_lane() / 16;
                simt_ldmatrix_x4(a[m], q + attention_tile_at(rows, at, unit));
            }
            SIMT_UNROLL
            for (int n = 0; n < tiles; n++) {
                const uint32_t word = raw[step * tiles + n];
                const uint32_t b[2] = {attention_widen_k<T>(word, 0, 1),
                                       attention_widen_k<T>(word, 2, 3)};
                SIMT_UNROLL
                for (int m = 0; m < MT; m++) {
                    simt_mma_f16(score[m][n], a[m], b);
                }
            }
        }
    }
}

/* As mma_values, of a tile of bytes; TILES, even, are this warp's. */
template <int D, int MT, class T, int TILES>
SIMT_DEVICE void attention_bytes_values(float (&o)[MT][TILES][4], const uint8_t *weights, int rows,
                                        int first_row, int quarter, const uint8_t *v)
{
    constexpr int chunk = attention_shape<D>::chunk;
    static_assert(TILES % 2 == 0);
    SIMT_UNROLL
    for (int step = 0; step < chunk / 16; step++) {
        uint32_t a[MT][4];
        SIMT_UNROLL
        for (int m = 0; m < MT; m++) {
            const int at = first_row + m * 16 + simt_lane() % 16;
            simt_ldmatrix_x4(a[m],
                             weights + attention_tile_at(rows, at, step * 2 + simt_lane() / 16));
        }
        SIMT_UNROLL
        for (int n = 0; n < TILES; n += 2) {
            const int unit = (quarter * TILES + n) / 2;
            if (unit >= D / 16) {
                continue;
            }
            uint32_t raw[2];
            simt_ldmatrix_x2_trans(
                raw, v + attention_tile_at(chunk, step * 16 + simt_lane() % 16, unit));
            SIMT_UNROLL
            for (int odd = 0; odd < 2; odd++) {
                const uint32_t b[2] = {attention_widen_v<T>(raw[0], odd, odd + 2),
                                       attention_widen_v<T>(raw[1], odd, odd + 2)};
                SIMT_UNROLL
                for (int m = 0; m < MT; m++) {
                    attention_mma<T>(o[m][n + odd], a[m], b);
                }
            }
        }
    }
}

/* ---- scales ---------------------------------------------------------------------------------- */

/* The scales of a warp's columns of scores: of K, or of V, of a chunk. */
template <int D>
SIMT_DEVICE void attention_load_scales(const float *scales, int quarter,
                                       float2 (&scale)[attention_shape<D>::quarter / 8])
{
    const float *at = scales + quarter * attention_shape<D>::quarter + simt_lane() % 4 * 2;
    SIMT_UNROLL
    for (int n = 0; n < attention_shape<D>::quarter / 8; n++) {
        scale[n] = *reinterpret_cast<const float2 *>(at + n * 8);
    }
}

template <int D, int MT>
SIMT_DEVICE void attention_scale_scores(float (&score)[MT][attention_shape<D>::quarter / 8][4],
                                        const float2 (&scale)[attention_shape<D>::quarter / 8])
{
    SIMT_UNROLL
    for (int m = 0; m < MT; m++) {
        SIMT_UNROLL
        for (int n = 0; n < attention_shape<D>::quarter / 8; n++) {
            score[m][n][0] *= scale[n].x;
            score[m][n][1] *= scale[n].y;
            score[m][n][2] *= scale[n].x;
            score[m][n][3] *= scale[n].y;
        }
    }
}

/* A weight as V's codes take it. That of a token out of sight is 0, whatever its scale. */
SIMT_DEVICE float attention_scaled_weight(float weight, float scale)
{
    return weight == 0 ? 0.0f : weight * scale;
}
