/* SPDX-License-Identifier: Apache-2.0 */
/* The floor of memory of a GPU: the device's plain copy of as many bytes, in one piece, within it. */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cli/bench/bench_fabric_contender.h"

typedef struct copy_plan {
    bench_fabric_contender_t base;
    const bench_fabric_rig_t *rig;
    weft_mem_t to;
    uint64_t bytes;
} copy_plan_t;

static void destroy_copy(bench_fabric_contender_t *contender)
{
    copy_plan_t *plan = (copy_plan_t *)contender;
    if (plan != NULL) {
        weft_device_t *device = plan->rig->end.segment.device;
        device->ops->free(device, &plan->to);
        weft_free(plan);
    }
}

static weft_status_t create_copy(const bench_fabric_rig_t *rig, weft_diag_t *diag,
                                 bench_fabric_contender_t **contender_out)
{
    const bench_fabric_segment_t *segment = &rig->end.segment;
    if (segment->memory.space != XFER_VRAM) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "--floors copy: takes --initiator-segment vram");
    }
    copy_plan_t *plan = weft_zalloc(sizeof(*plan), "bench_fabric.floor");
    if (plan == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    plan->base.ops = &bench_fabric_copy;
    plan->rig = rig;
    plan->bytes = rig->geometry.n_blocks * rig->geometry.block_bytes;
    const weft_status_t status =
        segment->device->ops->alloc(segment->device, plan->bytes, 0, &plan->to);
    if (status < 0) {
        weft_free(plan);
        return status;
    }
    *contender_out = &plan->base;
    return WEFT_OK;
}

static weft_status_t run_copy(bench_fabric_contender_t *contender, uint64_t n,
                              bench_samples_t *times, weft_diag_t *diag)
{
    const copy_plan_t *plan = (const copy_plan_t *)contender;
    const bench_fabric_segment_t *segment = &plan->rig->end.segment;
    weft_status_t status = WEFT_OK;
    for (uint64_t i = 0; status >= 0 && i < n; i++) {
        const uint64_t start = weft_clock_ns();
        segment->device->ops->copy(segment->queue, plan->to.addr, segment->mem.addr, plan->bytes);
        status = segment->device->ops->sync(segment->queue);
        const uint64_t ns = weft_clock_ns() - start;
        if (status >= 0) {
            status = bench_samples_add(times, (double)ns / (double)WEFT_NS_PER_SECOND);
        }
    }
    return status < 0 ? weft_diag(diag, status, "--floors copy: the device failed") : WEFT_OK;
}

const bench_fabric_contender_ops_t bench_fabric_copy = {
    .name = "copy",
    .moves_no_blocks = true,
    .create = create_copy,
    .destroy = destroy_copy,
    .run = run_copy,
};
