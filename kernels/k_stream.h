/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_stream: the queue of a device that ops are enqueued on, with the threads and the scratch memory
 * that they need; and graphs of ops.
 *
 * Threads  a stream belongs to one thread
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/device.h"
#include "base/diag.h"
#include "base/status.h"

typedef struct k_ops k_ops_t; /* kernels.h */
typedef struct k_stream k_stream_t;
typedef struct k_graph k_graph_t; /* ops recorded, to be enqueued again all at once */

struct k_stream {
    const k_ops_t *ops;
    const struct k_backend *backend;
    weft_device_t *device;
    weft_queue_t *queue;
    struct k_team *team;        /* cpu: the persistent threads */
    uint32_t multiprocessors;   /* cuda */
    struct cuda_loader *loader; /* cuda, while weights are read */
    weft_mem_t scratch;         /* made by k_stream_reserve */
};

/*
 * isa: "auto", or a name of k_ops (isas.def). threads 0: the cores this process may
 * use (affinity and cgroup counted).
 * WEFT_ERR_UNSUPPORTED names what this machine has.
 */
weft_status_t k_stream_create(weft_device_t *device, const char *isa, uint32_t threads,
                              weft_diag_t *diag, k_stream_t **stream_out);
void k_stream_destroy(k_stream_t *stream); /* NULL is fine */

/*
 * Makes room for ops of up to `rows` rows of `width` elements; called before the first op, and leaves none
 * where it fails. width is the widest row any op reads or writes: the vocabulary's logits count.
 */
weft_status_t k_stream_reserve(k_stream_t *stream, uint32_t rows, uint32_t width);

/* Waits until everything enqueued is done. */
weft_status_t k_stream_sync(k_stream_t *stream);

uint32_t k_stream_threads(const k_stream_t *stream); /* 1 where ops have none */

/*
 * Graphs: what is enqueued between capture and end_capture does not run but is recorded, with the
 * addresses and counts it was called with; copies count as ops. Launching one enqueues all of it for
 * the price of one op. A stream without graphs must not be asked for one.
 * end_capture: WEFT_ERR_NO_MEMORY where the device has no room for the graph; all else goes on.
 */
bool k_stream_has_graphs(const k_stream_t *stream);
weft_status_t k_stream_capture(k_stream_t *stream);
weft_status_t k_stream_end_capture(k_stream_t *stream, k_graph_t **graph_out);
void k_graph_launch(k_stream_t *stream, const k_graph_t *graph);
/* Launches of it that are on their way end as ever. NULL is fine. */
void k_graph_destroy(k_stream_t *stream, k_graph_t *graph);
