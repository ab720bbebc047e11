/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_check: what tests of kernels share. They run emulated and, in a build with nvcc, on a GPU.
 *
 *   int main(void) { cuda_skip_without_device(); … return cmocka_run_group_tests(…); }
 */
#pragma once

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda_emu/emu_control.h"
#include "tests/support/check.h"

#define assert_cuda(call)                                                                          \
    do {                                                                                           \
        cudaError_t cuda_error = (call);                                                           \
        if (cuda_error != cudaSuccess) {                                                           \
            fail_msg("%s: %s %s", #call, cudaGetErrorName(cuda_error), emu_fault());               \
        }                                                                                          \
    } while (0)

static inline void cuda_skip_without_device(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        puts("skipped: no CUDA device");
        exit(77);
    }
}

/* Compute capability 9.0, as simt_is_hopper(). */
static inline bool cuda_is_hopper(void)
{
    int major = 0, minor = 0;
    return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) == cudaSuccess &&
           major == 9 && minor == 0;
}

/* Device memory with a copy of `bytes` at host, or undefined contents when host is NULL. */
static inline void *cuda_upload(const void *host, size_t bytes)
{
    void *device = NULL;
    assert_cuda(cudaMalloc(&device, bytes));
    if (host != NULL) {
        assert_cuda(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
        assert_cuda(cudaDeviceSynchronize()); /* it returns once the bytes are staged */
    }
    return device;
}

/* Waits for all work; a copy that the caller frees with test_free. */
static inline void *cuda_download(const void *device, size_t bytes)
{
    void *host = test_malloc(bytes);
    assert_cuda(cudaDeviceSynchronize());
    assert_cuda(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
    return host;
}
