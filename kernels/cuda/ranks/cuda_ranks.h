/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_ranks: collectives of ranks on one host by kernels alone, over memory of each that all have mapped.
 *
 * Region    of every rank on its own device: a head, then places where the other ranks write
 * Channels  a block works on its own channel: its part of the data, its flags, its places. It waits for
 *           the blocks of that channel on the other ranks and for nothing else, so that a grid needs no
 *           more than one block on the device to come to its end
 * Steps     at each a channel writes to the other ranks' places, says so in their heads, and waits
 *           until all have said it. There are two places, by the step's parity: what was written at
 *           step s may be written over at s + 2, and that is safe once all have said s + 1, because a
 *           rank says s + 1 only when it has read what it wants of s
 * Pairs     from one rank to another, the same with two counters: what was written, what was read
 * Graphs    steps are counted in device memory: a launch may be captured and replayed
 * Failure   who waits longer than the timeout says whose fault it is in every head and to the host, and
 *           so does who finds it said; from then on kernels of the group return at once
 *
 * Every rank launches the same operations with the same sizes in the same order, one behind the other.
 * Sums are added in rank order in f32 and rounded once. Launchers return a cudaError_t.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_RANKS_MAX           16
#define CUDA_RANKS_CHANNELS      32
#define CUDA_RANKS_PAIR_CHANNELS 8
#define CUDA_RANKS_HEAD_BYTES    ((size_t)8192)

typedef enum cuda_ranks_dtype {
    CUDA_RANKS_F32,
    CUDA_RANKS_F16,
    CUDA_RANKS_BF16,
} cuda_ranks_dtype_t;

/* Of a failure: the rank whose fault it is, and how it was found. */
#define CUDA_RANKS_FAILED(rank)  (UINT32_C(1) + (rank))
#define CUDA_RANKS_TIMEOUT       UINT32_C(0x10000)
#define CUDA_RANKS_RANK_OF(word) (((word) & UINT32_C(0xffff)) - 1)

/* In the host's memory, where the device reads and writes: zero at first. */
typedef struct cuda_ranks_told {
    uint32_t
        failure; /* by kernels: CUDA_RANKS_FAILED of a rank, with CUDA_RANKS_TIMEOUT or without */
    uint32_t abort; /* by the host: CUDA_RANKS_FAILED of a rank; kernels that wait return */
} cuda_ranks_told_t;

/* A group as one rank sees it; passed to kernels by value. */
typedef struct cuda_ranks {
    uint32_t rank;
    uint32_t size; /* at most CUDA_RANKS_MAX */
    uint64_t timeout_ns;
    size_t place_bytes;            /* of one channel, parity and source; a multiple of 16 */
    size_t pair_bytes;             /* of one pair, channel and parity; a multiple of 16 */
    char *regions[CUDA_RANKS_MAX]; /* where this device finds each rank's; zero at first */
    cuda_ranks_told_t *told;
} cuda_ranks_t;

/* What a region takes. */
size_t cuda_ranks_region_bytes(uint32_t size, size_t place_bytes, size_t pair_bytes);

/* As the functions of coll.h say; stream is a cudaStream_t. */
int cuda_ranks_all_reduce(const cuda_ranks_t *ranks, const void *in, void *out, size_t n,
                          cuda_ranks_dtype_t dtype, void *stream);
/*
 * x[i] becomes the sum, as all_reduce's; y is x as rms_norm (k_ops) makes it, to the bit. x, y [rows, dim]
 * f32 and bf16; w [dim] f32. Addresses and strides are multiples of 16 bytes.
 */
typedef struct cuda_ranks_norm {
    float *x;
    const float *w;
    void *y;
    uint32_t rows;
    uint32_t dim;
    size_t x_stride; /* elements */
    size_t y_stride;
    float eps;
} cuda_ranks_norm_t;

/* Whether it is worth it, and can be done: the same answer on every rank. */
bool cuda_ranks_can_norm(const cuda_ranks_t *ranks, const cuda_ranks_norm_t *norm);
int cuda_ranks_all_reduce_norm(const cuda_ranks_t *ranks, const cuda_ranks_norm_t *norm,
                               void *stream);

int cuda_ranks_reduce_scatter(const cuda_ranks_t *ranks, const void *in, void *out, size_t n,
                              cuda_ranks_dtype_t dtype, void *stream);
int cuda_ranks_all_gather(const cuda_ranks_t *ranks, const void *in, void *out, size_t bytes,
                          void *stream);
int cuda_ranks_broadcast(const cuda_ranks_t *ranks, void *buffer, size_t bytes, uint32_t root,
                         void *stream);
int cuda_ranks_barrier(const cuda_ranks_t *ranks, void *stream);
int cuda_ranks_send(const cuda_ranks_t *ranks, uint32_t to, const void *data, size_t bytes,
                    void *stream);
int cuda_ranks_receive(const cuda_ranks_t *ranks, uint32_t from, void *out, size_t bytes,
                       void *stream);

/* ---- for collectives that others carry -------------------------------------------------------- */

/* out[i] = parts[0][i] + parts[1][i] + …; parts lie stride bytes apart, out [n] is none of them. */
int cuda_ranks_sum(const void *parts, uint32_t n_parts, size_t stride, void *out, size_t n,
                   cuda_ranks_dtype_t dtype, void *stream);

/* One more in *count, of the device; told, in the host's memory, gets the same. */
int cuda_ranks_count(uint32_t *count, uint32_t *told, void *stream);

#ifdef __cplusplus
}
#endif
