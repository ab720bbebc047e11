/* SPDX-License-Identifier: Apache-2.0 */
/*
 * emu_shared: the shared memory of blocks. Internal to the emulator.
 *
 * A block's arena is 256 KiB at a multiple of 256 KiB, so that offsets fit the 14 bits of a wgmma
 * descriptor. Layout: a red zone, the dynamic part at 1024, then the arrays in the order they are
 * asked for, with red zones between. Contents begin as 0xFF, NaN in every float type.
 */
#pragma once

#include <cstddef>
#include <cstdint>

namespace emu
{

struct Block;
struct Grid;

constexpr size_t arena_bytes = 256 << 10;
constexpr uint8_t poison = 0xff;

uint8_t *shared_arena_take(void);
void shared_arena_give(uint8_t *arena);
/* Before the block's threads run: its contents are undefined again. */
void shared_begin_block(Block &block);

/* Offset in now_block's arena; fails the grid unless [pointer, + bytes) lies in an array. */
uint32_t shared_offset(const void *pointer, size_t bytes, const char *who);
bool is_shared(const void *pointer);
/* Whether the bytes lie in one array of the block. */
bool is_in_shared_array(const Block &block, uint32_t offset, size_t bytes);

} // namespace emu
