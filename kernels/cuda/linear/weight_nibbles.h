/* SPDX-License-Identifier: Apache-2.0 */
/*
 * weight_nibbles: formats of four and six bits (weight_formats.h). The nibbles of a block come first:
 * [lane] 16 bytes, words {row g, row g + 8} of steps 0, 1, then of steps 2, 3.
 */
#pragma once

#include "kernels/cuda/linear/weight_plain.h"

/* Bit of element e of step j in a row's word of that pair of steps: word >> 4i & 0x000f000f are two
 * elements that lie side by side in a fragment. */
SIMT_DEVICE uint32_t weight_nibble_bit(uint32_t j, uint32_t e)
{
    return 4 * (j % 2 * 2 + e / 2) + 16 * (e % 2);
}

SIMT_DEVICE uint32_t weight_nibble_at(uint32_t row, uint32_t j, uint32_t t)
{
    return (row % 8 * 4 + t) * 16 + j / 2 * 8 + row / 8 * 4;
}

SIMT_DEVICE uint32_t weight_nibble(const uint8_t *block, uint32_t row, uint32_t k)
{
    const uint32_t word = weight_u32(block + weight_nibble_at(row, k / 16, weight_lane(k)));
    return word >> weight_nibble_bit(k / 16, weight_element(k)) & 15;
}

/* Nibbles at bits 0..3 of both halves as bf16, plus 128: its exponent makes the mantissa count ones. */
SIMT_DEVICE uint32_t weight_small(uint32_t nibbles)
{
    return weight_pick(nibbles, 0x000f000fu, 0x43004300u);
}

/*
 * A quarter of the nibbles at bits 0..3 or, is_high, 4..7 of both halves, plus `low` or `high`. The
 * latter need no shift: as bf16 their bits are 2^-129 times the nibble, which 2^127 makes a quarter.
 */
SIMT_DEVICE uint32_t weight_quarters(uint32_t word, bool is_high, uint32_t low, uint32_t high)
{
    return is_high ? simt_fma_bf16(word & 0x00f000f0u, 0x7f007f00u, high)
                   : simt_fma_bf16(weight_small(word), 0x3e803e80u, low);
}

/*
 * The four registers of step j, in quarters; of row g + 8 · half the nibbles have low[half] or high[half]
 * added, of which low takes off the 128 as well.
 */
SIMT_DEVICE void weight_nibble_fragment(const uint32_t (&v)[4], int j, const uint32_t (&low)[2],
                                        const uint32_t (&high)[2], uint32_t (&a)[4])
{
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
        const uint32_t word = v[j / 2 * 2 + i % 2] >> (8 * (j % 2));
        a[i] = weight_quarters(word, i / 2 == 1, low[i % 2], high[i % 2]);
    }
}

/* The same numbers added in all rows. */
template <uint32_t LOW, uint32_t HIGH>
SIMT_DEVICE void weight_nibble_fragment(const uint32_t (&v)[4], int j, uint32_t (&a)[4])
{
    const uint32_t low[2] = {LOW, LOW};
    const uint32_t high[2] = {HIGH, HIGH};
    weight_nibble_fragment(v, j, low, high, a);
}

/* What thread t holds of one row: `quant(k)` gives element k of the source row. */
template <class F>
SIMT_DEVICE void weight_nibble_pack(uint8_t *block, uint32_t row, uint32_t t, uint32_t kb,
                                    uint32_t columns, F quant)
{
    for (uint32_t j = 0; j < 4; j += 2) {
        uint32_t word = 0;
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t k = kb * 64 + weight_column(j + i / 4, t, i % 4);
            if (k < columns) {
                word |= (quant(k) & 15) << weight_nibble_bit(j + i / 4, i % 4);
            }
        }
        *reinterpret_cast<uint32_t *>(block + weight_nibble_at(row, j, t)) = word;
    }
}

/* then [row % 8] 8 bytes: f16 d of row g: group 0, 1; of row g + 8: group 0, 1 */
struct weight_q4_0 : weight_block<576> {
    enum { BYTES = 576, OVER = 4, PARTS = 1, GROUP = 32, HAS_MIN = 0 };
    struct raw {
        uint32_t v[4];
        uint2 d;
    };

    static SIMT_FN raw load(const uint8_t *block, uint32_t g, uint32_t t)
    {
        raw w;
        weight_unpack_16(weight_load_16(block + (g * 4 + t) * 16), w.v);
        w.d = weight_load_8(block + 512 + g * 8);
        return w;
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        weight_nibble_fragment<0xc208c208u, 0xc000c000u>(w.v, j, a[0]); /* -(128 + 8) / 4, -8 / 4 */
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
        return 512 + row % 8 * 8 + row / 8 * 4 + group * 2;
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        const float d = weight_half(weight_u16(block + scale_at(row, k / 32)));
        return (float)((int)weight_nibble(block, row, k) - 8) * d;
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        weight_nibble_pack(block, row, t, kb, columns, [src](uint32_t k) {
            return (uint32_t)src[k / 32 * 18 + 2 + k % 16] >> k % 32 / 16 * 4;
        });
        if (t < 2 && kb * 64 + t * 32 < columns) {
            weight_store_u16(block + scale_at(row, t), weight_u16(src + (kb * 2 + t) * 18));
        }
    }
};

/* then [row % 8] 16 bytes: f16 (d, m) of row g: group 0, 1; of row g + 8: group 0, 1 */
struct weight_q4_1 : weight_block<640> {
    enum { BYTES = 640, OVER = 4, PARTS = 1, GROUP = 32, HAS_MIN = 1 };
    struct raw {
        uint32_t v[4];
        uint32_t d[4];
    };

    static SIMT_FN raw load(const uint8_t *block, uint32_t g, uint32_t t)
    {
        raw w;
        weight_unpack_16(weight_load_16(block + (g * 4 + t) * 16), w.v);
        weight_unpack_16(weight_load_16(block + 512 + g * 16), w.d);
        return w;
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        weight_nibble_fragment<0xc200c200u, 0x80008000u>(w.v, j, a[0]); /* -128 / 4, -0 */
    }
    static SIMT_FN float2 scale(const raw &w, int group)
    {
        return make_float2(weight_half_of(w.d[group], 0), weight_half_of(w.d[2 + group], 0));
    }
    static SIMT_FN float2 offset(const raw &w, int group)
    {
        return make_float2(weight_half_of(w.d[group], 1), weight_half_of(w.d[2 + group], 1));
    }
    static SIMT_FN uint32_t scale_at(uint32_t row, uint32_t group)
    {
        return 512 + row % 8 * 16 + row / 8 * 8 + group * 4;
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        const uint32_t dm = weight_u32(block + scale_at(row, k / 32));
        return weight_mul((float)weight_nibble(block, row, k), weight_half(dm)) +
               weight_half(dm >> 16);
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        weight_nibble_pack(block, row, t, kb, columns, [src](uint32_t k) {
            return (uint32_t)src[k / 32 * 20 + 4 + k % 16] >> k % 32 / 16 * 4;
        });
        if (t < 2 && kb * 64 + t * 32 < columns) {
            const uint32_t dm = weight_u32(src + (kb * 2 + t) * 20);
            *reinterpret_cast<uint32_t *>(block + scale_at(row, t)) = dm;
        }
    }
};

/* then [row % 8][row / 8] 8 bytes: f16 d, bf16 -(128 + zero) / 4 of group 0, of group 1 */
struct weight_i4_32 : weight_block<640> {
    enum { BYTES = 640, OVER = 4, PARTS = 1, GROUP = 32, HAS_MIN = 0 };
    struct raw {
        uint32_t v[4];
        uint32_t d[4];
    };

    static SIMT_FN raw load(const uint8_t *block, uint32_t g, uint32_t t)
    {
        raw w;
        weight_unpack_16(weight_load_16(block + (g * 4 + t) * 16), w.v);
        weight_unpack_16(weight_load_16(block + 512 + g * 16), w.d);
        return w;
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        uint32_t low[2], high[2]; /* of rows g and g + 8: -(128 + zero) / 4, -zero / 4 */
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            low[half] = simt_byte_perm(w.d[half * 2 + j / 2], 0, 0x3232);
            high[half] = simt_fma_bf16(low[half], 0x3f803f80u, 0x42004200u);
        }
        weight_nibble_fragment(w.v, j, low, high, a[0]);
    }
    static SIMT_FN float2 scale(const raw &w, int group)
    {
        return make_float2(weight_half_of(w.d[group], 0), weight_half_of(w.d[2 + group], 0));
    }
    static SIMT_FN float2 offset(const raw &, int)
    {
        return make_float2(0, 0);
    }
    static SIMT_FN uint32_t scale_at(uint32_t row, uint32_t group)
    {
        return 512 + row % 8 * 16 + row / 8 * 8 + group * 4;
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        const uint32_t d = weight_u32(block + scale_at(row, k / 32));
        return (float)((int)weight_nibble(block, row, k) - (int)(d >> 16 & 0x7f)) * weight_half(d);
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        weight_nibble_pack(block, row, t, kb, columns, [src](uint32_t k) {
            return (uint32_t)src[k / 32 * 19 + 3 + k % 16] >> k % 32 / 16 * 4;
        });
        if (t < 2 && kb * 64 + t * 32 < columns) {
            const uint8_t *from = src + (kb * 2 + t) * 19;
            *reinterpret_cast<uint32_t *>(block + scale_at(row, t)) =
                weight_u16(from) | (0xc200u + from[2]) << 16; /* a step of bf16 at 32 is 1 / 4 */
        }
    }
};

/* then [row % 8][row / 8] 2 bytes: E8M0 scale of group 0, of group 1 */
struct weight_mxfp4 : weight_block<544> {
    enum { BYTES = 544, PARTS = 1, GROUP = 32, HAS_MIN = 0 };
    struct raw {
        uint32_t v[4];
        uint32_t d;
    };

    static SIMT_FN raw load(const uint8_t *block, uint32_t g, uint32_t t)
    {
        raw w;
        weight_unpack_16(weight_load_16(block + (g * 4 + t) * 16), w.v);
        w.d = weight_load_4(block + 512 + g * 4);
        return w;
    }
    /* Two E2M1 numbers s_ee_m, doubled: as bf16 their bits are 2^-126 times the number. */
    static SIMT_FN uint32_t doubled(uint32_t codes)
    {
        const uint32_t bits = (codes & 0x00080008u) << 12 | (codes & 0x00070007u) << 6;
        return simt_fma_bf16(bits, 0x7f007f00u, 0x80008000u);
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            a[0][i] = doubled(w.v[j / 2 * 2 + i % 2] >> (4 * (j % 2 * 2 + i / 2)));
        }
    }
    /* Half of 2^(code - 127). */
    static SIMT_FN float half_scale(uint32_t code)
    {
        return simt_bits_float(code < 2 ? 0x00200000u << code : (code - 1) << 23);
    }
    static SIMT_FN float2 scale(const raw &w, int group)
    {
        return make_float2(half_scale(w.d >> 8 * group & 0xff),
                           half_scale(w.d >> (16 + 8 * group) & 0xff));
    }
    static SIMT_FN float2 offset(const raw &, int)
    {
        return make_float2(0, 0);
    }
    static SIMT_FN uint32_t scale_at(uint32_t row, uint32_t group)
    {
        return 512 + row % 8 * 4 + row / 8 * 2 + group;
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        const float2 v = simt_unpack_bf16(doubled(weight_nibble(block, row, k)));
        return half_scale(block[scale_at(row, k / 32)]) * (v.x + 0.0f); /* no negative zero */
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        weight_nibble_pack(block, row, t, kb, columns, [src](uint32_t k) {
            return (uint32_t)src[k / 32 * 17 + 1 + k % 16] >> k % 32 / 16 * 4;
        });
        if (t < 2 && kb * 64 + t * 32 < columns) {
            block[scale_at(row, t)] = src[(kb * 2 + t) * 17];
        }
    }
};

/* then [row % 8][row / 8] 8 bytes: f16 d, f16 dmin, u8 scale, min of sub-block 0, of sub-block 1 */
struct weight_q4_k : weight_block<640> {
    enum { BYTES = 640, OVER = 4, PARTS = 1, GROUP = 32, HAS_MIN = 1 };
    struct raw {
        uint32_t v[4];
        uint32_t d[4];
    };

    static SIMT_FN raw load(const uint8_t *block, uint32_t g, uint32_t t)
    {
        raw w;
        weight_unpack_16(weight_load_16(block + (g * 4 + t) * 16), w.v);
        weight_unpack_16(weight_load_16(block + 512 + g * 16), w.d);
        return w;
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        weight_nibble_fragment<0xc200c200u, 0x80008000u>(w.v, j, a[0]);
    }
    static SIMT_FN float step_of(uint32_t d, uint32_t scales, uint32_t group)
    {
        return weight_mul(weight_half(d), (float)(scales >> 16 * group & 0xff));
    }
    static SIMT_FN float offset_of(uint32_t d, uint32_t scales, uint32_t group)
    {
        return -weight_mul(weight_half(d >> 16), (float)(scales >> (16 * group + 8) & 0xff));
    }
    static SIMT_FN float2 scale(const raw &w, int group)
    {
        return make_float2(step_of(w.d[0], w.d[1], (uint32_t)group),
                           step_of(w.d[2], w.d[3], (uint32_t)group));
    }
    static SIMT_FN float2 offset(const raw &w, int group)
    {
        return make_float2(offset_of(w.d[0], w.d[1], (uint32_t)group),
                           offset_of(w.d[2], w.d[3], (uint32_t)group));
    }
    static SIMT_FN uint32_t scale_at(uint32_t row)
    {
        return 512 + row % 8 * 16 + row / 8 * 8;
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        const uint32_t d = weight_u32(block + scale_at(row));
        const uint32_t scales = weight_u32(block + scale_at(row) + 4);
        return weight_mul(step_of(d, scales, k / 32), (float)weight_nibble(block, row, k)) +
               offset_of(d, scales, k / 32);
    }
    /* The 6-bit scale and minimum of sub-block j of 8: ggml's file format. */
    static SIMT_FN uint32_t scale_min(const uint8_t *packed, uint32_t j)
    {
        if (j < 4) {
            return (packed[j] & 63u) | (packed[j + 4] & 63u) << 8;
        }
        return (packed[j + 4] & 15u) | (packed[j - 4] >> 6) << 4 |
               ((packed[j + 4] >> 4) | (packed[j] >> 6) << 4) << 8;
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        const uint8_t *super = src + kb / 4 * 144;
        weight_nibble_pack(block, row, t, kb, columns, [super](uint32_t k) {
            return (uint32_t)super[16 + k % 256 / 64 * 32 + k % 32] >> k % 64 / 32 * 4;
        });
        if (t == 0) {
            const uint32_t j = kb % 4 * 2;
            uint32_t *const to = reinterpret_cast<uint32_t *>(block + scale_at(row));
            to[0] = weight_u32(super);
            to[1] = scale_min(super + 4, j) | scale_min(super + 4, j + 1) << 16;
        }
    }
};

/*
 * then [lane] 8 bytes: word {row g, row g + 8} of bit pairs, element e of step j at bit
 * 4j + 16 (e % 2) + 2 (e / 2); then [row % 8][row / 8] 8 bytes: 4 × i8 scale, f16 d, 0
 */
struct weight_q6_k : weight_block<896> {
    enum { BYTES = 896, PARTS = 1, GROUP = 16, HAS_MIN = 0 };
    struct raw {
        uint32_t v[4];
        uint2 high;
        uint32_t d[4];
    };

    static SIMT_FN raw load(const uint8_t *block, uint32_t g, uint32_t t)
    {
        raw w;
        weight_unpack_16(weight_load_16(block + (g * 4 + t) * 16), w.v);
        w.high = weight_load_8(block + 512 + (g * 4 + t) * 8);
        weight_unpack_16(weight_load_16(block + 768 + g * 16), w.d);
        return w;
    }
    static SIMT_FN uint32_t high_bit(uint32_t j, uint32_t e)
    {
        return 4 * j + 16 * (e % 2) + 2 * (e / 2);
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            const uint32_t low = w.v[j / 2 * 2 + i % 2] >> (4 * (j % 2 * 2 + i / 2));
            const uint32_t high = i % 2 == 0 ? w.high.x : w.high.y;
            const int bit =
                (int)high_bit((uint32_t)j, (uint32_t)(i / 2 * 2)) - 4; /* of where they go */
            const uint32_t moved = bit < 0 ? high << (bit < 0 ? -bit : 0) : high >> bit;
            const uint32_t pair = weight_pick(moved, 0x00300030u, weight_small(low));
            a[0][i] = simt_fma_bf16(pair, 0x3f803f80u, 0xc320c320u); /* -160 */
        }
    }
    static SIMT_FN float step_of(uint32_t scales, uint32_t d, uint32_t group)
    {
        return weight_mul(weight_half(d), (float)(int8_t)(scales >> 8 * group & 0xff));
    }
    static SIMT_FN float2 scale(const raw &w, int group)
    {
        return make_float2(step_of(w.d[0], w.d[1], (uint32_t)group),
                           step_of(w.d[2], w.d[3], (uint32_t)group));
    }
    static SIMT_FN float2 offset(const raw &, int)
    {
        return make_float2(0, 0);
    }
    static SIMT_FN uint32_t high_at(uint32_t row, uint32_t t)
    {
        return 512 + (row % 8 * 4 + t) * 8 + row / 8 * 4;
    }
    static SIMT_FN uint32_t scale_at(uint32_t row)
    {
        return 768 + row % 8 * 16 + row / 8 * 8;
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        const uint32_t bits = weight_u32(block + high_at(row, weight_lane(k)));
        const uint32_t high = bits >> high_bit(k / 16, weight_element(k)) & 3;
        const float step = step_of(weight_u32(block + scale_at(row)),
                                   weight_u32(block + scale_at(row) + 4), k / 16);
        return step * (float)((int)(weight_nibble(block, row, k) | high << 4) - 32);
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        const uint8_t *super = src + kb / 4 * 210;
        weight_nibble_pack(block, row, t, kb, columns, [super](uint32_t k) {
            return (uint32_t)super[k % 256 / 128 * 64 + k % 64] >> k % 128 / 64 * 4;
        });
        uint32_t word = 0;
        for (uint32_t i = 0; i < 16; i++) {
            const uint32_t k = (kb * 64 + weight_column(i / 4, t, i % 4)) % 256;
            const uint32_t high = super[128 + k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3;
            word |= high << high_bit(i / 4, i % 4);
        }
        *reinterpret_cast<uint32_t *>(block + high_at(row, t)) = word;
        if (t == 0) {
            uint32_t *const to = reinterpret_cast<uint32_t *>(block + scale_at(row));
            to[0] = weight_u32(super + 192 + kb % 4 * 4);
            to[1] = weight_u16(super + 208);
        }
    }
};
