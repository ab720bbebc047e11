/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_options.h"

#include <stdio.h>
#include <string.h>

#include "base/compiler.h"
#include "launcher/launch_address.h"
#include "launcher/launch_secret.h"
#include "transport/coll/coll.h"

const weft_option_t launch_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(launch_options_t, __VA_ARGS__)
#include "launcher/options.def"
#undef OPTION
};
const size_t launch_option_count = WEFT_ARRAY_LEN(launch_option_rows);

bool launch_options_name_ranks(const launch_options_t *options)
{
    return options->rank >= 0 || options->world_size > 0 || options->nnodes > 1;
}

/* A secret that cannot be read would else be found out once other ranks wait. */
static weft_status_t check_secret(const char *path, weft_diag_t *diag)
{
    launch_secret_t secret;
    const weft_status_t status = launch_secret_read(path, diag, &secret);
    if (status == WEFT_OK) {
        launch_secret_wipe(&secret);
    }
    return status;
}

static weft_status_t check_backend(const char *name, weft_diag_t *diag)
{
    const weft_status_t status = coll_check_backend_name(name, diag);
    if (status < 0) {
        weft_diag_prefix(diag, "--coll-backend");
    }
    return status;
}

weft_status_t launch_options_check(const launch_options_t *o, weft_diag_t *diag)
{
    if (o->rank < -1 || o->rank >= UINT32_MAX) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--rank %lld: no rank", (long long)o->rank);
    }
    if (o->nnodes == 0 || (o->nnodes == 1 && o->node_rank > 0)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--node-rank %u, but --nnodes %u", o->node_rank,
                         o->nnodes);
    }
    if (o->nnodes > 1 && (o->rank >= 0 || o->world_size > 0)) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--nnodes %u beside --rank or --world-size: give one of them", o->nnodes);
    }
    if (o->nnodes > 1 && o->leader[0] == '\0' && o->master_addr[0] == '\0') {
        return weft_diag(diag, WEFT_ERR_INVALID, "--nnodes %u without --master-addr", o->nnodes);
    }
    if (o->master_port > UINT16_MAX) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--master-port %u: no port", o->master_port);
    }
    if (o->coll_timeout == 0 || o->join_timeout == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--%s 0: at least a second",
                         o->coll_timeout == 0 ? "coll-timeout" : "join-timeout");
    }
    const weft_status_t status = check_backend(o->coll_backend, diag);
    return status < 0 || o->secret_file[0] == '\0' ? status : check_secret(o->secret_file, diag);
}

/* "host", "host:port" or "[v6]:port" of --master-addr and --master-port. */
static void join_address(const launch_options_t *o, char *text, size_t size)
{
    const bool is_v6 = strchr(o->master_addr, ':') != NULL;
    if (o->master_port == 0) {
        snprintf(text, size, "%s", o->master_addr);
    } else {
        snprintf(text, size, is_v6 ? "[%s]:%u" : "%s:%u", o->master_addr, o->master_port);
    }
}

weft_status_t launch_options_place(const launch_options_t *o, weft_diag_t *diag,
                                   launch_place_t *place_out)
{
    char master[LAUNCH_HOST_BYTES + 16] = "";
    launch_place_flags_t flags = {
        .rank = o->rank >= 0 ? (uint32_t)o->rank : UINT32_MAX,
        .size = o->world_size,
        .leader = o->leader,
    };
    weft_status_t status = launch_options_check(o, diag);
    if (status < 0) {
        return status;
    }
    if (o->nnodes > 1) {
        join_address(o, master, sizeof(master));
        flags.rank = o->node_rank;
        flags.size = o->nnodes;
        flags.leader = o->leader[0] != '\0' ? o->leader : master;
    }
    status = launch_place_read(&flags, diag, place_out);
    if (status == WEFT_OK) {
        place_out->restarts = o->restarts;
    }
    return status;
}
