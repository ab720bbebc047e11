/* SPDX-License-Identifier: Apache-2.0 */
/*
 * k_team: the persistent threads that ops run on. The caller of k_team_run is member 0; the others
 * spin for some microseconds after a job, then sleep until the next one.
 *
 * Items are shared out in equal ranges, in order: member m begins with those from
 * items·m / size to items·(m+1) / size. One that is done with its range helps others with theirs. So an item must compute the same
 * whoever runs it: it may use its member number to pick scratch memory and for nothing else. Items of
 * equal cost, eight or so a member, even out best.
 *
 * Threads  k_team_run is for one thread at a time
 */
#pragma once

#include <stdint.h>

#include "base/status.h"

#define K_TEAM_MAX 1024 /* threads */

typedef struct k_team k_team_t;
typedef void (*k_team_fn)(const void *arg, uint32_t item, uint32_t member);

/*
 * threads counts the caller. When the process may use exactly `threads` cores (k_cores_physical), workers
 * are pinned to one each, member i to the i-th of k_cores_list; the first is left to the caller.
 * WEFT_ERR_NO_MEMORY also when the system refuses a thread.
 */
weft_status_t k_team_create(uint32_t threads, k_team_t **team_out);
void k_team_destroy(k_team_t *team); /* NULL is fine */

uint32_t k_team_size(const k_team_t *team);

/* Calls fn(arg, item, member) once for each item < items; returns when all are done. */
void k_team_run(k_team_t *team, uint32_t items, k_team_fn fn, const void *arg);
