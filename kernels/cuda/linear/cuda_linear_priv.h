/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_linear_priv: what the files of cuda_linear.h share. */
#pragma once

#include "kernels/cuda/linear/cuda_linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Units that hold a row of the source. */
static inline uint32_t linear_units(bool is_gate_up, uint32_t rows)
{
    return is_gate_up ? (rows / 2 + 7) / 8 : (rows + LINEAR_UNIT_ROWS - 1) / LINEAR_UNIT_ROWS;
}

static inline uint32_t linear_k_blocks(uint32_t columns)
{
    return (columns + LINEAR_K_BLOCK - 1) / LINEAR_K_BLOCK;
}

typedef struct linear_device {
    uint32_t processors;
    uint32_t shared_bytes; /* that a block may have */
    bool is_hopper;
} linear_device_t;

int linear_current_device(linear_device_t *device_out);
bool linear_has_scales(k_dtype_t dtype);

int k_cuda_linear_mma(const k_cuda_linear_t *args, const linear_device_t *device,
                      cudaStream_t stream);

/*
 * How the wgmma kernel cuts a product; no cut changes a bit of the result.
 * A tile is `span` units × `tokens` rows of x; it is walked in stages of `stage_blocks` k blocks.
 */
typedef struct linear_wgmma_plan {
    uint32_t tokens; /* 8, 16, 32, 64, 128, 256 */
    uint32_t groups; /* consumer warp groups, 64 rows of W each: 1..4 */
    uint32_t span;
    uint32_t stage_blocks;
    uint32_t stages; /* 2 or more: one is held until the next has come */
    uint32_t stage_bytes;
    uint32_t blocks; /* of the grid */
} linear_wgmma_plan_t;

linear_wgmma_plan_t linear_wgmma_plan(uint32_t units, uint32_t k_blocks, uint32_t rows,
                                      uint32_t processors);
/* Of matrices that have `rows` rows together, most of them one tile each. */
linear_wgmma_plan_t linear_wgmma_plan_groups(uint32_t units, uint32_t k_blocks, uint32_t rows,
                                             uint32_t groups, uint32_t processors);
int k_cuda_linear_wgmma(const k_cuda_linear_t *args, const linear_wgmma_plan_t *plan,
                        cudaStream_t stream);

/*
 * How linear_scaled cuts a product: tokens of a block, spans of 64 rows of W, warp groups that share
 * out K. No cut changes a bit of the result.
 */
#define LINEAR_SCALED_SHAPES(DO)                                                                   \
    DO(16, 16, 1, 4)                                                                               \
    DO(32, 32, 1, 4)                                                                               \
    DO(64, 64, 1, 4)                                                                               \
    DO(64_WIDE, 64, 4, 1)                                                                          \
    DO(128, 128, 2, 1)

typedef enum linear_scaled_shape {
#define SHAPE(name, tokens, spans, shares) LINEAR_SCALED_##name,
    LINEAR_SCALED_SHAPES(SHAPE)
#undef SHAPE
        LINEAR_SCALED_SHAPE_COUNT
} linear_scaled_shape_t;

linear_scaled_shape_t linear_scaled_shape(k_dtype_t dtype, uint32_t units, uint32_t k_blocks,
                                          uint32_t rows, uint32_t processors);
int k_cuda_linear_scaled(const k_cuda_linear_t *args, linear_scaled_shape_t shape,
                         cudaStream_t stream);

#ifdef __cplusplus
}
#endif
