/* SPDX-License-Identifier: Apache-2.0 */
/* mma: one product of a warp for every form that simt_mma.h offers. */
#pragma once

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum sample_mma_kind {
    SAMPLE_MMA_BF16,
    SAMPLE_MMA_BF16_TRANS, /* b is [16, 8] */
    SAMPLE_MMA_F16,
    SAMPLE_MMA_S8,
    SAMPLE_MMA_E4M3, /* Hopper only */
} sample_mma_kind_t;

/*
 * d [16, 8] = a [16, K] · bᵀ, b [8, K]; K is 16, of 8-bit kinds 32. d is f32, of S8 s32. a and b by
 * cp.async and ldmatrix.
 */
int sample_mma(sample_mma_kind_t kind, const void *a, const void *b, void *d, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
