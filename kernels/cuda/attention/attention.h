/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attention: k_ops.attention on CUDA devices: bf16 activations, KV in bf16, f16, f32 (f32 is rounded
 * to bf16 as it is read), E4M3 (read as f16) or int8 (codes read as f16, of V as bf16; a score is
 * multiplied with K's scale, a weight with V's before it is rounded, but not in the sum of weights). Head dims 16, 32,
 * 64, 80, 96, 128, 192 and 256.
 *
 * Decision 7. The result of a row has the same bits whatever kernel computed it. A sequence is cut
 * at multiples of 1024 tokens from position 0 (segments) and those at multiples of 128 (64 for head
 * dims over 128; chunks). For every row and head
 *   - a score is one chain of k16 tensor core products over the head dim (of bytes, with the 16
 *     elements in another order, the same everywhere: attention_bytes.cuh);
 *   - each chunk has one maximum; its weights are exp2 of the same fma;
 *   - o of a segment is one chain: scaled once a chunk, then k16 products in order of tokens;
 *   - the sum of weights is kept in 16 parts: tokens 32i.. (16i..) of a chunk for i < 4, in each
 *     columns 2t, 2t + 1 of every 8 for t < 4; added up at the segment's end, t first;
 *   - segments are merged in order, in f32.
 * A masked token adds exact zeroes, a chunk or segment out of sight changes nothing, so neither the
 * tile that a row is computed in nor where its sequence is split shows. Products are m16n8k16 by
 * mma.sync or m64nNk16 by wgmma; the GPU check compares their bits.
 *
 * Packing. The q heads of a KV head share its keys: row r, head g of the group is packed row
 * r · group + g, and tiles are of 16, 64 or 128 packed rows. Sequences of up to 64 packed rows are
 * split at segments, one work item each, partial results are merged by a second kernel; longer
 * ones walk their segments in one item. Where these items are too few for the device, each is spread
 * over several blocks (attention_spread.cuh).
 *
 * Graphs   launches depend on host values alone; sequences of 0 rows are skipped
 * Scratch  partial results; too little of it costs speed (sequences stay in one item), no bits
 */
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define K_CUDA_ATTENTION_SEGMENT 1024

/* Which kernels may run; for checks and measurements. Results are the same. */
typedef enum k_cuda_attention_path {
    K_CUDA_ATTENTION_AUTO,
    K_CUDA_ATTENTION_MMA,    /* mma.sync and cp.async alone: every device */
    K_CUDA_ATTENTION_HOPPER, /* wgmma and TMA; cudaErrorNotSupported where they cannot */
    K_CUDA_ATTENTION_SPREAD, /* segments over many blocks, however many; likewise */
} k_cuda_attention_path_t;

typedef struct k_cuda_attention_plan {
    uint32_t max_rows; /* no sequence has more rows; 0: not known, all kernels are launched */
    void *scratch;     /* 256-byte aligned */
    size_t scratch_bytes;
    k_cuda_attention_path_t path;
} k_cuda_attention_plan_t;

/* Scratch for every sequence of a step to be split: rows · segments of `tokens` summed over the
 * sequences of up to 64 packed rows is `units`. 2048 units serve 64 sequences of 32k tokens. */
size_t k_cuda_attention_scratch_bytes(uint32_t q_heads, uint32_t head_dim, uint32_t units);

/* Whether there is a kernel for these: then on every device, with SIMT_LEAST_SHARED_BYTES or more. */
bool k_cuda_attention_is_supported(k_dtype_t kv, uint32_t head_dim);

/* args->seqs and what it points to are of the device. A cudaError_t. */
int k_cuda_attention(const k_attention_args_t *args, const k_cuda_attention_plan_t *plan,
                     cudaStream_t stream);

#ifdef __cplusplus
}
#endif
