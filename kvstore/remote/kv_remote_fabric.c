/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/remote/kv_remote_fabric.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HOST 255

/* The tcp backend has parameters only where it may be used. */
static bool needs_host(const kv_remote_fabric_t *fabric, const char *params)
{
    const bool may_use_tcp = fabric->backends == NULL || fabric->backends[0] == '\0' ||
                             strstr(fabric->backends, "tcp") != NULL;
    return may_use_tcp && fabric->host[0] != '\0' && strstr(params, "tcp.host=") == NULL;
}

weft_status_t kv_remote_agent_open(const kv_remote_fabric_t *fabric, weft_diag_t *diag,
                                   xfer_agent_t **agent_out)
{
    const char *given = fabric->params == NULL ? "" : fabric->params;
    const bool is_any = fabric->backends == NULL || fabric->backends[0] == '\0';
    weft_buffer_t params = {0};
    weft_buffer_puts(&params, given);
    if (needs_host(fabric, given)) {
        weft_buffer_printf(&params, "%stcp.host=%s", given[0] == '\0' ? "" : ",", fabric->host);
    }
    weft_buffer_append(&params, "", 1);
    const xfer_agent_config_t config = {.backends = is_any ? NULL : fabric->backends,
                                        .params = params.length <= 1 ? NULL : params.data,
                                        .has_thread = true,
                                        .on_event = fabric->on_event,
                                        .user = fabric->user};
    const weft_status_t status =
        params.is_failed ? WEFT_ERR_NO_MEMORY : xfer_agent_create(&config, diag, agent_out);
    weft_buffer_free(&params);
    return status;
}

weft_status_t kv_remote_register(xfer_agent_t *agent, const weft_mem_t *memory, weft_diag_t *diag)
{
    const xfer_memory_t described = {.space = XFER_DRAM,
                                     .addr = (uint64_t)(uintptr_t)memory->addr,
                                     .bytes = memory->bytes,
                                     .fd = memory->fd};
    xfer_region_t *region; /* goes with the agent */
    return xfer_register(agent, &described, diag, &region);
}

static bool is_host(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (!isalnum((unsigned char)text[i]) && strchr(".-_:%", text[i]) == NULL) {
            return false;
        }
    }
    return length > 0 && length <= MAX_HOST;
}

static const char *last_colon(const char *text, size_t length)
{
    while (length > 0 && text[length - 1] != ':') {
        length--;
    }
    return length == 0 ? NULL : text + length - 1;
}

static bool parse_port(const char *text, size_t length, unsigned long *port_out)
{
    char digits[8] = "";
    char *end;
    if (length == 0 || length >= sizeof(digits) || !isdigit((unsigned char)text[0])) {
        return false;
    }
    memcpy(digits, text, length);
    *port_out = strtoul(digits, &end, 10);
    return *end == '\0' && *port_out <= UINT16_MAX;
}

weft_status_t kv_remote_endpoint(const char *text, size_t length, uint32_t add, weft_diag_t *diag,
                                 char endpoint_out[KV_REMOTE_MAX_ENDPOINT],
                                 char host_out[KV_REMOTE_MAX_ENDPOINT])
{
    const char *colon = last_colon(text, length);
    const char *host = text;
    size_t bytes = colon == NULL ? 0 : (size_t)(colon - text);
    const bool is_bracketed = bytes > 2 && host[0] == '[' && host[bytes - 1] == ']';
    const bool is_any = bytes == 1 && host[0] == '*';
    unsigned long port = 0;
    if (is_bracketed) {
        host++;
        bytes -= 2;
    }
    if (colon == NULL || !parse_port(colon + 1, length - (size_t)(colon + 1 - text), &port) ||
        (!is_any && !is_host(host, bytes))) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%.*s is not host:port", (int)length, text);
    }
    port += port == 0 ? 0 : add;
    if (port > UINT16_MAX) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%.*s and %u: no such port", (int)length, text,
                         add);
    }
    snprintf(host_out, KV_REMOTE_MAX_ENDPOINT, "%.*s", is_any ? 0 : (int)bytes, host);
    snprintf(endpoint_out, KV_REMOTE_MAX_ENDPOINT,
             is_bracketed ? "tcp://[%.*s]:%lu" : "tcp://%.*s:%lu", (int)bytes, host, port);
    return WEFT_OK;
}
