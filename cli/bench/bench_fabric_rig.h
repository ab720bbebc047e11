/* SPDX-License-Identifier: Apache-2.0 */
/* bench_fabric_rig: both ends, ready to measure, as the initiator's process has them. */
#pragma once

#include "cli/bench/bench_fabric_end.h"
#include "cli/bench/bench_fabric_target.h"

typedef struct bench_fabric_rig_config {
    bool has_thread;              /* the initiator's agent */
    bool maps_target;             /* also here */
    uint32_t place;               /* of the agent's thread in --cpus */
    void (*on_event)(void *user); /* of the initiator's agent; NULL: none */
    void *user;
} bench_fabric_rig_config_t;

typedef struct bench_fabric_rig {
    const bench_fabric_options_t *options;
    bench_fabric_geometry_t geometry; /* of the size that is measured */
    bench_fabric_end_t end;
    bench_fabric_target_t target;
    xfer_peer_t *peer;
    weft_mem_t mapped; /* the target's memory, if maps_target */
} bench_fabric_rig_t;

/* With options and geometry.pool_bytes set, all else zero; close also after a failure. */
weft_status_t bench_fabric_rig_open(bench_fabric_rig_t *rig,
                                    const bench_fabric_rig_config_t *config, weft_diag_t *diag);
void bench_fabric_rig_close(bench_fabric_rig_t *rig);
