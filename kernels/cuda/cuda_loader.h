/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_loader: reads weights from the mapped file to the device with several threads: each copies a
 * run of rows into pinned memory, sends it on its own stream and packs it there, while it reads the
 * next. So loading goes at the speed of the page cache, the disk or PCIe, whichever is lowest.
 *
 * Owns     threads, streams, pinned and device staging buffers
 * Threads  one calls it
 */
#pragma once

#include "kernels/cuda/linear/cuda_linear.h"
#include "kernels/kernels.h"

/* What staging takes of the device, and as much pinned on the host; more only where one row of a matrix
 * takes more than CUDA_LOADER_BUFFER. */
#define CUDA_LOADER_READERS 8
#define CUDA_LOADER_BUFFERS 2 /* of a reader: one is read into while the other is sent */
#define CUDA_LOADER_BUFFER  ((size_t)8 << 20)
#define CUDA_LOADER_BYTES   (CUDA_LOADER_READERS * CUDA_LOADER_BUFFERS * CUDA_LOADER_BUFFER)

typedef struct cuda_loader cuda_loader_t;

weft_status_t cuda_loader_create(weft_device_t *device, cuda_loader_t **loader_out);
void cuda_loader_destroy(cuda_loader_t *loader); /* NULL is fine; what was posted is done first */

/*
 * Rows of the parts, of `dtype`, become weight->data, which was zeroed: as they are, or recoded to
 * weight->dtype (cuda_recode.h). The parts may be read until finish returns; weight is
 * copied. Waits while the readers are far behind.
 */
void cuda_loader_post(cuda_loader_t *loader, const k_cuda_weight_t *weight, k_dtype_t dtype,
                      const k_weight_part_t *parts, uint32_t n_parts);
bool cuda_loader_is_idle(const cuda_loader_t *loader); /* nothing was posted since finish */
/* Waits for everything posted to be packed on the device. */
weft_status_t cuda_loader_finish(cuda_loader_t *loader);
