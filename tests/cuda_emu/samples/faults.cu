/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/cuda_emu/samples/faults.h"

#include "kernels/cuda/simt/simt.h"

/* The launcher sample_<name> of the kernels <name><true> and <name><false>. */
#define LAUNCHER(name, blocks, threads)                                                            \
    int sample_##name(bool is_faulty, const float *x, float *y, const float *host)                 \
    {                                                                                              \
        simt_grid_t at = {.grid = {blocks}, .block = {threads}, .shared_bytes = 32768};            \
        return is_faulty ? simt_launch(name<true>, at, x, y, host)                                 \
                         : simt_launch(name<false>, at, x, y, host);                               \
    }

template <bool FAULTY>
static SIMT_KERNEL(64, 1) global_past_end(const float *x, float *y, const float *)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < 1000 || (FAULTY && i == 1000)) {
        y[i] = x[i < 1000 ? i : 0];
    }
}
LAUNCHER(global_past_end, 16, 64)

template <bool FAULTY>
static SIMT_KERNEL(64, 1) shared_past_end(const float *x, float *y, const float *)
{
    SIMT_SHARED(float, s, [64]);
    s[threadIdx.x + (FAULTY ? 1 : 0)] = x[threadIdx.x];
    y[threadIdx.x] = s[threadIdx.x + (FAULTY ? 1 : 0)];
}
LAUNCHER(shared_past_end, 1, 64)

template <bool FAULTY> static SIMT_KERNEL(32, 1) misaligned(const float *x, float *y, const float *)
{
    const float *from = x + threadIdx.x * 4 + (FAULTY ? 1 : 0);
    reinterpret_cast<uint4 *>(y)[threadIdx.x] = *reinterpret_cast<const uint4 *>(from);
}
LAUNCHER(misaligned, 1, 32)

template <bool FAULTY>
static SIMT_KERNEL(32, 1) host_memory(const float *x, float *y, const float *host)
{
    y[threadIdx.x] = (FAULTY ? host : x)[threadIdx.x];
}
LAUNCHER(host_memory, 1, 32)

template <bool FAULTY>
static SIMT_KERNEL(32, 1) copy_not_awaited(const float *x, float *y, const float *)
{
    SIMT_SHARED(float, s, [2][128]);
    simt_cp_async<16>(&s[0][threadIdx.x * 4], x + threadIdx.x * 4);
    simt_cp_async_commit();
    simt_cp_async<16>(&s[1][threadIdx.x * 4], x + threadIdx.x * 4);
    simt_cp_async_commit();
    simt_cp_async_wait<1>();
    if constexpr (!FAULTY) {
        simt_cp_async_wait<0>();
    }
    simt_sync_block();
    y[threadIdx.x] = s[1][threadIdx.x];
    simt_cp_async_wait<0>();
}
LAUNCHER(copy_not_awaited, 1, 32)

template <bool FAULTY>
static SIMT_KERNEL(32, 1) copy_never_awaited(const float *x, float *y, const float *)
{
    SIMT_SHARED(float, s, [128]);
    simt_cp_async<16>(&s[threadIdx.x * 4], x + threadIdx.x * 4);
    simt_cp_async_commit();
    y[threadIdx.x] = x[threadIdx.x];
    if constexpr (!FAULTY) {
        simt_cp_async_wait<0>();
    }
}
LAUNCHER(copy_never_awaited, 1, 32)

template <bool FAULTY>
static SIMT_KERNEL(128, 1) barrier_before_read(const float *x, float *y, const float *)
{
    SIMT_SHARED(float, s, [128]);
    s[threadIdx.x] = x[threadIdx.x];
    if constexpr (!FAULTY) {
        simt_sync_block();
    }
    y[threadIdx.x] = s[127 - threadIdx.x];
}
LAUNCHER(barrier_before_read, 1, 128)

template <bool FAULTY>
static SIMT_KERNEL(128, 1) barrier_before_write(const float *x, float *y, const float *)
{
    SIMT_SHARED(float, s, [128]);
    float sum = 0.0f;
    for (int round = 0; round < 4; round++) {
        s[threadIdx.x] = x[threadIdx.x + (unsigned)round];
        simt_sync_block();
        sum += s[127 - threadIdx.x];
        if constexpr (!FAULTY) {
            simt_sync_block();
        }
    }
    y[threadIdx.x] = sum;
}
LAUNCHER(barrier_before_write, 1, 128)

template <bool FAULTY> static SIMT_KERNEL(32, 1) sync_warp(const float *x, float *y, const float *)
{
    SIMT_SHARED(float, s, [32]);
    s[simt_lane()] = x[threadIdx.x];
    float v = simt_shfl_xor(x[threadIdx.x], 1); /* orders no memory */
    if constexpr (!FAULTY) {
        simt_sync_warp();
    }
    y[threadIdx.x] = v + s[31 - simt_lane()];
}
LAUNCHER(sync_warp, 1, 32)

template <bool FAULTY>
static SIMT_KERNEL(64, 1) divergent_barrier(const float *x, float *y, const float *)
{
    if (FAULTY && threadIdx.x >= 32) {
        simt_barrier_sync(1, 64);
    } else {
        simt_sync_block();
    }
    y[threadIdx.x] = x[threadIdx.x];
}
LAUNCHER(divergent_barrier, 1, 64)

template <bool FAULTY>
static SIMT_KERNEL(64, 1) lane_has_ended(const float *x, float *y, const float *)
{
    if (FAULTY && threadIdx.x == 9) {
        return;
    }
    y[threadIdx.x] = simt_warp_sum(x[threadIdx.x]);
}
LAUNCHER(lane_has_ended, 1, 64)

template <bool FAULTY>
static SIMT_KERNEL(32, 1) unlike_masks(const float *x, float *y, const float *)
{
    int lane = simt_lane();
    uint32_t mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    y[threadIdx.x] = simt_shfl_xor(x[threadIdx.x], 1, FAULTY && lane == 3 ? SIMT_ALL_LANES : mask);
}
LAUNCHER(unlike_masks, 1, 32)

template <bool FAULTY> static SIMT_KERNEL(32, 1) two_blocks(const float *x, float *y, const float *)
{
    y[threadIdx.x + (FAULTY ? 0 : blockIdx.x * 32)] = x[threadIdx.x];
}
LAUNCHER(two_blocks, 2, 32)

/* The last block to come adds what all wrote; y[900] counts. */
template <bool FAULTY>
static SIMT_KERNEL(32, 1) fence_device(const float *x, float *y, const float *)
{
    SIMT_SHARED(uint32_t, arrived, [1]);
    uint32_t *count = reinterpret_cast<uint32_t *>(y + 900);
    if (threadIdx.x == 0) {
        y[blockIdx.x] = x[blockIdx.x];
        if constexpr (!FAULTY) {
            simt_fence_device();
        }
        arrived[0] = simt_atomic_add(count, 1u);
    }
    simt_sync_block();
    if (arrived[0] == gridDim.x - 1 && threadIdx.x == 0) {
        float sum = 0.0f;
        for (unsigned i = 0; i < gridDim.x; i++) {
            sum += y[i];
        }
        y[500] = sum;
        *count = 0;
    }
}
LAUNCHER(fence_device, 6, 32)

static SIMT_KERNEL(32, 1) fill(float *y)
{
    y[threadIdx.x] = 1.0f;
    simt_launch_next();
}

/* Launched while fill may still run; one thread waits for all. */
template <bool FAULTY>
static SIMT_KERNEL(32, 1) wait_previous(const float *x, float *y, const float *)
{
    float v = x[threadIdx.x] + y[threadIdx.x];
    if (threadIdx.x == 0) {
        simt_wait_previous();
    }
    simt_sync_block();
    y[threadIdx.x] += v;
}

int sample_wait_previous(bool is_faulty, const float *x, float *y, const float *host)
{
    simt_grid_t at = {.grid = {1}, .block = {32}};
    int error = simt_launch(fill, at, y);
    if (!is_faulty) {
        error |= cudaDeviceSynchronize(); /* the twin may use y at once: fill has ended */
    }
    at.overlaps_previous = true;
    error |= is_faulty ? simt_launch(wait_previous<true>, at, x, y, host)
                       : simt_launch(wait_previous<false>, at, x, y, host);
    return error;
}

template <bool FAULTY>
static SIMT_KERNEL(32, 1) end_before_previous(const float *x, float *y, const float *)
{
    if (FAULTY && blockIdx.x == 1) {
        return;
    }
    simt_wait_previous();
    y[blockIdx.x * 32 + threadIdx.x] = x[threadIdx.x];
}

int sample_end_before_previous(bool is_faulty, const float *x, float *y, const float *host)
{
    simt_grid_t at = {.grid = {2}, .block = {32}, .overlaps_previous = true};
    return is_faulty ? simt_launch(end_before_previous<true>, at, x, y, host)
                     : simt_launch(end_before_previous<false>, at, x, y, host);
}

template <bool FAULTY>
static SIMT_KERNEL(128, 1) named_barrier(const float *x, float *y, const float *)
{
    SIMT_SHARED(float, s, [2][64]);
    unsigned group = threadIdx.x / 64, i = threadIdx.x % 64;
    s[group][i] = x[threadIdx.x];
    simt_barrier_sync((int)group + 1, 64);
    y[threadIdx.x] = s[FAULTY ? 1 - group : group][63 - i];
}
LAUNCHER(named_barrier, 1, 128)

/* ---- Hopper --------------------------------------------------------------------------------- */

template <bool FAULTY>
static SIMT_KERNEL(64, 1) tile_not_awaited(const float *x, float *y, const float *)
{
#if SIMT_HOPPER
    SIMT_SHARED(float, s, [64]);
    SIMT_SHARED(simt_mbarrier_t, full, [1]);
    if (threadIdx.x == 0) {
        simt_mbarrier_init(full, 1);
        simt_mbarrier_fence_init();
        simt_mbarrier_arrive_expect(full, 256);
        simt_tma_load(s, x, 256, full);
    }
    simt_sync_block();
    if constexpr (!FAULTY) {
        simt_mbarrier_wait(full, 0);
    }
    y[threadIdx.x] = s[threadIdx.x];
    simt_mbarrier_wait(full, 0);
#endif
}

LAUNCHER(tile_not_awaited, 1, 64)

template <bool FAULTY>
static SIMT_KERNEL(64, 1) too_many_bytes(const float *x, float *y, const float *)
{
#if SIMT_HOPPER
    SIMT_SHARED(float, s, [64]);
    SIMT_SHARED(simt_mbarrier_t, full, [1]);
    if (threadIdx.x == 0) {
        simt_mbarrier_init(full, 1);
        simt_mbarrier_fence_init();
        simt_mbarrier_arrive_expect(full, FAULTY ? 272 : 256);
        simt_tma_load(s, x, 256, full);
    }
    simt_sync_block();
    simt_mbarrier_wait(full, 0);
    y[threadIdx.x] = s[threadIdx.x];
#endif
}
LAUNCHER(too_many_bytes, 1, 64)

/* One stage, filled twice; the second time before everyone has read the first. */
template <bool FAULTY>
static SIMT_KERNEL(64, 1) stage_reused(const float *x, float *y, const float *)
{
#if SIMT_HOPPER
    SIMT_SHARED(float, s, [64]);
    SIMT_SHARED(simt_mbarrier_t, full, [1]);
    SIMT_SHARED(simt_mbarrier_t, free, [1]);
    if (threadIdx.x == 0) {
        simt_mbarrier_init(full, 1);
        simt_mbarrier_init(free, 64);
        simt_mbarrier_fence_init();
    }
    simt_sync_block();
    float sum = 0.0f;
    for (uint32_t round = 0; round < 2; round++) {
        if (threadIdx.x == 0) {
            if (!FAULTY) {
                simt_mbarrier_wait(free, (round & 1) ^ 1);
            }
            simt_mbarrier_arrive_expect(full, 256);
            simt_tma_load(s, x + round * 64, 256, full);
        }
        simt_mbarrier_wait(full, round & 1);
        sum += s[63 - threadIdx.x];
        simt_mbarrier_arrive(free);
    }
    y[threadIdx.x] = sum;
#endif
}
LAUNCHER(stage_reused, 1, 64)

/* Three groups with 168 registers a thread each: two may have 240 when the third keeps 24. */
template <bool FAULTY>
static SIMT_KERNEL(384, 1) too_many_registers(const float *x, float *y, const float *)
{
#if SIMT_HOPPER
    if (threadIdx.x >= 256) {
        simt_registers_lower<FAULTY ? 32 : 24>();
        return;
    }
    simt_registers_raise<240>();
#endif
    y[threadIdx.x] = x[threadIdx.x];
}
LAUNCHER(too_many_registers, 1, 384)

template <bool FAULTY>
static SIMT_KERNEL(64, 1) fence_async(const float *x, float *y, const float *)
{
#if SIMT_HOPPER
    SIMT_SHARED(float, s, [64]);
    s[threadIdx.x] = x[threadIdx.x];
    if constexpr (!FAULTY) {
        simt_fence_async_shared();
    }
    simt_sync_block();
    if (threadIdx.x == 0) {
        simt_tma_store(y, s, 256);
        simt_tma_store_commit();
        simt_tma_store_wait<0>();
    }
#endif
}
LAUNCHER(fence_async, 1, 64)

template <bool FAULTY>
static SIMT_KERNEL(64, 1) store_not_awaited(const float *x, float *y, const float *)
{
#if SIMT_HOPPER
    SIMT_SHARED(float, s, [64]);
    s[threadIdx.x] = x[threadIdx.x];
    simt_fence_async_shared();
    simt_sync_block();
    if (threadIdx.x == 0) {
        simt_tma_store(y, s, 256);
        simt_tma_store_commit();
        if constexpr (!FAULTY) {
            simt_tma_store_wait_read<0>();
        }
    }
#endif
}
LAUNCHER(store_not_awaited, 1, 64)

template <bool FAULTY>
static SIMT_KERNEL(64, 1) init_not_fenced(const float *x, float *y, const float *)
{
#if SIMT_HOPPER
    SIMT_SHARED(float, s, [64]);
    SIMT_SHARED(simt_mbarrier_t, full, [1]);
    if (threadIdx.x == 0) {
        simt_mbarrier_init(full, 1);
        if constexpr (!FAULTY) {
            simt_mbarrier_fence_init();
        }
        simt_mbarrier_arrive_expect(full, 256);
        simt_tma_load(s, x, 256, full);
    }
    simt_sync_block();
    simt_mbarrier_wait(full, 0);
    y[threadIdx.x] = s[threadIdx.x];
#endif
}
LAUNCHER(init_not_fenced, 1, 64)

/* An mbarrier counts a byte less than a MiB. */
template <bool FAULTY>
static SIMT_KERNEL(64, 1) bytes_uncountable(const float *x, float *y, const float *)
{
#if SIMT_HOPPER
    SIMT_SHARED(float, s, [64]);
    SIMT_SHARED(simt_mbarrier_t, full, [1]);
    if (threadIdx.x == 0) {
        simt_mbarrier_init(full, 1);
        simt_mbarrier_fence_init();
        simt_mbarrier_expect(full, FAULTY ? 1 << 20 : 256);
        simt_tma_load(s, x, 256, full);
        simt_mbarrier_arrive(full);
    }
    simt_sync_block();
    simt_mbarrier_wait(full, 0);
    y[threadIdx.x] = s[threadIdx.x];
#endif
}
LAUNCHER(bytes_uncountable, 1, 64)

/*
 * Three lanes fill a stage, three times over; lane 1 begins a round behind the others, which wait where
 * it comes by.
 */
template <bool FAULTY>
static SIMT_KERNEL(64, 1) lanes_apart(const float *x, float *y, const float *)
{
#if SIMT_HOPPER
    SIMT_SHARED(float, s, [3][32]);
    SIMT_SHARED(simt_mbarrier_t, full, [1]);
    SIMT_SHARED(simt_mbarrier_t, free, [1]);
    const uint32_t lane = (uint32_t)simt_lane();
    uint32_t round = (uint32_t)x[0]; /* 0 and 1, which the compiler cannot know */
    const uint32_t waits_from = (uint32_t)x[1] + 1;
    if (threadIdx.x == 0) {
        simt_mbarrier_init(full, 3);
        simt_mbarrier_init(free, 2);
        simt_mbarrier_fence_init();
    }
    simt_sync_block();
    if (simt_warp() == 1) {
        float sum = 0.0f;
        for (; round < 3; round++) {
            simt_mbarrier_wait(full, round & 1);
            sum += s[0][lane] + s[1][lane] + s[2][lane];
            simt_sync_warp(); /* the others may wait again before lane 0 has come twice */
            for (int i = 0; i < 2 && lane == 0; i++) {
                simt_mbarrier_arrive(free);
            }
        }
        y[blockIdx.x * 32 + lane] = sum;
    } else if (lane < 3) {
        if (FAULTY && lane != 1) {
            simt_mbarrier_arrive_expect(full, 128);
            simt_tma_load(s[lane], x + lane * 32, 128, full);
            round++;
        }
        for (; round < 3; round++) {
            if constexpr (!FAULTY) {
                simt_sync_warp(7);
            }
            if (round >= waits_from) {
                simt_mbarrier_wait(free, (round - 1) & 1);
            }
            simt_mbarrier_arrive_expect(full, 128);
            simt_tma_load(s[lane], x + round * 96 + lane * 32, 128, full);
        }
    }
#endif
}
LAUNCHER(lanes_apart, 16, 64)

template <bool FAULTY>
static SIMT_KERNEL(256, 1) registers_of_a_warp(const float *x, float *y, const float *)
{
#if SIMT_HOPPER
    if (threadIdx.x < 128) {
        simt_registers_lower<40>();
    } else if (!FAULTY || threadIdx.x < 160) {
        simt_registers_raise<248>();
    }
#endif
    y[threadIdx.x] = x[threadIdx.x];
}
LAUNCHER(registers_of_a_warp, 1, 256)

template <bool FAULTY>
static SIMT_KERNEL(128, 1) wgmma_fence(const float *x, float *y, const float *)
{
#if SIMT_HOPPER
    SIMT_DYN_SHARED(float, tiles); /* a [64] and b [8] rows of 128 bytes */
    for (unsigned i = threadIdx.x; i < 72 * 32; i += 128) {
        tiles[i] = x[i % 32];
    }
    simt_fence_async_shared();
    simt_sync_block();
    float d[4] = {1, 1, 1, 1};
    if constexpr (!FAULTY) {
        simt_wgmma_hold(d);
        simt_wgmma_fence();
    }
    simt_wgmma_bf16<8>(d, simt_wgmma_desc_k(tiles), simt_wgmma_desc_k(tiles + 64 * 32));
    simt_wgmma_commit();
    simt_wgmma_wait<0>();
    simt_wgmma_hold(d);
    y[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
#endif
}
LAUNCHER(wgmma_fence, 1, 128)
