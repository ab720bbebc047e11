/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fabric_geometry: the sizes to measure, and where the blocks of a transfer lie. Both ends
 * reckon the same from the same numbers.
 *
 * A pool is cut in slots of one block (two, when strided), the slots in lanes: one for each
 * transfer that may be in flight, so that no two write to the same blocks.
 */
#pragma once

#include "cli/bench/bench_fabric.h"
#include "transport/xfer/xfer.h"

typedef enum bench_fabric_layout {
    BENCH_FABRIC_SCATTERED,
    BENCH_FABRIC_DENSE,
    BENCH_FABRIC_STRIDED,
} bench_fabric_layout_t;

typedef enum bench_fabric_side {
    BENCH_FABRIC_INITIATOR,
    BENCH_FABRIC_TARGET,
} bench_fabric_side_t;

typedef struct bench_fabric_geometry {
    bench_fabric_layout_t layout;
    uint64_t pool_bytes;
    uint64_t block_bytes;
    uint64_t n_blocks; /* of a transfer */
    uint64_t lanes;
    uint64_t seed;
} bench_fabric_geometry_t;

typedef struct bench_fabric_size {
    uint64_t block_bytes;
    uint64_t n_blocks;
} bench_fabric_size_t;

/* Checks the options that say so. sizes_out [*n_out]: the caller's to weft_free. */
weft_status_t bench_fabric_sizes(const bench_fabric_options_t *options, weft_diag_t *diag,
                                 bench_fabric_size_t **sizes_out, size_t *n_out);

/* Of all sizes but block_bytes and n_blocks; pool_bytes as given, or enough for the sizes. */
weft_status_t bench_fabric_geometry(const bench_fabric_options_t *options,
                                    const bench_fabric_size_t *sizes, size_t n, weft_diag_t *diag,
                                    bench_fabric_geometry_t *geometry_out);

/* The slots of a lane, in a pool that begins at base. */
xfer_run_t bench_fabric_lane(const bench_fabric_geometry_t *geometry, uint64_t base, uint64_t lane);

/* ids_out [n_blocks]: numbers of the transfer's blocks in the run of bench_fabric_lane. */
weft_status_t bench_fabric_pick(const bench_fabric_geometry_t *geometry, bench_fabric_side_t side,
                                uint64_t lane, uint32_t *ids_out);
