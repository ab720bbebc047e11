/* SPDX-License-Identifier: Apache-2.0 */
/* linear_mma.cu with other rings, for bench_linear tune: 4 blocks of four bits a copy, 3 copies, 3 blocks of
 * threads a multiprocessor. */
#include "kernels/cuda/cuda_linear_priv.h"
#include "kernels/cuda/linear_store.h"
#include "kernels/cuda/weight_formats.h"

#undef WEIGHT_FORMATS
#define WEIGHT_FORMATS(DO)                                                                         \
    DO(K_Q8_0, weight_q8_0)                                                                        \
    DO(K_Q4_0, weight_q4_0)                                                                        \
    DO(K_I4_32, weight_i4_32)                                                                      \
    DO(K_F8_32, weight_f8_32)                                                                      \
    DO(K_Q4_K, weight_q4_k)
#define TUNE_COPY         4
#define TUNE_STAGES       3
#define TUNE_BLOCKS       3
#define k_cuda_linear_mma tune_few_433

namespace few_433
{
#include "kernels/cuda/linear_mma.cu"
}
