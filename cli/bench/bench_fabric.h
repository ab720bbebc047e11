/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fabric: the parts of `weft bench fabric`. Two ends, each an agent with a segment of memory:
 * the initiator measures, the target (a process of its own, here or on another host) has what is
 * read or written and does as it is told over a channel.
 *
 *     bench_fabric_geometry   which sizes there are, and which blocks a transfer has
 *     bench_fabric_segment    memory: DRAM, VRAM or a file
 *     bench_fabric_channel    what the two processes tell each other
 *     bench_fabric_end        an agent with its segment
 *     bench_fabric_target     the target's process, and what it runs: bench_fabric_serve
 *     bench_fabric_rig        both, ready
 *     bench_fabric_contender  transfers, and the floors they are held against
 *     bench_fabric_sweep      all sizes; bench_fabric_report prints them
 *     bench_fabric_cost       what calls cost; bench_fabric_wake: the floor of waking a thread
 *     bench_fabric_interference   what pulls cost a model that decodes
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/option.h"
#include "runtime/engine.h"

#define BENCH_FABRIC_MAX_RAILS 4

typedef struct bench_fabric_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/bench/bench_fabric.def"
#undef OPTION
} bench_fabric_options_t;

/* Measure and print. */
weft_status_t bench_fabric_sweep(const bench_fabric_options_t *options, weft_diag_t *diag);
weft_status_t bench_fabric_cost(const bench_fabric_options_t *options, weft_diag_t *diag);
weft_status_t bench_fabric_interference(const bench_fabric_options_t *options,
                                        const engine_options_t *engine, weft_diag_t *diag);
