/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_mbarrier: barriers in shared memory that also count bytes on their way, and the roles of
 * warps that live by them. Hopper only: inside #if SIMT_HOPPER. Part of simt.h.
 *
 * A barrier's phase ends when `count` arrivals have come and no byte is pending; then the next phase
 * begins. Phases have parity 0, 1, 0, …; wait(parity) returns when the phase of that parity has
 * ended, at once if the barrier is already in the next. A consumer waits with parity 0 first; a
 * producer that waits for stages which are free from the start begins with parity 1.
 */
#pragma once

typedef uint64_t simt_mbarrier_t; /* in shared memory, 8-byte aligned */

/* One thread; then simt_mbarrier_fence_init() by it and a simt_sync_block() by all. */
SIMT_FN void simt_mbarrier_init(simt_mbarrier_t *barrier, uint32_t count);
SIMT_FN void simt_mbarrier_fence_init(void);
SIMT_FN void simt_mbarrier_arrive(simt_mbarrier_t *barrier);
/* Announces bytes of TMA copies to come; arrive_expect also arrives. */
SIMT_FN void simt_mbarrier_expect(simt_mbarrier_t *barrier, uint32_t bytes);
SIMT_FN void simt_mbarrier_arrive_expect(simt_mbarrier_t *barrier, uint32_t bytes);
/* This thread's cp.async copies so far arrive at the barrier when they end; the arrival counts as
 * one of `count`. */
SIMT_FN void simt_cp_async_arrive(simt_mbarrier_t *barrier);
SIMT_FN bool simt_mbarrier_try(simt_mbarrier_t *barrier, uint32_t parity); /* may wait a while */
SIMT_FN void simt_mbarrier_wait(simt_mbarrier_t *barrier, uint32_t parity);

/* Makes this thread's writes to shared memory seen by TMA stores and wgmma that it, or whoever a
 * barrier tells, issues later. */
SIMT_FN void simt_fence_async_shared(void);

/* True in one lane of the warp, always the same one; the whole warp calls. */
SIMT_FN bool simt_elect(void);

/*
 * Moves registers between warp groups: all 4 warps of one call it; REGISTERS a thread, a multiple
 * of 8 in 24..256. The groups of a block have together what it was launched with: one that raises
 * waits until others have lowered enough.
 */
template <int REGISTERS> SIMT_FN void simt_registers_raise(void);
template <int REGISTERS> SIMT_FN void simt_registers_lower(void);

/* Registers a thread that SIMT_KERNEL(threads, 1) is launched with; where no group raises more, the compiler may give fewer. */
constexpr int simt_launch_registers(int threads)
{
    return 65536 / threads < 256 ? 65536 / threads / 8 * 8 : 248;
}
