/* SPDX-License-Identifier: Apache-2.0 */
/* emu_mbarrier: what TMA needs of simt_mbarrier.h. Internal to the emulator. */
#pragma once

#include <cstdint>

#include "tests/cuda_emu/emu_machine.h"

namespace emu
{

/* Fails the grid unless a barrier was initialized there, and fenced since. */
void mbarrier_check(uint64_t *barrier, const char *who);
/* Bytes have arrived. issuer: whose earlier accesses they come after. */
void mbarrier_complete(Block &block, uint64_t *barrier, uint32_t bytes);

} // namespace emu
