/* SPDX-License-Identifier: Apache-2.0 */
/* Capture and graphs. A graph is the list of what was captured, in the order of the host's calls. */
#include <memory>

#include "tests/cuda_emu/emu_runtime.h"

namespace emu
{

cudaError_t check_no_capture(void)
{
    for (cudaStream_t stream : all_streams()) {
        Capture *capture = stream->capture;
        if (capture != nullptr && (capture->mode == cudaStreamCaptureModeGlobal ||
                                   (capture->mode == cudaStreamCaptureModeThreadLocal &&
                                    capture->thread == std::this_thread::get_id()))) {
            capture->is_broken = true;
            return cudaErrorStreamCaptureUnsupported;
        }
    }
    return cudaSuccess;
}

cudaError_t check_not_captured(cudaStream_t stream)
{
    stream = resolve_stream(stream);
    if (is_legacy_stream(stream)) {
        return check_no_capture();
    }
    if (stream->capture == nullptr) {
        return cudaSuccess;
    }
    stream->capture->is_broken = true;
    return cudaErrorStreamCaptureUnsupported;
}

} // namespace emu

using namespace emu;

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    Entry entry;
    stream = resolve_stream(stream);
    if (is_legacy_stream(stream) || stream->capture != nullptr) {
        return give(cudaErrorStreamCaptureUnsupported);
    }
    stream->capture = new Capture;
    stream->capture->origin = stream;
    stream->capture->mode = mode;
    stream->capture->thread = std::this_thread::get_id();
    return give(sticky_error());
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    Entry entry;
    stream = resolve_stream(stream);
    std::unique_ptr<Capture> capture(stream->capture);
    *graph = nullptr;
    if (capture == nullptr || capture->origin != stream) {
        (void)capture.release();
        return give(cudaErrorIllegalState);
    }
    for (cudaStream_t one : all_streams()) {
        one->capture = one->capture == capture.get() ? nullptr : one->capture;
    }
    if (capture->is_broken) {
        return give(cudaErrorStreamCaptureInvalidated);
    }
    *graph = new CUgraph_st{std::move(capture->works)};
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    Entry entry;
    *status = resolve_stream(stream)->capture != nullptr ? cudaStreamCaptureStatusActive
                                                         : cudaStreamCaptureStatusNone;
    return give(sticky_error());
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    Entry entry;
    if (!take_device_memory(0)) {
        return give(cudaErrorMemoryAllocation);
    }
    *exec = new CUgraphExec_st{graph->works};
    return give(sticky_error());
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo *info)
{
    Entry entry;
    exec->works = graph->works;
    if (info != nullptr) {
        *info = {};
        info->result = cudaGraphExecUpdateSuccess;
    }
    return give(sticky_error());
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    Entry entry;
    for (const Work &work : exec->works) {
        cudaError_t error = enqueue(stream, work.run);
        if (error != cudaSuccess) {
            return give(error);
        }
    }
    return give(sticky_error());
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
    return give(sticky_error());
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *count)
{
    *count = graph->works.size();
    return cudaSuccess;
}
