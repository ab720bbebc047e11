/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/shm/xfer_shm_copy.h"

#include <stdint.h>
#include <string.h>

#include "base/compiler.h"

#define AHEAD_BYTES 1024 /* that a processor's own prefetcher needs to see before it runs along */

static void prefetch(const char *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += WEFT_CACHE_LINE) {
        weft_prefetch(from + i);
    }
}

void xfer_shm_copy(void *dst, const void *src, size_t bytes, xfer_shm_next_t next)
{
    prefetch(next.src, AHEAD_BYTES / 2);
    memcpy(dst, src, bytes);
}

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

/* bytes are whole lines, dst is at the begin of one. */
static void stream_lines(char *dst, const char *src, size_t bytes, const char *next)
{
    const size_t own = bytes > AHEAD_BYTES ? bytes - AHEAD_BYTES : 0;
    size_t i = 0;
    for (; i < own; i += WEFT_CACHE_LINE) {
        weft_prefetch(src + i + AHEAD_BYTES);
        stream_line(dst + i, src + i);
    }
    for (size_t ahead = 0; i < bytes; i += WEFT_CACHE_LINE, ahead += WEFT_CACHE_LINE) {
        weft_prefetch(next + ahead);
        stream_line(dst + i, src + i);
    }
}

void xfer_shm_copy_streamed(void *dst, const void *src, size_t bytes, xfer_shm_next_t next)
{
    const size_t head = -(uintptr_t)dst % WEFT_CACHE_LINE;
    if (bytes < head + WEFT_CACHE_LINE) {
        memcpy(dst, src, bytes);
        return;
    }
    const size_t lines = (bytes - head) / WEFT_CACHE_LINE * WEFT_CACHE_LINE;
    weft_prefetch(next.dst); /* for its page's translation */
    memcpy(dst, src, head);
    stream_lines((char *)dst + head, (const char *)src + head, lines, next.src);
    memcpy((char *)dst + head + lines, (const char *)src + head + lines, bytes - head - lines);
}

#else

void xfer_shm_copy_streamed(void *dst, const void *src, size_t bytes, xfer_shm_next_t next)
{
    xfer_shm_copy(dst, src, bytes, next);
}

#endif
