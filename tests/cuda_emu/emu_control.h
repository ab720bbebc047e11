/* SPDX-License-Identifier: Apache-2.0 */
/*
 * emu_control: what a test may ask of the emulator. In a native build (a GPU and the CUDA runtime)
 * the same functions exist and do nothing, so that one test serves both.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * In what order blocks and threads run. WEFT_EMU_SCHEDULE=forward|backward|random chooses one for
 * a whole process, WEFT_TEST_SEED the random one's seed; weft_cuda_emu_test() runs all three.
 */
typedef enum emu_schedule {
    EMU_FORWARD,  /* low indices first; copies of TMA come as late as possible */
    EMU_BACKWARD, /* high indices first; copies of TMA come at once */
    EMU_RANDOM,
} emu_schedule_t;

void emu_set_schedule(emu_schedule_t schedule, uint64_t seed);

/* Compute capability of the device, 90 at first (WEFT_EMU_CAPABILITY); 80 leaves Hopper out, 86 has 99
 * KiB of shared memory a block. */
void emu_set_capability(int capability);

/* The n-th cudaMalloc or graph from now fails, n ≥ 1; 0: none does. */
void emu_fail_alloc(uint64_t n);

/* Kernels started so far whose launch text contains `name`. */
uint64_t emu_launches(const char *name);

/* Text of the first fault since emu_reset(), "" if there was none. It is also printed when it
 * happens, and every later call of the runtime returns its error, as on a GPU. */
const char *emu_fault(void);

/* Forgets a fault and all work in streams. */
void emu_reset(void);

/* True if this is the emulation. */
bool emu_is_emulated(void);

#ifdef __cplusplus
}
#endif
