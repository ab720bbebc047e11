/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_async: cp.async, copies from global to shared memory that end later. Part of simt.h.
 *
 * A thread's copies since its last commit are one group. wait<N> returns when all but its N newest
 * groups have ended; only then may it read them, and after a simt_sync_block() so may the others.
 * Until then the target is undefined, and the source must not change.
 */
#pragma once

/* BYTES: 4, 8 or 16, to which both addresses are aligned; 16 leaves L1 alone. */
template <int BYTES> SIMT_FN void simt_cp_async(void *shared, const void *global);
/* Reads only the first `valid` bytes (0..BYTES) and zeroes the rest; with 0 `global` may be any
 * address. */
template <int BYTES>
SIMT_FN void simt_cp_async_zfill(void *shared, const void *global, uint32_t valid);

SIMT_FN void simt_cp_async_commit(void);
template <int N> SIMT_FN void simt_cp_async_wait(void);
