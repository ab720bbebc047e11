/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_launch: starting a kernel from host code, and letting it start before the one in front of
 * it in the stream has ended. Part of simt.h.
 */
#pragma once

typedef struct simt_grid {
    dim3 grid = {};
    dim3 block = {};
    size_t shared_bytes = 0; /* of SIMT_DYN_SHARED; above 48 KiB is fine */
    cudaStream_t stream = nullptr;
    /*
     * Programmatic dependent launch: the kernel may start while the one before it in the stream
     * still runs. A thread of every block, also of one that ends early, must call
     * simt_wait_previous(): before the block reads what that one wrote or writes what it reads, and
     * so that whoever overlaps this kernel comes after that one too. Devices before Hopper start
     * it in the usual order.
     */
    bool overlaps_previous = false;
} simt_grid_t;

/*
 * Launches kernel<...> with the arguments cast to its parameters' types: a literal 0 fits a float.
 *   simt_launch(rows_kernel<float, 4>, {.grid = {n}, .block = {128}, .stream = s}, x, y, n)
 * Returns cudaError_t: the launch's own failure, never that of the kernel. A variadic macro, so
 * that the kernel's name is known to error reports.
 */
#define simt_launch(...) simt_launch_named(#__VA_ARGS__, __VA_ARGS__)

template <class... P, class... A>
cudaError_t simt_launch_named(const char *text, void (*kernel)(P...), const simt_grid_t &at,
                              A... args);

/* Host: the current device is compute capability 9.0, so that kernels of SIMT_HOPPER run on it. */
inline bool simt_is_hopper(void)
{
    int device = 0, major = 0, minor = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
        return false;
    }
    return major == 9 && minor == 0;
}

/*
 * In a kernel launched with overlaps_previous: waits until all earlier kernels have ended and what
 * they wrote is seen. Harmless in any other kernel.
 */
SIMT_FN void simt_wait_previous(void);
/* Lets the next kernel of the stream begin once every block has called this or ended. */
SIMT_FN void simt_launch_next(void);

#ifdef __CUDACC__
template <class... P, class... A>
cudaError_t simt_launch_named(const char *text, void (*kernel)(P...), const simt_grid_t &at,
                              A... args)
{
    (void)text;
    /* Above 48 KiB together with the kernel's arrays it must be asked for. */
    if (at.shared_bytes > 0) {
        cudaError_t error = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)at.shared_bytes);
        if (error != cudaSuccess) {
            return error;
        }
    }
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;

    cudaLaunchConfig_t config = {};
    config.gridDim = at.grid;
    config.blockDim = at.block;
    config.dynamicSmemBytes = at.shared_bytes;
    config.stream = at.stream;
    config.attrs = &attribute;
    config.numAttrs = at.overlaps_previous ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}
#endif
