/* SPDX-License-Identifier: Apache-2.0 */
/* simt_mbarrier.h: registers that move between warp groups. */
#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_machine.h"

namespace emu
{

/* One thread of a warp group asks for `each` registers. */
static void move_registers(Registers &group, int each)
{
    if (group.moved % group_threads != 0 && each != group.each) {
        fail(cudaErrorLaunchFailure, "a warp group moves to %d and to %d registers", group.each,
             each);
    }
    group.each = each;
    group.moved++;
}

/* What a block was launched with is all that its groups have, and who asks for more waits for ever. */
static void check_sum(const Block &block, int launched)
{
    const int most = launched * static_cast<int>(block.registers.size());
    int all = 0;
    for (const Registers &one : block.registers) {
        if (one.each == 0) {
            return; /* may give some away yet */
        }
        all += one.each;
    }
    if (all > most) {
        fail(cudaErrorLaunchFailure, "warp groups with %d registers in all, launched with %d", all,
             most);
    }
}

void registers_block_ended(Block &block)
{
    for (const Registers &group : block.registers) {
        const int some = group.moved % group_threads;
        if (some != 0) {
            note_fault(cudaErrorLaunchFailure, "a block of " + block.grid->name + " ends and " +
                                                   std::to_string(some) +
                                                   " threads of a warp group have moved registers");
            return;
        }
    }
}

} // namespace emu

using namespace emu;

void emu_registers(int registers)
{
    Block &block = *now_block;
    if (block.threads.size() % group_threads != 0) {
        fail(cudaErrorLaunchFailure, "registers move between whole warp groups of 128 threads");
    }
    const int launched = simt_launch_registers(static_cast<int>(block.threads.size()));
    block.registers.resize(block.threads.size() / group_threads);
    move_registers(block.registers[static_cast<size_t>(now->linear / group_threads)], registers);
    check_sum(block, launched);
}
