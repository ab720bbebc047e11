/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_cuda_ranks: the kernels of the collectives' backend "cuda", their ranks being streams of one
 * process on one GPU: what they take when nobody shares time slices, as processes on one GPU do. The
 * memory between ranks is the GPU's own, where NVLink would be.
 *
 *   bench_cuda_ranks [RANKS]      one line a size: op, bytes, µs; 2 ranks
 */
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/ranks/cuda_ranks.h"

enum {
    LAUNCHES = 20, /* in a graph */
    REPLAYS = 15,
    DIM = 4096,
    MAX_ROWS = 64,
};

#define PLACES_BYTES ((size_t)16 << 20)
#define PAIR_BYTES   ((size_t)65536)
#define MAX_BYTES    ((size_t)64 << 20)

typedef struct rank {
    cuda_ranks_t ranks;
    cudaStream_t stream;
    cudaGraphExec_t graph;
    void *in;
    void *out;
    float *w;
} rank_t;

static rank_t all[CUDA_RANKS_MAX];
static uint32_t size = 2;

static void check(int error, const char *what)
{
    if (error != 0) {
        fprintf(stderr, "%s: %s\n", what, cudaGetErrorString((cudaError_t)error));
        exit(1);
    }
}

static void *zeroes(size_t bytes)
{
    void *at = NULL;
    check(cudaMalloc(&at, bytes), "cudaMalloc");
    check(cudaMemset(at, 0, bytes), "cudaMemset");
    return at;
}

static void open_ranks(void)
{
    const size_t place_bytes = PLACES_BYTES / (2 * CUDA_RANKS_CHANNELS * size) & ~(size_t)4095;
    char *regions[CUDA_RANKS_MAX];
    for (uint32_t i = 0; i < size; i++) {
        regions[i] = zeroes(cuda_ranks_region_bytes(size, place_bytes, PAIR_BYTES));
    }
    for (uint32_t i = 0; i < size; i++) {
        rank_t *rank = &all[i];
        rank->ranks = (cuda_ranks_t){.rank = i,
                                     .size = size,
                                     .timeout_ns = UINT64_C(2000000000),
                                     .place_bytes = place_bytes,
                                     .pair_bytes = PAIR_BYTES};
        for (uint32_t other = 0; other < size; other++) {
            rank->ranks.regions[other] = regions[other];
        }
        check(cudaHostAlloc((void **)&rank->ranks.told, sizeof(cuda_ranks_told_t), 0), "told");
        *rank->ranks.told = (cuda_ranks_told_t){.failure = 0};
        rank->in = zeroes(MAX_BYTES);
        rank->out = zeroes(MAX_BYTES);
        rank->w = zeroes(DIM * sizeof(float));
        check(cudaStreamCreateWithFlags(&rank->stream, cudaStreamNonBlocking), "stream");
    }
}

/* ---- timing ---------------------------------------------------------------------------------- */

typedef int op_fn(const rank_t *rank, size_t bytes);

static int compare_floats(const void *a, const void *b)
{
    const float x = *(const float *)a;
    const float y = *(const float *)b;
    return (x > y) - (x < y);
}

static void capture(rank_t *rank, op_fn *op, size_t bytes, const char *name)
{
    cudaGraph_t graph;
    check(cudaStreamBeginCapture(rank->stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < LAUNCHES; i++) {
        check(op(rank, bytes), name);
    }
    check(cudaStreamEndCapture(rank->stream, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&rank->graph, graph, 0), "cudaGraphInstantiate");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
}

/* Of all graphs at once, by rank 0's clock. */
static float time_replay(cudaEvent_t begin, cudaEvent_t end)
{
    float milliseconds = 0;
    check(cudaEventRecord(begin, all[0].stream), "cudaEventRecord");
    for (uint32_t i = 0; i < size; i++) {
        check(cudaGraphLaunch(all[i].graph, all[i].stream), "cudaGraphLaunch");
    }
    check(cudaEventRecord(end, all[0].stream), "cudaEventRecord");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    return milliseconds;
}

static void measure(const char *name, op_fn *op, size_t bytes)
{
    cudaEvent_t begin;
    cudaEvent_t end;
    float times[REPLAYS];
    check(cudaEventCreate(&begin), "cudaEventCreate");
    check(cudaEventCreate(&end), "cudaEventCreate");
    for (uint32_t i = 0; i < size; i++) {
        capture(&all[i], op, bytes, name);
    }
    for (int i = -2; i < REPLAYS; i++) {
        times[i < 0 ? 0 : i] = time_replay(begin, end);
    }
    qsort(times, REPLAYS, sizeof(times[0]), compare_floats);
    const double us = 1e3 * (double)times[REPLAYS / 2] / LAUNCHES;
    printf("%-24s ranks %2u bytes %9zu %9.2f us %8.1f GB/s\n", name, size, bytes, us,
           (double)bytes / us * 1e-3);
    (void)fflush(stdout);
    for (uint32_t i = 0; i < size; i++) {
        check(all[i].ranks.told->failure != 0 ? cudaErrorLaunchTimeout : cudaSuccess,
              "a rank waited in vain");
        check(cudaGraphExecDestroy(all[i].graph), "cudaGraphExecDestroy");
    }
    check(cudaEventDestroy(begin), "cudaEventDestroy");
    check(cudaEventDestroy(end), "cudaEventDestroy");
}

/* ---- operations ------------------------------------------------------------------------------- */

static int run_all_reduce(const rank_t *rank, size_t bytes)
{
    return cuda_ranks_all_reduce(&rank->ranks, rank->in, rank->out, bytes / 4, CUDA_RANKS_F32,
                                 rank->stream);
}

static int run_all_gather(const rank_t *rank, size_t bytes)
{
    return cuda_ranks_all_gather(&rank->ranks, rank->in, rank->out, bytes / size, rank->stream);
}

static int run_barrier(const rank_t *rank, size_t bytes)
{
    (void)bytes;
    return cuda_ranks_barrier(&rank->ranks, rank->stream);
}

static int run_fused(const rank_t *rank, size_t bytes)
{
    const cuda_ranks_norm_t norm = {.x = rank->in,
                                    .w = rank->w,
                                    .y = rank->out,
                                    .rows = (uint32_t)(bytes / (DIM * sizeof(float))),
                                    .dim = DIM,
                                    .x_stride = DIM,
                                    .y_stride = DIM,
                                    .eps = 1e-5f};
    return cuda_ranks_all_reduce_norm(&rank->ranks, &norm, rank->stream);
}

static int run_apart(const rank_t *rank, size_t bytes)
{
    const k_cuda_launch_t at = {.stream = rank->stream};
    const k_rms_norm_args_t args = {.x = rank->in,
                                    .x_dtype = K_F32,
                                    .w = rank->w,
                                    .y = rank->out,
                                    .rows = (uint32_t)(bytes / (DIM * sizeof(float))),
                                    .groups = 1,
                                    .dim = DIM,
                                    .x_stride = DIM,
                                    .y_stride = DIM,
                                    .eps = 1e-5f};
    const int error = cuda_ranks_all_reduce(&rank->ranks, rank->in, rank->in, bytes / 4,
                                            CUDA_RANKS_F32, rank->stream);
    return error != 0 ? error : k_cuda_rms_norm(&at, &args);
}

int main(int argc, char **argv)
{
    size = argc > 1 ? (uint32_t)atoi(argv[1]) : 2;
    if (size < 2 || size > 8) {
        fprintf(stderr, "usage: bench_cuda_ranks [RANKS], 2 to 8\n");
        return 2;
    }
    open_ranks();
    measure("barrier", run_barrier, 0);
    for (size_t bytes = 1024; bytes <= MAX_BYTES; bytes *= 4) {
        measure("all_reduce f32", run_all_reduce, bytes);
    }
    for (size_t bytes = 4096; bytes <= MAX_BYTES; bytes *= 16) {
        measure("all_gather", run_all_gather, bytes);
    }
    for (size_t rows = 1; rows <= MAX_ROWS; rows *= 4) {
        measure("sum, norm apart", run_apart, rows * DIM * sizeof(float));
        if (rows * DIM * sizeof(float) <= ((size_t)1 << 20) / size || size == 2) {
            measure("sum, norm in one go", run_fused, rows * DIM * sizeof(float));
        }
    }
    return 0;
}
