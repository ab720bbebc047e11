/* SPDX-License-Identifier: Apache-2.0 */
/* bench_fabric_end: one side of a measurement: an agent, its segment, and a word that guards it. */
#pragma once

#include "cli/bench/bench_fabric_geometry.h"
#include "cli/bench/bench_fabric_segment.h"
#include "transport/xfer/xfer.h"

#define BENCH_FABRIC_GUARD_WORD UINT64_C(0x7765667467756172)

typedef struct bench_fabric_end_config {
    const char *name;    /* of the agent; NULL: a random one */
    const char *segment; /* kind; NULL: the agent alone */
    uint64_t bytes;
    const char *host; /* "": any. Where peers reach us by tcp */
    bool has_thread;
    void (*on_event)(void *user);
    void *user;
} bench_fabric_end_config_t;

/* Zeroed memory is no end. */
typedef struct bench_fabric_end {
    bench_fabric_segment_t segment;
    bench_fabric_segment_t guard; /* a page of DRAM that begins with BENCH_FABRIC_GUARD_WORD */
    xfer_agent_t *agent;
    xfer_region_t *region;
    xfer_region_t *guard_region;
} bench_fabric_end_t;

weft_status_t bench_fabric_end_open(const bench_fabric_options_t *options,
                                    const bench_fabric_end_config_t *config, weft_diag_t *diag,
                                    bench_fabric_end_t *end_out);
void bench_fabric_end_close(bench_fabric_end_t *end); /* zeroed is fine */

/* Zeros in the blocks of all lanes. */
weft_status_t bench_fabric_end_clear(bench_fabric_end_t *end, bench_fabric_side_t side,
                                     const bench_fabric_geometry_t *geometry);

/*
 * How many words of the blocks of all lanes at side are not what a transfer from the other side,
 * filled with salt, would have made them.
 */
weft_status_t bench_fabric_end_compare(bench_fabric_end_t *end, bench_fabric_side_t side,
                                       const bench_fabric_geometry_t *geometry, uint64_t salt,
                                       uint64_t *wrong_out);

/*
 * Runs the calling thread, and threads that it starts, on the core that stands at place of --cpus
 * (the initiator's, the target's); nothing when the option does not say.
 */
weft_status_t bench_fabric_pin(const bench_fabric_options_t *options, uint32_t place,
                               weft_diag_t *diag);
