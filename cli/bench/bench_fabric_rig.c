/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_fabric_rig.h"

/* The target comes first: it is forked while this process has one thread. */
weft_status_t bench_fabric_rig_open(bench_fabric_rig_t *rig,
                                    const bench_fabric_rig_config_t *config, weft_diag_t *diag)
{
    weft_status_t status =
        bench_fabric_target_start(rig->options, rig->geometry.pool_bytes, diag, &rig->target);
    if (status >= 0) {
        status = bench_fabric_pin(rig->options, config->place, diag);
    }
    if (status >= 0) {
        const bench_fabric_end_config_t end = {
            .segment = rig->options->initiator_segment,
            .bytes = rig->geometry.pool_bytes,
            .host = rig->target.host,
            .has_thread = config->has_thread,
            .on_event = config->on_event,
            .user = config->user,
        };
        status = bench_fabric_end_open(rig->options, &end, diag, &rig->end);
    }
    if (status >= 0 && config->maps_target) {
        status = bench_fabric_target_map(&rig->target, rig->end.segment.device, diag, &rig->mapped);
    }
    return status < 0
               ? status
               : bench_fabric_target_introduce(&rig->target, rig->end.agent, diag, &rig->peer);
}

void bench_fabric_rig_close(bench_fabric_rig_t *rig)
{
    if (rig->mapped.addr != NULL) {
        rig->end.segment.device->ops->free(rig->end.segment.device, &rig->mapped);
    }
    bench_fabric_end_close(&rig->end);
    bench_fabric_target_stop(&rig->target);
}
