/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_vram: a GPU as a backend's port uses it: copies of device memory on a queue of their own.
 *
 * Copies are added to a batch, which ends at its commit and has a number from then on: batches end in
 * order. Small pieces of device memory wait for the commit and are then moved by one kernel; all else
 * is the device's copy.
 *
 * Threads  the port's
 * Waiting  poll asks the device, and nothing wakes it: what is on its way ends within milliseconds. So
 *          arm keeps its caller awake for the first one of them and then wakes it every 50 µs
 */
#pragma once

#include "base/device.h"

typedef struct xfer_vram xfer_vram_t;

/* WEFT_ERR_UNSUPPORTED: no such GPU, or none that this program can use. */
weft_status_t xfer_vram_open(uint64_t device, xfer_vram_t **vram_out);
void xfer_vram_close(xfer_vram_t *vram); /* waits for what is on its way; NULL is fine */
uint64_t xfer_vram_device(const xfer_vram_t *vram);
/* Memory of it, or memory that it can map. */
weft_device_t *xfer_vram_space(const xfer_vram_t *vram);

/* One more batch may be begun; else when some ended. */
bool xfer_vram_has_room(const xfer_vram_t *vram);
void xfer_vram_make_room(xfer_vram_t *vram); /* waits for the oldest one if there is none */
/* The batch that is being made should be committed first. */
bool xfer_vram_is_full(const xfer_vram_t *vram);

typedef enum xfer_vram_sides {
    XFER_VRAM_DEVICE, /* both sides are memory of devices */
    XFER_VRAM_PINNED, /* one is WEFT_MEM_HOST */
    XFER_VRAM_HOST    /* one is the host's, however it came to be: waits for it, more or less */
} xfer_vram_sides_t;

/* Up to XFER_VRAM_PIECE of one piece; pieces of a batch do not overlap. */
void xfer_vram_add(xfer_vram_t *vram, uint64_t to, uint64_t from, uint64_t bytes,
                   xfer_vram_sides_t sides);
#define XFER_VRAM_PIECE_MAX (UINT64_C(64) << 20)
uint64_t xfer_vram_commit(xfer_vram_t *vram); /* there is room */

/* WEFT_PENDING, WEFT_OK, or what the device failed with. Batch 0 is done. */
weft_status_t xfer_vram_state(const xfer_vram_t *vram, uint64_t batch);
bool xfer_vram_poll(xfer_vram_t *vram); /* true: a batch ended */
weft_status_t xfer_vram_wait(xfer_vram_t *vram, uint64_t batch);
void xfer_vram_wait_all(xfer_vram_t *vram);

/* A timer, the same while it is open; to be watched. Once readable it stays so until it is cleared. */
int xfer_vram_fd(const xfer_vram_t *vram);
void xfer_vram_clear(xfer_vram_t *vram);
/* Before sleep. True: it becomes readable when it is time to poll. False: poll now. */
bool xfer_vram_arm(xfer_vram_t *vram);
