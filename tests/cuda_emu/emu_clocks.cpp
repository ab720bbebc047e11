/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/cuda_emu/emu_clocks.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "tests/cuda_emu/emu_machine.h"
#include "tests/cuda_emu/emu_shadow.h"

namespace emu
{

/* One clock a thread of the block, and behind them one for its bulk copies and one that is 1 after
 * the end of the grid before. */
typedef std::vector<uint32_t> clock_vector;

struct Clocks {
    size_t n = 0; /* threads */
    uint32_t bulk = 0;
    std::vector<clock_vector> known;  /* [thread]: what it is ordered after; [i][i] its own time */
    std::vector<clock_vector> fenced; /* [thread]: known at a simt_fence_device(); empty: none */
    clock_vector async_fenced;        /* [thread]: own time at its simt_fence_async_shared() */
    std::unordered_map<const void *, clock_vector> objects;
    std::unordered_map<uint32_t, clock_vector> others; /* runs that released to this block */
};

/* What was released into a flag, by run. */
static std::unordered_map<const void *, std::unordered_map<uint32_t, clock_vector>> flags;

static void raise(clock_vector &to, const clock_vector &from)
{
    if (to.size() < from.size()) {
        to.resize(from.size());
    }
    for (size_t i = 0; i < from.size(); i++) {
        to[i] = std::max(to[i], from[i]);
    }
}

static Clocks &clocks(void)
{
    return *now_block->clocks;
}

static size_t self(void)
{
    return static_cast<size_t>(now->linear);
}

static bool is_watched(void)
{
    return now != nullptr && now_block->grid->is_checked;
}

void shadow_begin_grid(void)
{
    flags.clear();
}

void shadow_begin_block(Block &block)
{
    block.clocks = std::make_shared<Clocks>();
    Clocks &made = *block.clocks;
    made.n = block.threads.size();
    made.known.assign(made.n, clock_vector(made.n + 2));
    made.fenced.resize(made.n);
    made.async_fenced.resize(made.n);
    for (size_t i = 0; i < made.n; i++) {
        made.known[i][i] = 1;
    }
}

uint32_t clocks_now(void)
{
    return clocks().known[self()][self()];
}

uint32_t clocks_of(const Thread &thread)
{
    size_t linear = static_cast<size_t>(thread.linear);
    return clocks().known[linear][linear];
}

bool clocks_know(uint32_t run, uint32_t linear, uint32_t clock)
{
    if (run == now_block->run) {
        return clock <= clocks().known[self()][linear];
    }
    auto other = clocks().others.find(run);
    return other != clocks().others.end() && linear < other->second.size() &&
           clock <= other->second[linear];
}

bool clocks_has_waited(void)
{
    return clocks().known[self()][clocks().n + 1] != 0;
}

bool clocks_is_fenced(uint32_t linear, uint32_t clock)
{
    return clock <= clocks().async_fenced[linear];
}

/* ---- joining -------------------------------------------------------------------------------- */

/* Every thread's own time is the newest that anyone knows of it, so of those that join only that. */
static clock_vector union_of(const std::vector<Thread *> &threads)
{
    Clocks &block = clocks();
    clock_vector all(block.n + 2);
    if (threads.size() < block.n) {
        for (const Thread *thread : threads) {
            raise(all, block.known[static_cast<size_t>(thread->linear)]);
        }
        return all;
    }
    for (size_t i = 0; i < block.n; i++) {
        all[i] = block.known[i][i];
        for (size_t j = block.n; j < block.n + 2; j++) {
            all[j] = std::max(all[j], block.known[i][j]);
        }
    }
    return all;
}

void shadow_join(const std::vector<Thread *> &threads)
{
    Clocks &block = clocks();
    clock_vector all = union_of(threads);
    clock_vector fenced;
    for (const Thread *thread : threads) {
        raise(fenced, block.fenced[static_cast<size_t>(thread->linear)]);
    }
    for (const Thread *thread : threads) {
        size_t i = static_cast<size_t>(thread->linear);
        block.known[i] = all;
        block.known[i][i]++;
        block.fenced[i] = fenced;
    }
}

void shadow_release(const void *object)
{
    if (is_watched()) {
        clock_vector &mine = clocks().known[self()];
        raise(clocks().objects[object], mine);
        mine[self()]++;
    }
}

void shadow_acquire(const void *object)
{
    if (is_watched()) {
        raise(clocks().known[self()], clocks().objects[object]);
    }
}

uint32_t shadow_next_bulk(void)
{
    return is_watched() ? ++clocks().bulk : 0;
}

void shadow_release_bulk(const void *barrier, uint32_t bulk_clock)
{
    if (bulk_clock != 0) {
        clock_vector until(clocks().n + 1);
        until[clocks().n] = bulk_clock;
        raise(clocks().objects[barrier], until);
    }
}

void shadow_release_global(const void *object, bool is_fenced)
{
    if (!is_watched()) {
        return;
    }
    auto &flag = flags[object];
    for (const auto &[run, known] : clocks().others) {
        raise(flag[run], known);
    }
    clock_vector &mine = clocks().known[self()];
    raise(flag[now_block->run], is_fenced ? clocks().fenced[self()] : mine);
    mine[self()]++;
}

void shadow_acquire_global(const void *object)
{
    if (!is_watched()) {
        return;
    }
    for (const auto &[run, known] : flags[object]) {
        raise(run == now_block->run ? clocks().known[self()] : clocks().others[run], known);
    }
}

void shadow_wait_previous(void)
{
    if (is_watched()) {
        clocks().known[self()][clocks().n + 1] = 1;
    }
}

void shadow_fence_device(void)
{
    if (is_watched()) {
        clocks().fenced[self()] = clocks().known[self()];
        clocks().known[self()][self()]++;
    }
}

void shadow_fence_async(void)
{
    if (is_watched()) {
        clocks().async_fenced[self()] = clocks_now();
        clocks().known[self()][self()]++;
    }
}

} // namespace emu
