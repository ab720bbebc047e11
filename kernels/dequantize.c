/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw blocks to f32. Block layouts: ggml's file format; every field is little-endian. Each product
 * and difference is its own statement-level rounding (the build forbids contraction), which is what
 * makes the result bit-equal on every machine.
 */
#include <assert.h>
#include <string.h>

#include "kernels/dtypes.h"

static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static float load_f16(const uint8_t *p)
{
    return k_f16_to_f32(load_u16(p));
}

static void dequantize_f32(const uint8_t *block, float *y)
{
    const uint32_t bits = load_u16(block) | (uint32_t)load_u16(block + 2) << 16;
    memcpy(y, &bits, sizeof(bits));
}

static void dequantize_f16(const uint8_t *block, float *y)
{
    *y = load_f16(block);
}

static void dequantize_bf16(const uint8_t *block, float *y)
{
    *y = k_bf16_to_f32(load_u16(block));
}

/* f16 d, 16 bytes: element i in the low nibble of byte i, element i + 16 in the high one. */
static void dequantize_q4_0(const uint8_t *block, float *y)
{
    const float d = load_f16(block);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)((block[2 + i] & 15) - 8) * d;
        y[i + 16] = (float)((block[2 + i] >> 4) - 8) * d;
    }
}

/* f16 d, f16 m, nibbles as in q4_0. */
static void dequantize_q4_1(const uint8_t *block, float *y)
{
    const float d = load_f16(block);
    const float m = load_f16(block + 2);
    for (int i = 0; i < 16; i++) {
        const float low = (float)(block[4 + i] & 15) * d;
        const float high = (float)(block[4 + i] >> 4) * d;
        y[i] = low + m;
        y[i + 16] = high + m;
    }
}

/* f16 d, 32 signed bytes. */
static void dequantize_q8_0(const uint8_t *block, float *y)
{
    const float d = load_f16(block);
    for (int i = 0; i < 32; i++) {
        y[i] = (float)(int8_t)block[2 + i] * d;
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
    const float d = load_f16(block);
    const float dmin = load_f16(block + 2);
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

/*
 * 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, f16 d. Each half of 128
 * elements is four rows of 32; row r takes its nibble from byte row r % 2 and bit pair r.
 */
static void dequantize_q6_k(const uint8_t *block, float *y)
{
    const float d = load_f16(block + 208);
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

typedef void (*dequantize_fn)(const uint8_t *block, float *y);

static const dequantize_fn dequantize_of[K_DTYPE_COUNT] = {
    [K_F32] = dequantize_f32,   [K_F16] = dequantize_f16,   [K_BF16] = dequantize_bf16,
    [K_Q4_0] = dequantize_q4_0, [K_Q4_1] = dequantize_q4_1, [K_Q8_0] = dequantize_q8_0,
    [K_Q4_K] = dequantize_q4_k, [K_Q6_K] = dequantize_q6_k,
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
