/* SPDX-License-Identifier: Apache-2.0 */
/* simt_ptx_mma: simt_mma.h as nvcc compiles it. */
#pragma once

#define SIMT_PTX_MMA(name, type, accumulator, instruction)                                         \
    SIMT_FN void name(type(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2])                   \
    {                                                                                              \
        asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "    \
                                 "%3};"                                                            \
                     : accumulator(d[0]), accumulator(d[1]), accumulator(d[2]), accumulator(d[3])  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));          \
    }

SIMT_PTX_MMA(simt_mma_bf16, float, "+f", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
SIMT_PTX_MMA(simt_mma_f16, float, "+f", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
SIMT_PTX_MMA(simt_mma_s8, int32_t, "+r", "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32")
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
SIMT_PTX_MMA(simt_mma_e4m3, float, "+f", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32")
#endif
#undef SIMT_PTX_MMA

SIMT_FN void simt_ldmatrix_x1(uint32_t (&r)[1], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(simt_shared_address(shared_row))
                 : "memory");
}

SIMT_FN void simt_ldmatrix_x2(uint32_t (&r)[2], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(simt_shared_address(shared_row))
                 : "memory");
}

SIMT_FN void simt_ldmatrix_x4(uint32_t (&r)[4], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(simt_shared_address(shared_row))
                 : "memory");
}

SIMT_FN void simt_ldmatrix_x1_trans(uint32_t (&r)[1], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(simt_shared_address(shared_row))
                 : "memory");
}

SIMT_FN void simt_ldmatrix_x2_trans(uint32_t (&r)[2], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(simt_shared_address(shared_row))
                 : "memory");
}

SIMT_FN void simt_ldmatrix_x4_trans(uint32_t (&r)[4], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(simt_shared_address(shared_row))
                 : "memory");
}
