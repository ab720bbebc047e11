/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simd_avx2: 8 lanes for the op templates of this folder. AVX2, FMA and F16C.
 *
 * The same names as simd_avx512.h, which says what they mean.
 */
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "base/float8.h"

#define ISA_NAME  avx2
#define LANES     8
#define Q8_OFFSET 0

typedef __m256 vf;
typedef __m256i vi;

static inline __m256i first_lanes(uint32_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);
}

static inline vf vf_set(float x)
{
    return _mm256_set1_ps(x);
}
static inline vf vf_load(const float *from)
{
    return _mm256_loadu_ps(from);
}
static inline vf vf_load_first(const float *from, uint32_t n)
{
    return _mm256_maskload_ps(from, first_lanes(n));
}
static inline void vf_store(float *to, vf a)
{
    _mm256_storeu_ps(to, a);
}
static inline void vf_store_first(float *to, vf a, uint32_t n)
{
    _mm256_maskstore_ps(to, first_lanes(n), a);
}
static inline vf vf_load_f16(const void *from)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(from));
}
static inline vf vf_load_bf16(const void *from)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(from)), 16));
}
static inline vf vf_load_f8(const void *from)
{
    const vi code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from));
    const vi size = _mm256_and_si256(code, _mm256_set1_epi32(0x7f));
    const vi is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), size);
    const vi is_nan = _mm256_cmpeq_epi32(size, _mm256_set1_epi32(0x7f));
    const vi bias =
        _mm256_blendv_epi8(_mm256_set1_epi32(120 << 23), _mm256_set1_epi32(121 << 23), is_small);
    const vf wide = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(size, 20), bias));
    const vf less = _mm256_and_ps(_mm256_castsi256_ps(is_small), _mm256_set1_ps(0x1p-6f));
    const vi bits = _mm256_blendv_epi8(_mm256_castps_si256(_mm256_sub_ps(wide, less)),
                                       _mm256_set1_epi32(0x7fc00000), is_nan);
    const vi sign = _mm256_slli_epi32(_mm256_and_si256(code, _mm256_set1_epi32(0x80)), 24);
    return _mm256_castsi256_ps(_mm256_or_si256(bits, sign));
}
static inline vf vf_bf16_even(vi pairs)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}
static inline vf vf_bf16_odd(vi pairs)
{
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000)));
}
static inline vi vi_load_f8(const void *from)
{
    const vi code = _mm256_cvtepi8_epi16(_mm_loadu_si128(from));
    return _mm256_and_si256(_mm256_slli_epi16(code, 7), _mm256_set1_epi16((short)0xbf80));
}
static inline vf vf_f8_even(vi columns)
{
    return _mm256_cvtph_ps(_mm256_castsi256_si128(columns));
}
static inline vf vf_f8_odd(vi columns)
{
    return _mm256_cvtph_ps(_mm256_extracti128_si256(columns, 1));
}
#define BF16_DOT                   0
#define vf_dot_bf16(pairs, x, sum) (sum)
#define vi_load_f8_pairs           vi_load_f8
static inline vf vf_load_u8(const uint8_t *from)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)from)));
}
static inline vf vf_load_low4(const uint8_t *from)
{
    const __m128i low = _mm_and_si128(_mm_loadl_epi64((const void *)from), _mm_set1_epi8(15));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low));
}
static inline vf vf_load_high4(const uint8_t *from)
{
    const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)from));
    return _mm256_cvtepi32_ps(_mm256_srli_epi32(bytes, 4));
}
static inline vf vf_load_i8(const int8_t *from)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)from)));
}
static inline vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
static inline vf vf_abs(vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf vf_fnma(vf a, vf b, vf c)
{
    return _mm256_fnmadd_ps(a, b, c);
}
static inline vf vf_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* In two halves, so that results below the normal range come out right. */
static inline vf vf_scale_exponent(vf a, vf n)
{
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    const __m256i rest = _mm256_sub_epi32(whole, half);
    const __m256i bias = _mm256_set1_epi32(127);
    const vf first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    const vf second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(a, first), second);
}
static inline vf vf_select_less(vf a, vf b, vf x, vf y)
{
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
static inline float vf_sum(vf a)
{
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
static inline float vf_max_lane(vf a)
{
    const __m128 c = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
static inline void vf_store_i8(int8_t *to, vf a)
{
    const __m256i words = _mm256_cvtps_epi32(a);
    const __m128i halves =
        _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64((void *)to, _mm_packs_epi16(halves, halves));
}
static inline void vf_store_f16(void *to, vf a)
{
    _mm_storeu_si128(to, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline vf vi_to_f32(vi a)
{
    return _mm256_cvtepi32_ps(a);
}
static inline vi vi_load(const void *from)
{
    return _mm256_loadu_si256(from);
}
static inline vi vi_set(int32_t x)
{
    return _mm256_set1_epi32(x);
}
static inline vi vi_field(vi a, int shift, int mask)
{
    const vi moved = shift > 0   ? _mm256_srli_epi16(a, shift)
                     : shift < 0 ? _mm256_slli_epi16(a, -shift)
                                 : a;
    return _mm256_and_si256(moved, _mm256_set1_epi8((char)mask));
}
/* A table of 16 bytes, `offset` added to each, and what it has for numbers below 16. */
static inline vi vi_levels(const int8_t levels[16], int offset)
{
    const __m128i table = _mm_loadu_si128((const void *)levels);
    return _mm256_add_epi8(_mm256_broadcastsi128_si256(table), _mm256_set1_epi8((char)offset));
}
static inline vi vi_look_up(vi table, vi index)
{
    return _mm256_shuffle_epi8(table, index);
}
/* 2^(e - 128) */
static inline vf vf_exponent(const uint8_t *e)
{
    /* In two factors, since 0 and 1 make a subnormal. */
    const __m256i n = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)e));
    const __m256i two = _mm256_set1_epi32(2);
    const __m256i whole = _mm256_max_epi32(n, two);
    const __m256i power = _mm256_slli_epi32(_mm256_sub_epi32(whole, _mm256_set1_epi32(1)), 23);
    const __m256i less =
        _mm256_slli_epi32(_mm256_sub_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), whole), 23);
    return _mm256_mul_ps(_mm256_castsi256_ps(power), _mm256_castsi256_ps(less));
}
static inline vi vi_or(vi a, vi b)
{
    return _mm256_or_si256(a, b);
}

/*
 * maddubs adds two u8 × i8 products in i16, which must not saturate: activations are within ±127.
 * 4 bits: 2·15·127 a time, 8 times, is 30480; 5 bits: 2·31·127, 4 times, 31496; 6 bits: 2·63·127,
 * twice, 32004; 8 bits: |w| times
 * the activation with w's sign, 2·128·127 = 32512.
 */
static inline vi vi_dot(int bits, const vi *w, const int8_t *x, int n, vi start)
{
    const vi ones = _mm256_set1_epi16(1);
    const int most = bits <= 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
    const int together = most < n ? most : n;
    for (int i = 0; i < n; i += together) {
        vi pairs = _mm256_setzero_si256();
        for (int j = i; j < i + together; j++) {
            int32_t four;
            __builtin_memcpy(&four, x + 4 * j, sizeof(four));
            const vi activation = _mm256_set1_epi32(four);
            const vi product = bits == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(w[j]),
                                                                _mm256_sign_epi8(activation, w[j]))
                                         : _mm256_maddubs_epi16(w[j], activation);
            pairs = j == i ? product : _mm256_add_epi16(pairs, product);
        }
        start = _mm256_add_epi32(start, _mm256_madd_epi16(pairs, ones));
    }
    return start;
}

/* The same for `rows` rows of activations, `stride` bytes apart. */
#define ROWS_TOGETHER 1
static inline void vi_dot_rows(int bits, const vi *w, const int8_t *x, size_t stride, int n,
                               int rows, vi *sums)
{
    for (int r = 0; r < rows; r++) {
        sums[r] = vi_dot(bits, w, x + (size_t)r * stride, n, sums[r]);
    }
}

/*
 * Stores 32 lanes rounded to i8, which the caller knows that they fit; the sums of the first and the
 * last 16.
 */
static inline void vf_store_unit_i8(int8_t to[32], const vf lanes[4], int32_t *low_out,
                                    int32_t *high_out)
{
    const __m256i first =
        _mm256_packs_epi32(_mm256_cvtps_epi32(lanes[0]), _mm256_cvtps_epi32(lanes[1]));
    const __m256i last =
        _mm256_packs_epi32(_mm256_cvtps_epi32(lanes[2]), _mm256_cvtps_epi32(lanes[3]));
    /* Packing keeps to halves of a register: fours of bytes 0 2 4 6, 1 3 5 7. */
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, last),
                                                      _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
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
    return _mm256_permute_ps(a, 0xb1);
}

static inline void vf_transpose(vf r[LANES])
{
    vf t[LANES];
    for (int i = 0; i < 8; i += 4) {
        const vf low01 = _mm256_unpacklo_ps(r[i], r[i + 1]);
        const vf high01 = _mm256_unpackhi_ps(r[i], r[i + 1]);
        const vf low23 = _mm256_unpacklo_ps(r[i + 2], r[i + 3]);
        const vf high23 = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm256_shuffle_ps(low01, low23, 0x44);
        t[i + 1] = _mm256_shuffle_ps(low01, low23, 0xee);
        t[i + 2] = _mm256_shuffle_ps(high01, high23, 0x44);
        t[i + 3] = _mm256_shuffle_ps(high01, high23, 0xee);
    }
    for (int c = 0; c < 4; c++) {
        r[c] = _mm256_permute2f128_ps(t[c], t[4 + c], 0x20);
        r[4 + c] = _mm256_permute2f128_ps(t[c], t[4 + c], 0x31);
    }
}

static inline void vf_store_f8(void *to, vf a)
{
    const vi bits = _mm256_castps_si256(a);
    const vi size = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const vi held = _mm256_min_epi32(size, _mm256_set1_epi32(0x43e00000));
    const vi odd = _mm256_and_si256(_mm256_srli_epi32(held, 20), _mm256_set1_epi32(1));
    const vi rounded = _mm256_add_epi32(held, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff)));
    const vi normal = _mm256_sub_epi32(_mm256_srli_epi32(rounded, 20), _mm256_set1_epi32(120 << 3));
    const vi small =
        _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(held), _mm256_set1_ps(512)));
    const vi is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), size);
    const vi is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    vi code = _mm256_blendv_epi8(normal, small, is_small);
    code = _mm256_blendv_epi8(code, _mm256_set1_epi32(WEFT_F8_NAN), is_nan);
    code = _mm256_or_si256(code,
                           _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80)));
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64(to, _mm_packus_epi16(words, words));
}
static inline void vf_store_bf16(void *to, vf a)
{
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i word = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    _mm_storeu_si128(
        to, _mm_packus_epi32(_mm256_castsi256_si128(word), _mm256_extracti128_si256(word, 1)));
}
