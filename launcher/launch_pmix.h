/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_pmix: what the PMIx server of whoever started this rank (mpirun, prterun, srun --mpi=pmix)
 * tells it, and the way by which ranks on several hosts hear where the leader is: rank 0 puts its
 * address, the others get it.
 *
 * The library is opened at run time. All ranks of the job must call it at about the same time.
 * Threads  one; once a process
 */
#pragma once

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

typedef struct launch_pmix_job {
    uint32_t rank;
    uint32_t size;
    uint32_t local_rank;
    uint32_t local_size; /* 0: not told */
    char leader_host[256];
} launch_pmix_job_t;

/*
 * my_host: of this rank, as others reach it; counts on rank 0. WEFT_ERR_UNSUPPORTED: built without
 * PMIx's headers, no library here, or no server. WEFT_ERR_TIMEOUT: ranks did not come.
 */
weft_status_t launch_pmix_read(const char *my_host, weft_diag_t *diag, launch_pmix_job_t *job_out);
