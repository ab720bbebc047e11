/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The floors: one thread that moves the blocks of the first lane with nothing around it: memcpy
 * between mappings of both pools, and process_vm_readv or _writev, as many blocks a call as it takes.
 */
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/compiler.h"
#include "cli/bench/bench_fabric_contender.h"

#define IOVECS        1024                /* IOV_MAX */
#define BYTES_OF_CALL ((uint64_t)1 << 30) /* the kernel moves 2 GiB less a page at most */

typedef struct floor_plan {
    bench_fabric_contender_t base;
    const bench_fabric_rig_t *rig;
    bool is_write;
    uint64_t n;
    uint64_t bytes;
    char **local; /* [n] blocks */
    char **peer;  /* [n], as mapped here or as they lie there */
} floor_plan_t;

static weft_status_t place(const bench_fabric_geometry_t *geometry, bench_fabric_side_t side,
                           uint64_t base, uint32_t *ids, char **blocks)
{
    const xfer_run_t run = bench_fabric_lane(geometry, base, 0);
    const weft_status_t status = bench_fabric_pick(geometry, side, 0, ids);
    for (uint64_t i = 0; status >= 0 && i < geometry->n_blocks; i++) {
        blocks[i] = (char *)(uintptr_t)(run.addr + ids[i] * run.stride);
    }
    return status;
}

static void destroy_floor(bench_fabric_contender_t *contender)
{
    floor_plan_t *plan = (floor_plan_t *)contender;
    if (plan != NULL) {
        weft_free(plan->local);
        weft_free(plan->peer);
        weft_free(plan);
    }
}

static weft_status_t create_floor(const bench_fabric_rig_t *rig, uint64_t peer_base,
                                  const bench_fabric_contender_ops_t *ops,
                                  bench_fabric_contender_t **contender_out)
{
    const bench_fabric_geometry_t *geometry = &rig->geometry;
    const uint64_t n = geometry->n_blocks;
    floor_plan_t *plan = weft_zalloc(sizeof(*plan), "bench_fabric.floor");
    if (plan == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    plan->base.ops = ops;
    plan->rig = rig;
    plan->is_write = strcmp(rig->options->op, "write") == 0;
    plan->n = n;
    plan->bytes = geometry->block_bytes;
    plan->local = weft_calloc(n, sizeof(char *), "bench_fabric.blocks");
    plan->peer = weft_calloc(n, sizeof(char *), "bench_fabric.blocks");
    uint32_t *ids = weft_calloc(n, sizeof(*ids), "bench_fabric.ids");
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    if (plan->local != NULL && plan->peer != NULL && ids != NULL) {
        status = place(geometry, BENCH_FABRIC_INITIATOR, (uintptr_t)rig->end.segment.mem.addr, ids,
                       plan->local);
    }
    if (status >= 0) {
        status = place(geometry, BENCH_FABRIC_TARGET, peer_base, ids, plan->peer);
    }
    weft_free(ids);
    if (status < 0) {
        destroy_floor(&plan->base);
        return status;
    }
    *contender_out = &plan->base;
    return WEFT_OK;
}

static weft_status_t create_memcpy(const bench_fabric_rig_t *rig, weft_diag_t *diag,
                                   bench_fabric_contender_t **contender_out)
{
    (void)diag;
    return create_floor(rig, (uintptr_t)rig->mapped.addr, &bench_fabric_memcpy, contender_out);
}

static weft_status_t create_readv(const bench_fabric_rig_t *rig, weft_diag_t *diag,
                                  bench_fabric_contender_t **contender_out)
{
    if (rig->target.child == 0 || rig->target.memory.space != XFER_DRAM) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "--floors readv: takes DRAM on this host");
    }
    return create_floor(rig, rig->target.memory.addr, &bench_fabric_readv, contender_out);
}

static weft_status_t copy_blocks(const floor_plan_t *plan, weft_diag_t *diag)
{
    (void)diag;
    char *const *to = plan->is_write ? plan->peer : plan->local;
    char *const *from = plan->is_write ? plan->local : plan->peer;
    for (uint64_t i = 0; i < plan->n; i++) {
        memcpy(to[i], from[i], plan->bytes);
    }
    return WEFT_OK;
}

static weft_status_t call_blocks(const floor_plan_t *plan, weft_diag_t *diag)
{
    struct iovec local[IOVECS];
    struct iovec peer[IOVECS];
    const pid_t pid = plan->rig->target.pid;
    for (uint64_t i = 0; i < plan->n;) {
        unsigned long n = 0;
        uint64_t bytes = 0;
        for (; i < plan->n && n < IOVECS && bytes + plan->bytes <= BYTES_OF_CALL; i++, n++) {
            local[n] = (struct iovec){plan->local[i], plan->bytes};
            peer[n] = (struct iovec){plan->peer[i], plan->bytes};
            bytes += plan->bytes;
        }
        const ssize_t moved = plan->is_write ? process_vm_writev(pid, local, n, peer, n, 0)
                                             : process_vm_readv(pid, local, n, peer, n, 0);
        if (moved < 0 || (uint64_t)moved != bytes) {
            return weft_diag(diag, WEFT_ERR_IO, "process_vm_readv: %s",
                             moved < 0 ? strerror(errno) : "moved less than it was asked for");
        }
    }
    return WEFT_OK;
}

static weft_status_t run_floor(const floor_plan_t *plan, uint64_t n, bench_samples_t *times,
                               weft_status_t (*move)(const floor_plan_t *plan, weft_diag_t *diag),
                               weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    for (uint64_t i = 0; status >= 0 && i < n; i++) {
        const uint64_t start = weft_clock_ns();
        status = move(plan, diag);
        const uint64_t ns = weft_clock_ns() - start;
        if (status >= 0) {
            status = bench_samples_add(times, (double)ns / (double)WEFT_NS_PER_SECOND);
        }
    }
    return status;
}

static weft_status_t run_memcpy(bench_fabric_contender_t *contender, uint64_t n,
                                bench_samples_t *times, weft_diag_t *diag)
{
    return run_floor((const floor_plan_t *)contender, n, times, copy_blocks, diag);
}

static weft_status_t run_readv(bench_fabric_contender_t *contender, uint64_t n,
                               bench_samples_t *times, weft_diag_t *diag)
{
    return run_floor((const floor_plan_t *)contender, n, times, call_blocks, diag);
}

const bench_fabric_contender_ops_t bench_fabric_memcpy = {
    .name = "memcpy",
    .create = create_memcpy,
    .destroy = destroy_floor,
    .run = run_memcpy,
};

const bench_fabric_contender_ops_t bench_fabric_readv = {
    .name = "readv",
    .create = create_readv,
    .destroy = destroy_floor,
    .run = run_readv,
};
