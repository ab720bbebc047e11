/* SPDX-License-Identifier: Apache-2.0 */
/* k_cores: how many cores this process may use. */
#pragma once

#include <stdint.h>

/* Cores in the affinity mask of the calling thread. */
uint32_t k_cores_in_mask(void);

/*
 * The same, a core that runs two hardware threads counted once: products keep its units busy from
 * one thread. What the system does not tell counts as cores.
 */
uint32_t k_cores_physical(void);

/* The nth (from 0) processor of the mask whose core no earlier one has; -1: there is none. */
int k_cores_nth_physical(uint32_t nth);

/*
 * Physical cores, but no more than the CPU quota of the process's cgroups (v2 cpu.max, v1 cfs_quota)
 * rounded up. At least 1.
 */
uint32_t k_cores_usable(void);

/* The quota, in cores rounded up, that "max 100000", "150000 100000" … grants; 0: none. */
uint32_t k_cores_parse_quota(const char *text);
