/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw blocks to f32. Block layouts: ggml's file format; every field is little-endian. Each product
 * and difference is its own statement-level rounding (the build forbids contraction), which is what
 * makes the result bit-equal on every machine.
 */
#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/float8.h"
#include "kernels/dequantize_priv.h"

static void dequantize_f32(const uint8_t *block, float *y)
{
    const uint32_t bits = k_load_u32(block);
    memcpy(y, &bits, sizeof(bits));
}

static void dequantize_f16(const uint8_t *block, float *y)
{
    *y = k_load_f16(block);
}

static void dequantize_bf16(const uint8_t *block, float *y)
{
    *y = k_bf16_to_f32(k_load_u16(block));
}

/* f16 d, 16 bytes: element i in the low nibble of byte i, element i + 16 in the high one. */
static void dequantize_q4_0(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)((block[2 + i] & 15) - 8) * d;
        y[i + 16] = (float)((block[2 + i] >> 4) - 8) * d;
    }
}

/* f16 d, f16 m, nibbles as in q4_0. */
static void dequantize_q4_1(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    const float m = k_load_f16(block + 2);
    for (int i = 0; i < 16; i++) {
        const float low = (float)(block[4 + i] & 15) * d;
        const float high = (float)(block[4 + i] >> 4) * d;
        y[i] = low + m;
        y[i + 16] = high + m;
    }
}

/* The fifth bit of element i is bit i of the word at `bits`. */
static int five_bits(const uint8_t *bits, const uint8_t *nibbles, int i)
{
    const int low = nibbles[i % 16] >> (i / 16 * 4) & 15;
    return low | (bits[i / 8] >> (i % 8) & 1) << 4;
}

/* f16 d, a word of fifth bits, nibbles as in q4_0. */
static void dequantize_q5_0(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    for (int i = 0; i < 32; i++) {
        y[i] = (float)(five_bits(block + 2, block + 6, i) - 16) * d;
    }
}

/* f16 d, f16 m, a word of fifth bits, nibbles. */
static void dequantize_q5_1(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    const float m = k_load_f16(block + 2);
    for (int i = 0; i < 32; i++) {
        const float product = (float)five_bits(block + 4, block + 8, i) * d;
        y[i] = product + m;
    }
}

/* f16 d, 32 signed bytes. */
static void dequantize_q8_0(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    for (int i = 0; i < 32; i++) {
        y[i] = (float)(int8_t)block[2 + i] * d;
    }
}

/*
 * Bit pairs of a block of 256: 64 bytes, each half of 128 elements four rows of 32, row r in bits
 * 2r of the half's 32 bytes.
 */
static int bit_pair(const uint8_t *pairs, int e)
{
    return pairs[e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3;
}

/* 16 bytes of 4-bit scale and minimum of 16 elements, bit pairs, f16 d, f16 dmin. */
static void dequantize_q2_k(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block + 80);
    const float dmin = k_load_f16(block + 82);
    for (int e = 0; e < 256; e++) {
        const uint8_t packed = block[e / 16];
        const float step = d * (float)(packed & 15);
        const float offset = dmin * (float)(packed >> 4);
        const float product = step * (float)bit_pair(block + 16, e);
        y[e] = product - offset;
    }
}

/* The 6-bit scale of 16 elements j (of 16): nibbles of bytes 0..7, top pairs in bytes 8..11. */
static int q3_k_scale(const uint8_t *packed, int j)
{
    const int low = packed[j % 8] >> (j / 8 * 4) & 15;
    return (low | (packed[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32;
}

/* 32 bytes of top bits (clear: 4 less), row by row as the bit pairs; 12 of scales; f16 d. */
static void dequantize_q3_k(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block + 108);
    for (int e = 0; e < 256; e++) {
        const int is_high = block[e % 32] >> (e / 32) & 1;
        const float step = d * (float)q3_k_scale(block + 96, e / 16);
        y[e] = step * (float)(bit_pair(block + 32, e) - (is_high ? 0 : 4));
    }
}

/*
 * The 6-bit scale and minimum of sub-block j (of 8) from 12 bytes: 0..3 hold the low six bits of
 * scale and minimum whole, the top two bits of those bytes complete the nibbles of 8..11.
 */
static void q4_k_scale(const uint8_t *packed, int j, uint8_t *scale_out, uint8_t *min_out)
{
    if (j < 4) {
        *scale_out = packed[j] & 63;
        *min_out = packed[j + 4] & 63;
    } else {
        *scale_out = (uint8_t)((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4);
        *min_out = (uint8_t)((packed[j + 4] >> 4) | (packed[j] >> 6) << 4);
    }
}

/* f16 d, f16 dmin, 12 bytes of scales, 128 bytes: 32 of them carry two sub-blocks of 32. */
static void dequantize_q4_k(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    const float dmin = k_load_f16(block + 2);
    const uint8_t *nibbles = block + 16;
    for (int j = 0; j < 8; j++) {
        uint8_t scale;
        uint8_t min;
        q4_k_scale(block + 4, j, &scale, &min);
        const float step = d * (float)scale;
        const float offset = dmin * (float)min;
        const int shift = j % 2 * 4;
        for (int i = 0; i < 32; i++) {
            const float product = step * (float)(nibbles[j / 2 * 32 + i] >> shift & 15);
            y[j * 32 + i] = product - offset;
        }
    }
}

/* As q4_k, with 32 bytes of fifth bits before the nibbles: bit j of byte i is element 32j + i's. */
static void dequantize_q5_k(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    const float dmin = k_load_f16(block + 2);
    for (int e = 0; e < 256; e++) {
        const int j = e / 32;
        const int low = block[48 + j / 2 * 32 + e % 32] >> (j % 2 * 4) & 15;
        const int high = block[16 + e % 32] >> j & 1;
        uint8_t scale;
        uint8_t min;
        q4_k_scale(block + 4, j, &scale, &min);
        const float step = d * (float)scale;
        const float offset = dmin * (float)min;
        const float product = step * (float)(low | high << 4);
        y[e] = product - offset;
    }
}

/*
 * 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, f16 d. Each half of 128
 * elements is four rows of 32; row r takes its nibble from byte row r % 2 and bit pair r.
 */
static void dequantize_q6_k(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block + 208);
    for (int e = 0; e < 256; e++) {
        const int half = e / 128;
        const int row = e % 128 / 32;
        const int i = e % 32;
        const int low = block[half * 64 + row % 2 * 32 + i] >> (row / 2 * 4) & 15;
        const int high = block[128 + half * 32 + i] >> (row * 2) & 3;
        const float step = d * (float)(int8_t)block[192 + e / 16];
        y[e] = step * (float)((low | high << 4) - 32);
    }
}

/*
 * Five ternary digits a byte, as the byte's value over 256 times three, the first one highest: 32
 * bytes of 5 × 32 elements, 16 of 5 × 16, 4 of 4 × 4, f16 d.
 */
static void dequantize_tq1_0(const uint8_t *block, float *y)
{
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    const float d = k_load_f16(block + 52);
    for (int e = 0; e < 256; e++) {
        const bool is_wide = e < 160;
        const bool is_last = e >= 240;
        const int width = is_wide ? 32 : is_last ? 4 : 16;
        const int start = is_wide ? 0 : is_last ? 48 : 32;
        const int i = e - (is_wide ? 0 : is_last ? 240 : 160);
        const uint8_t digit = (uint8_t)(block[start + i % width] * powers[i / width]);
        y[e] = d * (float)((digit * 3 >> 8) - 1);
    }
}

/* Bit pairs as in q2_k, 0 is -1; f16 d. */
static void dequantize_tq2_0(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block + 64);
    for (int e = 0; e < 256; e++) {
        y[e] = d * (float)(bit_pair(block, e) - 1);
    }
}

/* E2M1, doubled. OCP Microscaling Formats v1.0, table 5. */
const int8_t k_e2m1_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

float k_e8m0_half(uint8_t e)
{
    const uint32_t bits = e < 2 ? UINT32_C(0x00200000) << e : (uint32_t)(e - 1) << 23;
    float half;
    memcpy(&half, &bits, sizeof(half));
    return half;
}

/* E8M0 scale, nibbles as in q4_0. */
static void dequantize_mxfp4(const uint8_t *block, float *y)
{
    const float d = k_e8m0_half(block[0]);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)k_e2m1_doubled[block[1 + i] & 15];
        y[i + 16] = d * (float)k_e2m1_doubled[block[1 + i] >> 4];
    }
}

/* Half of an E4M3 number without its sign; the code of NaN counts as 0. */
static float ue4m3_half(uint8_t code)
{
    const int exponent = code >> 3 & 15;
    const float mantissa = (float)(code & 7);
    if ((code & 127) == 127) {
        return 0;
    }
    return exponent == 0 ? ldexpf(mantissa, -10) : ldexpf(8 + mantissa, exponent - 11);
}

/* Four E4M3 scales of 16 elements, then 8 bytes of nibbles each. */
static void dequantize_nvfp4(const uint8_t *block, float *y)
{
    for (int j = 0; j < 4; j++) {
        const float d = ue4m3_half(block[j]);
        for (int i = 0; i < 8; i++) {
            const uint8_t nibbles = block[4 + j * 8 + i];
            y[j * 16 + i] = d * (float)k_e2m1_doubled[nibbles & 15];
            y[j * 16 + i + 8] = d * (float)k_e2m1_doubled[nibbles >> 4];
        }
    }
}

static void dequantize_f8(const uint8_t *block, float *y)
{
    *y = weft_f8_to_f32(block[0]);
}

/* f32 scale, 32 E4M3 numbers. */
static void dequantize_f8_32(const uint8_t *block, float *y)
{
    float scale;
    dequantize_f32(block, &scale);
    for (int i = 0; i < 32; i++) {
        y[i] = weft_f8_to_f32(block[4 + i]) * scale;
    }
}

/* f16 d, the number that stands for 0, nibbles as in q4_0. */
static void dequantize_i4_32(const uint8_t *block, float *y)
{
    const float d = k_load_f16(block);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)((block[3 + i] & 15) - block[2]) * d;
        y[i + 16] = (float)((block[3 + i] >> 4) - block[2]) * d;
    }
}

/* Codes: their scales lie elsewhere. */
static void dequantize_i8(const uint8_t *block, float *y)
{
    *y = (float)(int8_t)block[0];
}

static void dequantize_u8(const uint8_t *block, float *y)
{
    *y = (float)block[0];
}

static void dequantize_i32(const uint8_t *block, float *y)
{
    *y = (float)(int32_t)k_load_u32(block);
}

typedef void (*dequantize_fn)(const uint8_t *block, float *y);

static const dequantize_fn dequantize_of[K_DTYPE_COUNT] = {
    [K_F32] = dequantize_f32,         [K_F16] = dequantize_f16,
    [K_BF16] = dequantize_bf16,       [K_Q4_0] = dequantize_q4_0,
    [K_Q4_1] = dequantize_q4_1,       [K_Q5_0] = dequantize_q5_0,
    [K_Q5_1] = dequantize_q5_1,       [K_Q8_0] = dequantize_q8_0,
    [K_Q2_K] = dequantize_q2_k,       [K_Q3_K] = dequantize_q3_k,
    [K_Q4_K] = dequantize_q4_k,       [K_Q5_K] = dequantize_q5_k,
    [K_Q6_K] = dequantize_q6_k,       [K_IQ2_XXS] = k_dequantize_iq2_xxs,
    [K_IQ2_XS] = k_dequantize_iq2_xs, [K_IQ3_XXS] = k_dequantize_iq3_xxs,
    [K_IQ1_S] = k_dequantize_iq1_s,   [K_IQ4_NL] = k_dequantize_iq4_nl,
    [K_IQ3_S] = k_dequantize_iq3_s,   [K_IQ2_S] = k_dequantize_iq2_s,
    [K_IQ4_XS] = k_dequantize_iq4_xs, [K_IQ1_M] = k_dequantize_iq1_m,
    [K_TQ1_0] = dequantize_tq1_0,     [K_TQ2_0] = dequantize_tq2_0,
    [K_MXFP4] = dequantize_mxfp4,     [K_NVFP4] = dequantize_nvfp4,
    [K_F8] = dequantize_f8,           [K_F8_32] = dequantize_f8_32,
    [K_F8_8X32] = dequantize_f8_32,   [K_I4_32] = dequantize_i4_32,
    [K_U8] = dequantize_u8,           [K_I32] = dequantize_i32,
    [K_I8] = dequantize_i8,
};

void k_dequantize(k_dtype_t dtype, const void *src, float *dst, size_t n)
{
    const k_dtype_info_t *info = k_dtype_info(dtype);
    const uint8_t *block = src;
    assert(n % info->block_elements == 0);
    for (size_t i = 0; i < n; i += info->block_elements) {
        dequantize_of[dtype](block, dst + i);
        block += info->block_bytes;
    }
}
