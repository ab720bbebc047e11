/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/cuda_groups.h"

#include "kernels/cuda/cuda_groups_priv.h"

/* Columns behind a row's end are multiplied by weights of zero: they must be of the row, or none. */
static bool wgmma_fits(const k_cuda_groups_t *args)
{
    const bool has_x = args->row_of == NULL || args->gathered != NULL;
    const bool ends_whole = args->x_step == 0 || args->w.columns % LINEAR_K_BLOCK == 0;
    return args->w.dtype == K_BF16 && has_x && ends_whole && args->x_stride % 8 == 0 &&
           args->x_step % 8 == 0 && ((uintptr_t)args->x | (uintptr_t)args->gathered) % 16 == 0;
}

int k_cuda_groups(const k_cuda_groups_t *args, cudaStream_t stream)
{
    linear_device_t device;
    if (args->w.is_gate_up || args->n > GROUPS_MAX) {
        return cudaErrorInvalidValue;
    }
    const int error = linear_current_device(&device);
    if (error != cudaSuccess) {
        return error;
    }
    const bool by_wgmma = args->path != K_CUDA_LINEAR_MMA && device.is_hopper && wgmma_fits(args);
    if (!by_wgmma && args->path == K_CUDA_LINEAR_WGMMA) {
        return cudaErrorNotSupported;
    }
    if (args->rows == 0 || args->n == 0) {
        return cudaSuccess;
    }
    return by_wgmma ? k_cuda_groups_wgmma(args, &device, stream)
                    : k_cuda_groups_mma(args, &device, stream);
}
