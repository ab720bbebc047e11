/* SPDX-License-Identifier: Apache-2.0 */
/* wgmma: one product of a warp group for every form that simt_wgmma.h offers. */
#pragma once

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum sample_wgmma_kind {
    SAMPLE_BF16_K,         /* a and b from shared memory, lines of K */
    SAMPLE_BF16_MN,        /* b in lines of N */
    SAMPLE_BF16_REGISTERS, /* a from registers */
    SAMPLE_BF16_REGISTERS_MN,
    SAMPLE_F16_K,
    SAMPLE_F16_REGISTERS_MN,
    SAMPLE_E4M3_K,
    SAMPLE_E4M3_REGISTERS,
    SAMPLE_WGMMA_KINDS,
} sample_wgmma_kind_t;

#define SAMPLE_WGMMA_K 128

/*
 * d [64, n] f32 = a [64, K] · bᵀ, K = SAMPLE_WGMMA_K. b is [n, K], of the kinds named MN [K, n].
 * Elements of 2 bytes, of E4M3 1. n: what simt_wgmma_bf16 takes; of MN kinds 16 or more.
 */
int sample_wgmma(sample_wgmma_kind_t kind, int n, const void *a, const void *b, float *d,
                 cudaStream_t stream);

/*
 * c [m, n] f32 = a [m, k] · bᵀ, b [n, k]; bf16; k a multiple of 8. A producer warp group loads by
 * TMA into a ring of stages, a consumer group multiplies.
 */
int sample_wgmma_gemm(const void *a, const void *b, float *c, unsigned m, unsigned n, unsigned k,
                      cudaStream_t stream);

#ifdef __cplusplus
}
#endif
