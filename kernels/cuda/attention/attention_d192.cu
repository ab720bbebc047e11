/* SPDX-License-Identifier: Apache-2.0 */
/* attention_d192: the kernels of head dim 192. */
#include "kernels/cuda/attention/attention_instance.cuh"

template cudaError_t attention_mma_launch<192>(const attention_launch_t &launch, bool is_small);
