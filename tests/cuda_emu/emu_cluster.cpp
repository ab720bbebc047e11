/* SPDX-License-Identifier: Apache-2.0 */
/* simt_cluster.h, of one block: the emulated device says that it has no others. */
#include "kernels/cuda/simt.h"
#include "tests/cuda_emu/emu_machine.h"

using namespace emu;

uint32_t simt_cluster_rank(void)
{
    return 0;
}

void simt_cluster_sync(void)
{
    simt_sync_block();
}

void simt_mbarrier_arrive_at(simt_mbarrier_t *barrier, uint32_t rank)
{
    if (rank != 0) {
        fail(cudaErrorLaunchFailure, "simt_mbarrier_arrive_at: block %u of a cluster of one", rank);
    }
    simt_mbarrier_arrive(barrier);
}

void simt_tma_load_2d_all(void *shared, const simt_tensor_map_t *map, int x, int y,
                          simt_mbarrier_t *barrier, uint16_t mask, uint64_t l2)
{
    if (mask != 1) {
        fail(cudaErrorLaunchFailure, "simt_tma_load_2d_all: mask %#x in a cluster of one", mask);
    }
    simt_tma_load_2d(shared, map, x, y, barrier, l2);
}
