/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/cuda_emu/emu_machine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "tests/cuda_emu/emu_fiber.h"
#include "tests/cuda_emu/emu_memory_map.h"
#include "tests/cuda_emu/emu_runtime.h"
#include "tests/cuda_emu/emu_shadow.h"
#include "tests/cuda_emu/emu_shared.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emu
{

Block *now_block;
Thread *now;

static void *scheduler_saved;
static bool is_abandoned;
static uint32_t runs;
static uint32_t runs_before_launch;
static emu_schedule_t chosen_schedule = EMU_FORWARD;
static uint64_t random_state = 1;

uint32_t runs_so_far(void)
{
    return runs;
}

void set_runs_before_launch(uint32_t runs_before)
{
    runs_before_launch = runs_before;
}

/* ---- the schedule --------------------------------------------------------------------------- */

emu_schedule_t schedule(void)
{
    return chosen_schedule;
}

void set_schedule(emu_schedule_t schedule, uint64_t seed)
{
    chosen_schedule = schedule;
    random_state = seed * 2 + 1;
}

uint32_t choose(uint32_t n)
{
    if (chosen_schedule != EMU_RANDOM || n < 2) {
        return 0;
    }
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>((random_state >> 33) % n);
}

static size_t ready_count(const Block &block)
{
    return block.ready.size() - block.ready_first;
}

static Thread *take_ready(Block &block)
{
    size_t at = block.ready_first;
    if (chosen_schedule == EMU_BACKWARD) {
        at = block.ready.size() - 1;
    } else if (chosen_schedule == EMU_RANDOM) {
        at += choose(static_cast<uint32_t>(ready_count(block)));
    }
    uint16_t linear = block.ready[at];
    if (chosen_schedule == EMU_FORWARD) {
        block.ready_first++;
    } else {
        block.ready[at] = block.ready.back();
        block.ready.pop_back();
    }
    if (block.ready_first == block.ready.size()) {
        block.ready.clear();
        block.ready_first = 0;
    }
    return &block.threads[linear];
}

static Thread *take_fresh(Block &block)
{
    int count = static_cast<int>(block.threads.size());
    int linear = chosen_schedule == EMU_BACKWARD ? count - 1 - block.started : block.started;
    block.started++;
    return &block.threads[static_cast<size_t>(linear)];
}

/* Who goes on, or NULL: no one can. */
static Thread *pick(Block &block)
{
    bool has_ready = ready_count(block) > 0;
    bool has_fresh = block.started < static_cast<int>(block.threads.size());
    if (has_ready && has_fresh) {
        bool takes_fresh =
            chosen_schedule == EMU_RANDOM ? choose(2) == 1 : chosen_schedule == EMU_BACKWARD;
        return takes_fresh ? take_fresh(block) : take_ready(block);
    }
    if (has_ready) {
        return take_ready(block);
    }
    return has_fresh ? take_fresh(block) : nullptr;
}

/* ---- switching ------------------------------------------------------------------------------ */

static void set_running(Thread *thread)
{
    now = thread;
    thread->state = State::running;
    threadIdx = thread->index;
}

static void end_thread(Block &block, Thread &thread)
{
    thread.state = State::done;
    block.live--;
    async_thread_ended(thread);
    warp_thread_ended(block, thread);
    barrier_thread_ended(block);
}

/* Runs threads one after another until one that waited is to go on. */
static void fiber_main(void)
{
    for (;;) {
        Block &block = *now_block;
        block.grid->run(block.grid->closure);
        void *stack = now->stack;
        now->stack = nullptr;
        end_thread(block, *now);
        Thread *next = pick(block);
        if (next != nullptr && next->state == State::fresh) {
            next->stack = stack;
            set_running(next);
            continue;
        }
        emu_stack_give(stack);
        void *unused;
        if (next != nullptr) {
            set_running(next);
            emu_fiber_switch(&unused, next->saved);
        }
        emu_fiber_switch(&unused, scheduler_saved);
    }
}

static void switch_to(void **save, Thread *thread)
{
    bool is_fresh = thread->state == State::fresh;
    if (is_fresh) {
        thread->stack = emu_stack_take();
        thread->saved = emu_fiber_prepare(thread->stack, fiber_main);
    }
    set_running(thread);
    emu_fiber_switch(save, thread->saved);
}

void make_ready(Thread &thread)
{
    if (thread.state != State::waiting) {
        return; /* the caller itself, which goes on anyhow */
    }
    thread.state = State::ready;
    thread.waits_for = nullptr;
    now_block->ready.push_back(static_cast<uint16_t>(thread.linear));
}

void wait_here(const char *what, uint64_t detail)
{
    Thread *self = now;
    self->state = State::waiting;
    self->waits_for = what;
    self->waits_detail = detail;
    Thread *next = pick(*now_block);
    if (next == nullptr) {
        emu_fiber_switch(&self->saved, scheduler_saved);
    } else if (next != self) {
        switch_to(&self->saved, next);
    } else {
        set_running(self);
    }
}

static const char spinning_for[] = "a flag (simt_spin)";

void spin_here(void)
{
    now_block->spinning++;
    now->state = State::waiting;
    now->waits_for = spinning_for;
    Thread *self = now;
    emu_fiber_switch(&self->saved, scheduler_saved);
}

void abandon_grid(void)
{
    is_abandoned = true;
    void *unused;
    emu_fiber_switch(&unused, scheduler_saved);
    __builtin_unreachable();
}

/* ---- faults --------------------------------------------------------------------------------- */

static std::string format_index(uint3 index)
{
    std::string text = std::to_string(index.x);
    if (index.y != 0 || index.z != 0) {
        text += "," + std::to_string(index.y) + "," + std::to_string(index.z);
    }
    return text;
}

std::string where(void)
{
    if (now_block == nullptr) {
        return "outside a kernel";
    }
    return "thread " + format_index(now->index) + " of block " + format_index(now_block->index) +
           " in " + now_block->grid->name;
}

void fail(cudaError_t error, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    note_fault(error, where() + ": " + text);
    abandon_grid();
}

static void fail_deadlock(const Block &block)
{
    note_fault(cudaErrorLaunchTimeout, "deadlock in block " + format_index(block.index) + " of " +
                                           block.grid->name + ": no thread can go on" +
                                           describe_waiting(block));
    is_abandoned = true;
}

/* ---- blocks --------------------------------------------------------------------------------- */

static void prepare_block(Block &block, Grid &grid, uint3 index)
{
    block.grid = &grid;
    block.index = index;
    block.run = ++runs;
    block.arena = shared_arena_take();
    shared_begin_block(block);
    int count = static_cast<int>(grid.block_dims.x * grid.block_dims.y * grid.block_dims.z);
    block.live = count;
    block.threads.resize(static_cast<size_t>(count));
    block.warps.resize(static_cast<size_t>((count + warp_size - 1) / warp_size));
    for (int i = 0; i < count; i++) {
        Thread &thread = block.threads[static_cast<size_t>(i)];
        unsigned linear = static_cast<unsigned>(i);
        thread.linear = i;
        thread.index = {linear % grid.block_dims.x, linear / grid.block_dims.x % grid.block_dims.y,
                        linear / (grid.block_dims.x * grid.block_dims.y)};
    }
    if (grid.is_checked) {
        shadow_begin_block(block);
    }
}

static void release_block(Block &block)
{
    for (Thread &thread : block.threads) {
        if (thread.stack != nullptr) {
            emu_stack_give(thread.stack);
        }
    }
    shared_arena_give(block.arena);
}

static void enter_block(Block &block)
{
    now_block = &block;
    blockIdx = block.index;
    blockDim = block.grid->block_dims;
    gridDim = block.grid->dims;
}

static void wake_spinning(Block &block)
{
    block.spinning = 0;
    for (Thread &thread : block.threads) {
        if (thread.state == State::waiting && thread.waits_for == spinning_for) {
            make_ready(thread);
        }
    }
}

enum class Progress { ended, spins, fault };

/* Until the block has ended, or all it could do now is look at a flag again. */
static Progress run_block(Block &block)
{
    enter_block(block);
    wake_spinning(block);
    while (block.live > 0 && !is_abandoned) {
        Thread *next = pick(block);
        if (next != nullptr) {
            switch_to(&scheduler_saved, next);
        } else if (!bulk_progress(block)) {
            if (block.spinning > 0) {
                return Progress::spins;
            }
            fail_deadlock(block);
        }
    }
    if (!is_abandoned && block.grid->overlaps_previous && !block.has_waited) {
        note_fault(cudaErrorLaunchFailure,
                   "block " + format_index(block.index) + " of " + block.grid->name +
                       " ends without simt_wait_previous(): the kernel behind could start before "
                       "the one in front has ended");
        is_abandoned = true;
    }
    if (!is_abandoned) {
        bulk_block_ended(block);
    }
    if (!is_abandoned) {
        wgmma_block_ended(block);
    }
    if (!is_abandoned) {
        registers_block_ended(block);
    }
    return is_abandoned ? Progress::fault : Progress::ended;
}

static std::vector<uint3> block_order(const Grid &grid)
{
    std::vector<uint3> order;
    for (unsigned z = 0; z < grid.dims.z; z++) {
        for (unsigned y = 0; y < grid.dims.y; y++) {
            for (unsigned x = 0; x < grid.dims.x; x++) {
                order.push_back({x, y, z});
            }
        }
    }
    if (schedule() == EMU_BACKWARD) {
        std::reverse(order.begin(), order.end());
    }
    for (size_t i = order.size(); schedule() == EMU_RANDOM && i > 1; i--) {
        std::swap(order[i - 1], order[choose(static_cast<uint32_t>(i))]);
    }
    return order;
}

/*
 * Blocks run one after another. One that spins on a flag keeps its place while further ones start;
 * when all spin, whoever they wait for is outside this grid and gets the lock for a while.
 */
bool run_grid(Grid &grid)
{
    std::vector<uint3> order = block_order(grid);
    std::vector<std::unique_ptr<Block>> open;
    size_t next = 0;
    uint64_t idle_rounds = 0;

    BadAccessCatcher catcher;
    is_abandoned = false;
    static uint32_t last_first_run;
    grid.first_run = runs + 1;
    grid.previous_first_run = std::max(last_first_run, runs_before_launch + 1);
    last_first_run = grid.first_run;
    shadow_begin_grid();
    while (!is_abandoned && (next < order.size() || !open.empty())) {
        bool has_ended = false;
        if (next < order.size()) {
            open.push_back(std::make_unique<Block>());
            prepare_block(*open.back(), grid, order[next++]);
            has_ended = true;
        }
        for (size_t i = 0; i < open.size() && !is_abandoned; i++) {
            if (run_block(*open[i]) == Progress::ended) {
                release_block(*open[i]);
                open.erase(open.begin() + static_cast<ptrdiff_t>(i--));
                has_ended = true;
            }
        }
        idle_rounds = has_ended ? 0 : idle_rounds + 1;
        if (!has_ended && !is_abandoned && !let_others_run(idle_rounds)) {
            now_block = open.front().get();
            fail_deadlock(*open.front());
        }
    }
    for (std::unique_ptr<Block> &block : open) {
        release_block(*block);
    }
    now_block = nullptr;
    now = nullptr;
    return !is_abandoned;
}

} // namespace emu
