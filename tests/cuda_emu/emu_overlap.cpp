/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_launch.h: programmatic dependent launch. Kernels run one after another here; that one did not
 * count on it is what the clocks and the check at a block's end tell.
 */
#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_machine.h"
#include "tests/cuda_emu/emu_shadow.h"

using namespace emu;

void simt_wait_previous(void)
{
    now_block->has_waited = true;
    shadow_wait_previous();
}

void simt_launch_next(void)
{
}
