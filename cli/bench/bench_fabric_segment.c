/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_fabric_segment.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"

#define CHUNK_BYTES ((uint64_t)1 << 20)

/* ---- making ---------------------------------------------------------------------------------- */

static weft_status_t open_file(const char *folder, uint64_t bytes, weft_diag_t *diag,
                               bench_fabric_segment_t *segment)
{
    const int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) {
        return weft_diag(diag, WEFT_ERR_IO, "--file-path %s: %s", folder, strerror(errno));
    }
    segment->is_file = true;
    segment->mem = (weft_mem_t){.bytes = bytes, .fd = fd};
    if (posix_fallocate(fd, 0, (off_t)bytes) != 0) {
        return weft_diag(diag, WEFT_ERR_IO, "--file-path %s: no space for %llu bytes", folder,
                         (unsigned long long)bytes);
    }
    void *addr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (addr == MAP_FAILED) {
        return weft_diag(diag, WEFT_ERR_IO, "--file-path %s: %s", folder, strerror(errno));
    }
    segment->mem.addr = addr;
    segment->mem.mapped = bytes;
    segment->memory =
        (xfer_memory_t){.space = XFER_FILE, .bytes = bytes, .device = (uint64_t)fd, .fd = -1};
    return WEFT_OK;
}

static weft_status_t open_memory(const char *device, xfer_space_t space, bool is_exportable,
                                 uint64_t bytes, weft_diag_t *diag, bench_fabric_segment_t *segment)
{
    weft_status_t status = weft_device_open(device, 0, diag, &segment->device);
    if (status >= 0) {
        status = segment->device->ops->open_queue(segment->device, &segment->queue);
    }
    if (status >= 0) {
        status = segment->device->ops->alloc(
            segment->device, bytes, is_exportable ? WEFT_MEM_EXPORTABLE : 0, &segment->mem);
    }
    if (status < 0) {
        return status == WEFT_ERR_NO_MEMORY
                   ? weft_diag(diag, status, "no memory for a segment of %llu bytes",
                               (unsigned long long)bytes)
                   : status;
    }
    segment->memory = (xfer_memory_t){
        .space = space,
        .addr = (uint64_t)(uintptr_t)segment->mem.addr,
        .bytes = bytes,
        .fd = segment->mem.fd,
    };
    return WEFT_OK;
}

static weft_status_t open_kind(const char *kind, const char *memory, const char *folder,
                               uint64_t bytes, weft_diag_t *diag, bench_fabric_segment_t *segment)
{
    if (strcmp(kind, "file") == 0) {
        return open_file(folder, bytes, diag, segment);
    }
    const bool is_private = strcmp(memory, "private") == 0;
    if (!is_private && strcmp(memory, "memfd") != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--memory %s: memfd or private", memory);
    }
    if (strcmp(kind, "vram") == 0) {
        return open_memory("cuda", XFER_VRAM, !is_private, bytes, diag, segment);
    }
    if (strcmp(kind, "dram") != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "segment %s: dram, vram or file", kind);
    }
    return open_memory("cpu", XFER_DRAM, !is_private, bytes, diag, segment);
}

weft_status_t bench_fabric_segment_open(const char *kind, const char *memory, const char *folder,
                                        uint64_t bytes, weft_diag_t *diag,
                                        bench_fabric_segment_t *segment_out)
{
    bench_fabric_segment_t segment = {.mem = {.fd = -1}};
    const weft_status_t status = open_kind(kind, memory, folder, bytes, diag, &segment);
    if (status < 0) {
        bench_fabric_segment_close(&segment);
        return status;
    }
    *segment_out = segment;
    return WEFT_OK;
}

void bench_fabric_segment_close(bench_fabric_segment_t *segment)
{
    if (segment->is_file) {
        if (segment->mem.addr != NULL) {
            munmap(segment->mem.addr, segment->mem.mapped);
        }
        close(segment->mem.fd);
    } else if (segment->mem.addr != NULL) {
        segment->device->ops->free(segment->device, &segment->mem);
    }
    if (segment->queue != NULL) {
        segment->device->ops->close_queue(segment->queue);
    }
    weft_device_close(segment->device);
    *segment = (bench_fabric_segment_t){0};
}

/* ---- bytes ----------------------------------------------------------------------------------- */

uint64_t bench_fabric_word(uint64_t offset, uint64_t salt)
{
    return (offset + salt) * UINT64_C(0x9E3779B97F4A7C15);
}

static weft_status_t copy(bench_fabric_segment_t *segment, void *dst, const void *src,
                          uint64_t bytes)
{
    if (segment->is_file) {
        memcpy(dst, src, bytes);
        return WEFT_OK;
    }
    segment->device->ops->copy(segment->queue, dst, src, bytes);
    return segment->device->ops->sync(segment->queue);
}

weft_status_t bench_fabric_segment_fill(bench_fabric_segment_t *segment, uint64_t salt)
{
    const uint64_t bytes = segment->memory.bytes;
    weft_status_t status = WEFT_OK;
    uint64_t *words = weft_alloc(CHUNK_BYTES, "bench_fabric.chunk");
    if (words == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint64_t at = 0; status >= 0 && at < bytes; at += CHUNK_BYTES) {
        const uint64_t n = bytes - at < CHUNK_BYTES ? bytes - at : CHUNK_BYTES;
        for (uint64_t i = 0; i < n / sizeof(*words); i++) {
            words[i] = bench_fabric_word(at + i * sizeof(*words), salt);
        }
        status = copy(segment, (char *)segment->mem.addr + at, words, n);
    }
    weft_free(words);
    return status;
}

weft_status_t bench_fabric_segment_clear(bench_fabric_segment_t *segment, uint64_t offset,
                                         uint64_t bytes)
{
    char *at = (char *)segment->mem.addr + offset;
    if (segment->is_file) {
        memset(at, 0, bytes);
        return WEFT_OK;
    }
    segment->device->ops->fill(segment->queue, at, 0, bytes);
    return segment->device->ops->sync(segment->queue);
}

weft_status_t bench_fabric_segment_read(bench_fabric_segment_t *segment, uint64_t offset,
                                        void *data_out, uint64_t bytes)
{
    return copy(segment, data_out, (const char *)segment->mem.addr + offset, bytes);
}
