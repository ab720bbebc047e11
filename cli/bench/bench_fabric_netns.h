/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fabric_netns: initiator and target each in a network namespace of its own, joined by a veth
 * pair. They have no names and go away with the processes; the host's network is left alone. Takes
 * root and the program `ip`.
 */
#pragma once

#include <sys/types.h>

#include "base/diag.h"

/* In the target, at its start: meets bench_fabric_netns_make over the channel. host_out: static. */
weft_status_t bench_fabric_netns_enter(int fd, const char **host_out, weft_diag_t *diag);
/* In the initiator, while it has one thread. */
weft_status_t bench_fabric_netns_make(int fd, pid_t target, const char **host_out,
                                      weft_diag_t *diag);
