/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "launcher/launch_hostlist.h"
#include "launcher/launch_place_priv.h"
#include "launcher/launch_pmix.h"

#define WEFT_LOG_MODULE "ranks"
#include "base/log.h"

#define LOOPBACK "127.0.0.1"

/* ---- mpirun ---------------------------------------------------------------------------------- */

/*
 * "304807936.0;tcp://192.0.2.2,10.0.0.2:57211;tcp6://[fd00::2]:40963": where mpirun itself listens. The
 * first address of it.
 */
static bool host_of_mpirun(char host_out[LAUNCH_HOST_BYTES])
{
    const char *uri = launch_variable("OMPI_MCA_orte_hnp_uri");
    const char *at = uri != NULL ? strstr(uri, ";tcp://") : NULL;
    if (at == NULL) {
        return false;
    }
    at += strlen(";tcp://");
    const size_t n = strcspn(at, ",:;");
    launch_address_t address;
    char text[LAUNCH_HOST_BYTES];
    if (n == 0 || n >= sizeof(text)) {
        return false;
    }
    memcpy(text, at, n);
    text[n] = '\0';
    if (launch_address_parse(text, NULL, &address) < 0) {
        return false;
    }
    strcpy(host_out, address.host);
    return true;
}

/* The first of our addresses that is not for this host alone. */
static bool first_address(char host_out[LAUNCH_HOST_BYTES])
{
    struct ifaddrs *list = NULL;
    bool is_found = false;
    if (getifaddrs(&list) != 0) {
        return false;
    }
    for (struct ifaddrs *at = list; at != NULL && !is_found; at = at->ifa_next) {
        const bool is_usable = at->ifa_addr != NULL && (at->ifa_flags & IFF_UP) != 0 &&
                               (at->ifa_flags & IFF_LOOPBACK) == 0 &&
                               at->ifa_addr->sa_family == AF_INET;
        is_found = is_usable && getnameinfo(at->ifa_addr, sizeof(struct sockaddr_in), host_out,
                                            LAUNCH_HOST_BYTES, NULL, 0, NI_NUMERICHOST) == 0;
    }
    freeifaddrs(list);
    return is_found;
}

/* How the other ranks' hosts reach this one: as they reach mpirun, if there is one. */
static void my_address(char host_out[LAUNCH_HOST_BYTES])
{
    char mpirun[LAUNCH_HOST_BYTES];
    if (host_of_mpirun(mpirun) && launch_address_towards(mpirun, host_out, LAUNCH_HOST_BYTES)) {
        return;
    }
    if (!first_address(host_out) && gethostname(host_out, LAUNCH_HOST_BYTES) != 0) {
        strcpy(host_out, LOOPBACK);
    }
    host_out[LAUNCH_HOST_BYTES - 1] = '\0';
}

weft_status_t launch_leader_of_openmpi(const launch_place_t *place, weft_diag_t *diag,
                                       char host_out[LAUNCH_HOST_BYTES])
{
    char mine[LAUNCH_HOST_BYTES];
    launch_pmix_job_t job;
    weft_diag_t reason = {0};

    if (place->local_size == place->size) {
        strcpy(host_out, LOOPBACK);
        return WEFT_OK;
    }
    my_address(mine);
    if (launch_pmix_read(mine, &reason, &job) == WEFT_OK) {
        strcpy(host_out, job.leader_host);
        return WEFT_OK;
    }
    if (host_of_mpirun(host_out)) {
        weft_log_warn("rank 0 is taken to be on mpirun's host, %s: %s", host_out, reason.text);
        return WEFT_OK;
    }
    return weft_diag(diag, WEFT_ERR_INVALID,
                     "OpenMPI: where rank 0 is cannot be found out (%s); "
                     "give --leader",
                     reason.text);
}

weft_status_t launch_place_of_pmix(weft_diag_t *diag, launch_place_t *place)
{
    char mine[LAUNCH_HOST_BYTES];
    launch_pmix_job_t job;
    weft_diag_t reason = {0};
    my_address(mine);
    const weft_status_t status = launch_pmix_read(mine, &reason, &job);
    if (status == WEFT_ERR_TIMEOUT) {
        return weft_diag(diag, status, "%s", reason.text);
    }
    if (status < 0) {
        weft_log_warn("PMIX_RANK is set, and not used: %s", reason.text);
        return WEFT_ERR_NOT_FOUND;
    }
    place->rank = job.rank;
    place->size = job.size;
    place->local_rank = job.local_rank;
    place->local_size = job.local_size;
    strcpy(place->leader_host, job.local_size == job.size ? LOOPBACK : job.leader_host);
    return WEFT_OK;
}

/* ---- Slurm ----------------------------------------------------------------------------------- */

weft_status_t launch_leader_of_slurm(const launch_place_t *place, weft_diag_t *diag,
                                     char host_out[LAUNCH_HOST_BYTES])
{
    const char *nodes = launch_variable("SLURM_STEP_NUM_NODES");
    const char *list = launch_variable("SLURM_STEP_NODELIST");
    (void)place;
    if (nodes != NULL && strcmp(nodes, "1") == 0) {
        strcpy(host_out, LOOPBACK);
        return WEFT_OK;
    }
    if (list == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "Slurm: SLURM_STEP_NODELIST is not set, and --leader not given");
    }
    const weft_status_t status = launch_hostlist_first(list, diag, host_out, LAUNCH_HOST_BYTES);
    if (status < 0) {
        weft_diag_prefix(diag, "SLURM_STEP_NODELIST");
    }
    return status;
}
