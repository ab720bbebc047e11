/* SPDX-License-Identifier: Apache-2.0 */
/* xfer_region_priv: memory of this agent, as each way has it. */
#pragma once

#include "transport/xfer/xfer_agent_priv.h"

typedef struct xfer_mapping {
    void *handle;      /* of map */
    weft_buffer_t key; /* what peers have to know */
} xfer_mapping_t;

struct xfer_region {
    xfer_range_t range; /* first: what the agent's set knows of it */
    xfer_memory_t memory;
    uint32_t users; /* covers that name it; guarded by tables */
    bool is_wanted; /* by an export that goes on; guarded by tables */
    size_t n_ways;
    xfer_mapping_t at[]; /* [n_ways]; of those in range.ways */
};
