/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd_avx512: 16 lanes for the op templates of this folder. AVX-512 F, BW, DQ, VL and VNNI.
 *
 * What a template may use is what simd_avx2.h defines too. vf: f32 lanes; vi: i32 lanes.
 */
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "base/float8.h"

#ifndef ISA_NAME
#define ISA_NAME avx512
#endif
#define LANES     16
#define Q8_OFFSET 128 /* what packing adds to a q8_0 weight */

typedef __m512 vf;
typedef __m512i vi;

static inline __mmask16 first_lanes(uint32_t n)
{
    return (__mmask16)((UINT32_C(1) << n) - 1);
}

static inline vf vf_set(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_load(const float *from)
{
    return _mm512_loadu_ps(from);
}
/* The first n < LANES lanes, the others 0. */
static inline vf vf_load_first(const float *from, uint32_t n)
{
    return _mm512_maskz_loadu_ps(first_lanes(n), from);
}
static inline void vf_store(float *to, vf a)
{
    _mm512_storeu_ps(to, a);
}
static inline void vf_store_first(float *to, vf a, uint32_t n)
{
    _mm512_mask_storeu_ps(to, first_lanes(n), a);
}
static inline vf vf_load_f16(const void *from)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(from));
}
static inline vf vf_load_bf16(const void *from)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from)), 16));
}
/* As weft_f8_to_f32; where the exponent is 0, 2^-6 (1 + m/8) - 2^-6: no subnormal is computed with. */
static inline vf vf_load_f8(const void *from)
{
    const vi code = _mm512_cvtepu8_epi32(_mm_loadu_si128(from));
    const vi size = _mm512_and_si512(code, _mm512_set1_epi32(0x7f));
    const __mmask16 is_small = _mm512_cmplt_epi32_mask(size, _mm512_set1_epi32(8));
    const __mmask16 is_nan = _mm512_cmpeq_epi32_mask(size, _mm512_set1_epi32(0x7f));
    const vi bias = _mm512_mask_blend_epi32(is_small, _mm512_set1_epi32(120 << 23),
                                            _mm512_set1_epi32(121 << 23));
    vf value = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(size, 20), bias));
    value = _mm512_mask_sub_ps(value, is_small, value, _mm512_set1_ps(0x1p-6f));
    const vi bits =
        _mm512_mask_blend_epi32(is_nan, _mm512_castps_si512(value), _mm512_set1_epi32(0x7fc00000));
    const vi sign = _mm512_slli_epi32(_mm512_and_si512(code, _mm512_set1_epi32(0x80)), 24);
    return _mm512_castsi512_ps(_mm512_or_si512(bits, sign));
}
/* Of LANES pairs of bf16: the first of each, the second of each. */
static inline vf vf_bf16_even(vi pairs)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}
static inline vf vf_bf16_odd(vi pairs)
{
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}
/*
 * Two columns of LANES e4m3 codes, NaN taken for 480, as f16 of 1/256 of the values: the exponent's
 * bias is 15 there and 7 here. vf_f8_even: the first column.
 */
static inline vi vi_load_f8(const void *from)
{
    const vi code = _mm512_cvtepi8_epi16(_mm256_loadu_si256(from));
    return _mm512_and_si512(_mm512_slli_epi16(code, 7), _mm512_set1_epi16((short)0xbf80));
}
static inline vf vf_f8_even(vi columns)
{
    return _mm512_cvtph_ps(_mm512_castsi512_si256(columns));
}
static inline vf vf_f8_odd(vi columns)
{
    return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(columns, 1));
}
#ifdef __AVX512BF16__
#define BF16_DOT 1
/* The values as LANES pairs of bf16, which has no use for subnormals: they come from a table. */
static inline vi vi_load_f8_pairs(const void *from)
{
    const vi small = _mm512_castsi128_si512(
        _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
    const vi interleaved =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const vi code =
        _mm512_permutexvar_epi16(interleaved, _mm512_cvtepi8_epi16(_mm256_loadu_si256(from)));
    const vi moved = _mm512_slli_epi16(code, 4);
    vi size = _mm512_add_epi16(_mm512_and_si512(moved, _mm512_set1_epi16(0x07f0)),
                               _mm512_set1_epi16(120 << 7));
    const __mmask32 is_small = _mm512_testn_epi16_mask(code, _mm512_set1_epi16(0x78));
    size = _mm512_mask_permutexvar_epi16(size, is_small, code, small);
    /* size | (moved & sign) */
    return _mm512_ternarylogic_epi32(size, moved, _mm512_set1_epi16((short)0x8000), 0xf8);
}
/* sum + even · x even + odd · x odd; x: a pair of bf16. */
static inline vf vf_dot_bf16(vi pairs, const void *x, vf sum)
{
    int32_t pair;
    __builtin_memcpy(&pair, x, sizeof(pair));
    return _mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)_mm512_set1_epi32(pair));
}
#else
#define BF16_DOT                   0
#define vf_dot_bf16(pairs, x, sum) (sum)
#define vi_load_f8_pairs           vi_load_f8
#endif
static inline vf vf_load_u8(const uint8_t *from)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)from)));
}
/* Of each byte the lower four bits, and the upper ones. */
static inline vf vf_load_low4(const uint8_t *from)
{
    const __m128i low = _mm_and_si128(_mm_loadu_si128((const void *)from), _mm_set1_epi8(15));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(low));
}
static inline vf vf_load_high4(const uint8_t *from)
{
    const vi bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)from));
    return _mm512_cvtepi32_ps(_mm512_srli_epi32(bytes, 4));
}
static inline vf vf_load_i8(const int8_t *from)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)from)));
}
static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
/* b where a is NaN. */
static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
static inline vf vf_abs(vf a)
{
    return _mm512_abs_ps(a);
}
/* a·b + c, rounded once. */
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* c − a·b */
static inline vf vf_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
static inline vf vf_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* a · 2^n, n whole */
static inline vf vf_scale_exponent(vf a, vf n)
{
    return _mm512_scalef_ps(a, n);
}
/* a < b ? x : y */
static inline vf vf_select_less(vf a, vf b, vf x, vf y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
/* Lanes in a fixed tree. */
static inline float vf_sum(vf a)
{
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
static inline float vf_max_lane(vf a)
{
    return _mm512_reduce_max_ps(a);
}
/* Stores the lanes rounded to i8; the caller knows that they fit. */
static inline void vf_store_i8(int8_t *to, vf a)
{
    _mm_storeu_si128((void *)to, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}
static inline void vf_store_f16(void *to, vf a)
{
    _mm256_storeu_si256(to, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline vf vi_to_f32(vi a)
{
    return _mm512_cvtepi32_ps(a);
}
static inline vi vi_load(const void *from)
{
    return _mm512_loadu_si512(from);
}
static inline void vi_store(void *to, vi a)
{
    _mm512_storeu_si512(to, a);
}
static inline vi vi_add(vi a, vi b)
{
    return _mm512_add_epi32(a, b);
}
static inline vi vi_set(int32_t x)
{
    return _mm512_set1_epi32(x);
}
/* (a >> shift) & mask in each byte; a negative shift is one to the left. mask keeps to the byte. */
static inline vi vi_field(vi a, int shift, int mask)
{
    const vi moved = shift > 0   ? _mm512_srli_epi16(a, (unsigned)shift)
                     : shift < 0 ? _mm512_slli_epi16(a, (unsigned)-shift)
                                 : a;
    return _mm512_and_si512(moved, _mm512_set1_epi8((char)mask));
}
/* A table of 16 bytes, `offset` added to each, and what it has for numbers below 16. */
static inline vi vi_levels(const int8_t levels[16], int offset)
{
    const __m128i table = _mm_loadu_si128((const void *)levels);
    return _mm512_add_epi8(_mm512_broadcast_i32x4(table), _mm512_set1_epi8((char)offset));
}
static inline vi vi_look_up(vi table, vi index)
{
    return _mm512_shuffle_epi8(table, index);
}
/* 2^(e - 128) */
static inline vf vf_exponent(const uint8_t *e)
{
    /* A subnormal for 0 and 1, which scalef makes of 1 as it does any other. */
    const __m512i n = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)e));
    return _mm512_scalef_ps(_mm512_set1_ps(1),
                            _mm512_cvtepi32_ps(_mm512_sub_epi32(n, _mm512_set1_epi32(128))));
}
static inline vi vi_or(vi a, vi b)
{
    return _mm512_or_si512(a, b);
}

/*
 * Products of n weight vectors with 4n activations, summed in i32, plus start. Lane l of w[i] holds
 * four weights of output row l; x[4i..] their activations. bits: 4 and 6 are unsigned, 8 is offset
 * by Q8_OFFSET as packed for 16 lanes.
 */
static inline vi vi_dot(int bits, const vi *w, const int8_t *x, int n, vi start)
{
    (void)bits;
    for (int i = 0; i < n; i++) {
        int32_t four;
        __builtin_memcpy(&four, x + 4 * i, sizeof(four));
        start = _mm512_dpbusd_epi32(start, w[i], _mm512_set1_epi32(four));
    }
    return start;
}

/* The same for `rows` rows of activations, `stride` bytes apart, side by side: one waits long. */
#define ROWS_TOGETHER 4
static inline void vi_dot_rows(int bits, const vi *w, const int8_t *x, size_t stride, int n,
                               int rows, vi *sums)
{
    (void)bits;
    for (int i = 0; i < n; i++) {
        for (int r = 0; r < rows; r++) {
            int32_t four;
            __builtin_memcpy(&four, x + (size_t)r * stride + 4 * i, sizeof(four));
            sums[r] = _mm512_dpbusd_epi32(sums[r], w[i], _mm512_set1_epi32(four));
        }
    }
}

/*
 * Stores 32 lanes rounded to i8, which the caller knows that they fit; the sums of the first and the
 * last 16.
 */
static inline void vf_store_unit_i8(int8_t to[32], const vf lanes[2], int32_t *low_out,
                                    int32_t *high_out)
{
    const __m256i bytes = _mm256_set_m128i(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(lanes[1])),
                                           _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(lanes[0])));
    _mm256_storeu_si256((void *)to, bytes);
    /* sad adds bytes as unsigned numbers, eight at a time: 128 more each. */
    const __m256i sums = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8((char)0x80)),
                                         _mm256_setzero_si256());
    const __m256i pairs = _mm256_add_epi64(sums, _mm256_unpackhi_epi64(sums, sums));
    *low_out = _mm_cvtsi128_si32(_mm256_castsi256_si128(pairs)) - 16 * 128;
    *high_out = _mm_cvtsi128_si32(_mm256_extracti128_si256(pairs, 1)) - 16 * 128;
}

/* Neighbours change places: 1 0 3 2 … */
static inline vf vf_swap_pairs(vf a)
{
    return _mm512_permute_ps(a, 0xb1);
}

/* Lane j of r[i] becomes lane i of r[j]. */
static inline void vf_transpose(vf r[LANES])
{
    vf t[LANES];
    for (int i = 0; i < 16; i += 4) {
        const vf low01 = _mm512_unpacklo_ps(r[i], r[i + 1]);
        const vf high01 = _mm512_unpackhi_ps(r[i], r[i + 1]);
        const vf low23 = _mm512_unpacklo_ps(r[i + 2], r[i + 3]);
        const vf high23 = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm512_shuffle_ps(low01, low23, 0x44);
        t[i + 1] = _mm512_shuffle_ps(low01, low23, 0xee);
        t[i + 2] = _mm512_shuffle_ps(high01, high23, 0x44);
        t[i + 3] = _mm512_shuffle_ps(high01, high23, 0xee);
    }
    /* t[i + c]: column c of each 128-bit part, rows i..i+3. */
    for (int c = 0; c < 4; c++) {
        const vf even0 = _mm512_shuffle_f32x4(t[c], t[4 + c], 0x88);
        const vf odd0 = _mm512_shuffle_f32x4(t[c], t[4 + c], 0xdd);
        const vf even1 = _mm512_shuffle_f32x4(t[8 + c], t[12 + c], 0x88);
        const vf odd1 = _mm512_shuffle_f32x4(t[8 + c], t[12 + c], 0xdd);
        r[c] = _mm512_shuffle_f32x4(even0, even1, 0x88);
        r[4 + c] = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
        r[8 + c] = _mm512_shuffle_f32x4(even0, even1, 0xdd);
        r[12 + c] = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
    }
}

/* As weft_f32_to_f8. */
static inline void vf_store_f8(void *to, vf a)
{
    const vi bits = _mm512_castps_si512(a);
    const vi size = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const vi held = _mm512_min_epi32(size, _mm512_set1_epi32(0x43e00000));
    const vi odd = _mm512_and_si512(_mm512_srli_epi32(held, 20), _mm512_set1_epi32(1));
    const vi rounded = _mm512_add_epi32(held, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7ffff)));
    const vi normal = _mm512_sub_epi32(_mm512_srli_epi32(rounded, 20), _mm512_set1_epi32(120 << 3));
    const vi small =
        _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(held), _mm512_set1_ps(512)));
    const __mmask16 is_small = _mm512_cmplt_epi32_mask(size, _mm512_set1_epi32(0x3c800000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    vi code = _mm512_mask_blend_epi32(is_small, normal, small);
    code = _mm512_mask_blend_epi32(is_nan, code, _mm512_set1_epi32(WEFT_F8_NAN));
    const vi sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
    _mm_storeu_si128(to, _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign)));
}

/* Round to nearest even, NaN stays NaN. */
static inline void vf_store_bf16(void *to, vf a)
{
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m512i word = _mm512_mask_blend_epi32(is_nan, rounded, quiet);
    _mm256_storeu_si256(to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(word, 16)));
}
