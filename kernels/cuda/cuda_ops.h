/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_ops: the ops table of CUDA devices, for k_backend_cuda.c and the loading of weights. */
#pragma once

#include "kernels/cuda/k_cuda.h"
#include "kernels/kernels.h"

extern const k_ops_t k_ops_cuda;

/* What the launchers of this stream's ops take. */
k_cuda_launch_t k_cuda_launch_of(const k_stream_t *stream);
