/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/packing_source.h"

#include <string.h>

static void nibbles_apart(const uint8_t nibbles[16], uint8_t q[PACKING_UNIT])
{
    for (uint32_t i = 0; i < 16; i++) {
        q[i] = nibbles[i] & 15;
        q[16 + i] = nibbles[i] >> 4;
    }
}

/* ---- blocks of one unit -------------------------------------------------------------------- */

static void q4_0_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    (void)unit;
    nibbles_apart(block + 2, q);
}

static void q4_1_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    (void)unit;
    nibbles_apart(block + 4, q);
}

/* Bit i of a word of fifth bits is element i's. */
static void add_fifth_bits(const uint8_t word[4], uint8_t q[PACKING_UNIT])
{
    for (uint32_t i = 0; i < PACKING_UNIT; i++) {
        q[i] |= (uint8_t)((word[i / 8] >> (i % 8) & 1) << 4);
    }
}

static void q5_0_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    (void)unit;
    nibbles_apart(block + 6, q);
    add_fifth_bits(block + 2, q);
}

static void q5_1_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    (void)unit;
    nibbles_apart(block + 8, q);
    add_fifth_bits(block + 4, q);
}

static void mxfp4_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    (void)unit;
    nibbles_apart(block + 1, q);
}

static void i4_32_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    (void)unit;
    nibbles_apart(block + 3, q);
}

static void q8_0_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    (void)unit;
    memcpy(q, block + 2, PACKING_UNIT);
}

static void d_scales(const uint8_t *block, uint8_t *scales)
{
    memcpy(scales, block, 2);
}

static void d_m_scales(const uint8_t *block, uint8_t *scales)
{
    memcpy(scales, block, 4);
}

static void d_zero_scales(const uint8_t *block, uint8_t *scales)
{
    memcpy(scales, block, 3);
}

static void exponent_scales(const uint8_t *block, uint8_t *scales)
{
    *scales = *block;
}

/* ---- k types: blocks of eight units -------------------------------------------------------- */

static void k4_unit(const uint8_t *quants, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    const uint8_t *from = quants + unit / 2 * 32;
    const uint32_t shift = unit % 2 * 4;
    for (uint32_t i = 0; i < PACKING_UNIT; i++) {
        q[i] = from[i] >> shift & 15;
    }
}

static void q4_k_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    k4_unit(block + 16, unit, q);
}

static void q5_k_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    k4_unit(block + 48, unit, q);
    for (uint32_t i = 0; i < PACKING_UNIT; i++) {
        q[i] |= (uint8_t)((block[16 + i] >> unit & 1) << 4);
    }
}

static void k_min_scales(const uint8_t *block, uint8_t *scales)
{
    const uint8_t *packed = block + 4;
    memcpy(scales, block, 4);
    for (uint32_t j = 0; j < 4; j++) {
        scales[4 + j] = packed[j] & 63;
        scales[12 + j] = packed[j + 4] & 63;
        scales[8 + j] = (uint8_t)((packed[j + 8] & 15) | (packed[j] >> 6) << 4);
        scales[16 + j] = (uint8_t)((packed[j + 8] >> 4) | (packed[j + 4] >> 6) << 4);
    }
}

/* A row of 32 bit pairs. */
static void bit_pairs(const uint8_t *pairs, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    const uint8_t *from = pairs + unit / 4 * 32;
    for (uint32_t i = 0; i < PACKING_UNIT; i++) {
        q[i] = from[i] >> (unit % 4 * 2) & 3;
    }
}

static void q2_k_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    bit_pairs(block + 16, unit, q);
}

static void q2_k_scales(const uint8_t *block, uint8_t *scales)
{
    memcpy(scales, block + 80, 4);
    memcpy(scales + 4, block, 16);
}

static void q3_k_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    bit_pairs(block + 32, unit, q);
    for (uint32_t i = 0; i < PACKING_UNIT; i++) {
        q[i] |= (uint8_t)((block[i] >> unit & 1) << 2);
    }
}

static void q3_k_scales(const uint8_t *block, uint8_t *scales)
{
    const uint8_t *packed = block + 96;
    memcpy(scales, block + 108, 2);
    for (uint32_t j = 0; j < 16; j++) {
        const uint32_t low = packed[j % 8] >> (j / 8 * 4) & 15;
        scales[2 + j] = (uint8_t)((low | (packed[8 + j % 4] >> (j / 4 * 2) & 3U) << 4) - 32);
    }
}

static void iq4_xs_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    nibbles_apart(block + 8 + (size_t)unit * 16, q);
}

static void iq4_xs_scales(const uint8_t *block, uint8_t *scales)
{
    const uint32_t high = block[2] | (uint32_t)block[3] << 8;
    memcpy(scales, block, 2);
    for (uint32_t j = 0; j < 8; j++) {
        const uint32_t low = block[4 + j / 2] >> (j % 2 * 4) & 15;
        scales[2 + j] = (uint8_t)((low | (high >> (2 * j) & 3) << 4) - 32);
    }
}

static void q6_k_unit(const uint8_t *block, uint32_t unit, uint8_t q[PACKING_UNIT])
{
    const uint32_t half = unit / 4;
    const uint32_t line = unit % 4;
    const uint8_t *low = block + half * 64 + line % 2 * 32;
    const uint8_t *high = block + 128 + half * 32;
    for (uint32_t i = 0; i < PACKING_UNIT; i++) {
        q[i] = (uint8_t)((low[i] >> (line / 2 * 4) & 15) | (high[i] >> (line * 2) & 3) << 4);
    }
}

static void q6_k_scales(const uint8_t *block, uint8_t *scales)
{
    memcpy(scales, block + 208, 2);
    memcpy(scales + 2, block + 192, 16);
}

static const packing_source_t sources[K_DTYPE_COUNT] = {
    [K_Q4_0] = {q4_0_unit, d_scales},          [K_Q4_1] = {q4_1_unit, d_m_scales},
    [K_Q5_0] = {q5_0_unit, d_scales},          [K_Q5_1] = {q5_1_unit, d_m_scales},
    [K_Q8_0] = {q8_0_unit, d_scales},          [K_Q2_K] = {q2_k_unit, q2_k_scales},
    [K_Q3_K] = {q3_k_unit, q3_k_scales},       [K_Q4_K] = {q4_k_unit, k_min_scales},
    [K_Q5_K] = {q5_k_unit, k_min_scales},      [K_Q6_K] = {q6_k_unit, q6_k_scales},
    [K_IQ4_NL] = {q4_0_unit, d_scales},        [K_IQ4_XS] = {iq4_xs_unit, iq4_xs_scales},
    [K_MXFP4] = {mxfp4_unit, exponent_scales}, [K_I4_32] = {i4_32_unit, d_zero_scales},
};

const packing_source_t *packing_source_of(k_dtype_t dtype)
{
    return &sources[dtype];
}
