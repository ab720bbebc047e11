/* SPDX-License-Identifier: Apache-2.0 */
/* The lock, the errors and what tests ask: emu_control.h. */
#include "tests/cuda_emu/emu_runtime.h"

#include <sched.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "tests/cuda_emu/emu_machine.h"

namespace emu
{

constexpr uint64_t spin_deadline_ns = UINT64_C(60) * 1000 * 1000 * 1000; /* ranks are slow */

static std::recursive_mutex lock;
static cudaError_t sticky = cudaSuccess;
static thread_local cudaError_t last = cudaSuccess;
static std::string fault_text;
static Limits limits = {90, 227 << 10, size_t{8} << 30, 4, 1};

static void read_environment(void)
{
    const char *name = getenv("WEFT_EMU_SCHEDULE");
    const char *seed = getenv("WEFT_TEST_SEED");
    const char *capability = getenv("WEFT_EMU_CAPABILITY");
    const char *devices = getenv("WEFT_EMU_DEVICES");
    emu_schedule_t schedule = EMU_FORWARD;
    fputs("cuda_emu: a test double of a GPU: kernels run on the CPU\n", stderr);
    if (name != nullptr && strcmp(name, "backward") == 0) {
        schedule = EMU_BACKWARD;
    } else if (name != nullptr && strcmp(name, "random") == 0) {
        schedule = EMU_RANDOM;
    } else if (name != nullptr && strcmp(name, "forward") != 0) {
        fprintf(stderr, "cuda_emu: WEFT_EMU_SCHEDULE=%s: forward, backward or random\n", name);
        exit(2);
    }
    set_schedule(schedule, seed == nullptr ? 1 : strtoull(seed, nullptr, 10));
    if (capability != nullptr) {
        emu_set_capability(atoi(capability));
    }
    if (devices != nullptr) {
        limits.devices = atoi(devices);
    }
}

Entry::Entry()
{
    lock.lock();
    static bool is_ready;
    if (!is_ready) {
        is_ready = true;
        read_environment();
    }
}

Entry::~Entry()
{
    lock.unlock();
}

cudaError_t sticky_error(void)
{
    return sticky;
}

cudaError_t give(cudaError_t error)
{
    if (error != cudaSuccess && error != cudaErrorNotReady) {
        last = error;
    }
    return error;
}

void note_fault(cudaError_t error, const std::string &text)
{
    fprintf(stderr, "cuda_emu: %s\n", text.c_str());
    if (sticky == cudaSuccess) {
        sticky = error;
        fault_text = text;
    }
}

const Limits &device_limits(void)
{
    return limits;
}

static uint64_t clock_ns(void)
{
    struct timespec now_ts;
    clock_gettime(CLOCK_MONOTONIC, &now_ts);
    return static_cast<uint64_t>(now_ts.tv_sec) * 1000000000u +
           static_cast<uint64_t>(now_ts.tv_nsec);
}

bool let_others_run(uint64_t rounds)
{
    static uint64_t began_ns;
    if (rounds <= 1) {
        began_ns = clock_ns();
    }
    lock.unlock();
    sched_yield();
    lock.lock();
    return clock_ns() - began_ns < spin_deadline_ns;
}

} // namespace emu

using namespace emu;

void emu_set_schedule(emu_schedule_t schedule, uint64_t seed)
{
    Entry entry;
    set_schedule(schedule, seed);
}

void emu_set_capability(int capability)
{
    Entry entry;
    limits.capability = capability;
    limits.shared_bytes = capability >= 90 ? 227 << 10 : capability == 80 ? 163 << 10 : 99 << 10;
}

const char *emu_fault(void)
{
    return fault_text.c_str();
}

void emu_reset(void)
{
    Entry entry;
    sticky = last = cudaSuccess;
    fault_text.clear();
    forget_streams();
}

bool emu_is_emulated(void)
{
    return true;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = sticky != cudaSuccess ? sticky : last;
    last = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void)
{
    return sticky != cudaSuccess ? sticky : last;
}

namespace
{
struct ErrorText {
    cudaError_t error;
    const char *name;
    const char *text;
};
#define ERROR_TEXT(error, text) {error, #error, text}
constexpr ErrorText error_texts[] = {
    ERROR_TEXT(cudaSuccess, "no error"),
    ERROR_TEXT(cudaErrorInvalidValue, "invalid argument"),
    ERROR_TEXT(cudaErrorMemoryAllocation, "out of memory"),
    ERROR_TEXT(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    ERROR_TEXT(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR_TEXT(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR_TEXT(cudaErrorNotReady, "device not ready"),
    ERROR_TEXT(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    ERROR_TEXT(cudaErrorMisalignedAddress, "misaligned address"),
    ERROR_TEXT(cudaErrorLaunchFailure, "unspecified launch failure"),
    ERROR_TEXT(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    ERROR_TEXT(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    ERROR_TEXT(cudaErrorStreamCaptureUnsupported,
               "operation not permitted when stream is capturing"),
    ERROR_TEXT(cudaErrorStreamCaptureInvalidated,
               "operation failed due to a previous error during capture"),
    ERROR_TEXT(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    ERROR_TEXT(cudaErrorNotSupported, "operation not supported"),
};

const ErrorText &text_of(cudaError_t error)
{
    static constexpr ErrorText unknown = {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"};
    for (const ErrorText &row : error_texts) {
        if (row.error == error) {
            return row;
        }
    }
    return unknown;
}
} // namespace

const char *cudaGetErrorName(cudaError_t error)
{
    return text_of(error).name;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return text_of(error).text;
}
