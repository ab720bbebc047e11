/* SPDX-License-Identifier: Apache-2.0 */
/*
 * emu_runtime: the CUDA runtime's own functions, so far as weft calls them. Internal to the
 * emulator; the functions themselves are declared by cuda_runtime_api.h.
 *
 * A stream is a queue of work that runs only when the host waits for it, and only as far as events
 * demand: what is not waited for has not happened. A query runs one piece of work, so that loops of
 * queries end.
 *
 * Threads  every function takes the one lock; whoever waits runs kernels under it
 */
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/cuda_emu/emu_control.h"

namespace emu
{

/* ---- the lock and the sticky error ---------------------------------------------------------- */

/* Held while a runtime function runs. */
struct Entry {
    Entry();
    ~Entry();
};

/* The error every call returns after a fault; cudaSuccess before. */
cudaError_t sticky_error(void);
/* Remembers it for cudaGetLastError(), and returns it. */
cudaError_t give(cudaError_t error);

/*
 * All threads of the running grids spin: gives the lock away for a moment, so that other threads
 * and processes can do what they wait for. False once that has been in vain for long.
 */
bool let_others_run(uint64_t rounds);

void set_schedule(emu_schedule_t schedule, uint64_t seed);

/* ---- the device ----------------------------------------------------------------------------- */

struct Limits {
    int capability; /* 90 */
    size_t shared_bytes;
    size_t memory_bytes;
    int multiprocessors;
    int devices; /* alike; a process uses one of them (WEFT_EMU_DEVICES) */
};

const Limits &device_limits(void);
bool is_device(int device);
/* Whether the current device's kernels fail: WEFT_EMU_FAULT=PATH, and there is a file PATH.N, N the
 * device's index. */
bool is_told_to_fail(void);

/* ---- memory --------------------------------------------------------------------------------- */

enum class Space { device, pinned, mapped };

struct Allocation {
    uint8_t *base;
    size_t bytes; /* as asked for */
    Space space;
    uint8_t *map; /* what was mapped, with the guard page */
    size_t map_bytes;
    int fd; /* of memory that others may map, else -1 */
};

/* The one that holds the address, or NULL. */
const Allocation *find_allocation(const void *address);
/* The one that ends up to a page before the address, or NULL. */
const Allocation *find_allocation_before(const void *address);
bool is_pageable(const void *address);
/* Counts memory as the device's; false: there is not so much, or emu_fail_alloc() said so. */
bool take_device_memory(size_t bytes);
void give_device_memory(size_t bytes);
/* Memory of the driver's own functions (emu_vmm.cpp). */
void add_allocation(const Allocation &allocation);
void remove_allocation(const void *base);

/* ---- streams -------------------------------------------------------------------------------- */

struct Event {
    cudaStream_t stream = nullptr; /* that it was recorded in last */
    uint64_t position = 0;         /* of the record in that stream; 0: never recorded */
    uint64_t recorded = 0;         /* position that was reached last */
    uint64_t done_ns = 0;
    struct Capture *capture = nullptr;
};

struct Work {
    std::function<void()> run;
    uint32_t runs_before = 0; /* runs_so_far() when it was enqueued */
    Event *waits = nullptr;   /* first until this event has reached waits_position */
    cudaStream_t waits_stream = nullptr;
    uint64_t waits_position = 0;
};

struct Capture {
    std::vector<Work> works;
    cudaStream_t origin = nullptr;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id thread; /* that began it */
    bool is_broken = false;
};

/* The default stream for NULL. */
cudaStream_t resolve_stream(cudaStream_t stream);
bool is_legacy_stream(cudaStream_t stream);
const std::set<cudaStream_t> &all_streams(void);

/* Adds work to a stream, or to the graph that it is being captured into. */
cudaError_t enqueue(cudaStream_t stream, std::function<void()> run);
/* Refuses what may not happen while a stream is being captured, by the capture's mode; and waiting for
 * a stream that is. Both break the capture. */
cudaError_t check_no_capture(void);
cudaError_t check_not_captured(cudaStream_t stream);
cudaError_t drain(cudaStream_t stream);
/* The streams that the legacy default stream waits for, and itself. */
cudaError_t drain_blocking(void);
cudaError_t drain_all(void);
void forget_streams(void);

} // namespace emu

/* What the handles of cuda_runtime_api.h point to. */
struct CUstream_st {
    std::deque<emu::Work> works;
    uint64_t queued = 0; /* works ever added */
    uint64_t done = 0;
    bool is_blocking = true; /* orders itself with the legacy default stream */
    bool is_running = false;
    emu::Capture *capture = nullptr;
};

struct CUevent_st {
    emu::Event event;
};

struct CUgraph_st {
    std::vector<emu::Work> works;
};

struct CUgraphExec_st {
    std::vector<emu::Work> works;
};
