/* SPDX-License-Identifier: Apache-2.0 */
/* warps: kernels that show what lanes and threads exchange. One block of `threads`. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* out [n]: sums of x [n] over the whole block, the same in each; n = threads, at most 1024. */
int sample_block_sum(const float *x, float *out, unsigned n, cudaStream_t stream);
/* out [4][32] of lanes: xor 5, idx 7, down 3, up 2 of lane · 10. */
int sample_shuffles(int32_t *out, cudaStream_t stream);
/* Halves of a warp on different ways, each with its own mask: out [32], ballots [2]. */
int sample_halves(int32_t *out, uint32_t *ballots, cudaStream_t stream);
/* out [n]: x [n] · factor, n threads in blocks of 64. */
int sample_scale(const float *x, float *out, unsigned n, double factor, cudaStream_t stream);
/* Threads of several blocks count themselves; the last block to end sees all of them: out [1]. */
int sample_last_block(const float *x, float *partial, uint32_t *count, float *out, unsigned blocks,
                      cudaStream_t stream);
/* Block 0 waits for block 1's flag: out [1] = 7. */
int sample_flag(uint32_t *flag, uint32_t *out, cudaStream_t stream);
/* One thread waits until the clock has gone on by ns: out [1], how far it has gone. */
int sample_clock(uint64_t ns, uint64_t *out, cudaStream_t stream);
/* Two halves of a block hand a value over by named barriers, `rounds` times: out [rounds]. */
int sample_named_barriers(int32_t *out, int rounds, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
