/* SPDX-License-Identifier: Apache-2.0 */
/* launch_place, the inside: how to find the leader where no variable simply names it. */
#pragma once

#include "launcher/launch_address.h"
#include "launcher/launch_place.h"

/* NULL: not set, or empty. name may be NULL. */
const char *launch_variable(const char *name);

/* 127.0.0.1 when all are on this host; else by PMIx, and without it mpirun's own host. */
weft_status_t launch_leader_of_openmpi(const launch_place_t *place, weft_diag_t *diag,
                                       char host_out[LAUNCH_HOST_BYTES]);

/* The step's first host. */
weft_status_t launch_leader_of_slurm(const launch_place_t *place, weft_diag_t *diag,
                                     char host_out[LAUNCH_HOST_BYTES]);

/* WEFT_ERR_NOT_FOUND: no library, or no server; warned of. */
weft_status_t launch_place_of_pmix(weft_diag_t *diag, launch_place_t *place);
