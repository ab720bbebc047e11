/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_exchange: agents tell each other of themselves over TCP, in NIXL's words (xfer_commands.h), so
 * that it works with NIXL's agents too. Theirs listen at port 8888.
 *
 * Whoever reaches the port gets the agent's metadata and can make it learn of others: listen only
 * where all are trusted.
 */
#pragma once

#include "transport/xfer/xfer.h"

typedef struct xfer_exchange xfer_exchange_t;

typedef struct xfer_exchange_config {
    xfer_agent_t *agent; /* outlives the exchange */
    const char *host;    /* an address of this machine; "0.0.0.0": all */
    uint16_t port;       /* 0: any */
    /* Metadata came and were imported (peer) or refused (NULL). From a thread of the exchange. May
       be NULL. */
    void (*on_metadata)(void *user, xfer_peer_t *peer);
    /* An agent says that it is gone; to forget it is the caller's business, since it may use it. From
     * a thread of the exchange. May be NULL. */
    void (*on_gone)(void *user, const char *name);
    void *user;
} xfer_exchange_config_t;

/* Listens, on a thread of its own. WEFT_ERR_IN_USE: the port is taken. */
weft_status_t xfer_exchange_start(const xfer_exchange_config_t *config, weft_diag_t *diag,
                                  xfer_exchange_t **exchange_out);
uint16_t xfer_exchange_port(const xfer_exchange_t *exchange);
void xfer_exchange_stop(xfer_exchange_t *exchange); /* NULL is fine */

/* Where a peer listens, and how long a call may take in all; these calls wait. */
typedef struct xfer_exchange_place {
    const char *host;
    uint16_t port;
    int timeout_ms;
} xfer_exchange_place_t;

/* Hands it our metadata, as xfer_export made them. WEFT_ERR_PEER_GONE, WEFT_ERR_TIMEOUT. */
weft_status_t xfer_exchange_send(const xfer_exchange_place_t *place, const void *metadata,
                                 size_t bytes, weft_diag_t *diag);
/* Asks for its metadata and imports them; besides those of xfer_exchange_send, xfer_import's errors. */
weft_status_t xfer_exchange_fetch(xfer_agent_t *agent, const xfer_exchange_place_t *place,
                                  weft_diag_t *diag, xfer_peer_t **peer_out);
/* Tells it that the agent of this name is gone. */
weft_status_t xfer_exchange_leave(const xfer_exchange_place_t *place, const char *name,
                                  weft_diag_t *diag);
