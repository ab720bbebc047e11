/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_cuda: collectives of ranks on GPUs of one host, by kernels over memory that each has mapped of
 * all others (kernels/cuda/ranks/cuda_ranks.h). Ranks may share a GPU.
 *
 * Every rank has one exportable allocation of its own device. A descriptor of it goes to each other
 * rank over a Unix socket, which maps it on its device; the memory stays until the last one unmaps it.
 */
#pragma once

#include "kernels/cuda/ranks/cuda_ranks.h"
#include "transport/coll/coll_backend.h"

/* What ranks have mapped of each other. */
typedef struct coll_cuda_regions {
    weft_device_t *device;
    uint32_t rank;
    uint32_t size;
    weft_mem_t mems[CUDA_RANKS_MAX]; /* of each rank; this one's is its own */
} coll_cuda_regions_t;

/*
 * Collective. Allocates `bytes` and maps those of the others. `mine`: what this rank knows already;
 * what fails on one rank fails on all.
 */
weft_status_t coll_cuda_regions_open(coll_cuda_regions_t *regions, const coll_config_t *config,
                                     size_t bytes, weft_status_t mine, weft_diag_t *diag);
void coll_cuda_regions_close(coll_cuda_regions_t *regions);
