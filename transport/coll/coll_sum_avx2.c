/* SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>

#include "transport/coll/coll_sum_lanes.h"

#define LANES ((size_t)8)

typedef __m256 lanes_t;

static lanes_t lanes_add(lanes_t a, lanes_t b)
{
    return _mm256_add_ps(a, b);
}

static lanes_t load_f32(const float *from)
{
    return _mm256_loadu_ps(from);
}

static void store_f32(float *to, lanes_t value)
{
    _mm256_storeu_ps(to, value);
}

static lanes_t load_f16(const uint16_t *from)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from));
}

static void store_f16(uint16_t *to, lanes_t value)
{
    _mm_storeu_si128((__m128i *)(void *)to, _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

static lanes_t load_bf16(const uint16_t *from)
{
    const __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)from);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

static void store_bf16(uint16_t *to, lanes_t value)
{
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, is_nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(chosen, chosen), 0x08);
    _mm_storeu_si128((__m128i *)(void *)to, _mm256_castsi256_si128(packed));
}

COLL_SUM_DEFINE(f32, float)
COLL_SUM_DEFINE(f16, uint16_t)
COLL_SUM_DEFINE(bf16, uint16_t)

const coll_sum_way_t coll_sum_avx2 = {.name = "avx2", .sums = {sum_f32, sum_f16, sum_bf16}};
