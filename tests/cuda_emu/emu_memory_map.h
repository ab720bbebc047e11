/* SPDX-License-Identifier: Apache-2.0 */
/* emu_memory_map: bad addresses become faults of the thread that used them. Internal. */
#pragma once

namespace emu
{

/* Once in every OS thread: a SIGSEGV inside a kernel is reported and ends the grid. */
void catch_bad_accesses(void);

} // namespace emu
