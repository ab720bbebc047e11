/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device_cuda: what code that launches CUDA kernels needs of a CUDA device besides device.h.
 * There only in programs with CUDA. Types of the toolkit are void * and int here, so that nobody needs
 * its headers to read this one.
 *
 * Threads  any
 */
#pragma once

#include "base/device.h"

/* The cudaStream_t of a queue of device "cuda". */
void *weft_device_cuda_stream(const weft_queue_t *queue);

/*
 * Notes the cudaError_t of a call that worked on the device: what names the call. Any but
 * cudaSuccess makes each later sync and wait of this device fail; the first one is logged. True: it
 * was cudaSuccess.
 */
bool weft_device_cuda_note(weft_device_t *device, int error, const char *what);

/* Makes the device the calling thread's, for calls that have no queue. */
bool weft_device_cuda_use(weft_device_t *device);

/*
 * The kernel behind weft_device_ops.copy_many: kernels/cuda/kv_blocks.cu has it, since nothing in base
 * is compiled for a GPU. copies [n] of weft_copy_t; stream is a cudaStream_t. A cudaError_t.
 */
int weft_device_cuda_copy_many(const void *copies, uint32_t n, uint64_t max_bytes, void *stream);
