/* SPDX-License-Identifier: Apache-2.0 */
/* The cpu: host memory, and queues that have done their work when the call returns. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/device.h"
#include "base/memory_limit.h"

#define PAGE_BYTES     ((size_t)4096)
#define HUGE_PAGE_FROM ((size_t)4 << 20) /* smaller memory gains little from 2 MiB pages */

struct weft_event {
    char unused; /* all its work is done when it is made */
};

struct weft_queue {
    weft_event_t event;
};

extern const weft_device_ops_t weft_device_cpu;

static weft_status_t cpu_check(int index, weft_diag_t *diag)
{
    return index == 0
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_NOT_FOUND, "device cpu has only index 0, not %d", index);
}

static weft_status_t cpu_open(int index, weft_diag_t *diag, weft_device_t **device_out)
{
    const weft_status_t status = cpu_check(index, diag);
    if (status < 0) {
        return status;
    }
    weft_device_t *device = weft_zalloc(sizeof(*device), "device.cpu");
    if (device == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    device->ops = &weft_device_cpu;
    *device_out = device;
    return WEFT_OK;
}

static void cpu_close(weft_device_t *device)
{
    weft_free(device);
}

static size_t cpu_memory_available(const weft_device_t *device)
{
    (void)device;
    return weft_memory_available("");
}

static size_t cpu_memory_total(const weft_device_t *device)
{
    (void)device;
    return (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
}

/* A memfd of this size that nobody can resize any more: whoever maps it never gets SIGBUS. */
static int make_memfd(size_t bytes)
{
    const int fd = memfd_create("weft", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return -1;
    }
    if (ftruncate(fd, (off_t)bytes) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static weft_status_t cpu_alloc(weft_device_t *device, size_t bytes, uint32_t flags,
                               weft_mem_t *mem_out)
{
    if (bytes > cpu_memory_available(device) || bytes > SIZE_MAX / 2) {
        return WEFT_ERR_NO_MEMORY;
    }
    const bool is_shared = (flags & WEFT_MEM_EXPORTABLE) != 0;
    const size_t mapped = bytes == 0 ? PAGE_BYTES : (bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
    const int fd = is_shared ? make_memfd(mapped) : -1;
    if (is_shared && fd < 0) {
        return WEFT_ERR_NO_MEMORY;
    }
    void *addr = mmap(NULL, mapped, PROT_READ | PROT_WRITE,
                      is_shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
    if (addr == MAP_FAILED) {
        if (is_shared) {
            close(fd);
        }
        return WEFT_ERR_NO_MEMORY;
    }
    if (mapped >= HUGE_PAGE_FROM) {
        (void)madvise(addr, mapped, MADV_HUGEPAGE); /* advice; its refusal changes nothing */
    }
    *mem_out =
        (weft_mem_t){.addr = addr, .bytes = bytes, .mapped = mapped, .flags = flags, .fd = fd};
    return WEFT_OK;
}

static void cpu_free(weft_device_t *device, weft_mem_t *mem)
{
    (void)device;
    if (mem->addr != NULL) {
        munmap(mem->addr, mem->mapped);
        if (mem->fd >= 0) {
            close(mem->fd);
        }
    }
    *mem = (weft_mem_t){.fd = -1};
}

static weft_status_t cpu_import(weft_device_t *device, int fd, size_t bytes, weft_mem_t *mem_out)
{
    (void)device;
    struct stat file;
    const int seals = fcntl(fd, F_GET_SEALS);
    if (fstat(fd, &file) != 0) {
        return WEFT_ERR_IO;
    }
    if (bytes == 0 || file.st_size < 0 || (uint64_t)file.st_size < bytes || seals < 0 ||
        (seals & F_SEAL_SHRINK) == 0) {
        return WEFT_ERR_MALFORMED;
    }
    void *addr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (addr == MAP_FAILED) {
        return errno == EACCES ? WEFT_ERR_DENIED : WEFT_ERR_NO_MEMORY;
    }
    *mem_out = (weft_mem_t){.addr = addr, .bytes = bytes, .mapped = bytes, .fd = -1};
    return WEFT_OK;
}

static weft_status_t cpu_open_queue(weft_device_t *device, weft_queue_t **queue_out)
{
    (void)device;
    weft_queue_t *queue = weft_zalloc(sizeof(*queue), "device.queue");
    if (queue == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *queue_out = queue;
    return WEFT_OK;
}

static void cpu_close_queue(weft_queue_t *queue)
{
    weft_free(queue);
}

static void cpu_copy(weft_queue_t *queue, void *dst, const void *src, size_t bytes)
{
    (void)queue;
    if (bytes > 0) {
        memmove(dst, src, bytes);
    }
}

static void cpu_fill(weft_queue_t *queue, void *dst, uint8_t value, size_t bytes)
{
    (void)queue;
    if (bytes > 0) {
        memset(dst, value, bytes);
    }
}

static weft_event_t *cpu_record(weft_queue_t *queue)
{
    return &queue->event;
}

static void cpu_follow(weft_queue_t *queue, weft_event_t *event)
{
    (void)queue;
    (void)event;
}

static bool cpu_is_done(weft_event_t *event)
{
    (void)event;
    return true;
}

static weft_status_t cpu_wait(weft_event_t *event)
{
    (void)event;
    return WEFT_OK;
}

static weft_status_t cpu_sync(weft_queue_t *queue)
{
    (void)queue;
    return WEFT_OK;
}

const weft_device_ops_t weft_device_cpu = {
    .name = "cpu",
    .is_host = true,
    .check = cpu_check,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .import = cpu_import,
    .memory_available = cpu_memory_available,
    .memory_total = cpu_memory_total,
    .open_queue = cpu_open_queue,
    .close_queue = cpu_close_queue,
    .copy = cpu_copy,
    .fill = cpu_fill,
    .record = cpu_record,
    .follow = cpu_follow,
    .is_done = cpu_is_done,
    .wait = cpu_wait,
    .sync = cpu_sync,
};
