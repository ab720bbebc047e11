/* SPDX-License-Identifier: Apache-2.0 */
/* attention_d256: the kernels of head dim 256. */
#include "kernels/cuda/attention/attention_instance.cuh"

template cudaError_t attention_mma_launch<256>(const attention_launch_t &launch, bool is_small);
