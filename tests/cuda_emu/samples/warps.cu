/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/cuda_emu/samples/warps.h"

#include "kernels/cuda/simt/simt.h"

static SIMT_KERNEL(1024, 1) block_sum(const float *x, float *out)
{
    SIMT_SHARED(float, sums, [32]);
    float sum = simt_warp_sum(x[threadIdx.x]);
    if (simt_lane() == 0) {
        sums[simt_warp()] = sum;
    }
    simt_sync_block();
    sum = 0.0f;
    for (unsigned i = 0; i < blockDim.x / SIMT_WARP; i++) {
        sum += sums[i];
    }
    out[threadIdx.x] = sum;
}

int sample_block_sum(const float *x, float *out, unsigned n, cudaStream_t stream)
{
    return simt_launch(block_sum, {.grid = {1}, .block = {n}, .stream = stream}, x, out);
}

static SIMT_KERNEL(32, 1) shuffles(int32_t *out)
{
    int lane = simt_lane();
    int v[2] = {lane * 10, 1};
    simt_shfl_xor_n(v, 5);
    out[lane] = v[0];
    out[32 + lane] = simt_shfl(lane * 10, 7);
    out[64 + lane] = simt_shfl_down(lane * 10, 3);
    out[96 + lane] = simt_shfl_up(lane * 10, 2);
}

int sample_shuffles(int32_t *out, cudaStream_t stream)
{
    return simt_launch(shuffles, {.grid = {1}, .block = {32}, .stream = stream}, out);
}

static SIMT_KERNEL(32, 1) halves(int32_t *out, uint32_t *ballots)
{
    int lane = simt_lane();
    if (lane < 16) {
        out[lane] = simt_shfl_xor(lane, 1, 0x0000ffffu);
        uint32_t ballot = simt_ballot(lane % 2 == 0, 0x0000ffffu);
        if (lane == 0) {
            ballots[0] = ballot;
        }
    } else {
        uint32_t ballot = simt_ballot(lane % 4 == 0, 0xffff0000u);
        out[lane] = simt_shfl_xor(lane, 2, 0xffff0000u);
        if (lane == 16) {
            ballots[1] = ballot;
        }
    }
}

int sample_halves(int32_t *out, uint32_t *ballots, cudaStream_t stream)
{
    return simt_launch(halves, {.grid = {1}, .block = {32}, .stream = stream}, out, ballots);
}

static SIMT_KERNEL(64, 1) scale(const float *x, float *out, unsigned n, float factor)
{
    simt_wait_previous();
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        out[i] = x[i] * factor;
    }
    simt_launch_next();
}

int sample_scale(const float *x, float *out, unsigned n, double factor, cudaStream_t stream)
{
    return simt_launch(
        scale,
        {.grid = {(n + 63) / 64}, .block = {64}, .stream = stream, .overlaps_previous = true}, x,
        out, n, factor);
}

static SIMT_KERNEL(64, 1) last_block(const float *x, float *partial, uint32_t *count, float *out)
{
    SIMT_SHARED(uint32_t, is_last, [1]);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = x[blockIdx.x] * 2.0f;
        simt_fence_device();
        is_last[0] = simt_atomic_add(count, 1u) == gridDim.x - 1;
    }
    simt_sync_block();
    if (is_last[0] != 0 && threadIdx.x == 1) {
        float sum = 0.0f;
        for (unsigned i = 0; i < gridDim.x; i++) {
            sum += partial[i];
        }
        out[0] = sum;
        *count = 0;
    }
}

int sample_last_block(const float *x, float *partial, uint32_t *count, float *out, unsigned blocks,
                      cudaStream_t stream)
{
    return simt_launch(last_block, {.grid = {blocks}, .block = {64}, .stream = stream}, x, partial,
                       count, out);
}

static SIMT_KERNEL(32, 1) flag_kernel(uint32_t *flag, uint32_t *out)
{
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        while (simt_load_acquire(flag) == 0) {
            simt_spin();
        }
        out[0] = out[1] + 1;
    }
    if (blockIdx.x == 1 && threadIdx.x == 3) {
        out[1] = 6;
        simt_store_release(flag, 1);
    }
}

int sample_flag(uint32_t *flag, uint32_t *out, cudaStream_t stream)
{
    return simt_launch(flag_kernel, {.grid = {2}, .block = {32}, .stream = stream}, flag, out);
}

static SIMT_KERNEL(32, 1) clock_kernel(uint64_t ns, uint64_t *out)
{
    const uint64_t since = simt_clock_ns();
    uint64_t now = since;
    while (threadIdx.x == 0 && now - since < ns) {
        simt_spin();
        now = simt_clock_ns();
    }
    if (threadIdx.x == 0) {
        out[0] = now - since;
    }
}

int sample_clock(uint64_t ns, uint64_t *out, cudaStream_t stream)
{
    return simt_launch(clock_kernel, {.grid = {1}, .block = {32}, .stream = stream}, ns, out);
}

static SIMT_KERNEL(128, 1) named_barriers(int32_t *out, int rounds)
{
    SIMT_SHARED(int32_t, value, [1]);
    bool is_producer = simt_warp() >= 2;
    for (int round = 0; round < rounds; round++) {
        if (is_producer) {
            if (round > 0) {
                simt_barrier_sync(2, 128);
            }
            if (threadIdx.x == 64) {
                value[0] = round * round;
            }
            simt_barrier_arrive(1, 128);
        } else {
            simt_barrier_sync(1, 128);
            if (threadIdx.x == 5) {
                out[round] = value[0];
            }
            if (round + 1 < rounds) {
                simt_barrier_arrive(2, 128);
            }
        }
    }
}

int sample_named_barriers(int32_t *out, int rounds, cudaStream_t stream)
{
    return simt_launch(named_barriers, {.grid = {1}, .block = {128}, .stream = stream}, out,
                       rounds);
}
