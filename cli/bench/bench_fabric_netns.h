/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fabric_netns: initiator and target each in a network namespace of its own, joined by a veth
 * pair, or several (rails). They have no names and go away with the processes; the host's network is
 * left alone. Takes root and the program `ip`, and `tc` for a rate.
 */
#pragma once

#include <sys/types.h>

#include "cli/bench/bench_fabric.h"

/* In the target, at its start: meets bench_fabric_netns_make over the channel. host_out: static. */
weft_status_t bench_fabric_netns_enter(const bench_fabric_options_t *options, int fd,
                                       const char **host_out, weft_diag_t *diag);
/* In the initiator, while it has one thread. */
weft_status_t bench_fabric_netns_make(const bench_fabric_options_t *options, int fd, pid_t target,
                                      const char **host_out, weft_diag_t *diag);
/* The address of host (of one of these, at rail 0) at another rail. */
void bench_fabric_netns_rail(const char *host, uint32_t rail, char host_out[64]);
