/* SPDX-License-Identifier: Apache-2.0 */
/*
 * weight_bytes: formats of eight bits (weight_formats.h). The bytes of a block come first:
 * [pair of steps][lane] 16 bytes, words {row g, row g + 8} of each step.
 */
#pragma once

#include "kernels/cuda/weight_plain.h"

SIMT_DEVICE uint32_t weight_byte_at(uint32_t row, uint32_t j, uint32_t t)
{
    return j / 2 * 512 + (row % 8 * 4 + t) * 16 + j % 2 * 8 + row / 8 * 4;
}

/* then [row % 8] 8 bytes: f16 d of row g: group 0, 1; of row g + 8: group 0, 1 */
struct weight_q8_0 : weight_block<1088> {
    enum { BYTES = 1088, PARTS = 1, GROUP = 32, HAS_MIN = 0 };
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
    /* Bytes i and i + 1 of four signed ones that had 128 added: by way of f32's 2^23 + byte. */
    static SIMT_FN uint32_t pair(uint32_t word, uint32_t i)
    {
        const float less = -8388736.0f; /* 2^23 + 128 */
        return simt_pack_bf16(simt_bits_float(simt_byte_perm(word, 0x4b000000u, 0x7540 + i)) + less,
                              simt_bits_float(simt_byte_perm(word, 0x4b000000u, 0x7540 + i + 1)) +
                                  less);
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            const uint32_t word = w.v[j / 2][j % 2 * 2 + half] ^ 0x80808080u;
            a[0][half] = pair(word, 0);
            a[0][half + 2] = pair(word, 2);
        }
    }
    static SIMT_FN float2 scale(const raw &w, int group)
    {
        return make_float2(weight_half(w.d.x >> 16 * group), weight_half(w.d.y >> 16 * group));
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
        const uint8_t byte = block[weight_byte_at(row, k / 16, k % 16 / 4) + k % 4];
        return (float)(int8_t)byte * weight_half(weight_u16(block + scale_at(row, k / 32)));
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        for (uint32_t i = 0; i < 16; i++) {
            const uint32_t k = kb * 64 + i / 4 * 16 + 4 * t + i % 4;
            if (k < columns) {
                block[weight_byte_at(row, i / 4, t) + i % 4] = src[k / 32 * 34 + 2 + k % 32];
            }
        }
        if (t < 2 && kb * 64 + t * 32 < columns) {
            weight_store_u16(block + scale_at(row, t), weight_u16(src + (kb * 2 + t) * 34));
        }
    }
};

/* then [row % 8][row / 8] 8 bytes: f32 scale of group 0, of group 1 */
struct weight_f8_32 : weight_block<1152> {
    enum { BYTES = 1152, PARTS = 1, GROUP = 32, HAS_MIN = 0 };
    struct raw {
        uint32_t v[2][4];
        uint32_t d[4];
    };

    static SIMT_FN raw load(const uint8_t *block, uint32_t g, uint32_t t)
    {
        raw w;
        weight_unpack_16(weight_load_16(block + (g * 4 + t) * 16), w.v[0]);
        weight_unpack_16(weight_load_16(block + 512 + (g * 4 + t) * 16), w.v[1]);
        weight_unpack_16(weight_load_16(block + 1024 + g * 16), w.d);
        return w;
    }
    /* E4M3 numbers in the upper bytes of both halves: as bf16 their bits are 2^-120 times the number. */
    static SIMT_FN uint32_t pair(uint32_t codes)
    {
        const uint32_t bits = (codes & 0x80008000u) | (codes >> 4 & 0x07f007f0u);
        return simt_fma_bf16(bits, 0x7b807b80u, 0x80008000u);
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            const uint32_t word = w.v[j / 2][j % 2 * 2 + half];
            a[0][half] = pair(simt_byte_perm(word, 0, 0x1404));
            a[0][half + 2] = pair(simt_byte_perm(word, 0, 0x3424));
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
        return 1024 + row % 8 * 16 + row / 8 * 8 + group * 4;
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        const uint32_t code = block[weight_byte_at(row, k / 16, k % 16 / 4) + k % 4];
        return simt_unpack_bf16(pair(code << 8)).x *
               simt_bits_float(weight_u32(block + scale_at(row, k / 32)));
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        for (uint32_t i = 0; i < 16; i++) {
            const uint32_t k = kb * 64 + i / 4 * 16 + 4 * t + i % 4;
            if (k < columns) {
                block[weight_byte_at(row, i / 4, t) + i % 4] = src[k / 32 * 36 + 4 + k % 32];
            }
        }
        if (t < 2 && kb * 64 + t * 32 < columns) {
            *reinterpret_cast<uint32_t *>(block + scale_at(row, t)) =
                weight_u32(src + (kb * 2 + t) * 36);
        }
    }
};
