/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fabric_target: the other process: a child of this one, or one that another host started
 * with --listen. What initiators use of it is here, and what it runs itself.
 *
 * A notification to it is nothing to it, but for those that begin with
 *   'E'   it comes back as it is
 *   'A'   the time of its arrival is what BENCH_FABRIC_AWAIT answers
 */
#pragma once

#include <sys/types.h>

#include "base/buffer.h"
#include "base/device.h"
#include "cli/bench/bench_fabric.h"
#include "cli/bench/bench_fabric_channel.h"
#include "transport/xfer/xfer.h"

#define BENCH_FABRIC_ECHO  'E'
#define BENCH_FABRIC_ALARM 'A'

/* Zeroed memory is none; see BENCH_FABRIC_HELLO. */
typedef struct bench_fabric_target {
    int fd;
    pid_t child;   /* 0: not ours to end */
    char host[64]; /* by which the target reaches us; "": this one */
    bench_fabric_message_t message;
    weft_buffer_t blob; /* of its agent, to import */
    xfer_memory_t memory;
    uint64_t guard_addr;
    pid_t pid;
    int memfd; /* its number there; -1: none */
} bench_fabric_target_t;

/* As the options say: makes the process or connects to it. */
weft_status_t bench_fabric_target_start(const bench_fabric_options_t *options, uint64_t pool_bytes,
                                        weft_diag_t *diag, bench_fabric_target_t *target_out);
void bench_fabric_target_stop(bench_fabric_target_t *target); /* zeroed is fine */

/* word_out, the answer's first word, may be NULL. */
weft_status_t bench_fabric_target_ask(bench_fabric_target_t *target,
                                      bench_fabric_message_type_t type, const uint64_t *words,
                                      weft_diag_t *diag, uint64_t *word_out);
/* Makes agent and target known to each other. */
weft_status_t bench_fabric_target_introduce(bench_fabric_target_t *target, xfer_agent_t *agent,
                                            weft_diag_t *diag, xfer_peer_t **peer_out);
/* Its memory, mapped here through its descriptor. WEFT_ERR_UNSUPPORTED: it has none. */
weft_status_t bench_fabric_target_map(const bench_fabric_target_t *target, weft_device_t *device,
                                      weft_diag_t *diag, weft_mem_t *mem_out);

/* The target's process: until the other side closes fd. host: where it is reached, "" for any. */
weft_status_t bench_fabric_target_serve(const bench_fabric_options_t *options, int fd,
                                        const char *host, weft_diag_t *diag);
/* --listen: serves one initiator. */
weft_status_t bench_fabric_target_listen(const bench_fabric_options_t *options, weft_diag_t *diag);
