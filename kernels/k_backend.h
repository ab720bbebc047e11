/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_backend: what a stream on one kind of device is made of. One row of k_backends.def each; the
 * functions in k_stream.h come here.
 */
#pragma once

#include "kernels/k_heads.h"
#include "kernels/kernels.h"

typedef struct k_backend {
    const char *device; /* weft_device_ops.name */

    /* Sets stream->ops, and team where ops have threads; device and queue are there. */
    weft_status_t (*open)(k_stream_t *stream, const char *isa, uint32_t threads, weft_diag_t *diag);
    void (*close)(k_stream_t *stream); /* a half-opened one too */
    /* Waits for what other queues still do for the stream; NULL: there are none. */
    weft_status_t (*settle)(k_stream_t *stream);

    /* Graphs; NULL, all four: there are none either. */
    weft_status_t (*capture)(k_stream_t *stream);
    weft_status_t (*end_capture)(k_stream_t *stream, k_graph_t **graph_out);
    void (*launch)(k_stream_t *stream, const k_graph_t *graph);
    void (*destroy_graph)(k_graph_t *graph);

    /* k_convert_heads; NULL: no kernel. */
    void (*convert_heads)(const k_stream_t *stream, weft_queue_t *queue, k_head_form_t to,
                          k_head_form_t from, const k_head_move_t *moves, uint32_t n);
} k_backend_t;
