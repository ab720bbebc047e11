/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/coll/shm/coll_shm_copy.h"

#include <stdint.h>
#include <string.h>

#include "base/compiler.h"

#if defined(__x86_64__)

#include <emmintrin.h>

static void stream_line(char *dst, const char *src)
{
    const __m128i a = _mm_loadu_si128((const __m128i *)(const void *)src);
    const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(src + 16));
    const __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(src + 32));
    const __m128i d = _mm_loadu_si128((const __m128i *)(const void *)(src + 48));
    _mm_stream_si128((__m128i *)(void *)dst, a);
    _mm_stream_si128((__m128i *)(void *)(dst + 16), b);
    _mm_stream_si128((__m128i *)(void *)(dst + 32), c);
    _mm_stream_si128((__m128i *)(void *)(dst + 48), d);
}

void coll_shm_stream(void *dst, const void *src, size_t bytes)
{
    const size_t head = -(uintptr_t)dst % WEFT_CACHE_LINE;
    if (bytes < head + WEFT_CACHE_LINE) {
        memcpy(dst, src, bytes);
        return;
    }
    size_t at = head;
    memcpy(dst, src, head);
    for (; at + WEFT_CACHE_LINE <= bytes; at += WEFT_CACHE_LINE) {
        stream_line((char *)dst + at, (const char *)src + at);
    }
    memcpy((char *)dst + at, (const char *)src + at, bytes - at);
}

void coll_shm_stream_end(void)
{
    _mm_sfence();
}

#else

void coll_shm_stream(void *dst, const void *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

void coll_shm_stream_end(void)
{
}

#endif
