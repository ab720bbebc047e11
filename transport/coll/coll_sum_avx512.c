/* SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>

#include "transport/coll/coll_sum_lanes.h"

#define LANES ((size_t)16)

typedef __m512 lanes_t;

static lanes_t lanes_add(lanes_t a, lanes_t b)
{
    return _mm512_add_ps(a, b);
}

static lanes_t load_f32(const float *from)
{
    return _mm512_loadu_ps(from);
}

static void store_f32(float *to, lanes_t value)
{
    _mm512_storeu_ps(to, value);
}

static lanes_t load_f16(const uint16_t *from)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

static void store_f16(uint16_t *to, lanes_t value)
{
    _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

static lanes_t load_bf16(const uint16_t *from)
{
    const __m256i halves = _mm256_loadu_si256((const __m256i *)(const void *)from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* Not the instruction of AVX-512 BF16, which takes subnormal numbers for 0. */
static void store_bf16(uint16_t *to, lanes_t value)
{
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    _mm256_storeu_si256((__m256i *)(void *)to,
                        _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan, rounded, quiet)));
}

COLL_SUM_DEFINE(f32, float)
COLL_SUM_DEFINE(f16, uint16_t)
COLL_SUM_DEFINE(bf16, uint16_t)

const coll_sum_way_t coll_sum_avx512 = {.name = "avx512", .sums = {sum_f32, sum_f16, sum_bf16}};
