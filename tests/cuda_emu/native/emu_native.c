/* SPDX-License-Identifier: Apache-2.0 */
/* emu_control.h where kernels run on a GPU. */
#include "tests/cuda_emu/emu_control.h"

void emu_set_schedule(emu_schedule_t schedule, uint64_t seed)
{
    (void)schedule;
    (void)seed;
}

void emu_set_capability(int capability)
{
    (void)capability;
}

void emu_fail_alloc(uint64_t n)
{
    (void)n;
}

uint64_t emu_launches(const char *name)
{
    (void)name;
    return 0;
}

const char *emu_fault(void)
{
    return "";
}

void emu_reset(void)
{
}

bool emu_is_emulated(void)
{
    return false;
}
