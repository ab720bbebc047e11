/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_hostlist: Slurm's way to write many hosts: "n[007-009,012],gpu[1-2]r[3,5],login".
 */
#pragma once

#include <stddef.h>

#include "base/diag.h"
#include "base/status.h"

/*
 * The first host of the list, in the list's order. WEFT_ERR_INVALID: not such a list up to the end of
 * its first part, or a name that host_out [size] cannot hold.
 */
weft_status_t launch_hostlist_first(const char *list, weft_diag_t *diag, char *host_out,
                                    size_t size);
