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
    [K_Q4_0] = {q4_0_unit, d_scales},    [K_Q4_1] = {q4_1_unit, d_m_scales},
    [K_Q8_0] = {q8_0_unit, d_scales},    [K_Q4_K] = {q4_k_unit, k_min_scales},
    [K_Q6_K] = {q6_k_unit, q6_k_scales},
};

const packing_source_t *packing_source_of(k_dtype_t dtype)
{
    return &sources[dtype];
}
