/* SPDX-License-Identifier: Apache-2.0 */
/* k_cores: how many cores this process may use. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define K_CORES_MAX 4096 /* processors are numbered below this */

/* Cores in the affinity mask of the calling thread. */
uint32_t k_cores_in_mask(void);

/*
 * The same, a core that runs two hardware threads counted once: products keep its units busy from
 * one thread. What the system does not tell counts as cores.
 */
uint32_t k_cores_physical(void);

/*
 * Their processors, the first of each core: those of one NUMA node behind one another, since threads that
 * follow each other share large pages. cpus_out [K_CORES_MAX]; returns how many.
 */
uint32_t k_cores_list(int *cpus_out);
/* The same of these processors, [K_CORES_MAX], of a machine as the folder describes it, which has what
 * /sys/devices/system has. */
uint32_t k_cores_list_of(const char *folder, const bool *is_allowed, int *cpus_out);

/*
 * Physical cores, but no more than the CPU quota of the process's cgroups (v2 cpu.max, v1 cfs_quota)
 * rounded up. At least 1.
 */
uint32_t k_cores_usable(void);

/* The quota, in cores rounded up, that "max 100000", "150000 100000" … grants; 0: none. */
uint32_t k_cores_parse_quota(const char *text);
