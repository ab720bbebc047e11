/* SPDX-License-Identifier: Apache-2.0 */
/*
 * emu_machine: a grid being run: its blocks, their threads, and who waits for what. Internal to
 * the emulator.
 *
 * Threads of a block are fibers. One runs until it has to wait, then the schedule picks another; a
 * thread that ends starts the next one on its own stack. When none can go on, the block's copies
 * on their way are carried out; when there are none, it is a deadlock and a fault.
 *
 * A fault ends the grid: the faulting fiber never comes back, its stacks are dropped, and the
 * runtime reports the error from then on.
 *
 * Threads  whoever runs kernels holds the runtime's lock; all state here belongs to that one
 */
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/cuda_emu/emu_control.h"

namespace emu
{

constexpr int warp_size = 32;
constexpr uint32_t all_lanes = 0xffffffffu;
constexpr int group_threads = 128; /* a warp group's */
constexpr int max_threads = 1024;

enum class State : uint8_t { fresh, ready, running, waiting, done };

/* A cp.async that has been issued and not carried out. */
struct Copy {
    void *shared;
    const void *global;
    uint32_t bytes;
    uint32_t valid;
};

struct Thread {
    State state = State::fresh;
    void *stack = nullptr;
    void *saved = nullptr; /* where the fiber goes on */
    uint3 index = {};
    int linear = 0;
    const char *waits_for = nullptr;
    uint64_t waits_detail = 0;
    int result = 0; /* of a barrier that also counts */

    std::vector<Copy> copies;   /* oldest first */
    std::vector<size_t> groups; /* copies of each committed group, oldest first */
    size_t uncommitted = 0;

    std::vector<size_t> stores; /* committed groups of bulk stores: how many each, oldest first */
    size_t uncommitted_stores = 0;

    /* Return address of the mbarrier wait since it last arrived at one or met others; null: none. */
    const void *waited_at = nullptr;
};

/* A call that lanes of a warp make together. */
struct Meeting {
    const char *what = nullptr;
    uint64_t detail = 0; /* further that must be the same for all */
    uint32_t mask = 0;
    uint32_t arrived = 0; /* lanes */
    std::vector<Thread *> waiting;
    void *arguments[warp_size];
};

struct Warp {
    std::vector<std::unique_ptr<Meeting>> open;  /* of disjoint masks */
    std::vector<std::unique_ptr<Meeting>> spare; /* over, to be used again */
    uint32_t done = 0;                           /* lanes that have ended */
};

struct Barrier {
    int arrived = 0;
    int expected = 0; /* 0: none has come yet */
    int counted = 0;
    const char *what = nullptr;
    std::vector<Thread *> waiting;
};

/* Of a warp group. */
struct Registers {
    int each = 0;  /* a thread's; 0: those of the launch */
    int moved = 0; /* times that a thread has moved some */
};

struct Grid;
struct Mbarriers;  /* emu_mbarrier.cpp */
struct Bulk;       /* emu_tma.cpp: copies on their way */
struct Clocks;     /* emu_shadow.cpp */
struct WarpGroups; /* emu_wgmma.cpp */

struct Block {
    Grid *grid = nullptr;
    uint3 index = {};
    uint32_t run = 0; /* unique in the process; grows */
    uint8_t *arena = nullptr;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Barrier barriers[16];
    std::vector<uint16_t> ready; /* linear indices, in the order they became so */
    size_t ready_first = 0;
    int started = 0;
    int live = 0;
    bool has_waited = false; /* simt_wait_previous() by one of its threads */
    int spinning = 0;        /* threads in `ready` that only look at a flag again */

    std::shared_ptr<Mbarriers> mbarriers;
    std::shared_ptr<Bulk> bulk;
    std::shared_ptr<WarpGroups> groups;
    std::shared_ptr<Clocks> clocks;
    std::vector<Registers> registers; /* of each warp group, once one moved some */
};

struct Slot {
    const void *tag;
    uint32_t offset;
    uint32_t bytes;
    const char *name;
};

struct Grid {
    std::string name;
    dim3 dims;
    dim3 block_dims;
    uint32_t shared_bytes = 0;
    bool is_checked = false;
    void (*run)(const void *closure) = nullptr; /* one thread */
    const void *closure = nullptr;
    uint32_t first_run = 0;
    bool overlaps_previous = false;
    uint32_t previous_first_run = 0; /* of the grid before, with which this one may overlap */
    std::vector<Slot> slots;
    uint32_t shared_used = 0;
};

/* What runs now; null between kernels. */
extern Block *now_block;
extern Thread *now;

/* Blocks run so far; what had run when a launch was enqueued cannot overlap it. */
uint32_t runs_so_far(void);
void set_runs_before_launch(uint32_t runs_before);

/* Runs a whole grid; false after a fault. */
bool run_grid(Grid &grid);

/* ---- for the operations --------------------------------------------------------------------- */

/* Gives the processor away until make_ready(this thread). */
void wait_here(const char *what, uint64_t detail = 0);
void make_ready(Thread &thread);
/* Lets every other thread, block and process go on before the caller does. */
void spin_here(void);

/* A number of the running schedule: 0..n-1; always 0 but under the random one. */
uint32_t choose(uint32_t n);
emu_schedule_t schedule(void);

/* Prints what happened and where, ends the grid. Errors are CUDA's. */
[[noreturn]] void fail(cudaError_t error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* The same for code that no thread of a kernel runs; returns. */
void note_fault(cudaError_t error, const std::string &text);

/* Leaves the running grid without a report (one was given). */
[[noreturn]] void abandon_grid(void);

/* "thread 17 of block 3 in kernel …" of the running one. */
std::string where(void);

/* A line for each thing that threads of the block wait for, each begun by a line break. */
std::string describe_waiting(const Block &block);

/* ---- pieces with state in a block, in their own files ---------------------------------------- */

void warp_thread_ended(Block &block, Thread &thread);
void barrier_thread_ended(Block &block);
void async_thread_ended(Thread &thread);

/* Carries out a copy on its way (in the schedule's order); false if there is none. */
bool bulk_progress(Block &block);
void bulk_block_ended(Block &block);
void wgmma_block_ended(Block &block);
void registers_block_ended(Block &block);

} // namespace emu
