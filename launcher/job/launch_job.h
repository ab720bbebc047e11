/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch_job: the processes of one job on one or several hosts, from their start to the end of the last one.
 *
 * Every rank gets WEFT_RANK, WEFT_SIZE, WEFT_LOCAL_RANK, WEFT_LOCAL_SIZE, WEFT_LEADER (host:port of rank 0,
 * as the others reach it) and WEFT_EPOCH (restarts in this job so far); with restarts also WEFT_RESTARTS.
 *
 * A rank fails when it ends by a signal or with another code than 0. The first failure ends the job: SIGTERM to all
 * others, SIGKILL two seconds later. With restarts a failed rank is started again alone, rank 0 with all others.
 * A host that is lost has lost its ranks: with restarts it is tried again for connect_timeout_s, and they are
 * started there. One that cannot be reached at the start ends the job.
 *
 * Signals  SIGHUP SIGINT SIGTERM SIGUSR1 SIGUSR2 go to every rank; a second SIGINT within two seconds
 *          kills all. SIGTSTP stops the ranks, then this process; SIGCONT lets them go on.
 * Threads  one; it changes the signals and limits of its process
 */
#pragma once

#include <stdbool.h>

#include "launcher/job/launch_binding.h"
#include "launcher/job/launch_hosts.h"
#include "launcher/job/launch_map.h"

#define LAUNCH_EXIT_TIMEOUT 124 /* as timeout(1) */

typedef struct launch_job_config {
    char *const *argv; /* [argc] of every rank */
    uint32_t argc;
    char *const *environment; /* [n_environment] "NAME=value", for every rank besides */
    uint32_t n_environment;
    uint32_t n_ranks;            /* 0: the slots of the hosts; without hosts the cores here */
    const launch_hosts_t *hosts; /* empty: this machine, with as many slots as it takes */
    uint32_t n_fake_hosts;       /* instead: so many network namespaces (launch_netns.h); 0: none */
    launch_map_by_t map_by;
    launch_bind_to_t bind_to;
    bool may_oversubscribe;
    bool is_tagged;
    const char *output_folder;  /* "": none */
    uint32_t timeout_s;         /* 0: none */
    uint32_t restarts;          /* of each rank */
    uint32_t stopped_after_s;   /* with restarts: a rank that is stopped for so long has failed */
    uint32_t connect_timeout_s; /* that hosts have to answer, at the start and after a loss */
    const char *leader_host;    /* "": found out */
    uint16_t leader_port;       /* 0: one that is free */
    char *const *ssh;           /* [n_ssh] words before the host's name */
    uint32_t n_ssh;
    const char *remote_weft; /* path there; "": as here */
} launch_job_config_t;

/*
 * exit_code_out, when WEFT_OK: 0, or of the first failure: its code, 128 + its signal,
 * LAUNCH_EXIT_TIMEOUT, 1 when a host was lost. Others: nothing was started, diag says why.
 */
weft_status_t launch_job_run(const launch_job_config_t *config, weft_diag_t *diag,
                             int *exit_code_out);
