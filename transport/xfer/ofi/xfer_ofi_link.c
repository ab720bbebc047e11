/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "xfer"
#include "transport/xfer/ofi/xfer_ofi_priv.h"

#ifdef WEFT_HAS_OFI

#include <string.h>

#include "base/alloc.h"
#include "base/log.h"

static void free_link(ofi_link_t *link)
{
    ofi_slots_close(&link->moves);
    ofi_slots_close(&link->letters);
    weft_free(link);
}

/* Afterwards libfabric leaves all memory of the link's ops alone. */
static void shut(ofi_link_t *link)
{
    ofi_door_close(ofi_port_of(link), &link->door);
    link->unsent = NULL;
    link->last_unsent = NULL;
}

static weft_status_t open_link(ofi_port_t *port, ofi_link_t *link, const void *address)
{
    weft_status_t status = ofi_slots_open(port, &link->moves, OFI_MOVES, sizeof(uint64_t));
    if (status == WEFT_OK) {
        status = ofi_slots_open(port, &link->letters, OFI_LETTERS, XFER_OFI_MAX_MESSAGE);
    }
    if (status < 0) {
        return status;
    }
    if (fi_av_insert(port->av, address, 1, &link->peer, 0, NULL) != 1) {
        return WEFT_ERR_UNSUPPORTED;
    }
    return ofi_door_open(port, OFI_MOVES + OFI_LETTERS, &link->door) == 0 ? WEFT_OK
                                                                          : WEFT_ERR_NO_MEMORY;
}

weft_status_t ofi_connect(xfer_port_t *base, const char *peer, const void *data, size_t bytes,
                          xfer_link_t **link_out)
{
    ofi_port_t *port = (ofi_port_t *)base;
    xfer_ofi_address_t address;
    const void *provider_address;
    (void)peer;
    weft_status_t status = xfer_ofi_decode_address(data, bytes, &address, &provider_address);
    if (status < 0) {
        return status;
    }
    if (address.format != port->info->addr_format || address.bytes != port->address.bytes ||
        strcmp(address.provider, port->address.provider) != 0) {
        return WEFT_ERR_UNSUPPORTED;
    }
    ofi_link_t *link = weft_zalloc(sizeof(*link), "xfer.ofi.link");
    if (link == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    link->base.port = base;
    link->door.wait_fd = -1;
    memcpy(link->token, address.token, sizeof(link->token));
    status = open_link(port, link, provider_address);
    if (status < 0) {
        shut(link);
        free_link(link);
        return status;
    }
    link->next = port->links;
    port->links = link;
    *link_out = &link->base;
    return WEFT_OK;
}

void ofi_disconnect(xfer_link_t *base)
{
    ofi_link_t *link = (ofi_link_t *)base;
    ofi_port_t *port = ofi_port_of(link);
    ofi_link_t **at = &port->links;
    shut(link);
    ofi_move_end_all(link, WEFT_ERR_CANCELLED);
    while (*at != link) {
        at = &(*at)->next;
    }
    *at = link->next;
    link->next = port->dead;
    port->dead = link;
}

void ofi_link_up(ofi_link_t *link)
{
    const xfer_port_config_t *config = &link->base.port->config;
    if (!link->is_up) {
        link->is_up = true;
        if (config->on_link_up != NULL) {
            config->on_link_up(config->user, &link->base);
        }
    }
}

static ofi_link_t *find_failed(const ofi_port_t *port)
{
    ofi_link_t *link = port->links;
    while (link != NULL && (!link->has_failed || link->door.ep == NULL)) {
        link = link->next;
    }
    return link;
}

void ofi_link_lose_failed(ofi_port_t *port)
{
    const xfer_port_config_t *config = &port->base.config;
    for (ofi_link_t *link = find_failed(port); link != NULL; link = find_failed(port)) {
        weft_log_debug("ofi link lost");
        shut(link);
        ofi_move_end_all(link, WEFT_ERR_PEER_GONE);
        config->on_link_lost(config->user, &link->base);
    }
}

void ofi_link_free_dead(ofi_port_t *port)
{
    while (port->dead != NULL) {
        ofi_link_t *link = port->dead;
        port->dead = link->next;
        (void)fi_av_remove(port->av, &link->peer, 1, 0);
        free_link(link);
    }
}
#endif
