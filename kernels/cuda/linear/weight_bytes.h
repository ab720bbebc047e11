/* SPDX-License-Identifier: Apache-2.0 */
/*
 * weight_bytes: formats of eight bits (weight_formats.h). The elements of a block come first:
 * [pair of steps][lane] 16 bytes, words {row g, row g + 8} of each step. A word's halves have
 * elements 0 and 1 in one place and 2 and 3 in another, so that two at a time become bf16.
 */
#pragma once

#include "kernels/cuda/linear/weight_plain.h"

SIMT_DEVICE uint32_t weight_byte_word_at(uint32_t row, uint32_t j, uint32_t t)
{
    return j / 2 * 512 + (row % 8 * 4 + t) * 16 + j % 2 * 8 + row / 8 * 4;
}

/*
 * Elements are kept plus 128. Then [row % 8] 8 bytes: f16 d of row g: group 0, 1; of row g + 8:
 * group 0, 1.
 */
struct weight_q8_0 : weight_block<1088> {
    enum { BYTES = 1088, OVER = 64, PARTS = 1, GROUP = 32, HAS_MIN = 0 };
    struct raw {
        uint32_t v[2][4];
        uint2 d;
    };

    static SIMT_FN raw load(const uint8_t *block, uint32_t g, uint32_t t)
    {
        raw w;
        weight_unpack_16(weight_load_16(block + (g * 4 + t) * 16), w.v[0]);
        weight_unpack_16(weight_load_16(block + 512 + (g * 4 + t) * 16), w.v[1]);
        w.d = weight_load_8(block + 1024 + g * 8);
        return w;
    }
    /* The lower bytes of both halves: as bf16 2^-133 times what they count. */
    static SIMT_FN uint32_t pair(uint32_t bytes)
    {
        return simt_fma_bf16(bytes & 0x00ff00ffu, 0x7f007f00u, 0xc000c000u); /* -128 / 64 */
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            const uint32_t word = w.v[j / 2][j % 2 * 2 + half];
            a[0][half] = pair(word);
            a[0][half + 2] = pair(word >> 8);
        }
    }
    static SIMT_FN uint32_t byte_at(uint32_t row, uint32_t k)
    {
        return weight_byte_word_at(row, k / 16, weight_lane(k)) + k % 2 * 2 + k % 16 / 8;
    }
    static SIMT_FN float2 scale(const raw &w, int group)
    {
        return make_float2(weight_half_of(w.d.x, group), weight_half_of(w.d.y, group));
    }
    static SIMT_FN float2 offset(const raw &, int)
    {
        return make_float2(0, 0);
    }
    static SIMT_FN uint32_t scale_at(uint32_t row, uint32_t group)
    {
        return 1024 + row % 8 * 8 + row / 8 * 4 + group * 2;
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        return (float)((int)block[byte_at(row, k)] - 128) *
               weight_half(weight_u16(block + scale_at(row, k / 32)));
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        for (uint32_t i = 0; i < 16; i++) {
            const uint32_t k = kb * 64 + weight_column(i / 4, t, i % 4);
            if (k < columns) {
                block[byte_at(row, k % 64)] = src[k / 32 * 34 + 2 + k % 32] ^ 0x80;
            }
        }
        if (t < 2 && kb * 64 + t * 32 < columns) {
            weight_store_u16(block + scale_at(row, t), weight_u16(src + (kb * 2 + t) * 34));
        }
    }
};

/*
 * E4M3. SHARED: then [row / 8] 8 bytes: f32 scale of group 0, of group 1, for 8 rows; else the same
 * [row % 8] times, for each.
 */
template <bool SHARED> struct weight_f8 : weight_block<SHARED ? 1040 : 1152> {
    enum { BYTES = SHARED ? 1040 : 1152, PARTS = 1, GROUP = 32, HAS_MIN = 0 };
    struct raw {
        uint32_t v[2][4];
        uint32_t d[4];
    };

    static SIMT_FN raw load(const uint8_t *block, uint32_t g, uint32_t t)
    {
        raw w;
        weight_unpack_16(weight_load_16(block + (g * 4 + t) * 16), w.v[0]);
        weight_unpack_16(weight_load_16(block + 512 + (g * 4 + t) * 16), w.v[1]);
        weight_unpack_16(weight_load_16(block + scale_at(g, 0)), w.d);
        return w;
    }
    /*
     * E4M3 as bf16: sign in bit 15, the other seven in bits 10..4; the bits are then 2^-120 times the
     * number. Elements 0 and 1 lie so in a word's halves. Of 2 and 3 the exponents have bits 14..11,
     * the mantissas bits 2..0, and each sign is bit 3 of the other half.
     */
    static SIMT_FN uint32_t scaled(uint32_t bits)
    {
        return simt_fma_bf16(bits, 0x7b807b80u, 0x80008000u);
    }
    static SIMT_FN uint32_t first(uint32_t word)
    {
        return scaled(word & 0x87f087f0u);
    }
    static SIMT_FN uint32_t second(uint32_t word)
    {
        const uint32_t turned = word >> 4 | word << 28;
        return scaled(weight_pick(turned, 0x87808780u, word << 4 & 0x00700070u));
    }
    /* Code as element e of its word. */
    static SIMT_FN uint32_t placed(uint32_t code, uint32_t e)
    {
        if (e < 2) {
            return ((code & 0x80) << 8 | (code & 0x7f) << 4) << 16 * e;
        }
        return ((code & 0x78) << 8 | (code & 7)) << 16 * (e - 2) | (code >> 7) << (e == 2 ? 19 : 3);
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            const uint32_t word = w.v[j / 2][j % 2 * 2 + half];
            a[0][half] = first(word);
            a[0][half + 2] = second(word);
        }
    }
    static SIMT_FN float2 scale(const raw &w, int group)
    {
        return make_float2(simt_bits_float(w.d[group]), simt_bits_float(w.d[2 + group]));
    }
    static SIMT_FN float2 offset(const raw &, int)
    {
        return make_float2(0, 0);
    }
    static SIMT_FN uint32_t scale_at(uint32_t row, uint32_t group)
    {
        return 1024 + (SHARED ? 0 : row % 8 * 16) + row / 8 * 8 + group * 4;
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        const uint32_t word = weight_u32(block + weight_byte_word_at(row, k / 16, weight_lane(k)));
        const float2 two = simt_unpack_bf16(k % 16 < 8 ? first(word) : second(word));
        return (k % 2 == 0 ? two.x : two.y) *
               simt_bits_float(weight_u32(block + scale_at(row, k / 32)));
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t word = 0;
            for (uint32_t e = 0; e < 4; e++) {
                const uint32_t k = kb * 64 + weight_column(j, t, e);
                word |= k < columns ? placed(src[k / 32 * 36 + 4 + k % 32], e) : 0;
            }
            *reinterpret_cast<uint32_t *>(block + weight_byte_word_at(row, j, t)) = word;
        }
        if (t < 2 && kb * 64 + t * 32 < columns && (!SHARED || row % 8 == 0)) {
            *reinterpret_cast<uint32_t *>(block + scale_at(row, t)) =
                weight_u32(src + (kb * 2 + t) * 36);
        }
    }
};

using weight_f8_32 = weight_f8<false>;
using weight_f8_8x32 = weight_f8<true>;
