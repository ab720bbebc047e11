/* SPDX-License-Identifier: Apache-2.0 */
/*
 * emu_clocks: vector clocks of the threads of a block, the order half of emu_shadow.h. Internal to
 * the emulator.
 */
#pragma once

#include <cstdint>

namespace emu
{

struct Thread;

/* `now`'s own clock; that of another thread of its block. */
uint32_t clocks_now(void);
uint32_t clocks_of(const Thread &thread);
/* Whether `now` is ordered after what thread `linear` of that run did at that clock. */
bool clocks_know(uint32_t run, uint32_t linear, uint32_t clock);
/* Whether `now` is ordered after a simt_wait_previous() of its block. */
bool clocks_has_waited(void);
/* Whether that thread of this block called simt_fence_async_shared() after that clock. */
bool clocks_is_fenced(uint32_t linear, uint32_t clock);

} // namespace emu
