/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_blocks: moving KV between a device's blocks and contiguous memory: a list of extents, and a list
 * of heads whose elements lie otherwise on the two sides. Lists are in device memory; sides may be
 * any memory that the device can address (pinned host memory, another device's).
 */
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/dtypes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct k_cuda_extent {
    uint64_t to; /* addresses, multiples of 16, as is bytes */
    uint64_t from;
    uint64_t bytes;
} k_cuda_extent_t;

/* extents [n]; max_bytes: none is longer. Extents do not overlap. A cudaError_t. */
int k_cuda_copy_extents(const k_cuda_extent_t *extents, uint32_t n, uint64_t max_bytes,
                        cudaStream_t stream);

/*
 * How the K and V of one head of one layer of a block lie; as kvstore/transfer's kv_head_form:
 *   plain       [token][K then V of it, head_dim each]
 *   transposed  K [head_dim][token], then V [token][head_dim]
 *
 * K_I8 is plain; its scales follow as kvstore/kv_layout.h says.
 */
typedef struct k_cuda_head_form {
    k_dtype_t element; /* K_F32, K_F16, K_BF16, K_F8 or K_I8 */
    bool is_transposed;
    uint32_t block_tokens;
    uint32_t head_dim; /* the same on both sides */
} k_cuda_head_form_t;

/* Tokens from_token … of one head to to_token … of another. */
typedef struct k_cuda_head_move {
    uint64_t to; /* addresses of the heads' first elements */
    uint64_t from;
    uint32_t to_token;
    uint32_t from_token;
    uint32_t tokens;
} k_cuda_head_move_t;

/*
 * Rounds to nearest, ties to even; too large becomes infinite, or the largest of E4M3. Codes and
 * scales of int8 on both sides stay what they are. moves [n]; a cudaError_t.
 */
int k_cuda_convert_heads(k_cuda_head_form_t to, k_cuda_head_form_t from,
                         const k_cuda_head_move_t *moves, uint32_t n, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
