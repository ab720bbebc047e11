/* SPDX-License-Identifier: Apache-2.0 */
/* Streams, events and launches: work that happens when the host waits for it. */
#include <ctime>
#include <memory>

#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_machine.h"
#include "tests/cuda_emu/emu_runtime.h"

namespace emu
{

static CUstream_st legacy_stream;
static std::set<cudaStream_t> streams = {&legacy_stream};
static std::vector<std::string> launched;

cudaStream_t resolve_stream(cudaStream_t stream)
{
    return stream == nullptr || stream == cudaStreamLegacy ? &legacy_stream : stream;
}

bool is_legacy_stream(cudaStream_t stream)
{
    return stream == &legacy_stream;
}

const std::set<cudaStream_t> &all_streams(void)
{
    return streams;
}

static uint64_t clock_ns(void)
{
    struct timespec now_ts;
    clock_gettime(CLOCK_MONOTONIC, &now_ts);
    return static_cast<uint64_t>(now_ts.tv_sec) * 1000000000u +
           static_cast<uint64_t>(now_ts.tv_nsec);
}

static void add(cudaStream_t stream, Work work)
{
    stream->works.push_back(std::move(work));
    stream->queued++;
}

static cudaError_t drain_to(cudaStream_t stream, uint64_t position);

/* Runs the stream's oldest work, after whatever it waits for. */
static cudaError_t run_one(cudaStream_t stream)
{
    const Work &front = stream->works.front();
    if (front.waits_stream != nullptr && streams.count(front.waits_stream) > 0) {
        cudaError_t error = drain_to(front.waits_stream, front.waits_position);
        if (error != cudaSuccess) {
            return error;
        }
    }
    Work work = std::move(stream->works.front());
    stream->works.pop_front();
    stream->is_running = true;
    if (work.run) {
        set_runs_before_launch(work.runs_before);
        work.run();
    }
    stream->is_running = false;
    stream->done++;
    return sticky_error();
}

/* While another OS thread runs this stream's work (it gave the lock away), there is only waiting. */
static cudaError_t drain_to(cudaStream_t stream, uint64_t position)
{
    uint64_t rounds = 0;
    while (stream->done < position && sticky_error() == cudaSuccess) {
        if (stream->is_running) {
            if (!let_others_run(rounds++)) {
                note_fault(cudaErrorLaunchTimeout, "a stream's work never ends");
            }
            continue;
        }
        cudaError_t error = run_one(stream);
        if (error != cudaSuccess) {
            return error;
        }
    }
    return sticky_error();
}

cudaError_t drain(cudaStream_t stream)
{
    stream = resolve_stream(stream);
    if (stream == &legacy_stream) {
        return drain_blocking();
    }
    return drain_to(stream, stream->queued);
}

static cudaError_t drain_those(bool takes_all)
{
    std::vector<cudaStream_t> order(streams.begin(), streams.end());
    for (cudaStream_t stream : order) {
        if (streams.count(stream) == 0 || (!takes_all && !stream->is_blocking)) {
            continue;
        }
        cudaError_t error = drain_to(stream, stream->queued);
        if (error != cudaSuccess) {
            return error;
        }
    }
    return sticky_error();
}

cudaError_t drain_blocking(void)
{
    return drain_those(false);
}

cudaError_t drain_all(void)
{
    return drain_those(true);
}

void forget_streams(void)
{
    for (cudaStream_t stream : streams) {
        stream->works.clear();
        stream->done = stream->queued;
        stream->is_running = false;
        stream->capture = nullptr;
    }
    launched.clear();
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> run)
{
    if (sticky_error() != cudaSuccess) {
        return sticky_error();
    }
    stream = resolve_stream(stream);
    Work work;
    work.run = std::move(run);
    work.runs_before = runs_so_far();
    if (stream->capture != nullptr) {
        stream->capture->works.push_back(std::move(work));
        return cudaSuccess;
    }
    if (stream == &legacy_stream) {
        /* Comes after all blocking streams, and they after it: kept simple by running them now. */
        cudaError_t error = drain_blocking();
        if (error != cudaSuccess) {
            return error;
        }
    } else if (stream->is_blocking && legacy_stream.done < legacy_stream.queued) {
        work.waits_stream = &legacy_stream;
        work.waits_position = legacy_stream.queued;
    }
    add(stream, std::move(work));
    return cudaSuccess;
}

/* ---- launches ------------------------------------------------------------------------------- */

/* The kernel in the text of simt_launch's arguments: up to a comma outside of <>. */
static std::string kernel_name(const char *text)
{
    int depth = 0;
    const char *end = text;
    for (; *end != '\0' && (*end != ',' || depth > 0); end++) {
        depth += *end == '<' ? 1 : *end == '>' ? -1 : 0;
    }
    return std::string(text, end);
}

static cudaError_t check_launch(const emu_launch_t &launch)
{
    uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
    if (threads == 0 || threads > max_threads || launch.block.z > 64 || launch.grid.x == 0 ||
        launch.grid.y == 0 || launch.grid.z == 0 || launch.grid.x > 0x7fffffffu ||
        launch.grid.y > 65535 || launch.grid.z > 65535) {
        return cudaErrorInvalidConfiguration;
    }
    return launch.shared_bytes > device_limits().shared_bytes ? cudaErrorInvalidValue : cudaSuccess;
}

static void run_launch(const emu_launch_t &launch)
{
    Grid grid;
    grid.name = kernel_name(launch.text);
    grid.dims = launch.grid;
    grid.block_dims = launch.block;
    grid.shared_bytes = static_cast<uint32_t>(launch.shared_bytes);
    grid.is_checked = launch.is_checked;
    grid.overlaps_previous = launch.overlaps_previous;
    grid.run = launch.run;
    grid.closure = launch.closure.get();
    launched.push_back(grid.name);
    if (is_told_to_fail()) {
        note_fault(cudaErrorLaunchFailure, grid.name + " fails: WEFT_EMU_FAULT");
        return;
    }
    run_grid(grid);
}

} // namespace emu

using namespace emu;

uint64_t emu_launches(const char *name)
{
    Entry entry;
    uint64_t count = 0;
    for (const std::string &one : launched) {
        count += one.find(name) != std::string::npos ? 1 : 0;
    }
    return count;
}

cudaError_t emu_enqueue(const emu_launch_t &launch)
{
    Entry entry;
    cudaError_t error = check_launch(launch);
    if (error != cudaSuccess) {
        return give(error);
    }
    auto copy = std::make_shared<emu_launch_t>(launch);
    return give(enqueue(launch.stream, [copy] { run_launch(*copy); }));
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument)
{
    Entry entry;
    return give(enqueue(stream, [function, argument] { function(argument); }));
}

/* ---- streams -------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int)
{
    Entry entry;
    if (sticky_error() != cudaSuccess) {
        return give(sticky_error());
    }
    *stream = new CUstream_st;
    (*stream)->is_blocking = (flags & cudaStreamNonBlocking) == 0;
    streams.insert(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return cudaStreamCreateWithPriority(stream, 0, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    Entry entry;
    if (streams.count(stream) == 0 || stream == &legacy_stream) {
        return give(cudaErrorInvalidResourceHandle);
    }
    cudaError_t error = drain(stream);
    streams.erase(stream);
    delete stream;
    return give(error);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    Entry entry;
    cudaError_t error = check_not_captured(stream);
    return give(error == cudaSuccess ? drain(stream) : error);
}

cudaError_t cudaDeviceSynchronize(void)
{
    Entry entry;
    cudaError_t error = check_no_capture();
    return give(error == cudaSuccess ? drain_all() : error);
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    Entry entry;
    stream = resolve_stream(stream);
    if (sticky_error() != cudaSuccess) {
        return give(sticky_error());
    }
    if (stream->done == stream->queued) {
        return cudaSuccess;
    }
    cudaError_t error = stream->is_running ? cudaSuccess : run_one(stream);
    return give(error == cudaSuccess ? cudaErrorNotReady : error);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    Entry entry;
    stream = resolve_stream(stream);
    if (sticky_error() != cudaSuccess) {
        return give(sticky_error());
    }
    if (event->event.capture != nullptr) {
        stream->capture = event->event.capture; /* joins that capture; its order is the host's */
        return cudaSuccess;
    }
    if (event->event.position == 0) {
        return cudaSuccess;
    }
    if (stream->capture != nullptr) {
        stream->capture->is_broken = true;
        return give(cudaErrorStreamCaptureIsolation);
    }
    Work work;
    work.waits_stream = event->event.stream;
    work.waits_position = event->event.position;
    add(stream, std::move(work));
    return cudaSuccess;
}

/* ---- events --------------------------------------------------------------------------------- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    Entry entry;
    if (sticky_error() != cudaSuccess) {
        return give(sticky_error());
    }
    *event = new CUevent_st;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, 0);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    Entry entry;
    if (event->event.position > event->event.recorded && event->event.stream != nullptr &&
        streams.count(event->event.stream) > 0) {
        drain_to(event->event.stream, event->event.position);
    }
    delete event;
    return give(sticky_error());
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    Entry entry;
    stream = resolve_stream(stream);
    if (sticky_error() != cudaSuccess) {
        return give(sticky_error());
    }
    if (stream->capture != nullptr) {
        event->event.capture = stream->capture;
        return cudaSuccess;
    }
    Work work;
    Event *recorded = &event->event;
    uint64_t position = stream->queued + 1;
    work.run = [recorded, position] {
        recorded->recorded = position;
        recorded->done_ns = clock_ns();
    };
    add(stream, std::move(work));
    event->event.capture = nullptr;
    event->event.stream = stream;
    event->event.position = position;
    event->event.recorded = 0;
    return cudaSuccess;
}

static bool is_reached(const Event &event)
{
    return event.position == 0 || streams.count(event.stream) == 0 ||
           event.stream->done >= event.position;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    Entry entry;
    if (event->event.capture != nullptr) {
        return give(cudaErrorCapturedEvent);
    }
    if (sticky_error() != cudaSuccess || is_reached(event->event)) {
        return give(sticky_error());
    }
    return give(drain_to(event->event.stream, event->event.position));
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    Entry entry;
    if (event->event.capture != nullptr) {
        return give(cudaErrorCapturedEvent);
    }
    if (sticky_error() != cudaSuccess || is_reached(event->event)) {
        return give(sticky_error());
    }
    cudaStream_t stream = event->event.stream;
    cudaError_t error = stream->is_running ? cudaSuccess : run_one(stream);
    return give(error == cudaSuccess ? cudaErrorNotReady : error);
}

/* Time of the host: of the order of events it tells something, of speed nothing. */
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end)
{
    Entry entry;
    if (!is_reached(start->event) || !is_reached(end->event)) {
        return give(cudaErrorNotReady);
    }
    *milliseconds = static_cast<float>(static_cast<double>(end->event.done_ns) -
                                       static_cast<double>(start->event.done_ns)) /
                    1e6f;
    return give(sticky_error());
}
