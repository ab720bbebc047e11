/* SPDX-License-Identifier: Apache-2.0 */
/* simt_mbarrier.h: phases of arrivals and bytes. */
#include "tests/cuda_emu/emu_mbarrier.h"

#include <unordered_map>

#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_shadow.h"
#include "tests/cuda_emu/emu_shared.h"

namespace emu
{

/* Stands in the barrier's own 8 bytes, so that overwriting one is noticed. */
constexpr uint64_t initialized = UINT64_C(0x6d62617272696572);

struct Phase {
    uint32_t count = 0;
    uint32_t missing = 0; /* arrivals of the current phase */
    int64_t bytes = 0;    /* expected and not there; negative when they came before the promise */
    uint32_t parity = 0;  /* of the current phase */
    std::vector<Thread *> waiting;
};

struct Mbarriers {
    std::unordered_map<uint64_t *, Phase> phases;
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
    find_phase(barrier, who);
}

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
    *barrier = initialized;
}

void simt_mbarrier_fence_init(void)
{
    shadow_fence_async();
}

void simt_mbarrier_arrive(simt_mbarrier_t *barrier)
{
    Phase &phase = find_phase(barrier, "simt_mbarrier_arrive");
    shadow_access(barrier, sizeof(*barrier), Access::atomic, "simt_mbarrier_arrive");
    arrive(barrier, phase, "simt_mbarrier_arrive");
}

void simt_mbarrier_expect(simt_mbarrier_t *barrier, uint32_t bytes)
{
    Phase &phase = find_phase(barrier, "simt_mbarrier_expect");
    phase.bytes += bytes;
    end_phase_if_complete(phase);
}

void simt_mbarrier_arrive_expect(simt_mbarrier_t *barrier, uint32_t bytes)
{
    Phase &phase = find_phase(barrier, "simt_mbarrier_arrive_expect");
    shadow_access(barrier, sizeof(*barrier), Access::atomic, "simt_mbarrier_arrive_expect");
    phase.bytes += bytes;
    arrive(barrier, phase, "simt_mbarrier_arrive_expect");
}

void simt_cp_async_arrive(simt_mbarrier_t *barrier)
{
    Phase &phase = find_phase(barrier, "simt_cp_async_arrive");
    async_finish_all();
    arrive(barrier, phase, "simt_cp_async_arrive");
}

void simt_mbarrier_wait(simt_mbarrier_t *barrier, uint32_t parity)
{
    Phase &phase = find_phase(barrier, "simt_mbarrier_wait");
    shadow_access(barrier, sizeof(*barrier), Access::atomic, "simt_mbarrier_wait");
    if (phase.parity == (parity & 1)) {
        phase.waiting.push_back(now);
        wait_here("an mbarrier at shared offset",
                  static_cast<uint64_t>(reinterpret_cast<uint8_t *>(barrier) - now_block->arena));
    }
    shadow_acquire(barrier);
}

bool simt_mbarrier_try(simt_mbarrier_t *barrier, uint32_t parity)
{
    simt_mbarrier_wait(barrier, parity);
    return true;
}

void simt_fence_async_shared(void)
{
    shadow_fence_async();
}

/* What a block was launched with is all that its groups have, and who asks for more waits for ever. */
void emu_registers(int registers)
{
    Block &block = *now_block;
    const size_t group = static_cast<size_t>(now->linear) / 128;
    const size_t groups = block.threads.size() / 128;
    if (block.threads.size() % 128 != 0) {
        fail(cudaErrorLaunchFailure, "registers move between whole warp groups of 128 threads");
    }
    const int launched = simt_launch_registers(static_cast<int>(block.threads.size()));
    block.registers.resize(groups, 0);
    block.registers[group] = registers;
    int all = 0;
    for (const int one : block.registers) {
        if (one == 0) {
            return; /* may give some away yet */
        }
        all += one;
    }
    if (all > launched * static_cast<int>(groups)) {
        fail(cudaErrorLaunchFailure, "warp groups with %d registers in all, launched with %d", all,
             launched * static_cast<int>(groups));
    }
}
