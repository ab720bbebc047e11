/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_ptx_wgmma: simt_wgmma.h as nvcc compiles it. On older devices the names are declared only.
 *
 * An instruction names all N/2 registers of d and then its other operands by number, so each N has
 * a list of its own, and one macro makes the functions of a type from it.
 */
#pragma once

#if SIMT_HOPPER

SIMT_FN void simt_wgmma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

SIMT_FN void simt_wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N> SIMT_FN void simt_wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

template <int N> SIMT_FN void simt_wgmma_hold(float (&d)[N])
{
    SIMT_UNROLL
    for (int i = 0; i < N; i++) {
        asm volatile("" : "+f"(d[i])::"memory");
    }
}

/* Bits 0..13 address / 16, 16..29 leading and 32..45 stride byte offset / 16, 62..63 = 1: swizzle
 * of 128 bytes. PTX ISA, "Matrix descriptor format". */
SIMT_DEVICE uint64_t simt_ptx_desc(const void *tile, uint32_t leading_bytes, uint32_t stride_bytes)
{
    return (uint64_t)((simt_shared_address(tile) & 0x3ffff) >> 4) |
           (uint64_t)(leading_bytes >> 4) << 16 | (uint64_t)(stride_bytes >> 4) << 32 |
           UINT64_C(1) << 62;
}

SIMT_FN uint64_t simt_wgmma_desc_k(const void *tile)
{
    return simt_ptx_desc(tile, 16, 1024);
}

SIMT_FN uint64_t simt_wgmma_desc_mn(const void *tile, uint32_t panel_bytes)
{
    return simt_ptx_desc(tile, panel_bytes, 1024);
}

SIMT_FN uint64_t simt_wgmma_desc_add(uint64_t desc, uint32_t bytes)
{
    return desc + (bytes >> 4); /* within shared memory: nothing is carried */
}

/* Element i of d as a register that is read and written. */
#define SIMT_D4(i)   "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIMT_D8(i)   SIMT_D4(i), SIMT_D4(i + 4)
#define SIMT_D16(i)  SIMT_D8(i), SIMT_D8(i + 8)
#define SIMT_D32(i)  SIMT_D16(i), SIMT_D16(i + 16)
#define SIMT_D64(i)  SIMT_D32(i), SIMT_D32(i + 32)
#define SIMT_D40(i)  SIMT_D32(i), SIMT_D8(i + 32)
#define SIMT_D48(i)  SIMT_D32(i), SIMT_D16(i + 32)
#define SIMT_D96(i)  SIMT_D64(i), SIMT_D32(i + 64)
#define SIMT_D128(i) SIMT_D64(i), SIMT_D64(i + 64)

/* Their numbers. */
#define SIMT_R4 "%0, %1, %2, %3"
#define SIMT_R8                                                                                    \
    SIMT_R4                                                                                        \
    ", %4, %5, %6, %7"
#define SIMT_R16                                                                                   \
    SIMT_R8                                                                                        \
    ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SIMT_R32                                                                                   \
    SIMT_R16                                                                                       \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SIMT_R40                                                                                   \
    SIMT_R32                                                                                       \
    ", %32, %33, %34, %35, %36, %37, %38, %39"
#define SIMT_R48                                                                                   \
    SIMT_R40                                                                                       \
    ", %40, %41, %42, %43, %44, %45, %46, %47"
#define SIMT_R64                                                                                   \
    SIMT_R48                                                                                       \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SIMT_R96                                                                                   \
    SIMT_R64                                                                                       \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SIMT_R128                                                                                  \
    SIMT_R96                                                                                       \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
    "%111, "                                                                                       \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "   \
    "%127"

/* What stands behind the scales: the directions of a and b, which 8-bit types do not have. */
#define SIMT_TAIL_SS(number)   ", 0, %" number
#define SIMT_TAIL_RS(number)   ", %" number
#define SIMT_TAIL_NONE(number) ""

/*
 * The instruction of one N, whose d has R registers. P0.. are the numbers of the operands behind
 * them: SS: the descriptors of a and b, adds, b's direction; RS: the four registers of a, b, adds,
 * b's direction.
 */
#define SIMT_WGMMA_SS(n, R, P0, P1, P2, P3, P4, P5, P6, types, tail, ...)                          \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P2 ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #n types " {" SIMT_R##R                       \
                 "}, %" P0 ", %" P1 ", p, 1, 1" tail(P3) ";\n}"                                    \
                 : SIMT_D##R(0)                                                                    \
                 : "l"(a), "l"(b), "r"((int)adds)__VA_ARGS__                                       \
                 : "memory")
#define SIMT_WGMMA_RS(n, R, P0, P1, P2, P3, P4, P5, P6, types, tail, ...)                          \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P5 ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #n types " {" SIMT_R##R                       \
                 "}, {%" P0 ", %" P1 ", %" P2 ", %" P3 "}, %" P4 ", p, 1, 1" tail(P6) ";\n}"       \
                 : SIMT_D##R(0)                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)adds)__VA_ARGS__   \
                 : "memory")

#define SIMT_WGMMA_EACH_N(INSTRUCTION, ...)                                                        \
    if constexpr (N == 8) {                                                                        \
        INSTRUCTION(8, 4, "4", "5", "6", "7", "8", "9", "10", __VA_ARGS__);                        \
    } else if constexpr (N == 16) {                                                                \
        INSTRUCTION(16, 8, "8", "9", "10", "11", "12", "13", "14", __VA_ARGS__);                   \
    } else if constexpr (N == 32) {                                                                \
        INSTRUCTION(32, 16, "16", "17", "18", "19", "20", "21", "22", __VA_ARGS__);                \
    } else if constexpr (N == 64) {                                                                \
        INSTRUCTION(64, 32, "32", "33", "34", "35", "36", "37", "38", __VA_ARGS__);                \
    } else if constexpr (N == 80) {                                                                \
        INSTRUCTION(80, 40, "40", "41", "42", "43", "44", "45", "46", __VA_ARGS__);                \
    } else if constexpr (N == 96) {                                                                \
        INSTRUCTION(96, 48, "48", "49", "50", "51", "52", "53", "54", __VA_ARGS__);                \
    } else if constexpr (N == 128) {                                                               \
        INSTRUCTION(128, 64, "64", "65", "66", "67", "68", "69", "70", __VA_ARGS__);               \
    } else if constexpr (N == 192) {                                                               \
        INSTRUCTION(192, 96, "96", "97", "98", "99", "100", "101", "102", __VA_ARGS__);            \
    } else if constexpr (N == 256) {                                                               \
        INSTRUCTION(256, 128, "128", "129", "130", "131", "132", "133", "134", __VA_ARGS__);       \
    } else {                                                                                       \
        static_assert(N == 8, "simt_wgmma: no instruction of this N");                             \
    }

template <int N, bool B_MN>
SIMT_FN void simt_wgmma_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, bool adds)
{
    SIMT_WGMMA_EACH_N(SIMT_WGMMA_SS, "k16.f32.bf16.bf16", SIMT_TAIL_SS, , "n"((int)B_MN));
}

template <int N, bool B_MN>
SIMT_FN void simt_wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool adds)
{
    SIMT_WGMMA_EACH_N(SIMT_WGMMA_RS, "k16.f32.bf16.bf16", SIMT_TAIL_RS, , "n"((int)B_MN));
}

template <int N, bool B_MN>
SIMT_FN void simt_wgmma_f16(float (&d)[N / 2], uint64_t a, uint64_t b, bool adds)
{
    SIMT_WGMMA_EACH_N(SIMT_WGMMA_SS, "k16.f32.f16.f16", SIMT_TAIL_SS, , "n"((int)B_MN));
}

template <int N, bool B_MN>
SIMT_FN void simt_wgmma_f16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool adds)
{
    SIMT_WGMMA_EACH_N(SIMT_WGMMA_RS, "k16.f32.f16.f16", SIMT_TAIL_RS, , "n"((int)B_MN));
}

template <int N> SIMT_FN void simt_wgmma_e4m3(float (&d)[N / 2], uint64_t a, uint64_t b, bool adds)
{
    SIMT_WGMMA_EACH_N(SIMT_WGMMA_SS, "k32.f32.e4m3.e4m3", SIMT_TAIL_NONE);
}

template <int N>
SIMT_FN void simt_wgmma_e4m3(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool adds)
{
    SIMT_WGMMA_EACH_N(SIMT_WGMMA_RS, "k32.f32.e4m3.e4m3", SIMT_TAIL_NONE);
}

#undef SIMT_WGMMA_EACH_N
#undef SIMT_WGMMA_RS
#undef SIMT_WGMMA_SS

#endif /* SIMT_HOPPER */
