/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_port: a free port of this host, kept for a rank that will listen there soon, or again after
 * a restart. It is held by a socket that is bound and does not listen: the system gives the port to
 * nobody else meanwhile, and lets those listen there that set SO_REUSEADDR, as ZeroMQ does.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct launch_port {
    int fd; /* -1: none is held */
    uint16_t number;
} launch_port_t;

/* Of the loopback, or of every IPv4 address. WEFT_ERR_IO: there is none; nothing is to be let go. */
weft_status_t launch_port_hold(bool is_loopback, launch_port_t *port_out);
void launch_port_let_go(launch_port_t *port);
