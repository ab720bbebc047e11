/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mla_attention: k_ops.mla_attention on CUDA devices, over caches of latents in bf16, f16, f32 (rounded
 * to bf16 as it is read) or E4M3 (which bf16 holds), and k_ops.mla_write, which fills them.
 *
 * The order is attention.h's: segments of 1024 tokens from position 0, chunks of 64, two chains of k16
 * products a score (of even and odd steps), then their sum, one chain a segment for every element of o, segments merged in order. The sum of
 * weights is kept in 32 parts: tokens 8i.. of a chunk for i < 8, in each columns 2t, 2t + 1 for
 * t < 4; added up at the segment's end, t first.
 *
 * Packing. All heads share a token's one vector, of which the first `latent` elements are summed as
 * well: what a block reads once of it, serves its rows for both. Up to 32 heads make a group, which
 * plays the part of a KV head's q heads in attention.h; tiles are of 16 or 32 packed rows.
 */
#pragma once

#include "kernels/cuda/attention/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether there is a kernel for a cache of such vectors: at most 576 elements, 512 of them latents; of
 * more than 128 where a block of the device may have 120 KiB of shared memory. */
bool k_cuda_mla_is_supported(k_dtype_t kv, uint32_t dim, uint32_t latent);

/* args->seqs and what it points to are of the device. A cudaError_t, as of the others. plan.path: AUTO */
int k_cuda_mla_attention(const k_mla_attention_args_t *args, const k_cuda_attention_plan_t *plan,
                         cudaStream_t stream);

int k_cuda_mla_write(const k_mla_write_args_t *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
