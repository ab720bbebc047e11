/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver's "Virtual Memory Management" as far as base/device_cuda_vmm.c calls it. An allocation is
 * a memfd, so that its descriptor can be given to another process, which maps the same memory; addresses
 * are reserved without access, and have none until it is set.
 */
#include <cuda.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <map>

#include "tests/cuda_emu/emu_driver.h"
#include "tests/cuda_emu/emu_memory_map.h"
#include "tests/cuda_emu/emu_runtime.h"
#include "tests/cuda_emu/emu_shadow.h"
#include "tests/cuda_emu/emu_shared.h"

namespace emu
{

constexpr size_t vmm_page = size_t{2} << 20; /* as GPUs have it */

/* An allocation of this process: it is freed with the last handle and mapping of it. */
struct Owned {
    size_t bytes;
    int users;
};

static std::map<ino_t, Owned> owned;
static std::map<CUdeviceptr, ino_t> mappings;

static ino_t file_of(int fd)
{
    struct stat file;
    return fstat(fd, &file) == 0 ? file.st_ino : 0;
}

static void use(ino_t file, int users)
{
    auto found = owned.find(file);
    if (found != owned.end() && (found->second.users += users) == 0) {
        give_device_memory(found->second.bytes);
        owned.erase(found);
    }
}

static CUresult get_granularity(size_t *bytes, const CUmemAllocationProp *,
                                CUmemAllocationGranularity_flags)
{
    *bytes = vmm_page;
    return CUDA_SUCCESS;
}

static int fd_of(CUmemGenericAllocationHandle handle)
{
    return static_cast<int>(handle) - 1;
}

/* Begins as NaN, as all memory of the device. */
static bool poison_file(int fd, size_t bytes)
{
    void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        return false;
    }
    memset(at, poison, bytes);
    munmap(at, bytes);
    return true;
}

static CUresult get_attribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    if (!is_device(device) ||
        attribute != CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *value = 1;
    return CUDA_SUCCESS;
}

static CUresult create(CUmemGenericAllocationHandle *handle, size_t bytes,
                       const CUmemAllocationProp *prop, unsigned long long)
{
    if (bytes == 0 || bytes % vmm_page != 0 ||
        prop->requestedHandleTypes != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    Entry entry;
    if (!take_device_memory(bytes)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    const int fd = memfd_create("cuda_emu_vmm", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0 || !poison_file(fd, bytes)) {
        give_device_memory(bytes);
        if (fd >= 0) {
            close(fd);
        }
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    owned[file_of(fd)] = {bytes, 1};
    *handle = static_cast<CUmemGenericAllocationHandle>(fd) + 1;
    return CUDA_SUCCESS;
}

static CUresult release(CUmemGenericAllocationHandle handle)
{
    Entry entry;
    use(file_of(fd_of(handle)), -1);
    return close(fd_of(handle)) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult export_handle(void *out, CUmemGenericAllocationHandle handle,
                              CUmemAllocationHandleType type, unsigned long long)
{
    const int fd = type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ? dup(fd_of(handle)) : -1;
    memcpy(out, &fd, sizeof(fd));
    return fd >= 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult import_handle(CUmemGenericAllocationHandle *handle, void *shared,
                              CUmemAllocationHandleType type)
{
    struct stat file;
    const int theirs = static_cast<int>(reinterpret_cast<intptr_t>(shared));
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || fstat(theirs, &file) != 0 ||
        !S_ISREG(file.st_mode) || file.st_size == 0 || file.st_size % vmm_page != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    Entry entry;
    const int fd = dup(theirs);
    if (fd < 0) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    use(file.st_ino, 1);
    *handle = static_cast<CUmemGenericAllocationHandle>(fd) + 1;
    return CUDA_SUCCESS;
}

static CUresult reserve(CUdeviceptr *out, size_t bytes, size_t, CUdeviceptr, unsigned long long)
{
    /* With a page behind it that stays inaccessible. */
    void *at = mmap(nullptr, bytes + vmm_page, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = reinterpret_cast<CUdeviceptr>(at);
    return CUDA_SUCCESS;
}

static CUresult unreserve(CUdeviceptr address, size_t bytes)
{
    return munmap(reinterpret_cast<void *>(address), bytes + vmm_page) == 0
               ? CUDA_SUCCESS
               : CUDA_ERROR_INVALID_VALUE;
}

static CUresult map(CUdeviceptr address, size_t bytes, size_t offset,
                    CUmemGenericAllocationHandle handle, unsigned long long)
{
    Entry entry;
    struct stat file;
    void *at = reinterpret_cast<void *>(address);
    if (offset != 0 || fstat(fd_of(handle), &file) != 0 ||
        static_cast<size_t>(file.st_size) < bytes) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (mmap(at, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, fd_of(handle), 0) == MAP_FAILED) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    add_allocation({static_cast<uint8_t *>(at), bytes, Space::device, nullptr, 0, -1});
    mappings[address] = file.st_ino;
    use(file.st_ino, 1);
    return CUDA_SUCCESS;
}

static CUresult unmap(CUdeviceptr address, size_t bytes)
{
    Entry entry;
    void *at = reinterpret_cast<void *>(address);
    shadow_forget(at);
    remove_allocation(at);
    use(mappings[address], -1);
    mappings.erase(address);
    return mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
                0) == MAP_FAILED
               ? CUDA_ERROR_OUT_OF_MEMORY
               : CUDA_SUCCESS;
}

static CUresult set_access(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access,
                           size_t count)
{
    const bool is_whole = count == 1 && access->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    return is_whole &&
                   mprotect(reinterpret_cast<void *>(address), bytes, PROT_READ | PROT_WRITE) == 0
               ? CUDA_SUCCESS
               : CUDA_ERROR_INVALID_VALUE;
}

namespace
{
struct Function {
    const char *name;
    void *function;
};
#define FUNCTION(name, function) {name, reinterpret_cast<void *>(function)}
const Function functions[] = {
    FUNCTION("cuDeviceGetAttribute", get_attribute),
    FUNCTION("cuMemGetAllocationGranularity", get_granularity),
    FUNCTION("cuMemCreate", create),
    FUNCTION("cuMemRelease", release),
    FUNCTION("cuMemExportToShareableHandle", export_handle),
    FUNCTION("cuMemImportFromShareableHandle", import_handle),
    FUNCTION("cuMemAddressReserve", reserve),
    FUNCTION("cuMemAddressFree", unreserve),
    FUNCTION("cuMemMap", map),
    FUNCTION("cuMemUnmap", unmap),
    FUNCTION("cuMemSetAccess", set_access),
};
} // namespace

void *find_vmm_function(const char *name)
{
    for (const Function &row : functions) {
        if (strcmp(row.name, name) == 0) {
            return row.function;
        }
    }
    return nullptr;
}

} // namespace emu
