/* SPDX-License-Identifier: Apache-2.0 */
/* attention_d32: the kernels of head dim 32. */
#include "kernels/cuda/attention/attention_instance.cuh"

template cudaError_t attention_mma_launch<32>(const attention_launch_t &launch, bool is_small);
