/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_cluster: blocks that run together and reach each other's shared memory. Hopper only: inside
 * #if SIMT_HOPPER. Part of simt.h.
 *
 * simt_grid_t.cluster says how many. The emulation has clusters of one block.
 */
#pragma once

/* This block's place in its cluster. */
SIMT_FN uint32_t simt_cluster_rank(void);

/* Every thread of the cluster's blocks; orders memory. Before the first access to another block, so
 * that its barriers are there, and after the last, so that it has not ended. */
SIMT_FN void simt_cluster_sync(void);

/* Arrives at the barrier that lies in block `rank` where `barrier` does in this one. */
SIMT_FN void simt_mbarrier_arrive_at(simt_mbarrier_t *barrier, uint32_t rank);

/* simt_tma_load_2d to every block in `mask` (bit: rank): to the same place in each, where it counts at
 * the barrier in the same place. */
SIMT_FN void simt_tma_load_2d_all(void *shared, const simt_tensor_map_t *map, int x, int y,
                                  simt_mbarrier_t *barrier, uint16_t mask,
                                  uint64_t l2 = SIMT_L2_NORMAL);
