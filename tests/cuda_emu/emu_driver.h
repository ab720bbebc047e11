/* SPDX-License-Identifier: Apache-2.0 */
/* emu_driver: functions of libcuda that weft asks the runtime for. Internal to the emulator. */
#pragma once

namespace emu
{

/* The function of that name, or NULL. */
void *find_driver_function(const char *name);
void *find_vmm_function(const char *name);

} // namespace emu
