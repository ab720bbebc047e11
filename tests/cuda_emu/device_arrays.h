/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device_arrays: memory of the GPU, or of the emulation that stands for one, for tests of CUDA ops.
 * Every array is freed by device_free_all(); cuda_download() reads one.
 */
#pragma once

#include "kernels/cuda/k_cuda.h"
#include "tests/cuda_emu/cuda_check.h"
#include "tests/kernels/kernels_support.h"

enum { DEVICE_MAX_ARRAYS = 4096 };

static void *device_arrays[DEVICE_MAX_ARRAYS];
static size_t n_device_arrays;

/* Device memory with the bytes of `from`, or undefined when it is NULL. */
static inline void *device_array(const void *from, size_t bytes)
{
    assert_true(n_device_arrays < DEVICE_MAX_ARRAYS);
    void *at = cuda_upload(from, bytes);
    device_arrays[n_device_arrays++] = at;
    return at;
}

static inline void device_free_all(void)
{
    while (n_device_arrays > 0) {
        assert_cuda(cudaFree(device_arrays[--n_device_arrays]));
    }
}

/* On a stream of its own, with scratch memory of which the contents are undefined. So few
 * multiprocessors that blocks have to take several tiles. */
static inline k_cuda_launch_t device_launch(size_t scratch_bytes)
{
    static cudaStream_t stream;
    if (stream == NULL) {
        assert_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    }
    k_cuda_launch_t at = {.stream = stream, .multiprocessors = 1};
    if (scratch_bytes > 0) {
        at.scratch = device_array(NULL, scratch_bytes);
        at.scratch_bytes = scratch_bytes;
        assert_cuda(cudaMemset(at.scratch, 0xA5, scratch_bytes));
        assert_cuda(cudaDeviceSynchronize());
    }
    return at;
}

/* bf16 of n floats; the floats become what was rounded. Free with test_free. */
static inline uint16_t *bf16_of(float *x, size_t n)
{
    uint16_t *rounded = test_malloc((n + 1) * sizeof(*rounded));
    for (size_t i = 0; i < n; i++) {
        rounded[i] = k_f32_to_bf16(x[i]);
        x[i] = k_bf16_to_f32(rounded[i]);
    }
    return rounded;
}
