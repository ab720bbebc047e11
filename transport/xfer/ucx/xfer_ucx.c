/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backend "ucx": RDMA, shared memory, cuda_ipc, TCP by UCX's choice, and what NIXL's backend "UCX"
 * is on the wire: worker addresses, packed memory keys, active message 0. See docs/fabric.md.
 */
#include "transport/xfer/xfer_backend.h"

#ifdef WEFT_UCX_LIBRARY

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/xfer/ucx/xfer_ucx_priv.h"

/* How long close lets what was sent last reach peers. */
#define CLOSE_NS (200 * WEFT_NS_PER_MS)

/* At most so many rounds of UCX's progress in one of ours. */
#define PROGRESS_ROUNDS 16

/* ---- settings -------------------------------------------------------------------------------- */

/* NIXL's, so that both ends choose alike; a variable UCX_<name> of the user's goes before. */
static const char *const settings[][2] = {
    {"RNDV_THRESH", "inf"},
    {"MAX_RMA_RAILS", "2"},
    {"IB_PCI_RELAXED_ORDERING", "try"},
    {"RC_FENCE", "none"},
    {"MAX_HCA_PER_GPU", "auto"},
    {"RNDV_PIPELINE_ERROR_HANDLING", "y"},
    /* Ours: memory is registered once, so nothing is gained by watching every munmap. */
    {"RCACHE_ENABLE", "n"},
};

/* Params that are settings of UCX; the words of a list are parted by ':' in them. */
static const char *const setting_params[][2] = {
    {"tls", "TLS"},
    {"devices", "NET_DEVICES"},
};

static bool is_set_by_user(const char *name)
{
    char variable[64];
    snprintf(variable, sizeof(variable), "UCX_%s", name);
    return getenv(variable) != NULL;
}

static const char *param_of(const ucx_port_t *port, const char *key)
{
    return port->base.config.param(port->base.config.user, key);
}

static weft_status_t apply_param(ucx_port_t *port, ucp_config_t *config, const char *key,
                                 const char *name, weft_diag_t *diag)
{
    const char *value = param_of(port, key);
    if (value == NULL) {
        return WEFT_OK;
    }
    char *list = weft_strdup(value, "xfer.ucx_setting");
    if (list == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (char *c = strchr(list, ':'); c != NULL; c = strchr(c, ':')) {
        *c = ',';
    }
    const ucs_status_t status = port->ucx->ucp_config_modify(config, name, list);
    weft_free(list);
    if (status != UCS_OK) {
        return weft_diag(diag, WEFT_ERR_INVALID, "ucx.%s=%s: %s", key, value,
                         port->ucx->ucs_status_string(status));
    }
    return WEFT_OK;
}

/* What this version of UCX does not know is left out. */
static weft_status_t apply_settings(ucx_port_t *port, ucp_config_t *config, weft_diag_t *diag)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(settings); i++) {
        if (!is_set_by_user(settings[i][0])) {
            port->ucx->ucp_config_modify(config, settings[i][0], settings[i][1]);
        }
    }
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(setting_params) && status == WEFT_OK; i++) {
        status = apply_param(port, config, setting_params[i][0], setting_params[i][1], diag);
    }
    return status;
}

static weft_status_t read_error_mode(ucx_port_t *port, weft_diag_t *diag)
{
    const char *mode = param_of(port, "error_mode");

    if (mode == NULL || strcmp(mode, "peer") == 0) {
        port->error_mode = UCP_ERR_HANDLING_MODE_PEER;
    } else if (strcmp(mode, "none") == 0) {
        port->error_mode = UCP_ERR_HANDLING_MODE_NONE;
    } else {
        return weft_diag(diag, WEFT_ERR_INVALID, "ucx.error_mode=%s: is neither peer nor none",
                         mode);
    }
    return WEFT_OK;
}

/* ---- open and close -------------------------------------------------------------------------- */

static weft_status_t diag_ucs(const ucx_port_t *port, weft_diag_t *diag, const char *what,
                              ucs_status_t status)
{
    return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "ucx: %s: %s", what,
                     port->ucx->ucs_status_string(status));
}

static ucs_status_t init_context(ucx_port_t *port, const ucp_config_t *config)
{
    const ucp_params_t params = {
        .field_mask =
            UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME | UCP_PARAM_FIELD_MT_WORKERS_SHARED,
        .features = UCP_FEATURE_RMA | UCP_FEATURE_AMO32 | UCP_FEATURE_AMO64 | UCP_FEATURE_AM |
                    UCP_FEATURE_WAKEUP,
        .mt_workers_shared = 0,
        .name = port->base.config.agent,
    };
    return port->ucx->ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config,
                                       &port->context);
}

static bool has_cuda(const ucx_port_t *port)
{
    ucp_context_attr_t attributes = {.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES};
    return port->ucx->ucp_context_query(port->context, &attributes) == UCS_OK &&
           (attributes.memory_types & UINT64_C(1) << UCS_MEMORY_TYPE_CUDA) != 0;
}

static weft_status_t open_context(ucx_port_t *port, weft_diag_t *diag)
{
    ucp_config_t *config;
    ucs_status_t result = port->ucx->ucp_config_read(NULL, NULL, &config);

    if (result != UCS_OK) {
        return diag_ucs(port, diag, "cannot read its settings", result);
    }
    const weft_status_t status = apply_settings(port, config, diag);
    if (status == WEFT_OK) {
        result = init_context(port, config);
    }
    port->ucx->ucp_config_release(config);
    if (status == WEFT_OK && result != UCS_OK) {
        port->context = NULL;
        return diag_ucs(port, diag, "no context", result);
    }
    port->has_cuda = status == WEFT_OK && has_cuda(port);
    return status;
}

static weft_status_t open_worker(ucx_port_t *port, weft_diag_t *diag)
{
    char name[XFER_MAX_NAME + 8];
    const ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_NAME,
        .thread_mode = UCS_THREAD_MODE_SERIALIZED,
        .name = name,
    };

    snprintf(name, sizeof(name), "%s:0", port->base.config.agent);
    ucs_status_t result = port->ucx->ucp_worker_create(port->context, &params, &port->worker);
    if (result != UCS_OK) {
        port->worker = NULL;
        return diag_ucs(port, diag, "no worker", result);
    }
    result = port->ucx->ucp_worker_get_efd(port->worker, &port->event_fd);
    return result == UCS_OK ? WEFT_OK : diag_ucs(port, diag, "a worker without events", result);
}

static void close_port(xfer_port_t *base)
{
    ucx_port_t *port = (ucx_port_t *)base;
    const uint64_t deadline = weft_clock_ns() + CLOSE_NS;

    if (port == NULL) {
        return;
    }
    while (port->closing > 0 && weft_clock_ns() < deadline) {
        port->ucx->ucp_worker_progress(port->worker);
    }
    if (port->worker != NULL) {
        port->ucx->ucp_worker_destroy(port->worker);
    }
    if (port->context != NULL) {
        port->ucx->ucp_cleanup(port->context);
    }
    weft_buffer_free(&port->opening);
    weft_free(port);
}

extern const xfer_backend_t xfer_backend_ucx;

static weft_status_t open_port(const xfer_port_config_t *config, weft_diag_t *diag,
                               xfer_port_t **port_out)
{
    ucx_port_t *port = weft_zalloc(sizeof(*port), "xfer.ucx_port");

    if (port == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    port->base = (xfer_port_t){.backend = &xfer_backend_ucx, .config = *config};
    weft_status_t status = ucx_load(param_of(port, "library"), diag, &port->ucx);
    if (status == WEFT_OK) {
        status = read_error_mode(port, diag);
    }
    if (status == WEFT_OK) {
        status = open_context(port, diag);
    }
    if (status == WEFT_OK) {
        status = open_worker(port, diag);
    }
    if (status == WEFT_OK) {
        status = xfer_ucx_notify_open(port, diag);
    }
    if (status < 0) {
        close_port(&port->base);
        return status;
    }
    *port_out = &port->base;
    return WEFT_OK;
}

static weft_status_t append_address(xfer_port_t *base, weft_buffer_t *out)
{
    ucx_port_t *port = (ucx_port_t *)base;
    ucp_worker_attr_t attributes = {.field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS};

    if (port->ucx->ucp_worker_query(port->worker, &attributes) != UCS_OK) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_buffer_append(out, attributes.address, attributes.address_length);
    port->ucx->ucp_worker_release_address(port->worker, attributes.address);
    return out->is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

/* ---- memory of our own ----------------------------------------------------------------------- */

static weft_status_t append_key(ucx_port_t *port, ucp_mem_h memory, weft_buffer_t *out)
{
    void *key;
    size_t bytes;

    if (port->ucx->ucp_rkey_pack(port->context, memory, &key, &bytes) != UCS_OK) {
        return WEFT_ERR_UNSUPPORTED;
    }
    weft_buffer_append(out, key, bytes);
    port->ucx->ucp_rkey_buffer_release(key);
    return out->is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

static weft_status_t map_memory(xfer_port_t *base, const xfer_memory_t *memory, weft_buffer_t *out,
                                void **handle_out)
{
    ucx_port_t *port = (ucx_port_t *)base;
    const bool is_vram = memory->space == XFER_VRAM;
    const ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                      UCP_MEM_MAP_PARAM_FIELD_FLAGS | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
        .address = (void *)(uintptr_t)memory->addr,
        .length = memory->bytes,
        .memory_type = is_vram ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST,
    };
    ucp_mem_h handle;

    if ((is_vram ? !port->has_cuda : memory->space != XFER_DRAM) ||
        port->ucx->ucp_mem_map(port->context, &params, &handle) != UCS_OK) {
        return WEFT_ERR_UNSUPPORTED;
    }
    const weft_status_t status = append_key(port, handle, out);
    if (status < 0) {
        port->ucx->ucp_mem_unmap(port->context, handle);
        return status;
    }
    *handle_out = handle;
    return WEFT_OK;
}

static void unmap_memory(xfer_port_t *base, void *handle)
{
    ucx_port_t *port = (ucx_port_t *)base;
    port->ucx->ucp_mem_unmap(port->context, handle);
}

/* ---- progress -------------------------------------------------------------------------------- */

static bool progress_worker(ucx_port_t *port)
{
    bool was_something = false;
    for (int i = 0; i < PROGRESS_ROUNDS; i++) {
        if (port->ucx->ucp_worker_progress(port->worker) == 0) {
            break;
        }
        was_something = true;
    }
    return was_something;
}

static bool progress(xfer_port_t *base)
{
    ucx_port_t *port = (ucx_port_t *)base;
    bool was_something = progress_worker(port);
    ucx_link_t *next;

    for (ucx_link_t *link = port->links; link != NULL; link = next) {
        next = link->next;
        was_something = xfer_ucx_link_run(link) || was_something;
    }
    return was_something;
}

static bool arm(xfer_port_t *base, int *fd_out)
{
    ucx_port_t *port = (ucx_port_t *)base;

    *fd_out = port->event_fd;
    for (const ucx_link_t *link = port->links; link != NULL; link = link->next) {
        if (link->is_dirty) {
            return false;
        }
    }
    return port->ucx->ucp_worker_arm(port->worker) == UCS_OK;
}

const xfer_backend_t xfer_backend_ucx = {
    .name = "ucx",
    .wire_name = "UCX",
    .caps = XFER_CAP_DRAM | XFER_CAP_VRAM | XFER_CAP_GUARD | XFER_CAP_NOTIFY | XFER_CAP_HOSTS,
    .open = open_port,
    .close = close_port,
    .address = append_address,
    .connect = xfer_ucx_connect,
    .disconnect = xfer_ucx_disconnect,
    .map = map_memory,
    .unmap = unmap_memory,
    .import = xfer_ucx_import,
    .release = xfer_ucx_release,
    .post = xfer_ucx_post,
    .cancel = xfer_ucx_cancel,
    .notify = xfer_ucx_notify,
    .progress = progress,
    .arm = arm,
};

#else

static weft_status_t open_port(const xfer_port_config_t *config, weft_diag_t *diag,
                               xfer_port_t **port_out)
{
    (void)config;
    (void)port_out;
    return weft_diag(
        diag, WEFT_ERR_UNSUPPORTED,
        "ucx: this build had no UCX headers; pip install libucx-cu13 (./dev build does) "
        "or install libucx-dev of at least 1.19, then build again");
}

const xfer_backend_t xfer_backend_ucx = {.name = "ucx", .wire_name = "UCX", .open = open_port};

#endif
