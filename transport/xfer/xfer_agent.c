/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_agent_priv.h"

#include <assert.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "transport/xfer/xfer_peer_priv.h"
#include "transport/xfer/xfer_request_priv.h"
#include "transport/xfer/xfer_stripe.h"

#define WEFT_LOG_MODULE "xfer"
#include "base/log.h"

uint32_t xfer_space_cap(int32_t space)
{
    switch (space) {
    case XFER_DRAM:
        return XFER_CAP_DRAM;
    case XFER_VRAM:
        return XFER_CAP_VRAM;
    case XFER_FILE:
        return XFER_CAP_FILE;
    default:
        return 0;
    }
}

/* ---- names ----------------------------------------------------------------------------------- */

static weft_status_t set_name(xfer_agent_t *agent, const char *name, weft_diag_t *diag)
{
    if (name == NULL) {
        uint64_t random[2];
        if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random)) {
            return weft_diag(diag, WEFT_ERR_IO, "no random bytes for a name");
        }
        snprintf(agent->name, sizeof(agent->name), "%016llx%016llx", (unsigned long long)random[0],
                 (unsigned long long)random[1]);
        return WEFT_OK;
    }
    const size_t length = strlen(name);
    if (length == 0 || length > XFER_MAX_NAME) {
        return weft_diag(diag, WEFT_ERR_INVALID, "an agent's name has 1 to %d bytes, not %zu",
                         XFER_MAX_NAME, length);
    }
    memcpy(agent->name, name, length + 1);
    return WEFT_OK;
}

static bool table_has(const xfer_backend_t *const *backends, const char *name, size_t length)
{
    for (; *backends != NULL; backends++) {
        if (strlen((*backends)->name) == length && memcmp((*backends)->name, name, length) == 0) {
            return true;
        }
    }
    return false;
}

static weft_status_t unknown_backend(const xfer_backend_t *const *backends, const char *name,
                                     size_t length, weft_diag_t *diag)
{
    char known[256] = "";
    for (size_t at = 0; *backends != NULL && at < sizeof(known); backends++) {
        at += (size_t)snprintf(known + at, sizeof(known) - at, " %s", (*backends)->name);
    }
    return weft_diag(diag, WEFT_ERR_NOT_FOUND, "no backend is called \"%.*s\"; there are:%s",
                     (int)length, name, known);
}

static weft_status_t check_names(const xfer_agent_t *agent, const char *names,
                                 const xfer_backend_t *const *backends, weft_diag_t *diag)
{
    const char *name;
    size_t length;
    while (names != NULL && xfer_names_next(&names, &name, &length)) {
        if (!table_has(backends, name, length)) {
            return unknown_backend(backends, name, length, diag);
        }
    }
    for (size_t i = 0; (name = xfer_params_backend(agent->params, i)) != NULL; i++) {
        if (!table_has(backends, name, strlen(name))) {
            return unknown_backend(backends, name, strlen(name), diag);
        }
    }
    return WEFT_OK;
}

/* ---- ports ----------------------------------------------------------------------------------- */

static const char *port_param(void *user, const char *key)
{
    xfer_way_t *way = user;
    return xfer_params_get(way->agent->params, way->backend->name, key);
}

static void port_checksum_error(void *user)
{
    xfer_way_t *way = user;
    way->stats.checksum_errors++;
}

static weft_status_t open_way(xfer_agent_t *agent, const xfer_backend_t *backend, weft_diag_t *diag)
{
    assert(agent->n_ways < XFER_MAX_WAYS);
    xfer_way_t *way = &agent->ways[agent->n_ways];
    *way = (xfer_way_t){.agent = agent, .backend = backend, .fd = -1};
    way->stats.backend = backend->name;
    const xfer_port_config_t config = {
        .agent = agent->name,
        .param = port_param,
        .on_notification = xfer_notify_arrived,
        .on_link_up = xfer_route_is_up,
        .on_link_lost = xfer_route_is_lost,
        .on_checksum_error = port_checksum_error,
        .user = way,
    };
    weft_status_t status = backend->open(&config, diag, &way->port);
    if (status < 0) {
        return status;
    }
    way->port->backend = backend;
    agent->n_ways++;
    const char *unknown = xfer_params_unknown(agent->params, backend->name);
    if (unknown != NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s has no parameter \"%s\"", backend->name,
                         unknown);
    }
    return WEFT_OK;
}

static weft_status_t open_ways(xfer_agent_t *agent, const char *names,
                               const xfer_backend_t *const *backends, weft_diag_t *diag)
{
    for (; *backends != NULL; backends++) {
        const xfer_backend_t *backend = *backends;
        const bool is_named = names != NULL && xfer_names_have(names, backend->name);
        if (!is_named && (names != NULL || (backend->caps & XFER_CAP_NAMED) != 0)) {
            continue;
        }
        weft_diag_t why = {0};
        weft_status_t status = open_way(agent, backend, &why);
        if (status == WEFT_ERR_UNSUPPORTED && !is_named) {
            weft_log_debug("backend=%s is left out: %s", backend->name, why.text);
            continue;
        }
        if (status < 0) {
            return weft_diag(diag, status, "%s: %s", backend->name,
                             why.text[0] != '\0' ? why.text : weft_strerror(status));
        }
    }
    return agent->n_ways > 0 ? WEFT_OK
                             : weft_diag(diag, WEFT_ERR_UNSUPPORTED, "no backend can be had here");
}

static void close_ways(xfer_agent_t *agent)
{
    for (size_t i = agent->n_ways; i-- > 0;) {
        agent->ways[i].backend->close(agent->ways[i].port);
    }
    agent->n_ways = 0;
}

/* ---- the agent ------------------------------------------------------------------------------- */

static xfer_agent_t *agent_alloc(const xfer_agent_config_t *config)
{
    xfer_agent_t *agent = weft_zalloc(sizeof(*agent), "xfer.agent");
    if (agent == NULL) {
        return NULL;
    }
    agent->has_thread = config->has_thread;
    agent->on_event = config->on_event;
    agent->user = config->user;
    agent->epoll_fd = -1;
    agent->wake_fd = -1;
    agent->notes_end = &agent->notes;
    agent->rail_late_ns = XFER_RAIL_LATE_NS;
    pthread_mutex_init(&agent->lock, NULL);
    pthread_cond_init(&agent->let_in, NULL);
    pthread_cond_init(&agent->ended, NULL);
    pthread_mutex_init(&agent->tables, NULL);
    pthread_mutex_init(&agent->notes_lock, NULL);
    return agent;
}

weft_status_t xfer_agent_open(const xfer_agent_config_t *config,
                              const xfer_backend_t *const *backends, weft_diag_t *diag,
                              xfer_agent_t **agent_out)
{
    xfer_agent_t *agent = agent_alloc(config);
    if (agent == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = set_name(agent, config->name, diag);
    if (status == WEFT_OK) {
        status = xfer_params_parse(config->params, diag, &agent->params);
    }
    if (status == WEFT_OK) {
        status = check_names(agent, config->backends, backends, diag);
    }
    if (status == WEFT_OK) {
        status = xfer_sleep_init(agent);
    }
    if (status == WEFT_OK) {
        status = open_ways(agent, config->backends, backends, diag);
    }
    if (status == WEFT_OK && agent->has_thread) {
        status = xfer_worker_start(agent);
    }
    if (status < 0) {
        xfer_agent_destroy(agent);
        return status;
    }
    *agent_out = agent;
    return WEFT_OK;
}

weft_status_t xfer_agent_create(const xfer_agent_config_t *config, weft_diag_t *diag,
                                xfer_agent_t **agent_out)
{
    return xfer_agent_open(config, xfer_backends, diag, agent_out);
}

void xfer_agent_destroy(xfer_agent_t *agent)
{
    if (agent == NULL) {
        return;
    }
    xfer_worker_stop(agent);
    while (agent->peers != NULL) {
        xfer_forget(agent, agent->peers);
    }
    xfer_region_destroy_all(agent);
    close_ways(agent);
    xfer_sleep_fini(agent);
    xfer_notify_fini(agent);
    xfer_params_destroy(agent->params);
    pthread_mutex_destroy(&agent->notes_lock);
    pthread_mutex_destroy(&agent->tables);
    pthread_cond_destroy(&agent->ended);
    pthread_cond_destroy(&agent->let_in);
    pthread_mutex_destroy(&agent->lock);
    weft_free(agent);
}

const char *xfer_agent_name(const xfer_agent_t *agent)
{
    return agent->name;
}

size_t xfer_agent_stats(xfer_agent_t *agent, xfer_backend_stats_t *stats_out, size_t max)
{
    xfer_agent_enter(agent);
    for (size_t i = 0; i < agent->n_ways && i < max; i++) {
        stats_out[i] = agent->ways[i].stats;
    }
    xfer_agent_leave_idle(agent);
    return agent->n_ways;
}
