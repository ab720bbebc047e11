/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of the device and pinned memory of the host. Device memory ends at a guard page (exactly, if
 * its size is a multiple of 256), begins as NaN, and lies in a memfd, so that an IPC handle is a
 * process and a descriptor in it.
 */
#include "tests/cuda_emu/emu_memory_map.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>

#include "tests/cuda_emu/emu_fiber.h"
#include "tests/cuda_emu/emu_machine.h"
#include "tests/cuda_emu/emu_runtime.h"
#include "tests/cuda_emu/emu_shadow.h"
#include "tests/cuda_emu/emu_shared.h"

namespace emu
{

constexpr size_t page = 4096;
constexpr size_t alignment = 256; /* of cudaMalloc */

static std::map<uintptr_t, Allocation> allocations; /* by base */
static size_t device_used;
static uint64_t allocs_until_failure;

void add_allocation(const Allocation &allocation)
{
    allocations[reinterpret_cast<uintptr_t>(allocation.base)] = allocation;
}

void remove_allocation(const void *base)
{
    allocations.erase(reinterpret_cast<uintptr_t>(base));
}

const Allocation *find_allocation(const void *address)
{
    auto next = allocations.upper_bound(reinterpret_cast<uintptr_t>(address));
    if (next == allocations.begin()) {
        return nullptr;
    }
    const Allocation &found = std::prev(next)->second;
    size_t offset = static_cast<size_t>(static_cast<const uint8_t *>(address) - found.base);
    return offset < found.bytes ? &found : nullptr;
}

const Allocation *find_allocation_before(const void *address)
{
    auto next = allocations.upper_bound(reinterpret_cast<uintptr_t>(address));
    if (next == allocations.begin()) {
        return nullptr;
    }
    const Allocation &found = std::prev(next)->second;
    const uint8_t *end = found.base + found.bytes;
    return static_cast<size_t>(static_cast<const uint8_t *>(address) - end) < page ? &found
                                                                                   : nullptr;
}

bool is_pageable(const void *address)
{
    return find_allocation(address) == nullptr;
}

static bool map_memory(Allocation &allocation, int fd, size_t rounded)
{
    size_t mapped = (rounded + page - 1) / page * page;
    void *map =
        mmap(nullptr, mapped + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        return false;
    }
    if (mmap(map, mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        munmap(map, mapped + page);
        return false;
    }
    allocation.map = static_cast<uint8_t *>(map);
    allocation.map_bytes = mapped + page;
    allocation.base = allocation.map + mapped - rounded;
    allocation.fd = fd;
    return true;
}

static void unmap(const Allocation &allocation)
{
    munmap(allocation.map, allocation.map_bytes);
    if (allocation.fd >= 0) {
        close(allocation.fd);
    }
}

static bool should_fail(void)
{
    return allocs_until_failure > 0 && --allocs_until_failure == 0;
}

bool take_device_memory(size_t bytes)
{
    if (should_fail() || bytes > device_limits().memory_bytes - device_used) {
        return false;
    }
    device_used += bytes;
    return true;
}

void give_device_memory(size_t bytes)
{
    device_used -= bytes;
}

static cudaError_t allocate(void **pointer, size_t bytes, Space space)
{
    if (pointer == nullptr) {
        return cudaErrorInvalidValue;
    }
    if (space == Space::device && !take_device_memory(bytes)) {
        return cudaErrorMemoryAllocation;
    }
    size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    Allocation allocation = {nullptr, bytes, space, nullptr, 0, -1};
    int fd = memfd_create("cuda_emu", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>((rounded + page - 1) / page * page)) != 0 ||
        !map_memory(allocation, fd, rounded)) {
        if (fd >= 0) {
            close(fd);
        }
        if (space == Space::device) {
            give_device_memory(bytes);
        }
        return cudaErrorMemoryAllocation;
    }
    if (space == Space::device) {
        memset(allocation.base, poison, rounded);
    }
    add_allocation(allocation);
    *pointer = allocation.base;
    return cudaSuccess;
}

static cudaError_t release(void *pointer, Space space)
{
    if (pointer == nullptr) {
        return cudaSuccess;
    }
    const Allocation *found = find_allocation(pointer);
    if (found == nullptr || found->base != pointer || found->space != space) {
        return cudaErrorInvalidValue;
    }
    cudaError_t error = drain_all(); /* as cudaFree waits for the device */
    Allocation freed = *found;
    if (space == Space::device) {
        give_device_memory(freed.bytes);
    }
    shadow_forget(freed.base);
    remove_allocation(pointer);
    unmap(freed);
    return error;
}

/* ---- bad addresses -------------------------------------------------------------------------- */

static const void *bad_address;
static bool was_overflow;
static uint8_t landing_stack[16 << 10] __attribute__((aligned(16)));

/* Runs on landing_stack after the signal handler has returned. */
static void land(void)
{
    const Allocation *near = find_allocation_before(bad_address);
    if (was_overflow) {
        fail(cudaErrorLaunchFailure, "its stack overflows (64 KiB): too many local variables");
    }
    if (near != nullptr) {
        fail(cudaErrorIllegalAddress, "access at byte %td of an allocation of %zu bytes",
             static_cast<const uint8_t *>(bad_address) - near->base, near->bytes);
    }
    fail(cudaErrorIllegalAddress, "access to %p, which is no memory of the device", bad_address);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    if (now == nullptr) {
        signal(number, SIG_DFL); /* not ours: happens again, and ends the process */
        return;
    }
    bad_address = info->si_addr;
    was_overflow = emu_stack_guards(bad_address);
    greg_t *registers = static_cast<ucontext_t *>(context)->uc_mcontext.gregs;
    registers[REG_RIP] = reinterpret_cast<greg_t>(land);
    registers[REG_RSP] = reinterpret_cast<greg_t>(landing_stack + sizeof(landing_stack) - 8);
}

/* Signals cannot be handled on a stack that has just overflown. */
static void use_signal_stack(void)
{
    static thread_local uint8_t memory[16 << 10];
    stack_t stack = {};
    stack.ss_sp = memory;
    stack.ss_size = sizeof(memory);
    sigaltstack(&stack, nullptr);
}

BadAccessCatcher::BadAccessCatcher()
{
    struct sigaction action = {};
    use_signal_stack();
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &former_[0]);
    sigaction(SIGBUS, &action, &former_[1]);
}

BadAccessCatcher::~BadAccessCatcher()
{
    sigaction(SIGSEGV, &former_[0], nullptr);
    sigaction(SIGBUS, &former_[1], nullptr);
}

} // namespace emu

using namespace emu;

void emu_fail_alloc(uint64_t n)
{
    Entry entry;
    allocs_until_failure = n;
}

cudaError_t cudaMalloc(void **pointer, size_t bytes)
{
    Entry entry;
    cudaError_t error = sticky_error();
    error = error == cudaSuccess ? check_no_capture() : error;
    return give(error == cudaSuccess ? allocate(pointer, bytes, Space::device) : error);
}

cudaError_t cudaFree(void *pointer)
{
    Entry entry;
    cudaError_t error = check_no_capture();
    return give(error == cudaSuccess ? release(pointer, Space::device) : error);
}

cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned)
{
    Entry entry;
    return give(sticky_error() == cudaSuccess ? allocate(pointer, bytes, Space::pinned)
                                              : sticky_error());
}

cudaError_t cudaMallocHost(void **pointer, size_t bytes)
{
    return cudaHostAlloc(pointer, bytes, 0);
}

cudaError_t cudaFreeHost(void *pointer)
{
    Entry entry;
    return give(release(pointer, Space::pinned));
}

cudaError_t cudaHostRegister(void *pointer, size_t bytes, unsigned)
{
    Entry entry;
    if (find_allocation(pointer) != nullptr) {
        return give(cudaErrorHostMemoryAlreadyRegistered);
    }
    add_allocation({static_cast<uint8_t *>(pointer), bytes, Space::mapped, nullptr, 0, -1});
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *pointer)
{
    Entry entry;
    const Allocation *found = find_allocation(pointer);
    if (found == nullptr || found->space != Space::mapped) {
        return give(cudaErrorHostMemoryNotRegistered);
    }
    cudaError_t error = drain_all();
    shadow_forget(pointer);
    remove_allocation(pointer);
    return give(error);
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned)
{
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    Entry entry;
    *total = device_limits().memory_bytes;
    *free_bytes = *total - device_used;
    return give(sticky_error());
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer)
{
    Entry entry;
    const Allocation *found = find_allocation(pointer);
    *attributes = {};
    attributes->type = found == nullptr                ? cudaMemoryTypeUnregistered
                       : found->space == Space::device ? cudaMemoryTypeDevice
                                                       : cudaMemoryTypeHost;
    attributes->devicePointer = const_cast<void *>(pointer);
    attributes->hostPointer =
        attributes->type == cudaMemoryTypeDevice ? nullptr : const_cast<void *>(pointer);
    return cudaSuccess;
}

/* ---- between processes ---------------------------------------------------------------------- */

namespace
{
struct Handle {
    pid_t process;
    int fd;
    size_t bytes;
};
static_assert(sizeof(Handle) <= sizeof(cudaIpcMemHandle_t));
} // namespace

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *pointer)
{
    Entry entry;
    const Allocation *found = find_allocation(pointer);
    if (found == nullptr || found->space != Space::device || found->base != pointer) {
        return give(cudaErrorInvalidValue);
    }
    Handle mine = {getpid(), found->fd, found->bytes};
    memset(handle, 0, sizeof(*handle));
    memcpy(handle, &mine, sizeof(mine));
    return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void **pointer, cudaIpcMemHandle_t handle, unsigned)
{
    Entry entry;
    Handle theirs;
    memcpy(&theirs, &handle, sizeof(theirs));
    if (theirs.process == getpid()) {
        return give(cudaErrorDeviceUninitialized); /* as CUDA: not in the process that made it */
    }
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", theirs.process, theirs.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    size_t rounded = (theirs.bytes + alignment - 1) / alignment * alignment;
    Allocation allocation = {nullptr, theirs.bytes, Space::device, nullptr, 0, -1};
    if (fd < 0 || !map_memory(allocation, fd, rounded)) {
        return give(cudaErrorMapBufferObjectFailed);
    }
    add_allocation(allocation);
    *pointer = allocation.base;
    return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void *pointer)
{
    Entry entry;
    const Allocation *found = find_allocation(pointer);
    if (found == nullptr || found->base != pointer) {
        return give(cudaErrorInvalidValue);
    }
    cudaError_t error = drain_all();
    Allocation closed = *found;
    shadow_forget(closed.base);
    remove_allocation(pointer);
    unmap(closed);
    return give(error);
}
