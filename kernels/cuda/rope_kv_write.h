/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rope_kv_write: k_ops.rope_kv_write on CUDA devices: bf16 q, k and v; a cache of bf16, f16, f32, E4M3 or int8.
 * Keys go to the cache as rotated in f32, rounded once.
 */
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * rows: of all sequences together, or more; sizes the launch. args->seqs and inv_freq are of the
 * device. A cudaError_t; cudaErrorNotSupported: another type of cache.
 */
int k_cuda_rope_kv_write(const k_rope_kv_write_args_t *args, uint32_t rows, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
