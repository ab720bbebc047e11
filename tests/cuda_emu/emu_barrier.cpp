/* SPDX-License-Identifier: Apache-2.0 */
/* simt_warp.h: barriers of the block and named ones. */
#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_machine.h"
#include "tests/cuda_emu/emu_shadow.h"

namespace emu
{

static void release(Barrier &barrier)
{
    for (Thread *thread : barrier.waiting) {
        thread->result = barrier.counted;
        make_ready(*thread);
    }
    barrier = {};
}

/* Everyone's earlier accesses come before everyone's later ones. */
static void order_block(Barrier &barrier, Thread *last)
{
    if (now_block->grid->is_checked) {
        std::vector<Thread *> threads = barrier.waiting;
        if (last != nullptr) {
            threads.push_back(last);
        }
        shadow_join(threads);
    }
}

/* Threads that have ended count as arrived. */
static int wait_for_block(const char *what, int counts)
{
    Barrier &barrier = now_block->barriers[0];
    if (barrier.arrived > 0 && strcmp(barrier.what, what) != 0) {
        fail(cudaErrorLaunchFailure, "%s meets %s of other threads", what, barrier.what);
    }
    now->waited_at = nullptr;
    barrier.what = what;
    barrier.counted += counts;
    if (++barrier.arrived < now_block->live) {
        barrier.waiting.push_back(now);
        wait_here(what);
        return now->result;
    }
    int counted = barrier.counted;
    order_block(barrier, now);
    release(barrier);
    return counted;
}

void barrier_thread_ended(Block &block)
{
    Barrier &barrier = block.barriers[0];
    if (barrier.arrived > 0 && barrier.arrived == block.live) {
        order_block(barrier, nullptr);
        release(barrier);
    }
}

static Barrier &arrive_named(const char *what, int id, int threads)
{
    if (id < 1 || id > 15 || threads <= 0 || threads % warp_size != 0) {
        fail(cudaErrorLaunchFailure, "%s(%d, %d): ids are 1..15, threads a multiple of 32", what,
             id, threads);
    }
    Barrier &barrier = now_block->barriers[id];
    if (barrier.arrived > 0 && barrier.expected != threads) {
        fail(cudaErrorLaunchFailure, "%s(%d, %d): others came to this barrier for %d threads", what,
             id, threads, barrier.expected);
    }
    barrier.expected = threads;
    barrier.arrived++;
    return barrier;
}

} // namespace emu

using namespace emu;

void simt_sync_block(void)
{
    wait_for_block("simt_sync_block", 0);
}

bool simt_sync_block_or(bool flag)
{
    return wait_for_block("simt_sync_block_or", flag ? 1 : 0) != 0;
}

int simt_sync_block_count(bool flag)
{
    return wait_for_block("simt_sync_block_count", flag ? 1 : 0);
}

void simt_barrier_sync(int id, int threads)
{
    Barrier &barrier = arrive_named("simt_barrier_sync", id, threads);
    now->waited_at = nullptr;
    bool is_checked = now_block->grid->is_checked;
    if (barrier.arrived < threads) {
        if (is_checked) {
            shadow_release(&barrier);
        }
        barrier.waiting.push_back(now);
        wait_here("simt_barrier_sync", static_cast<uint64_t>(id));
    } else {
        if (is_checked) {
            shadow_release(&barrier);
        }
        release(barrier);
    }
    if (is_checked) {
        shadow_acquire(&barrier);
    }
}

void simt_barrier_arrive(int id, int threads)
{
    Barrier &barrier = arrive_named("simt_barrier_arrive", id, threads);
    if (now_block->grid->is_checked) {
        shadow_release(&barrier);
    }
    if (barrier.arrived == threads) {
        release(barrier);
    }
}
