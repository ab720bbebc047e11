/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "kernels/k_backend.h"
#include "kernels/k_team.h"
#include "kernels/kernels.h"

#define BACKEND(name, weak) extern const k_backend_t k_backend_##name weak;
#include "kernels/k_backends.def"
#undef BACKEND

static const k_backend_t *const backends[] = {
#define BACKEND(name, weak) &k_backend_##name,
#include "kernels/k_backends.def"
#undef BACKEND
};

static const k_backend_t *find_backend(const char *device)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(backends); i++) {
        if (backends[i] != NULL && strcmp(backends[i]->device, device) == 0) {
            return backends[i];
        }
    }
    return NULL;
}

weft_status_t k_stream_create(weft_device_t *device, const char *isa, uint32_t threads,
                              weft_diag_t *diag, k_stream_t **stream_out)
{
    const k_backend_t *backend = find_backend(device->ops->name);
    if (backend == NULL) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "no kernels for device %s", device->ops->name);
    }
    k_stream_t *stream = weft_zalloc(sizeof(*stream), "kernels.stream");
    if (stream == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory for a kernel stream");
    }
    stream->backend = backend;
    stream->device = device;
    stream->scratch.fd = -1;
    weft_status_t status = device->ops->open_queue(device, &stream->queue);
    if (status < 0) {
        weft_diag(diag, status, "device %s: cannot open a queue", device->ops->name);
        goto cleanup;
    }
    status = backend->open(stream, isa, threads, diag);
    if (status < 0) {
        goto cleanup;
    }
    *stream_out = stream;
    stream = NULL; /* the caller owns it now */

cleanup:
    k_stream_destroy(stream);
    return status;
}

void k_stream_destroy(k_stream_t *stream)
{
    if (stream == NULL) {
        return;
    }
    stream->backend->close(stream);
    if (stream->queue != NULL) {
        stream->device->ops->close_queue(stream->queue);
    }
    if (stream->scratch.addr != NULL) {
        stream->device->ops->free(stream->device, &stream->scratch);
    }
    weft_free(stream);
}

weft_status_t k_stream_reserve(k_stream_t *stream, uint32_t rows, uint32_t width)
{
    const size_t bytes = stream->ops->scratch_bytes(rows, width, k_stream_threads(stream));
    if (bytes <= stream->scratch.bytes) {
        return WEFT_OK;
    }
    if (stream->scratch.addr != NULL) { /* first: there may be no room for both */
        stream->device->ops->free(stream->device, &stream->scratch);
    }
    stream->scratch = (weft_mem_t){.fd = -1};
    return stream->device->ops->alloc(stream->device, bytes, 0, &stream->scratch);
}

weft_status_t k_stream_sync(k_stream_t *stream)
{
    const weft_status_t settled =
        stream->backend->settle == NULL ? WEFT_OK : stream->backend->settle(stream);
    const weft_status_t synced = stream->device->ops->sync(stream->queue);
    return settled < 0 ? settled : synced;
}

uint32_t k_stream_threads(const k_stream_t *stream)
{
    return stream->team == NULL ? 1 : k_team_size(stream->team);
}

bool k_stream_has_graphs(const k_stream_t *stream)
{
    return stream->backend->capture != NULL;
}

weft_status_t k_stream_capture(k_stream_t *stream)
{
    assert(k_stream_has_graphs(stream));
    return stream->backend->capture(stream);
}

weft_status_t k_stream_end_capture(k_stream_t *stream, k_graph_t **graph_out)
{
    return stream->backend->end_capture(stream, graph_out);
}

void k_graph_launch(k_stream_t *stream, const k_graph_t *graph)
{
    stream->backend->launch(stream, graph);
}

void k_graph_destroy(k_stream_t *stream, k_graph_t *graph)
{
    if (graph != NULL) {
        stream->backend->destroy_graph(graph);
    }
}

weft_status_t k_convert_heads(const k_stream_t *stream, weft_queue_t *queue, k_head_form_t to,
                              k_head_form_t from, const k_head_move_t *moves, uint32_t n)
{
    if (stream->backend->convert_heads == NULL) {
        return WEFT_ERR_UNSUPPORTED;
    }
    stream->backend->convert_heads(stream, queue, to, from, moves, n);
    return WEFT_OK;
}
