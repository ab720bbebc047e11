/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_ops: the ops table of CUDA devices, for k_backend_cuda.c and the loading of weights. */
#pragma once

#include "kernels/kernels.h"

extern const k_ops_t k_ops_cuda;
