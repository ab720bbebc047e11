/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device_cuda_vmm: device memory that has a file descriptor, which another process can map (CUDA
 * driver API, "Virtual Memory Management"). The driver's functions are asked for at run time.
 *
 * Threads  any; the device is the calling thread's current one
 */
#pragma once

#include "base/device.h"

/* Fills addr, mapped and fd for mem->bytes. WEFT_ERR_UNSUPPORTED: driver or device has no such. */
weft_status_t weft_device_cuda_vmm_alloc(int index, weft_mem_t *mem);
/* The same of another's fd, which stays the caller's; mem->fd stays -1. WEFT_ERR_MALFORMED: fewer. */
weft_status_t weft_device_cuda_vmm_import(int index, int fd, weft_mem_t *mem);
void weft_device_cuda_vmm_free(weft_mem_t *mem);
