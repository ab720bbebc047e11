/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An NVIDIA GPU. A queue is a stream, an event one of the queue's ring.
 *
 * Errors of what runs on the device show up in any later call, and most of them end the context for
 * good: the first is logged and kept, and from then on every sync and wait says WEFT_ERR_DEVICE.
 */
#define WEFT_LOG_MODULE "device"

#include "base/device_cuda.h"

#include <assert.h>
#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "base/device_cuda_vmm.h"
#include "base/log.h"

#define EVENTS           64 /* of a queue; one is as good as done when so many came after it */
#define OLDEST_MAJOR     8  /* compute capability: Ampere, the first with bf16 matrices */
#define ALIGNMENT        ((size_t)4096)
#define VERSION_MAJOR(v) ((v) / 1000)
#define VERSION_MINOR(v) ((v) % 1000 / 10)

typedef struct cuda_device {
    weft_device_t device;
    atomic_int error; /* the first cudaError_t of its work, or cudaSuccess */
} cuda_device_t;

struct weft_event {
    cudaEvent_t event;
    weft_queue_t *queue;
};

struct weft_queue {
    cuda_device_t *device;
    cudaStream_t stream;
    uint32_t next; /* event to record */
    weft_event_t events[EVENTS];
};

extern const weft_device_ops_t weft_device_cuda;

static cuda_device_t *cuda_of(const weft_device_t *device)
{
    return WEFT_CONTAINER(device, cuda_device_t, device);
}

bool weft_device_cuda_note(weft_device_t *device, int error, const char *what)
{
    int none = cudaSuccess;
    if (error == cudaSuccess) {
        return true;
    }
    (void)cudaGetLastError(); /* noted: the next call should not report it again */
    if (atomic_compare_exchange_strong(&cuda_of(device)->error, &none, error)) {
        weft_log_error("device=cuda:%d %s failed: %s (%s); nothing more can run on it, see dmesg "
                       "for an Xid of the driver",
                       device->index, what, cudaGetErrorString((cudaError_t)error),
                       cudaGetErrorName((cudaError_t)error));
    }
    return false;
}

bool weft_device_cuda_use(weft_device_t *device)
{
    return weft_device_cuda_note(device, cudaSetDevice(device->index), "cudaSetDevice");
}

void *weft_device_cuda_stream(const weft_queue_t *queue)
{
    return queue->stream;
}

/* ---- opening ------------------------------------------------------------------------------- */

static weft_status_t check_driver(weft_diag_t *diag, int *devices_out)
{
    int driver = 0;
    int runtime = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND,
                         "device cuda: no NVIDIA driver (libcuda.so.1) on this machine");
    }
    const cudaError_t error = cudaGetDeviceCount(devices_out);
    (void)cudaRuntimeGetVersion(&runtime);
    if (error == cudaErrorInsufficientDriver) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "device cuda: the NVIDIA driver is for CUDA %d.%d, weft needs %d.%d: "
                         "update the driver",
                         VERSION_MAJOR(driver), VERSION_MINOR(driver), VERSION_MAJOR(runtime),
                         VERSION_MINOR(runtime));
    }
    if (error != cudaSuccess || *devices_out == 0) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "device cuda: no GPU to be seen: %s",
                         cudaGetErrorString(error == cudaSuccess ? cudaErrorNoDevice : error));
    }
    return WEFT_OK;
}

static int cuda_count(void)
{
    int devices = 0;
    if (check_driver(NULL, &devices) < 0) {
        (void)cudaGetLastError();
        return 0;
    }
    return devices;
}

static weft_status_t find_device(int index, weft_diag_t *diag)
{
    int devices = 0;
    int major = 0;
    int minor = 0;
    const weft_status_t status = check_driver(diag, &devices);
    if (status < 0) {
        return status;
    }
    if (index < 0 || index >= devices) {
        return weft_diag(diag, WEFT_ERR_NOT_FOUND, "device cuda:%d: there are %d, from 0 on", index,
                         devices);
    }
    const cudaError_t error =
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
    (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
    if (error != cudaSuccess) {
        return weft_diag(diag, WEFT_ERR_DEVICE, "device cuda:%d: %s", index,
                         cudaGetErrorString(error));
    }
    if (major < OLDEST_MAJOR) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "device cuda:%d: compute capability %d.%d, %d.0 (Ampere) is the oldest "
                         "that works",
                         index, major, minor, OLDEST_MAJOR);
    }
    return WEFT_OK;
}

/* Counts and attributes are the driver's: nothing here makes a context. */
static weft_status_t cuda_check(int index, weft_diag_t *diag)
{
    const weft_status_t status = find_device(index, diag);
    if (status < 0) {
        (void)cudaGetLastError();
    }
    return status;
}

static weft_status_t cuda_open(int index, weft_diag_t *diag, weft_device_t **device_out)
{
    const weft_status_t status = cuda_check(index, diag);
    if (status < 0) {
        return status;
    }
    const cudaError_t error = cudaSetDevice(index); /* makes its context: it may be full or lost */
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        const bool is_full = error == cudaErrorMemoryAllocation;
        return weft_diag(diag, is_full ? WEFT_ERR_NO_MEMORY : WEFT_ERR_DEVICE,
                         "device cuda:%d cannot be used: %s%s", index, cudaGetErrorString(error),
                         is_full ? "; others fill it: --device names another one" : "");
    }
    cuda_device_t *cuda = weft_zalloc(sizeof(*cuda), "device.cuda");
    if (cuda == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    cuda->device = (weft_device_t){.ops = &weft_device_cuda, .index = index};
    atomic_init(&cuda->error, cudaSuccess);
    *device_out = &cuda->device;
    return WEFT_OK;
}

static void cuda_close(weft_device_t *device)
{
    weft_free(cuda_of(device));
}

static uint64_t cuda_id(const weft_device_t *device)
{
    struct cudaDeviceProp properties;
    uint64_t halves[2] = {0};
    if (cudaGetDeviceProperties(&properties, device->index) != cudaSuccess) {
        (void)cudaGetLastError();
        return (uint64_t)device->index;
    }
    static_assert(sizeof(properties.uuid) == sizeof(halves), "a UUID");
    memcpy(halves, &properties.uuid, sizeof(halves));
    return halves[0] ^ halves[1];
}

/* ---- memory -------------------------------------------------------------------------------- */

static size_t cuda_memory_available(const weft_device_t *device)
{
    size_t available = 0;
    size_t total = 0;
    if (cudaSetDevice(device->index) != cudaSuccess ||
        cudaMemGetInfo(&available, &total) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return available;
}

static size_t cuda_memory_total(const weft_device_t *device)
{
    size_t available = 0;
    size_t total = 0;
    if (cudaSetDevice(device->index) != cudaSuccess ||
        cudaMemGetInfo(&available, &total) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return total;
}

static weft_status_t alloc_host(size_t bytes, weft_mem_t *mem)
{
    if (cudaHostAlloc(&mem->addr, bytes, cudaHostAllocPortable) != cudaSuccess) {
        (void)cudaGetLastError();
        return WEFT_ERR_NO_MEMORY;
    }
    memset(mem->addr, 0, bytes);
    return WEFT_OK;
}

static weft_status_t zero(weft_device_t *device, const weft_mem_t *mem)
{
    const bool is_zero =
        weft_device_cuda_note(device, cudaMemsetAsync(mem->addr, 0, mem->mapped, NULL),
                              "cudaMemsetAsync") &&
        weft_device_cuda_note(device, cudaStreamSynchronize(NULL), "cudaStreamSynchronize");
    return is_zero ? WEFT_OK : WEFT_ERR_DEVICE;
}

static void cuda_free(weft_device_t *device, weft_mem_t *mem)
{
    if (mem->addr != NULL && weft_device_cuda_use(device)) {
        if ((mem->flags & WEFT_MEM_HOST) != 0) {
            (void)weft_device_cuda_note(device, cudaFreeHost(mem->addr), "cudaFreeHost");
        } else if (mem->is_mapping) {
            weft_device_cuda_vmm_free(mem);
        } else {
            (void)weft_device_cuda_note(device, cudaFree(mem->addr), "cudaFree");
        }
    }
    *mem = (weft_mem_t){.fd = -1};
}

static weft_status_t alloc_device(weft_device_t *device, weft_mem_t *mem)
{
    weft_status_t status = WEFT_ERR_UNSUPPORTED;
    if ((mem->flags & WEFT_MEM_EXPORTABLE) != 0) {
        status = weft_device_cuda_vmm_alloc(device->index, mem);
    }
    if (status == WEFT_ERR_UNSUPPORTED && cudaMalloc(&mem->addr, mem->mapped) == cudaSuccess) {
        status = WEFT_OK;
    }
    if (status < 0) {
        (void)cudaGetLastError();
        return WEFT_ERR_NO_MEMORY;
    }
    status = zero(device, mem);
    if (status < 0) {
        cuda_free(device, mem);
    }
    return status;
}

static weft_status_t cuda_alloc(weft_device_t *device, size_t bytes, uint32_t flags,
                                weft_mem_t *mem_out)
{
    if (bytes > SIZE_MAX / 2) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (!weft_device_cuda_use(device)) {
        return WEFT_ERR_DEVICE;
    }
    weft_mem_t mem = {
        .bytes = bytes,
        .mapped = bytes == 0 ? ALIGNMENT : (bytes + ALIGNMENT - 1) & ~(ALIGNMENT - 1),
        .flags = flags,
        .fd = -1,
    };
    const weft_status_t status =
        (flags & WEFT_MEM_HOST) != 0 ? alloc_host(mem.mapped, &mem) : alloc_device(device, &mem);
    if (status >= 0) {
        *mem_out = mem;
    }
    return status;
}

static weft_status_t cuda_import(weft_device_t *device, int fd, size_t bytes, weft_mem_t *mem_out)
{
    weft_mem_t mem = {.bytes = bytes, .flags = WEFT_MEM_EXPORTABLE, .fd = -1};
    if (!weft_device_cuda_use(device)) {
        return WEFT_ERR_DEVICE;
    }
    const weft_status_t status = weft_device_cuda_vmm_import(device->index, fd, &mem);
    if (status >= 0) {
        *mem_out = mem;
    }
    return status;
}

/* ---- queues -------------------------------------------------------------------------------- */

static void cuda_close_queue(weft_queue_t *queue)
{
    (void)weft_device_cuda_use(&queue->device->device);
    for (uint32_t i = 0; i < EVENTS && queue->events[i].event != NULL; i++) {
        (void)cudaEventDestroy(queue->events[i].event);
    }
    if (queue->stream != NULL) {
        (void)cudaStreamSynchronize(queue->stream); /* its owner's memory goes next */
        (void)cudaStreamDestroy(queue->stream);
    }
    weft_free(queue);
}

static bool open_stream(weft_queue_t *queue)
{
    weft_device_t *device = &queue->device->device;
    bool is_open = weft_device_cuda_use(device) &&
                   weft_device_cuda_note(
                       device, cudaStreamCreateWithFlags(&queue->stream, cudaStreamNonBlocking),
                       "cudaStreamCreate");
    for (uint32_t i = 0; i < EVENTS && is_open; i++) {
        weft_event_t *event = &queue->events[i];
        event->queue = queue;
        is_open = weft_device_cuda_note(
            device, cudaEventCreateWithFlags(&event->event, cudaEventDefault), "cudaEventCreate");
    }
    return is_open;
}

static weft_status_t cuda_open_queue(weft_device_t *device, weft_queue_t **queue_out)
{
    weft_queue_t *queue = weft_zalloc(sizeof(*queue), "device.queue");
    if (queue == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    queue->device = cuda_of(device);
    if (!open_stream(queue)) {
        cuda_close_queue(queue);
        return WEFT_ERR_DEVICE;
    }
    *queue_out = queue;
    return WEFT_OK;
}

static bool note(weft_queue_t *queue, cudaError_t error, const char *what)
{
    return weft_device_cuda_note(&queue->device->device, error, what);
}

static bool use(weft_queue_t *queue)
{
    return weft_device_cuda_use(&queue->device->device);
}

static void cuda_copy(weft_queue_t *queue, void *dst, const void *src, size_t bytes)
{
    if (bytes > 0 && use(queue)) {
        (void)note(queue, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, queue->stream),
                   "cudaMemcpyAsync");
    }
}

static void cuda_copy_many(weft_queue_t *queue, const weft_copy_t *copies, uint32_t n,
                           uint64_t max_bytes)
{
    if (use(queue)) {
        (void)note(queue,
                   (cudaError_t)weft_device_cuda_copy_many(copies, n, max_bytes, queue->stream),
                   "a copy of many pieces");
    }
}

static void cuda_fill(weft_queue_t *queue, void *dst, uint8_t value, size_t bytes)
{
    if (bytes > 0 && use(queue)) {
        (void)note(queue, cudaMemsetAsync(dst, value, bytes, queue->stream), "cudaMemsetAsync");
    }
}

static weft_event_t *cuda_record(weft_queue_t *queue)
{
    weft_event_t *event = &queue->events[queue->next++ % EVENTS];
    if (use(queue)) {
        (void)note(queue, cudaEventRecord(event->event, queue->stream), "cudaEventRecord");
    }
    return event;
}

static void cuda_follow(weft_queue_t *queue, weft_event_t *event)
{
    if (use(queue)) {
        (void)note(queue, cudaStreamWaitEvent(queue->stream, event->event, 0),
                   "cudaStreamWaitEvent");
    }
}

static bool cuda_is_done(weft_event_t *event)
{
    const cudaError_t error = cudaEventQuery(event->event);
    if (error == cudaErrorNotReady) {
        (void)cudaGetLastError(); /* an answer, which the next launch should not take for its own */
        return false;
    }
    (void)note(event->queue, error, "the device's work"); /* done as well: a wait tells */
    return true;
}

static weft_status_t state_of(const weft_queue_t *queue)
{
    return atomic_load(&queue->device->error) == cudaSuccess ? WEFT_OK : WEFT_ERR_DEVICE;
}

static weft_status_t cuda_wait(weft_event_t *event)
{
    (void)note(event->queue, cudaEventSynchronize(event->event), "the device's work");
    return state_of(event->queue);
}

static uint64_t cuda_elapsed_ns(const weft_event_t *from, const weft_event_t *to)
{
    float milliseconds = 0;
    (void)note(to->queue, cudaEventElapsedTime(&milliseconds, from->event, to->event),
               "cudaEventElapsedTime");
    return milliseconds > 0 ? (uint64_t)((double)milliseconds * 1e6) : 0;
}

static weft_status_t cuda_sync(weft_queue_t *queue)
{
    (void)note(queue, cudaStreamSynchronize(queue->stream), "the device's work");
    return state_of(queue);
}

const weft_device_ops_t weft_device_cuda = {
    .name = "cuda",
    .count = cuda_count,
    .check = cuda_check,
    .open = cuda_open,
    .close = cuda_close,
    .id = cuda_id,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .import = cuda_import,
    .memory_available = cuda_memory_available,
    .memory_total = cuda_memory_total,
    .open_queue = cuda_open_queue,
    .close_queue = cuda_close_queue,
    .copy = cuda_copy,
    .copy_many = cuda_copy_many,
    .fill = cuda_fill,
    .record = cuda_record,
    .follow = cuda_follow,
    .is_done = cuda_is_done,
    .wait = cuda_wait,
    .elapsed_ns = cuda_elapsed_ns,
    .sync = cuda_sync,
};
