/* SPDX-License-Identifier: Apache-2.0 */
/*
 * weight_formats: one struct for each way in which packed weights lie, for the mma kernels.
 *
 * A block is one unit (16 rows) × one k block (64 columns). Lane l of a warp, g = l / 4, t = l % 4,
 * holds rows g and g + 8; in step j (0..3) of a block it holds columns 16j + 4t + e, e = 0..3: as
 * simt_mma's a[0], a[1] those of e = 0, 1 in rows g, g + 8; as a[2], a[3] those of e = 2, 3. The
 * order of columns inside a step is thus not the fragment's own; x is read in the same order.
 *
 *   BYTES     of a block; STRIDE from one k block of a unit to the next
 *   PARTS     bf16 fragments whose sum is the weight (or its integer)
 *   GROUP     columns that share a scale; 0: no scales
 *   HAS_MIN   weight = scale · integer + offset
 *   raw       a block's registers in a lane; load() fetches them, from global or shared memory
 *   fragment  PARTS fragments of step j
 *   scale     of group i of the block, for rows g and g + 8; offset likewise
 *   value     one element, bit-equal to k_dequantize
 *   pack      writes what thread t of 4 has of one row: the elements 16j + 4t + e of k block kb from
 *             the source row src of `columns` elements; those past the end stay as they are
 */
#pragma once

#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/simt.h"

SIMT_DEVICE uint4 weight_load_16(const uint8_t *p)
{
    return *reinterpret_cast<const uint4 *>(p);
}

SIMT_DEVICE uint2 weight_load_8(const uint8_t *p)
{
    return *reinterpret_cast<const uint2 *>(p);
}

SIMT_DEVICE uint32_t weight_u32_at(const uint8_t *p)
{
    return *reinterpret_cast<const uint32_t *>(p);
}

SIMT_DEVICE uint32_t weight_u16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

SIMT_DEVICE uint32_t weight_u32(const uint8_t *p)
{
    return weight_u16(p) | weight_u16(p + 2) << 16;
}

SIMT_DEVICE float weight_half(uint32_t half)
{
    return simt_unpack_f16(half & 0xffff).x;
}

/* Products and sums that k_dequantize rounds one by one: no fused multiply-add. */
SIMT_DEVICE float weight_mul(float a, float b)
{
    return fmaf(a, b, -0.0f);
}

SIMT_DEVICE void weight_store_u16(uint8_t *p, uint32_t v)
{
    *reinterpret_cast<uint16_t *>(p) = (uint16_t)v;
}

/* Where a source's row stands in the packed matrix. */
SIMT_DEVICE uint32_t weight_packed_row(uint32_t row, bool is_gate_up, uint32_t w_rows)
{
    if (!is_gate_up) {
        return row;
    }
    const uint32_t is_up = row >= w_rows / 2;
    row -= is_up ? w_rows / 2 : 0;
    return row / 8 * 16 + is_up * 8 + row % 8;
}

/* ---- plain numbers --------------------------------------------------------------------------- */

/* The type's units of one k block lie one behind the other. */
template <int BYTES> struct weight_block {
    enum { STRIDE = BYTES };
    static SIMT_FN const uint8_t *block(const void *data, uint32_t unit, uint32_t kb,
                                        uint32_t k_blocks)
    {
        return static_cast<const uint8_t *>(data) + ((size_t)unit * k_blocks + kb) * BYTES;
    }
};

struct weight_bf16 {
    enum { BYTES = 2048, STRIDE = 8192, PARTS = 1, GROUP = 0, HAS_MIN = 0 };
    struct raw {
        uint2 v[4][2]; /* step, row */
    };

    /* 8-byte piece (step j, lane t) of a row of 128 bytes, chunks of 16 swizzled. */
    static SIMT_FN uint32_t at(uint32_t row, uint32_t j, uint32_t t)
    {
        return row * 128 + ((2 * j + t / 2) ^ row % 8) * 16 + t % 2 * 8;
    }
    static SIMT_FN const uint8_t *block(const void *data, uint32_t unit, uint32_t kb,
                                        uint32_t k_blocks)
    {
        return static_cast<const uint8_t *>(data) + ((size_t)(unit / 4) * k_blocks + kb) * 8192 +
               unit % 4 * 2048;
    }
    static SIMT_FN raw load(const uint8_t *block, uint32_t g, uint32_t t)
    {
        raw w;
        SIMT_UNROLL
        for (uint32_t j = 0; j < 4; j++) {
            w.v[j][0] = weight_load_8(block + at(g, j, t));
            w.v[j][1] = weight_load_8(block + at(g + 8, j, t));
        }
        return w;
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        a[0][0] = w.v[j][0].x;
        a[0][1] = w.v[j][1].x;
        a[0][2] = w.v[j][0].y;
        a[0][3] = w.v[j][1].y;
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        return simt_bits_float(weight_u16(block + at(row, k / 16, k % 16 / 4) + k % 4 * 2) << 16);
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        for (uint32_t i = 0; i < 16; i++) {
            const uint32_t k = kb * 64 + i / 4 * 16 + 4 * t + i % 4;
            if (k < columns) {
                weight_store_u16(block + at(row, i / 4, t) + i % 4 * 2, weight_u16(src + 2 * k));
            }
        }
    }
};

/* [step][lane] 16 bytes: a[0..3] */
struct weight_f16 : weight_block<2048> {
    enum { BYTES = 2048, PARTS = 2, GROUP = 0, HAS_MIN = 0 };
    struct raw {
        uint4 v[4];
    };

    static SIMT_FN uint32_t at(uint32_t row, uint32_t k)
    {
        return k / 16 * 512 + (row % 8 * 4 + k % 16 / 4) * 16 + k % 4 / 2 * 8 + row / 8 * 4 +
               k % 2 * 2;
    }
    static SIMT_FN raw load(const uint8_t *block, uint32_t g, uint32_t t)
    {
        raw w;
        SIMT_UNROLL
        for (int j = 0; j < 4; j++) {
            w.v[j] = weight_load_16(block + j * 512 + (g * 4 + t) * 16);
        }
        return w;
    }
    static SIMT_FN void split(uint32_t pair, uint32_t &high, uint32_t &low)
    {
        const float2 v = simt_unpack_f16(pair);
        high = simt_pack_bf16(v.x, v.y);
        const float2 h = simt_unpack_bf16(high);
        low = simt_pack_bf16(v.x - h.x, v.y - h.y);
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        split(w.v[j].x, a[0][0], a[1][0]);
        split(w.v[j].y, a[0][1], a[1][1]);
        split(w.v[j].z, a[0][2], a[1][2]);
        split(w.v[j].w, a[0][3], a[1][3]);
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        return weight_half(weight_u16(block + at(row, k)));
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        for (uint32_t i = 0; i < 16; i++) {
            const uint32_t k = i / 4 * 16 + 4 * t + i % 4;
            if (kb * 64 + k < columns) {
                weight_store_u16(block + at(row, k), weight_u16(src + 2 * (kb * 64 + k)));
            }
        }
    }
};

/* [step][row / 8][lane] 16 bytes: the four elements of a row */
struct weight_f32 : weight_block<4096> {
    enum { BYTES = 4096, PARTS = 3, GROUP = 0, HAS_MIN = 0 };
    struct raw {
        uint4 v[4][2];
    };

    static SIMT_FN uint32_t at(uint32_t row, uint32_t k)
    {
        return k / 16 * 1024 + row / 8 * 512 + (row % 8 * 4 + k % 16 / 4) * 16 + k % 4 * 4;
    }
    static SIMT_FN raw load(const uint8_t *block, uint32_t g, uint32_t t)
    {
        raw w;
        SIMT_UNROLL
        for (int i = 0; i < 8; i++) {
            w.v[i / 2][i % 2] = weight_load_16(block + i * 512 + (g * 4 + t) * 16);
        }
        return w;
    }
    static SIMT_FN void split(uint32_t x, uint32_t y, uint32_t (&part)[PARTS])
    {
        float2 rest = make_float2(simt_bits_float(x), simt_bits_float(y));
        SIMT_UNROLL
        for (int p = 0; p < PARTS; p++) {
            part[p] = simt_pack_bf16(rest.x, rest.y);
            const float2 taken = simt_unpack_bf16(part[p]);
            rest.x -= taken.x;
            rest.y -= taken.y;
        }
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            uint32_t first[PARTS], second[PARTS];
            split(w.v[j][half].x, w.v[j][half].y, first);
            split(w.v[j][half].z, w.v[j][half].w, second);
            SIMT_UNROLL
            for (int p = 0; p < PARTS; p++) {
                a[p][half] = first[p];
                a[p][half + 2] = second[p];
            }
        }
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        return simt_bits_float(weight_u32(block + at(row, k)));
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        for (uint32_t i = 0; i < 16; i++) {
            const uint32_t k = i / 4 * 16 + 4 * t + i % 4;
            if (kb * 64 + k < columns) {
                const uint32_t bits = weight_u32(src + 4 * (kb * 64 + k));
                *reinterpret_cast<uint32_t *>(block + at(row, k)) = bits;
            }
        }
    }
};

/* ---- nibbles: [lane] 16 bytes, words {row g, row g + 8} of steps 0, 1, then of steps 2, 3 ------- */

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
    const uint32_t word = weight_u32(block + weight_nibble_at(row, k / 16, k % 16 / 4));
    return word >> weight_nibble_bit(k / 16, k % 4) & 15;
}

/* Two 16-bit numbers 0..127 as bf16, plus 128. */
SIMT_DEVICE uint32_t weight_small(uint32_t pair)
{
    return pair | 0x43004300u;
}

/* The four registers of step j, less BIAS + 128 (bf16, twice). */
template <uint32_t LESS>
SIMT_DEVICE void weight_nibble_fragment(const uint32_t (&v)[4], int j, uint32_t (&a)[4])
{
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
        const uint32_t word = v[j / 2 * 2 + i % 2] >> (4 * (j % 2 * 2 + i / 2));
        a[i] = simt_fma_bf16(weight_small(word & 0x000f000fu), 0x3f803f80u, LESS);
    }
}

/* What thread t holds of one row: `quant(k)` gives element k of the source row. */
template <class F>
SIMT_DEVICE void weight_nibble_pack(uint8_t *block, uint32_t row, uint32_t t, uint32_t kb,
                                    uint32_t columns, F quant)
{
    for (uint32_t j = 0; j < 4; j += 2) {
        uint32_t word = 0;
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t k = kb * 64 + (j + i / 4) * 16 + 4 * t + i % 4;
            if (k < columns) {
                word |= (quant(k) & 15) << weight_nibble_bit(j + i / 4, i % 4);
            }
        }
        *reinterpret_cast<uint32_t *>(block + weight_nibble_at(row, j, t)) = word;
    }
}

SIMT_DEVICE void weight_unpack_16(uint4 v, uint32_t (&words)[4])
{
    words[0] = v.x;
    words[1] = v.y;
    words[2] = v.z;
    words[3] = v.w;
}

/* then [row % 8] 8 bytes: f16 d of row g: group 0, 1; of row g + 8: group 0, 1 */
struct weight_q4_0 : weight_block<576> {
    enum { BYTES = 576, PARTS = 1, GROUP = 32, HAS_MIN = 0 };
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
        weight_nibble_fragment<0xc308c308u>(w.v, j, a[0]); /* -136 */
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
    enum { BYTES = 640, PARTS = 1, GROUP = 32, HAS_MIN = 1 };
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
        weight_nibble_fragment<0xc300c300u>(w.v, j, a[0]); /* -128 */
    }
    static SIMT_FN float2 scale(const raw &w, int group)
    {
        return make_float2(weight_half(w.d[group]), weight_half(w.d[2 + group]));
    }
    static SIMT_FN float2 offset(const raw &w, int group)
    {
        return make_float2(weight_half(w.d[group] >> 16), weight_half(w.d[2 + group] >> 16));
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

/* then [row % 8][row / 8] 8 bytes: f16 d, u8 zero, 0 of group 0, of group 1 */
struct weight_i4_32 : weight_block<640> {
    enum { BYTES = 640, PARTS = 1, GROUP = 32, HAS_MIN = 0 };
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
        uint32_t less[2]; /* -128 - zero, twice, of rows g and g + 8 */
        SIMT_UNROLL
        for (int half = 0; half < 2; half++) {
            const uint32_t zero = w.d[half * 2 + j / 2] >> 16 & 0xff;
            less[half] = 0xc300c300u + zero * 0x10001u; /* a step of bf16 at 128 is 1 */
        }
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            const uint32_t word = w.v[j / 2 * 2 + i % 2] >> (4 * (j % 2 * 2 + i / 2));
            a[0][i] = simt_fma_bf16(weight_small(word & 0x000f000fu), 0x3f803f80u, less[i % 2]);
        }
    }
    static SIMT_FN float2 scale(const raw &w, int group)
    {
        return make_float2(weight_half(w.d[group]), weight_half(w.d[2 + group]));
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
        return (float)((int)weight_nibble(block, row, k) - (int)(d >> 16 & 0xff)) * weight_half(d);
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
                weight_u16(from) | (uint32_t)from[2] << 16;
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
        w.d = weight_u32_at(block + 512 + g * 4);
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
    enum { BYTES = 640, PARTS = 1, GROUP = 32, HAS_MIN = 1 };
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
        weight_nibble_fragment<0xc300c300u>(w.v, j, a[0]);
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
            const uint32_t low = w.v[j / 2 * 2 + i % 2] >> (4 * (j % 2 * 2 + i / 2)) & 0x000f000fu;
            const uint32_t bits = (i % 2 == 0 ? w.high.x : w.high.y) >> (4 * j + 2 * (i / 2));
            const uint32_t pair = weight_small(low | (bits & 0x00030003u) << 4);
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
        const uint32_t bits = weight_u32(block + high_at(row, k % 16 / 4));
        const uint32_t high = bits >> high_bit(k / 16, k % 4) & 3;
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
            const uint32_t k = (kb * 64 + i / 4 * 16 + 4 * t + i % 4) % 256;
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

/* ---- bytes: [pair of steps][lane] 16 bytes: words {row g, row g + 8} of each step ---------------- */

SIMT_DEVICE uint32_t weight_byte_at(uint32_t row, uint32_t j, uint32_t t)
{
    return j / 2 * 512 + (row % 8 * 4 + t) * 16 + j % 2 * 8 + row / 8 * 4;
}

/* then scales as q4_0's */
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

/* Calls DO(dtype, its format) for every dtype. */
#define WEIGHT_FORMATS(DO)                                                                         \
    DO(K_BF16, weight_bf16)                                                                        \
    DO(K_F16, weight_f16)                                                                          \
    DO(K_F32, weight_f32)                                                                          \
    DO(K_Q8_0, weight_q8_0)                                                                        \
    DO(K_Q4_0, weight_q4_0)                                                                        \
    DO(K_Q4_1, weight_q4_1)                                                                        \
    DO(K_Q4_K, weight_q4_k)                                                                        \
    DO(K_Q6_K, weight_q6_k)                                                                        \
    DO(K_I4_32, weight_i4_32)                                                                      \
    DO(K_MXFP4, weight_mxfp4)                                                                      \
    DO(K_F8_32, weight_f8_32)
