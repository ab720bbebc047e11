/* SPDX-License-Identifier: Apache-2.0 */
/* Pieces from one rank to another, and words that tell a host how far a queue has come. */
#include "kernels/cuda/cuda_ranks_vectors.cuh"

enum { PAIR_CHANNEL_BYTES = 64 << 10 }; /* that are worth a block of their own */

/* Thread 0 waits for all. */
SIMT_DEVICE bool await_pair(const cuda_ranks_t &g, const uint32_t *flag, uint32_t target,
                            uint32_t peer)
{
    return !simt_sync_block_or(threadIdx.x == 0 && !await(g, flag, target, peer));
}

/* After all threads' accesses before it. */
SIMT_DEVICE void say_pair(uint32_t *flag, uint32_t count)
{
    simt_sync_block();
    if (threadIdx.x == 0) {
        simt_fence_system();
        simt_store_release(flag, count);
    }
}

/* Every channel sends at least one piece, be it empty. */
static SIMT_KERNEL(RANKS_THREADS, 1)
    send(const SIMT_GRID_CONSTANT cuda_ranks_t g, uint32_t to, const char *data, size_t bytes)
{
    const part_t part = part_of_channel(bytes, 16);
    head_t *own = head_of(g, g.rank);
    if (!begin(g)) {
        return;
    }
    uint32_t sent = own->sent[to][blockIdx.x];
    size_t done = part.first;
    do {
        const size_t count = least(g.pair_bytes, part.last - done);
        if (!await_pair(g, &own->taken[to][blockIdx.x], sent - 1, to)) {
            return;
        }
        copy(pair_place_of(g, to, g.rank, sent), data + done, count);
        say_pair(&head_of(g, to)->ready[g.rank][blockIdx.x], ++sent);
        done += count;
    } while (done < part.last);
    if (threadIdx.x == 0) {
        own->sent[to][blockIdx.x] = sent;
    }
}

static SIMT_KERNEL(RANKS_THREADS, 1)
    receive(const SIMT_GRID_CONSTANT cuda_ranks_t g, uint32_t from, char *out, size_t bytes)
{
    const part_t part = part_of_channel(bytes, 16);
    head_t *own = head_of(g, g.rank);
    if (!begin(g)) {
        return;
    }
    uint32_t received = own->received[from][blockIdx.x];
    size_t done = part.first;
    do {
        const size_t count = least(g.pair_bytes, part.last - done);
        if (!await_pair(g, &own->ready[from][blockIdx.x], received + 1, from)) {
            return;
        }
        copy(out + done, pair_place_of(g, g.rank, from, received), count);
        say_pair(&head_of(g, from)->taken[g.rank][blockIdx.x], ++received);
        done += count;
    } while (done < part.last);
    if (threadIdx.x == 0) {
        own->received[from][blockIdx.x] = received;
    }
}

static SIMT_KERNEL(32, 1) count_up(uint32_t *count, uint32_t *told)
{
    if (threadIdx.x == 0) {
        const uint32_t counted = *count + 1;
        *count = counted;
        simt_store_release(told, counted);
    }
}

/* ---- launchers -------------------------------------------------------------------------------- */

static simt_grid_t grid_for(size_t bytes, void *stream)
{
    return grid_of(bytes, PAIR_CHANNEL_BYTES, CUDA_RANKS_PAIR_CHANNELS, stream);
}

int cuda_ranks_send(const cuda_ranks_t *ranks, uint32_t to, const void *data, size_t bytes,
                    void *stream)
{
    return simt_launch(send, grid_for(bytes, stream), *ranks, to, static_cast<const char *>(data),
                       bytes);
}

int cuda_ranks_receive(const cuda_ranks_t *ranks, uint32_t from, void *out, size_t bytes,
                       void *stream)
{
    return simt_launch(receive, grid_for(bytes, stream), *ranks, from, static_cast<char *>(out),
                       bytes);
}

int cuda_ranks_count(uint32_t *count, uint32_t *told, void *stream)
{
    simt_grid_t grid = grid_of(0, 1, 1, stream);
    grid.block = dim3(32);
    return simt_launch(count_up, grid, count, told);
}
