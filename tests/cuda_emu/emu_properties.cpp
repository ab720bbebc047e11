/* SPDX-License-Identifier: Apache-2.0 */
/* The devices: what they say of themselves, and the driver's functions that are looked up by name. */
#include <cuda.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "tests/cuda_emu/emu_driver.h"
#include "tests/cuda_emu/emu_runtime.h"

using namespace emu;

static int current_device; /* of all threads: a process uses one */

bool emu::is_device(int device)
{
    return device >= 0 && device < device_limits().devices;
}

bool emu::is_told_to_fail(void)
{
    const char *fault = getenv("WEFT_EMU_FAULT");
    return fault != nullptr &&
           access((fault + ("." + std::to_string(current_device))).c_str(), F_OK) == 0;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    Entry entry;
    *count = device_limits().devices;
    return give(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int *device)
{
    Entry entry;
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    Entry entry;
    if (!is_device(device)) {
        return give(cudaErrorInvalidDevice);
    }
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    Entry entry;
    if (!is_device(device)) {
        return give(cudaErrorInvalidDevice);
    }
    const Limits &limits = device_limits();
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
        *value = limits.capability / 10;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = limits.capability % 10;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = limits.multiprocessors;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = static_cast<int>(limits.shared_bytes + 1024);
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = static_cast<int>(limits.shared_bytes);
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = 48 << 10;
        break;
    case cudaDevAttrMaxThreadsPerBlock:
        *value = 1024;
        break;
    case cudaDevAttrWarpSize:
        *value = 32;
        break;
    case cudaDevAttrL2CacheSize:
        *value = 50 << 20;
        break;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanMapHostMemory:
        *value = 1;
        break;
    default:
        *value = 0;
        break;
    }
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    Entry entry;
    if (!is_device(device)) {
        return give(cudaErrorInvalidDevice);
    }
    const Limits &limits = device_limits();
    memset(properties, 0, sizeof(*properties));
    strcpy(properties->name, "emulated by cuda_emu");
    properties->uuid.bytes[0] = static_cast<char>(device + 1);
    properties->totalGlobalMem = limits.memory_bytes;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = limits.shared_bytes;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->major = limits.capability / 10;
    properties->minor = limits.capability % 10;
    properties->multiProcessorCount = limits.multiprocessors;
    properties->l2CacheSize = 50 << 20;
    properties->unifiedAddressing = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaDeviceReset(void)
{
    emu_reset();
    return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned,
                                             unsigned long long,
                                             enum cudaDriverEntryPointQueryResult *result)
{
    *function = find_driver_function(symbol);
    if (result != nullptr) {
        *result =
            *function != nullptr ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    }
    return give(*function != nullptr ? cudaSuccess : cudaErrorSymbolNotFound);
}
