/* SPDX-License-Identifier: Apache-2.0 */
/* simt_mbarrier.h: phases of arrivals and bytes. */
#include "tests/cuda_emu/emu_mbarrier.h"

#include <set>
#include <unordered_map>

#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_shadow.h"
#include "tests/cuda_emu/emu_shared.h"

namespace emu
{

/* Stands in the barrier's own 8 bytes, so that overwriting one is noticed. */
constexpr uint64_t initialized = UINT64_C(0x6d62617272696572);
constexpr int64_t most_bytes = (1 << 20) - 1; /* that a phase can count */
const char waits_for_phase[] = "an mbarrier at shared offset";
const char waits_for_lanes[] = "lanes of their warp that wait at an mbarrier";

struct Phase {
    uint32_t count = 0;
    uint32_t missing = 0; /* arrivals of the current phase */
    int64_t bytes = 0;    /* expected and not there; negative when they came before the promise */
    uint32_t parity = 0;  /* of the current phase */
    const Thread *maker = nullptr; /* until its simt_mbarrier_fence_init() */
    std::vector<Thread *> waiting;
};

struct Mbarriers {
    std::unordered_map<uint64_t *, Phase> phases;
    std::vector<Thread *> held; /* behind lanes that wait */
};

void async_finish_all(void);

static Phase &phase_in(Block &block, uint64_t *barrier)
{
    return block.mbarriers->phases[barrier];
}

static Phase &find_phase(uint64_t *barrier, const char *who)
{
    shared_offset(barrier, sizeof(*barrier), who);
    Block &block = *now_block;
    if (block.mbarriers == nullptr || block.mbarriers->phases.count(barrier) == 0) {
        fail(cudaErrorLaunchFailure, "%s: no mbarrier was initialized there", who);
    }
    if (*barrier != initialized) {
        fail(cudaErrorLaunchFailure, "%s: the mbarrier's memory was overwritten", who);
    }
    return phase_in(block, barrier);
}

void mbarrier_check(uint64_t *barrier, const char *who)
{
    if (find_phase(barrier, who).maker != nullptr) {
        fail(cudaErrorLaunchFailure, "%s: no simt_mbarrier_fence_init() since the barrier was made",
             who);
    }
}

/* ---- lanes that meet again -------------------------------------------------------------------- */

/*
 * A GPU may bring the lanes of a warp together where their ways meet. One that comes to a place without
 * the wait that others came through before may then be held up by lanes that wait there now. Ways are
 * known once someone went them: a wait's place in the code, and the next place of that thread,
 * unless it met others in between, who then are in step.
 */
using Way = std::pair<const void *, const void *>;
static std::set<Way> known_ways;

static void pass_wait(const void *place)
{
    now->waited_at = place;
}

static bool is_held_up(const void *place)
{
    const size_t first = static_cast<size_t>(now->linear / warp_size * warp_size);
    const std::vector<Thread> &threads = now_block->threads;
    for (size_t i = first; i < threads.size() && i < first + warp_size; i++) {
        const Thread &lane = threads[i];
        if (lane.state == State::waiting && lane.waits_for == waits_for_phase &&
            known_ways.count({lane.waited_at, place}) != 0) {
            return true;
        }
    }
    return false;
}

static void pass_arrival(const void *place)
{
    if (now->waited_at != nullptr) {
        known_ways.insert({now->waited_at, place});
        now->waited_at = nullptr;
        return;
    }
    while (is_held_up(place)) {
        now_block->mbarriers->held.push_back(now);
        wait_here(waits_for_lanes);
    }
}

static void let_go(Block &block)
{
    for (Thread *thread : block.mbarriers->held) {
        make_ready(*thread);
    }
    block.mbarriers->held.clear();
}

/* ---- phases ------------------------------------------------------------------------------------ */

static void end_phase_if_complete(Phase &phase)
{
    if (phase.missing > 0 || phase.bytes != 0) {
        return;
    }
    phase.parity ^= 1;
    phase.missing = phase.count;
    for (Thread *thread : phase.waiting) {
        make_ready(*thread);
    }
    phase.waiting.clear();
    let_go(*now_block);
}

static void expect(Phase &phase, uint32_t bytes, const char *who)
{
    phase.bytes += bytes;
    if (phase.bytes > most_bytes) {
        fail(cudaErrorLaunchFailure, "%s: %lld bytes are expected, an mbarrier counts %lld", who,
             static_cast<long long>(phase.bytes), static_cast<long long>(most_bytes));
    }
}

static void arrive(uint64_t *barrier, Phase &phase, const char *who)
{
    if (phase.missing == 0) {
        fail(cudaErrorLaunchFailure, "%s: more than %u arrivals in one phase", who, phase.count);
    }
    shadow_release(barrier);
    phase.missing--;
    end_phase_if_complete(phase);
}

void mbarrier_complete(Block &block, uint64_t *barrier, uint32_t bytes)
{
    Phase &phase = phase_in(block, barrier);
    phase.bytes -= bytes;
    end_phase_if_complete(phase);
}

} // namespace emu

using namespace emu;

void simt_mbarrier_init(simt_mbarrier_t *barrier, uint32_t count)
{
    shared_offset(barrier, sizeof(*barrier), "simt_mbarrier_init");
    if (reinterpret_cast<uintptr_t>(barrier) % 8 != 0 || count == 0 || count >= 1u << 20) {
        fail(cudaErrorLaunchFailure, "simt_mbarrier_init(%p, %u)", static_cast<void *>(barrier),
             count);
    }
    if (now_block->mbarriers == nullptr) {
        now_block->mbarriers = std::make_shared<Mbarriers>();
    }
    shadow_access(barrier, sizeof(*barrier), Access::write, "simt_mbarrier_init");
    Phase &phase = phase_in(*now_block, barrier);
    if (!phase.waiting.empty()) {
        fail(cudaErrorLaunchFailure, "simt_mbarrier_init: threads wait for this barrier");
    }
    phase = {};
    phase.count = phase.missing = count;
    phase.maker = now;
    *barrier = initialized;
}

void simt_mbarrier_fence_init(void)
{
    shadow_fence_async();
    if (now_block->mbarriers == nullptr) {
        return;
    }
    for (auto &[barrier, phase] : now_block->mbarriers->phases) {
        phase.maker = phase.maker == now ? nullptr : phase.maker;
    }
}

void simt_mbarrier_arrive(simt_mbarrier_t *barrier)
{
    Phase &phase = find_phase(barrier, "simt_mbarrier_arrive");
    pass_arrival(__builtin_return_address(0));
    shadow_access(barrier, sizeof(*barrier), Access::atomic, "simt_mbarrier_arrive");
    arrive(barrier, phase, "simt_mbarrier_arrive");
}

void simt_mbarrier_expect(simt_mbarrier_t *barrier, uint32_t bytes)
{
    Phase &phase = find_phase(barrier, "simt_mbarrier_expect");
    pass_arrival(__builtin_return_address(0));
    expect(phase, bytes, "simt_mbarrier_expect");
    end_phase_if_complete(phase);
}

void simt_mbarrier_arrive_expect(simt_mbarrier_t *barrier, uint32_t bytes)
{
    Phase &phase = find_phase(barrier, "simt_mbarrier_arrive_expect");
    pass_arrival(__builtin_return_address(0));
    shadow_access(barrier, sizeof(*barrier), Access::atomic, "simt_mbarrier_arrive_expect");
    expect(phase, bytes, "simt_mbarrier_arrive_expect");
    arrive(barrier, phase, "simt_mbarrier_arrive_expect");
}

void simt_cp_async_arrive(simt_mbarrier_t *barrier)
{
    Phase &phase = find_phase(barrier, "simt_cp_async_arrive");
    async_finish_all();
    arrive(barrier, phase, "simt_cp_async_arrive");
}

static void wait_for_phase(simt_mbarrier_t *barrier, uint32_t parity, const void *place)
{
    Phase &phase = find_phase(barrier, "simt_mbarrier_wait");
    pass_wait(place);
    shadow_access(barrier, sizeof(*barrier), Access::atomic, "simt_mbarrier_wait");
    if (phase.parity == (parity & 1)) {
        phase.waiting.push_back(now);
        wait_here(waits_for_phase,
                  static_cast<uint64_t>(reinterpret_cast<uint8_t *>(barrier) - now_block->arena));
    }
    shadow_acquire(barrier);
}

void simt_mbarrier_wait(simt_mbarrier_t *barrier, uint32_t parity)
{
    wait_for_phase(barrier, parity, __builtin_return_address(0));
}

bool simt_mbarrier_try(simt_mbarrier_t *barrier, uint32_t parity)
{
    wait_for_phase(barrier, parity, __builtin_return_address(0));
    return true;
}

void simt_fence_async_shared(void)
{
    shadow_fence_async();
}
