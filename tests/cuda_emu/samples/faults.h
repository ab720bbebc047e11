/* SPDX-License-Identifier: Apache-2.0 */
/* faults: kernels with a planted fault each, and the same without; see faults.def. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* x, y [1000] f32 on the device; host: memory of the host. */
typedef int (*sample_fault_fn)(bool is_faulty, const float *x, float *y, const float *host);

#define FAULT(name, text)                                                                          \
    int sample_##name(bool is_faulty, const float *x, float *y, const float *host);
#include "tests/cuda_emu/samples/faults.def"
#undef FAULT

#ifdef __cplusplus
}
#endif
