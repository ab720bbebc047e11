/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_tma.h: bulk copies. Under the forward schedule they are carried out when every thread of the
 * block waits, under the backward one at once, under the random one either way in any order.
 */
#include <algorithm>

#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_driver.h"
#include "tests/cuda_emu/emu_mbarrier.h"
#include "tests/cuda_emu/emu_shadow.h"
#include "tests/cuda_emu/emu_shared.h"

namespace emu
{
namespace
{

/* What a CUtensorMap holds here; real ones are as opaque as this. */
struct Map {
    uint32_t magic;
    uint8_t rank;
    uint8_t element_bytes;
    bool is_swizzled;
    uint8_t *data;
    uint64_t dims[5];
    uint64_t strides[4];
    uint32_t box[5];
};
static_assert(sizeof(Map) <= sizeof(CUtensorMap));
constexpr uint32_t map_magic = 0x544d4150;

/* A tile in shared memory and where its rows come from or go to. */
struct Tile {
    uint8_t *shared = nullptr;
    uint8_t *global = nullptr; /* of a plain copy; else map and at */
    uint32_t bytes = 0;
    Map map = {};
    int at[5] = {};
};

struct Pending {
    Tile tile;
    bool is_store;
    uint64_t *barrier;
    Thread *issuer;
    uint32_t clock; /* shadow_next_bulk(); 0 of a store */
};

} // namespace

struct Bulk {
    std::vector<Pending> pending; /* oldest first */
};

namespace
{

/* 16-byte chunks of a 128-byte row change places with the row's number in its group of 8. */
uint32_t swizzle(uint32_t offset)
{
    return offset ^ (offset >> 3 & 0x70);
}

/* f(shared byte, global byte or NULL when outside) for every 16 bytes or shorter end of a row. */
template <class F> void for_each_piece(const Tile &tile, F f)
{
    const Map &map = tile.map;
    uint32_t row_bytes = map.box[0] * map.element_bytes;
    uint32_t rows = tile.bytes / row_bytes;
    uint32_t base = static_cast<uint32_t>(tile.shared - now_block->arena);
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t rest = row;
        uint8_t *global = map.data;
        bool is_inside = true;
        for (uint32_t d = 1; d < map.rank; d++) {
            int64_t index = tile.at[d] + static_cast<int64_t>(rest % map.box[d]);
            rest /= map.box[d];
            is_inside = is_inside && index >= 0 && index < static_cast<int64_t>(map.dims[d]);
            global += index * static_cast<int64_t>(map.strides[d - 1]);
        }
        for (uint32_t i = 0; i < map.box[0]; i++) {
            int64_t x = tile.at[0] + static_cast<int64_t>(i);
            uint32_t offset = base + row * row_bytes + i * map.element_bytes;
            uint8_t *target = now_block->arena + (map.is_swizzled ? swizzle(offset) : offset);
            bool has = is_inside && x >= 0 && x < static_cast<int64_t>(map.dims[0]);
            f(target, has ? global + x * map.element_bytes : nullptr, map.element_bytes);
        }
    }
}

void load_tile(const Tile &tile)
{
    if (tile.global != nullptr) {
        memcpy(tile.shared, tile.global, tile.bytes);
        return;
    }
    for_each_piece(tile, [](uint8_t *shared, uint8_t *global, uint32_t bytes) {
        if (global == nullptr) {
            memset(shared, 0, bytes);
        } else {
            memcpy(shared, global, bytes);
        }
    });
}

void store_tile(const Tile &tile)
{
    if (tile.global != nullptr) {
        memcpy(tile.global, tile.shared, tile.bytes);
        return;
    }
    for_each_piece(tile, [](uint8_t *shared, uint8_t *global, uint32_t bytes) {
        if (global != nullptr) {
            memcpy(global, shared, bytes);
        }
    });
}

void carry_out(Block &block, const Pending &pending)
{
    now_block = &block;
    Thread *running = now;
    now = pending.issuer;
    if (pending.is_store) {
        store_tile(pending.tile);
        shadow_async_end(pending.tile.shared, pending.tile.bytes, Access::read, *pending.issuer, 0);
    } else {
        shadow_async_end(pending.tile.shared, pending.tile.bytes, Access::write, *pending.issuer,
                         pending.clock);
        load_tile(pending.tile);
        shadow_release_bulk(pending.barrier, pending.clock);
        mbarrier_complete(block, pending.barrier, pending.tile.bytes);
    }
    now = running;
}

Bulk &bulk_of(Block &block)
{
    if (block.bulk == nullptr) {
        block.bulk = std::make_shared<Bulk>();
    }
    return *block.bulk;
}

void issue(const Tile &tile, uint64_t *barrier, bool is_store, const char *who)
{
    uint32_t aligned = tile.global != nullptr ? 16 : tile.map.is_swizzled ? 1024 : 128;
    uint32_t offset = shared_offset(tile.shared, tile.bytes, who);
    if (offset % aligned != 0) {
        fail(cudaErrorMisalignedAddress, "%s: shared offset %u is no multiple of %u", who, offset,
             aligned);
    }
    uint32_t clock = 0;
    if (is_store) {
        shadow_check_async_read(tile.shared, tile.bytes, who);
        shadow_async_begin(tile.shared, tile.bytes, Access::read, who);
    } else {
        mbarrier_check(barrier, who);
        shadow_async_begin(tile.shared, tile.bytes, Access::write, who);
        clock = shadow_next_bulk();
        memset(tile.shared, poison, tile.bytes);
    }
    Pending pending = {tile, is_store, barrier, now, clock};
    bool is_eager = schedule() == EMU_BACKWARD || (schedule() == EMU_RANDOM && choose(2) == 1);
    if (is_eager && !is_store) {
        carry_out(*now_block, pending);
    } else {
        bulk_of(*now_block).pending.push_back(pending);
    }
}

Tile plain_tile(void *shared, const void *global, uint32_t bytes, const char *who)
{
    if (bytes == 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0) {
        fail(cudaErrorMisalignedAddress, "%s: %u bytes at %p: no multiples of 16", who, bytes,
             global);
    }
    shadow_access(global, bytes, Access::read, who);
    Tile tile;
    tile.shared = static_cast<uint8_t *>(shared);
    tile.global = static_cast<uint8_t *>(const_cast<void *>(global));
    tile.bytes = bytes;
    return tile;
}

template <int RANK>
Tile map_tile(const void *shared, const CUtensorMap *map, const int (&at)[RANK], const char *who)
{
    Tile tile;
    memcpy(&tile.map, map, sizeof(tile.map));
    if (tile.map.magic != map_magic || tile.map.rank != RANK) {
        fail(cudaErrorLaunchFailure, "%s: not a tensor map of rank %d", who, RANK);
    }
    tile.shared = static_cast<uint8_t *>(const_cast<void *>(shared));
    tile.bytes = tile.map.element_bytes;
    for (int d = 0; d < RANK; d++) {
        tile.at[d] = at[d];
        tile.bytes *= tile.map.box[d];
    }
    return tile;
}

} // namespace

bool bulk_progress(Block &block)
{
    if (block.bulk == nullptr || block.bulk->pending.empty()) {
        return false;
    }
    std::vector<Pending> &pending = block.bulk->pending;
    size_t which = choose(static_cast<uint32_t>(pending.size()));
    Pending next = pending[which];
    if (next.is_store) {
        /* Its thread counts its stores in their order. */
        auto first = std::find_if(pending.begin(), pending.end(), [&](const Pending &one) {
            return one.is_store && one.issuer == next.issuer;
        });
        which = static_cast<size_t>(first - pending.begin());
        next = *first;
    }
    pending.erase(pending.begin() + static_cast<ptrdiff_t>(which));
    carry_out(block, next);
    return true;
}

void bulk_block_ended(Block &block)
{
    if (block.bulk == nullptr || block.bulk->pending.empty()) {
        return;
    }
    note_fault(cudaErrorLaunchFailure, "a block of " + block.grid->name + " ends while " +
                                           std::to_string(block.bulk->pending.size()) +
                                           " bulk copies are on their way");
}

/* The stores of `thread` that are still pending, oldest first: all but the `keep` newest end. */
static void finish_stores(Thread &thread, size_t keep)
{
    std::vector<Pending> &pending = bulk_of(*now_block).pending;
    size_t mine =
        static_cast<size_t>(std::count_if(pending.begin(), pending.end(), [&](const Pending &one) {
            return one.is_store && one.issuer == &thread;
        }));
    for (size_t i = 0; i < pending.size() && mine > keep;) {
        if (pending[i].is_store && pending[i].issuer == &thread) {
            Pending next = pending[i];
            pending.erase(pending.begin() + static_cast<ptrdiff_t>(i));
            carry_out(*now_block, next);
            mine--;
        } else {
            i++;
        }
    }
}

/* ---- the driver's encoder ------------------------------------------------------------------- */

static uint8_t bytes_of(CUtensorMapDataType type)
{
    switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
        return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
        return 2;
    default:
        return 4;
    }
}

static CUresult encode_tiled(CUtensorMap *out, CUtensorMapDataType type, cuuint32_t rank,
                             void *data, const cuuint64_t *dims, const cuuint64_t *strides,
                             const cuuint32_t *box, const cuuint32_t *, CUtensorMapInterleave,
                             CUtensorMapSwizzle swizzle_mode, CUtensorMapL2promotion,
                             CUtensorMapFloatOOBfill)
{
    Map map = {};
    map.magic = map_magic;
    map.rank = static_cast<uint8_t>(rank);
    map.element_bytes = bytes_of(type);
    map.is_swizzled = swizzle_mode == CU_TENSOR_MAP_SWIZZLE_128B;
    map.data = static_cast<uint8_t *>(data);
    uint32_t row_bytes = box[0] * map.element_bytes;
    bool is_valid = rank >= 1 && rank <= 5 && reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
                    row_bytes % 16 == 0 && (!map.is_swizzled || row_bytes <= 128);
    for (uint32_t d = 0; d < rank && is_valid; d++) {
        map.dims[d] = dims[d];
        map.box[d] = box[d];
        is_valid = dims[d] > 0 && dims[d] <= UINT64_C(1) << 32 && box[d] > 0 && box[d] <= 256;
        if (d > 0) {
            map.strides[d - 1] = strides[d - 1];
            is_valid = is_valid && strides[d - 1] % 16 == 0 && strides[d - 1] < UINT64_C(1) << 40;
        }
    }
    if (!is_valid) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    memset(out, 0, sizeof(*out));
    memcpy(out, &map, sizeof(map));
    return CUDA_SUCCESS;
}

void *find_driver_function(const char *name)
{
    return strcmp(name, "cuTensorMapEncodeTiled") == 0 ? reinterpret_cast<void *>(encode_tiled)
                                                       : find_vmm_function(name);
}

} // namespace emu

using namespace emu;

void simt_tma_load(void *shared, const void *global, uint32_t bytes, simt_mbarrier_t *barrier,
                   uint64_t)
{
    issue(plain_tile(shared, global, bytes, "simt_tma_load"), barrier, false, "simt_tma_load");
}

void simt_tma_load_2d(void *shared, const simt_tensor_map_t *map, int x, int y,
                      simt_mbarrier_t *barrier, uint64_t)
{
    issue(map_tile(shared, map, {x, y}, "simt_tma_load_2d"), barrier, false, "simt_tma_load_2d");
}

void simt_tma_load_3d(void *shared, const simt_tensor_map_t *map, int x, int y, int z,
                      simt_mbarrier_t *barrier, uint64_t)
{
    issue(map_tile(shared, map, {x, y, z}, "simt_tma_load_3d"), barrier, false, "simt_tma_load_3d");
}

void simt_tma_load_4d(void *shared, const simt_tensor_map_t *map, int x, int y, int z, int w,
                      simt_mbarrier_t *barrier, uint64_t)
{
    issue(map_tile(shared, map, {x, y, z, w}, "simt_tma_load_4d"), barrier, false,
          "simt_tma_load_4d");
}

void simt_tma_load_5d(void *shared, const simt_tensor_map_t *map, int x, int y, int z, int w, int v,
                      simt_mbarrier_t *barrier, uint64_t)
{
    issue(map_tile(shared, map, {x, y, z, w, v}, "simt_tma_load_5d"), barrier, false,
          "simt_tma_load_5d");
}

void simt_tma_prefetch_map(const simt_tensor_map_t *)
{
}

void simt_tma_prefetch_l2(const void *, uint32_t)
{
}

void simt_tma_store(void *global, const void *shared, uint32_t bytes)
{
    Tile tile = plain_tile(const_cast<void *>(shared), global, bytes, "simt_tma_store");
    issue(tile, nullptr, true, "simt_tma_store");
    now->uncommitted_stores++;
}

void simt_tma_store_2d(const simt_tensor_map_t *map, int x, int y, const void *shared)
{
    issue(map_tile(shared, map, {x, y}, "simt_tma_store_2d"), nullptr, true, "simt_tma_store_2d");
    now->uncommitted_stores++;
}

void simt_tma_store_3d(const simt_tensor_map_t *map, int x, int y, int z, const void *shared)
{
    issue(map_tile(shared, map, {x, y, z}, "simt_tma_store_3d"), nullptr, true,
          "simt_tma_store_3d");
    now->uncommitted_stores++;
}

void simt_tma_store_commit(void)
{
    now->stores.push_back(now->uncommitted_stores);
    now->uncommitted_stores = 0;
}

void emu_tma_store_wait(int newest)
{
    size_t keep = now->uncommitted_stores;
    size_t groups = now->stores.size();
    size_t kept = std::min(groups, static_cast<size_t>(newest));
    for (size_t i = groups - kept; i < groups; i++) {
        keep += now->stores[i];
    }
    finish_stores(*now, keep);
    now->stores.erase(now->stores.begin(), now->stores.end() - static_cast<ptrdiff_t>(kept));
}
