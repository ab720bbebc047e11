/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_ranks_group: the regions of a group of ranks as its kernels see them: where who writes, who waits
 * for whom, and how a failure is told. For .cu files.
 */
#pragma once

#include "kernels/cuda/cuda_ranks.h"
#include "kernels/cuda/simt.h"

enum {
    RANKS_THREADS = 512,
    RANKS_LOOKS = 32, /* at a flag, between two looks at whether it is still worth waiting */
};

/* The head of a region. Who writes: r: that rank; own: the region's own rank. */
struct head_t {
    uint32_t arrived[CUDA_RANKS_CHANNELS][CUDA_RANKS_MAX];    /* r: its step */
    uint32_t ready[CUDA_RANKS_MAX][CUDA_RANKS_PAIR_CHANNELS]; /* r: pieces it has sent here */
    uint32_t taken[CUDA_RANKS_MAX][CUDA_RANKS_PAIR_CHANNELS]; /* r: pieces it has read from here */
    uint32_t failed;                                          /* any: a CUDA_RANKS_FAILED */
    uint32_t steps[CUDA_RANKS_CHANNELS];                      /* own */
    uint32_t sent[CUDA_RANKS_MAX][CUDA_RANKS_PAIR_CHANNELS];  /* own: pieces to r */
    uint32_t received[CUDA_RANKS_MAX][CUDA_RANKS_PAIR_CHANNELS]; /* own: pieces from r */
};

static_assert(sizeof(head_t) <= CUDA_RANKS_HEAD_BYTES);

/* ---- where things are ----------------------------------------------------------------------- */

SIMT_DEVICE head_t *head_of(const cuda_ranks_t &g, uint32_t rank)
{
    return reinterpret_cast<head_t *>(g.regions[rank]);
}

/* Of this block's channel: where `source` writes for `owner` at this step. */
SIMT_DEVICE char *place_of(const cuda_ranks_t &g, uint32_t owner, uint32_t step, uint32_t source)
{
    const size_t place = (size_t)(2 * blockIdx.x + step % 2) * g.size + source;
    return g.regions[owner] + CUDA_RANKS_HEAD_BYTES + place * g.place_bytes;
}

/* Where `source` writes its piece number `count` for `owner`. */
SIMT_DEVICE char *pair_place_of(const cuda_ranks_t &g, uint32_t owner, uint32_t source,
                                uint32_t count)
{
    const size_t pair = source < owner ? source : source - 1;
    const size_t place = (pair * CUDA_RANKS_PAIR_CHANNELS + blockIdx.x) * 2 + count % 2;
    const size_t places = (size_t)2 * CUDA_RANKS_CHANNELS * g.size;
    return g.regions[owner] + CUDA_RANKS_HEAD_BYTES + places * g.place_bytes + place * g.pair_bytes;
}

/* A channel's part of n elements: whole vectors but for the last one. */
struct part_t {
    size_t first;
    size_t last;
};

SIMT_DEVICE size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

SIMT_DEVICE size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

SIMT_DEVICE part_t part_of_channel(size_t n, size_t unit)
{
    const size_t length = round_up((n + gridDim.x - 1) / gridDim.x, unit);
    return {least(n, length * blockIdx.x), least(n, length * (blockIdx.x + 1))};
}

/* ---- failure -------------------------------------------------------------------------------- */

/* The first failure that a rank hears of is the one that it keeps. */
SIMT_DEVICE void tell(const cuda_ranks_t &g, uint32_t failure)
{
    const uint32_t earlier = simt_atomic_cas(&head_of(g, g.rank)->failed, 0u, failure);
    failure = earlier != 0 ? earlier : failure;
    simt_store_release(&g.told->failure, failure);
    for (uint32_t rank = 0; rank < g.size; rank++) {
        uint32_t *failed = &head_of(g, rank)->failed;
        if (rank != g.rank && simt_load_acquire(failed) == 0) {
            simt_store_release(failed, failure);
        }
    }
}

SIMT_DEVICE bool has_failed(const cuda_ranks_t &g)
{
    const uint32_t failure = simt_load_acquire(&head_of(g, g.rank)->failed);
    if (failure != 0) {
        simt_store_release(&g.told->failure, failure);
    }
    return failure != 0;
}

/* Whether it is still worth waiting for peer. */
SIMT_DEVICE bool check_peer(const cuda_ranks_t &g, uint32_t peer, uint64_t *since)
{
    const uint64_t now = simt_clock_ns();
    *since = *since == 0 ? now : *since;
    if (has_failed(g)) {
        return false;
    }
    const uint32_t abort = simt_load_acquire(&g.told->abort);
    const bool is_late = now - *since > g.timeout_ns;
    if (abort != 0 || is_late) {
        tell(g, abort != 0 ? abort : CUDA_RANKS_FAILED(peer) | CUDA_RANKS_TIMEOUT);
    }
    return abort == 0 && !is_late;
}

/* One thread, until peer's flag has come to target, as counters do. False: the group has failed. */
SIMT_DEVICE bool await(const cuda_ranks_t &g, const uint32_t *flag, uint32_t target, uint32_t peer)
{
    uint64_t since = 0;
    for (uint32_t looks = 1; (int32_t)(simt_load_acquire(flag) - target) < 0; looks++) {
        if (looks % RANKS_LOOKS == 0 && !check_peer(g, peer, &since)) {
            return false;
        }
        simt_spin();
    }
    return true;
}

/* ---- steps ---------------------------------------------------------------------------------- */

/* The same answer in all threads. */
SIMT_DEVICE bool begin(const cuda_ranks_t &g)
{
    return !simt_sync_block_or(threadIdx.x == 0 && has_failed(g));
}

SIMT_DEVICE uint32_t load_step(const cuda_ranks_t &g)
{
    return head_of(g, g.rank)->steps[blockIdx.x];
}

SIMT_DEVICE void store_step(const cuda_ranks_t &g, uint32_t step)
{
    if (threadIdx.x == 0) {
        head_of(g, g.rank)->steps[blockIdx.x] = step;
    }
}

/*
 * Says that this rank's channel is at the step, with everything that its threads have written before, and
 * waits until all ranks' are. False, in all threads: the group has failed.
 */
SIMT_DEVICE bool meet(const cuda_ranks_t &g, uint32_t step)
{
    const uint32_t peer = threadIdx.x;
    bool is_lost = false;
    simt_sync_block();
    if (peer < g.size) {
        simt_fence_system();
        simt_store_release(&head_of(g, peer)->arrived[blockIdx.x][g.rank], step);
        is_lost = !await(g, &head_of(g, g.rank)->arrived[blockIdx.x][peer], step, peer);
    }
    return !simt_sync_block_or(is_lost);
}

/*
 * What a channel does for its part of n elements, in pieces of at most `piece`.
 * work(step, first, count): begins with the step after `step`, which it moves on; false: a meeting failed.
 */
template <class F>
SIMT_DEVICE void each_piece(const cuda_ranks_t &g, size_t n, size_t unit, size_t piece, F work)
{
    const part_t part = part_of_channel(n, unit);
    if (!begin(g)) {
        return;
    }
    uint32_t step = load_step(g);
    for (size_t done = part.first; done < part.last; done += piece) {
        if (!work(step, done, least(piece, part.last - done))) {
            return;
        }
    }
    store_step(g, step);
}

/* ---- host ------------------------------------------------------------------------------------ */

/* A block, or channel, for each channel_bytes. */
inline simt_grid_t grid_of(size_t bytes, size_t channel_bytes, size_t channels, void *stream)
{
    const size_t wanted = (bytes + channel_bytes - 1) / channel_bytes;
    const size_t blocks = wanted < 1 ? 1 : wanted < channels ? wanted : channels;
    simt_grid_t grid;
    grid.grid = dim3((unsigned)blocks);
    grid.block = dim3(RANKS_THREADS);
    grid.stream = static_cast<cudaStream_t>(stream);
    return grid;
}
