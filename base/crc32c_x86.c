/* SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "base/compiler.h"
#include "base/crc32c_priv.h"

#define STREAMS WEFT_TARGET("sse4.2,pclmul")
#define FOLDING WEFT_TARGET("sse4.2,pclmul,avx512f,avx512vl,avx512dq,vpclmulqdq")

static uint64_t load_u64(const uint8_t *data)
{
    uint64_t word;
    memcpy(&word, data, sizeof(word));
    return word;
}

STREAMS static uint32_t update_one(uint32_t state, const uint8_t *data, size_t bytes)
{
    for (; bytes >= 8; data += 8, bytes -= 8) {
        state = (uint32_t)_mm_crc32_u64(state, load_u64(data));
    }
    for (; bytes > 0; data++, bytes--) {
        state = _mm_crc32_u8(state, *data);
    }
    return state;
}

STREAMS static uint64_t shift(uint64_t state, uint32_t by)
{
    const __m128i product =
        _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)state), _mm_cvtsi32_si128((int)by), 0);
    return _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

/* Of three streams of n bytes (a multiple of 8), one behind the other. */
STREAMS static uint32_t update_three(uint32_t state, const uint8_t *data, size_t n, uint32_t once,
                                     uint32_t twice)
{
    uint64_t a = state;
    uint64_t b = 0;
    uint64_t c = 0;
    for (const uint8_t *end = data + n; data < end; data += 8) {
        a = _mm_crc32_u64(a, load_u64(data));
        b = _mm_crc32_u64(b, load_u64(data + n));
        c = _mm_crc32_u64(c, load_u64(data + 2 * n));
    }
    return (uint32_t)(shift(a, twice) ^ shift(b, once) ^ c);
}

STREAMS static uint32_t update_streams(uint32_t state, const uint8_t *data, size_t bytes)
{
    for (; bytes >= 3 * WEFT_CRC32C_LONG;
         data += 3 * WEFT_CRC32C_LONG, bytes -= 3 * WEFT_CRC32C_LONG) {
        state = update_three(state, data, WEFT_CRC32C_LONG, WEFT_CRC32C_SHIFT_LONG,
                             WEFT_CRC32C_SHIFT_LONG2);
    }
    for (; bytes >= 3 * WEFT_CRC32C_SHORT;
         data += 3 * WEFT_CRC32C_SHORT, bytes -= 3 * WEFT_CRC32C_SHORT) {
        state = update_three(state, data, WEFT_CRC32C_SHORT, WEFT_CRC32C_SHIFT_SHORT,
                             WEFT_CRC32C_SHIFT_SHORT2);
    }
    return update_one(state, data, bytes);
}

/*
 * Folding (V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", Intel
 * 2009): 128 bits are replaced by an equal value n bits further on, the halves times x^(n + 31) and
 * x^(n - 33) mod P, bits reversed.
 */
#define FOLD_2048 UINT32_C(0xdcb17aa4), UINT32_C(0xb9e02b86)
#define FOLD_1536 UINT32_C(0xa87ab8a8), UINT32_C(0xab7aff2a)
#define FOLD_1024 UINT32_C(0x6992cea2), UINT32_C(0x0d3b6092)
#define FOLD_512  UINT32_C(0x740eef02), UINT32_C(0x9e4addf8)
#define FOLD_384  UINT32_C(0x1c291d04), UINT32_C(0xddc0152b)
#define FOLD_256  UINT32_C(0x3da6d0cb), UINT32_C(0xba4fc28e)
#define FOLD_128  UINT32_C(0xf20c0dfe), UINT32_C(0x493c7d27)

FOLDING static __m512i factors(uint32_t low, uint32_t high)
{
    return _mm512_broadcast_i64x2(_mm_set_epi64x(high, low));
}

FOLDING static __m512i fold(__m512i value, __m512i by, __m512i onto)
{
    const __m512i low = _mm512_clmulepi64_epi128(value, by, 0x00);
    const __m512i high = _mm512_clmulepi64_epi128(value, by, 0x11);
    return _mm512_ternarylogic_epi64(low, high, onto, 0x96); /* a ^ b ^ c */
}

FOLDING static __m128i fold_lane(__m128i value, uint32_t low, uint32_t high)
{
    const __m128i by = _mm_set_epi64x(high, low);
    return _mm_xor_si128(_mm_clmulepi64_si128(value, by, 0x00),
                         _mm_clmulepi64_si128(value, by, 0x11));
}

/* The four lanes as the sum of their 64 bytes. */
FOLDING static uint32_t reduce(__m512i value)
{
    __m128i sum = _mm512_extracti64x2_epi64(value, 3);
    sum = _mm_xor_si128(sum, fold_lane(_mm512_extracti64x2_epi64(value, 0), FOLD_384));
    sum = _mm_xor_si128(sum, fold_lane(_mm512_extracti64x2_epi64(value, 1), FOLD_256));
    sum = _mm_xor_si128(sum, fold_lane(_mm512_extracti64x2_epi64(value, 2), FOLD_128));
    const uint64_t low = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(sum));
    return (uint32_t)_mm_crc32_u64(low, (uint64_t)_mm_extract_epi64(sum, 1));
}

FOLDING static uint32_t update_folding(uint32_t state, const uint8_t *data, size_t bytes)
{
    if (bytes < 512) {
        return update_streams(state, data, bytes);
    }
    const __m512i by_2048 = factors(FOLD_2048);
    __m512i a = _mm512_xor_si512(_mm512_loadu_si512(data),
                                 _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)state)));
    __m512i b = _mm512_loadu_si512(data + 64);
    __m512i c = _mm512_loadu_si512(data + 128);
    __m512i d = _mm512_loadu_si512(data + 192);
    for (data += 256, bytes -= 256; bytes >= 256; data += 256, bytes -= 256) {
        a = fold(a, by_2048, _mm512_loadu_si512(data));
        b = fold(b, by_2048, _mm512_loadu_si512(data + 64));
        c = fold(c, by_2048, _mm512_loadu_si512(data + 128));
        d = fold(d, by_2048, _mm512_loadu_si512(data + 192));
    }
    d = fold(a, factors(FOLD_1536), d);
    d = fold(b, factors(FOLD_1024), d);
    d = fold(c, factors(FOLD_512), d);
    return update_streams(reduce(d), data, bytes);
}

#define XCR0_AVX512 UINT64_C(0xe6) /* SSE, AVX, opmask and both halves of the ZMM registers */

static bool has_folding(void)
{
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0 ||
        (weft_cpu_xgetbv() & XCR0_AVX512) != XCR0_AVX512 ||
        __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) {
        return false;
    }
    const unsigned needed = bit_AVX512F | bit_AVX512VL | bit_AVX512DQ;
    return (b & needed) == needed && (c & bit_VPCLMULQDQ) != 0;
}

static bool has_streams(void)
{
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_SSE4_2) != 0 && (c & bit_PCLMUL) != 0;
}

size_t weft_crc32c_machine_ways(weft_crc32c_way_t ways_out[WEFT_CRC32C_MACHINE_WAYS])
{
    size_t n = 0;
    if (has_streams() && has_folding()) {
        ways_out[n++] = (weft_crc32c_way_t){"folding", update_folding};
    }
    if (has_streams()) {
        ways_out[n++] = (weft_crc32c_way_t){"streams", update_streams};
    }
    return n;
}
#else
typedef int crc32c_x86_is_empty; /* ISO C wants a declaration */
#endif
