/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_remote_fabric: the fabric's agents, as both ends of the remote tier have them, and where peers are.
 *
 * Threads  none of its own; the agents' are the fabric's
 */
#pragma once

#include "base/device.h"
#include "transport/xfer/xfer.h"

#define KV_REMOTE_MAX_ENDPOINT 320

typedef struct kv_remote_fabric {
    const char *backends; /* names with commas; NULL, "": every one there is */
    const char *params;   /* of them; NULL, "": none */
    const char *host;     /* that the agent's tcp port listens at, unless params say; "": all */
    void (*on_event)(void *user); /* may be NULL */
    void *user;
} kv_remote_fabric_t;

weft_status_t kv_remote_agent_open(const kv_remote_fabric_t *fabric, weft_diag_t *diag,
                                   xfer_agent_t **agent_out);

weft_status_t kv_remote_register(xfer_agent_t *agent, const weft_mem_t *memory, weft_diag_t *diag);

/*
 * "host:port", "[::1]:port" and, to listen, "*:port" (length bytes of text) as ZeroMQ has them; the host
 * alone, without brackets and empty for "*", in host_out. add is added to a port that is not 0.
 * WEFT_ERR_INVALID: diag says why.
 */
weft_status_t kv_remote_endpoint(const char *text, size_t length, uint32_t add, weft_diag_t *diag,
                                 char endpoint_out[KV_REMOTE_MAX_ENDPOINT],
                                 char host_out[KV_REMOTE_MAX_ENDPOINT]);
