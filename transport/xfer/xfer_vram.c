/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_vram.h"

#include <assert.h>
#include <stdio.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"

#define WEFT_LOG_MODULE "xfer"
#include "base/log.h"

#define BATCHES     16 /* on their way; fewer than a queue keeps events */
#define LIST_PIECES 8192
#define BATCH_BYTES                                                                                \
    (UINT64_C(128) << 20) /* a cancelled transfer waits for no more than some of these */
#define SMALL_BYTES (UINT64_C(16) << 20) /* from here on the device's own copy is as fast */
#define SLICE_BYTES                                                                                \
    (UINT64_C(256) << 10)              /* of a list: the kernel's grid is as wide as the longest */
#define DMA_FROM  (UINT64_C(64) << 10) /* between host and device, engines are better then */
#define AWAKE_NS  WEFT_NS_PER_MS
#define LOOK_NS   50000
#define ALIGNMENT 16

struct xfer_vram {
    weft_device_t *device;
    weft_queue_t *queue;
    weft_queue_t *uploads; /* of lists, beside the batch before */
    int timer;
    weft_mem_t lists;      /* weft_copy_t [BATCHES][LIST_PIECES], for the kernel */
    weft_mem_t host_lists; /* the same, as they are written */
    weft_event_t *ends[BATCHES];
    uint64_t committed; /* batches, so below */
    uint64_t done;
    weft_status_t failure; /* of the device, for good */
    uint64_t since_ns;     /* that the oldest one is on its way */
    uint32_t n_listed;     /* of the batch that is being made, so below */
    uint64_t longest;
    uint64_t bytes;
};

/* ---- open and close -------------------------------------------------------------------------- */

static weft_status_t open_memory(xfer_vram_t *vram)
{
    const weft_device_ops_t *ops = vram->device->ops;
    const size_t bytes = BATCHES * LIST_PIECES * sizeof(weft_copy_t);
    weft_status_t status = ops->open_queue(vram->device, &vram->queue);
    if (status >= 0) {
        status = ops->open_queue(vram->device, &vram->uploads);
    }
    if (status >= 0 && ops->copy_many != NULL) {
        status = ops->alloc(vram->device, bytes, 0, &vram->lists);
    }
    if (status >= 0 && ops->copy_many != NULL) {
        status = ops->alloc(vram->device, bytes, WEFT_MEM_HOST, &vram->host_lists);
    }
    return status;
}

weft_status_t xfer_vram_open(uint64_t device, xfer_vram_t **vram_out)
{
    weft_diag_t diag = {0};
    if (device > INT32_MAX) {
        return WEFT_ERR_UNSUPPORTED;
    }
    xfer_vram_t *vram = weft_zalloc(sizeof(*vram), "xfer.vram");
    if (vram == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    vram->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    weft_status_t status = vram->timer < 0 ? WEFT_ERR_IO : WEFT_OK;
    if (status >= 0 && weft_device_open("cuda", (int)device, &diag, &vram->device) < 0) {
        weft_log_debug("device memory is not moved: %s", diag.text);
        status = WEFT_ERR_UNSUPPORTED;
    }
    if (status >= 0) {
        status = open_memory(vram);
    }
    if (status < 0) {
        xfer_vram_close(vram);
        return status;
    }
    *vram_out = vram;
    return WEFT_OK;
}

void xfer_vram_close(xfer_vram_t *vram)
{
    if (vram == NULL) {
        return;
    }
    if (vram->queue != NULL) {
        xfer_vram_wait_all(vram);
        vram->device->ops->close_queue(vram->queue);
    }
    if (vram->uploads != NULL) {
        vram->device->ops->close_queue(vram->uploads);
    }
    if (vram->lists.addr != NULL) {
        vram->device->ops->free(vram->device, &vram->lists);
    }
    if (vram->host_lists.addr != NULL) {
        vram->device->ops->free(vram->device, &vram->host_lists);
    }
    weft_device_close(vram->device);
    if (vram->timer >= 0) {
        close(vram->timer);
    }
    weft_free(vram);
}

uint64_t xfer_vram_device(const xfer_vram_t *vram)
{
    return (uint64_t)vram->device->index;
}

weft_device_t *xfer_vram_space(const xfer_vram_t *vram)
{
    return vram->device;
}

/* ---- making a batch -------------------------------------------------------------------------- */

bool xfer_vram_has_room(const xfer_vram_t *vram)
{
    return vram->committed - vram->done < BATCHES;
}

bool xfer_vram_is_full(const xfer_vram_t *vram)
{
    return vram->bytes >= BATCH_BYTES || vram->n_listed + SMALL_BYTES / SLICE_BYTES > LIST_PIECES;
}

static bool is_listed(const xfer_vram_t *vram, uint64_t to, uint64_t from, uint64_t bytes,
                      xfer_vram_sides_t sides)
{
    const uint64_t below = sides == XFER_VRAM_DEVICE   ? SMALL_BYTES
                           : sides == XFER_VRAM_PINNED ? DMA_FROM
                                                       : 0;
    return vram->host_lists.addr != NULL && bytes < below && (to | from | bytes) % ALIGNMENT == 0;
}

static size_t list_at(const xfer_vram_t *vram)
{
    return vram->committed % BATCHES * LIST_PIECES * sizeof(weft_copy_t);
}

void xfer_vram_add(xfer_vram_t *vram, uint64_t to, uint64_t from, uint64_t bytes,
                   xfer_vram_sides_t sides)
{
    assert(xfer_vram_has_room(vram) && !xfer_vram_is_full(vram) && bytes <= XFER_VRAM_PIECE_MAX);
    vram->bytes += bytes;
    if (!is_listed(vram, to, from, bytes, sides)) {
        vram->device->ops->copy(vram->queue, (void *)(uintptr_t)to, (const void *)(uintptr_t)from,
                                bytes);
        return;
    }
    weft_copy_t *list = (void *)((char *)vram->host_lists.addr + list_at(vram));
    for (uint64_t at = 0; at < bytes; at += SLICE_BYTES) {
        const uint64_t n = bytes - at < SLICE_BYTES ? bytes - at : SLICE_BYTES;
        list[vram->n_listed++] = (weft_copy_t){.to = to + at, .from = from + at, .bytes = n};
        vram->longest = n > vram->longest ? n : vram->longest;
    }
}

static void begin_listed(xfer_vram_t *vram)
{
    const weft_device_ops_t *ops = vram->device->ops;
    char *list = (char *)vram->lists.addr + list_at(vram);
    ops->copy(vram->uploads, list, (char *)vram->host_lists.addr + list_at(vram),
              vram->n_listed * sizeof(weft_copy_t));
    ops->follow(vram->queue, ops->record(vram->uploads));
    ops->copy_many(vram->queue, (const weft_copy_t *)(void *)list, vram->n_listed, vram->longest);
}

uint64_t xfer_vram_commit(xfer_vram_t *vram)
{
    if (vram->n_listed > 0) {
        begin_listed(vram);
    }
    if (vram->committed == vram->done) {
        vram->since_ns = weft_clock_ns();
    }
    vram->ends[vram->committed % BATCHES] = vram->device->ops->record(vram->queue);
    vram->n_listed = 0;
    vram->longest = 0;
    vram->bytes = 0;
    return ++vram->committed;
}

/* ---- the end of one -------------------------------------------------------------------------- */

weft_status_t xfer_vram_state(const xfer_vram_t *vram, uint64_t batch)
{
    return batch > vram->done ? WEFT_PENDING : vram->failure;
}

static void end_oldest(xfer_vram_t *vram)
{
    const weft_status_t status = vram->device->ops->wait(vram->ends[vram->done % BATCHES]);
    vram->done++;
    vram->since_ns = weft_clock_ns();
    if (status < 0) {
        vram->failure = status; /* stays: so does the device's */
    }
}

bool xfer_vram_poll(xfer_vram_t *vram)
{
    const uint64_t before = vram->done;
    while (vram->done < vram->committed &&
           vram->device->ops->is_done(vram->ends[vram->done % BATCHES])) {
        end_oldest(vram);
    }
    return vram->done > before;
}

weft_status_t xfer_vram_wait(xfer_vram_t *vram, uint64_t batch)
{
    while (vram->done < batch) {
        end_oldest(vram);
    }
    return vram->failure;
}

void xfer_vram_wait_all(xfer_vram_t *vram)
{
    (void)xfer_vram_wait(vram, vram->committed);
}

void xfer_vram_make_room(xfer_vram_t *vram)
{
    if (!xfer_vram_has_room(vram)) {
        end_oldest(vram);
    }
}

/* ---- sleeping -------------------------------------------------------------------------------- */

int xfer_vram_fd(const xfer_vram_t *vram)
{
    return vram->timer;
}

void xfer_vram_clear(xfer_vram_t *vram)
{
    uint64_t times;
    ssize_t ignored = read(vram->timer, &times, sizeof(times)); /* nothing: it was set anew */
    (void)ignored;
}

bool xfer_vram_arm(xfer_vram_t *vram)
{
    const struct itimerspec soon = {.it_value = {.tv_nsec = LOOK_NS}};
    if (vram->done == vram->committed) {
        return true;
    }
    if (weft_clock_ns() - vram->since_ns < AWAKE_NS) {
        return false;
    }
    return timerfd_settime(vram->timer, 0, &soon, NULL) == 0;
}
