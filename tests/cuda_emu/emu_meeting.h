/* SPDX-License-Identifier: Apache-2.0 */
/*
 * emu_meeting: calls that several threads make together. Each brings an argument; the last to come
 * computes for all and lets them go on. Internal to the emulator.
 */
#pragma once

#include "tests/cuda_emu/emu_machine.h"

namespace emu
{

typedef void (*compute_fn)(Meeting &meeting);

/*
 * The lanes of `mask` of the caller's warp. meeting.arguments[lane] is theirs. `detail` must be
 * the same for all of them, like `what`, which is a literal.
 */
void meet_lanes(const char *what, uint64_t detail, uint32_t mask, void *argument,
                compute_fn compute);

} // namespace emu
