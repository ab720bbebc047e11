/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_place: which rank of how many this process is, and where the leader listens, from flags or
 * from the environment of whoever started it.
 *
 *   source       read when it is there, in this order
 *   flags        --rank --world-size --leader; each wins over everything else
 *   weft launch  WEFT_RANK WEFT_SIZE WEFT_LOCAL_RANK WEFT_LOCAL_SIZE WEFT_LEADER
 *   OpenMPI      OMPI_COMM_WORLD_*; with several hosts the leader's address by PMIx
 *   torchrun     RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR, where TORCHELASTIC_RUN_ID is set, too
 *   LWS          LWS_LEADER_ADDRESS LWS_GROUP_SIZE LWS_WORKER_INDEX
 *   Slurm        SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID SLURM_STEP_NODELIST
 *   PMIx         PMIX_RANK and what the server tells
 *   MASTER_ADDR  RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT: the variables alone
 *
 * Who can start processes inside what the next one started comes first: mpirun in a pod of a
 * LeaderWorkerSet, torchrun in a step of Slurm.
 *
 * Threads  immutable once read
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

/*
 * Of the leader, unless something names one. Under OpenMPI, torchrun, Slurm and PMIx, where jobs share
 * hosts, it is made of the job's name instead: one of 20000 to 28999, below what systems deal out.
 */
#define LAUNCH_DEFAULT_PORT 29401

typedef struct launch_place {
    const char *source; /* "flags", "weft launch", "LWS" …; "none": a process alone */
    uint32_t rank;
    uint32_t size;       /* 1: alone */
    uint32_t local_rank; /* among those on this host; 0 where nothing tells */
    uint32_t local_size; /* 0: not known */
    char leader_host[256];
    uint16_t leader_port;
    uint32_t restarts; /* times that a lost group may form again */
} launch_place_t;

/* Flags as given; size 0, rank UINT32_MAX, leader "": not given. */
typedef struct launch_place_flags {
    uint32_t rank;
    uint32_t size;
    const char *leader; /* host, host:port or [v6]:port */
} launch_place_flags_t;

/*
 * WEFT_ERR_INVALID: a variable that is there does not parse, or they contradict each other; diag
 * names it and its value. Something else's variables (a Slurm batch job around one process) do not
 * make a group of size 1 fail.
 * Under PMIx with several hosts it waits for the other ranks; call it once.
 */
weft_status_t launch_place_read(const launch_place_flags_t *flags, weft_diag_t *diag,
                                launch_place_t *place_out);

/*
 * Takes what says so out of the environment: a process that is started from here is not the rank that
 * this one is. Before there are threads.
 */
void launch_place_forget(void);
