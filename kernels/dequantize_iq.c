/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks of GGUF's IQ types: indices into codebooks, signs beside them. See dequantize.c. */
#include "kernels/dequantize_priv.h"
#include "kernels/iq_grids.h"

static const float iq2_levels[4] = {0x08, 0x19, 0x2b, 0};
static const float iq3_xxs_levels[8] = {0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3e};
static const float iq3_s_levels[8] = {1, 3, 5, 7, 9, 11, 13, 15};
static const float iq1_levels[4] = {-1, 0, 1, 0};

const int8_t k_iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                 1,    13,   25,  38,  53,  69,  89,  113};

/* Seven signs are stored; the eighth makes the number of minuses even. */
static uint8_t whole_signs(uint32_t seven)
{
    uint32_t parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return (uint8_t)(seven | (parity & 1) << 7);
}

/* n elements of one codebook entry, each of `bits` bits. */
static void put_signed(uint16_t entry, int n, int bits, const float *levels, uint8_t signs,
                       float step, float *y)
{
    for (int i = 0; i < n; i++) {
        const float value = step * levels[entry >> (bits * i) & ((1 << bits) - 1)];
        y[i] = signs >> i & 1 ? -value : value;
    }
}

/* f16 d, then for each 32 elements four indices, 4 × 7 signs and a 4-bit scale. */
void k_dequantize_iq2_xxs(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    for (int j = 0; j < 8; j++) {
        const uint8_t *part = block + 2 + j * 8;
        const uint32_t word = k_load_u32(part + 4);
        const float step = d * (0.5f + (float)(word >> 28)) * 0.25f;
        for (int i = 0; i < 4; i++) {
            put_signed(k_iq2_xxs_grid[part[i]], 8, 2, iq2_levels,
                       whole_signs(word >> (7 * i) & 127), step, y + j * 32 + i * 8);
        }
    }
}

/* f16 d, 32 words of a 9-bit index and 7 signs, 8 bytes of 4-bit scales of 16 elements. */
void k_dequantize_iq2_xs(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    for (int j = 0; j < 32; j++) {
        const uint16_t word = k_load_u16(block + 2 + j * 2);
        const int scale = block[66 + j / 4] >> (j / 2 % 2 * 4) & 15;
        const float step = d * (0.5f + (float)scale) * 0.25f;
        put_signed(k_iq2_xs_grid[word & 511], 8, 2, iq2_levels, whole_signs(word >> 9), step,
                   y + j * 8);
    }
}

/* f16 d, 32 low bytes of indices, 32 bytes of signs, 8 of high bit pairs, 8 of 4-bit scales. */
void k_dequantize_iq2_s(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    for (int j = 0; j < 32; j++) {
        const int high = block[66 + j / 4] >> (j % 4 * 2) & 3;
        const int scale = block[74 + j / 4] >> (j / 2 % 2 * 4) & 15;
        const float step = d * (0.5f + (float)scale) * 0.25f;
        put_signed(k_iq2_s_grid[block[2 + j] | high << 8], 8, 2, iq2_levels, block[34 + j], step,
                   y + j * 8);
    }
}

/* f16 d, 64 indices, then for each 32 elements 4 × 7 signs and a 4-bit scale. */
void k_dequantize_iq3_xxs(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    for (int j = 0; j < 64; j++) {
        const uint32_t word = k_load_u32(block + 66 + j / 8 * 4);
        const float step = d * (0.5f + (float)(word >> 28)) * 0.5f;
        const uint8_t signs = whole_signs(word >> (j / 2 % 4 * 7) & 127);
        put_signed(k_iq3_xxs_grid[block[2 + j]], 4, 3, iq3_xxs_levels,
                   (uint8_t)(signs >> (j % 2 * 4)), step, y + j * 4);
    }
}

/* f16 d, 64 low bytes of indices, 8 of their top bits, 32 of signs, 4 of 4-bit scales. */
void k_dequantize_iq3_s(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    for (int j = 0; j < 64; j++) {
        const int high = block[66 + j / 8] >> (j % 8) & 1;
        const int scale = block[106 + j / 16] >> (j / 8 % 2 * 4) & 15;
        const float step = d * (float)(1 + 2 * scale);
        const uint8_t signs = block[74 + j / 2];
        put_signed(k_iq3_s_grid[block[2 + j] | high << 8], 4, 3, iq3_s_levels,
                   (uint8_t)(signs >> (j % 2 * 4)), step, y + j * 4);
    }
}

/* The shift of a group of an IQ1 type: an eighth up or down. */
static void put_shifted(uint16_t entry, float step, float shift, float *y)
{
    for (int i = 0; i < 8; i++) {
        y[i] = step * (iq1_levels[entry >> (2 * i) & 3] + shift);
    }
}

/* f16 d, 32 low bytes of indices, 8 words of 4 × 3 high bits, a 3-bit scale and the shift's sign. */
void k_dequantize_iq1_s(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    for (int j = 0; j < 32; j++) {
        const uint16_t word = k_load_u16(block + 34 + j / 4 * 2);
        const int high = word >> (j % 4 * 3) & 7;
        const float step = d * (float)(2 * (word >> 12 & 7) + 1);
        put_shifted(k_iq1_s_grid[block[j + 2] | high << 8], step, word & 0x8000 ? -0.125f : 0.125f,
                    y + j * 8);
    }
}

/*
 * 32 low bytes of indices, 16 bytes of (3 high bits, the shift's sign) twice, 4 words of 4 × 3-bit
 * scales of 16 elements, whose top nibbles are the f16 d.
 */
void k_dequantize_iq1_m(const uint8_t *block, float *y)
{
    uint16_t bits = 0;
    for (int i = 0; i < 4; i++) {
        bits = (uint16_t)(bits | k_load_u16(block + 48 + i * 2) >> 12 << (i * 4));
    }
    const float d = k_f16_to_f32(bits);
    for (int j = 0; j < 32; j++) {
        const int nibble = block[32 + j / 2] >> (j % 2 * 4) & 15;
        const int scale = k_load_u16(block + 48 + j / 8 * 2) >> (j / 2 % 4 * 3) & 7;
        put_shifted(k_iq1_s_grid[block[j] | (nibble & 7) << 8], d * (float)(2 * scale + 1),
                    nibble & 8 ? -0.125f : 0.125f, y + j * 8);
    }
}

/* As q4_0, with uneven levels. */
void k_dequantize_iq4_nl(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)k_iq4_levels[block[2 + i] & 15];
        y[i + 16] = d * (float)k_iq4_levels[block[2 + i] >> 4];
    }
}

/* f16 d, 8 high bit pairs and 8 low nibbles of scales, 128 bytes of iq4_nl's nibbles. */
void k_dequantize_iq4_xs(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    const uint16_t high = k_load_u16(block + 2);
    for (int j = 0; j < 8; j++) {
        const int low = block[4 + j / 2] >> (j % 2 * 4) & 15;
        const float step = d * (float)((low | (high >> (2 * j) & 3) << 4) - 32);
        for (int i = 0; i < 16; i++) {
            const uint8_t nibbles = block[8 + j * 16 + i];
            y[j * 32 + i] = step * (float)k_iq4_levels[nibbles & 15];
            y[j * 32 + i + 16] = step * (float)k_iq4_levels[nibbles >> 4];
        }
    }
}
