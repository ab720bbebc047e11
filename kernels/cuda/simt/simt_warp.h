/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_warp: what the threads of a warp and of a block do together. Part of simt.h.
 *
 * Every lane of `mask` must arrive at the same call; a lane outside it, or one that has ended, in
 * the mask is a fault. A shuffle does not order memory: simt_sync_warp() does.
 */
#pragma once

/* The calling thread's lane and warp in its block, for blocks of one dimension (threadIdx.x). */
SIMT_FN int simt_lane(void);
SIMT_FN int simt_warp(void);

/* T: any type of 4 or 8 bytes or less that is copied as bytes. Results come from the value that the
 * source lane passed to the same call. */
template <class T> SIMT_FN T simt_shfl(T v, int lane, uint32_t mask = SIMT_ALL_LANES);
template <class T> SIMT_FN T simt_shfl_xor(T v, int lane_bits, uint32_t mask = SIMT_ALL_LANES);
/* From lane + delta; lanes without such a one keep their own. */
template <class T> SIMT_FN T simt_shfl_down(T v, int delta, uint32_t mask = SIMT_ALL_LANES);
/* From lane - delta; lanes without such a one keep their own. */
template <class T> SIMT_FN T simt_shfl_up(T v, int delta, uint32_t mask = SIMT_ALL_LANES);

/* The same for each element of a register array: one exchange under emulation, N on a GPU. */
template <int N, class T>
SIMT_FN void simt_shfl_xor_n(T (&v)[N], int lane_bits, uint32_t mask = SIMT_ALL_LANES);
template <int N, class T>
SIMT_FN void simt_shfl_n(T (&v)[N], int lane, uint32_t mask = SIMT_ALL_LANES);

/*
 * Sum and maximum over groups of `lanes` (a power of 2) neighbours, the same bits in each of them:
 * xor shuffles by lanes/2, lanes/4, … 1, always in that order. All 32 lanes call.
 */
template <int N> SIMT_FN void simt_warp_sum_n(float (&v)[N], int lanes = SIMT_WARP);
template <int N> SIMT_FN void simt_warp_max_n(float (&v)[N], int lanes = SIMT_WARP);
SIMT_FN float simt_warp_sum(float v, int lanes = SIMT_WARP);
SIMT_FN float simt_warp_max(float v, int lanes = SIMT_WARP);

/* Bit i: lane i's flag. */
SIMT_FN uint32_t simt_ballot(bool flag, uint32_t mask = SIMT_ALL_LANES);
SIMT_FN bool simt_any(bool flag, uint32_t mask = SIMT_ALL_LANES);
SIMT_FN bool simt_all(bool flag, uint32_t mask = SIMT_ALL_LANES);

/* Orders the lanes' memory accesses before it with those after it. */
SIMT_FN void simt_sync_warp(uint32_t mask = SIMT_ALL_LANES);

/* Every thread of the block that has not ended; orders memory. */
SIMT_FN void simt_sync_block(void);
SIMT_FN bool simt_sync_block_or(bool flag); /* and tells whether any thread passed true */
SIMT_FN int simt_sync_block_count(bool flag);

/*
 * Named barriers 1..15 for `threads` threads (a multiple of 32) of the block: sync waits, arrive
 * counts without waiting. Whole warps call.
 */
SIMT_FN void simt_barrier_sync(int id, int threads);
SIMT_FN void simt_barrier_arrive(int id, int threads);
