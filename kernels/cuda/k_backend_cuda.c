/* SPDX-License-Identifier: Apache-2.0 */
/* Streams of NVIDIA GPUs: one ops table, CUDA graphs, and readers while weights are loaded. */
#include <cuda_runtime_api.h>

#include "base/alloc.h"
#include "base/device_cuda.h"
#include "kernels/cuda/cuda_loader.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/kv_blocks.h"
#include "kernels/k_backend.h"

extern const k_backend_t k_backend_cuda;

struct k_graph {
    cudaGraphExec_t exec;
};

static weft_status_t cuda_open(k_stream_t *stream, const char *isa, uint32_t threads,
                               weft_diag_t *diag)
{
    (void)isa;
    (void)threads;
    int multiprocessors = 0;
    const cudaError_t error = cudaDeviceGetAttribute(
        &multiprocessors, cudaDevAttrMultiProcessorCount, stream->device->index);
    if (!weft_device_cuda_note(stream->device, error, "cudaDeviceGetAttribute")) {
        return weft_diag(diag, WEFT_ERR_DEVICE, "device cuda:%d: %s", stream->device->index,
                         cudaGetErrorString(error));
    }
    stream->ops = &k_ops_cuda;
    stream->multiprocessors = (uint32_t)multiprocessors;
    return WEFT_OK;
}

static void cuda_close(k_stream_t *stream)
{
    cuda_loader_destroy(stream->loader);
}

/* Weights that are still being read count as enqueued. Readers that got none since are let go. */
static weft_status_t cuda_settle(k_stream_t *stream)
{
    if (stream->loader == NULL) {
        return WEFT_OK;
    }
    const bool is_idle = cuda_loader_is_idle(stream->loader);
    const weft_status_t status = cuda_loader_finish(stream->loader);
    if (is_idle) {
        cuda_loader_destroy(stream->loader);
        stream->loader = NULL;
    }
    return status;
}

/* ---- graphs -------------------------------------------------------------------------------- */

static cudaStream_t stream_of(const k_stream_t *stream)
{
    return weft_device_cuda_stream(stream->queue);
}

static weft_status_t cuda_capture(k_stream_t *stream)
{
    /* Relaxed: other threads may allocate and copy while we record. */
    const bool is_begun =
        weft_device_cuda_use(stream->device) &&
        weft_device_cuda_note(
            stream->device, cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeRelaxed),
            "cudaStreamBeginCapture");
    return is_begun ? WEFT_OK : WEFT_ERR_DEVICE;
}

/* Uploaded as well, so that what is short of memory is this and not a launch. */
static cudaError_t instantiate(k_stream_t *stream, cudaGraph_t recorded, cudaGraphExec_t *exec_out)
{
    cudaGraphExec_t exec = NULL;
    cudaError_t error = cudaGraphInstantiate(&exec, recorded, 0);
    if (error != cudaSuccess) {
        return error;
    }
    error = cudaGraphUpload(exec, stream_of(stream));
    if (error != cudaSuccess) {
        (void)cudaGraphExecDestroy(exec);
        return error;
    }
    *exec_out = exec;
    return cudaSuccess;
}

static weft_status_t make_graph(k_stream_t *stream, cudaGraph_t recorded, k_graph_t **graph_out)
{
    k_graph_t *graph = weft_zalloc(sizeof(*graph), "kernels.graph");
    if (graph == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const cudaError_t error = instantiate(stream, recorded, &graph->exec);
    if (error == cudaSuccess) {
        *graph_out = graph;
        return WEFT_OK;
    }
    weft_free(graph);
    if (error == cudaErrorMemoryAllocation) { /* the device goes on without it */
        (void)cudaGetLastError();
        return WEFT_ERR_NO_MEMORY;
    }
    (void)weft_device_cuda_note(stream->device, error, "cudaGraphInstantiate");
    return WEFT_ERR_DEVICE;
}

static weft_status_t cuda_end_capture(k_stream_t *stream, k_graph_t **graph_out)
{
    cudaGraph_t recorded = NULL;
    if (!weft_device_cuda_note(stream->device, cudaStreamEndCapture(stream_of(stream), &recorded),
                               "cudaStreamEndCapture")) {
        return WEFT_ERR_DEVICE;
    }
    const weft_status_t status = make_graph(stream, recorded, graph_out);
    (void)cudaGraphDestroy(recorded);
    return status;
}

static void cuda_launch(k_stream_t *stream, const k_graph_t *graph)
{
    if (weft_device_cuda_use(stream->device)) {
        (void)weft_device_cuda_note(stream->device, cudaGraphLaunch(graph->exec, stream_of(stream)),
                                    "cudaGraphLaunch");
    }
}

static void cuda_destroy_graph(k_graph_t *graph)
{
    (void)cudaGraphExecDestroy(graph->exec);
    weft_free(graph);
}

/* ---- heads --------------------------------------------------------------------------------- */

_Static_assert(sizeof(k_head_move_t) == sizeof(k_cuda_head_move_t), "the same by another name");

static k_cuda_head_form_t form_of(k_head_form_t form)
{
    return (k_cuda_head_form_t){.element = form.element,
                                .is_transposed = form.is_transposed,
                                .block_tokens = form.block_tokens,
                                .head_dim = form.head_dim};
}

static void cuda_convert_heads(const k_stream_t *stream, weft_queue_t *queue, k_head_form_t to,
                               k_head_form_t from, const k_head_move_t *moves, uint32_t n)
{
    if (weft_device_cuda_use(stream->device)) {
        const int error =
            k_cuda_convert_heads(form_of(to), form_of(from), (const k_cuda_head_move_t *)moves, n,
                                 weft_device_cuda_stream(queue));
        (void)weft_device_cuda_note(stream->device, error, "the conversion of heads");
    }
}

const k_backend_t k_backend_cuda = {
    .device = "cuda",
    .open = cuda_open,
    .close = cuda_close,
    .settle = cuda_settle,
    .capture = cuda_capture,
    .end_capture = cuda_end_capture,
    .launch = cuda_launch,
    .destroy_graph = cuda_destroy_graph,
    .convert_heads = cuda_convert_heads,
};
