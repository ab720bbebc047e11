/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device: a memory space and its ordered queues of work, as a table of functions. Rows: cuda (where
 * the build has it), cpu. Code above this table never calls malloc, memcpy or cudaMemcpy on tensor
 * memory.
 *
 * Threads  a device is shared; a queue belongs to one thread
 * Errors   enqueueing never fails visibly; weft_device_ops.sync and wait report the first
 *          failure
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

typedef struct weft_device weft_device_t;
typedef struct weft_queue weft_queue_t; /* a stream of the device; NULL-free, made by open_queue */
typedef struct weft_event weft_event_t; /* a point in a queue that can be waited for */

/* Ask for memory that a process on this host can map or a NIC can read. */
#define WEFT_MEM_EXPORTABLE UINT32_C(1)
/* Ask for host memory (an address to dereference) that the device copies from and to at full speed. */
#define WEFT_MEM_HOST UINT32_C(2)

typedef struct weft_mem {
    void *addr;      /* an address of the device's space; the cpu's is dereferenceable */
    size_t bytes;    /* as asked for */
    size_t mapped;   /* as taken from the system */
    uint32_t flags;  /* as asked for */
    bool is_mapping; /* cuda: a range of the driver's own, not cudaMalloc's */
    int fd; /* what another process can map: a memfd (cpu), an allocation's (cuda); -1: none */
} weft_mem_t;

/* One of many copies. */
typedef struct weft_copy {
    uint64_t to; /* the device's addresses, multiples of 16, as is bytes */
    uint64_t from;
    uint64_t bytes;
} weft_copy_t;

typedef struct weft_device_ops {
    const char *name; /* as in --device */
    bool is_host;     /* its memory is the host's */

    int (*count)(void); /* how many there are to be seen; NULL: one */
    /*
     * Whether open would find one that works, without taking anything of it: a GPU gets no context.
     * NULL: each does.
     */
    weft_status_t (*check)(int index, weft_diag_t *diag);
    weft_status_t (*open)(int index, weft_diag_t *diag, weft_device_t **device_out);
    void (*close)(weft_device_t *device);
    /* Of the hardware: the same in every process of this host; NULL: there is one. */
    uint64_t (*id)(const weft_device_t *device);
    /* Zeroed, aligned to 4096 bytes. WEFT_ERR_NO_MEMORY before touching what does not fit. */
    weft_status_t (*alloc)(weft_device_t *device, size_t bytes, uint32_t flags,
                           weft_mem_t *mem_out);
    void (*free)(weft_device_t *device, weft_mem_t *mem);
    /*
     * Maps memory that another process exported (its fd, received over a socket; stays the
     * caller's). WEFT_ERR_MALFORMED: smaller than bytes, or it could still be cut short under us.
     * Nothing uses it any more when it is freed.
     */
    weft_status_t (*import)(weft_device_t *device, int fd, size_t bytes, weft_mem_t *mem_out);
    size_t (*memory_available)(const weft_device_t *device); /* bytes; a container's limit counts */
    size_t (*memory_total)(const weft_device_t *device);     /* whoever uses it */

    weft_status_t (*open_queue)(weft_device_t *device, weft_queue_t **queue_out);
    void (*close_queue)(weft_queue_t *queue);
    /* dst and src may each be host or device memory. */
    void (*copy)(weft_queue_t *queue, void *dst, const void *src, size_t bytes);
    /*
     * copies [n], up to 65535 that do not overlap and are not longer than max_bytes, as one piece of
     * work. The list lies where the device reads it and stays until then. Sides are memory of devices,
     * or WEFT_MEM_HOST. NULL: there is only copy.
     */
    void (*copy_many)(weft_queue_t *queue, const weft_copy_t *copies, uint32_t n,
                      uint64_t max_bytes);
    void (*fill)(weft_queue_t *queue, void *dst, uint8_t value, size_t bytes);
    weft_event_t *(*record)(weft_queue_t *queue); /* one of a ring of 64; no allocation */
    /* What is enqueued from now on begins after the event, which may be another queue's. */
    void (*follow)(weft_queue_t *queue, weft_event_t *event);
    bool (*is_done)(weft_event_t *event);
    weft_status_t (*wait)(weft_event_t *event);
    /* Of the device's time, between two that are done; NULL: it has no clock of its own. */
    uint64_t (*elapsed_ns)(const weft_event_t *from, const weft_event_t *to);
    weft_status_t (*sync)(weft_queue_t *queue);
} weft_device_ops_t;

struct weft_device {
    const weft_device_ops_t *ops;
    int index;
};

#define WEFT_DEVICE_SET_MAX 64

/* Devices of one kind, in the order in which they are dealt out. */
typedef struct weft_device_set {
    const weft_device_ops_t *ops;
    uint32_t n; /* 1 at least */
    int indices[WEFT_DEVICE_SET_MAX];
} weft_device_set_t;

/*
 * What a name stands for: "cuda", "cpu": those of the kind that work; "auto": those of the best kind
 * of which one does; with ":1", ":0,1" and so on those indices, as given. Opens none.
 * WEFT_ERR_NOT_FOUND: unknown names get the known ones listed.
 */
weft_status_t weft_device_find(const char *name, weft_diag_t *diag, weft_device_set_t *set_out);

/* The index-th of those, counting on from the first again. */
weft_status_t weft_device_open(const char *name, int index, weft_diag_t *diag,
                               weft_device_t **device_out);
void weft_device_close(weft_device_t *device); /* NULL is fine */
