/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/linear/cuda_groups.h"

#include "kernels/cuda/cuda_recode.h"
#include "kernels/cuda/linear/cuda_groups_priv.h"

#define FEW_ROWS 8 /* of a matrix: up to so many by mma.sync where weights have scales */

/*
 * TMA can fetch x. Columns behind a row's end are multiplied by weights of zero: they must be of the
 * row, or none.
 */
static bool x_fits(const k_cuda_groups_t *args)
{
    const bool has_x = args->row_of == NULL || args->gathered != NULL;
    const bool ends_whole = args->x_step == 0 || args->w.columns % LINEAR_K_BLOCK == 0;
    return has_x && ends_whole && args->x_stride % 8 == 0 && args->x_step % 8 == 0 &&
           ((uintptr_t)args->x | (uintptr_t)args->gathered) % 16 == 0;
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
    const bool is_scaled = linear_has_scales(args->w.dtype);
    const bool can = args->path != K_CUDA_LINEAR_MMA && device.is_hopper && x_fits(args) &&
                     (is_scaled || args->w.dtype == K_BF16);
    if (!can && args->path == K_CUDA_LINEAR_WGMMA) {
        return cudaErrorNotSupported;
    }
    if (args->rows == 0 || args->n == 0) {
        return cudaSuccess;
    }
    if (can && is_scaled &&
        (args->path == K_CUDA_LINEAR_WGMMA || groups_mean_rows(args) > FEW_ROWS)) {
        return k_cuda_groups_scaled(args, &device, stream);
    }
    return can && !is_scaled ? k_cuda_groups_wgmma(args, &device, stream)
                             : k_cuda_groups_mma(args, &device, stream);
}

/* How many weights from the first on lie equally far apart, and are of one type. */
static uint32_t run_of(const k_weight_t *weights, uint32_t n, size_t *step_out)
{
    const char *data = weights[0].data;
    const char *second = n > 1 ? weights[1].data : NULL;
    const size_t step = second > data ? (size_t)(second - data) : 0;
    uint32_t count = 1;
    while (step > 0 && count < n && count < GROUPS_MAX &&
           weights[count].dtype == weights[0].dtype &&
           weights[count].data == (const void *)(data + count * step)) {
        count++;
    }
    *step_out = step;
    return count;
}

int k_cuda_groups_of(const k_weight_t *weights, uint32_t n, const k_cuda_groups_t *groups,
                     cudaStream_t stream)
{
    int error = cudaSuccess;
    for (uint32_t first = 0; first < n && error == cudaSuccess;) {
        const k_weight_t *w = &weights[first];
        k_cuda_groups_t run = *groups;
        run.w = (k_cuda_weight_t){.dtype = cuda_recode_type(w->dtype),
                                  .rows = w->rows,
                                  .columns = w->columns,
                                  .data = w->data};
        run.n = run_of(w, n - first, &run.w_step);
        run.x = (const uint16_t *)groups->x + first * groups->x_step;
        run.y = (uint16_t *)groups->y + first * groups->y_step;
        run.offsets = groups->offsets == NULL ? NULL : groups->offsets + first;
        run.bias = groups->bias == NULL ? NULL : groups->bias + (size_t)first * w->rows;
        run.all_n = groups->all_n > n ? groups->all_n : n;
        error = k_cuda_groups(&run, stream);
        first += run.n;
    }
    return error;
}
