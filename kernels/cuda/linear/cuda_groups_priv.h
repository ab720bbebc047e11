/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_groups_priv: what the files of cuda_groups.h share. */
#pragma once

#include "kernels/cuda/linear/cuda_groups.h"
#include "kernels/cuda/linear/cuda_linear_priv.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tiles of at most so many rows that all matrices together can come to. */
static inline uint32_t groups_most_tiles(const k_cuda_groups_t *args, uint32_t tile_rows)
{
    const uint32_t full = args->rows / tile_rows;
    if (args->offsets == NULL) {
        return args->n * ((args->rows + tile_rows - 1) / tile_rows);
    }
    return full + (args->n < args->rows ? args->n : args->rows);
}

/* Rows that the matrices have together, if they have as many as any others. */
static inline uint32_t groups_rows(const k_cuda_groups_t *args)
{
    const uint32_t all = args->all_n > args->n ? args->all_n : args->n;
    const uint64_t rows = (uint64_t)args->rows * args->n;
    return (uint32_t)(args->offsets == NULL ? rows : (rows + all - 1) / all);
}

/* Of one, rounded up: what tiles are sized by. */
static inline uint32_t groups_mean_rows(const k_cuda_groups_t *args)
{
    return (groups_rows(args) + args->n - 1) / args->n;
}

int k_cuda_groups_mma(const k_cuda_groups_t *args, const linear_device_t *device,
                      cudaStream_t stream);
/* What TMA copies must lie in order: args->x and row_of become those of `gathered`, if need be. */
int k_cuda_groups_gather(k_cuda_groups_t *args, const linear_device_t *device, cudaStream_t stream);
/* Weights with scales. */
int k_cuda_groups_scaled(const k_cuda_groups_t *args, const linear_device_t *device,
                         cudaStream_t stream);
int k_cuda_groups_wgmma(const k_cuda_groups_t *args, const linear_device_t *device,
                        cudaStream_t stream);

#ifdef __cplusplus
}
#endif
