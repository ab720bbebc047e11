/* SPDX-License-Identifier: Apache-2.0 */
/* attention_d96: the kernels of head dim 96. */
#include "kernels/cuda/attention/attention_instance.cuh"

template cudaError_t attention_mma_launch<96>(const attention_launch_t &launch, bool is_small);
