/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backend "ucx": between hosts, by what UCX finds: RDMA, TCP, shared memory. See docs/collectives.md.
 */
#include "transport/coll/coll_backend.h"

#ifdef WEFT_UCX_LIBRARY

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "transport/coll/ucx/coll_ucx_priv.h"

extern const coll_backend_t coll_backend_ucx;

/* ---- settings -------------------------------------------------------------------------------- */

typedef struct setting {
    const char *name;
    const char *value;
    bool is_for_tcp; /* only where no faster network is */
} setting_t;

/*
 * A variable UCX_<name> of the user's goes before.
 *
 * Over TCP, what UCX reads and writes at once by default (64 KiB, 8 KiB) costs most of the time from
 * 32 KiB on: here it is one of our parts. Its rendezvous is a round trip for nothing: the kernel copies
 * either way, and a step of ours is small enough to be kept by who is late.
 */
static const setting_t settings[] = {
    {"RCACHE_ENABLE", "n", false}, /* nothing watches munmap: ucx_library.c */
    {"TCP_TX_SEG_SIZE", "256k", false}, {"TCP_RX_SEG_SIZE", "256k", false},
    {"RNDV_THRESH", "inf", true},       {"ZCOPY_THRESH", "4k", true},
};

static bool is_set_by_user(const char *name)
{
    char variable[64];
    (void)snprintf(variable, sizeof(variable), "UCX_%s", name);
    return getenv(variable) != NULL;
}

/* Whether this machine has an adapter that UCX could drive faster than by TCP. */
static bool has_fast_network(void)
{
    bool has_one = false;
    DIR *adapters = opendir("/sys/class/infiniband");

    for (struct dirent *entry; adapters != NULL && (entry = readdir(adapters)) != NULL;) {
        has_one = has_one || entry->d_name[0] != '.';
    }
    if (adapters != NULL) {
        closedir(adapters);
    }
    const char *ways = getenv("UCX_TLS");
    return has_one && (ways == NULL || strcmp(ways, "tcp") != 0);
}

/* What this version of UCX does not know is left out. */
static void apply_settings(const ucx_functions_t *ucx, ucp_config_t *config)
{
    const bool is_fast = has_fast_network();

    for (size_t i = 0; i < WEFT_ARRAY_LEN(settings); i++) {
        if (!is_set_by_user(settings[i].name) && !(settings[i].is_for_tcp && is_fast)) {
            ucx->ucp_config_modify(config, settings[i].name, settings[i].value);
        }
    }
}

/* ---- open and close -------------------------------------------------------------------------- */

static weft_status_t open_context(coll_ucx_t *coll, weft_diag_t *diag)
{
    ucp_config_t *config;
    const ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED |
                      UCP_PARAM_FIELD_ESTIMATED_NUM_EPS | UCP_PARAM_FIELD_NAME,
        .features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP,
        .mt_workers_shared = 1, /* a feed's worker may be another thread's */
        .estimated_num_eps = coll->base.config.size,
        .name = "weft-coll",
    };

    ucs_status_t result = coll->ucx->ucp_config_read(NULL, NULL, &config);
    if (result == UCS_OK) {
        apply_settings(coll->ucx, config);
        result = coll->ucx->ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config,
                                             &coll->context);
        coll->ucx->ucp_config_release(config);
    }
    if (result != UCS_OK) {
        coll->context = NULL;
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "ucx: no context: %s",
                         coll->ucx->ucs_status_string(result));
    }
    return WEFT_OK;
}

static weft_status_t make_buffers(coll_ucx_t *coll)
{
    const uint32_t size = coll->base.config.size;
    const size_t most = UCX_PARTS_BYTES / size;

    coll->part_bytes = most < UCX_PART_BYTES ? most : UCX_PART_BYTES;
    coll->sources = weft_calloc(size, sizeof(*coll->sources), "coll.ucx_sources");
    for (size_t i = 0; i < WEFT_ARRAY_LEN(coll->parts); i++) {
        coll->parts[i] = weft_alloc_aligned(4096, size * coll->part_bytes, "coll.ucx_parts");
    }
    return coll->sources == NULL || coll->parts[0] == NULL || coll->parts[1] == NULL
               ? WEFT_ERR_NO_MEMORY
               : WEFT_OK;
}

/* Connections are made by the first message: here, so that a rank that cannot be reached is known. */
static weft_status_t meet(coll_ucx_t *coll, weft_diag_t *diag)
{
    uint32_t rank;

    coll_ucx_barrier(&coll->base, NULL);
    const weft_status_t status = coll_status(&coll->base, &rank);
    return status < 0 ? weft_diag(diag, status, "ucx: rank %u does not answer", rank) : WEFT_OK;
}

static void close_group(coll_t *base)
{
    coll_ucx_t *coll = coll_ucx_of(base);

    if (coll == NULL) {
        return;
    }
    coll_ucx_pairs_close(coll);
    coll_ucx_lane_close(coll->lane);
    if (coll->context != NULL) {
        coll->ucx->ucp_cleanup(coll->context);
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(coll->parts); i++) {
        weft_free(coll->parts[i]);
    }
    weft_free(coll->sources);
    weft_free(coll);
}

static weft_status_t open_parts(coll_ucx_t *coll, weft_diag_t *diag)
{
    const coll_config_t *config = &coll->base.config;

    weft_status_t status = ucx_load(NULL, diag, &coll->ucx);
    if (status >= 0) {
        status = open_context(coll, diag);
    }
    if (status >= 0) {
        status = make_buffers(coll);
    }
    if (status >= 0) {
        status = coll_ucx_lane_open(coll, &config->exchange, COLL_UCX_BATCHES * 2 * config->size,
                                    false, false, diag, &coll->lane);
    }
    if (status >= 0) {
        status = coll_ucx_pairs_open(coll, diag);
    }
    return status < 0 ? status : meet(coll, diag);
}

static weft_status_t open_group(const coll_config_t *config, weft_diag_t *diag, coll_t **coll_out)
{
    coll_ucx_t *coll = weft_zalloc(sizeof(*coll), "coll.ucx");

    if (coll == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    coll->base = (coll_t){.backend = &coll_backend_ucx, .config = *config};
    const weft_status_t status = open_parts(coll, diag);
    if (status < 0) {
        close_group(&coll->base);
        return status;
    }
    *coll_out = &coll->base;
    return WEFT_OK;
}

static weft_status_t probe(const coll_config_t *config, weft_diag_t *diag)
{
    const ucx_functions_t *ucx;

    if (!config->device->ops->is_host) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "device %s is not host memory",
                         config->device->ops->name);
    }
    return ucx_load(NULL, diag, &ucx);
}

const coll_backend_t coll_backend_ucx = {
    .name = "ucx",
    .probe = probe,
    .open = open_group,
    .close = close_group,
    .all_reduce = coll_ucx_all_reduce,
    .reduce_scatter = coll_ucx_reduce_scatter,
    .all_gather = coll_ucx_all_gather,
    .broadcast = coll_ucx_broadcast,
    .barrier = coll_ucx_barrier,
    .send = coll_ucx_pair_send,
    .receive = coll_ucx_pair_receive,
    .feed = &coll_ucx_feed_ops,
};

#else

static weft_status_t probe(const coll_config_t *config, weft_diag_t *diag)
{
    (void)config;
    return weft_diag(
        diag, WEFT_ERR_UNSUPPORTED,
        "ucx: this build had no UCX headers; pip install libucx-cu13 (./dev build does) "
        "or install libucx-dev of at least 1.19, then build again");
}

const coll_backend_t coll_backend_ucx = {.name = "ucx", .probe = probe};

#endif
