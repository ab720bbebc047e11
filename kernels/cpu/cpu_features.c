/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/compiler.h"

/* Bits of XCR0: the register parts that the system saves. Intel SDM vol. 1, 13.3. */
#define XCR0_YMM UINT64_C(0x06)    /* XMM and YMM */
#define XCR0_ZMM UINT64_C(0xe6)    /* and opmask, upper ZMM */
#define XCR0_TMM UINT64_C(0x60000) /* tiles and their configuration */

/* CPUID 7.0, EDX. */
#define AMX_TILE (1U << 24)
#define AMX_INT8 (1U << 25)

/* arch_prctl: a process asks for the tiles' state once. Linux, Documentation/arch/x86/xstate.rst */
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA  18

static uint64_t saved_state(void)
{
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) {
        return 0;
    }
    return weft_cpu_xgetbv();
}

bool cpu_features_has_avx2(void)
{
    unsigned a;
    unsigned b;
    unsigned c1;
    unsigned c7;
    unsigned d;
    return (saved_state() & XCR0_YMM) == XCR0_YMM && __get_cpuid(1, &a, &b, &c1, &d) != 0 &&
           (c1 & bit_FMA) != 0 && (c1 & bit_F16C) != 0 &&
           __get_cpuid_count(7, 0, &a, &b, &c7, &d) != 0 && (b & bit_AVX2) != 0;
}

bool cpu_features_has_avx512(void)
{
    const unsigned base = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    return cpu_features_has_avx2() && (saved_state() & XCR0_ZMM) == XCR0_ZMM &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & base) == base &&
           (c & bit_AVX512VNNI) != 0;
}

bool cpu_features_has_avx512_bf16(void)
{
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    return cpu_features_has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 &&
           (a & bit_AVX512BF16) != 0;
}

bool cpu_features_has_amx(void)
{
    const unsigned tiles = AMX_TILE | AMX_INT8;
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    return cpu_features_has_avx512_bf16() && (saved_state() & XCR0_TMM) == XCR0_TMM &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & tiles) == tiles &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#else
bool cpu_features_has_avx2(void)
{
    return false;
}

bool cpu_features_has_avx512(void)
{
    return false;
}

bool cpu_features_has_avx512_bf16(void)
{
    return false;
}

bool cpu_features_has_amx(void)
{
    return false;
}
#endif
