/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_binding: which processors of a host a rank there runs on.
 *
 *   --map-by    --bind-to core                   --bind-to numa
 *   slot, core  core number local_rank           the NUMA node of that core
 *   node        as slot                          as slot
 *   numa        node local_rank % nodes, its     node local_rank % nodes
 *               core local_rank / nodes
 *
 * Only what this process may use counts; with more ranks than cores they are gone over again.
 *
 * Threads  one at a time
 */
#pragma once

#include "launcher/job/launch_map.h"
#include "launcher/job/launch_process.h"

typedef enum launch_bind_to {
    LAUNCH_BIND_NONE,
    LAUNCH_BIND_CORE,
    LAUNCH_BIND_NUMA,
    LAUNCH_BIND_COUNT /* of them */
} launch_bind_to_t;

typedef struct launch_binding launch_binding_t;

/* "core", "numa", "none" */
weft_status_t launch_bind_to_parse(const char *text, weft_diag_t *diag,
                                   launch_bind_to_t *bind_to_out);

/*
 * Looks at this machine, or at one that hwloc's synthetic description draws, as "numa:2 core:4 pu:2"; NULL: this
 * one. WEFT_ERR_UNSUPPORTED: the system does not tell.
 */
weft_status_t launch_binding_create(const char *synthetic, weft_diag_t *diag,
                                    launch_binding_t **binding_out);
void launch_binding_destroy(launch_binding_t *binding); /* NULL is fine */

/* bind_to is not LAUNCH_BIND_NONE. */
weft_status_t launch_binding_choose(const launch_binding_t *binding, launch_bind_to_t bind_to,
                                    launch_map_by_t map_by, uint32_t local_rank,
                                    launch_cpus_t *cpus_out);

/* Cores that this process may use, at least 1. */
uint32_t launch_binding_cores(const launch_binding_t *binding);
