/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_map: which rank runs on which host.
 *
 * By slot, numa or core a host's slots are filled before the next host's; by node ranks go round the
 * hosts that have a slot left. numa and core say besides how the ranks of one host lie on it
 * (launch_binding.h). With more ranks than slots, where that is allowed, the hosts are gone over again.
 */
#pragma once

#include "launcher/job/launch_hosts.h"

typedef enum launch_map_by {
    LAUNCH_BY_SLOT,
    LAUNCH_BY_NODE,
    LAUNCH_BY_NUMA,
    LAUNCH_BY_CORE,
    LAUNCH_BY_COUNT /* of them */
} launch_map_by_t;

typedef struct launch_spot {
    uint32_t host; /* of launch_hosts_t.all */
    uint32_t local_rank;
    uint32_t local_size;
} launch_spot_t;

/* "slot", "node", "numa", "core" */
weft_status_t launch_map_by_parse(const char *text, weft_diag_t *diag, launch_map_by_t *by_out);

/* What hosts have together. */
uint32_t launch_map_slots(const launch_hosts_t *hosts);

/* spots_out [n]. WEFT_ERR_INVALID: there are fewer slots, diag says how many. */
weft_status_t launch_map_ranks(const launch_hosts_t *hosts, uint32_t n, launch_map_by_t by,
                               bool may_oversubscribe, weft_diag_t *diag, launch_spot_t *spots_out);
