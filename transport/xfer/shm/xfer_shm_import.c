/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "xfer"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "transport/xfer/shm/xfer_shm_priv.h"

#define HUGE_PAGE_FROM ((size_t)4 << 20) /* smaller memory gains little from 2 MiB pages */
#define WARM_BYTES     ((size_t)1 << 20) /* whose page tables are filled at once */

static void cool(xfer_shm_import_t *import)
{
    xfer_shm_import_t **at = &import->port->cold;
    if (!import->is_cold) {
        return;
    }
    while (*at != import) {
        at = &(*at)->next_cold;
    }
    *at = import->next_cold;
    import->is_cold = false;
}

static void unmap(xfer_shm_import_t *import)
{
    cool(import);
    xfer_shm_vram_unmap(import);
    if (import->mapping != NULL) {
        munmap(import->mapping, import->mapping_bytes);
        import->mapping = NULL;
    }
}

/* The file is a memfd that cannot shrink and holds [offset, offset + bytes). */
static bool is_sound(int fd, uint64_t offset, uint64_t bytes)
{
    struct stat file;
    const int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && fstat(fd, &file) == 0 &&
           file.st_size >= 0 && offset <= (uint64_t)file.st_size &&
           bytes <= (uint64_t)file.st_size - offset;
}

static weft_status_t map(xfer_shm_import_t *import, int fd, uint64_t offset)
{
    if (import->is_vram) {
        return xfer_shm_vram_map(import, fd, offset);
    }
    const uint64_t begin = offset & ~((uint64_t)sysconf(_SC_PAGESIZE) - 1);
    if (!is_sound(fd, offset, import->bytes) || import->bytes == 0) {
        return WEFT_ERR_MALFORMED;
    }
    import->mapping_bytes = offset - begin + import->bytes;
    import->is_writable = true;
    void *mapping =
        mmap(NULL, import->mapping_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)begin);
    if (mapping == MAP_FAILED && (errno == EPERM || errno == EACCES)) { /* sealed for reading */
        import->is_writable = false;
        mapping = mmap(NULL, import->mapping_bytes, PROT_READ, MAP_SHARED, fd, (off_t)begin);
    }
    if (mapping == MAP_FAILED) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (import->mapping_bytes >= HUGE_PAGE_FROM) {
        (void)madvise(mapping, import->mapping_bytes, MADV_HUGEPAGE); /* advice */
    }
    import->mapping = mapping;
    import->base = import->mapping + (offset - begin);
    import->state = XFER_SHM_MAPPED;
    import->is_cold = true;
    import->next_cold = import->port->cold;
    import->port->cold = import;
    return WEFT_OK;
}

weft_status_t xfer_shm_import_begin(xfer_shm_import_t *import)
{
    xfer_shm_link_t *link = import->link;
    if (import->key.is_mappable != 0) {
        const xfer_shm_frame_t ask = xfer_shm_frame(XFER_SHM_ASK, import->key.region, 0);
        return xfer_shm_conn_send(&link->conn, &ask, NULL, -1);
    }
    const weft_status_t status = xfer_shm_kernel_probe(link->pid, import->addr);
    if (status == WEFT_OK) {
        import->state = XFER_SHM_KERNEL;
    }
    return status;
}

weft_status_t xfer_shm_import(xfer_link_t *base, const xfer_memory_t *memory, const void *blob,
                              size_t bytes, void **handle_out)
{
    xfer_shm_link_t *link = (xfer_shm_link_t *)base;
    xfer_shm_key_t key;
    weft_status_t status = xfer_shm_decode_key(blob, bytes, &key);
    if (status < 0) {
        return status;
    }
    const bool is_vram = memory->space == XFER_VRAM;
    const bool can_map_vram = ((xfer_shm_port_t *)base->port)->vram != NULL && key.is_mappable != 0;
    if (is_vram ? !can_map_vram : memory->space != XFER_DRAM) {
        return WEFT_ERR_UNSUPPORTED;
    }
    if (link->state == XFER_SHM_CLOSED) {
        return WEFT_ERR_PEER_GONE;
    }
    xfer_shm_import_t *import = weft_alloc(sizeof(*import), "xfer.shm.import");
    if (import == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    *import = (xfer_shm_import_t){.port = (xfer_shm_port_t *)base->port,
                                  .link = link,
                                  .key = key,
                                  .addr = memory->addr,
                                  .bytes = memory->bytes,
                                  .state = XFER_SHM_ASKED,
                                  .is_vram = is_vram};
    if (link->state == XFER_SHM_OPEN) {
        status = xfer_shm_import_begin(import);
        if (status < 0) {
            weft_free(import);
            return status;
        }
    }
    import->next = link->imports;
    link->imports = import;
    *handle_out = import;
    return WEFT_OK;
}

void xfer_shm_import_detach(xfer_shm_link_t *link)
{
    for (xfer_shm_import_t *import = link->imports; import != NULL; import = import->next) {
        import->link = NULL;
    }
    link->imports = NULL;
}

void xfer_shm_release(xfer_port_t *port, void *handle)
{
    xfer_shm_import_t *import = handle;
    (void)port;
    if (import->link != NULL) {
        xfer_shm_import_t **at = &import->link->imports;
        while (*at != import) {
            at = &(*at)->next;
        }
        *at = import->next;
    }
    unmap(import);
    weft_free(import);
}

/* What cannot be mapped (no room in the address space, say) is perhaps to be had by the kernel. */
static void settle(xfer_shm_import_t *import, const xfer_shm_frame_t *frame, int fd)
{
    import->status = fd < 0 ? WEFT_ERR_NOT_FOUND : map(import, fd, frame->offset);
    if (import->status == WEFT_OK) {
        return;
    }
    weft_log_warn("shm region of pid=%d is not mapped: %s", (int)import->link->pid,
                  weft_strerror(import->status));
    const bool is_readable = !import->is_vram && import->status == WEFT_ERR_NO_MEMORY &&
                             xfer_shm_kernel_probe(import->link->pid, import->addr) == WEFT_OK;
    import->state = is_readable ? XFER_SHM_KERNEL : XFER_SHM_LOST;
}

void xfer_shm_import_answer(xfer_shm_link_t *link, const xfer_shm_frame_t *frame, int fd)
{
    for (xfer_shm_import_t *import = link->imports; import != NULL; import = import->next) {
        if (import->state == XFER_SHM_ASKED && import->key.region == frame->region) {
            settle(import, frame, fd);
            xfer_shm_move_waiting(link);
            return;
        }
    }
}

void xfer_shm_import_gone(xfer_shm_link_t *link, uint64_t region)
{
    for (xfer_shm_import_t *import = link->imports; import != NULL; import = import->next) {
        if (import->key.region == region) {
            unmap(import); /* between two slices of copying */
            import->state = XFER_SHM_LOST;
            import->status = WEFT_ERR_NOT_FOUND;
        }
    }
    xfer_shm_move_waiting(link);
}

static bool fill_tables(char *at, size_t bytes)
{
    return bytes == 0 || madvise(at, bytes, MADV_POPULATE_READ) == 0;
}

/*
 * Fills tables only for pages that are there: a hole that we touched would become memory, of ours,
 * and pools are larger than what is used of them. False: the end, or this kernel cannot.
 */
static bool warm_step(xfer_shm_import_t *import)
{
    unsigned char is_there[WARM_BYTES / 4096];
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t left = import->mapping_bytes - import->warm_bytes;
    const size_t bytes = left < WARM_BYTES ? left : WARM_BYTES;
    char *begin = import->mapping + import->warm_bytes;
    size_t run = 0; /* bytes before at that are there */
    import->warm_bytes += bytes;
    if (bytes == 0 || mincore(begin, bytes, is_there) != 0) {
        return false;
    }
    for (size_t at = 0; at < bytes; at += page) {
        if ((is_there[at / page] & 1) != 0) {
            run += page;
        } else if (fill_tables(begin + at - run, run)) {
            run = 0;
        } else {
            return false;
        }
    }
    const size_t end = (bytes + page - 1) & ~(page - 1);
    return fill_tables(begin + end - run, run);
}

bool xfer_shm_import_warm(xfer_shm_port_t *port, uint64_t until_ns)
{
    if (port->cold == NULL) {
        return false;
    }
    while (port->cold != NULL && weft_clock_ns() < until_ns) {
        if (!warm_step(port->cold)) {
            cool(port->cold);
        }
    }
    return true;
}
