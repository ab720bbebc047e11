/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_netns: hosts that are network namespaces of this machine, each with an address of its own, joined
 * by a bridge: for trying on one machine what takes several.
 *
 *   host i    10.214.S.(i + 1) on its device eth0
 *   here      10.214.S.254 on device weftS, so that ranks can be reached from outside
 *
 * S is the first number that no other launch on this machine uses. The namespaces have no names: they last
 * as long as a descriptor or a process holds them, and the kernel takes them, the bridge and the devices
 * down when the last one is gone, however that comes about.
 *
 * Threads  those of a process with one alone: the namespace of the caller is changed for a moment
 */
#pragma once

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define LAUNCH_MAX_FAKE_HOSTS 200

typedef struct launch_netns launch_netns_t;

/* WEFT_ERR_DENIED: not root; WEFT_ERR_UNSUPPORTED: no `ip`, or no namespaces here. */
weft_status_t launch_netns_create(uint32_t n, weft_diag_t *diag, launch_netns_t **netns_out);
void launch_netns_destroy(launch_netns_t *netns); /* NULL is fine */

/* The namespace of a host; owned by netns. */
int launch_netns_fd(const launch_netns_t *netns, uint32_t host);
/* "10.214.0.1" */
const char *launch_netns_address(const launch_netns_t *netns, uint32_t host);
