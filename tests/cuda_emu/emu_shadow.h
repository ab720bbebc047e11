/* SPDX-License-Identifier: Apache-2.0 */
/*
 * emu_shadow: who touched which memory last, and whether anything orders it with who touches it
 * now. Serves kernels compiled with -fsanitize=thread (Grid::is_checked): emu_hooks.cpp reports
 * their loads and stores here, the emulated instructions their own. Internal to the emulator.
 *
 * Every thread of a block has a vector clock. Barriers join clocks, flags and mbarriers carry them
 * from who releases to who acquires; shuffles and votes carry nothing. Each 4 bytes of memory know
 * their last writer and two readers (with a byte mask): no false alarms, but a third reader is
 * forgotten. Blocks of one grid are ordered by atomics behind simt_fence_device() only.
 */
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace emu
{

struct Block;
struct Thread;

void shadow_begin_grid(void);
void shadow_begin_block(Block &block);

/* ---- order ---------------------------------------------------------------------------------- */

/* All of them waited for one another. */
void shadow_join(const std::vector<Thread *> &threads);
/* What happened before `now` is given to, or taken from, a synchronization object of the block. */
void shadow_release(const void *object);
void shadow_acquire(const void *object);
/* The same for an object that other blocks know. is_fenced: what comes before the last
 * simt_fence_device() only. */
void shadow_release_global(const void *object, bool is_fenced);
void shadow_acquire_global(const void *object);
/* simt_wait_previous() of `now`: the grid before has ended, for it and whoever it tells. */
void shadow_wait_previous(void);
/* simt_fence_async_shared() and simt_fence_device() of `now`. */
void shadow_fence_async(void);
void shadow_fence_device(void);

/* ---- accesses of `now` ---------------------------------------------------------------------- */

enum class Access { read, write, atomic };

/* No-ops unless the running grid is checked. */
void shadow_access(const void *address, size_t bytes, Access access, const char *who);

/*
 * An asynchronous unit that writes, or reads, shared memory from begin to end; whoever touches it
 * meanwhile is at fault. After the end it counts as the issuer's access of that time, or with a
 * bulk_clock as the bulk unit's.
 */
void shadow_async_begin(const void *address, size_t bytes, Access access, const char *who);
void shadow_async_end(const void *address, size_t bytes, Access access, const Thread &issuer,
                      uint32_t bulk_clock);
/* The bulk unit is like one more thread: a time for each copy, and who waits at the barrier where
 * its end is counted comes after it. */
uint32_t shadow_next_bulk(void);
void shadow_release_bulk(const void *barrier, uint32_t bulk_clock);
/* What an asynchronous unit is about to read: a write by a thread needs that thread's
 * simt_fence_async_shared(). */
void shadow_check_async_read(const void *address, size_t bytes, const char *who);

/* An allocation is freed. */
void shadow_forget(const void *base);

} // namespace emu
