/* SPDX-License-Identifier: Apache-2.0 */
#include "base/device_cuda_vmm.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <unistd.h>

#include "base/compiler.h"

/* FN(member, symbol, CUDA version it came with) */
#define DRIVER_FUNCTIONS(FN)                                                                       \
    FN(attribute, cuDeviceGetAttribute, 2000)                                                      \
    FN(granularity, cuMemGetAllocationGranularity, 10020)                                          \
    FN(create, cuMemCreate, 10020)                                                                 \
    FN(release, cuMemRelease, 10020)                                                               \
    FN(reserve, cuMemAddressReserve, 10020)                                                        \
    FN(unreserve, cuMemAddressFree, 10020)                                                         \
    FN(map, cuMemMap, 10020)                                                                       \
    FN(unmap, cuMemUnmap, 10020)                                                                   \
    FN(set_access, cuMemSetAccess, 10020)                                                          \
    FN(export, cuMemExportToShareableHandle, 10020)                                                \
    FN(import, cuMemImportFromShareableHandle, 10020)

typedef struct driver {
#define FN(member, symbol, version) weft_typeof(&symbol) member;
    DRIVER_FUNCTIONS(FN)
#undef FN
    bool is_there;
} driver_t;

static driver_t driver;
static pthread_once_t driver_once = PTHREAD_ONCE_INIT;

static bool find(const char *symbol, unsigned version, void **function_out)
{
    enum cudaDriverEntryPointQueryResult result;
    return cudaGetDriverEntryPointByVersion(symbol, function_out, version, cudaEnableDefault,
                                            &result) == cudaSuccess &&
           result == cudaDriverEntryPointSuccess && *function_out != NULL;
}

static void find_driver(void)
{
    driver.is_there = true;
#define FN(member, symbol, version)                                                                \
    driver.is_there = driver.is_there && find(#symbol, version, (void **)&driver.member);
    DRIVER_FUNCTIONS(FN)
#undef FN
    (void)cudaGetLastError(); /* what an older driver has not is no failure of what comes next */
}

/* Whether NICs can be let read and write memory that is made by cuMemCreate. */
static bool can_rdma(int index)
{
    int can = 0;
    return driver.attribute(&can, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED,
                            index) == CUDA_SUCCESS &&
           can != 0;
}

static CUmemAllocationProp properties(int index)
{
    return (CUmemAllocationProp){
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = index},
        .allocFlags = {.gpuDirectRDMACapable = can_rdma(index)},
    };
}

/* Sets mem->mapped: mem->bytes in whole pages of the device. */
static bool measure(int index, weft_mem_t *mem)
{
    const CUmemAllocationProp prop = properties(index);
    size_t page = 0;
    if (driver.granularity(&page, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED) != CUDA_SUCCESS ||
        page == 0) {
        return false;
    }
    const size_t pages = mem->bytes / page + (mem->bytes % page != 0 || mem->bytes == 0);
    mem->mapped = pages * page;
    return true;
}

/* Takes addresses for the allocation and lets the device use them. */
static CUresult map(int index, CUmemGenericAllocationHandle handle, weft_mem_t *mem)
{
    const CUmemAccessDesc access = {
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = index},
        .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    CUdeviceptr at = 0;
    CUresult result = driver.reserve(&at, mem->mapped, 0, 0, 0);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    result = driver.map(at, mem->mapped, 0, handle, 0);
    if (result == CUDA_SUCCESS) {
        result = driver.set_access(at, mem->mapped, &access, 1);
        if (result != CUDA_SUCCESS) {
            (void)driver.unmap(at, mem->mapped);
        }
    }
    if (result != CUDA_SUCCESS) {
        (void)driver.unreserve(at, mem->mapped);
        return result;
    }
    mem->addr = (void *)(uintptr_t)at;
    mem->is_mapping = true;
    return CUDA_SUCCESS;
}

static weft_status_t status_of(CUresult result)
{
    return result == CUDA_SUCCESS               ? WEFT_OK
           : result == CUDA_ERROR_OUT_OF_MEMORY ? WEFT_ERR_NO_MEMORY
                                                : WEFT_ERR_UNSUPPORTED;
}

weft_status_t weft_device_cuda_vmm_alloc(int index, weft_mem_t *mem)
{
    CUmemGenericAllocationHandle handle;
    const size_t mapped = mem->mapped;
    pthread_once(&driver_once, find_driver);
    if (!driver.is_there || !measure(index, mem)) {
        return WEFT_ERR_UNSUPPORTED;
    }
    const CUmemAllocationProp prop = properties(index);
    CUresult result = driver.create(&handle, mem->mapped, &prop, 0);
    if (result == CUDA_SUCCESS) {
        result = driver.export(&mem->fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
        mem->fd = result == CUDA_SUCCESS ? mem->fd : -1;
        if (result == CUDA_SUCCESS) {
            result = map(index, handle, mem);
        }
        (void)driver.release(handle); /* the mapping keeps the memory */
    }
    if (result != CUDA_SUCCESS) {
        if (mem->fd >= 0) {
            close(mem->fd);
            mem->fd = -1;
        }
        mem->mapped = mapped;
    }
    return status_of(result);
}

weft_status_t weft_device_cuda_vmm_import(int index, int fd, weft_mem_t *mem)
{
    CUmemGenericAllocationHandle handle;
    pthread_once(&driver_once, find_driver);
    if (!driver.is_there || !measure(index, mem)) {
        return WEFT_ERR_UNSUPPORTED;
    }
    if (mem->bytes == 0 ||
        driver.import(&handle, (void *)(uintptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) !=
            CUDA_SUCCESS) {
        return WEFT_ERR_MALFORMED;
    }
    const CUresult result = map(index, handle, mem); /* refuses more than there is */
    (void)driver.release(handle);
    return result == CUDA_SUCCESS || result == CUDA_ERROR_OUT_OF_MEMORY ? status_of(result)
                                                                        : WEFT_ERR_MALFORMED;
}

void weft_device_cuda_vmm_free(weft_mem_t *mem)
{
    const CUdeviceptr at = (CUdeviceptr)(uintptr_t)mem->addr;
    if (mem->fd >= 0) {
        /* As cudaFree does; unmapping waits for nothing. Not for what was imported: its user knows
           when the last copy ended, and a device must not be waited for while a graph is recorded. */
        (void)cudaDeviceSynchronize();
    }
    (void)driver.unmap(at, mem->mapped);
    (void)driver.unreserve(at, mem->mapped);
    if (mem->fd >= 0) {
        close(mem->fd);
    }
}
