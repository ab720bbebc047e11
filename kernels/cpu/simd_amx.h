/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd_amx: tiles of 16 rows for linear_quantized.inc, after simd_avx512.h. Products of bytes are
 * exact, so what is made of them has the bits of the vector kernels.
 *
 * Tiles are per thread and hold nothing between tiles_begin and tiles_end but what was loaded since.
 * With AMX_EMULATED they are memory, for tests on processors without them. Intel SDM vol. 2,
 * TDPBSUD.
 */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "base/compiler.h"

#define HAS_TILES 1
#define TILE_ROWS 16

/* The tiles there are: products, 16 rows of 32 or 16 bytes of x, 8 or 4 words of 16 lanes of W. */
#define TILE_SUMS      0
#define TILE_SUMS_HIGH 1
#define TILE_X         2
#define TILE_X_HALF    3
#define TILE_W         4
#define TILE_W_LOW     5
#define TILE_W_HIGH    6

/* What LDTILECFG reads. */
typedef struct tile_config {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config_t;

_Static_assert(sizeof(tile_config_t) == 64, "as the instruction reads it");

static const tile_config_t tile_config = {
    .palette = 1,
    .row_bytes = {64, 64, 32, 16, 64, 64, 64},
    .rows = {16, 16, 16, 16, 8, 4, 4},
};

#ifdef AMX_EMULATED
static _Thread_local uint8_t emulated_tiles[7][16][64];

static inline void tiles_begin(void)
{
    memset(emulated_tiles, 0xee, sizeof(emulated_tiles));
}
static inline void tiles_end(void)
{
}
static inline void tile_load(int tile, const void *from, size_t stride)
{
    for (uint32_t r = 0; r < tile_config.rows[tile]; r++) {
        memcpy(emulated_tiles[tile][r], (const uint8_t *)from + r * stride,
               tile_config.row_bytes[tile]);
    }
}
static inline void tile_store(int tile, void *to, size_t stride)
{
    for (uint32_t r = 0; r < tile_config.rows[tile]; r++) {
        memcpy((uint8_t *)to + r * stride, emulated_tiles[tile][r], tile_config.row_bytes[tile]);
    }
}
/* sums = x · w, x signed and w unsigned. */
static inline void tile_dot(int sums, int x, int w)
{
    for (uint32_t r = 0; r < tile_config.rows[sums]; r++) {
        for (uint32_t lane = 0; lane < 16; lane++) {
            int32_t sum = 0;
            for (uint32_t k = 0; k < tile_config.row_bytes[x]; k++) {
                sum += (int8_t)emulated_tiles[x][r][k] * emulated_tiles[w][k / 4][lane * 4 + k % 4];
            }
            memcpy(&emulated_tiles[sums][r][lane * 4], &sum, sizeof(sum));
        }
    }
}
#else
static inline void tiles_begin(void)
{
    _tile_loadconfig(&tile_config);
}
static inline void tiles_end(void)
{
    _tile_release();
}
/* Tile numbers are part of the instruction. The barrier: the compiler does not know what it reads. */
#define tile_load(tile, from, stride)                                                              \
    do {                                                                                           \
        weft_compiler_barrier();                                                                   \
        _tile_loadd(tile, from, stride);                                                           \
    } while (0)
#define tile_store(tile, to, stride) _tile_stored(tile, to, stride)
/* sums = x · w, x signed and w unsigned. */
#define tile_dot(sums, x, w)                                                                       \
    do {                                                                                           \
        _tile_zero(sums);                                                                          \
        _tile_dpbsud(sums, x, w);                                                                  \
    } while (0)
#endif
