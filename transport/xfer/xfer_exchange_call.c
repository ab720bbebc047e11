/* SPDX-License-Identifier: Apache-2.0 */
/* The calls of xfer_exchange.h that wait. */
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "transport/xfer/xfer_commands.h"
#include "transport/xfer/xfer_exchange.h"
#include "transport/xfer/xfer_exchange_priv.h"

typedef struct call {
    int fd;
    uint64_t deadline_ns;
} call_t;

static weft_status_t open_call(const xfer_exchange_place_t *place, weft_diag_t *diag,
                               call_t *call_out)
{
    struct addrinfo *addresses;
    call_t call = {.deadline_ns = weft_clock_ns() + (uint64_t)place->timeout_ms * WEFT_NS_PER_MS};
    weft_status_t status = xfer_exchange_resolve(place->host, place->port, 0, diag, &addresses);

    if (status < 0) {
        return status;
    }
    status = xfer_exchange_connect_to(addresses, call.deadline_ns, &call.fd);
    freeaddrinfo(addresses);
    if (status < 0) {
        return weft_diag(diag, status, "port %u of %s: %s", place->port, place->host,
                         weft_strerror(status));
    }
    *call_out = call;
    return WEFT_OK;
}

static weft_status_t send_all(const call_t *call, weft_buffer_t *out)
{
    weft_status_t status = out->is_failed ? WEFT_ERR_NO_MEMORY : WEFT_PENDING;

    while (status == WEFT_PENDING) {
        status = xfer_exchange_write_some(call->fd, out);
        if (status == WEFT_PENDING) {
            const weft_status_t waited =
                xfer_exchange_wait_for(call->fd, POLLOUT, call->deadline_ns);
            status = waited < 0 ? waited : WEFT_PENDING;
        }
    }
    return status;
}

static weft_status_t say(const xfer_exchange_place_t *place, const char *verb, const void *body,
                         size_t bytes, weft_diag_t *diag, call_t *call_out)
{
    weft_buffer_t out = {0};
    weft_status_t status = open_call(place, diag, call_out);

    if (status < 0) {
        return status;
    }
    xfer_commands_encode(verb, body, bytes, &out);
    status = send_all(call_out, &out);
    weft_buffer_free(&out);
    if (status < 0) {
        close(call_out->fd);
        return weft_diag(diag, status, "port %u of %s: %s", place->port, place->host,
                         weft_strerror(status));
    }
    return WEFT_OK;
}

weft_status_t xfer_exchange_send(const xfer_exchange_place_t *place, const void *metadata,
                                 size_t bytes, weft_diag_t *diag)
{
    call_t call;
    const weft_status_t status = say(place, "LOAD", metadata, bytes, diag, &call);
    if (status == WEFT_OK) {
        close(call.fd);
    }
    return status;
}

weft_status_t xfer_exchange_leave(const xfer_exchange_place_t *place, const char *name,
                                  weft_diag_t *diag)
{
    call_t call;
    const weft_status_t status = say(place, "INVL", name, strlen(name), diag, &call);
    if (status == WEFT_OK) {
        close(call.fd);
    }
    return status;
}

/* ---- fetching -------------------------------------------------------------------------------- */

typedef struct answer {
    xfer_agent_t *agent;
    weft_diag_t *diag;
    weft_status_t status; /* PENDING: no metadata came */
    xfer_peer_t *peer;
} answer_t;

static bool on_answer(void *user, const void *metadata, size_t bytes)
{
    answer_t *answer = user;
    answer->status = xfer_import(answer->agent, metadata, bytes, answer->diag, &answer->peer);
    return answer->status != WEFT_ERR_MALFORMED;
}

static void ignore_send(void *user)
{
    (void)user;
}

static void ignore_name(void *user, const void *name, size_t bytes)
{
    (void)user;
    (void)name;
    (void)bytes;
}

/* Frames until one had metadata. */
static weft_status_t receive_answer(const call_t *call, weft_buffer_t *in, answer_t *answer)
{
    const xfer_commands_t commands = {
        .load = on_answer, .send = ignore_send, .invalidate = ignore_name, .user = answer};
    size_t bytes;

    while (answer->status == WEFT_PENDING) {
        weft_status_t status = xfer_commands_frame(in->data, in->length, &bytes);
        if (status == WEFT_PENDING) {
            status = xfer_exchange_wait_for(call->fd, POLLIN, call->deadline_ns);
            status = status == WEFT_OK ? xfer_exchange_read_some(call->fd, in) : status;
        } else if (status == WEFT_OK) {
            status = xfer_commands_run(in->data + XFER_FRAME_HEAD, bytes, &commands);
            weft_buffer_drop_front(in, XFER_FRAME_HEAD + bytes);
        }
        if (status < 0) {
            return status;
        }
    }
    return answer->status;
}

weft_status_t xfer_exchange_fetch(xfer_agent_t *agent, const xfer_exchange_place_t *place,
                                  weft_diag_t *diag, xfer_peer_t **peer_out)
{
    answer_t answer = {.agent = agent, .diag = diag, .status = WEFT_PENDING};
    weft_buffer_t in = {0};
    call_t call;
    weft_status_t status = say(place, "SEND", NULL, 0, diag, &call);

    if (status < 0) {
        return status;
    }
    status = receive_answer(&call, &in, &answer);
    close(call.fd);
    weft_buffer_free(&in);
    if (status < 0) {
        return answer.status == status ? status
                                       : weft_diag(diag, status, "port %u of %s: %s", place->port,
                                                   place->host, weft_strerror(status));
    }
    *peer_out = answer.peer;
    return WEFT_OK;
}
