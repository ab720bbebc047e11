/* SPDX-License-Identifier: Apache-2.0 */
/* compiler: the only place for compiler extensions. */
#pragma once

#include <stdint.h>

#define WEFT_PRINTF(format_index, first_index)                                                     \
    __attribute__((format(printf, format_index, first_index)))
#define WEFT_NODISCARD                    __attribute__((warn_unused_result))
#define WEFT_TARGET(features)             __attribute__((target(features)))
#define WEFT_LIKELY(x)                    __builtin_expect(!!(x), 1)
#define WEFT_UNLIKELY(x)                  __builtin_expect(!!(x), 0)
#define WEFT_INLINE                       static inline __attribute__((always_inline))
#define weft_prefetch(address)            __builtin_prefetch(address)
#define weft_prefetch_l2(address)         __builtin_prefetch(address, 0, 2) /* more of them may wait */
#define WEFT_CACHE_LINE                   64
#define weft_lowest_bit(x)                ((unsigned)__builtin_ctzll(x))                /* x != 0 */
#define weft_leading_zeros(x)             ((x) == 0 ? 32U : (unsigned)__builtin_clz(x)) /* 32 bits */
#define WEFT_ARRAY_LEN(a)                 (sizeof(a) / sizeof((a)[0]))
#define WEFT_CONTAINER(ptr, type, member) ((type *)(void *)((char *)(ptr) - offsetof(type, member)))

/* A declaration whose definition may be missing from the program: its address is NULL then. */
#define WEFT_WEAK __attribute__((weak))

/* The type of an expression, which is not evaluated. */
#define weft_typeof(x) __typeof__(x)

/* Memory is as the source says at this point. */
static inline void weft_compiler_barrier(void)
{
    __asm__ volatile("" ::: "memory");
}

/* What a spinning thread does between two looks. */
#if defined(__x86_64__)
#define weft_cpu_relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define weft_cpu_relax() __asm__ volatile("yield")
#else
#define weft_cpu_relax() ((void)0)
#endif

/* Whether processor and system have an instruction set; name: a literal as GCC's, "avx2". */
#if defined(__x86_64__)
#define weft_cpu_has(name) (__builtin_cpu_supports(name) != 0)
#else
#define weft_cpu_has(name) false
#endif

#if defined(__x86_64__)
/* Register XCR0; the caller has checked that the processor has OSXSAVE. */
static inline uint64_t weft_cpu_xgetbv(void)
{
    uint32_t low;
    uint32_t high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}
#endif
