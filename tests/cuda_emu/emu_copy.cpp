/* SPDX-License-Identifier: Apache-2.0 */
/* Copies and fills. Pageable host memory is read at the call, as the driver stages it. */
#include <cstring>
#include <memory>

#include "tests/cuda_emu/emu_machine.h"
#include "tests/cuda_emu/emu_runtime.h"

namespace emu
{

static bool is_device(const void *address)
{
    const Allocation *found = find_allocation(address);
    return found != nullptr && found->space == Space::device;
}

/* [address, + bytes) within one allocation, if it begins in one. */
static bool is_whole(const void *address, size_t bytes)
{
    const Allocation *found = find_allocation(address);
    return found == nullptr || bytes <= static_cast<size_t>(found->base + found->bytes -
                                                            static_cast<const uint8_t *>(address));
}

static cudaError_t check_sides(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind)
{
    bool to_device = is_device(dst), from_device = is_device(src);
    bool fits = true;
    switch (kind) {
    case cudaMemcpyHostToHost:
        fits = !to_device && !from_device;
        break;
    case cudaMemcpyHostToDevice:
        fits = to_device && !from_device;
        break;
    case cudaMemcpyDeviceToHost:
        fits = !to_device && from_device;
        break;
    case cudaMemcpyDeviceToDevice:
        fits = to_device && from_device;
        break;
    case cudaMemcpyDefault:
        break;
    }
    return fits && is_whole(dst, bytes) && is_whole(src, bytes) ? cudaSuccess
                                                                : cudaErrorInvalidValue;
}

static cudaError_t copy_async(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    cudaError_t error = check_sides(dst, src, bytes, kind);
    if (error != cudaSuccess || bytes == 0) {
        return error;
    }
    if (is_pageable(src)) {
        auto staged = std::make_shared<std::vector<uint8_t>>(bytes);
        memcpy(staged->data(), src, bytes);
        return enqueue(stream, [=] { memcpy(dst, staged->data(), bytes); });
    }
    error = enqueue(stream, [=] { memmove(dst, src, bytes); });
    if (error == cudaSuccess && is_pageable(dst)) {
        error = drain(stream); /* the call returns when pageable memory is filled */
    }
    return error;
}

} // namespace emu

using namespace emu;

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    Entry entry;
    return give(copy_async(dst, src, bytes, kind, stream));
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind)
{
    Entry entry;
    cudaError_t error = check_no_capture();
    error = error == cudaSuccess ? copy_async(dst, src, bytes, kind, nullptr) : error;
    return give(error == cudaSuccess ? drain_blocking() : error);
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    Entry entry;
    cudaError_t error = cudaSuccess;
    for (size_t row = 0; row < height && error == cudaSuccess; row++) {
        error =
            copy_async(static_cast<uint8_t *>(dst) + row * dst_pitch,
                       static_cast<const uint8_t *>(src) + row * src_pitch, width, kind, stream);
    }
    return give(error);
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream)
{
    Entry entry;
    if (!is_whole(dst, bytes) || is_pageable(dst)) {
        return give(cudaErrorInvalidValue);
    }
    return give(enqueue(stream, [=] { memset(dst, value, bytes); }));
}

cudaError_t cudaMemset(void *dst, int value, size_t bytes)
{
    return cudaMemsetAsync(dst, value, bytes, nullptr);
}
