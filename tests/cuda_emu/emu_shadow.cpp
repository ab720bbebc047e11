/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/cuda_emu/emu_shadow.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <unordered_map>

#include "tests/cuda_emu/emu_clocks.h"
#include "tests/cuda_emu/emu_fiber.h"
#include "tests/cuda_emu/emu_machine.h"
#include "tests/cuda_emu/emu_runtime.h"
#include "tests/cuda_emu/emu_shared.h"

/* Of the linker: this program's own code and variables. */
extern "C" char __executable_start, _end;

namespace emu
{
namespace
{

/* An access: the run of its block (0: none yet), thread << 21 | clock, and which of the 4 bytes. */
struct Stamp {
    uint32_t run;
    uint32_t when;
    uint8_t mask;
    bool is_async; /* of a unit that needs no simt_fence_async_shared() */
};

constexpr uint32_t clock_mask = (1u << 21) - 1;
constexpr uint32_t in_flight = clock_mask; /* the clock of what has not ended */

/* The last accesses of 4 bytes. */
struct Cell {
    Stamp write;
    Stamp reads[2];
};

constexpr size_t word = 4;

struct Region {
    const uint8_t *base;
    size_t bytes;
    Cell *cells;
};

std::unordered_map<const void *, Cell *> regions; /* by base of the arena or allocation */
Region last_region;                               /* found last, of global memory */

Cell *map_cells(size_t bytes)
{
    size_t size = (bytes / word + 1) * sizeof(Cell);
    void *cells = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (cells == MAP_FAILED) {
        perror("cuda_emu: no address space for the shadow");
        abort();
    }
    return static_cast<Cell *>(cells);
}

Cell *cells_of(const void *base, size_t bytes)
{
    Cell *&cells = regions[base];
    if (cells == nullptr) {
        cells = map_cells(bytes);
    }
    return cells;
}

/* ---- order ---------------------------------------------------------------------------------- */

uint32_t thread_of(uint32_t when)
{
    return when >> 21;
}

bool is_before_now(const Stamp &stamp, bool is_shared_memory)
{
    const Grid &grid = *now_block->grid;
    if (stamp.run < grid.first_run) {
        bool may_overlap = grid.overlaps_previous && stamp.run >= grid.previous_first_run;
        return is_shared_memory || !may_overlap || clocks_has_waited();
    }
    uint32_t clock = stamp.when & clock_mask;
    if (stamp.run != now_block->run) {
        /* The arena's former block, or a block beside this one. */
        return is_shared_memory || clocks_know(stamp.run, thread_of(stamp.when), clock);
    }
    if (clock == in_flight) {
        return false;
    }
    return thread_of(stamp.when) == static_cast<uint32_t>(now->linear) ||
           clocks_know(stamp.run, thread_of(stamp.when), clock);
}

Stamp stamp_now(uint32_t clock, uint8_t mask, bool is_async)
{
    return {now_block->run, static_cast<uint32_t>(now->linear) << 21 | clock, mask, is_async};
}

/* ---- reports -------------------------------------------------------------------------------- */

struct Place {
    const uint8_t *address;
    size_t bytes;
    bool is_shared_memory;
    const char *who;
};

std::string describe(const Place &place)
{
    char text[160];
    if (place.is_shared_memory) {
        uint32_t offset = static_cast<uint32_t>(place.address - now_block->arena);
        for (const Slot &slot : now_block->grid->slots) {
            if (offset >= slot.offset && offset < slot.offset + slot.bytes) {
                snprintf(text, sizeof(text), "shared array %s, byte %u", slot.name,
                         offset - slot.offset);
                return text;
            }
        }
        snprintf(text, sizeof(text), "dynamic shared memory, byte %u", offset - 1024);
        return text;
    }
    const Allocation *found = find_allocation(place.address);
    snprintf(text, sizeof(text), "byte %td of an allocation of %zu bytes",
             place.address - found->base, found->bytes);
    return text;
}

[[noreturn]] void report_race(const Place &place, const Stamp &other, const char *what)
{
    const char *state = (other.when & clock_mask) == in_flight ? " that has not ended" : "";
    char agent[32] = "a bulk copy";
    if (thread_of(other.when) < now_block->threads.size()) {
        snprintf(agent, sizeof(agent), "thread %u", thread_of(other.when));
    }
    const char *block = other.run == now_block->run ? ""
                        : other.run < now_block->grid->first_run
                            ? " of the kernel before (simt_wait_previous)"
                            : " of another block";
    fail(cudaErrorLaunchFailure,
         "race: %s of %zu bytes at %s: nothing orders it after %s by %s%s%s", place.who,
         place.bytes, describe(place).c_str(), what, agent, block, state);
}

[[noreturn]] void report_past_end(const Place &place, const Allocation &allocation)
{
    fail(cudaErrorIllegalAddress, "%s of %zu bytes at byte %td of an allocation of %zu bytes",
         place.who, place.bytes, place.address - allocation.base, allocation.bytes);
}

/* ---- cells ---------------------------------------------------------------------------------- */

void record_read(Cell &cell, const Stamp &mine, bool is_shared_memory)
{
    Stamp *slot = nullptr;
    for (Stamp &read : cell.reads) {
        bool is_own = read.run == mine.run && thread_of(read.when) == thread_of(mine.when);
        if (is_own || (slot == nullptr && is_before_now(read, is_shared_memory))) {
            slot = &read;
        }
        if (is_own) {
            break;
        }
    }
    if (slot == nullptr && (cell.reads[1].when & clock_mask) != in_flight) {
        slot = &cell.reads[1];
    }
    if (slot != nullptr) {
        *slot = mine;
    }
}

void check_cell(const Cell &cell, const Place &place, uint8_t mask, Access access)
{
    if ((cell.write.mask & mask) != 0 && !is_before_now(cell.write, place.is_shared_memory)) {
        report_race(place, cell.write, "a write");
    }
    for (const Stamp &read : cell.reads) {
        if (access == Access::write && (read.mask & mask) != 0 &&
            !is_before_now(read, place.is_shared_memory)) {
            report_race(place, read, "a read");
        }
    }
}

/* f(cell, mask) for every word of the place. */
template <class F> void for_each_cell(const Place &place, const Region &region, F f)
{
    size_t first = static_cast<size_t>(place.address - region.base);
    size_t end = first + place.bytes;
    for (size_t at = first / word; at * word < end; at++) {
        uint8_t mask = 0;
        for (size_t i = 0; i < word; i++) {
            size_t byte = at * word + i;
            mask |= byte >= first && byte < end ? static_cast<uint8_t>(1u << i) : uint8_t{0};
        }
        f(region.cells[at], mask);
    }
}

Region shared_region(void)
{
    return {now_block->arena, arena_bytes, cells_of(now_block->arena, arena_bytes)};
}

/* The region of a place in global memory; bytes 0: none, such as a variable of the program. */
Region global_region(const Place &place)
{
    if (place.address >= last_region.base &&
        place.address + place.bytes <= last_region.base + last_region.bytes) {
        return last_region;
    }
    const Allocation *found = find_allocation(place.address);
    if (found == nullptr) {
        const char *address = reinterpret_cast<const char *>(place.address);
        if (address >= &__executable_start && address < &_end) {
            return {};
        }
        if (const Allocation *near = find_allocation_before(place.address)) {
            report_past_end(place, *near);
        }
        fail(cudaErrorIllegalAddress, "%s of %zu bytes at %p, which is no memory of the device",
             place.who, place.bytes, static_cast<const void *>(place.address));
    }
    if (place.address + place.bytes > found->base + found->bytes) {
        report_past_end(place, *found);
    }
    last_region = {found->base, found->bytes, cells_of(found->base, found->bytes)};
    return last_region;
}

Region region_of(Place &place)
{
    place.is_shared_memory = is_shared(place.address);
    if (!place.is_shared_memory) {
        return global_region(place);
    }
    uint32_t offset = static_cast<uint32_t>(place.address - now_block->arena);
    if (!is_in_shared_array(*now_block, offset, place.bytes)) {
        fail(cudaErrorIllegalAddress, "%s of %zu bytes outside of every shared array: %s",
             place.who, place.bytes, describe(place).c_str());
    }
    return shared_region();
}

bool is_watched(void)
{
    return now != nullptr && now_block->grid->is_checked;
}

} // namespace

void shadow_access(const void *address, size_t bytes, Access access, const char *who)
{
    if (!is_watched() || emu_stack_holds(address)) {
        return;
    }
    Place place = {static_cast<const uint8_t *>(address), bytes, false, who};
    Region region = region_of(place);
    if (region.bytes == 0) {
        return;
    }
    uint32_t clock = clocks_now();
    for_each_cell(place, region, [&](Cell &cell, uint8_t mask) {
        check_cell(cell, place, mask, access);
        if (access == Access::read) {
            record_read(cell, stamp_now(clock, mask, false), place.is_shared_memory);
        } else if (access == Access::write) {
            cell.write = stamp_now(clock, mask, false);
        }
    });
}

void shadow_async_begin(const void *address, size_t bytes, Access access, const char *who)
{
    if (!is_watched()) {
        return;
    }
    Place place = {static_cast<const uint8_t *>(address), bytes, true, who};
    for_each_cell(place, region_of(place), [&](Cell &cell, uint8_t mask) {
        check_cell(cell, place, mask, access);
        if (access == Access::read) {
            record_read(cell, stamp_now(in_flight, mask, true), true);
        } else {
            cell.write = stamp_now(in_flight, mask, true);
        }
    });
}

void shadow_async_end(const void *address, size_t bytes, Access access, const Thread &issuer,
                      uint32_t bulk_clock)
{
    if (!now_block->grid->is_checked) {
        return;
    }
    Place place = {static_cast<const uint8_t *>(address), bytes, true, ""};
    uint32_t thread = static_cast<uint32_t>(issuer.linear);
    uint32_t open = thread << 21 | in_flight;
    uint32_t closed = bulk_clock != 0
                          ? static_cast<uint32_t>(now_block->threads.size()) << 21 | bulk_clock
                          : thread << 21 | clocks_of(issuer);
    for_each_cell(place, shared_region(), [&](Cell &cell, uint8_t) {
        if (access == Access::write && cell.write.when == open) {
            cell.write.when = closed;
        }
        for (Stamp &read : cell.reads) {
            if (access == Access::read && read.when == open) {
                read.when = closed;
            }
        }
    });
}

void shadow_check_async_read(const void *address, size_t bytes, const char *who)
{
    if (!is_watched()) {
        return;
    }
    Place place = {static_cast<const uint8_t *>(address), bytes, true, who};
    for_each_cell(place, region_of(place), [&](Cell &cell, uint8_t mask) {
        const Stamp &write = cell.write;
        if (write.run != now_block->run || write.is_async || (write.mask & mask) == 0) {
            return;
        }
        if (!clocks_is_fenced(thread_of(write.when), write.when & clock_mask)) {
            fail(cudaErrorLaunchFailure,
                 "%s reads %s: thread %u wrote it without a simt_fence_async_shared() behind",
                 place.who, describe(place).c_str(), thread_of(write.when));
        }
    });
}

void shadow_forget(const void *base)
{
    auto found = regions.find(base);
    const Allocation *allocation = find_allocation(base);
    if (found == regions.end() || allocation == nullptr) {
        return;
    }
    munmap(found->second, (allocation->bytes / word + 1) * sizeof(Cell));
    regions.erase(found);
    last_region = {};
}

} // namespace emu
