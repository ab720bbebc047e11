/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_place.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/compiler.h"
#include "launcher/launch_address.h"
#include "launcher/launch_place_priv.h"
#include "transport/coll/coll.h"

#define FIRST_JOB_PORT 20000
#define JOB_PORTS      9000

/* One who starts ranks: the variables it sets. NULL: it has none of that kind. */
typedef struct source {
    const char *name;
    const char *rank;
    const char *size;
    const char *local_rank;
    const char *local_size;
    const char *leader; /* host or host:port */
    const char *port;
    const char *job[3]; /* what tells it from another job on the same hosts */
    const char *needs;  /* a variable without which these are not its own */
    bool is_common;     /* names that others use as well: they count only together */
    weft_status_t (*find_leader)(const launch_place_t *place, weft_diag_t *diag,
                                 char host_out[LAUNCH_HOST_BYTES]);
    /* Reads all by itself; WEFT_ERR_NOT_FOUND: it is not there after all. */
    weft_status_t (*read)(weft_diag_t *diag, launch_place_t *place);
} source_t;

static const source_t sources[] = {
    {.name = "weft launch",
     .rank = "WEFT_RANK",
     .size = "WEFT_SIZE",
     .local_rank = "WEFT_LOCAL_RANK",
     .local_size = "WEFT_LOCAL_SIZE",
     .leader = "WEFT_LEADER"},
    {.name = "OpenMPI",
     .rank = "OMPI_COMM_WORLD_RANK",
     .size = "OMPI_COMM_WORLD_SIZE",
     .local_rank = "OMPI_COMM_WORLD_LOCAL_RANK",
     .local_size = "OMPI_COMM_WORLD_LOCAL_SIZE",
     .job = {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"},
     .find_leader = launch_leader_of_openmpi},
    /* Its own store listens on MASTER_PORT. */
    {.name = "torchrun",
     .rank = "RANK",
     .size = "WORLD_SIZE",
     .local_rank = "LOCAL_RANK",
     .local_size = "LOCAL_WORLD_SIZE",
     .leader = "MASTER_ADDR",
     .job = {"TORCHELASTIC_RUN_ID", "MASTER_PORT"},
     .needs = "TORCHELASTIC_RUN_ID"},
    {.name = "LWS",
     .rank = "LWS_WORKER_INDEX",
     .size = "LWS_GROUP_SIZE",
     .leader = "LWS_LEADER_ADDRESS"},
    /* In the shell of a batch job all but the step's are set, too; it is alone. */
    {.name = "Slurm",
     .rank = "SLURM_PROCID",
     .size = "SLURM_STEP_NUM_TASKS",
     .local_rank = "SLURM_LOCALID",
     .job = {"SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID"},
     .needs = "SLURM_STEP_ID",
     .is_common = true,
     .find_leader = launch_leader_of_slurm},
    {.name = "PMIx", .job = {"PMIX_NAMESPACE"}, .needs = "PMIX_RANK", .read = launch_place_of_pmix},
    {.name = "MASTER_ADDR",
     .rank = "RANK",
     .size = "WORLD_SIZE",
     .local_rank = "LOCAL_RANK",
     .local_size = "LOCAL_WORLD_SIZE",
     .leader = "MASTER_ADDR",
     .port = "MASTER_PORT",
     .is_common = true},
};

const char *launch_variable(const char *name)
{
    const char *value = name != NULL ? getenv(name) : NULL;
    return value != NULL && value[0] != '\0' ? value : NULL;
}

/* A whole number of digits alone. Nothing there: *out stays. */
static weft_status_t read_number(const char *name, uint32_t most, weft_diag_t *diag, uint32_t *out)
{
    const char *text = launch_variable(name);
    uint32_t value = 0;
    if (text == NULL) {
        return WEFT_OK;
    }
    for (const char *c = text; *c != '\0'; c++) {
        if (!isdigit((unsigned char)*c)) {
            return weft_diag(diag, WEFT_ERR_INVALID, "%s=%s: no number", name, text);
        }
        value = value * 10 + (uint32_t)(*c - '0');
        if (value > most) {
            return weft_diag(diag, WEFT_ERR_INVALID, "%s=%s: more than %u", name, text, most);
        }
    }
    *out = value;
    return WEFT_OK;
}

static bool is_there(const source_t *source)
{
    if (source->needs != NULL && launch_variable(source->needs) == NULL) {
        return false;
    }
    if (source->read != NULL) {
        return true;
    }
    const bool has_rank = launch_variable(source->rank) != NULL;
    const bool has_size = launch_variable(source->size) != NULL;
    return source->is_common ? has_rank && has_size : has_rank || has_size;
}

/* The same on every rank of a job, different for most others. FNV-1a. */
static uint16_t port_of_job(const source_t *source)
{
    uint32_t hash = UINT32_C(2166136261);
    bool has_name = false;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(source->job); i++) {
        const char *text = launch_variable(source->job[i]);
        for (const char *c = text != NULL ? text : ""; *c != '\0'; c++) {
            hash = (hash ^ (uint8_t)*c) * UINT32_C(16777619);
            has_name = true;
        }
        hash = (hash ^ '/') * UINT32_C(16777619);
    }
    return has_name ? (uint16_t)(FIRST_JOB_PORT + hash % JOB_PORTS) : LAUNCH_DEFAULT_PORT;
}

static weft_status_t read_numbers(const source_t *source, weft_diag_t *diag, launch_place_t *place)
{
    weft_status_t status;
    const char *missing = launch_variable(source->rank) == NULL   ? source->rank
                          : launch_variable(source->size) == NULL ? source->size
                                                                  : NULL;
    if (missing != NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s: %s is not set", source->name, missing);
    }
    status = read_number(source->size, COLL_MAX_RANKS, diag, &place->size);
    if (status == WEFT_OK && place->size == 0) {
        status = weft_diag(diag, WEFT_ERR_INVALID, "%s=0: no ranks", source->size);
    }
    if (status == WEFT_OK) {
        status = read_number(source->rank, UINT32_MAX / 16, diag, &place->rank);
    }
    if (status == WEFT_OK && place->rank >= place->size) {
        status = weft_diag(diag, WEFT_ERR_INVALID, "%s=%u, but %s=%u", source->rank, place->rank,
                           source->size, place->size);
    }
    if (status == WEFT_OK) {
        status = read_number(source->local_rank, COLL_MAX_RANKS, diag, &place->local_rank);
    }
    if (status == WEFT_OK) {
        status = read_number(source->local_size, COLL_MAX_RANKS, diag, &place->local_size);
    }
    if (status == WEFT_OK && place->local_size > 0 && place->local_rank >= place->local_size) {
        status = weft_diag(diag, WEFT_ERR_INVALID, "%s=%u, but %s=%u", source->local_rank,
                           place->local_rank, source->local_size, place->local_size);
    }
    return status;
}

static weft_status_t read_leader(const source_t *source, weft_diag_t *diag, launch_place_t *place)
{
    const char *text = launch_variable(source->leader);
    launch_address_t address;
    uint32_t port = 0;
    weft_status_t status;

    if (source->find_leader != NULL) {
        return source->find_leader(place, diag, place->leader_host);
    }
    if (text == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s: %s is not set, and --leader not given",
                         source->name, source->leader);
    }
    status = launch_address_parse(text, diag, &address);
    if (status < 0) {
        weft_diag_prefix(diag, "%s", source->leader);
        return status;
    }
    status = read_number(source->port, UINT16_MAX, diag, &port);
    strcpy(place->leader_host, address.host);
    place->leader_port = port > 0           ? (uint16_t)port
                         : address.port > 0 ? address.port
                                            : place->leader_port;
    return status;
}

/* has_leader: flags name one. */
static weft_status_t read_source(const source_t *source, bool has_leader, weft_diag_t *diag,
                                 launch_place_t *place)
{
    weft_status_t status;
    place->source = source->name;
    place->leader_port = port_of_job(source);
    if (source->read != NULL) {
        return source->read(diag, place);
    }
    status = read_numbers(source, diag, place);
    return status == WEFT_OK && place->size > 1 && !has_leader ? read_leader(source, diag, place)
                                                               : status;
}

static weft_status_t read_environment(bool has_leader, weft_diag_t *diag, launch_place_t *place_out)
{
    weft_status_t status = WEFT_ERR_NOT_FOUND;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sources) && status == WEFT_ERR_NOT_FOUND; i++) {
        launch_place_t place = {.size = 1};
        if (is_there(&sources[i])) {
            status = read_source(&sources[i], has_leader, diag, &place);
        }
        if (status == WEFT_OK) {
            *place_out = place;
        }
    }
    return status == WEFT_ERR_NOT_FOUND ? WEFT_OK : status;
}

/* What flags say, over what the environment says. */
static weft_status_t merge(const launch_place_flags_t *flags, weft_diag_t *diag,
                           launch_place_t *place)
{
    launch_address_t address;
    weft_status_t status = WEFT_OK;
    if (flags->size > 0) {
        place->size = flags->size;
    }
    if (flags->rank != UINT32_MAX) {
        place->rank = flags->rank;
    }
    if (flags->leader[0] != '\0') {
        status = launch_address_parse(flags->leader, diag, &address);
        if (status < 0) {
            weft_diag_prefix(diag, "--leader");
            return status;
        }
        strcpy(place->leader_host, address.host);
        place->leader_port = address.port > 0 ? address.port : place->leader_port;
    }
    return status;
}

static weft_status_t check(const launch_place_flags_t *flags, const launch_place_t *place,
                           weft_diag_t *diag)
{
    const bool is_alone = strcmp(place->source, "none") == 0;
    if (place->size > COLL_MAX_RANKS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--world-size %u: more than %u", place->size,
                         COLL_MAX_RANKS);
    }
    if (is_alone && flags->size == 0 && (flags->rank != UINT32_MAX || flags->leader[0] != '\0')) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s without --world-size",
                         flags->rank != UINT32_MAX ? "--rank" : "--leader");
    }
    if (is_alone && flags->size > 1 && flags->rank == UINT32_MAX) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--world-size %u without --rank", flags->size);
    }
    if (place->rank >= place->size) {
        return weft_diag(diag, WEFT_ERR_INVALID, "rank %u of %u ranks (%s)", place->rank,
                         place->size, is_alone ? "flags" : place->source);
    }
    if (place->size > 1 && place->leader_host[0] == '\0') {
        return weft_diag(diag, WEFT_ERR_INVALID, "rank %u of %u: --leader is not given",
                         place->rank, place->size);
    }
    return WEFT_OK;
}

weft_status_t launch_place_read(const launch_place_flags_t *flags, weft_diag_t *diag,
                                launch_place_t *place_out)
{
    const launch_place_t alone = {.source = "none", .size = 1, .leader_port = LAUNCH_DEFAULT_PORT};
    const bool has_leader = flags->leader[0] != '\0';
    const bool is_by_flags = flags->size > 0 && flags->rank != UINT32_MAX;
    launch_place_t place = alone;
    weft_status_t status = read_environment(has_leader, is_by_flags ? NULL : diag, &place);

    if (is_by_flags && (status < 0 || place.size != flags->size || place.rank != flags->rank)) {
        place = alone; /* of some other group */
        status = WEFT_OK;
    }
    if (status == WEFT_OK) {
        status = merge(flags, diag, &place);
    }
    if (status == WEFT_OK) {
        status = check(flags, &place, diag);
    }
    if (status < 0) {
        return status;
    }
    if (is_by_flags && strcmp(place.source, "none") == 0) {
        place.source = "flags";
    }
    *place_out = place;
    return WEFT_OK;
}

void launch_place_forget(void)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sources); i++) {
        const source_t *source = &sources[i];
        const char *const names[] = {source->rank,       source->size,       source->needs,
                                     source->local_rank, source->local_size, source->leader,
                                     source->port};
        for (size_t j = 0; j < WEFT_ARRAY_LEN(names); j++) {
            if (names[j] != NULL) {
                (void)unsetenv(names[j]);
            }
        }
    }
}
