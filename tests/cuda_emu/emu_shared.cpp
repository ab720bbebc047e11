/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/cuda_emu/emu_shared.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_machine.h"
#include "tests/cuda_emu/emu_runtime.h"

namespace emu
{

constexpr uint32_t red_zone = 128;
constexpr uint32_t dynamic_offset = 1024;
constexpr uint32_t max_static = 48 << 10;

static std::vector<uint8_t *> idle;

uint8_t *shared_arena_take(void)
{
    if (!idle.empty()) {
        uint8_t *arena = idle.back();
        idle.pop_back();
        return arena;
    }
    void *twice = mmap(nullptr, 2 * arena_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (twice == MAP_FAILED) {
        perror("cuda_emu: no memory for a block");
        abort();
    }
    uintptr_t aligned = (reinterpret_cast<uintptr_t>(twice) + arena_bytes - 1) & -arena_bytes;
    return reinterpret_cast<uint8_t *>(aligned);
}

void shared_arena_give(uint8_t *arena)
{
    idle.push_back(arena);
}

void shared_begin_block(Block &block)
{
    Grid &grid = *block.grid;
    if (grid.shared_used == 0) {
        grid.shared_used = dynamic_offset + grid.shared_bytes + red_zone;
    }
    memset(block.arena, poison, grid.shared_used);
}

bool is_shared(const void *pointer)
{
    return now_block != nullptr && static_cast<size_t>(static_cast<const uint8_t *>(pointer) -
                                                       now_block->arena) < arena_bytes;
}

bool is_in_shared_array(const Block &block, uint32_t offset, size_t bytes)
{
    const Grid &grid = *block.grid;
    if (offset >= dynamic_offset && offset + bytes <= dynamic_offset + grid.shared_bytes) {
        return true;
    }
    for (const Slot &slot : grid.slots) {
        if (offset >= slot.offset && offset + bytes <= slot.offset + slot.bytes) {
            return true;
        }
    }
    return false;
}

uint32_t shared_offset(const void *pointer, size_t bytes, const char *who)
{
    if (!is_shared(pointer)) {
        fail(cudaErrorIllegalAddress, "%s: %p is not shared memory", who, pointer);
    }
    uint32_t offset =
        static_cast<uint32_t>(static_cast<const uint8_t *>(pointer) - now_block->arena);
    if (!is_in_shared_array(*now_block, offset, bytes)) {
        fail(
            cudaErrorIllegalAddress,
            "%s: %zu bytes of shared memory outside of every array (offset %u of the dynamic part)",
            who, bytes, offset - dynamic_offset);
    }
    return offset;
}

static void *make_slot(const void *tag, size_t bytes, const char *name)
{
    Grid &grid = *now_block->grid;
    uint32_t offset = (grid.shared_used + 127) & ~127u;
    uint32_t used = 0;
    for (const Slot &slot : grid.slots) {
        used += slot.bytes;
    }
    if (used + bytes > max_static) {
        fail(cudaErrorInvalidValue, "%s: more than 48 KiB of SIMT_SHARED", name);
    }
    if (used + bytes + grid.shared_bytes > device_limits().shared_bytes) {
        fail(cudaErrorInvalidValue, "%s: static and dynamic shared memory above %zu bytes", name,
             device_limits().shared_bytes);
    }
    grid.slots.push_back({tag, offset, static_cast<uint32_t>(bytes), name});
    grid.shared_used = offset + static_cast<uint32_t>(bytes) + red_zone;
    memset(now_block->arena + offset - red_zone, poison, bytes + 2 * red_zone);
    return now_block->arena + offset;
}

} // namespace emu

using namespace emu;

void *emu_shared_slot(const void *tag, size_t bytes, const char *name)
{
    for (const Slot &slot : now_block->grid->slots) {
        if (slot.tag == tag) {
            return now_block->arena + slot.offset;
        }
    }
    return make_slot(tag, bytes, name);
}

void *emu_shared_dynamic(void)
{
    return now_block->arena + dynamic_offset;
}

uint32_t simt_shared_address(const void *shared)
{
    return shared_offset(shared, 1, "simt_shared_address");
}
