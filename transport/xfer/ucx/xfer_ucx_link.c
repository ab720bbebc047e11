/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/xfer/ucx/xfer_ucx_priv.h"

#define WEFT_LOG_MODULE "xfer.ucx"
#include "base/log.h"

/* How long disconnect may take to get memory back from UCX; nothing of it waits for the peer. */
#define DRAIN_NS (2 * WEFT_NS_PER_SECOND)

/*
 * UCX's readers of addresses and keys are not told how long they are, and believe the lengths
 * within, which are bytes or 16 bits wide in the places that matter. Behind a cut blob they find
 * zeros, not other memory.
 */
#define PADDING           ((size_t)64 * 1024)
#define MAX_BLOB          ((size_t)64 * 1024)
#define UCX_ADDRESS_LEAST 9 /* a version and the worker's number */

/*
 * What UCX asserts rather than checks, as its releases 1.13 to 1.23 write it. An address begins with
 * its version in four bits, 0 or 1. A key is a u64 with a bit for each memory domain, a byte that says
 * which kind of memory, then for each of these domains a byte n and n bytes; more may follow.
 */
static bool is_address(const uint8_t *bytes, size_t n)
{
    return n >= UCX_ADDRESS_LEAST && n <= MAX_BLOB && (bytes[0] & 0xf) <= 1;
}

static bool is_key(const uint8_t *bytes, size_t n)
{
    uint64_t domains;
    size_t at = sizeof(domains) + 1;

    if (n < at || n > MAX_BLOB || bytes[sizeof(domains)] >= UCS_MEMORY_TYPE_LAST) {
        return false;
    }
    memcpy(&domains, bytes, sizeof(domains));
    for (; domains != 0; domains &= domains - 1) {
        if (at >= n || bytes[at] >= n - at) {
            return false;
        }
        at += 1 + (size_t)bytes[at];
    }
    return true;
}

static void *padded_copy(const void *blob, size_t bytes)
{
    char *copy = weft_zalloc(bytes + PADDING, "xfer.ucx_blob");
    if (copy != NULL) {
        memcpy(copy, blob, bytes);
    }
    return copy;
}

void xfer_ucx_link_lose(ucx_link_t *link, ucs_status_t why)
{
    if (!link->is_lost) {
        weft_log_info("peer=%s lost: %s", link->peer,
                      ucx_port_of(link)->ucx->ucs_status_string(why));
    }
    link->is_lost = true;
    link->is_dirty = true;
}

static void on_endpoint_error(void *arg, ucp_ep_h endpoint, ucs_status_t status)
{
    (void)endpoint;
    xfer_ucx_link_lose(arg, status);
}

static weft_status_t create_endpoint(ucx_link_t *link, const void *address)
{
    ucx_port_t *port = ucx_port_of(link);
    const ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = address,
        .err_mode = port->error_mode,
        .err_handler = {.cb = on_endpoint_error, .arg = link},
    };
    const ucs_status_t status = port->ucx->ucp_ep_create(port->worker, &params, &link->endpoint);

    if (status == UCS_OK) {
        return WEFT_OK;
    }
    link->endpoint = NULL;
    weft_log_info("peer=%s cannot be reached: %s", link->peer,
                  port->ucx->ucs_status_string(status));
    return status == UCS_ERR_NO_MEMORY ? WEFT_ERR_NO_MEMORY : WEFT_ERR_UNSUPPORTED;
}

static ucx_link_t *create_link(ucx_port_t *port, const char *peer)
{
    const size_t length = strlen(peer);
    ucx_link_t *link = weft_zalloc(sizeof(*link) + length + 1, "xfer.ucx_link");

    if (link == NULL) {
        return NULL;
    }
    memcpy(link->peer, peer, length);
    link->base.port = &port->base;
    link->credits = UCX_CREDITS;
    for (size_t i = 0; i < UCX_LETTERS; i++) {
        link->letters[i].next = link->free_letters;
        link->free_letters = &link->letters[i];
    }
    return link;
}

weft_status_t xfer_ucx_connect(xfer_port_t *port_base, const char *peer, const void *address,
                               size_t bytes, xfer_link_t **link_out)
{
    ucx_port_t *port = (ucx_port_t *)port_base;

    if (!is_address(address, bytes)) {
        return WEFT_ERR_MALFORMED;
    }
    ucx_link_t *link = create_link(port, peer);
    void *copy = padded_copy(address, bytes);
    weft_status_t status =
        link != NULL && copy != NULL ? create_endpoint(link, copy) : WEFT_ERR_NO_MEMORY;
    weft_free(copy);
    if (status < 0) {
        weft_free(link);
        return status;
    }
    link->next = port->links;
    port->links = link;
    *link_out = &link->base;
    return WEFT_OK;
}

/* ---- closing --------------------------------------------------------------------------------- */

static void on_closed(void *request, ucs_status_t status, void *user)
{
    ucx_port_t *port = user;
    (void)status;
    port->closing--;
    port->ucx->ucp_request_free(request);
}

void xfer_ucx_link_close(ucx_link_t *link, bool force)
{
    ucx_port_t *port = ucx_port_of(link);
    const bool can_force = port->error_mode == UCP_ERR_HANDLING_MODE_PEER;
    const ucp_request_param_t params = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = force && can_force ? UCP_EP_CLOSE_FLAG_FORCE : 0,
        .cb.send = on_closed,
        .user_data = port,
    };

    if (link->endpoint == NULL) {
        return;
    }
    if (UCS_PTR_IS_PTR(port->ucx->ucp_ep_close_nbx(link->endpoint, &params))) {
        port->closing++;
    }
    link->endpoint = NULL;
}

static bool has_pending(const ucx_link_t *link)
{
    for (const xfer_op_t *op = link->running.first; op != NULL; op = op->next) {
        if (op->words[UCX_OP_PENDING] > 0) {
            return true;
        }
    }
    return false;
}

static void drain(ucx_link_t *link)
{
    ucx_port_t *port = ucx_port_of(link);
    const uint64_t deadline = weft_clock_ns() + DRAIN_NS;

    while (has_pending(link)) {
        if (port->ucx->ucp_worker_progress(port->worker) == 0 && weft_clock_ns() > deadline) {
            weft_log_error("peer=%s does not let go of memory", link->peer);
            return;
        }
    }
}

static void unlink_from_port(ucx_link_t *link)
{
    ucx_link_t **place = &ucx_port_of(link)->links;
    while (*place != link) {
        place = &(*place)->next;
    }
    *place = link->next;
}

void xfer_ucx_disconnect(xfer_link_t *base)
{
    ucx_link_t *link = (ucx_link_t *)base;

    /* What is sent completely may still arrive; what is not is given up. */
    xfer_ucx_link_close(link, link->is_lost || has_pending(link));
    drain(link);
    unlink_from_port(link);
    xfer_ucx_link_end(link, WEFT_ERR_CANCELLED);
    weft_free(link);
}

/* ---- regions of the peer --------------------------------------------------------------------- */

weft_status_t xfer_ucx_import(xfer_link_t *base, const xfer_memory_t *memory, const void *blob,
                              size_t bytes, void **handle_out)
{
    ucx_link_t *link = (ucx_link_t *)base;
    const ucx_functions_t *ucx = ucx_port_of(link)->ucx;
    ucp_rkey_h key;

    if (memory->space == XFER_FILE) {
        return WEFT_ERR_UNSUPPORTED;
    }
    if (!is_key(blob, bytes)) {
        return WEFT_ERR_MALFORMED;
    }
    if (link->endpoint == NULL) {
        return WEFT_ERR_PEER_GONE;
    }
    void *copy = padded_copy(blob, bytes);
    if (copy == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const ucs_status_t status = ucx->ucp_ep_rkey_unpack(link->endpoint, copy, &key);
    weft_free(copy);
    if (status != UCS_OK) {
        weft_log_warn("peer=%s memory key of %zu bytes: %s; is its UCX older than 1.%d?",
                      link->peer, bytes, ucx->ucs_status_string(status), WEFT_UCX_OLDEST_MINOR);
        return status == UCS_ERR_NO_MEMORY ? WEFT_ERR_NO_MEMORY : WEFT_ERR_UNSUPPORTED;
    }
    *handle_out = key;
    return WEFT_OK;
}

void xfer_ucx_release(xfer_port_t *port, void *handle)
{
    ((ucx_port_t *)port)->ucx->ucp_rkey_destroy(handle);
}
