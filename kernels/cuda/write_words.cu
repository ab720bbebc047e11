/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/simt/simt.h"

#define THREADS 128

static SIMT_KERNEL(THREADS, 1) write_words(const k_word_t *words, uint32_t n)
{
    simt_wait_previous();
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    if (i < n) {
        *words[i].at = words[i].value;
    }
}

int k_cuda_write_words(const k_cuda_launch_t *at, const k_write_words_args_t *args)
{
    return simt_launch(write_words,
                       {.grid = {(args->n_words + THREADS - 1) / THREADS},
                        .block = {THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       args->words, args->n_words);
}
