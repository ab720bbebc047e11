/* SPDX-License-Identifier: Apache-2.0 */
/* weight_plain: BF16, F16 and F32 (weight_formats.h), and what all formats share. */
#pragma once

#include "kernels/cuda/linear/cuda_linear.h"
#include "kernels/cuda/simt/simt.h"

/* Of shared or of global memory. */
SIMT_DEVICE uint4 weight_load_16(const uint8_t *p)
{
    return *reinterpret_cast<const uint4 *>(p);
}

SIMT_DEVICE void weight_unpack_16(uint4 v, uint32_t (&words)[4])
{
    words[0] = v.x;
    words[1] = v.y;
    words[2] = v.z;
    words[3] = v.w;
}

SIMT_DEVICE uint2 weight_load_8(const uint8_t *p)
{
    return *reinterpret_cast<const uint2 *>(p);
}

SIMT_DEVICE uint32_t weight_load_4(const uint8_t *p)
{
    return *reinterpret_cast<const uint32_t *>(p);
}

/* ---- columns: lane t of 4 holds elements e = 0..3 of step j -------------------------------------- */

SIMT_DEVICE uint32_t weight_column(uint32_t j, uint32_t t, uint32_t e)
{
    return 16 * j + e / 2 * 8 + 2 * t + e % 2;
}

/* t and e of column k. */
SIMT_DEVICE uint32_t weight_lane(uint32_t k)
{
    return k % 8 / 2;
}

SIMT_DEVICE uint32_t weight_element(uint32_t k)
{
    return k % 16 / 8 * 2 + k % 2;
}

/* ---- numbers ----------------------------------------------------------------------------------- */

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

/* Number `which` of two. */
SIMT_DEVICE float weight_half_of(uint32_t pair, int which)
{
    const float2 v = simt_unpack_f16(pair);
    return which == 0 ? v.x : v.y;
}

/* (v & mask) | bits in one instruction. */
SIMT_DEVICE uint32_t weight_pick(uint32_t v, uint32_t mask, uint32_t bits)
{
    return simt_lop3<0xea>(v, mask, bits);
}

/*
 * Fragments may hold integers over a power of two, W::OVER, where bits become such numbers more
 * easily; all sums then differ in their exponents alone. What sums of x are multiplied by instead of
 * one, twice in bf16:
 */
template <class W> constexpr uint32_t weight_one()
{
    static_assert(W::OVER == 1 || W::OVER == 4 || !W::HAS_MIN);
    return W::OVER == 4 ? 0x3e803e80u : 0x3f803f80u;
}

/* … and what a sum is in the end. */
template <class W> SIMT_DEVICE float weight_whole(float sum)
{
    return W::OVER == 1 ? sum : sum * (float)W::OVER;
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

/* The type's units of one k block lie one behind the other. */
template <int BYTES> struct weight_block {
    enum { STRIDE = BYTES, OVER = 1 };
    static SIMT_FN const uint8_t *block(const void *data, uint32_t unit, uint32_t kb,
                                        uint32_t k_blocks)
    {
        return static_cast<const uint8_t *>(data) + ((size_t)unit * k_blocks + kb) * BYTES;
    }
};

struct weight_bf16 {
    enum { BYTES = 2048, STRIDE = 8192, OVER = 1, PARTS = 1, GROUP = 0, HAS_MIN = 0 };
    struct raw {
        uint32_t v[4][4]; /* step: a[0..3] */
    };

    /* Columns k, k + 1 of a row of 128 bytes, chunks of 16 swizzled; k is even. */
    static SIMT_FN uint32_t at(uint32_t row, uint32_t k)
    {
        return row * 128 + (k / 8 ^ row % 8) * 16 + k % 8 * 2;
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
            SIMT_UNROLL
            for (uint32_t i = 0; i < 4; i++) {
                const uint32_t k = weight_column(j, t, i / 2 * 2);
                w.v[j][i] = weight_load_4(block + at(g + i % 2 * 8, k));
            }
        }
        return w;
    }
    static SIMT_FN void fragment(const raw &w, int j, uint32_t (&a)[PARTS][4])
    {
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
            a[0][i] = w.v[j][i];
        }
    }
    static SIMT_FN float value(const uint8_t *block, uint32_t row, uint32_t k)
    {
        return simt_bits_float(weight_u16(block + at(row, k & ~1u) + k % 2 * 2) << 16);
    }
    static SIMT_FN void pack(uint8_t *block, uint32_t row, uint32_t t, const uint8_t *src,
                             uint32_t kb, uint32_t columns)
    {
        for (uint32_t i = 0; i < 16; i++) {
            const uint32_t k = weight_column(i / 4, t, i % 4);
            if (kb * 64 + k < columns) {
                weight_store_u16(block + at(row, k & ~1u) + k % 2 * 2,
                                 weight_u16(src + 2 * (kb * 64 + k)));
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
        return k / 16 * 512 + (row % 8 * 4 + weight_lane(k)) * 16 + weight_element(k) / 2 * 8 +
               row / 8 * 4 + k % 2 * 2;
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
            const uint32_t k = weight_column(i / 4, t, i % 4);
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
        return k / 16 * 1024 + row / 8 * 512 + (row % 8 * 4 + weight_lane(k)) * 16 +
               weight_element(k) * 4;
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
            const uint32_t k = weight_column(i / 4, t, i % 4);
            if (kb * 64 + k < columns) {
                const uint32_t bits = weight_u32(src + 4 * (kb * 64 + k));
                *reinterpret_cast<uint32_t *>(block + at(row, k)) = bits;
            }
        }
    }
};
