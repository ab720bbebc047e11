/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/data_parallel_machines.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "launcher/launch_address.h"
#include "launcher/launch_group.h"

#define WEFT_LOG_MODULE "data-parallel"
#include "base/log.h"

struct data_parallel_machines {
    launch_group_t *group;
    uint32_t n; /* ranks of each */
    void (*on_lost)(void *user, const char *why);
    void *user;
};

/* ---- this machine's address ------------------------------------------------------------------ */

bool data_parallel_is_any_host(const char *host)
{
    return host[0] == '\0' || strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0;
}

void data_parallel_peer_write(const api_options_t *options, uint32_t rank, const char *host,
                              uint16_t port, data_parallel_peer_t *peer_out)
{
    const bool has_tls = options->ssl_certfile[0] != '\0';
    const bool is_v6 = strchr(host, ':') != NULL;
    snprintf(peer_out->text, sizeof(peer_out->text), "%u=http%s://%s%s%s:%u", rank,
             has_tls ? "s" : "", is_v6 ? "[" : "", host, is_v6 ? "]" : "", port);
}

static weft_status_t own_host(const data_parallel_machines_config_t *config, weft_diag_t *diag,
                              char *out, size_t size)
{
    const api_options_t *o = config->options;
    if (!data_parallel_is_any_host(o->host)) {
        snprintf(out, size, "%s", o->host);
        return WEFT_OK;
    }
    return launch_address_towards(o->data_parallel_address, out, size)
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_NOT_FOUND,
                           "--data-parallel-address %s: no way there; --host names the address of "
                           "this machine that others reach",
                           o->data_parallel_address);
}

static weft_status_t name_own(const data_parallel_machines_config_t *config, weft_diag_t *diag,
                              data_parallel_peer_t *peers_out)
{
    char host[256];
    const weft_status_t status = own_host(config, diag, host, sizeof(host));
    for (uint32_t i = 0; status >= 0 && i < config->n; i++) {
        data_parallel_peer_write(config->options, config->first + i, host, config->ports[i],
                                 &peers_out[i]);
    }
    return status;
}

/* ---- meeting --------------------------------------------------------------------------------- */

static void on_lost(void *user, uint32_t rank, const char *why)
{
    const data_parallel_machines_t *machines = user;
    char text[WEFT_DIAG_BYTES];
    snprintf(text, sizeof(text), "the machine of data-parallel ranks %u-%u is lost: %s",
             rank * machines->n, rank * machines->n + machines->n - 1, why);
    machines->on_lost(machines->user, text);
}

static weft_status_t check_even(const data_parallel_machines_config_t *config, weft_diag_t *diag)
{
    const uint32_t size = config->options->data_parallel_size;
    return size % config->n == 0 && config->first % config->n == 0
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                           "--data-parallel-size-local %u: machines that are balanced over have as "
                           "many ranks each, and begin with a multiple of it, of %u in all",
                           config->n, size);
}

static weft_status_t join(const data_parallel_machines_config_t *config, weft_diag_t *diag,
                          data_parallel_machines_t *machines)
{
    const api_options_t *o = config->options;
    char size[16];
    char local[16];
    snprintf(size, sizeof(size), "%u", o->data_parallel_size);
    snprintf(local, sizeof(local), "%u", config->n);
    const launch_fact_t facts[] = {
        {"--data-parallel-size", size},
        {"--data-parallel-size-local", local},
        {"--served-model-name",
         o->served_model_name.count > 0 ? o->served_model_name.items[0] : ""},
    };
    launch_group_config_t group = {
        .place = {.source = "flags",
                  .rank = config->first / config->n,
                  .size = o->data_parallel_size / config->n,
                  .leader_port = (uint16_t)o->data_parallel_rpc_port},
        .secret_file = config->secret_file,
        .facts = facts,
        .n_facts = sizeof(facts) / sizeof(facts[0]),
        .join_timeout_s = config->join_timeout_s,
        .lost_after_s = config->lost_after_s,
        .on_lost = on_lost,
        .user = machines,
    };
    snprintf(group.place.leader_host, sizeof(group.place.leader_host), "%s",
             o->data_parallel_address);
    weft_log_info("meeting the other machines at=%s:%u machine=%u of=%u", o->data_parallel_address,
                  o->data_parallel_rpc_port, group.place.rank, group.place.size);
    return launch_group_join(&group, diag, &machines->group);
}

weft_status_t data_parallel_machines_join(const data_parallel_machines_config_t *config,
                                          weft_diag_t *diag, data_parallel_peer_t *peers_out,
                                          data_parallel_machines_t **machines_out)
{
    weft_status_t status = check_even(config, diag);
    if (status < 0) {
        return status;
    }
    data_parallel_machines_t *machines = weft_zalloc(sizeof(*machines), "cli.machines");
    data_parallel_peer_t *own = weft_calloc(config->n, sizeof(*own), "cli.peers");
    if (machines == NULL || own == NULL) {
        status = WEFT_ERR_NO_MEMORY;
        goto cleanup;
    }
    machines->n = config->n;
    machines->on_lost = config->on_lost;
    machines->user = config->user;
    status = name_own(config, diag, own);
    if (status >= 0) {
        status = join(config, diag, machines);
    }
    if (status >= 0) {
        status = launch_group_all_gather(machines->group, own, config->n * sizeof(*own), peers_out,
                                         diag);
    }
    if (status >= 0) {
        *machines_out = machines;
        machines = NULL;
    }

cleanup:
    weft_free(own);
    data_parallel_machines_leave(machines);
    return status;
}

void data_parallel_machines_fail(data_parallel_machines_t *machines, const char *why)
{
    launch_group_fail(machines->group, why);
}

void data_parallel_machines_leave(data_parallel_machines_t *machines)
{
    if (machines == NULL) {
        return;
    }
    launch_group_leave(machines->group);
    weft_free(machines);
}
